# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""A set of policies over many recordings: what fires, what stays quiet, what cannot be decided, and what was not read.

``replay`` streams: memory does not grow with the recordings, but with policies, hooks and files. It takes one process per
worker, file by file; results do not depend on how many there are.

Most events of a recording ask what others asked before them, so verdicts are kept per hook. An evaluation notes which
attributes of the invocation it reads; verdicts are kept under the raw JSON of all that any policy has read at that hook, and
forgotten when a policy reads more. Two events with the same key thus give every policy the same to read.
"""

from __future__ import annotations

import heapq
import multiprocessing
import pickle
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from operator import attrgetter, gt, itemgetter, lt
from pathlib import Path
from typing import Any

import msgspec

from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Problem, Refused, refuse
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay import corpus, events
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.compile import CompiledPolicy, Verdict
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.corpus import Recording
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.processes import LACKS_OWN_FILE, LACKS_PARENTS_FILE
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.records import Invocation, Process
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.results import (
    Counts,
    Entry,
    FileTotals,
    PolicyTotals,
    Progress,
    Said,
    Skipped,
    Span,
    Summary,
)

MAX_KEPT = 1 << 16
MAX_SOURCES = 1 << 12
_RECENT, _TELL = 1 << 14, 1 << 9
# Events with the same time to the nanosecond may be one; those that a person wrote carry whole seconds.
_WHOLE_SECONDS = len("2026-11-21T22:30:36Z")
_MAX_ARGUMENTS = 1 << 12
_BATCH, _SPOOLED, _PATIENCE = 64, 1000, 0.2
MAX_TOP, MAX_NAMED = 10, 5
_DAY = 86400.0

TORN = "is not JSON"
SHAPE = "is no event of the agent"
FOREIGN = "holds no event of the agent"
LONG = "is too long"
DUPLICATE = "was read before"
UNREADABLE = "the rest of the file cannot be read"


def replay(
    policies: Sequence[CompiledPolicy],
    recordings: Sequence[Recording],
    *,
    workers: int = 1,
    agent_version: str = "",
    entry: Callable[[Entry], None] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Summary:
    """Replay recordings (see ``corpus.find``) through a set of policies.

    ``entry`` is called for each event that fires or cannot be decided, per hook entry of each policy: in the order of the
    recordings, their lines, and the policies. ``agent_version`` is the one that the policies are meant for: recordings of
    another are noted. ``workers`` processes are forked from this one. Lines that cannot be read are skipped and counted.
    Raises Refused when no recording holds an event of a hook: silence proves nothing then.
    """
    job = _Job(tuple(policies), tuple(corpus.surveyed(recordings)), entry is not None)
    total = _Part()
    with tempfile.TemporaryDirectory(prefix="apiary-replay-") as spool:
        for part in _parts(job, min(workers, len(recordings)), Path(spool), entry, progress):
            total.merge(part)
    summary = _summary(job, total, agent_version)
    if not summary.events:
        raise Refused(Problem(str(one.path), 0, "", _nothing(summary, str(one.path))) for one in recordings)
    return summary


# --- verdicts -------------------------------------------------------------------------------------------------------


class _WatchedProcess(Process):
    """A process that holds what policies are known to read, and notes when they read more."""

    __slots__ = ("_plain", "_reads")
    _plain: Process
    _reads: set[str]

    def __getattr__(self, name: str) -> Any:
        self._reads.add(name)
        return getattr(self._plain, name)


class _WatchedInvocation(Invocation):
    """An invocation that holds its hook, its node's labels and its process, and notes what else is read."""

    __slots__ = ("_plain", "_reads")
    _plain: Invocation
    _reads: set[str]

    def __getattr__(self, name: str) -> Any:
        self._reads.add(name)
        return getattr(self._plain, name)


def _watched(plain: Invocation, known: Iterable[str], reads: set[str]) -> Invocation:
    """A view of ``plain`` that adds to ``reads`` what is read of it, but for the attributes ``known`` of its process."""
    put = object.__setattr__
    process, invocation = object.__new__(_WatchedProcess), object.__new__(_WatchedInvocation)
    for name in known:
        put(process, name, getattr(plain.process, name))
    for view, of in ((process, plain.process), (invocation, plain)):
        put(view, "_plain", of)
        put(view, "_reads", reads)
    put(invocation, "hook", plain.hook)
    put(invocation, "node_labels", plain.node_labels)
    put(invocation, "process", process)
    return invocation


_States = tuple[tuple[int, bool | None], ...]


class _Answer:
    """What all policies say of events that are alike, and how many of those one file holds."""

    __slots__ = ("count", "fired", "lacks_file", "lacks_parents", "said", "size", "sources", "states", "table")

    def __init__(self, table: _Table, states: _States, said: tuple[Said, ...]) -> None:
        self.table = table
        self.states = states
        self.said = said
        self.fired = tuple(number for number, state in states if state)
        reasons = {reason for one in said for reason in one.reasons}
        self.lacks_file, self.lacks_parents = LACKS_OWN_FILE in reasons, LACKS_PARENTS_FILE in reasons
        self.count = self.size = 0
        self.sources: dict[tuple[str, str, bytes], int] = {}


_Judged = tuple[int, bool | None, tuple[Said, ...]]
_UNIQUE = frozenset(["time", "source"])
_ARGUMENTS = frozenset(["args", "data", "returned"]) | _UNIQUE


@dataclass(frozen=True, slots=True)
class _Plan:
    """For events of processes that are alike: what policies say whatever the arguments are, and the policies that look at these."""

    settled: tuple[_Judged, ...]
    open: tuple[tuple[int, CompiledPolicy], ...]


class _Table:
    """The verdicts at one hook, for events recorded by one policy on nodes with the same labels.

    ``kept`` holds answers by ``key``; those of ``former`` were not asked for since ``kept`` was last full.
    """

    def __init__(
        self, kind: str, body: events.Body, context: events.Context, node_labels: bytes, policies: Sequence[CompiledPolicy]
    ) -> None:
        hook = events.event_hook(kind, body)
        declared = context.declared(body.policy_name, hook)
        self.kind = kind
        self.context = context
        self.node_labels = node_labels
        self.hook = str(hook)
        self.recorder = "" if declared is not None else body.policy_name
        self._sources = events.sources(declared, context.complete is not None)
        self._policies = tuple(enumerate(policies))
        self._reads: frozenset[str] = frozenset()
        self._reads_more(self._reads)

    def _reads_more(self, names: frozenset[str]) -> None:
        """Note what policies read here; what is kept under less is forgotten."""
        self._reads |= names
        sources = {source for name in self._reads for source in self._sources.get(name, (name,) if name in _UNIQUE else ())}
        self._unique = not sources.isdisjoint(_UNIQUE)
        self.key = _key_of(sources - _UNIQUE)
        self._process_names = tuple(sorted(self._reads - _ARGUMENTS))
        self.kept: dict[Any, _Answer] = {}
        self._former: dict[Any, _Answer] = {}
        self._plans: dict[Any, _Plan] = {}
        self._states: dict[_States, _States] = {}  # one object for those that are equal

    def answer(self, body: events.Body, key: Any, time: str) -> _Answer:
        """What the policies say of an event whose key is not in ``kept``.

        Raises one of ``events.DECODE_ERRORS`` when a part that they read is of another shape.
        """
        found = self._former.get(key)
        if found is None:
            found = self._judged(body, time)
            if self._unique:
                return found
            key = self.key(body)
        if len(self.kept) >= MAX_KEPT:
            self._former, self.kept, self._states = self.kept, {}, {}
        self.kept[key] = found
        return found

    def _judged(self, body: events.Body, time: str) -> _Answer:
        plain = events.invocation(self.kind, body, self.context, time, node_labels=self.node_labels)
        process_key = self._process_key(plain.process, body)
        plan = self._plans.get(process_key) or _Plan((), self._policies)
        reads: set[str] = set()
        watched = _watched(plain, self._process_names, reads)
        judged, settled, left = list(plan.settled), list(plan.settled), []
        unreached = set()
        more: set[str] = set()
        for number, policy in plan.open:
            reads.clear()
            answer = _judge(number, policy, self.hook, watched)
            if answer is not None:
                judged.append(answer)
            elif not reads:
                unreached.add(number)
            if reads & _ARGUMENTS:
                left.append((number, policy))
            elif answer is not None:
                settled.append(answer)
            more |= reads
        if unreached:
            self._policies = tuple(one for one in self._policies if one[0] not in unreached)
        if more - self._reads:
            self._reads_more(frozenset(more))
        elif len(left) < len(plan.open):
            if len(self._plans) >= MAX_KEPT:
                self._plans.clear()
            self._plans[process_key] = _Plan(tuple(settled), tuple(left))
        judged.sort(key=itemgetter(0))
        states = tuple(one[:2] for one in judged)
        return _Answer(self, self._states.setdefault(states, states), tuple(said for one in judged for said in one[2]))

    def _process_key(self, process: Process, body: events.Body) -> tuple[Any, ...]:
        """The values of what policies read of a process; for those that cannot be hashed, the JSON that they come from."""
        raw: dict[str, Any] = {"namespaces": bytes(body.process.ns), "pod": bytes(body.process.pod)}
        if process.capabilities is not None:
            raw["capabilities"] = tuple(sorted(process.capabilities.items()))
        return tuple(raw[name] if name in raw else getattr(process, name) for name in self._process_names)


def _judge(number: int, policy: CompiledPolicy, hook: str, invocation: Invocation) -> _Judged | None:
    """One policy's answer, true before unknown before false, and what to tell of it; None when it has no such hook."""
    verdicts = policy.evaluate(invocation)
    if not verdicts:
        return None
    answers = {verdict.fires.value for verdict in verdicts}
    said = tuple(_said(number, policy.name, hook, verdict) for verdict in verdicts if verdict.fires.value is not False)
    return number, True if True in answers else None if None in answers else False, said


def _said(number: int, policy: str, hook: str, verdict: Verdict) -> Said:
    return Said(number, policy, hook, verdict.fires.value is True, tuple(verdict.outcomes), tuple(sorted(verdict.fires.reasons)))


def _key_of(sources: set[str]) -> Callable[[events.Body], Any]:
    """What tells apart events by these members: raw JSON as bytes, all else as it is."""
    raw = sorted(source for source in sources if source in events.RAW)
    plain = sorted(sources - set(raw))
    if not sources:
        return lambda body: None
    if not raw:
        return attrgetter(*plain)
    parts = attrgetter(*raw)
    if len(raw) == 1:
        if not plain:
            return lambda body: bytes(parts(body))
        values = attrgetter(*plain)
        return lambda body: (values(body), bytes(parts(body)))
    if not plain:
        return lambda body: tuple(map(bytes, parts(body)))
    values = attrgetter(*plain)
    return lambda body: (values(body), *map(bytes, parts(body)))


# --- one file -------------------------------------------------------------------------------------------------------


class _Sources:
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
class _PolicyPart:
    """What one policy did with the events of a part."""

    cells: dict[tuple[str, str], Counts] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    noise: dict[str, _Sources] = field(default_factory=lambda: {what: _Sources() for what in ("binary", "parent", "argument")})


@dataclass
class _Part:
    """What one file, or several in order, came to. Small whatever they hold; the entries lie elsewhere."""

    policies: dict[int, _PolicyPart] = field(default_factory=dict)
    files: list[FileTotals] = field(default_factory=list)
    skipped: dict[str, Skipped] = field(default_factory=dict)
    spans: dict[str, tuple[int, str, str]] = field(default_factory=dict)
    overlap: Counter[tuple[int, ...]] = field(default_factory=Counter)
    recorders: Counter[str] = field(default_factory=Counter)
    unknown_files: _Sources = field(default_factory=_Sources)

    def policy(self, number: int) -> _PolicyPart:
        return self.policies.setdefault(number, _PolicyPart())

    def skip(self, one: Skipped) -> None:
        former = self.skipped.get(one.reason)
        self.skipped[one.reason] = one if former is None else replace(former, count=former.count + one.count)

    def seen(self, node: str, count: int, first: str, last: str) -> None:
        former = self.spans.get(node, (0, first, last))
        self.spans[node] = former[0] + count, _earlier(former[1], first), _later(former[2], last)

    def merge(self, other: _Part) -> None:
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

    def fold(self, file: str, answers: Sequence[_Answer]) -> None:
        """Add what one file holds of some answers, and set these back."""
        alike: dict[tuple[str, _States], tuple[int, int]] = {}
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


_Identity = tuple[str | bytes, ...]
_TIME, _NODE = attrgetter("time"), attrgetter("node_name")


class _Reader:
    """Reads files for one process; keeps verdicts from one file to the next."""

    def __init__(self, policies: Sequence[CompiledPolicy]) -> None:
        self._policies = policies
        self._tables: dict[events.Context, dict[_Identity, _Table]] = {}

    def read(self, recording: Recording, entry: Callable[[Entry], None] | None, advance: Callable[[int], None]) -> _Part:
        """Replay one file. Raises nothing for what it holds: what cannot be read is counted."""
        return _File(recording, self._policies, self._tables.setdefault(recording.context, {}), entry).read(advance)


class _File:
    """One file while it is read, a few lines at a time: what takes longest then happens in few calls."""

    def __init__(
        self,
        recording: Recording,
        policies: Sequence[CompiledPolicy],
        tables: dict[_Identity, _Table],
        entry: Callable[[Entry], None] | None,
    ) -> None:
        self._recording = recording
        self._file = str(recording.path)
        self._policies = policies
        self._tables = tables
        self._entry = entry
        self._part = _Part()
        self._line = self._events = self._others = self._backwards = 0
        self._touched: list[_Answer] = []
        self._latest: dict[str, str] = {}
        self._sorted: deque[str] | None = deque(maxlen=_RECENT)
        self._times: tuple[set[str], set[str]] = set(), set()
        self._calls: tuple[set[int], set[int]] | None = None

    def read(self, advance: Callable[[int], None]) -> _Part:
        told = folded = 0
        try:
            with corpus.Lines(self._recording.path) as lines:
                for batch in lines.batches(_BATCH):
                    self._replay(batch)
                    if self._line - told >= _TELL:
                        told = self._line
                        advance(lines.position())
                    if self._line - folded >= MAX_KEPT:
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

    def _table(self, kind: str, body: events.Body, key: _Identity, labels: bytes) -> _Table:
        if len(self._tables) >= MAX_KEPT:
            self._tables.clear()
        table = self._tables[key] = _Table(kind, body, self._recording.context, labels, self._policies)
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

    def _tell(self, number: int, size: int, event: events.Event, body: events.Body, answer: _Answer) -> None:
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


# --- many files -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    policies: tuple[CompiledPolicy, ...]
    recordings: tuple[Recording, ...]
    spools: bool


class _Worker:
    """One forked process: compiled policies cannot be sent to it, so it inherits them."""

    job: _Job
    reader: _Reader
    done: Any

    @classmethod
    def inherit(cls, job: _Job, done: Any) -> None:
        cls.job, cls.reader, cls.done = job, _Reader(job.policies), done

    @classmethod
    def run(cls, number: int, spool: Path) -> _Part:
        position = 0

        def advance(now: int) -> None:
            nonlocal position
            with cls.done.get_lock():
                cls.done.value += now - position
            position = now

        recording = cls.job.recordings[number]
        if not cls.job.spools:
            return cls.reader.read(recording, None, advance)
        with _Spool(spool / str(number)) as spooled:
            return cls.reader.read(recording, spooled.write, advance)


class _Spool:
    """Entries on their way from one process to another, in a file: they may be too many for memory."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._batch: list[Entry] = []

    def __enter__(self) -> _Spool:
        return self

    def __exit__(self, *error: object) -> None:
        self._flush()
        self._file.close()

    def write(self, entry: Entry) -> None:
        self._batch.append(entry)
        if len(self._batch) >= _SPOOLED:
            self._flush()

    def _flush(self) -> None:
        pickle.dump(self._batch, self._file, pickle.HIGHEST_PROTOCOL)
        self._batch = []


def _spooled(path: Path) -> Iterator[Entry]:
    with path.open("rb") as file:
        while file.peek(1):
            yield from pickle.load(file)
    path.unlink()


def _parts(
    job: _Job, workers: int, spool: Path, entry: Callable[[Entry], None] | None, progress: Callable[[Progress], None] | None
) -> Iterator[_Part]:
    """What each file came to, in the order of the recordings; the entries of a file go before its part."""
    sizes = [one.path.stat().st_size for one in job.recordings]
    total, told, finished = sum(sizes), progress or (lambda _unused: None), 0
    told(Progress(0, len(sizes), 0, total))
    if workers <= 1:
        reader = _Reader(job.policies)
        for number, recording in enumerate(job.recordings):
            part = reader.read(recording, entry, lambda now: told(Progress(number, len(sizes), finished + now, total)))  # noqa: B023
            finished += sizes[number]
            told(Progress(number + 1, len(sizes), finished, total))
            yield part
        return
    forks = multiprocessing.get_context("fork")
    done = forks.Value("q", 0)
    with ProcessPoolExecutor(workers, forks, _Worker.inherit, (job, done)) as pool:
        futures = [pool.submit(_Worker.run, number, spool) for number in range(len(sizes))]
        try:
            for number, future in enumerate(futures):
                while wait([future], _PATIENCE).not_done:
                    told(_progress(futures, done.value, total))
                try:
                    part = future.result()
                except BrokenProcessPool:
                    message = "a process of the replay ended before its time, perhaps for lack of memory: try fewer workers"
                    raise refuse(message, file=str(job.recordings[number].path)) from None
                if entry is not None:
                    for one in _spooled(spool / str(number)):
                        entry(one)
                told(_progress(futures, done.value, total))
                yield part
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _progress(futures: Sequence[Future[_Part]], done: int, total: int) -> Progress:
    return Progress(sum(future.done() for future in futures), len(futures), min(done, total), total)


# --- the summary ----------------------------------------------------------------------------------------------------


def _earlier(one: str, other: str) -> str:
    """Of two times as the agent writes them: UTC, with as many decimals as are not 0."""
    return one if one[:-1] <= other[:-1] else other


def _later(one: str, other: str) -> str:
    return other if _earlier(one, other) == one else one


def _summary(job: _Job, total: _Part, agent_version: str) -> Summary:
    spans = tuple(Span(node, count, first, last) for node, (count, first, last) in sorted(total.spans.items()))
    days = sum(span.seconds for span in spans) / _DAY
    return Summary(
        policies=tuple(_totals(number, policy.name, total.policy(number), days) for number, policy in enumerate(job.policies)),
        files=tuple(total.files),
        skipped=tuple(total.skipped.values()),
        spans=spans,
        overlap=dict(sorted(total.overlap.items())),
        unknown_recorders=dict(sorted(total.recorders.items())),
        notes=tuple(_notes(job, total, agent_version)),
    )


def _totals(number: int, policy: str, part: _PolicyPart, days: float) -> PolicyTotals:
    by_file: dict[str, Counts] = {}
    by_hook: dict[str, Counts] = {}
    for (file, hook), counts in part.cells.items():
        by_file[file] = by_file.get(file, Counts()) + counts
        by_hook[hook] = by_hook.get(hook, Counts()) + counts
    all_counts = sum(by_hook.values(), Counts())
    return PolicyTotals(
        number=number,
        policy=policy,
        total=all_counts,
        by_file=by_file,
        by_hook=dict(sorted(by_hook.items())),
        reasons=dict(sorted(part.reasons.items())),
        noise={what: tuple(sources.top(MAX_TOP)) for what, sources in part.noise.items()},
        per_day=(all_counts.fired / days, all_counts.size / days) if days else None,
    )


def _notes(job: _Job, total: _Part, agent_version: str) -> Iterator[str]:
    for file in total.files:
        if not file.events and not file.others:
            yield f"{file.file}: holds no event of a hook ({file.lines} lines): it says nothing about any policy"
    for via in dict.fromkeys(one.via for policy in job.policies for hooks in policy.hooks.values() for one in hooks if one.via is not None):
        yield f"{via.wanted} was not recorded: {via.recorded} stands for it ({via.source})"
    versions: dict[str, list[Recording]] = {}
    for recording in job.recordings:
        versions.setdefault(recording.agent_version, []).append(recording)
    for version, recordings in versions.items():
        if version and agent_version and version.removeprefix("v") != agent_version.removeprefix("v"):
            more = f" and {len(recordings) - 1} more" if len(recordings) > 1 else ""
            yield f"{recordings[0].path}{more}: recorded by agent {version}, but the policies are meant for {agent_version}"
    if any(one.context.complete is None for one in job.recordings) and any(part.reasons for part in total.policies.values()):
        limit = f"{corpus.MAX_SURVEYED >> 20} MB"
        yield f"in a recording of more than {limit}, what events say of each other's processes was not looked for: smaller ones decide more"
    files = total.unknown_files.top(MAX_NAMED + 1)
    if files:
        names = ", ".join(name for name, _unused in files[:MAX_NAMED]) + (" and more" if len(files) > MAX_NAMED else "")
        yield (
            f"no event shows which files were executed as {names}: where you know it, give apiary_executables, a map from such names to "
            "files; any name that is not in it then stands for itself"
        )
    for name, count in sorted(total.recorders.items()):
        yield (
            f"the policy {name!r} that recorded {count} events is not at hand: only arguments that say themselves what they are can be "
            "read; put its YAML into the recording's directory, or name it in apiary_recorders"
        )


def _nothing(summary: Summary, file: str) -> str:
    others = sum(one.others for one in summary.files if one.file == file)
    skipped = [one for one in summary.skipped if one.file == file]
    why = "; ".join(f"{one.count} lines skipped: {one.reason}, first line {one.line}: {one.detail}" for one in skipped)
    holds = f"holds no event of a hook, but {others} of processes (exec, exit ...)" if others else "holds no event of a hook"
    return f"{holds}: that policies stay quiet on it proves nothing" + (f" ({why})" if why else "")
