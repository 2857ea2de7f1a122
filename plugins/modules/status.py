#!/usr/bin/python
# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Documentation of apiary.tetragon.status, which runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: status
short_description: Hold a fleet's observations against its ledger
version_added: 0.1.0
author:
  - Apiary contributors (@apiary)
description:
  - Compares what every host of the play was seen to run with what the ledger says it was left on, and tells the drift.
options:
  environment_file:
    description:
      - The environment file.
    type: path
    required: true
  ledger_dir:
    description:
      - Directory of the ledger.
    type: path
    required: true
  bundle_dir:
    description:
      - Where bundles are kept.
    type: path
    required: true
  observations:
    description:
      - Directory with one observation per host, C(<host>.json), as M(apiary.tetragon.agent_info) records them.
    type: path
    required: true
  report:
    description:
      - A file that receives the result as JSON.
    type: path
    required: true
extends_documentation_fragment:
  - apiary.tetragon.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
    details:
      - Changes nothing.
"""

EXAMPLES = r"""
- name: Tell what runs where
  apiary.tetragon.status:
    environment_file: environments/production.yml
    ledger_dir: ledger
    bundle_dir: bundles
    observations: reports/status
    report: reports/status.json
  run_once: true
"""

RETURN = r"""
status:
  description: The current bundle, an unfinished rollout if there is one, and every host with its drift in words.
  returned: success
  type: dict
"""
