#!/usr/bin/python
# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Hand over from the running agent to the wanted one."""

from __future__ import annotations

DOCUMENTATION = r"""
module: agent
short_description: Hand over from a running Tetragon agent to another version or configuration
version_added: 0.1.0
author:
  - Apiary contributors (@apiary)
description:
  - Brings the wanted agent up in the free slot, beside the running one, loads the same policies into it, lets it take over in one
    step, makes it the one that boots, and only then stops the old one and removes its pins. Upgrade, downgrade and change of
    configuration are the same to it.
  - Nothing forbidden is allowed meanwhile. Before the old agent goes, and after, the new one is proved to deny what it lists as enforced
    (see O(attempt_triggers)). On any failure before the take-over the old agent is in charge as before.
  - A run that was interrupted, even by a power cut, is finished or undone first.
  - With O(adopt), an agent that a package or upstream's installer put on the host is taken over in the same way. Its policies
    are kept; its configuration is moved to C(/var/lib/apiary/adopted).
extends_documentation_fragment:
  - apiary.tetragon.unit
  - apiary.tetragon.attributes
options:
  version:
    description:
      - A version that is on the host (see M(apiary.tetragon.release)).
    type: str
    required: true
  options:
    description:
      - Options of the agent beside those that the collection sets.
    type: dict
    default: {}
  adopt:
    description:
      - Take over an agent that somebody else installed.
    type: bool
    default: false
  drop_loaded_by_hand:
    description:
      - Go on although policies that were loaded by hand, without a file, will be gone with the old agent.
    type: bool
    default: false
  attempt_triggers:
    description:
      - Attempt what the policies forbid, by their triggers, once under the old agent and then under the new one, and roll back when the
        new one allows what the old one refused. Only triggers that change nothing where they come through are attempted (V(open),
        V(write), V(connect), V(exec-memory)), by a process of python3 as root; each is seen as an event.
      - A policy without such a trigger, and every policy when this is switched off, is proved by its links in the BPF file system alone.
    type: bool
    default: true
  timeout:
    description:
      - Seconds that one call of the client may take.
    type: int
    default: 120
attributes:
  check_mode:
    support: full
    details:
      - Says what would be done, and why.
  diff_mode:
    support: full
seealso:
  - module: apiary.tetragon.install
  - module: apiary.tetragon.release
"""

EXAMPLES = r"""
- name: Hand over to the next version
  apiary.tetragon.agent:
    version: 1.7.1

- name: Take over what upstream's installer put here
  apiary.tetragon.agent:
    version: 1.7.1
    adopt: true
"""

RETURN = r"""
slot:
  description: The slot in charge.
  returned: success
  type: str
  sample: b
reasons:
  description: Why the agent had to change; empty when it is as wanted.
  returned: success
  type: list
  elements: str
  sample: ["version: 1.7.0 -> 1.7.1"]
actions:
  description: The steps that were taken or, in check mode, would be.
  returned: success
  type: list
  elements: str
  sample: [clean b, start b, load b, write b, flip b, point b, retire a, prove b]
proofs:
  description: How each enforcing policy was proved in the new agent or, in check mode, would be.
  returned: success
  type: list
  elements: str
  sample: ["c2-ranges-62e47d41: trigger: connect 192.0.2.1", "shell-in-container-0a1b2c3d: links: 1 pinned link"]
restored:
  description: Whether the former agent is in charge as before.
  returned: failure
  type: bool
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.apiary.tetragon.plugins.module_utils.agent import flags
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.handover import Agent, Handover, HandoverError
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.release import ReleaseError, exact_version
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.slots import Layout
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.state import Busy
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.systemd import Systemd
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.units import Limits


def _lines(values: dict) -> str:
    return "".join(
        value if name == "unit" and "\n" in value else "{0}: {1}\n".format(name, value) for name, value in sorted(values.items())
    )


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "version": {"type": "str", "required": True},
            "options": {"type": "dict", "default": {}},
            "adopt": {"type": "bool", "default": False},
            "drop_loaded_by_hand": {"type": "bool", "default": False},
            "attempt_triggers": {"type": "bool", "default": True},
            "before": {"type": "list", "elements": "str", "default": []},
            "memory_max": {"type": "str", "default": "2G"},
            "cpu_quota": {"type": "str", "default": ""},
            "restart_seconds": {"type": "int", "default": 5},
            "start_limit": {"type": "int", "default": 10},
            "start_timeout": {"type": "int", "default": 900},
            "timeout": {"type": "int", "default": 120},
        },
        supports_check_mode=True,
    )
    params = module.params
    names = ("before", "memory_max", "cpu_quota", "restart_seconds", "start_limit", "start_timeout")
    limits = Limits(**{name: params[name] for name in names})
    try:
        version = exact_version(params["version"])
        wrong = flags.problems(version, params["options"]) + limits.problems()
        if wrong:
            module.fail_json(msg="; ".join(wrong), restored=True)
        options = {name: flags.text_of(value) for name, value in params["options"].items()}
        run = Handover(
            Layout(),
            Systemd(params["start_timeout"] + 120),
            params["timeout"],
            params["drop_loaded_by_hand"],
            params["attempt_triggers"],
        )
        result = run.execute(Agent(version, options, limits), params["adopt"], module.check_mode)
    except HandoverError as error:
        module.fail_json(msg=str(error), restored=error.restored)
    except (Busy, ReleaseError) as error:
        module.fail_json(msg=str(error), restored=True)
    for warning in result.warnings:
        module.warn(warning)
    module.exit_json(
        changed=result.changed,
        slot=result.slot,
        reasons=result.reasons,
        actions=result.actions,
        proofs=result.proofs,
        diff={"before_header": "agent", "after_header": "agent", "before": _lines(result.before), "after": _lines(result.after)},
    )


if __name__ == "__main__":
    main()
