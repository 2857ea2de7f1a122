# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""What policies say of events, kept: most events of a recording ask what others asked before them.

An evaluation notes which attributes of the invocation it reads; verdicts are kept under the raw JSON of all that any policy
has read at that hook, and forgotten when a policy reads more. Two events with the same key thus give every policy the same to
read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter, itemgetter
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay import events
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.compile import CompiledPolicy, Verdict
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.processes import LACKS_OWN_FILE, LACKS_PARENTS_FILE
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.records import Invocation, Process
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.results import Said

MAX_KEPT = 1 << 16


class _WatchedProcess(Process):
    """A process that holds what policies are known to read, and notes when they read more."""

    __slots__ = ("_plain", "_reads")
    _plain: Process
    _reads: set[str]

    def __getattr__(self, name: str) -> Any:
        self._reads.add(name)
        return getattr(self._plain, name)


class _WatchedInvocation(Invocation):
    """An invocation that holds what all events of its hook and recorder share, and its process, and notes what else is read."""

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
    put(invocation, "granted", plain.granted)
    put(invocation, "process", process)
    return invocation


States = tuple[tuple[int, bool | None], ...]


class Answer:
    """What all policies say of events that are alike, and how many of those one file holds."""

    __slots__ = ("count", "fired", "lacks_file", "lacks_parents", "said", "size", "sources", "states", "table")

    def __init__(self, table: Table, states: States, said: tuple[Said, ...]) -> None:
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


class Table:
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
        self.kept: dict[Any, Answer] = {}
        self._former: dict[Any, Answer] = {}
        self._plans: dict[Any, _Plan] = {}
        self._states: dict[States, States] = {}  # one object for those that are equal

    def answer(self, body: events.Body, key: Any, time: str) -> Answer:
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

    def _judged(self, body: events.Body, time: str) -> Answer:
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
        return Answer(self, self._states.setdefault(states, states), tuple(said for one in judged for said in one[2]))

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
