# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Policies that are told what the whole recording shows of a process, and not only the event that they judge.

A first reading gathers it (see ``history``); it is needed only for filters on processes, and takes memory for every process
of the recording. What an event's process did not say is looked up when a filter asks for it, so that a replay still sees
which members of an event a verdict depends on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay import corpus
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.compile import SECTIONS, CompiledPolicy, Verdict
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.corpus import Recording
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.explain import HookExplanation
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.history import History
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.records import Hook, Invocation, Process
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.target import Target

_PROCESS_FILTERS = ("matchBinaries", "matchParentBinaries", "matchPIDs", "matchNamespaces", "matchCapabilities")
_decode = msgspec.json.Decoder(dict[str, Any]).decode


def compiled(
    documents: Sequence[Mapping[str, Any]],
    recordings: Sequence[Recording],
    recorders: Iterable[Mapping[str, Any]],
    target: Target,
) -> list[CompiledPolicy | WholePolicy]:
    """Policies ready for these recordings, which are read once first where that decides more. ``recorders``: the policies
    that recorded them."""
    hooks = recorded_hooks(recordings)
    plain = [CompiledPolicy(one, target, hooks) for one in documents]
    if not any(map(asks_for_history, documents)):
        return list(plain)
    history = gather(recordings, recorders)
    return [WholePolicy(policy, history) if asks_for_history(one) else policy for one, policy in zip(documents, plain, strict=True)]


def asks_for_history(document: Mapping[str, Any]) -> bool:
    """Whether a policy has a filter that a whole recording decides better than its events one by one."""
    spec = document["spec"]
    selectors = [one for section in SECTIONS for hook in spec.get(section) or () for one in hook.get("selectors") or ()]
    selectors += (spec.get("selectorsMacros") or {}).values()
    return any(one.get(key) for one in selectors for key in _PROCESS_FILTERS)


def recorded_hooks(recordings: Iterable[Recording]) -> frozenset[Hook]:
    """The hooks that the recordings' policies recorded, where these are known."""
    return frozenset(hook for one in recordings for declarations in one.context.recorders.values() for hook in declarations)


def gather(recordings: Sequence[Recording], recorders: Iterable[Mapping[str, Any]]) -> History:
    """Read all recordings once for what they show as a whole. Lines that are no events are left to the replay to count."""
    told = [one.context.executables for one in recordings if one.context.executables is not None]
    history = History(recorders, {name: file for known in told for name, file in known.items()} if told else None)
    for recording in recordings:
        try:
            with corpus.Lines(recording.path) as lines:
                for chunk in lines.batches(64):
                    for line in chunk:
                        _add(history, line)
        except corpus.READ_ERRORS:
            continue
    return history


def _add(history: History, line: bytes | None) -> None:
    if line and line.strip():
        try:
            history.add(_decode(line))
        except (msgspec.MsgspecError, ValueError, TypeError, AttributeError, KeyError, RecursionError):
            return


class WholePolicy:
    """A compiled policy over recordings of which the whole is known."""

    def __init__(self, policy: CompiledPolicy, history: History) -> None:
        self.name = policy.name
        self._policy = policy
        self._history = history

    @property
    def hooks(self) -> Collection[Hook]:
        return self._policy.hooks

    def evaluate(self, invocation: Invocation) -> list[Verdict]:
        """See ``CompiledPolicy.evaluate``."""
        return self._policy.evaluate(_Call(invocation, self._history))  # type: ignore[arg-type]

    def explain(self, invocation: Invocation) -> tuple[HookExplanation, ...]:
        """See ``CompiledPolicy.explain``."""
        return self._policy.explain(_Call(invocation, self._history))  # type: ignore[arg-type]


class _Call:
    """An invocation whose process knows more."""

    __slots__ = ("_plain", "hook", "process")

    def __init__(self, plain: Invocation, history: History) -> None:
        self._plain = plain
        self.hook = plain.hook
        self.process = _Process(plain.process, plain, history)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plain, name)


class _Process:
    """A process that looks up what is asked for; each answer, once found, is kept for the call."""

    def __init__(self, plain: Process, call: Invocation, history: History) -> None:
        self._plain = plain
        self._call = call
        self._history = history

    def __getattr__(self, name: str) -> Any:
        value = self._find(name)
        self.__dict__[name] = value
        return value

    def _find(self, name: str) -> Any:
        history, plain = self._history, self._plain
        if name in history.CONSTANT:
            known = history.constant(plain.exec_id)
            found = known.get(name) if known else None
            return getattr(plain, name) if found is None and (not known or name != "parent_executable") else found
        if name in ("capabilities", "current_capabilities"):
            masks = None
            if plain.in_container is False and history.shows_credentials(self._call.hook):
                masks = history.capabilities(plain.exec_id, self._call.time, plain.thread)
            return getattr(plain, name) if masks is None else masks if name == "capabilities" else True
        if name == "current_namespaces":
            shown = history.shows_namespaces(self._call.hook) and history.stays(plain.exec_id, self._call.time)
            return shown or plain.current_namespaces
        return getattr(plain, name)
