# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""What a replay comes to: an entry per event that fires or cannot be decided, and the summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.compile import Outcome


@dataclass(frozen=True, slots=True)
class Said:
    """What one hook entry of a policy says of an event: that it fires, or that nobody can tell.

    ``number`` is the policy's place in the set. ``outcomes`` holds every outcome that the recording leaves possible (the
    selector that wins, its actions), one when all is known; ``reasons`` say what the recording lacks, when undecided.
    """

    number: int
    policy: str
    hook: str
    fires: bool
    outcomes: tuple[Outcome, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One event that a policy fires on, or that cannot be decided. ``size`` is the event's length in bytes."""

    said: Said
    file: str
    line: int
    exec_id: str
    time: str
    node: str
    binary: str
    parent: str
    size: int


@dataclass(frozen=True, slots=True)
class Counts:
    """Events that reached a hook of a policy, by what the policy does with them, and the bytes of those that fired."""

    fired: int = 0
    quiet: int = 0
    undecided: int = 0
    size: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.fired + other.fired, self.quiet + other.quiet, self.undecided + other.undecided, self.size + other.size)

    @property
    def seen(self) -> int:
        return self.fired + self.quiet + self.undecided


@dataclass(frozen=True)
class PolicyTotals:
    """One policy over all recordings. A policy with ``total.seen`` 0 was not tried: no event of its hooks was recorded.

    ``noise`` ranks what fired: ``binary``, ``parent`` and ``argument`` each to (value, events), most first. Counts are lower
    bounds once a recording holds more than MAX_SOURCES values. ``per_day`` is (events, bytes) per host and day, None when the
    recordings span no time.
    """

    number: int
    policy: str
    total: Counts
    by_file: Mapping[str, Counts]
    by_hook: Mapping[str, Counts]
    reasons: Mapping[str, int]
    noise: Mapping[str, Sequence[tuple[str, int]]]
    per_day: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Skipped:
    """Lines that were not replayed for one reason; ``file``, ``line`` and ``detail`` are of the first of them."""

    reason: str
    count: int
    file: str
    line: int
    detail: str


@dataclass(frozen=True, slots=True)
class Span:
    """What was recorded on one host: hook events, and the times of the first and the last, as the agent writes times."""

    node: str
    events: int
    first: str
    last: str

    @property
    def seconds(self) -> float:
        first, last = _seconds(self.first), _seconds(self.last)
        return 0.0 if first is None or last is None else last - first


@dataclass(frozen=True)
class FileTotals:
    """What one file holds. ``others`` are events of no hook (exec, exit ...), ``backwards`` those older than the one before."""

    file: str
    lines: int
    events: int
    others: int
    skipped: int
    backwards: int


@dataclass(frozen=True)
class Summary:
    """The whole replay. ``overlap`` counts events on which several policies fire, by their numbers.

    ``notes`` are sentences for people: recordings of another agent version, files without an event, unknown recorders.
    ``unknown_recorders`` counts events by the policy that recorded them, where nobody knows its declarations.
    """

    policies: tuple[PolicyTotals, ...]
    files: tuple[FileTotals, ...]
    skipped: tuple[Skipped, ...]
    spans: tuple[Span, ...]
    overlap: Mapping[tuple[int, ...], int]
    unknown_recorders: Mapping[str, int]
    notes: tuple[str, ...]

    @property
    def events(self) -> int:
        return sum(file.events for file in self.files)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a replay is: files, and bytes as they lie on disk."""

    files_done: int
    files: int
    bytes_done: int
    bytes: int


def _seconds(time: str) -> float | None:
    try:
        return datetime.fromisoformat(time).timestamp()
    except ValueError:
        return None
