#!/usr/bin/python
# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Prove on a live host that enforcement persists."""

from __future__ import annotations

DOCUMENTATION = r"""
module: drill
short_description: Prove on a live host that its policies keep enforcing without their agent
version_added: 0.1.0
author:
  - Apiary contributors (@apiary)
description:
  - Attempts, at a steady rate, what each enforcing policy of the host forbids, while the agent is stopped, killed and restarted, and
    counts what came through. A policy without a trigger in its C(meta.yml) is proved by its links in the kernel.
  - B(The agent is stopped, killed and restarted.) Events are not seen meanwhile; what v1.7 does not pin (LSM hooks) is not enforced.
  - Use the role's entry point C(drill), which asks for consent, can reboot between the two steps, and always ends the drill.
options:
  step:
    description:
      - V(begin) starts the prober and goes through O(events).
      - V(finish) counts, removes the prober, and fails when something came through. It does nothing when no drill is under way.
    type: str
    choices: [begin, finish]
    required: true
  bundle:
    description:
      - Directory of the host's bundle B(on the controller), which has the triggers; without one every policy is proved by its links.
    type: path
  policies:
    description:
      - The enforcing policies, instead of O(bundle).
    type: list
    elements: dict
  events:
    description:
      - What the agent is put through, in this order.
    type: list
    elements: str
    choices: [stop, kill, restart]
    default: [stop, kill, restart]
  pause:
    description:
      - Seconds from one attempt to the next.
    type: float
    default: 0.2
  seconds:
    description:
      - How long the host is watched before the first event, while the agent is down, and after each event.
    type: int
    default: 10
  reboot:
    description:
      - The host is rebooted between the two steps. What follows V(begin) is the phase C(shutdown); V(finish) fails if it was not.
    type: bool
    default: false
  start_timeout:
    description:
      - Seconds within which the agent must be ready after an event.
    type: int
    default: 900
  timeout:
    description:
      - Seconds that one call of the client may take.
    type: int
    default: 120
  report_dir:
    description:
      - Directory B(on the controller) that gets C(drill-HOST.json) and C(drill-HOST.html) in V(finish).
    type: path
extends_documentation_fragment:
  - apiary.tetragon.attributes
attributes:
  check_mode:
    support: full
    details:
      - Says how each policy would be proved, and what the agent would be put through.
  diff_mode:
    support: none
"""

EXAMPLES = r"""
- name: Say what a drill would do
  apiary.tetragon.drill:
    step: begin
    bundle: bundles/production-0123456789abcdef
  check_mode: true
"""

RETURN = r"""
plan:
  description: How each policy is proved, and the events.
  returned: O(step=begin)
  type: list
  elements: str
  sample: ["network/c2-ranges: trigger: connect 192.0.2.1", "then: stop, kill, restart"]
drill:
  description:
    - What was found, as C(apiary.dev/drill/1); policies, counts by phase and policy, refused acts that nothing forbids, lapses.
    - Empty when no drill was under way.
  returned: O(step=finish)
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.drill import EVENTS, Drill, DrillError
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.slots import Layout
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.state import Busy
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.systemd import ServiceError, Systemd


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "step": {"type": "str", "choices": ["begin", "finish"], "required": True},
            "bundle": {"type": "path"},
            "policies": {"type": "list", "elements": "dict"},
            "events": {"type": "list", "elements": "str", "choices": list(EVENTS), "default": list(EVENTS)},
            "pause": {"type": "float", "default": 0.2},
            "seconds": {"type": "int", "default": 10},
            "reboot": {"type": "bool", "default": False},
            "start_timeout": {"type": "int", "default": 900},
            "timeout": {"type": "int", "default": 120},
            "report_dir": {"type": "path"},
        },
        supports_check_mode=True,
    )
    params = module.params
    if params["bundle"]:
        module.fail_json(msg="a bundle is read on the controller: its action plugin did not run")
    if params["pause"] < 0.02 or params["seconds"] < 2 * params["pause"]:
        module.fail_json(
            msg="pause {0}, seconds {1}: needed: a pause of 0.02 or more, twice within seconds".format(params["pause"], params["seconds"])
        )
    run = Drill(Layout(), Systemd(params["start_timeout"] + 120), params["timeout"], params["start_timeout"])
    try:
        if params["step"] == "begin":
            policies = params["policies"] or []
            if module.check_mode:
                proofs = run.proofs(policies)
            else:
                proofs = run.begin(policies, params["events"], params["pause"], params["seconds"], params["reboot"])
            plan = [str(one) for one in proofs] + ["then: {0}".format(", ".join(params["events"]) or "nothing")]
            module.exit_json(changed=True, plan=plan)
        if not run.under_way() or module.check_mode:
            module.exit_json(changed=False, drill={})
        found = run.finish(params["reboot"])
    except (Busy, DrillError, ServiceError, OSError, ValueError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=True, drill=found)


if __name__ == "__main__":
    main()
