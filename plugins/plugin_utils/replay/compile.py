# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""A TracingPolicy compiled into one evaluator per hook, after the matching rules of the real agent.

Rule ids (R1.3, R2.2.1 ...) in comments name the behaviour of the agent that a line follows. Evaluation is a pure function
of the invocation.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay import arguments, equivalences, layout
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.arguments import addressed, addressed_data
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.equivalences import Equivalence
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.explain import (
    FilterExplanation,
    HookExplanation,
    OutcomeExplanation,
    SelectorExplanation,
)
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.processes import (
    Filter,
    Predicate,
    process_filters,
    tokens,
    workload,
)
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.records import (
    Declared,
    Hook,
    Invocation,
    call_context,
    declared,
    hook_name,
)
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.target import DEFAULT, KPROBE_MULTI, Target
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.truth import FALSE, TRUE, Truth, all_of, truth, unknown

__all__ = [
    "ENFORCING",
    "SECTIONS",
    "CompiledHook",
    "CompiledPolicy",
    "Outcome",
    "Selector",
    "Verdict",
    "addressed",
    "addressed_data",
    "identities",
    "recorder",
]

ENFORCING = frozenset(["Sigkill", "Signal", "Override", "NotifyEnforcer", "Set"])
SECTIONS: Mapping[str, str] = {
    "kprobes": "kprobe",
    "fentries": "kprobe",
    "tracepoints": "tracepoint",
    "lsmhooks": "lsm",
    "uprobes": "uprobe",
    "usdts": "usdt",
}
_RETURNING = frozenset(["kprobes", "fentries", "uprobes"])
_MAX_SELECTORS, _MAX_ACTIONS, _MAX_FILTERS = 5, 3, 5
# Where actions that change something do so (R3.6 and the table of actions); Sigkill and Signal do everywhere.
_EFFECTIVE: Mapping[str, frozenset[str]] = {
    "Override": frozenset(["kprobes", "lsmhooks", "uprobes"]),
    "NotifyEnforcer": frozenset(["kprobes", "tracepoints"]),
    "Set": frozenset(["usdts"]),
}
_ON_RETURN = frozenset(["Sigkill", "Signal"])
_LSM_ACTIONS = frozenset(["Sigkill", "Signal", "NoPost", "Override", "Post"])
_UNTIL_1_7 = frozenset(["FollowFD", "UnfollowFD", "CopyFD"])
_RETURN_CAVEAT = (
    "the return side reads memory that other hooks of the policy may have changed: rarely it starts at another selector, or none"
)
_MODE_CAVEAT = "Sigkill and Signal in matchReturnActions are carried out in monitor mode too"
_MISPARSED = "below kernel 5.11 an action behind Post is misread"


@dataclass(frozen=True, slots=True)
class Action:
    name: str
    rate_limited: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What happens when this selector wins (None: no selector does): is an event posted, which actions run.

    ``actions`` are those of the entry, then those of the return: ``returned`` says how many of them. ``effects`` are the
    actions that change something on the host, given the policy's mode and the kind of hook (R3.9, R3.10).
    """

    selector: int | None
    posts: bool
    rate_limited: bool
    actions: tuple[str, ...]
    returned: int = 0
    effects: tuple[str, ...] = ()

    @property
    def enforces(self) -> bool:
        return any(action in ENFORCING for action in self.actions)

    @property
    def action(self) -> str:
        """The one that the exported event names: the last that ran on entry (R3.2)."""
        return self.actions[len(self.actions) - self.returned - 1] if len(self.actions) > self.returned else ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one policy hook does with one invocation.

    ``fires`` says whether an event is posted (a rate limit aside); ``outcomes`` holds every outcome the recording
    leaves possible, one when all is known. ``caveats`` are what the agent may do otherwise, whatever the verdict.
    """

    hook: Hook
    fires: Truth
    outcomes: tuple[Outcome, ...]
    caveats: tuple[str, ...] = ()

    @property
    def enforces(self) -> Truth:
        answers = {outcome.enforces for outcome in self.outcomes}
        return truth(answers.pop()) if len(answers) == 1 else Truth(None, self.fires.reasons)

    @property
    def posts(self) -> Truth:
        """Whether the agent exports an event: ``fires``, but undecidable where a rate limit may withhold it (R3.7)."""
        if self.fires.value is True and any(outcome.rate_limited for outcome in self.outcomes):
            return unknown("matches; a rate limit may withhold the event")
        return self.fires


_QUIET = Outcome(None, False, False, ())
_POSTED = Outcome(None, True, False, ("Post",))


@dataclass(frozen=True, slots=True)
class Selector:
    """One compiled selector: both sides of a return probe share its index.

    ``matches`` is all of ``process`` and ``arguments`` together. ``won`` is what may happen where it wins; more than one
    where the agent's reading of the actions is not certain, and ``doubt`` then says why.
    """

    process: tuple[Filter, ...]
    arguments: tuple[Filter, ...]
    on_return: tuple[Filter, ...]
    matches: Predicate
    survives: Predicate
    returns: Predicate
    actions: tuple[Action, ...]
    return_actions: tuple[Action, ...]
    won: tuple[Outcome, ...]
    doubt: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class CompiledHook:
    """One hook entry of a policy. ``index`` is its position in its section.

    ``via`` is the equivalence that lets another hook's recording decide. ``refused`` says why the agent does not load
    the policy or misreads this hook: then nothing is decided. ``doubt`` says why a call may not reach the hook at all:
    then only that it stays quiet is decided.
    """

    hook: Hook
    index: int
    workload: Filter | None
    selectors: tuple[Selector, ...]
    has_return: bool
    section: str = "kprobes"
    mode: str = "enforce"
    via: Equivalence | None = None
    refused: str = ""
    doubt: str = ""
    caveats: tuple[str, ...] = ()

    def evaluate(self, invocation: Invocation) -> Verdict:
        """Ordered, short-circuited OR over the selectors (R1.3), with what is undecidable kept apart (R1.9)."""
        if self.refused:
            return Verdict(self.hook, unknown(self.refused), (_POSTED, _QUIET), self.caveats)
        applies = TRUE if self.workload is None else self.workload.match(invocation)
        if applies.value is False:
            return Verdict(self.hook, FALSE, (_QUIET,), self.caveats)
        outcomes, reasons = self._selected(invocation)
        if applies.value is None:
            outcomes, reasons = [*outcomes, _QUIET], reasons | applies.reasons
        doubt = self._doubted(invocation)
        if doubt and any(outcome is not _QUIET for outcome in outcomes):
            outcomes, reasons = [*outcomes, _QUIET], reasons | {doubt}
        unique = tuple(dict.fromkeys(outcomes))
        posts = {outcome.posts for outcome in unique}
        fires = truth(posts.pop()) if len(posts) == 1 else Truth(None, frozenset(reasons))
        return Verdict(self.hook, fires, unique, self.caveats)

    def _doubted(self, invocation: Invocation) -> str:
        if self.via is not None and not self.via.reached and invocation.returned != 0:
            return f"{self.via.recorded} was recorded, and {self.hook} is reached only if no module before it denies"
        return self.doubt

    def _selected(self, invocation: Invocation) -> tuple[list[Outcome], frozenset[str]]:
        if not self.selectors:  # R1.5, R1.6
            return [_QUIET if self.section == "lsmhooks" else _POSTED], frozenset()
        outcomes: list[Outcome] = []
        reasons: frozenset[str] = frozenset()
        for index, selector in enumerate(self.selectors):
            matched = selector.matches(invocation)
            if matched.value is False:
                continue
            outcome, why = self._acted(index, selector, invocation)
            outcomes += outcome
            reasons |= why | matched.reasons
            if matched.value is True:
                return outcomes, reasons
        return [*outcomes, _QUIET], reasons

    def _acted(self, index: int, entered: Selector, invocation: Invocation) -> tuple[Sequence[Outcome], frozenset[str]]:
        """R1.10: an event needs both halves, and entry actions run whatever is returned.

        The return side starts at the selector that won on entry and goes on to later ones whose process filters hold,
        until one's matchReturnArgs do.
        """
        if not self.has_return:
            return entered.won, entered.doubt
        outcomes: list[Outcome] = []
        reasons = set(entered.doubt)
        for later in range(index, len(self.selectors)):
            selector = self.selectors[later]
            back = selector.returns(invocation)
            if later > index and back.value is not False:
                back = all_of((selector.survives(invocation), back))
            if back.value is False:
                continue
            reasons |= back.reasons
            outcomes += [self._both(one, selector) for one in entered.won]
            if back.value is True:
                return outcomes, frozenset(reasons)
        quiet = [Outcome(one.selector, False, one.rate_limited, one.actions, 0, one.effects) for one in entered.won]
        return [*outcomes, *quiet], frozenset(reasons)

    @staticmethod
    def _both(entry: Outcome, back: Selector) -> Outcome:
        posts, limited, names = _act(back.return_actions)
        effects = entry.effects + tuple(name for name in names if name in _ON_RETURN)
        return Outcome(entry.selector, entry.posts and posts, entry.rate_limited or limited, entry.actions + names, len(names), effects)

    def explain(self, invocation: Invocation) -> HookExplanation:
        """What was compared with what. Every filter is judged, also where an earlier one has decided."""
        verdict = self.evaluate(invocation)
        selectors, over = [], False
        for index, one in enumerate(self.selectors):
            matched = one.matches(invocation)
            selectors.append(
                SelectorExplanation(
                    index=index,
                    reached=not over,
                    value=matched.value,
                    reasons=tuple(sorted(matched.reasons)),
                    filters=tuple(_told(part, invocation) for part in (*one.process, *one.arguments)),
                    return_filters=tuple(_told(part, invocation) for part in one.on_return),
                    actions=_act(one.actions)[2],
                    return_actions=_act(one.return_actions)[2] if self.has_return else (),
                )
            )
            over = over or matched.value is True
        return HookExplanation(
            hook=str(self.hook),
            section=self.section,
            index=self.index,
            recorded=str(invocation.hook),
            equivalence=self.via.source if self.via else "",
            mode=self.mode,
            workload=_told(self.workload, invocation) if self.workload else None,
            selectors=tuple(selectors),
            fires=verdict.fires.value,
            reasons=tuple(sorted(verdict.fires.reasons)),
            outcomes=tuple(OutcomeExplanation(o.selector, o.posts, o.rate_limited, o.actions, o.effects) for o in verdict.outcomes),
            caveats=verdict.caveats,
        )


def _told(one: Filter, invocation: Invocation) -> FilterExplanation:
    said = one.match(invocation)
    return FilterExplanation(
        one.kind, one.subject, one.operator, one.values, one.found(invocation), said.value, tuple(sorted(said.reasons))
    )


def _act(actions: Sequence[Action]) -> tuple[bool, bool, tuple[str, ...]]:
    """R3.1: every action posts unless NoPost stands among them; a rate limit may withhold the event."""
    names = tuple(action.name for action in actions) or ("Post",)
    return "NoPost" not in names, any(action.rate_limited for action in actions), names


class CompiledPolicy:
    """A policy ready for evaluation: its hooks by identity.

    ``target`` is the agent and kernel that it is judged for; ``mode`` overrides the policy's own, as loading it with a
    mode does. ``recorded``, the hooks that a recording holds, lets equivalent ones decide hooks that it does not hold.
    Reads no field without need: what the agent would refuse is undecidable, with the reason.
    """

    def __init__(
        self, document: Mapping[str, Any], target: Target = DEFAULT, recorded: Collection[Hook] = (), mode: str | None = None
    ) -> None:
        spec = document["spec"]
        self.name: str = document["metadata"]["name"]
        self.target = target
        self.mode = _mode(spec, mode)
        self.hooks: dict[Hook, list[CompiledHook]] = {}
        self._generated: list[tuple[str, CompiledHook]] = []
        self._reached: dict[Hook, tuple[CompiledHook, ...]] = {}
        where = workload(spec, document["metadata"].get("namespace"), target)
        lists = {one["name"]: one for one in spec.get("lists") or ()}
        shared = _collisions(spec, target)
        twice = _listed_twice(spec, target)
        several = [section for section in SECTIONS if spec.get(section)]
        for section, kind in SECTIONS.items():
            for index, raw in enumerate(spec.get(section) or ()):
                refused = f"one policy holds {' and '.join(several)}: the agent takes one kind of hook" if len(several) > 1 else ""
                entry = _Entry(raw, section, spec, lists, target, self.mode)
                refused = refused or entry.refused() or twice.get(section, "") or (shared if section == "kprobes" else "")
                for hook in identities(kind, raw, lists):
                    via = equivalences.chosen(hook, recorded) if recorded else None
                    made = entry.compiled(hook, index, where, via, refused)
                    self.hooks.setdefault(via.recorded if via else hook, []).append(made)
                for pattern, doubt in _generated(kind, raw, lists):
                    self._generated.append((pattern, entry.compiled(Hook(kind, pattern), index, where, None, refused, doubt)))

    def reached(self, hook: Hook) -> tuple[CompiledHook, ...]:
        """The hook entries of this policy that a call recorded at ``hook`` reaches."""
        found = self._reached.get(hook)
        if found is None:
            generated = [one for pattern, one in self._generated if hook.kind == "kprobe" and _fits(pattern, hook.name)]
            found = self._reached[hook] = (*self.hooks.get(hook, ()), *generated)
        return found

    def evaluate(self, invocation: Invocation) -> list[Verdict]:
        """One verdict per hook entry of the policy that this invocation reaches."""
        return [hook.evaluate(invocation) for hook in self.reached(invocation.hook)]

    def explain(self, invocation: Invocation) -> tuple[HookExplanation, ...]:
        """Why, for each verdict of ``evaluate``."""
        return tuple(hook.explain(invocation) for hook in self.reached(invocation.hook))


def _mode(spec: Mapping[str, Any], override: str | None) -> str:
    """R3.9, R3.10: without an enforcing action of its own (macros do not count) a policy only ever monitors."""
    sections = [section for section in SECTIONS if section != "fentries"]
    raws = (raw for section in sections for raw in spec.get(section) or ())
    actions = (one["action"] for raw in raws for selector in raw.get("selectors") or () for one in selector.get("matchActions") or ())
    if not ENFORCING & set(actions):
        return "monitor_only"
    options = {one["name"]: one.get("value", "") for one in spec.get("options") or ()}
    return override or str(options.get("policy-mode") or "enforce")


def _collisions(spec: Mapping[str, Any], target: Target) -> str:
    """R1.13: under kprobe-multi the hooks of a policy write their values into the same maps, and the last one wins."""
    raws = spec.get("kprobes") or ()
    if len(raws) < 2 or not _multi(spec, target):
        return ""
    macros = spec.get("selectorsMacros") or {}
    binaries, values = set(), set()
    expanded = [[_expanded(one, macros)[0] for one in raw.get("selectors") or ()] for raw in raws]
    for selectors in expanded:
        binaries.add(json.dumps([one.get("matchBinaries") for one in selectors] + [None] * (_MAX_SELECTORS - len(selectors))))
        shared = [
            (raw["operator"], raw.get("values"))
            for one in selectors
            for raw in one.get("matchArgs") or ()
            if raw["operator"] in arguments.SHARED_MAP_OPERATORS
        ]
        if shared:
            values.add(json.dumps(shared))
    if len(binaries) < 2 and len(values) < 2:
        return ""
    return "under kprobe-multi the hooks of this policy overwrite each other's values (disable-kprobe-multi)"


def _listed_twice(spec: Mapping[str, Any], target: Target) -> dict[str, str]:
    """By section, why a hook that stands in it twice is not decided (R5.7, and a defect of LSM hooks before 1.8)."""
    found = {}
    hooks = [raw["hook"] for raw in spec.get("lsmhooks") or ()]
    if len(set(hooks)) < len(hooks) and not target.is_main:
        found["lsmhooks"] = "of an LSM hook that is listed twice only the last entry's selectors apply before 1.8"
    calls = [hook_name(raw["call"]) for raw in spec.get("kprobes") or ()]
    if len(set(calls)) < len(calls) and _multi(spec, target):
        found["kprobes"] = "a function that is listed twice is refused under kprobe-multi"
    return found


def _multi(spec: Mapping[str, Any], target: Target) -> bool:
    options = {one["name"]: str(one.get("value", "")).lower() for one in spec.get("options") or ()}
    return KPROBE_MULTI in target.features and options.get("disable-kprobe-multi") not in ("1", "true")


def _expanded(plain: Mapping[str, Any], macros: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Any], str]:
    """A selector with its macros' filters added, and why the agent would refuse that (R1.14)."""
    selector, problem = {**plain}, ""
    for name in plain.get("macros") or ():
        if name not in macros:
            problem = f"macro {name!r} does not exist: the agent refuses the policy"
        for key, entries in macros.get(name, {}).items():
            if selector.get(key):
                problem = f"{key} is set twice, by the selector and by macro {name!r}: the agent refuses the policy"
            selector[key] = [*(selector.get(key) or ()), *entries]
    return selector, problem


class _Entry:
    """One hook entry while it is compiled."""

    def __init__(
        self,
        raw: Mapping[str, Any],
        section: str,
        spec: Mapping[str, Any],
        lists: Mapping[str, Mapping[str, Any]],
        target: Target,
        mode: str,
    ) -> None:
        self._raw, self._section, self._target, self._mode = raw, section, target, mode
        self._lists = lists
        both = [_expanded(plain, spec.get("selectorsMacros") or {}) for plain in raw.get("selectors") or ()]
        self._selectors = [selector for selector, _unused in both]
        self._problems = [problem for _unused, problem in both if problem]
        context = _context(raw, section, lists)
        self._args, self._data = declared(raw.get("args") or (), context), declared(raw.get("data") or (), context)
        copies = any(one.read == "returnCopy" for one in self._args)
        self._returns = section in _RETURNING and (bool(raw.get("return")) or copies)

    def refused(self) -> str:
        """Why the agent does not load this hook, or reads its selectors wrong; "" when it does neither (R1.11, R1.12, R3.6)."""
        return next(self._refusals(), "")

    def _refusals(self) -> Iterator[str]:
        yield from self._problems
        if len(self._selectors) > _MAX_SELECTORS:
            yield f"{len(self._selectors)} selectors: the agent takes {_MAX_SELECTORS}"
        size = layout.selector_bytes(self._selectors, self._args)
        if size > layout.MAX_SELECTOR_BYTES:
            yield f"selectors of {size} bytes: beyond {layout.MAX_SELECTOR_BYTES} the agent reads others than were written"
        most = _MAX_FILTERS if self._target.at_least("large") else 1
        for selector in self._selectors:
            actions = [one["action"] for one in selector.get("matchActions") or ()]
            filters_ = [*(selector.get("matchArgs") or ()), *(selector.get("matchData") or ())]
            if len(actions) > _MAX_ACTIONS:
                yield f"{len(actions)} actions: the agent takes {_MAX_ACTIONS}"
            if len(filters_) > most:
                yield f"{len(filters_)} filters on arguments: the agent takes {most}"
            if self._section == "lsmhooks" and (selector.get("matchReturnArgs") or not set(actions) <= _LSM_ACTIONS):
                yield "matchReturnArgs, and actions but Post, NoPost, Sigkill, Signal and Override, are refused on LSM hooks"
            if self._section == "lsmhooks" and selector.get("matchData"):
                yield "matchData on LSM hooks fails to load"
            if self._section == "fentries" and ENFORCING & set(actions):
                yield "enforcement is refused on fentry hooks"
            if "Sigkill" in actions and self._section == "kprobes" and not self._target.at_least("large"):
                yield "Sigkill is refused below kernel 5.3"
            if _UNTIL_1_7 & set(actions) and self._target.is_main:
                yield f"{', '.join(sorted(_UNTIL_1_7 & set(actions)))} are gone since 1.8"

    def compiled(
        self, hook: Hook, index: int, where: Filter | None, via: Equivalence | None, refused: str, doubt: str = ""
    ) -> CompiledHook:
        reader = arguments.Reader(self._args, self._data, self._section, bool(self._raw.get("raw")), self._target, via, self._lists)
        selectors = tuple(self._selector(place, selector, reader) for place, selector in enumerate(self._selectors))
        return CompiledHook(hook, index, where, selectors, self._returns, self._section, self._mode, via, refused, doubt, self._caveats())

    def _caveats(self) -> tuple[str, ...]:
        if not self._returns:
            return ()
        said = []
        if any(one.get("matchReturnArgs") or one.get("matchReturnActions") for one in self._selectors):
            said.append(_RETURN_CAVEAT)
        returned = {one["action"] for selector in self._selectors for one in selector.get("matchReturnActions") or ()}
        if returned & _ON_RETURN and self._mode != "enforce":
            said.append(_MODE_CAVEAT)
        return tuple(said)

    def _selector(self, index: int, selector: Mapping[str, Any], reader: arguments.Reader) -> Selector:
        process = tuple(process_filters(selector, self._target))
        compared = tuple(reader.filter(key, raw) for key in ("matchArgs", "matchData") for raw in selector.get(key) or ())
        returned = tuple(self._return_filter(raw) for raw in selector.get("matchReturnArgs") or ())
        actions = _actions(selector.get("matchActions") or ())
        won, doubt = self._won(index, actions)
        return Selector(
            process=process,
            arguments=compared,
            on_return=returned,
            matches=_conjunction((*process, *compared)),
            survives=_conjunction(process),
            returns=_conjunction(returned),
            actions=actions,
            return_actions=_actions(selector.get("matchReturnActions") or ()),
            won=won,
            doubt=doubt,
        )

    def _won(self, index: int, actions: tuple[Action, ...]) -> tuple[tuple[Outcome, ...], frozenset[str]]:
        posts, limited, names = _act(actions)
        effects = tuple(
            name for name in names if name in ENFORCING and self._mode == "enforce" and self._section in _EFFECTIVE.get(name, SECTIONS)
        )
        plain = Outcome(index, posts, limited, names, 0, effects)
        if "Post" in names[:-1] and not self._target.at_least("v511"):  # R3.8
            return (plain, Outcome(index, not posts, limited, names, 0, effects)), frozenset([_MISPARSED])
        return (plain,), frozenset()

    def _return_filter(self, raw: Mapping[str, Any]) -> Filter:
        return arguments.return_filter(raw, (self._raw.get("returnArg") or {}).get("type", "int"), self._target, self._section)


def _context(raw: Mapping[str, Any], section: str, lists: Mapping[str, Mapping[str, Any]]) -> str:
    """Where a hook's arguments come from (see ``Declared``). R5.5, R5.6: ``syscall`` is true unless it is set."""
    if section == "tracepoints":
        return "raw" if raw.get("raw") else ""
    if section not in ("kprobes", "fentries"):
        return ""
    call = str(raw["call"])
    if call.startswith("list:"):
        kind = lists.get(call.removeprefix("list:"), {}).get("type", "")
        return "syscall" if kind in ("syscalls", "generated_syscalls") else ""
    return call_context(hook_name(call)) if raw.get("syscall", True) else ""


def recorder(document: Mapping[str, Any]) -> dict[Hook, tuple[tuple[Declared, ...], tuple[Declared, ...]]]:
    """What a policy declares per hook: how events recorded under it are to be read."""
    spec = document["spec"]
    lists = {one["name"]: one for one in spec.get("lists") or ()}
    return {
        hook: tuple(declared(raw.get(key) or (), _context(raw, section, lists)) for key in ("args", "data"))  # type: ignore[misc]
        for section, kind in SECTIONS.items()
        for raw in spec.get(section) or ()
        for hook in identities(kind, raw, lists)
    }


def granted(document: Mapping[str, Any]) -> dict[Hook, frozenset[str]]:
    """By hook, the filters on processes that every event of this recording policy has passed (see ``token``)."""
    spec = document["spec"]
    lists, macros = {one["name"]: one for one in spec.get("lists") or ()}, spec.get("selectorsMacros") or {}
    found: dict[Hook, frozenset[str]] = {}
    for section, kind in SECTIONS.items():
        for raw in spec.get(section) or ():
            passed = [tokens(_expanded(one, macros)[0]) for one in raw.get("selectors") or ()]
            for hook in identities(kind, raw, lists):
                both = (*passed, found[hook]) if hook in found else passed
                found[hook] = frozenset.intersection(*both) if passed else frozenset()
    return found


def identities(kind: str, raw: Mapping[str, Any], lists: Mapping[str, Mapping[str, Any]]) -> list[Hook]:
    """The hooks that one entry attaches to; several for a list of functions or symbols, none for a generated list."""
    if kind == "kprobe":
        call = raw["call"]
        if not call.startswith("list:"):
            return [Hook(kind, hook_name(call))]
        listing = lists.get(call.removeprefix("list:"), {})
        return [Hook(kind, _listed(value)) for value in listing.get("values") or ()]
    if kind == "tracepoint":
        return [Hook(kind, f"{raw['subsystem']}/{raw['event']}")]
    if kind == "lsm":
        return [Hook(kind, raw["hook"])]
    if kind == "usdt":
        return [Hook(kind, f"{raw['path']}:{raw['provider']}:{raw['name']}")]
    numbers = (*(raw.get("offsets") or ()), *(raw.get("addrs") or ()))
    places = [*(raw.get("symbols") or ()), *(f"{int(offset):#x}" for offset in numbers)]
    return [Hook(kind, f"{raw['path']}:{place}") for place in places]


def _listed(value: str) -> str:
    """A function of a list, whose values may name an ABI: ``i386/sys_x`` is another function than ``sys_x`` (R5.1)."""
    abi, _unused, name = value.rpartition("/")
    return f"__ia32_{name}" if abi == "i386" else hook_name(name)


def _generated(kind: str, raw: Mapping[str, Any], lists: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Patterns of functions that an entry attaches to by a list which the agent makes on the machine (R5.2), each with why
    a function that fits may still not be a member."""
    call = str(raw.get("call", "")) if kind == "kprobe" else ""
    listing = lists.get(call.removeprefix("list:"), {}) if call.startswith("list:") else {}
    if listing.get("type") == "generated_syscalls":
        return [("^sys_", "")]
    if listing.get("type") == "generated_ftrace":
        return [(str(listing.get("pattern", "")), "which functions the list holds is decided on the machine")]
    return []


def _fits(pattern: str, function: str) -> bool:
    """Whether a function may be in a list made by this pattern: the agent's own examples write expressions, its docs globs."""
    try:
        return bool(re.search(pattern, function)) or fnmatch.fnmatchcase(function, pattern)
    except re.error:
        return fnmatch.fnmatchcase(function, pattern)


def _conjunction(parts: Sequence[Filter]) -> Predicate:
    if not parts:
        return _always
    if len(parts) == 1:
        return parts[0].match
    matches: tuple[Callable[[Invocation], Truth], ...] = tuple(part.match for part in parts)
    return lambda invocation: all_of(match(invocation) for match in matches)


def _always(invocation: Invocation) -> Truth:
    return TRUE


def _actions(raw: Iterable[Mapping[str, Any]]) -> tuple[Action, ...]:
    return tuple(Action(one["action"], bool(one.get("rateLimit"))) for one in raw)
