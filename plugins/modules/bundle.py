#!/usr/bin/python
# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Documentation of apiary.tetragon.bundle, which runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: bundle
short_description: Build the bundle of an environment
version_added: 0.1.0
author:
  - Apiary contributors (@apiary)
description:
  - Renders every policy of an environment file, holds it against the policy schema of the environment's agent version
    and against the lints, replays its cases, and writes the result as a content-addressed directory.
  - The same input gives the same digest on any machine.
  - Runs on the controller and needs no host.
extends_documentation_fragment:
  - apiary.tetragon.library
  - apiary.tetragon.library.environment
  - apiary.tetragon.attributes
options:
  directory:
    description:
      - Where bundles are kept. The bundle becomes a directory in it, named after environment and digest.
    type: path
    required: true
  against:
    description:
      - Directory of a former bundle, to say what changed.
    type: path
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
    details:
      - RV(changes) says what changed against O(against).
seealso:
  - module: apiary.tetragon.policies
"""

EXAMPLES = r"""
- name: Build the bundle of production
  apiary.tetragon.bundle:
    environment_file: environments/production.yml
    policy_path: [policies]
    directory: bundles
  register: built
"""

RETURN = r"""
path:
  description: The bundle's directory.
  returned: success
  type: str
  sample: bundles/production-0123456789abcdef
digest:
  description: The bundle's digest (SHA-256 in hex).
  returned: success
  type: str
findings:
  description: Warnings of the lints, and what policies allow with their reasons. An error is a failure of the task.
  returned: success
  type: list
  elements: str
changes:
  description: What a person wants to know of the difference to O(against), policy by policy.
  returned: success
  type: list
  elements: dict
  sample:
    - {policy: network/c2-ranges, kind: changed, details: ["mode: monitor -> enforce"]}
cases:
  description: For each policy, how many cases were replayed and how many events they held.
  returned: success
  type: dict
"""
