# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""A lab fleet on this machine: stand-in agents side by side, an inventory for them, and a workload. Needs no root.

with Fleet(directory, 24, rate=5) as fleet:
    subprocess.run(["ansible-playbook", "apiary.tetragon.rollout", "-i", fleet.inventory, ...])
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from standin.host import BIN, READY, LabHost

HERE = Path(__file__).parent
GROUPS = {"web": 2, "databases": 3}
START_SECONDS = 120.0


class Fleet:
    """``count`` hosts below a directory, and a workload of ``rate`` acts per second and host on them."""

    def __init__(self, directory: str | Path, count: int, rate: float = 0.0) -> None:
        self.directory = Path(directory).resolve()
        self.rate = rate
        names = [f"host{number:02d}" for number in range(1, count + 1)]
        ports = _free_ports(count)
        self.hosts = {
            name: LabHost(self.directory / "hosts" / name, metrics_server=f"127.0.0.1:{port}", gops_address="")
            for name, port in zip(names, ports, strict=True)
        }
        self.inventory = self.directory / "inventory.json"
        self._workload: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Fleet:
        for host in self.hosts.values():
            _install_client(host)
        self.write_inventory()
        for host in self.hosts.values():
            host.start(wait=False)
        for host in self.hosts.values():
            host.wait_for(READY, START_SECONDS)
        if self.rate:
            roots = [str(host.path) for host in self.hosts.values()]
            command = [sys.executable, "-m", "standin.workload", "--rate", str(self.rate), *roots]
            self._workload = subprocess.Popen(command, cwd=HERE, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        return self

    def __exit__(self, *_unused: object) -> None:
        if self._workload:
            self._workload.terminate()
            self._workload.wait()
        for host in self.hosts.values():
            host.__exit__()

    def write_inventory(self, **overrides: dict[str, Any]) -> None:
        """Write the inventory; ``overrides`` are variables by host that go over the usual ones."""
        hosts = {
            name: {
                "apiary_tetra": str(host.inside("/usr/local/bin/tetra")),
                "apiary_policy_dir": str(host.policies),
                "apiary_bpf_dir": str(host.pins),
                "apiary_run_dir": str(host.inside("/var/run/tetragon")),
                "apiary_state_dir": str(host.inside("/var/lib/apiary")),
                **overrides.get(name, {}),
            }
            for name, host in self.hosts.items()
        }
        groups = {group: {"hosts": {name: {} for name in list(self.hosts)[::step]}} for group, step in GROUPS.items()}
        shared = {
            "ansible_connection": "ansible.builtin.local",
            "ansible_python_interpreter": sys.executable,
            "apiary_become": False,
            "apiary_timeout": 30,
        }
        content = {"all": {"hosts": hosts, "vars": shared, "children": groups}}
        self.inventory.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _install_client(host: LabHost) -> None:
    """Put ``tetra`` where a host has it; it finds its host by its own place."""
    client = host.inside("/usr/local/bin/tetra")
    client.parent.mkdir(parents=True, exist_ok=True)
    client.write_text(f'#!/bin/sh\nSTANDIN_ROOT={host.path} exec {sys.executable} {BIN / "tetra"} "$@"\n', encoding="utf-8")
    client.chmod(0o755)


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at this moment."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _unused in range(count)]
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports
