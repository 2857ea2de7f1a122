# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Bring an agent up where none runs: the first one of a host, or one that has stopped. A running agent is never touched.

What a running agent would have to change for is left to the hand-over, and so is one that was interrupted, and an agent
that is to be adopted; only files that do not reach the agent are mended beside it.
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass, field
from typing import Dict, List, Mapping

from ansible_collections.apiary.tetragon.plugins.module_utils.agent import flags, slotunit, systemd, units
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.process import read_text
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.release import Versions
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.slots import Layout, link
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.slotunit import STATE
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.systemd import ServiceError
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.tetra import TetraError
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.units import ETC, RELEASES, SYSTEM, File, Limits

CLIENT = "/usr/local/bin/tetra"
_CLIENT_SECONDS = 60


class InstallError(Exception):
    """The agent does not run as wanted. The text says whether the host is as before."""


@dataclass
class Result:
    """``handover``: why the rest is up to the hand-over, empty when nothing is. ``diff``: path -> (before, after)."""

    slot: str
    actions: List[str] = field(default_factory=list)
    handover: List[str] = field(default_factory=list)
    diff: Dict[str, List[str]] = field(default_factory=dict)


def install(version: str, options: Mapping[str, str], limits: Limits, check: bool = False) -> Result:
    """Make the wanted agent run where none does. Raises InstallError."""
    if Versions(RELEASES).manifest(version) is None and not check:
        raise InstallError("version {0} is not on this host: bring it there first (apiary.tetragon.release)".format(version))
    try:
        return _Run(version, options, limits).execute(check)
    except ServiceError as error:
        raise InstallError(str(error)) from None


class _Run:
    def __init__(self, version: str, options: Mapping[str, str], limits: Limits) -> None:
        self.layout = Layout()
        self.active = self.layout.active()
        self.slot = slotunit.Slot(self.active or "a")
        self.version = version
        self.unit = units.unit_name(self.slot.name)
        self.services = systemd.Systemd(limits.start_timeout + 120)
        self.of_slot = units.slot_files(self.slot.name, version, options, limits)
        self.of_host = units.host_files(units.sources())

    def execute(self, check: bool) -> Result:
        files = {**self.of_host, **self.of_slot}
        stale, strays = units.stale(files), units.strays(self.slot.name, self.of_slot)
        result = Result(self.slot.name, diff={path: [read_text(path), files[path].text] for path in stale})
        result.diff.update({path: [read_text(path), ""] for path in strays})
        if os.path.exists(os.path.join(STATE, "handover.json")):
            result.handover.append("a hand-over that was interrupted")
        elif self.layout.foreign(_CLIENT_SECONDS) is not None:
            result.handover.append("an agent that is to be adopted")
        if result.handover:
            return result
        running = slotunit.runs(self.slot)
        if running and self.active:
            unit_file = "{0}/{1}".format(SYSTEM, self.unit)
            reaching = [path for path in [*stale, *strays] if path not in self.of_host and path != unit_file]
            if reaching:
                result.handover = reaching
                return result
            if stale:
                result.actions.append("write")
            if stale and not check:
                units.write(files, stale)
                self.services.reload()
            self._link(result, check)
            return result
        result.actions += (["write"] if stale or strays else []) + ["start"]
        if check:
            return result
        aside = self._set_aside()
        result.actions += ["aside {0}".format(path) for path in aside]
        former = {path: File(read_text(path), os.stat(path).st_mode & 0o7777) for path in [*stale, *strays] if os.path.isfile(path)}
        try:
            self._start(files, stale, strays)
        except (InstallError, ServiceError, TetraError, OSError) as error:
            self._undo(files, stale, former)
            apart = ", but for what was set aside: {0}".format(", ".join(aside)) if aside else ""
            raise InstallError("{0}; the host is as before{1}".format(error, apart)) from None
        self._link(result, False)
        return result

    def _start(self, files: Mapping[str, File], stale: List[str], strays: List[str]) -> None:
        for path in (self.slot.policies.policy_dir, STATE):
            os.makedirs(path, mode=0o700, exist_ok=True)
        units.write(files, stale)
        for path in strays:
            os.unlink(path)
        self.services.reload()
        systemd.attempt("systemd-tmpfiles", "--create", units.TMPFILES)
        self.services.forget(units.alarm_name(self.slot.name))
        self.services.start(self.unit)
        wrong = self._effective()
        if wrong:
            raise InstallError("the agent did not take its options: {0}".format("; ".join(wrong)))

    def _effective(self) -> List[str]:
        """Options that the running agent does not have as they were written; ``tetra info`` exists from v1.7 on."""
        if [int(one) for one in self.version.split(".")[:2]] < [1, 7]:
            return []
        folder = "{0}/{1}/conf.d/".format(ETC, self.slot.name)
        wanted = {path[len(folder) :]: file.text.strip() for path, file in self.of_slot.items() if path.startswith(folder)}
        return flags.differences(self.version, wanted, self.slot.tetra.info()["flags"])

    def _set_aside(self) -> List[str]:
        """Move whatever keeps an agent from starting, and is not ours, out of the policy directory."""
        moved, place = [], self.slot.policies.policy_dir
        for name in sorted(os.listdir(place)) if os.path.isdir(place) else ():
            if name not in ("apiary", ".apiary", "adopted"):
                target = os.path.join(STATE, "aside", "{0}-{1}".format(int(time.time()), name))
                os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
                shutil.move(os.path.join(place, name), target)
                moved.append(os.path.join(place, name))
        return moved

    def _link(self, result: Result, check: bool) -> None:
        """What leads to the slot: the pointer that boots, the client for a person, and the addresses it looks for."""
        client = "{0}/{1}/bin/tetra".format(RELEASES, self.version)
        if self.active == self.slot.name and os.path.islink(self.layout.wanted) and os.path.realpath(CLIENT) == client:
            return
        result.actions.append("link")
        if not check:
            self.layout.point(self.slot.name)
            link(client, CLIENT)
            slotunit.lead_here(self.slot)
            self.services.reload()

    def _undo(self, files: Mapping[str, File], stale: List[str], former: Mapping[str, File]) -> None:
        """Put the files back and, on a host that had no agent, remove what this run brought."""
        both = [self.unit, units.alarm_name(self.slot.name)]
        systemd.attempt("systemctl", "stop", *both)
        slotunit.heal(self.slot)
        for path in stale:
            if path not in former and os.path.exists(path):
                os.unlink(path)
        units.write(former, sorted(former))
        if not self.active:
            if os.path.exists(self.slot.alarm_file):
                os.unlink(self.slot.alarm_file)
            for path in (self.slot.pins.path, os.path.dirname(self.slot.policies.policy_dir), units.LIB):
                shutil.rmtree(path, ignore_errors=True)
        for unit in both:
            self.services.forget(unit)
        systemd.attempt("systemctl", "daemon-reload")
