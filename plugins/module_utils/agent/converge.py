# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Bring a host's policies to a bundle without a moment in which less is enforced than before or after.

The order is the one measured to be free of gaps and of wrong denials: load the new beside the old (in monitor), read
it back, write the files, flip all modes in one process (new to enforce, then old to monitor), make the files live,
delete the old, clear stale override entries, read everything back. Any failure undoes what was done.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Set, Tuple

from ansible_collections.apiary.tetragon.plugins.module_utils.agent import bpf, break_glass
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.binaries import Survey, survey
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.pins import PinDirectory
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.plan import Plan, Wanted, mismatches, plan, wanted_files
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.policyset import PolicySet
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.process import Life
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.slots import with_mode
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.state import State, StateFile
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.tetra import Key, LoadedPolicy, Tetra, TetraError, TetraMissing

_FAILURES = (TetraError, bpf.BpfError, OSError, ValueError)
# Policy -> map -> entries that no thread will ever consume.
Left = Dict[Key, Dict[str, Set[bytes]]]


class ConvergeError(Exception):
    """The host does not run the bundle. ``restored`` says whether it is as it was before."""

    def __init__(self, message: str, restored: bool) -> None:
        super().__init__(message)
        self.restored = restored


class _Step(ValueError):
    pass


@dataclass
class Host:
    """The parts of one host that a run works on. ``uptime`` is the running agent's age in seconds, None when unknown."""

    tetra: Tetra
    pins: PinDirectory
    files: PolicySet
    state: StateFile
    uptime: Callable[[], Optional[float]] = lambda: None
    start_grace: float = 600.0
    life: Callable[[], Life] = Life


@dataclass
class Result:
    """What was done (or, in check mode, would be), and the managed policies before and after as ``name: mode``."""

    changed: bool
    actions: List[Dict[str, str]] = field(default_factory=list)
    before: Dict[str, str] = field(default_factory=dict)
    after: Dict[str, str] = field(default_factory=dict)
    warnings: List[str] = field(default_factory=list)


def converge(host: Host, wanted: Sequence[Wanted], bundle: str, check: bool = False, lift: bool = False) -> Result:
    """Make this host run exactly ``wanted`` beside whatever is not managed. Raises ConvergeError.

    Policies that break-glass holds stay in monitor until a run is told to ``lift`` it.
    """
    names = [policy.key for policy in wanted]
    twice = sorted({name for namespace, name in names if names.count((namespace, name)) > 1})
    if twice:
        raise ConvergeError("wanted twice: {0}; every policy may stand once".format(", ".join(twice)), True)
    held = break_glass.record(host.state.directory)
    if held and not lift:
        wanted = [_eased(policy) if break_glass.names(held["policies"], policy.name) else policy for policy in wanted]
    try:
        if check:
            result = _predict(host, wanted, bundle)
        else:
            with host.state.lock():
                result = _Run(host, wanted, bundle).execute()
                if lift:
                    break_glass.lift(host.state.directory)
    except _FAILURES as error:  # what fails once a change has begun is undone, and told, where it happens
        raise ConvergeError(str(error), True) from None
    if held and lift:
        result.changed = True
        result.actions.append({"action": "lift break-glass", "policy": ", ".join(held["policies"])})
    elif held:
        result.warnings.append(
            "BREAK-GLASS since {0}: NOT ENFORCING {1}; lift it with lift_break_glass".format(held["time"], ", ".join(held["policies"]))
        )
    return result


def _eased(policy: Wanted) -> Wanted:
    return replace(policy, mode="monitor", text=with_mode(policy.text, "monitor") or policy.text)


def _predict(host: Host, wanted: Sequence[Wanted], bundle: str) -> Result:
    state, warnings = host.state.read(), []
    try:
        loaded = host.tetra.policies()
    except TetraMissing as error:
        loaded = []
        warnings.append("{0}; in check mode the host counts as running no policies".format(error))
    found = _survey(wanted, loaded, state, host.life())
    steps = plan(wanted, loaded, state.policies, host.files.read(), found.replaced)
    left = _left(host, wanted, loaded, state)
    result = _describe(steps, wanted, loaded, state, found, left)
    result.warnings = [*warnings, *_replaced(found), *_filling(left)]
    result.changed = not steps.empty or bool(left) or state.pending or state.bundle != bundle
    return result


def _left(host: Host, wanted: Sequence[Wanted], loaded: Sequence[LoadedPolicy], state: State) -> Left:
    """What threads that are gone have left in the maps of managed policies that enforce; of maps out of reach, an observation tells."""
    managed = {policy.key for policy in wanted} | state.policies
    found = {}
    for key in sorted(policy.key for policy in loaded if policy.enforces and policy.key in managed):
        with suppress(bpf.BpfError):
            entries = bpf.abandoned(host.pins.override_tasks(key))
            if entries:
                found[key] = entries
    return found


def _filling(left: Left) -> List[str]:
    return [
        "{0}: {1} verdicts on threads that are gone were in its map, and full it would deny nothing: see to it that no two policies "
        "override one function".format(key[1], sum(map(len, entries.values())))
        for key, entries in left.items()
    ]


def _survey(wanted: Sequence[Wanted], loaded: Sequence[LoadedPolicy], state: State, life: Life) -> Survey:
    """The files of all wanted policies' uprobes; only a policy that is loaded can sit in another one."""
    found = survey({policy.key: policy.binaries for policy in wanted}, state.binaries, state.life, life)
    there = {policy.key for policy in loaded}
    return replace(found, replaced={key: paths for key, paths in found.replaced.items() if key in there})


def _replaced(found: Survey) -> List[str]:
    """A warning for each policy whose uprobes sit in a file that is not there any more."""
    return [
        "{0} watched and enforced nothing in {1}, replaced since it was loaded: it is loaded again".format(key[1], ", ".join(paths))
        for key, paths in sorted(found.replaced.items())
    ]


def _describe(steps: Plan, wanted: Sequence[Wanted], loaded: Sequence[LoadedPolicy], state: State, found: Survey, left: Left) -> Result:
    actions = [{"action": "purge", "policy": key[1]} for key in left]
    actions += [{"action": "clear", "policy": key[1]} for key in steps.clear]
    actions += [{"action": "add", "policy": policy.name} for policy in steps.add]
    actions += [{"action": mode, "policy": key[1]} for key, mode in steps.flip]
    actions += [{"action": "write", "policy": ""}] if steps.write else []
    actions += [{"action": "remove", "policy": key[1]} for key in steps.remove]
    managed = {policy.key for policy in wanted} | state.policies
    return Result(
        changed=False,
        actions=actions,
        before={
            policy.name: "binary replaced"
            if policy.key in found.replaced
            else _state_and_mode(policy) + (", its map fills" if policy.key in left else "")
            for policy in loaded
            if policy.key in managed
        },
        after={policy.name: policy.mode for policy in wanted},
    )


def _state_and_mode(policy: LoadedPolicy) -> str:
    if policy.state != "enabled":
        return policy.state
    return "monitor" if policy.mode == "monitor_only" else policy.mode


def load_policy(tetra: Tetra, key: Key, path: str, mode: str) -> None:
    """Add one policy. Where the call ends badly, what the agent lists decides, once it has settled. Raises ValueError."""
    try:
        tetra.add(path, mode)
        return
    except TetraError as error:
        refusal = str(error)
    deadline = time.monotonic() + tetra.timeout
    while True:
        try:
            listed = {one.key: one for one in tetra.policies()}.get(key)
        except TetraError as error:
            raise _Step("policy {0}: the agent was given it and does not answer any more: {1}".format(key[1], error)) from None
        if listed is not None and listed.state == "enabled":
            return
        if listed is None or listed.state != "loading":
            raise _Step("policy {0}: {1}".format(key[1], (listed and listed.error) or refusal or "the agent did not load it"))
        if time.monotonic() > deadline:
            raise _Step("policy {0}: still loading after {1} seconds".format(key[1], tetra.timeout))
        time.sleep(0.2)


def set_modes(changes: Sequence[Tuple[PinDirectory, Tetra, Key, str]]) -> None:
    """Set modes in this order from one process through the pinned maps; by the client where they are out of reach."""
    if not changes:
        return
    try:
        bpf.set_modes([(pins.policy_conf(key), mode) for pins, _tetra, key, mode in changes])
    except bpf.BpfError:
        for _pins, tetra, key, mode in changes:
            tetra.set_mode(key, mode)


class _Run:
    """One change of one host, with what is needed to undo it."""

    def __init__(self, host: Host, wanted: Sequence[Wanted], bundle: str) -> None:
        self.host = host
        self.wanted = wanted
        self.bundle = bundle
        self.warnings: List[str] = []

    def execute(self) -> Result:
        host = self.host
        self.state = host.state.read()
        self.files = host.files.read()
        self.loaded = self._settled_list()
        life = host.life()
        self.found = _survey(self.wanted, self.loaded, self.state, life)
        self.life = life.id if self.found.current else ""
        self.steps = plan(self.wanted, self.loaded, self.state.policies, self.files, self.found.replaced)
        left = _left(host, self.wanted, self.loaded, self.state)
        result = _describe(self.steps, self.wanted, self.loaded, self.state, self.found, left)
        result.warnings = self.warnings
        self.warnings += _replaced(self.found) + _filling(left)
        for entries in left.values():
            bpf.delete(entries)
        if self.steps.empty and not self.state.pending and self.state.bundle == self.bundle:
            result.changed = bool(left)
            settled = replace(self.state, binaries=self.found.current, life=self.life, triggers=self._triggers())
            if settled != self.state:  # the agent has started anew, or a former version of this collection was here
                host.state.write(settled)
            host.files.discard()  # a run that was killed at its very end may have left the former set staged
            return result
        try:
            self._change()
        except _FAILURES as error:
            problems = self._undo()
            tail = "; the host is as before" if not problems else "; and it could not be put back: " + "; ".join(problems)
            raise ConvergeError("{0}{1}".format(error, tail), not problems) from None
        result.changed = True
        return result

    def _triggers(self) -> Dict[Key, Mapping[str, Any]]:
        return {policy.key: policy.trigger for policy in self.wanted if policy.trigger}

    def _settled_list(self) -> List[LoadedPolicy]:
        """The list once the agent has finished what it is loading.

        A starting agent answers before it has read its policy directory; adding then what it is about to load makes it
        stop on the duplicate.
        """
        expected = {name[2 : -len(".yaml")] for name in self.files}
        deadline = time.monotonic() + self.host.tetra.timeout
        while True:
            listed = self.host.tetra.policies()
            missing = expected - {".".join(part for part in policy.key if part) for policy in listed}
            uptime = self.host.uptime()
            starting = bool(missing) and uptime is not None and uptime < self.host.start_grace
            if not starting and not any(policy.state in ("loading", "unloading") for policy in listed):
                return listed
            if time.monotonic() > deadline:
                what = ", ".join(sorted(missing) or [policy.name for policy in listed if policy.state in ("loading", "unloading")])
                raise _Step("the agent is still loading policies after {0} seconds: {1}".format(self.host.tetra.timeout, what))
            time.sleep(0.5)

    def _change(self) -> None:
        host, steps = self.host, self.steps
        keys = self.state.policies | {policy.key for policy in self.wanted}
        left = {key: self.state.binaries.get(key, ()) if key in self.found.replaced else files for key, files in self.found.current.items()}
        triggers = {**self.state.triggers, **self._triggers()}
        host.state.write(State(self.state.bundle, True, frozenset(keys), left, self.life, triggers))
        host.files.stage(wanted_files(self.wanted))
        for key in steps.clear:
            host.tetra.delete(key)
        for policy in steps.add:
            self._load(policy, os.path.join(host.files.staged, policy.file))
        self._flip(steps.flip)
        self._require()
        if steps.write:
            host.files.swap()
        for key in steps.remove:
            self._delete(key)
        self._purge([policy.key for policy in self.wanted if policy.mode == "enforce" and policy.overrides])
        self._require()
        keys = frozenset(policy.key for policy in self.wanted)
        host.state.write(State(self.bundle, False, keys, self.found.current, self.life, self._triggers()))
        host.files.discard()

    def _load(self, policy: Wanted, path: str) -> None:
        load_policy(self.host.tetra, policy.key, path, "monitor")

    def _delete(self, key: Key) -> None:
        try:
            self.host.tetra.delete(key)
        except TetraError:
            if key in {policy.key for policy in self.host.tetra.policies()}:
                raise

    def _flip(self, changes: Sequence[Tuple[Key, str]]) -> None:
        """Set all modes from this one process through the pinned maps; by the client where the maps are out of reach."""
        set_modes([(self.host.pins, self.host.tetra, key, mode) for key, mode in changes])

    def _require(self) -> None:
        wrong = mismatches(self.wanted, self.host.tetra.policies())
        if wrong:
            raise _Step("the agent does not run what it was given: " + "; ".join(wrong))

    def _purge(self, keys: Sequence[Key]) -> None:
        """Clear what an overlap of enforcing copies left in the maps of those that stay."""
        overlapped = any(mode == "monitor" for _key, mode in self.steps.flip)
        if not overlapped and not self.state.pending:
            return
        paths = [path for key in keys for path in self.host.pins.override_tasks(key)]
        try:
            purged = bpf.purge_stale(paths)
        except bpf.BpfError as error:
            self.warnings.append("stale override entries could not be looked for: {0}".format(error))
            return
        if purged:
            self.warnings.append("{0} stale override entries were cleared".format(purged))

    def _undo(self) -> List[str]:
        """Put the host back to what it ran before, best effort; returns what could not be done."""
        host, problems = self.host, []
        managed = [policy for policy in self.loaded if policy.key in self.state.policies and policy.state == "enabled"]

        def attempt(action: Callable[[], None]) -> bool:
            try:
                action()
            except _FAILURES as error:
                problems.append(str(error))
                return False
            return True

        listed: Dict[Key, LoadedPolicy] = {}
        attempt(lambda: listed.update({policy.key: policy for policy in host.tetra.policies()}))
        if problems:
            return problems
        for key in [key for key in self.found.replaced if key in listed and listed[key].state != "enabled"]:
            attempt(lambda key=key: self._delete(key))  # type: ignore[misc]
            del listed[key]
        lost = [policy for policy in managed if policy.key not in listed]
        gone = {policy.key for policy in lost if not attempt(lambda policy=policy: self._reload(policy))}  # type: ignore[misc]
        back = [(policy.key, "enforce") for policy in managed if policy.mode == "enforce" and policy.key not in gone]
        new = [policy.key for policy in self.steps.add if policy.key in listed and policy.key not in self.found.replaced]
        demoted = [(key, "monitor") for key in new if listed[key].enforces]
        eased = [(policy.key, "monitor") for policy in managed if policy.mode == "monitor" and listed.get(policy.key, policy).enforces]
        attempt(lambda: self._flip(back + demoted + eased))
        attempt(self._restore_files)
        for key in new:
            attempt(lambda key=key: self._delete(key))  # type: ignore[misc]
        self.state = replace(self.state, pending=True)
        attempt(lambda: self._purge([key for key, _mode in back]))
        attempt(host.files.discard)
        if not problems:
            attempt(self._restore_state)
        return problems

    def _restore_files(self) -> None:
        if self.host.files.read() != self.files:
            self.host.files.swap()

    def _restore_state(self) -> None:
        """Written only where it changed: a disk that took no change has no room for the former state either."""
        former = replace(self.state, pending=False)
        if self.host.state.read() != former:
            self.host.state.write(former)

    def _reload(self, policy: LoadedPolicy) -> None:
        """Load a policy that the failed run had deleted, from the former set of files."""
        name = ".".join(part for part in policy.key if part) + ".yaml"
        texts = [text for file, text in self.files.items() if file[2:] == name]
        if not texts:
            raise _Step("policy {0} was deleted and its file is not there to load it again".format(policy.name))
        path = os.path.join(self.host.state.directory, "restore.yaml")
        try:
            with open(path, "w", encoding="utf-8") as file:
                file.write(texts[0])
            self._load(Wanted(policy.name, "monitor", texts[0], policy.namespace), path)
        finally:
            if os.path.exists(path):
                os.unlink(path)
