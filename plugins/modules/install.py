#!/usr/bin/python
# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Bring the agent up in a slot."""

from __future__ import annotations

DOCUMENTATION = r"""
module: install
short_description: Bring the Tetragon agent up on a host where none runs
version_added: 0.1.0
author:
  - Apiary contributors (@apiary)
description:
  - Writes a slot (unit, one file per option, policy directory), starts it, waits until it is ready, reads its effective options
    back, and makes it the one that boots.
  - An agent that has stopped, or that systemd has given up, is started again; pins that were kept stay in force meanwhile. Files in
    the policy directory that are not of the managed set are moved to C(/var/lib/apiary/aside).
  - A running agent is never touched. When it would have to change, when it is somebody else's, or when a hand-over was
    interrupted, RV(handover) says so, and M(apiary.tetragon.agent) has to do the rest.
  - When the agent does not become ready, the host is left as it was.
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
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
"""

EXAMPLES = r"""
- name: Bring the agent up
  apiary.tetragon.install:
    version: 1.7.1
    options:
      enable-process-cred: true
"""

RETURN = r"""
slot:
  description: The slot that boots.
  returned: success
  type: str
  sample: a
actions:
  description: What was done, or in check mode would be.
  returned: success
  type: list
  elements: str
  sample: [write, start, link]
handover:
  description: Why M(apiary.tetragon.agent) has to do the rest, such as files for which the running agent would have to change.
  returned: success
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.apiary.tetragon.plugins.module_utils.agent import flags
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.install import InstallError, install
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.release import ReleaseError, exact_version
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.units import Limits


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "version": {"type": "str", "required": True},
            "options": {"type": "dict", "default": {}},
            "before": {"type": "list", "elements": "str", "default": []},
            "memory_max": {"type": "str", "default": "2G"},
            "cpu_quota": {"type": "str", "default": ""},
            "restart_seconds": {"type": "int", "default": 5},
            "start_limit": {"type": "int", "default": 10},
            "start_timeout": {"type": "int", "default": 900},
        },
        supports_check_mode=True,
    )
    params = dict(module.params)
    try:
        version, options = exact_version(params.pop("version")), params.pop("options")
        limits = Limits(**params)
        wrong = flags.problems(version, options) + limits.problems()
        if wrong:
            module.fail_json(msg="; ".join(wrong))
        result = install(version, {name: flags.text_of(value) for name, value in options.items()}, limits, check=module.check_mode)
    except (InstallError, ReleaseError) as error:
        module.fail_json(msg=str(error))
    changed = bool(result.actions or result.handover)
    diff = [
        {"before_header": path, "after_header": path, "before": before, "after": after}
        for path, (before, after) in sorted(result.diff.items())
    ]
    module.exit_json(changed=changed, slot=result.slot, actions=result.actions, handover=result.handover, diff=diff)


if __name__ == "__main__":
    main()
