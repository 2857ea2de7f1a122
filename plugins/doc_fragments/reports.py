# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Options that say which reports to write."""

from __future__ import annotations


class ModuleDocFragment:
    """Shared by the modules that report on policies."""

    DOCUMENTATION = r"""
options:
  report:
    description:
      - A file that receives the whole report as one JSON document.
    type: path
  junit:
    description:
      - A file that receives the report as JUnit XML.
    type: path
  sarif:
    description:
      - A file that receives the report as SARIF 2.1.0, for code scanning.
    type: path
  markdown:
    description:
      - A file that receives the report as Markdown, for a comment in a pull request.
    type: path
"""
