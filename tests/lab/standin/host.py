# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""One lab host in a directory of its own: its configuration, its agent's process, its client and its kernel.

with LabHost(directory) as host:
    host.start()
    host.tetra("tp", "list")
    host.kernel.act("open", "/etc/shadow")
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from .kernel import Kernel
from .root import Root

BIN = Path(__file__).resolve().parents[1] / "bin"
READY = "Listening for events..."
OPTIONS: Mapping[str, str] = {
    "server-address": "unix:///var/run/tetragon/tetragon.sock",
    "export-filename": "/var/log/tetragon/tetragon.log",
    "health-server-address": "",
    "keep-sensors-on-exit": "true",
    "release-pinned-bpf": "false",
}


class NotReady(Exception):
    """The agent ended, or took too long, before it was ready; the text is its log."""


class LabHost:
    """A host below ``directory``, with options of its agent beside the usual ones of a lab (None: the agent's own)."""

    def __init__(self, directory: str | Path, **options: str | None) -> None:
        self.root = Root(str(directory))
        self.path = Path(directory)
        self.policies = self.inside("/etc/tetragon/tetragon.tp.d")
        self.pins = self.inside("/sys/fs/bpf/tetragon")
        self.export = self.inside("/var/log/tetragon/tetragon.log")
        self.log = self.path / "agent.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.policies.mkdir(parents=True, exist_ok=True)
        folder = self.inside("/etc/tetragon/tetragon.conf.d")
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in {**OPTIONS, **{name.replace("_", "-"): value for name, value in options.items()}}.items():
            if value is not None:
                (folder / name).write_text(value + "\n", encoding="utf-8")

    def __enter__(self) -> LabHost:
        return self

    def __exit__(self, *_unused: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.stop(signal.SIGKILL)

    def inside(self, path: str) -> Path:
        """A path of the host as one of this machine."""
        return Path(self.root.path(path))

    @property
    def environment(self) -> dict[str, str]:
        """What programs need that are to run on this host."""
        return {**os.environ, "STANDIN_ROOT": str(self.path)}

    @cached_property
    def kernel(self) -> Kernel:
        return Kernel(self.root)

    def faults(self, **faults: Any) -> None:
        """Replace the host's faults (see ``faults.Faults``)."""
        (self.path / "etc" / "standin.json.new").write_text(json.dumps(faults), encoding="utf-8")
        (self.path / "etc" / "standin.json.new").rename(self.path / "etc" / "standin.json")

    def start(self, *flags: str, wait: bool = True, seconds: float = 20.0) -> None:
        """Start the agent; raises NotReady when it does not get as far as its ready line."""
        with self.log.open("wb") as log:
            command = [sys.executable, str(BIN / "tetragon"), *flags]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment)
        if wait:
            self.wait_for(READY, seconds)

    def wait_for(self, line: str, seconds: float = 20.0) -> None:
        """Wait until the agent has logged ``line``."""
        deadline = time.monotonic() + seconds
        while line not in self.log.read_text(encoding="utf-8", errors="replace"):
            assert self.process is not None
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise NotReady(self.log.read_text(encoding="utf-8", errors="replace"))
            time.sleep(0.005)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End the agent by a signal; returns its exit code (negative: the signal that killed it)."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait()

    def tetra(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [str(BIN / "tetra"), *words]
        return subprocess.run(command, capture_output=True, text=True, env=self.environment, check=False)

    def listed(self) -> dict[str, dict[str, Any]]:
        """What the agent lists, by name."""
        found = json.loads(self.tetra("tp", "list", "-o", "json").stdout)
        return {policy["name"]: policy for policy in found.get("policies", [])}

    def add(self, text: str, *words: str) -> subprocess.CompletedProcess[str]:
        """``tetra tp add`` of a policy's text."""
        file = self.path / "policy.yaml"
        file.write_text(text, encoding="utf-8")
        return self.tetra(*words, "tp", "add", str(file))

    def events(self) -> list[dict[str, Any]]:
        """Everything exported so far."""
        lines = self.export.read_text(encoding="utf-8").splitlines() if self.export.exists() else []
        return [json.loads(line) for line in lines]
