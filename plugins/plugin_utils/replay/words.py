# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""One event and one policy in words: why it fires, stays quiet, or cannot be decided, filter by filter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import refuse
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay import corpus, events
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.corpus import Recording
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.explain import (
    FilterExplanation,
    HookExplanation,
    OutcomeExplanation,
    SelectorExplanation,
)
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.records import Hook, Invocation

MAX_VALUES = 5
_SAYS = {True: "FIRES", False: "stays quiet", None: "CANNOT BE DECIDED"}
_HOLDS = {True: "yes", False: "no", None: "unknown"}


class Explains(Protocol):
    """A policy ready for evaluation. ``hooks``: what it watches, as the recording holds it."""

    name: str
    hooks: Mapping[Hook, Any]

    def explain(self, invocation: Invocation) -> tuple[HookExplanation, ...]: ...


@dataclass(frozen=True)
class Explained:
    """What one policy does with one event. Without ``hooks`` it is none of the hooks that the policy ``watches``."""

    policy: str
    hooks: tuple[HookExplanation, ...]
    watches: tuple[str, ...]


def find(place: str, recordings: Sequence[Recording]) -> Invocation:
    """The event at ``<file>:<line>`` of these recordings; the end of a path will do where it is one file's. Raises Refused when
    there is none."""
    file, _colon, number = place.rpartition(":")
    if not file or not number.isdecimal() or not int(number):
        raise refuse(f"is {place!r}; needed: <file>:<line>, such as recording/host1.jsonl.gz:812", path="apiary_explain")
    wanted = Path(file).resolve()
    alike = [one for one in recordings if one.path.parts[-len(Path(file).parts) :] == Path(file).parts]
    recording = next((one for one in recordings if one.path.resolve() == wanted), alike[0] if len(alike) == 1 else None)
    if recording is None:
        known = ", ".join(str(one.path) for one in recordings[:MAX_VALUES])
        raise refuse(f"is no recording of apiary_corpus; there are: {known}", file=file, path="apiary_explain")
    try:
        found = events.decode(_line(recording.path, int(number)), recording.context, (file, int(number)))
    except corpus.READ_ERRORS as error:
        raise refuse(f"cannot be read: {error}", file=file, line=int(number)) from None
    except events.DECODE_ERRORS as error:
        raise refuse(f"is no event: {error}", file=file, line=int(number)) from None
    if found is None:
        raise refuse("is an event of no hook (exec, exit ...): policies do not judge it", file=file, line=int(number))
    return found


def _line(path: Path, wanted: int) -> bytes:
    number = 0
    with corpus.Lines(path) as lines:
        for number, line in enumerate(lines, 1):
            if number == wanted:
                return line
    raise refuse(f"has only {number} lines", file=str(path), line=wanted)


def explain(invocation: Invocation, policies: Sequence[Explains]) -> list[Explained]:
    """What every policy does with one event."""
    return [Explained(policy.name, policy.explain(invocation), tuple(map(str, policy.hooks))) for policy in policies]


def as_json(invocation: Invocation, explained: Sequence[Explained]) -> dict[str, Any]:
    """The explanation as data; docs/replay.md describes it."""
    process = invocation.process
    return {
        "event": {
            "file": invocation.source[0],
            "line": invocation.source[1],
            "time": invocation.time,
            "hook": str(invocation.hook),
            "exec_id": process.exec_id,
            "binary": process.binary,
        },
        "policies": {one.policy: [asdict(hook) for hook in one.hooks] for one in explained},
    }


def lines(invocation: Invocation, explained: Sequence[Explained]) -> Iterator[str]:
    """The explanation for a person."""
    file, number = invocation.source
    yield f"  {file}:{number}: {invocation.hook} by {invocation.process.binary or '?'} (pid {invocation.process.pid}) at {invocation.time}"
    for one in explained:
        if not one.hooks:
            yield f"  {one.policy} stays quiet: it watches {_some(one.watches) or 'hooks of a generated list'}, not this"
        for hook in one.hooks:
            yield f"  {one.policy} {_SAYS[hook.fires]}: {_verdict(hook)}"
            yield from (f"    {text}" for text in _hook(hook))


def _verdict(hook: HookExplanation) -> str:
    where = f"{hook.section}[{hook.index}], {hook.hook}, mode {hook.mode}"
    if len(hook.outcomes) == 1:
        return f"{_outcome(hook.outcomes[0])} ({where})"
    return f"{', or '.join(_outcome(one) for one in hook.outcomes)} ({where})"


def _outcome(outcome: OutcomeExplanation) -> str:
    if outcome.selector is None:
        return "an event for every call" if outcome.posts else "no selector matches"
    effects = f"; in force: {', '.join(outcome.effects)}" if outcome.effects else ""
    posts = "an event" if outcome.posts else "no event"
    limited = ", unless its rate limit holds it back" if outcome.posts and outcome.rate_limited else ""
    return f"selector {outcome.selector} wins: {', '.join(outcome.actions)}{effects}; {posts}{limited}"


def _hook(hook: HookExplanation) -> Iterator[str]:
    if hook.recorded != hook.hook:
        yield f"recorded at {hook.recorded}: {hook.equivalence}"
    yield from (f"undecided, as {reason}" for reason in hook.reasons)
    if hook.workload is not None:
        yield f"workload: {_filter(hook.workload)}"
    for selector in hook.selectors:
        yield from _selector(selector)
    yield from (f"note: {caveat}" for caveat in hook.caveats)


def _selector(selector: SelectorExplanation) -> Iterator[str]:
    verdict = {True: "matches", False: "does not match", None: "is undecided"}[selector.value]
    unreached = " (not looked at: one before it has won)" if not selector.reached else ""
    yield f"selector {selector.index} {verdict}{unreached}" + ("" if selector.filters else ": it has no filters")
    yield from (f"  {_filter(one)}" for one in selector.filters)
    yield from (f"  on return: {_filter(one)}" for one in selector.return_filters)


def _filter(one: FilterExplanation) -> str:
    wanted = " ".join(part for part in (one.operator, _some(one.values)) if part)
    found = "the recording does not say" if one.found is None else f"it is {one.found or 'empty'}"
    why = f" ({'; '.join(one.reasons)})" if one.reasons else ""
    return f"{_HOLDS[one.value]:<7} {one.kind}, {one.subject}: {wanted}: {found}{why}"


def _some(values: Sequence[str]) -> str:
    return ", ".join(values[:MAX_VALUES]) + (f" and {len(values) - MAX_VALUES} more" if len(values) > MAX_VALUES else "")
