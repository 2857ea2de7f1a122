# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""How a host's agent is told to misbehave: ``<root>/etc/standin.json``, read again whenever it changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import wire
from .root import Root


@dataclass(frozen=True)
class Faults:
    """All of them; without a file the agent behaves.

    ``fail_load``: policies by prefix of their name, each a prefix or [prefix, message]. ``load_seconds`` per policy and
    ``start_seconds`` before the agent answers. ``drop_events``: the fraction of events that get lost. ``burn_cpu``:
    cores; ``burn_cpu_policy``: {"prefix", "cores"}, only while such a policy is loaded. ``exit_after_load``: crash when a
    policy with this prefix has loaded. ``hang``: accept connections and never answer, ``hang_on``: only to this
    method. ``kernel_features``: probes that differ from Debian's 6.1. ``override_entries``: size of override_tasks;
    0: none, so that Overrides by kprobes are listed and deny nothing.
    """

    fail_load: Sequence[str | Sequence[str]] = ()
    load_seconds: float = 0.02
    start_seconds: float = 0.0
    drop_events: float = 0.0
    burn_cpu: float = 0.0
    burn_cpu_policy: Mapping[str, Any] = field(default_factory=dict)
    exit_after_load: str = ""
    hang: bool = False
    hang_on: str = ""
    kernel_features: Mapping[str, bool] = field(default_factory=dict)
    override_entries: int = 32768
    version: str = wire.VERSION

    def refusal(self, name: str) -> str:
        """Why a policy of this name must not load; empty when it may."""
        for one in self.fail_load:
            prefix, message = (one, "refused by the laboratory") if isinstance(one, str) else one
            if name.startswith(prefix):
                return message
        return ""

    def cores(self, loaded: Iterable[str]) -> float:
        """Cores to burn while policies of these names are loaded."""
        wanted = self.burn_cpu_policy
        some = bool(wanted) and any(name.startswith(wanted["prefix"]) for name in loaded)
        return self.burn_cpu + (float(wanted["cores"]) if some else 0.0)


class FaultFile:
    """The current faults of one host. A file with an unknown key is an error of the laboratory and raises TypeError."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._path = Path(root.path("/etc/standin.json"))
        self._seen: tuple[int, int, int] | None = None
        self._faults = Faults()

    def current(self) -> Faults:
        try:
            status = self._path.stat()
            seen = (status.st_ino, status.st_mtime_ns, status.st_size)
        except OSError:
            seen = None
        if seen != self._seen:
            self._seen, self._faults = seen, Faults(**self._root.settings())
        return self._faults

    def features(self) -> dict[str, bool]:
        """The kernel's probes, as the agent finds them."""
        return {**wire.PROBES, **self.current().kernel_features}
