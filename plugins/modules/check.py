#!/usr/bin/python
# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Documentation of apiary.tetragon.check, which runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: check
short_description: Check every policy of an environment
version_added: 0.1.0
author:
  - Apiary contributors (@apiary)
description:
  - Renders every policy of an environment file, holds it against the policy schema of the environment's agent version
    and against the lints, and replays its cases. On request it plants known bugs into each policy and says which of
    them the cases catch.
  - Unlike M(apiary.tetragon.bundle) it writes no bundle, and goes on after the first policy that is broken.
  - Fails when a case is broken, when a policy has no cases, when a lint finds an error, and when the cases let too
    many of the planted bugs live. The reports are written all the same.
  - Runs on the controller and needs no host.
extends_documentation_fragment:
  - apiary.tetragon.library
  - apiary.tetragon.library.environment
  - apiary.tetragon.reports
  - apiary.tetragon.attributes
options:
  mutation:
    description:
      - Check the cases too, by planting known bugs into each policy (see RV(check)).
    type: bool
    default: false
  mutation_needed:
    description:
      - The share, in percent, of the planted bugs that the cases of each policy must catch. Bugs that make no
        difference do not count.
    type: int
    default: 90
  migrate_to:
    description:
      - An agent version to come. What its agents refuse or do otherwise than those of the environment's version is among
        the findings; what they would refuse fails the check.
    type: str
attributes:
  check_mode:
    support: full
    details:
      - It changes nothing; the reports are written in check mode too.
  diff_mode:
    support: none
seealso:
  - module: apiary.tetragon.bundle
  - module: apiary.tetragon.replay
"""

EXAMPLES = r"""
- name: Check production as a pull request would have it
  apiary.tetragon.check:
    environment_file: environments/production.yml
    policy_path: [policies]
    mutation: true
    migrate_to: 1.8.0
    junit: reports/check.xml
    markdown: reports/check.md
"""

RETURN = r"""
check:
  description: The report, as in O(report). C(docs/schemas/check-report.json) describes it.
  returned: success
  type: dict
  contains:
    passed:
      description: Whether everything holds.
      type: bool
    policies:
      description: Each policy with its problems, findings, cases and, on request, planted bugs.
      type: list
      elements: dict
"""
