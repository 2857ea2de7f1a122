#!/usr/bin/python
# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Documentation of apiary.tetragon.rollout, which runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: rollout
short_description: The controller's steps of a staged rollout
version_added: 0.1.0
author:
  - Apiary contributors (@apiary)
description:
  - The steps that the role P(apiary.tetragon.rollout#role) puts between the changes of hosts. It takes the environment's
    lock, plans the rings, keeps the ledger, waits, judges, and writes the report.
  - Use the role or the playbooks; this module is the place where their steps are described.
options:
  step:
    description:
      - V(begin) takes the lock and starts or takes up a run.
      - V(plan) divides the hosts of the play into rings.
      - V(ring) begins a ring, V(batch) one of its batches.
      - V(bake) waits for the ring's bake time.
      - V(gate) gives the verdict over the ring.
      - V(conclude) records what became of the ring, and fails when it did not pass.
      - V(finish) records the end of a rollout that passed every ring.
      - V(end) writes the report and gives the lock back, whatever happened.
    type: str
    required: true
    choices: [begin, plan, ring, batch, bake, gate, conclude, finish, end]
  environment_file:
    description:
      - The environment file. Needed by O(step=begin).
    type: path
  bundle:
    description:
      - Directory of the bundle to roll out, for O(step=begin).
    type: str
    default: ''
  bundle_dir:
    description:
      - Where bundles are kept; the former one is looked for there. Needed by O(step=begin).
    type: path
  ledger_dir:
    description:
      - Directory of the ledger. Needed by O(step=begin).
    type: path
  report_dir:
    description:
      - Where the report is written. Needed by O(step=end).
    type: path
  back:
    description:
      - Roll out the former bundle, found in the ledger, instead of O(bundle).
    type: bool
    default: false
  retry:
    description:
      - Roll out a bundle that failed its gate before.
    type: bool
    default: false
  break_lock:
    description:
      - The run whose lock is taken over, when the machine that held it is gone.
    type: str
    default: ''
  run:
    description:
      - The run's directory, as O(step=begin) returned it.
    type: path
  ring:
    description:
      - Name of the ring.
    type: str
  batch:
    description:
      - Number of the batch in its ring, from 0.
    type: int
extends_documentation_fragment:
  - apiary.tetragon.attributes
attributes:
  check_mode:
    support: partial
    details:
      - In check mode V(begin) takes no lock and only says where the rollout leads; the role skips the other steps.
  diff_mode:
    support: none
"""

EXAMPLES = r"""
- name: Take the lock and start
  apiary.tetragon.rollout:
    step: begin
    environment_file: environments/production.yml
    bundle: bundles/production-0123456789abcdef
    bundle_dir: bundles
    ledger_dir: ledger
  run_once: true
  register: begun
"""

RETURN = r"""
run:
  description: The run's directory.
  returned: step is begin
  type: str
previous:
  description: Directory of the bundle that a roll-back returns to; empty when there is none.
  returned: step is begin
  type: str
order:
  description: Names of the rings in order.
  returned: step is plan
  type: list
  elements: str
rings:
  description: For each ring the hosts that are watched, those that take part, its batches, and each host's batch.
  returned: step is plan
  type: dict
last:
  description: For each host the number of the last ring that it takes part in.
  returned: step is plan
  type: dict
state:
  description: Whether the ring passed or failed before, or is open.
  returned: step is ring
  type: str
go:
  description: Whether the batch may change its hosts.
  returned: step is batch
  type: bool
verdict:
  description: The gate's verdict.
  returned: step is gate or conclude
  type: str
back:
  description: The hosts that go back to the former bundle, as a mapping by host.
  returned: step is gate
  type: dict
report:
  description: The report's page.
  returned: step is end
  type: str
"""
