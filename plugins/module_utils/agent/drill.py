# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Prove on a live host that what its policies forbid stays forbidden while the agent is stopped, killed, restarted, and after a boot.

A prober (see ``prober``) attempts each enforcing policy's trigger at a steady rate. A policy without one is proved by its
links, looked at in the same rhythm: what is linked in the kernel runs there, whatever becomes of the agent.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from typing import Any, Dict, List, Mapping, Sequence

from ansible_collections.apiary.tetragon.plugins.module_utils.agent import bpf, break_glass, prober
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.observe import ENFORCED
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.process import read_text
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.proof import Proof, resolve
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.slots import Layout, Place
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.state import StateFile, write_json
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.tetra import Key, LoadedPolicy, TetraError
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.units import source

FORMAT = "apiary.dev/drill/1"
EVENTS = ("stop", "kill", "restart")
UNIT = "apiary-drill.service"
# From the end of the events until the host is down, and until its agent has loaded everything again.
SHUTDOWN, BOOTING = "shutdown", "booting"
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_UNIT_TEXT = """\
# Made by a drill, which removes it when it ends.
[Unit]
Description=Attempts what policies forbid, for the length of a drill
DefaultDependencies=no
After=local-fs.target
[Service]
ExecStart=/usr/bin/env python3 {directory}/prober.py run {directory} {pause}
StandardOutput=null
[Install]
WantedBy=multi-user.target
"""
_POLL_SECONDS = 0.3


class DrillError(Exception):
    """The drill cannot be held, or not to its end; the text says why and what is needed."""


def lapses(proofs: Sequence[Proof], counts: Mapping[str, Mapping[str, Mapping[str, Any]]], unpinned: Sequence[str] = ()) -> List[str]:
    """What came through, and what was not proved, in words.

    A boot is open until the agent has loaded its policies; a host may be down before anything was attempted.
    """
    found = []
    for phase, acts in counts.items():
        if phase == BOOTING:
            continue
        for proof in proofs:
            row = acts.get(proof.loaded)
            if row is None or not row["attempts"]:
                if phase != SHUTDOWN:
                    found.append("{0}: {1}: nothing was attempted, so nothing is proved".format(phase, proof.reference))
            elif row["allowed"]:
                why = "; this agent pins no link of some of its hooks" if proof.loaded in unpinned else ""
                text = "{0}: {1}: {2} of {3} came through, longest {4} s{5}"
                found.append(text.format(phase, proof.reference, row["allowed"], row["attempts"], row["gap"], why))
    return found


class Drill:
    """One host's drill. ``services`` starts and stops units (``systemd.Systemd``)."""

    def __init__(self, layout: Layout, services: Any, timeout: int = 120, ready_seconds: int = 900) -> None:
        self.layout = layout
        self.services = services
        self.timeout = timeout
        self.ready_seconds = ready_seconds
        self.directory = os.path.join(layout.state, "drill")
        self.unit_file = os.path.join(layout.units, UNIT)
        self.wanted = os.path.join(layout.units, "multi-user.target.wants", UNIT)

    def place(self) -> Place:
        active = self.layout.active()
        place = self.layout.slot(active) if active else self.layout.foreign(self.timeout)
        if place is None:
            raise DrillError("no agent runs here: install one first (role apiary.tetragon.agent, entry point install)")
        return place

    def proofs(self, policies: Sequence[Mapping[str, Any]]) -> List[Proof]:
        """How each enforcing policy of this host is proved. Raises DrillError when there is none, or one cannot be."""
        place = self.place()
        try:
            listed = [one for one in place.client(self.timeout).policies() if one.mode == "enforce" and one.state == "enabled"]
        except TetraError as error:
            raise DrillError("the agent does not answer ({0}): bring it up first".format(error)) from None
        missing = sorted({str(one["loaded"]) for one in policies} - {one.name for one in listed})
        if missing:
            held = " (break-glass holds policies here)" if break_glass.record(self.layout.state) else ""
            raise DrillError(
                "not enforcing here{0}: {1}; they are to by the bundle: converge this host first".format(held, ", ".join(missing))
            )
        if not listed:
            raise DrillError("no policy enforces on this host: there is nothing to prove")
        known = {str(one["loaded"]): one for one in policies}
        return [self._proof(place, one, known.get(one.name, {})) for one in listed]

    @staticmethod
    def _proof(place: Place, listed: LoadedPolicy, known: Mapping[str, Any]) -> Proof:
        reference, trigger = str(known.get("reference") or listed.name), known.get("trigger")
        step = resolve(trigger) if trigger else None
        if step is not None:
            return Proof(listed.name, reference, "trigger", step)
        folder = place.pins.folder(listed.key)
        count = prober.links(folder)
        note = "no file of its trigger is on this host" if trigger else ""
        if not count:
            raise DrillError("{0} has neither a trigger nor pinned links: give it a trigger in its meta.yml".format(reference))
        links = {"kind": "links", "directory": place.bpf_dir, "folder": os.path.basename(folder), "count": count}
        return Proof(listed.name, reference, "links", links, note)

    # --- begin

    def begin(
        self, policies: Sequence[Mapping[str, Any]], events: Sequence[str], pause: float, seconds: float, reboot: bool = False
    ) -> List[Proof]:
        """Start the prober and put the agent through these events. Raises DrillError; the agent then runs and the prober is gone.

        ``reboot``: the host goes down next, so that what follows is no part of the last event. Raises Busy while another run
        changes this host.
        """
        with StateFile(self.layout.state).lock():
            if os.path.exists(os.path.join(self.layout.state, "handover.json")):
                raise DrillError("a hand-over of the agent was interrupted here: run the role's upgrade first")
            return self._begin(policies, events, pause, seconds, reboot)

    def _begin(
        self, policies: Sequence[Mapping[str, Any]], events: Sequence[str], pause: float, seconds: float, reboot: bool
    ) -> List[Proof]:
        self._remove()
        place, proofs = self.place(), self.proofs(policies)
        state = {
            "boot_id": read_text(_BOOT_ID).strip(),
            "unit": place.unit,
            "seconds": seconds,
            "proofs": [vars(one) for one in proofs],
            "unpinned": sorted(str(one["loaded"]) for one in policies if one.get("unpinned")),
            "eased": [],
        }
        try:
            self._start(proofs, pause, state)
            self._phase("steady", seconds)
            for event in events:
                self._event(event, place, proofs, state)
            if reboot:
                self._mark(SHUTDOWN)
            write_json(os.path.join(self.directory, "drill.json"), state)
        except Exception as error:
            self._remove()
            if not self.services.running(place.unit):
                self.services.start(place.unit)
            raise DrillError("{0}; the prober is gone, the agent runs".format(error)) from error
        return proofs

    def _start(self, proofs: Sequence[Proof], pause: float, state: Mapping[str, Any]) -> None:
        os.makedirs(self.directory, mode=0o700, exist_ok=True)
        write_json(os.path.join(self.directory, "drill.json"), state)
        acts = {one.loaded: {"steps": [one.step], "fresh": one.by == "trigger"} for one in proofs}
        write_json(os.path.join(self.directory, "acts.json"), acts)
        with open(os.path.join(self.directory, "prober.py"), "w", encoding="utf-8") as file:
            file.write(source(prober.__name__))
        with open(self.unit_file, "w", encoding="utf-8") as file:
            file.write(_UNIT_TEXT.format(directory=self.directory, pause=pause))
        os.symlink("../" + UNIT, self.wanted)
        self.services.reload()
        self.services.start(UNIT)
        logs = [os.path.join(self.directory, one.loaded + ".log") for one in proofs]
        self._await(lambda: all(map(os.path.exists, logs)) or not self.services.running(UNIT), self.timeout, "prober")
        if not self.services.running(UNIT):
            raise DrillError("the prober does not run: a policy refuses python3, or {0}".format(self.directory))

    def _event(self, event: str, place: Place, proofs: Sequence[Proof], state: Dict[str, Any]) -> None:
        seconds = state["seconds"]
        if event == "stop":
            self._mark("stop")
            self.services.stop(place.unit)
            time.sleep(seconds)
            state["eased"] += self._eased(place, proofs)
            self._mark("start")
            self.services.start(place.unit)
        elif event == "kill":
            former = place.pid
            self._mark("kill")
            self.services.kill(place.unit)
            self._await(lambda: place.pid not in (None, former), self.ready_seconds, "agent that systemd starts again")
        else:
            self._mark("restart")
            self.services.restart(place.unit)
        self._ready(place, proofs)
        self._phase("after-" + event, seconds)

    def _eased(self, place: Place, proofs: Sequence[Proof]) -> List[str]:
        """Policies whose mode in the kernel is another than enforce while no agent runs."""
        found = []
        for proof in proofs:
            path = place.pins.policy_conf(("", proof.loaded))
            try:
                mode = bpf.mode_of(path)
            except OSError as error:
                found.append("stop: {0}: its mode in the kernel is gone ({1})".format(proof.reference, error.strerror or error))
                continue
            if mode != "enforce":
                found.append("stop: {0}: its mode in the kernel is {1}".format(proof.reference, mode))
        return found

    def _ready(self, place: Place, proofs: Sequence[Proof]) -> List[LoadedPolicy]:
        """Wait until every policy is enabled and enforces again."""
        wanted = {one.loaded for one in proofs}
        seen: List[LoadedPolicy] = []

        def ready() -> bool:
            try:
                seen[:] = place.client(self.timeout).policies()
            except TetraError:
                return False
            return wanted <= {one.name for one in seen if one.mode == "enforce" and one.state == "enabled"}

        self._await(ready, self.ready_seconds, "agent with all its policies")
        return seen

    @staticmethod
    def _await(condition: Any, seconds: float, what: str) -> None:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise DrillError("no {0} within {1} seconds".format(what, int(seconds)))
            time.sleep(_POLL_SECONDS)

    def _mark(self, phase: str) -> None:
        prober.mark(self.directory, phase)

    def _phase(self, phase: str, seconds: float) -> None:
        self._mark(phase)
        time.sleep(seconds)

    # --- finish

    def under_way(self) -> bool:
        return os.path.exists(os.path.join(self.directory, "drill.json"))

    def finish(self, reboot: bool) -> Dict[str, Any]:
        """Count, remove the prober, and tell. Raises DrillError, also when the host was to reboot and did not."""
        try:
            return self._finish(reboot)
        finally:
            self._remove()

    def _finish(self, reboot: bool) -> Dict[str, Any]:
        place = self.place()
        state = json.loads(read_text(os.path.join(self.directory, "drill.json")))
        if not self.services.running(place.unit):
            self.services.start(place.unit)
        proofs = [Proof(**one) for one in state["proofs"]]
        if reboot and read_text(_BOOT_ID).strip() == state["boot_id"]:
            raise DrillError("the host was to reboot and did not: its boot id is {0} as before".format(state["boot_id"]))
        listed = self._ready(place, proofs)
        if reboot:
            self._phase("after-reboot", state["seconds"])
        self.services.stop(UNIT)
        counts = prober.report(self.directory)
        wrong = {phase: sum(row["wrong"] for row in acts.values()) for phase, acts in counts.items()}
        enforced: Dict[Key, int] = {one.key: sum(one.counters.get(name, 0) for name in ENFORCED) for one in listed}
        return {
            "format": FORMAT,
            "agent": self.layout.version(place.name) if place.name in ("a", "b") else place.unit,
            "policies": [{**vars(one), "enforced": enforced.get(("", one.loaded), 0)} for one in proofs],
            "counts": counts,
            "wrong": {phase: count for phase, count in wrong.items() if count},
            "lapses": state["eased"] + lapses(proofs, counts, state["unpinned"]),
        }

    def _remove(self) -> None:
        """The prober and all that a drill brings."""
        if os.path.exists(self.unit_file):
            self.services.stop(UNIT)
        for path in (self.wanted, self.unit_file):
            if os.path.lexists(path):
                os.unlink(path)
        self.services.reload()
        shutil.rmtree(self.directory, ignore_errors=True)
