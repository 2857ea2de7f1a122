# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""A lab host with slots and without systemd: its units are processes, its power can be cut, its pointer boots it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ansible_collections.apiary.tetragon.plugins.module_utils.agent import slotunit
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.plan import Wanted
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.slots import FOREIGN_UNIT, SLOTS, Layout, link
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.systemd import ServiceError
from standin.host import BIN, LabHost

_SUBREAPER = 36
VERSIONS = ("1.6.1", "1.7.0", "1.7.1")


def adopt_orphans() -> None:
    """Let agents whose parent was killed become children of this process, which can then reap them."""
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


class Processes:
    """Units as processes: the same order as in the units' texts (heal, agent, ready)."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def _run_dir(self, unit: str) -> str:
        for slot in SLOTS:
            if unit == self.layout.unit(slot):
                return "/run/apiary/" + slot
        return "/run/tetragon"

    def _pid(self, unit: str) -> int | None:
        path = Path(self.layout.inside(self._run_dir(unit)), "tetragon.pid")
        text = path.read_text(encoding="ascii").strip() if path.exists() else ""
        return int(text) if text and _alive(int(text)) else None

    def start(self, unit: str) -> None:
        root, run_dir = self.layout.root, self._run_dir(unit)
        slot = run_dir.rpartition("/")[2]
        if not Path(self.layout.units, unit).exists() and unit != FOREIGN_UNIT:
            raise ServiceError(f"Unit {unit} not found.")
        environment = {**os.environ, "STANDIN_ROOT": root, "STANDIN_RUN_DIR": run_dir}
        if slot in SLOTS:
            place = slotunit.Slot(slot, root)
            slotunit.heal(place)
            command = [f"{root}/opt/apiary/tetragon/{place.version}/bin/tetragon", "--config-dir", f"{root}/etc/apiary/slots/{slot}/conf.d"]
        else:
            command = [str(BIN / "tetragon")]
        log = Path(root, f"{slot}.log")
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, *command] if slot not in SLOTS else command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env=environment,
                start_new_session=True,
            )
        deadline = time.monotonic() + 30
        while "Listening for events..." not in log.read_text(encoding="utf-8", errors="replace"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise ServiceError(f"{unit} failed: {log.read_text(encoding='utf-8', errors='replace')}")
            time.sleep(0.01)
        if slot in SLOTS:
            try:
                slotunit.wait_ready(slotunit.Slot(slot, root), 10, process.pid)
            except slotunit.NotReady as error:
                self.stop(unit)
                raise ServiceError(str(error)) from None

    def stop(self, unit: str, number: int = signal.SIGTERM) -> None:
        pid = self._pid(unit)
        if pid is None:
            return
        os.kill(pid, number)
        while _alive(pid):
            time.sleep(0.005)

    def running(self, unit: str) -> bool:
        return self._pid(unit) is not None

    def reload(self) -> None:
        """Units are read when they start."""

    def forget(self, unit: str) -> None:
        """Nothing is remembered of a unit that failed."""


def _alive(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class SlotHost(LabHost):
    """A host on which versions lie side by side and whose agents live in slots."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.layout = Layout(str(directory))
        self.services = Processes(self.layout)
        self.inside("/run").mkdir()
        self.inside("/var").mkdir()
        self.inside("/var/run").symlink_to("../run")
        self.inside("/sys/fs/bpf").mkdir(parents=True)
        for version in VERSIONS:
            for program in ("tetragon", "tetra"):
                path = self.inside(f"/opt/apiary/tetragon/{version}/bin/{program}")
                path.parent.mkdir(parents=True, exist_ok=True)
                text = f'#!/bin/sh\nSTANDIN_ROOT={directory} STANDIN_VERSION={version} exec {sys.executable} {BIN / program} "$@"\n'
                path.write_text(text, encoding="utf-8")
                path.chmod(0o755)
        self.faults(load_seconds=0)

    def __exit__(self, *_unused: object) -> None:
        self.power_off()

    @property
    def agents(self) -> list[str]:
        """Units whose agent runs."""
        return [unit for unit in (*map(self.layout.unit, SLOTS), FOREIGN_UNIT) if self.services.running(unit)]

    def power_off(self) -> None:
        """A power cut: all processes, pins and run directories are gone at once."""
        for unit in self.agents:
            self.services.stop(unit, signal.SIGKILL)
        self.__dict__.pop("kernel", None)
        for path in ("/run", "/sys/fs/bpf"):
            for entry in self.inside(path).iterdir():
                shutil.rmtree(entry)

    def boot(self) -> None:
        """Start what boots, once each: the pointer's slot, and an enabled foreign unit that is no other name of a slot's."""
        wants = Path(self.layout.units, "multi-user.target.wants")
        started: set[str] = set()
        for entry in sorted(wants.iterdir()) if wants.is_dir() else ():
            unit = Path(self.layout.units, entry.name)
            target = str(unit.readlink()) if unit.is_symlink() else entry.name
            if target not in started:
                self.services.start(target)
                started.add(target)

    def place(self, slot: str, version: str, policies: Sequence[Wanted]) -> None:
        """Make a slot by hand, with these policies, and let it boot and run."""
        from ansible_collections.apiary.tetragon.plugins.module_utils.agent import units

        files = {self.layout.inside(path): file for path, file in units.slot_files(slot, version, {}, units.Limits()).items()}
        units.write(files, sorted(files))
        folder = Path(self.layout.home(slot), "policies", "apiary")
        folder.mkdir(parents=True)
        for policy in policies:
            (folder / policy.file).write_text(policy.text, encoding="utf-8")
        self.layout.point(slot)
        self.services.start(self.layout.unit(slot))

    def install_foreign(self, policies: Sequence[Wanted]) -> None:
        """What upstream's installer leaves behind: its unit, enabled and started, and its policy directory."""
        unit = self.inside("/usr/lib/systemd/system/tetragon.service")
        unit.parent.mkdir(parents=True)
        unit.write_text("[Service]\nExecStart=/usr/local/bin/tetragon\n", encoding="utf-8")
        client = self.inside("/usr/local/bin/tetra")
        client.parent.mkdir(parents=True)
        client.write_text(f'#!/bin/sh\nSTANDIN_ROOT={self.path} exec {sys.executable} {BIN / "tetra"} "$@"\n', encoding="utf-8")
        client.chmod(0o755)
        link("/usr/lib/systemd/system/tetragon.service", f"{self.layout.units}/multi-user.target.wants/tetragon.service")
        for policy in policies:
            (self.policies / f"{policy.name}.yaml").write_text(policy.text, encoding="utf-8")
        self.services.start(FOREIGN_UNIT)
