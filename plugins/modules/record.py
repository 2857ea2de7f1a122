#!/usr/bin/python
# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Record what happens on one host for a while."""

from __future__ import annotations

DOCUMENTATION = r"""
module: record
short_description: Record what happens on a host, for replays
version_added: 0.1.0
author:
  - Apiary contributors (@apiary)
description:
  - Loads observation policies of its own, whose names begin with C(apiary-record-), and keeps the events that they
    produce. Other policies are never touched, and the recording's own never enforce.
  - The recording runs on the host by itself. It ends, and its policies go, when its time is over or a limit is reached,
    whether or not the controller and the connection are still there. A second process removes the policies when the
    first one is killed; those that outlive both go with the next recording or with O(state=absent).
  - Secrets are taken out on the host, before anything leaves it, and the result says what was taken out. What a filter
    could compare is made undecidable, and never replaced by another value.
  - What the agent, its client and this collection's own Python do is left out, as recording it would make more of it.
extends_documentation_fragment:
  - apiary.tetragon.agent
  - apiary.tetragon.attributes
  - apiary.tetragon.attributes.action_group
options:
  state:
    description:
      - V(started) begins a recording and returns at once.
      - V(collected) tells whether it has ended; when it has, brings it to O(destination) and removes it from the host.
      - V(absent) ends a recording that runs, and removes every policy and file that one has left.
    type: str
    choices: [started, collected, absent]
    required: true
  policies:
    description:
      - What to record, with O(state=started). Names of the collection's own recorders (V(process), V(network),
        V(kernel), V(file), V(file-changes)), or TracingPolicy files B(on the controller), which may only post.
    type: list
    elements: raw
    default: [process, network, kernel]
  seconds:
    description:
      - How long to record.
    type: int
    default: 600
  max_events:
    description:
      - How many events a host's recording may hold. It ends when there are more.
    type: int
    default: 200000
  max_mib:
    description:
      - How large a host's recording may be, in MiB before it is packed. It ends when it is larger.
    type: int
    default: 512
  max_cpu:
    description:
      - How many processor cores the agent may use over five seconds. The recording ends when it uses more.
    type: float
    default: 0.5
  scrub_arguments:
    description:
      - What to take out of the command lines of processes. V(secrets) takes out what looks like a secret, V(all) the
        whole of them, V(keep) nothing.
    type: str
    choices: [secrets, all, keep]
    default: secrets
  scrub_addresses:
    description:
      - Take out network addresses too. Filters on them are undecidable then.
    type: bool
    default: false
  destination:
    description:
      - With O(state=collected), the directory B(on the controller) that receives the recordings. Each host's is
        C(<host>.jsonl.gz) in it; beside them are the policies and a C(recording.yml).
    type: path
  label:
    description:
      - What these events are, for those who use the recording later, such as V(web tier on a quiet night).
    type: str
    default: ''
  offset:
    description:
      - Used by O(state=collected) itself, to bring the recording over in parts.
    type: int
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
seealso:
  - module: apiary.tetragon.replay
"""

EXAMPLES = r"""
- name: Begin to record
  apiary.tetragon.record:
    state: started
    policies: [process, network]
    seconds: 300

- name: Bring it home
  apiary.tetragon.record:
    state: collected
    destination: recordings/web-tier
    label: web tier on a quiet night
  register: recorded
  until: recorded.finished
  retries: 40
  delay: 10
"""

RETURN = r"""
finished:
  description: Whether the recording has ended.
  returned: with O(state=collected)
  type: bool
recording:
  description: How it ended and what it holds.
  returned: once it has ended, with O(state=collected)
  type: dict
  contains:
    ended:
      description: Why it ended.
      type: str
      sample: its time is over
    events:
      description: How many events it holds.
      type: int
    bytes:
      description: How large it is, before it is packed.
      type: int
    seconds:
      description: How long it took.
      type: float
    scrubbed:
      description: How much was taken out, by kind.
      type: dict
    stuck:
      description: Policies that could not be removed.
      type: list
      elements: str
removed:
  description: The policies of recordings that were removed.
  returned: with O(state=absent)
  type: list
  elements: str
"""

import base64
import json
import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.apiary.tetragon.plugins.module_utils.agent import recorder
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.options import ARGUMENTS, host, pid_file
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.scrub import ARGUMENTS as SCRUB_ARGUMENTS
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.scrub import Scrubber
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.state import Busy
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.tetra import TetraError

PART = 4 << 20


def _start(module: AnsibleModule, directory: str) -> dict:
    params = module.params
    tetra = host(params).tetra
    if not all(isinstance(one, dict) for one in params["policies"]):
        module.fail_json(msg="policies are read on the controller: call apiary.tetragon.record as a task, not as a bare module")
    if module.check_mode:
        return {"changed": True}
    programs = recorder.excluded_programs(tetra, pid_file(params))
    texts = {one["name"]: json.dumps(recorder.observing(one["document"], one["name"], programs)) for one in params["policies"]}
    limits = recorder.Limits(params["seconds"], params["max_events"], params["max_mib"] << 20, params["max_cpu"])
    scrubber = Scrubber(params["scrub_arguments"], params["scrub_addresses"])
    recorder.start(recorder.Job(tetra, pid_file(params), directory, texts, limits, scrubber))
    return {"changed": True, "agent_version": tetra.info()["version"].lstrip("v")}


def _collect(module: AnsibleModule, directory: str) -> dict:
    if module.check_mode:
        return {"changed": False, "finished": True}
    result = recorder.read_result(directory)
    if not result or recorder.running(directory):
        if not recorder.running(directory) and not os.path.isdir(directory):
            module.fail_json(msg="there is no recording on this host: start one with state started")
        return {"changed": False, "finished": False}
    path = os.path.join(directory, recorder.EVENTS)
    part, size = b"", 0
    if os.path.exists(path):
        size = os.path.getsize(path)
        with open(path, "rb") as file:
            file.seek(module.params["offset"] or 0)
            part = file.read(PART)
    return {"changed": False, "finished": True, "recording": result, "part": base64.b64encode(part).decode("ascii"), "size": size}


def _remove(module: AnsibleModule, directory: str) -> dict:
    tetra = host(module.params).tetra
    there = bool(recorder.running(directory)) or os.path.isdir(directory)
    former = recorder.leftovers(tetra)
    if module.check_mode:
        return {"changed": there or bool(former), "removed": former}
    recorder.stop(directory)
    stuck = recorder.remove(tetra, recorder.leftovers(tetra))
    if stuck:
        module.fail_json(msg="policies of a recording cannot be removed: {0}".format(", ".join(stuck)))
    recorder.discard(directory)
    return {"changed": there or bool(former), "removed": former}


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec=dict(
            ARGUMENTS,
            state={"type": "str", "required": True, "choices": ["started", "collected", "absent"]},
            policies={"type": "list", "elements": "raw", "default": ["process", "network", "kernel"]},
            seconds={"type": "int", "default": 600},
            max_events={"type": "int", "default": 200000},
            max_mib={"type": "int", "default": 512},
            max_cpu={"type": "float", "default": 0.5},
            scrub_arguments={"type": "str", "default": "secrets", "choices": list(SCRUB_ARGUMENTS)},
            scrub_addresses={"type": "bool", "default": False},
            destination={"type": "path"},
            label={"type": "str", "default": ""},
            offset={"type": "int"},
        ),
        supports_check_mode=True,
    )
    directory = os.path.join(module.params["state_dir"], "recording")
    steps = {"started": _start, "collected": _collect, "absent": _remove}
    try:
        module.exit_json(**steps[module.params["state"]](module, directory))
    except (Busy, TetraError, recorder.Recording, OSError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
