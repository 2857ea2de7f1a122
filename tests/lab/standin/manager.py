# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The policies of one running agent: loaded one at a time, listed at any time."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import policy as policies
from .config import Options
from .faults import FaultFile
from .kernel import Kernel
from .pins import COUNTERS, MODES, MONITOR_ONLY, Conf, Stats
from .policy import LoadError, TracingPolicy
from .ring import Reader

_MODE_NAMES = {number: f"TP_MODE_{name.upper()}" for name, number in MODES.items()}
Log = Callable[..., None]


class Denied(Exception):
    """The agent refuses a request, in its words."""


@dataclass
class Entry:
    """One line of the agent's list. ``sequence`` is the kernel's number of what is loaded, 0 for nothing."""

    id: int
    policy: TracingPolicy
    requested_mode: str
    state: str = "loading"
    error: str = ""
    sequence: int = 0
    conf: Conf | None = None
    stats: Stats | None = None


class Manager:
    """Policies by (namespace, name)."""

    def __init__(self, kernel: Kernel, folder: Path, reader: Reader, options: Options, faults: FaultFile, log: Log) -> None:
        self._kernel = kernel
        self._folder = folder
        self._reader = reader
        self._options = options
        self._faults = faults
        self._log = log
        self._entries: dict[tuple[str, str], Entry] = {}
        self._next_id = 2  # the base sensor has the first
        self._changing = threading.Lock()

    # --- requests

    def add(self, text: str, mode: str = "") -> TracingPolicy:
        """Load a policy. Raises Refused, Denied for a name that is taken, LoadError."""
        policy = policies.read(text, self._faults.current().version)
        with self._changing:
            key = (policy.namespace, policy.name)
            earlier = self._entries.get(key)
            if earlier is not None and earlier.state != "load_error":
                raise Denied(f"failed to add tracing policy {policy.key}, a sensor collection with the key already exists")
            entry = self._entries[key] = Entry(self._next_id, policy, mode)
            self._next_id += 1
            self._load(entry)
        return policy

    def delete(self, name: str, namespace: str = "") -> None:
        with self._changing:
            entry = self._find(name, namespace)
            self._unload(entry)
            del self._entries[namespace, name]

    def disable(self, name: str, namespace: str = "") -> None:
        with self._changing:
            entry = self._find(name, namespace)
            if entry.state != "enabled":
                raise Denied(f"tracing policy {name} is not enabled")
            self._unload(entry)
            entry.state = "disabled"

    def enable(self, name: str, namespace: str = "") -> None:
        """Load a disabled policy anew."""
        with self._changing:
            entry = self._find(name, namespace)
            if entry.state != "disabled":
                raise Denied(f"tracing policy {name} is not disabled")
            entry.state = "loading"
            self._load(entry)

    def set_mode(self, name: str, mode: str, namespace: str = "") -> None:
        """Switch a loaded policy at once, without loading it again."""
        entry = self._find(name, namespace)
        if entry.conf is None:
            raise Denied(f"failed to open bpf map {self._folder / entry.policy.folder}/policy_conf: no such file or directory")
        if entry.conf.read() == MONITOR_ONLY:
            raise Denied("cannot set policy mode on a policy that is monitor only")
        entry.conf.write(MODES[mode])

    def listing(self) -> dict[str, Any]:
        """ListTracingPolicies as protojson: whatever is zero or empty is left out, the order is not kept."""
        shown = [self._status(entry) for entry in list(self._entries.values())]
        return {"policies": sorted(shown, key=lambda _: os.urandom(2))} if shown else {}

    def states(self) -> dict[str, int]:
        """Number of policies per state, as the metric tracingpolicy_loaded counts them."""
        found = dict.fromkeys(("disabled", "enabled", "error", "load_error"), 0)
        for entry in list(self._entries.values()):
            if entry.state in found:
                found[entry.state] += 1
        return found

    def memory(self) -> list[tuple[str, str, int]]:
        """Name, namespace and bytes of every loaded policy."""
        entries = [entry.policy for entry in list(self._entries.values()) if entry.state == "enabled"]
        return sorted((policy.name, policy.namespace, policy.kernel_memory) for policy in entries)

    def close(self, unpin: bool) -> None:
        """Give up all sensors; what is pinned stays attached unless it is unpinned."""
        with self._changing:
            for entry in list(self._entries.values()):
                for sensor in entry.policy.sensors if entry.state == "enabled" else ():
                    self._log("info", f"Unloading sensor {sensor}")
                    self._log("info", "Sensor unloaded", sensor=sensor, **{"maps-error": "[]"})
                if unpin:
                    self._unload(entry)

    # --- loading

    def _find(self, name: str, namespace: str) -> Entry:
        entry = self._entries.get((namespace, name))
        if entry is None:
            raise Denied(f"tracing policy {{{name} {namespace}}} does not exist")
        return entry

    def _load(self, entry: Entry) -> None:
        name, handler = entry.policy.name, "enforcer" if entry.policy.spec.get("enforcers") else "tracing"
        try:
            self._attach(entry)
        except (LoadError, OSError) as error:
            self._unload(entry)
            entry.state = "load_error"
            entry.error = f"policy handler '{handler}' failed loading policy '{name}': {error}"
            raise LoadError(entry.error) from None
        entry.state = "enabled"
        if self._faults.current().exit_after_load and name.startswith(self._faults.current().exit_after_load):
            os._exit(2)

    def _attach(self, entry: Entry) -> None:
        policy, faults = entry.policy, self._faults.current()
        if faults.refusal(policy.name):
            raise LoadError(faults.refusal(policy.name))
        multi = not self._options.flag("disable-kprobe-multi")
        policies.check(policy, self._faults.features(), self._options.flag("enable-policy-filter"), multi)
        for sensor in policy.sensors:
            self._log("info", "Loading sensor", name=sensor)
        time.sleep(faults.load_seconds)
        symbol = policies.missing_symbol(policy)
        if symbol:
            reason = f"attaching 'generic_uprobe_event' failed: symbol {symbol}: not found"
            raise LoadError(f"sensor generic_uprobe from collection {policy.name} failed to load: {reason}")
        folder = self._folder / policy.folder
        tree = self._kernel.pins
        tree.create_policy(folder, policy.mode(entry.requested_mode))
        for program in policy.programs:
            entries = (1 if program.section == "lsmhooks" else faults.override_entries) if program.overrides else 0
            egress = policies.egress(policy, program)
            tree.create_hook(folder / program.folder, program.pins_link, program.has_override_link, entries, egress)
        entry.conf, entry.stats = tree.conf(folder), tree.stats(folder)
        entry.sequence = self._kernel.attach(policy.document, folder, policy.programs, self._reader)
        for sensor in policy.sensors:
            self._log("info", "Loaded sensor successfully", sensor=sensor)

    def _unload(self, entry: Entry) -> None:
        shutil.rmtree(self._folder / entry.policy.folder, ignore_errors=True)
        if entry.sequence:
            self._kernel.detach(entry.sequence)
        entry.sequence, entry.conf, entry.stats = 0, None, None

    def _status(self, entry: Entry) -> dict[str, Any]:
        policy, conf, stats = entry.policy, entry.conf, entry.stats
        shown: dict[str, Any] = {"id": str(entry.id), "name": policy.name}
        if policy.namespace:
            shown["namespace"] = policy.namespace
        if entry.state == "load_error":
            return {**shown, "error": entry.error, "state": "TP_STATE_LOAD_ERROR"}
        shown["sensors"] = policy.sensors
        if entry.state != "enabled" or conf is None or stats is None:
            return {**shown, "state": f"TP_STATE_{entry.state.upper()}"}
        counters = {name: str(count) for name, count in zip(COUNTERS, stats.read(), strict=True) if count}
        return {
            **shown,
            "enabled": True,
            **({"filter_id": str(entry.id)} if policy.selects_workloads else {}),
            "state": "TP_STATE_ENABLED",
            "kernel_memory_bytes": str(policy.kernel_memory),
            "mode": _MODE_NAMES[conf.read()],
            "stats": {"action_counters": counters},
        }
