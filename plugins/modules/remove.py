#!/usr/bin/python
# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Take the agent off a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: remove
short_description: Take the Tetragon agent off a host and prove that nothing is left
version_added: 0.1.0
author:
  - Apiary contributors (@apiary)
description:
  - Stops the agent of every slot and removes its units, versions, configuration, state, links, mounts, and what it pinned in every
    directory of the BPF file system that it ever used, also where no agent runs any more. B(Enforcement ends.)
  - Then looks for all of it again, and fails with the names of what is left.
options:
  keep_logs:
    description:
      - Leave C(/var/log/tetragon) where it is.
    type: bool
    default: false
extends_documentation_fragment:
  - apiary.tetragon.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
"""

EXAMPLES = r"""
- name: Take the agent off, but keep what it has seen
  apiary.tetragon.remove:
    keep_logs: true
"""

RETURN = r"""
removed:
  description: What was there and is gone or, in check mode, would be.
  returned: success
  type: list
  elements: str
  sample: [/opt/apiary, /etc/apiary, /sys/fs/bpf/apiary-a]
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.remove import present, remove
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.slots import Layout
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.systemd import ServiceError, Systemd


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(argument_spec={"keep_logs": {"type": "bool", "default": False}}, supports_check_mode=True)
    layout, keep_logs = Layout(), module.params["keep_logs"]
    found = present(layout, keep_logs)
    if found and not module.check_mode:
        try:
            found = remove(layout, Systemd(), keep_logs)
        except (OSError, ServiceError) as error:
            module.fail_json(msg=str(error))
    before = "".join("{0}\n".format(path) for path in sorted(found))
    module.exit_json(changed=bool(found), removed=found, diff={"before": before, "after": ""})


if __name__ == "__main__":
    main()
