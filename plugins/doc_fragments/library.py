# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Options that say where policies come from."""

from __future__ import annotations


class ModuleDocFragment:
    """Shared by the modules that read policies; ``ENVIRONMENT``: by those that check the ones of an environment."""

    DOCUMENTATION = r"""
options:
  policy_path:
    description:
      - Directories with policies of your own. A policy found there goes before one of the same name in the
        collection's library, which is always searched last.
    type: list
    elements: path
    default: []
"""

    ENVIRONMENT = r"""
options:
  environment_file:
    description:
      - The environment file.
    type: path
    required: true
  cache_dir:
    description:
      - Where results of checks are kept, by the digest of everything they depend on.
    type: path
"""
