#!/usr/bin/python
# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Judge whether one host can run the agent and its policies."""

from __future__ import annotations

DOCUMENTATION = r"""
module: preflight
short_description: Judge whether a host can run Tetragon and enforce its policies
version_added: 0.1.0
author:
  - Apiary contributors (@apiary)
description:
  - Reads the host without changing it, and gives a verdict on the kernel, BTF, the BPF file system, lockdown, C(kptr_restrict),
    cgroups, space, systemd, other agents, ports and sockets, and on each feature that the host's policies need.
  - Fails when a verdict is V(fail), naming every one of them and the way out.
options:
  version:
    description:
      - The version that is to run. Its options are checked by name and value.
    type: str
    default: ''
  options:
    description:
      - The agent's options beside those of the collection.
    type: dict
    default: {}
  bundle:
    description:
      - Directory of a bundle B(on the controller). What its policies for this host need is judged.
    type: str
    default: ''
  requirements:
    description:
      - The needs themselves, as the bundle's policies state them. Filled from O(bundle).
    type: list
    elements: dict
    default: []
  adopt:
    description:
      - Another agent on the host is to be taken over, and is no obstacle.
    type: bool
    default: false
  report:
    description:
      - Only report; a verdict V(fail) is no failure of the task.
    type: bool
    default: false
extends_documentation_fragment:
  - apiary.tetragon.attributes
attributes:
  check_mode:
    support: full
    details:
      - Never changes anything.
  diff_mode:
    support: none
    details:
      - Changes nothing.
"""

EXAMPLES = r"""
- name: Judge the host for what it is to run
  apiary.tetragon.preflight:
    version: 1.7.1
    bundle: bundles/production-0123456789abcdef
    report: true
  register: judged

- name: Show the table
  ansible.builtin.debug:
    var: judged.table
"""

RETURN = r"""
verdicts:
  description: Every check with its verdict (V(ok), V(warn), V(fail), V(unknown)), what was found and needed, and the way out.
  returned: always
  type: list
  elements: dict
  sample:
    - {check: kernel, verdict: ok, found: 6.1.0-50-amd64, needed: 4.19 or newer, way_out: ''}
table:
  description: The same for a person, one a line.
  returned: always
  type: list
  elements: str
facts:
  description: What was read.
  returned: always
  type: dict
"""

import os
import shutil

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.flags import text_of
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.preflight import Wanted, as_data, gather, judge, table
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.release import Versions


def _tetra(version: str) -> str:
    """A client to ask for the kernel's features: of the wanted version, of the newest here, or anybody's."""
    versions = Versions("/opt/apiary/tetragon")
    names = [version] if version in versions.installed() else sorted(versions.installed())[-1:]
    found = [os.path.join(versions.path(name), "bin/tetra") for name in names]
    return found[0] if found else shutil.which("tetra", path="/usr/local/bin:/usr/bin") or ""


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "version": {"type": "str", "default": ""},
            "options": {"type": "dict", "default": {}},
            "bundle": {"type": "str", "default": ""},
            "requirements": {"type": "list", "elements": "dict", "default": []},
            "adopt": {"type": "bool", "default": False},
            "report": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    params = module.params
    if params["bundle"]:
        module.fail_json(msg="a bundle is read on the controller: call apiary.tetragon.preflight as a task, not as a bare module")
    options = {name: text_of(value) for name, value in params["options"].items()}
    facts = gather(program=_tetra(params["version"]))
    installed = params["version"] in Versions("/opt/apiary/tetragon").installed()
    wanted = Wanted(params["version"], options, params["requirements"], params["adopt"], *([0] if installed else []))
    verdicts = judge(facts, wanted)
    result = {"changed": False, "facts": facts, "verdicts": as_data(verdicts), "table": table(verdicts)}
    failed = [str(one) for one in verdicts if one.verdict == "fail"]
    for one in verdicts:
        if one.verdict == "warn":
            module.warn(str(one))
    if failed and not params["report"]:
        module.fail_json(msg="this host cannot run what it is to run:\n" + "\n".join(failed), **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
