# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Options of the agent's unit."""

from __future__ import annotations


class ModuleDocFragment:
    """Shared by the modules that write the unit of a slot."""

    DOCUMENTATION = r"""
options:
  before:
    description:
      - Units that start only when the agent is ready.
    type: list
    elements: str
    default: []
  memory_max:
    description:
      - The unit's limit of memory; empty for none.
    type: str
    default: 2G
  cpu_quota:
    description:
      - The unit's share of one CPU, such as V(50%); empty for no limit.
    type: str
    default: ''
  restart_seconds:
    description:
      - Seconds between the end of an agent and its next start.
    type: int
    default: 5
  start_limit:
    description:
      - Starts within an hour after which the unit is given up and an alarm is raised.
    type: int
    default: 10
  start_timeout:
    description:
      - Seconds within which the agent must be ready with all its policies.
    type: int
    default: 900
"""
