# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""What one file of a recording came to, or several together: counts, reasons, noise. Small whatever they hold."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay import events
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.results import Counts, FileTotals, Skipped
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.verdicts import Answer, States

MAX_SOURCES = 1 << 12


class Sources:
    """How often values occurred, for a bounded number of values: the rarest are forgotten."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def add(self, value: str, count: int) -> None:
        self.counts[value] = self.counts.get(value, 0) + count
        if len(self.counts) > 2 * MAX_SOURCES:
            self.counts = dict(self.top(MAX_SOURCES))

    def top(self, number: int) -> list[tuple[str, int]]:
        return heapq.nsmallest(number, self.counts.items(), key=lambda one: (-one[1], one[0]))


@dataclass
class PolicyPart:
    """What one policy did with the events of a part."""

    cells: dict[tuple[str, str], Counts] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    noise: dict[str, Sources] = field(default_factory=lambda: {what: Sources() for what in ("binary", "parent", "argument")})


@dataclass
class Part:
    """What one file, or several in order, came to. Small whatever they hold; the entries lie elsewhere."""

    policies: dict[int, PolicyPart] = field(default_factory=dict)
    files: list[FileTotals] = field(default_factory=list)
    skipped: dict[str, Skipped] = field(default_factory=dict)
    spans: dict[str, tuple[int, str, str]] = field(default_factory=dict)
    overlap: Counter[tuple[int, ...]] = field(default_factory=Counter)
    recorders: Counter[str] = field(default_factory=Counter)
    unknown_files: Sources = field(default_factory=Sources)

    def policy(self, number: int) -> PolicyPart:
        return self.policies.setdefault(number, PolicyPart())

    def skip(self, one: Skipped) -> None:
        former = self.skipped.get(one.reason)
        self.skipped[one.reason] = one if former is None else replace(former, count=former.count + one.count)

    def seen(self, node: str, count: int, first: str, last: str) -> None:
        former = self.spans.get(node, (0, first, last))
        self.spans[node] = former[0] + count, _earlier(former[1], first), _later(former[2], last)

    def merge(self, other: Part) -> None:
        for number, theirs in other.policies.items():
            ours = self.policy(number)
            for cell, counts in theirs.cells.items():
                ours.cells[cell] = ours.cells.get(cell, Counts()) + counts
            ours.reasons.update(theirs.reasons)
            for what, sources in theirs.noise.items():
                for value, count in sources.counts.items():
                    ours.noise[what].add(value, count)
        self.files += other.files
        for skipped in other.skipped.values():
            self.skip(skipped)
        for node, (count, first, last) in other.spans.items():
            self.seen(node, count, first, last)
        self.overlap.update(other.overlap)
        self.recorders.update(other.recorders)
        for name, count in other.unknown_files.counts.items():
            self.unknown_files.add(name, count)

    def fold(self, file: str, answers: Sequence[Answer]) -> None:
        """Add what one file holds of some answers, and set these back."""
        alike: dict[tuple[str, States], tuple[int, int]] = {}
        for answer in answers:
            cell = (answer.table.hook, answer.states)
            count, size = alike.get(cell, (0, 0))
            alike[cell] = count + answer.count, size + answer.size
            for number in answer.fired:
                noise = self.policy(number).noise
                for (binary, parent, args), count in answer.sources.items():
                    noise["binary"].add(binary, count)
                    noise["parent"].add(parent, count)
                    noise["argument"].add(events.shown(args), count)
            for said in answer.said:
                if not said.fires:
                    reasons = self.policy(said.number).reasons
                    for reason in said.reasons:
                        reasons[reason] += answer.count
            if len(answer.fired) > 1:
                self.overlap[answer.fired] += answer.count
            if answer.table.recorder:
                self.recorders[answer.table.recorder] += answer.count
            answer.count = answer.size = 0
            answer.sources = {}
        for (hook, states), (count, size) in alike.items():
            for number, state in states:
                cells = self.policy(number).cells
                more = Counts(count if state else 0, count if state is False else 0, count if state is None else 0, size if state else 0)
                cells[file, hook] = cells.get((file, hook), Counts()) + more


def _earlier(one: str, other: str) -> str:
    """Of two times as the agent writes them: UTC, with as many decimals as are not 0."""
    return one if one[:-1] <= other[:-1] else other


def _later(one: str, other: str) -> str:
    return other if _earlier(one, other) == one else one
