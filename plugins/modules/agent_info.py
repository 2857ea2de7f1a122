#!/usr/bin/python
# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Observe one host's agent."""

from __future__ import annotations

DOCUMENTATION = r"""
module: agent_info
short_description: Observe what a Tetragon agent truthfully runs
version_added: 0.1.0
author:
  - Apiary contributors (@apiary)
description:
  - Reads, in one call, the agent's version and effective flags, every policy with state, mode and counters, the links
    pinned in the kernel, event loss, cost, kernel capabilities, and the host's own health.
  - An agent that is absent or does not answer is an observation, not an error. What could not be read is null, and
    RV(observation.problems) says why.
extends_documentation_fragment:
  - apiary.tetragon.agent
  - apiary.tetragon.attributes
  - apiary.tetragon.attributes.action_group
options:
  failed_units:
    description:
      - Ask systemd for failed units.
    type: bool
    default: false
  commands:
    description:
      - Shell commands that succeed on a healthy host.
    type: list
    elements: str
    default: []
  urls:
    description:
      - URLs, asked from the host, that answer with a status below 400 when it is healthy.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
    details:
      - Changes nothing.
"""

EXAMPLES = r"""
- name: Observe the agent
  apiary.tetragon.agent_info:
    failed_units: true
  register: seen

- name: Refuse hosts whose enforcement would end with the agent
  ansible.builtin.assert:
    that: seen.observation.agent.flags['keep-sensors-on-exit'] | bool
"""

RETURN = r"""
observation:
  description: The observation, when O(record) is not set.
  returned: when O(record) is not set
  type: dict
  contains:
    format:
      description: Name and version of this document's form.
      type: str
      returned: always
      sample: apiary.dev/observation/1
    time:
      description: When it was made, by the host's clock (UTC).
      type: str
      returned: always
    host:
      description: Kernel release, architecture, operating system and its version, boot id, number of CPUs.
      type: dict
      returned: always
    agent:
      description: Whether it answers; version, process id, start (seconds after boot), CPU seconds, memory, flags, probes.
      type: dict
      returned: always
    policies:
      description:
        - Every policy with state, mode, error, counters and pinned links per hook; null when the agent is silent.
        - C(replaced) names the files under a policy's uprobes that were replaced after it was loaded. It sees and enforces nothing there
          until M(apiary.tetragon.policies) runs again.
        - C(stale_overrides) counts verdicts in its maps on threads that are gone; null where its maps are out of reach. They come from two
          policies that override one function, and a policy whose map is full of them denies nothing.
      type: list
      elements: dict
      returned: always
    pins:
      description: The pin directory, whether a leftover of a failed start stands beside it, and its folders.
      type: dict
      returned: always
    service:
      description: The agent's unit as systemd sees it, with the number of times it was started again; null without one.
      type: dict
      returned: always
    alarm:
      description: The mark of a unit that was given up and has not come up since; null when there is none.
      type: dict
      returned: always
    troubles:
      description: What is wrong on the host; enforcing but blind, crash loop, start limit, alarm, policies that are listed and do nothing.
      type: list
      elements: str
      returned: always
    counters:
      description: Events missed, lost and exported, and events per policy; null when the agent serves no metrics.
      type: dict
      returned: always
    bundle:
      description: Digest of the bundle that this collection last brought here, and whether that run finished.
      type: dict
      returned: always
    health:
      description: Failed units, and how the given commands and URLs did.
      type: dict
      returned: always
    problems:
      description: What could not be read, and why.
      type: list
      elements: str
      returned: always
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.observe import observe
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.options import ARGUMENTS, host, pid_file


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec=dict(
            ARGUMENTS,
            failed_units={"type": "bool", "default": False},
            commands={"type": "list", "elements": "str", "default": []},
            urls={"type": "list", "elements": "str", "default": []},
        ),
        supports_check_mode=True,
    )
    params = module.params
    here = host(params)
    document = observe(here.tetra, here.pins, here.state, pid_file(params), params["failed_units"], params["commands"], params["urls"])
    module.exit_json(changed=False, observation=document)


if __name__ == "__main__":
    main()
