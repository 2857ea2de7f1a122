# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""What the attributes of modules mean; each module says how far it has them."""

from __future__ import annotations


class ModuleDocFragment:
    """Shared by all modules; ``ACTION_GROUP``: by those that talk to an agent."""

    DOCUMENTATION = r"""
attributes:
  check_mode:
    description: Can run in check_mode and return changed status prediction without modifying target.
  diff_mode:
    description: Returns details on what has changed when in diff mode.
"""

    ACTION_GROUP = r"""
attributes:
  action_group:
    description: Use C(group/apiary.tetragon.agent) in C(module_defaults) to set defaults for this module.
    support: full
    membership:
      - apiary.tetragon.agent
"""
