#!/usr/bin/python
# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Bring one host's policies to a bundle."""

from __future__ import annotations

DOCUMENTATION = r"""
module: policies
short_description: Bring a host's Tetragon policies to a bundle
version_added: 0.1.0
author:
  - Apiary contributors (@apiary)
description:
  - Makes a host run exactly the policies of a bundle, in one task whatever their number, without a moment in which less
    is enforced than before or after.
  - New revisions load beside the old ones in monitor, are read back, take over in one step, and only then the old ones go.
    A change of mode alone reloads nothing.
  - The same set is written to the agent's policy directory in one rename, once this very agent has loaded every policy
    in it, so that a restart yields the same.
  - A policy whose uprobes sit in a program or library that was replaced since it was loaded is loaded again; until then it sees and
    enforces nothing in the new file.
  - What threads that are gone have left in a policy's map of verdicts is cleared in every run, since a policy whose map is full denies
    nothing. Two policies that override one function leave it there.
  - On any failure the host is as before, and the agent's own words are in the message.
  - Policies that this collection did not load are never touched.
extends_documentation_fragment:
  - apiary.tetragon.agent
  - apiary.tetragon.attributes
  - apiary.tetragon.attributes.action_group
options:
  bundle:
    description:
      - Directory of a bundle B(on the controller). The host's inventory groups decide which of its policies it gets.
      - An empty string stands for no policies at all.
      - Exactly one of O(bundle) and O(policies) must be given.
    type: str
  policies:
    description:
      - The policies themselves, each as a bundle describes it, with its C(text).
    type: list
    elements: dict
  digest:
    description:
      - With O(policies), the digest of the bundle they come from, to be recorded on the host.
    type: str
    default: ''
  lift_break_glass:
    description:
      - Put policies back into their modes that break-glass took out of enforcement on this host. Without it they stay in monitor, and
        every run warns of it.
    type: bool
    default: false
  observe:
    description:
      - Observe the host after the change (see M(apiary.tetragon.agent_info)).
    type: bool
    default: false
attributes:
  check_mode:
    support: full
    details:
      - On a host without an agent it predicts that every policy would be added, and warns that there is no agent yet.
  diff_mode:
    support: full
seealso:
  - module: apiary.tetragon.bundle
"""

EXAMPLES = r"""
- name: Run what the bundle says
  apiary.tetragon.policies:
    bundle: bundles/production-0123456789abcdef

- name: Remove every policy that this collection loaded
  apiary.tetragon.policies:
    bundle: ''
"""

RETURN = r"""
actions:
  description: What was done, or in check mode would be, in order.
  returned: success
  type: list
  elements: dict
  sample:
    - {action: add, policy: c2-ranges-62e47d41}
    - {action: enforce, policy: c2-ranges-62e47d41}
    - {action: monitor, policy: c2-ranges-0f9e8d7c}
    - {action: write, policy: ''}
    - {action: remove, policy: c2-ranges-0f9e8d7c}
restored:
  description: Whether the host is as it was before the failed run.
  returned: failure
  type: bool
observation:
  description: The observation after the change.
  returned: when O(observe) is set and O(record) is not
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.converge import ConvergeError, Result, converge
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.options import ARGUMENTS, host, pid_file
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.plan import Wanted
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.state import Busy


def _diff(result: Result) -> dict:
    def show(policies: dict) -> str:
        return "".join("{0}: {1}\n".format(name, mode) for name, mode in sorted(policies.items()))

    return {"before_header": "policies", "after_header": "policies", "before": show(result.before), "after": show(result.after)}


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec=dict(
            ARGUMENTS,
            bundle={"type": "str"},
            policies={"type": "list", "elements": "dict"},
            digest={"type": "str", "default": ""},
            lift_break_glass={"type": "bool", "default": False},
            observe={"type": "bool", "default": False},
        ),
        required_one_of=[("bundle", "policies")],
        mutually_exclusive=[("bundle", "policies")],
        supports_check_mode=True,
    )
    params = module.params
    if params["bundle"] is not None:
        module.fail_json(msg="a bundle is read on the controller: call apiary.tetragon.policies as a task, not as a bare module")
    here = host(params)
    try:
        wanted = [Wanted.from_bundle(raw) for raw in params["policies"] or ()]
        result = converge(here, wanted, params["digest"], module.check_mode, params["lift_break_glass"])
    except KeyError as error:
        module.fail_json(msg="an entry of policies lacks the key {0}: give it as a bundle describes it".format(error))
    except ConvergeError as error:
        module.fail_json(msg=str(error), restored=error.restored)
    except (Busy, ValueError) as error:
        module.fail_json(msg=str(error), restored=True)
    for warning in result.warnings:
        module.warn(warning)
    extra = {}
    if params["observe"]:
        # Imported only here: its HTTP client costs more than all the rest of a run that has nothing to change.
        from ansible_collections.apiary.tetragon.plugins.module_utils.agent.observe import observe

        extra["observation"] = observe(here.tetra, here.pins, here.state, pid_file(params))
    module.exit_json(changed=result.changed, actions=result.actions, diff=_diff(result), **extra)


if __name__ == "__main__":
    main()
