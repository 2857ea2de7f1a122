# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The module options that say where an agent lives, and the parts of the host they stand for."""

from __future__ import annotations

import os
from typing import Any, Dict, Mapping, Optional

from ansible_collections.apiary.tetragon.plugins.module_utils.agent.converge import Host
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.pins import PinDirectory
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.policyset import PolicySet
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.process import agent_life, agent_pid, process_age
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.slots import Layout
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.state import StateFile
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.tetra import Tetra

ARGUMENTS: Dict[str, Dict[str, Any]] = {
    "tetra": {"type": "str", "default": "tetra"},
    "server_address": {"type": "str", "default": ""},
    "policy_dir": {"type": "path", "default": "/etc/tetragon/tetragon.tp.d"},
    "bpf_dir": {"type": "path", "default": "/sys/fs/bpf/tetragon"},
    "run_dir": {"type": "path", "default": "/var/run/tetragon"},
    "state_dir": {"type": "path", "default": "/var/lib/apiary"},
    "timeout": {"type": "int", "default": 120},
    "record": {"type": "path"},
    "keep_record": {"type": "bool", "default": False},
}


def effective(params: Mapping[str, Any]) -> Dict[str, Any]:
    """These options, with the active slot's own for those that were left at their defaults, where the host has slots."""
    layout = Layout()
    active = layout.active()
    if active is None:
        return dict(params)
    place = layout.slot(active)
    of_slot = {
        "tetra": place.tetra,
        "server_address": place.server_address,
        "policy_dir": place.policy_dir,
        "bpf_dir": place.bpf_dir,
        "run_dir": place.run_dir,
    }
    left = {name: value for name, value in of_slot.items() if params[name] == ARGUMENTS[name]["default"]}
    return {**params, **left}


def pid_file(params: Mapping[str, Any]) -> str:
    """The pid file of the agent that these options name."""
    return os.path.join(effective(params)["run_dir"], "tetragon.pid")


def host(given: Mapping[str, Any]) -> Host:
    """The host that a module's parameters describe."""
    params = effective(given)

    agent = os.path.join(params["run_dir"], "tetragon.pid")

    def uptime() -> Optional[float]:
        pid = agent_pid(agent)
        return process_age(pid) if pid else None

    return Host(
        tetra=Tetra(params["tetra"], params["server_address"], params["timeout"]),
        pins=PinDirectory(params["bpf_dir"]),
        files=PolicySet(params["policy_dir"]),
        state=StateFile(params["state_dir"]),
        uptime=uptime,
        life=lambda: agent_life(agent),
    )
