# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""One file of a recording through the policies. What cannot be read is skipped and counted."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from operator import attrgetter, gt, lt

import msgspec

from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay import corpus, events, verdicts
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.compile import CompiledPolicy
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.corpus import Recording
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.parts import Part
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.results import Entry, FileTotals, Skipped
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.verdicts import Answer, Table

_RECENT, _TELL, _BATCH = 1 << 14, 1 << 9, 64
# Events with the same time to the nanosecond may be one; those that a person wrote carry whole seconds.
_WHOLE_SECONDS = len("2026-11-21T22:30:36Z")
_MAX_ARGUMENTS = 1 << 12

TORN = "is not JSON"
SHAPE = "is no event of the agent"
FOREIGN = "holds no event of the agent"
LONG = "is too long"
DUPLICATE = "was read before"
UNREADABLE = "the rest of the file cannot be read"

_Identity = tuple[str | bytes, ...]
_TIME, _NODE = attrgetter("time"), attrgetter("node_name")


class Reader:
    """Reads files for one process; keeps verdicts from one file to the next."""

    def __init__(self, policies: Sequence[CompiledPolicy]) -> None:
        self._policies = policies
        self._tables: dict[events.Context, dict[_Identity, Table]] = {}

    def read(self, recording: Recording, entry: Callable[[Entry], None] | None, advance: Callable[[int], None]) -> Part:
        """Replay one file. Raises nothing for what it holds: what cannot be read is counted."""
        return _File(recording, self._policies, self._tables.setdefault(recording.context, {}), entry).read(advance)


class _File:
    """One file while it is read, a few lines at a time: what takes longest then happens in few calls."""

    def __init__(
        self,
        recording: Recording,
        policies: Sequence[CompiledPolicy],
        tables: dict[_Identity, Table],
        entry: Callable[[Entry], None] | None,
    ) -> None:
        self._recording = recording
        self._file = str(recording.path)
        self._policies = policies
        self._tables = tables
        self._entry = entry
        self._part = Part()
        self._line = self._events = self._others = self._backwards = 0
        self._touched: list[Answer] = []
        self._latest: dict[str, str] = {}
        self._sorted: deque[str] | None = deque(maxlen=_RECENT)
        self._times: tuple[set[str], set[str]] = set(), set()
        self._calls: tuple[set[int], set[int]] | None = None

    def read(self, advance: Callable[[int], None]) -> Part:
        told = folded = 0
        try:
            with corpus.Lines(self._recording.path) as lines:
                for batch in lines.batches(_BATCH):
                    self._replay(batch)
                    if self._line - told >= _TELL:
                        told = self._line
                        advance(lines.position())
                    if self._line - folded >= verdicts.MAX_KEPT:
                        folded = self._line
                        self._fold()
                advance(lines.position())
        except corpus.READ_ERRORS as error:
            self._skip(UNREADABLE, self._line + 1, str(error))
        self._fold()
        skipped = sum(one.count for one in self._part.skipped.values())
        self._part.files.append(FileTotals(self._file, self._line, self._events, self._others, skipped, self._backwards))
        return self._part

    def _fold(self) -> None:
        self._part.fold(self._file, self._touched)
        self._touched = []

    def _skip(self, reason: str, line: int, detail: str) -> None:
        self._part.skip(Skipped(reason, 1, self._file, line, detail))

    def _decoded(self, lines: Sequence[bytes], first: int) -> tuple[list[int], list[events.Event]]:
        """Those of some lines that can be read, with their numbers."""
        numbers: list[int] = []
        found: list[events.Event] = []
        for number, line in enumerate(lines, first):
            try:
                if len(line) > corpus.MAX_LINE:
                    self._skip(LONG, number, f"longer than {corpus.MAX_LINE} bytes")
                else:
                    found.append(events.decode_line(line))
                    numbers.append(number)
            except events.DECODE_ERRORS as error:
                self._bad(number, line, error)
        return numbers, found

    def _bad(self, number: int, line: bytes, error: Exception) -> None:
        if line.strip():
            hint = corpus.spread(line) if number == 1 else ""
            self._skip(SHAPE if isinstance(error, msgspec.ValidationError) else TORN, number, f"{error}{hint}")

    def _replay(self, lines: Sequence[bytes]) -> None:
        first = self._line + 1
        self._line += len(lines)
        numbers: Sequence[int] = range(first, first + len(lines))
        try:
            if max(map(len, lines)) > corpus.MAX_LINE:
                raise msgspec.MsgspecError
            decoded = list(map(events.decode_line, lines))
        except events.DECODE_ERRORS:
            numbers, decoded = self._decoded(lines, first)
        times = list(map(_TIME, decoded))
        ahead = self._ahead(times, first)
        left_out = self._answered(lines, first, numbers, decoded)
        if left_out:
            decoded = [event for number, event in zip(numbers, decoded, strict=True) if number not in left_out]
            times = list(map(_TIME, decoded))
        self._events += len(decoded)
        self._span(decoded, times, ahead)

    def _answered(self, lines: Sequence[bytes], first: int, numbers: Sequence[int], decoded: Sequence[events.Event]) -> set[int]:
        """Count what the policies say of these events, and tell it. Returns the numbers of those that do not count."""
        left_out: set[int] = set()
        get, touch, unset, nothing, calls = self._tables.get, self._touched.append, msgspec.UNSET, events.NOTHING, self._calls
        for number, event in zip(numbers, decoded, strict=True):
            labels = b"" if event.node_labels is nothing else bytes(event.node_labels)
            key: _Identity
            body = event.process_kprobe
            if body is not unset:
                kind, key = "kprobe", (body.function_name, body.policy_name, labels)
            else:
                body = event.process_lsm
                if body is not unset:
                    kind, key = "lsm", ("lsm", body.function_name, body.policy_name, labels)
                else:
                    identity = events.identity(event)
                    if identity is None:
                        left_out.add(number)
                        if event.of_no_hook():
                            self._others += 1
                        else:
                            self._skip(FOREIGN, number, f"begins with {lines[number - first][:60]!r}")
                        continue
                    kind, body, key = identity
            try:
                table = get(key)
                if table is None:
                    table = self._table(kind, body, key, labels)
                asked = table.key(body)
                answer = table.kept.get(asked)
                if answer is None:
                    answer = table.answer(body, asked, event.time)
            except events.DECODE_ERRORS as error:
                left_out.add(number)
                self._bad(number, lines[number - first], error)
                continue
            if calls is not None and self._known(event, body):
                left_out.add(number)
                self._skip(DUPLICATE, number, f"the same event at {event.time}")
                continue
            if not answer.count:
                touch(answer)
            answer.count += 1
            if answer.said:
                self._tell(number, len(lines[number - first]), event, body, answer)
        return left_out

    def _table(self, kind: str, body: events.Body, key: _Identity, labels: bytes) -> Table:
        if len(self._tables) >= verdicts.MAX_KEPT:
            self._tables.clear()
        table = self._tables[key] = Table(kind, body, self._recording.context, labels, self._policies)
        return table

    def _ahead(self, times: Sequence[str], first: int) -> bool:
        """Whether each of these times sorts after all before it in this file: then no two events are one.

        Else, once a time occurs again among a bounded number, events are compared as a whole, from those at line ``first`` on.
        """
        if self._calls is not None:
            return False
        if self._sorted is not None:
            last = self._sorted[-1] if self._sorted else ""
            if all(map(lt, [last, *times], times)):
                self._sorted.extend(times)
                return True
            self._times, self._sorted = (set(self._sorted), set()), None
        recent, former = self._times
        several = set(times)
        if len(several) < len(times) or not recent.isdisjoint(several) or not former.isdisjoint(several):
            self._calls = set(), set()
            self._recall(first)
            return False
        if len(recent) >= _RECENT:
            former, recent = recent, set()
            self._times = recent, former
        recent |= several
        return False

    def _recall(self, end: int) -> None:
        """Two events have the same time: from now on each is compared as a whole, also with those before line ``end``."""
        number = 1
        with corpus.Lines(self._recording.path) as lines:
            for batch in lines.batches(_BATCH):
                for line in batch:
                    if number >= end:
                        return
                    number += 1
                    try:
                        event = events.decode_line(line)
                    except events.DECODE_ERRORS:
                        continue
                    found = events.body_of(event)
                    if found is not None:
                        self._known(event, found[1])

    def _known(self, event: events.Event, body: events.Body) -> bool:
        """Whether this event was read before: the same call of the same hook by the same process in the same nanosecond."""
        if self._calls is None or len(event.time) <= _WHOLE_SECONDS:
            return False
        recent, former = self._calls
        names = (body.function_name, body.event, body.symbol, body.usdt, body.policy_name)
        call = hash((event.time, event.node_name, body.process.exec_id, names, bytes(body.args)))
        if call in recent or call in former:
            return True
        if len(recent) >= _RECENT:
            self._calls = recent, former = set(), recent
        recent.add(call)
        return False

    def _span(self, found: Sequence[events.Event], times: Sequence[str], ahead: bool) -> None:
        nodes = set(map(_NODE, found))
        for node in nodes:
            of_node = times if len(nodes) == 1 else [event.time for event in found if event.node_name == node]
            if "" in of_node:
                of_node = [time for time in of_node if time]
            if not of_node:
                continue
            before = [self._latest.get(node, ""), *of_node]
            self._latest[node] = of_node[-1]
            if ahead:
                self._part.seen(node, len(of_node), of_node[0], of_node[-1])
                continue
            if any(map(gt, before, of_node)):
                self._backwards += sum(one[:-1] > other[:-1] for one, other in zip(before, of_node, strict=False))
            self._part.seen(node, len(of_node), min(of_node), max(of_node))

    def _tell(self, number: int, size: int, event: events.Event, body: events.Body, answer: Answer) -> None:
        binary, parent = body.process.binary, body.parent.binary
        if answer.fired:
            answer.size += size
            source = (binary, parent, bytes(body.args)[:_MAX_ARGUMENTS])
            answer.sources[source] = answer.sources.get(source, 0) + 1
        for lacks, name in ((answer.lacks_file, binary), (answer.lacks_parents, parent)):
            if lacks and name:
                self._part.unknown_files.add(name, 1)
        if self._entry is not None:
            for said in answer.said:
                self._entry(Entry(said, self._file, number, body.process.exec_id, event.time, event.node_name, binary, parent, size))
