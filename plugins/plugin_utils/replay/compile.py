# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""A TracingPolicy compiled into one evaluator per hook, after the matching rules of the real agent (v1.7).

Rule ids (R1.3, R2.2.1 ...) in comments name the behaviour of the agent that a line follows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay import filters
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.records import (
    Argument,
    Declared,
    Hook,
    Invocation,
    Process,
    Value,
    declared,
    hook_name,
)
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.truth import FALSE, TRUE, Truth, all_of, truth, unknown

ENFORCING = frozenset(["Sigkill", "Signal", "Override", "NotifyEnforcer", "Set"])
SECTIONS: Mapping[str, str] = {
    "kprobes": "kprobe",
    "fentries": "kprobe",
    "tracepoints": "tracepoint",
    "lsmhooks": "lsm",
    "uprobes": "uprobe",
    "usdts": "usdt",
}
Predicate = Callable[[Invocation], Truth]


@dataclass(frozen=True, slots=True)
class Action:
    name: str
    rate_limited: bool = False


@dataclass(frozen=True, slots=True)
class Selector:
    """One compiled selector: both sides of a return probe share its index."""

    matches: Predicate
    returns: Predicate
    actions: tuple[Action, ...]
    return_actions: tuple[Action, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What happens when this selector wins (None: no selector does): is an event posted, which actions run."""

    selector: int | None
    posts: bool
    rate_limited: bool
    actions: tuple[str, ...]

    @property
    def enforces(self) -> bool:
        return any(action in ENFORCING for action in self.actions)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one policy hook does with one invocation.

    ``fires`` says whether an event is posted (a rate limit aside); ``outcomes`` holds every outcome the recording
    leaves possible, one when all is known.
    """

    hook: Hook
    fires: Truth
    outcomes: tuple[Outcome, ...]

    @property
    def enforces(self) -> Truth:
        answers = {outcome.enforces for outcome in self.outcomes}
        return truth(answers.pop()) if len(answers) == 1 else Truth(None, self.fires.reasons)


_QUIET = Outcome(None, False, False, ())
_POSTED = Outcome(None, True, False, ("Post",))


@dataclass(frozen=True, slots=True)
class CompiledHook:
    """One hook entry of a policy. ``index`` is its position in its section."""

    hook: Hook
    index: int
    workload: Predicate
    selectors: tuple[Selector, ...]
    has_return: bool

    def evaluate(self, invocation: Invocation) -> Verdict:
        """Ordered, short-circuited OR over the selectors (R1.3), with what is undecidable kept apart (R1.9)."""
        applies = self.workload(invocation)
        if applies.value is False:
            return Verdict(self.hook, FALSE, (_QUIET,))
        outcomes, reasons = self._selected(invocation)
        if applies.value is None:
            outcomes, reasons = [*outcomes, _QUIET], reasons | applies.reasons
        unique = tuple(dict.fromkeys(outcomes))
        posts = {outcome.posts for outcome in unique}
        return Verdict(self.hook, truth(posts.pop()) if len(posts) == 1 else Truth(None, frozenset(reasons)), unique)

    def _selected(self, invocation: Invocation) -> tuple[list[Outcome], frozenset[str]]:
        if not self.selectors:  # R1.5, R1.6
            return [_QUIET if self.hook.kind == "lsm" else _POSTED], frozenset()
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

    def _acted(self, index: int, selector: Selector, invocation: Invocation) -> tuple[list[Outcome], frozenset[str]]:
        posts, limited, names = _act(selector.actions)
        won = Outcome(index, posts, limited, names)
        if not self.has_return:
            return [won], frozenset()
        # R1.10: an event needs both halves; entry actions run whatever is returned.
        returned = selector.returns(invocation)
        back_posts, back_limited, back_names = _act(selector.return_actions)
        both = Outcome(index, posts and back_posts, limited or back_limited, names + back_names)
        entry_only = Outcome(index, False, limited, names)
        if returned.value is None:
            return [both, entry_only], returned.reasons
        return [both if returned.value else entry_only], frozenset()


def _act(actions: Sequence[Action]) -> tuple[bool, bool, tuple[str, ...]]:
    """R3.1: every action posts unless NoPost stands among them; a rate limit may withhold the event."""
    names = tuple(action.name for action in actions) or ("Post",)
    return "NoPost" not in names, any(action.rate_limited for action in actions), names


class CompiledPolicy:
    """A policy ready for evaluation: its hooks by identity."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        spec = document["spec"]
        self.name: str = document["metadata"]["name"]
        self.hooks: dict[Hook, list[CompiledHook]] = {}
        workload = _workload(spec, document["metadata"].get("namespace"))
        lists = {one["name"]: one for one in spec.get("lists", ())}
        macros = spec.get("selectorsMacros", {})
        for section, kind in SECTIONS.items():
            for index, raw in enumerate(spec.get(section, ())):
                compiled = _hook(raw, macros, section)
                for hook in identities(kind, raw, lists):
                    self.hooks.setdefault(hook, []).append(CompiledHook(hook, index, workload, compiled, bool(raw.get("return"))))

    def evaluate(self, invocation: Invocation) -> list[Verdict]:
        """One verdict per hook entry of the policy that this invocation reaches."""
        return [hook.evaluate(invocation) for hook in self.hooks.get(invocation.hook, ())]


def recorder(document: Mapping[str, Any]) -> dict[Hook, tuple[tuple[Declared, ...], tuple[Declared, ...]]]:
    """What a policy declares per hook: how events recorded under it are to be read."""
    spec = document["spec"]
    lists = {one["name"]: one for one in spec.get("lists", ())}
    return {
        hook: (declared(raw.get("args", ())), declared(raw.get("data", ())))
        for section, kind in SECTIONS.items()
        for raw in spec.get(section, ())
        for hook in identities(kind, raw, lists)
    }


def identities(kind: str, raw: Mapping[str, Any], lists: Mapping[str, Mapping[str, Any]]) -> list[Hook]:
    """The hooks that one entry attaches to; several for a list of functions or symbols."""
    if kind == "kprobe":
        call = raw["call"]
        if not call.startswith("list:"):
            return [Hook(kind, hook_name(call))]
        listing = lists.get(call.removeprefix("list:"), {})
        return [Hook(kind, hook_name(value.rpartition("/")[2])) for value in listing.get("values", ())]
    if kind == "tracepoint":
        return [Hook(kind, f"{raw['subsystem']}/{raw['event']}")]
    if kind == "lsm":
        return [Hook(kind, raw["hook"])]
    if kind == "usdt":
        return [Hook(kind, f"{raw['path']}:{raw['provider']}:{raw['name']}")]
    places = [*raw.get("symbols", ()), *(f"{int(offset):#x}" for offset in (*raw.get("offsets", ()), *raw.get("addrs", ())))]
    return [Hook(kind, f"{raw['path']}:{place}") for place in places]


def _hook(raw: Mapping[str, Any], macros: Mapping[str, Mapping[str, Any]], section: str) -> tuple[Selector, ...]:
    args, data = declared(raw.get("args", ())), declared(raw.get("data", ()))
    selectors = []
    for plain in raw.get("selectors") or ():
        selector = {**plain}
        for name in plain.get("macros", ()):
            for key, entries in macros.get(name, {}).items():
                selector[key] = [*selector.get(key, ()), *entries]
        selectors.append(
            Selector(
                matches=_conjunction([*_process_filters(selector), *_argument_filters(selector, args, data, section)]),
                returns=_conjunction(_return_filters(selector, raw.get("returnArg"))),
                actions=_actions(selector.get("matchActions", ())),
                return_actions=_actions(selector.get("matchReturnActions", ())),
            )
        )
    return tuple(selectors)


def _conjunction(predicates: Sequence[Predicate]) -> Predicate:
    if not predicates:
        return lambda invocation: TRUE
    return lambda invocation: all_of(predicate(invocation) for predicate in predicates)


def _actions(raw: Iterable[Mapping[str, Any]]) -> tuple[Action, ...]:
    return tuple(Action(one["action"], bool(one.get("rateLimit"))) for one in raw)


def _undecidable(reason: str) -> Predicate:
    return lambda invocation: unknown(reason)


# --- arguments ------------------------------------------------------------------------------------------------------


def _argument_filters(selector: Mapping[str, Any], args: Sequence[Declared], data: Sequence[Declared], section: str) -> list[Predicate]:
    predicates = []
    for raw in selector.get("matchArgs", ()):
        predicates.append(_argument_filter(raw, addressed(raw, args, section), lambda invocation: invocation.args))
    for raw in selector.get("matchData", ()):
        predicates.append(_argument_filter(raw, addressed_data(raw, data), lambda invocation: invocation.data))
    return predicates


def addressed(raw: Mapping[str, Any], args: Sequence[Declared], section: str) -> Declared | None:
    """The argument that an entry of matchArgs names; None when the hook lists no such argument.

    R2.3.1: ``args`` is a position in the list and goes first; ``index`` is the function's argument number.
    R2.3.2: on tracepoints a field's number is rewritten to its position, argument by argument, and may hit twice.
    """
    if raw.get("args") or section == "tracepoints":
        position = raw["args"][0] if raw.get("args") else raw.get("index", 0)
        for place, one in enumerate(() if raw.get("args") else args):
            if position == one.index:
                position = place
        return args[position] if position < len(args) else None
    return next((one for one in args if one.index == raw.get("index", 0)), None)


def addressed_data(raw: Mapping[str, Any], data: Sequence[Declared]) -> Declared | None:
    """The entry of ``data`` that an entry of matchData names: both of its forms are positions."""
    position = raw["args"][0] if raw.get("args") else raw.get("index", 0)
    return data[position] if position < len(data) else None


def _argument_filter(raw: Mapping[str, Any], wanted: Declared | None, where: Callable[[Invocation], Sequence[Argument]]) -> Predicate:
    if wanted is None or len(raw.get("args", ())) > 1:
        return _undecidable(f"filter {raw['operator']} names an argument that this engine cannot find")
    try:
        match = filters.compile_filter(raw["operator"], raw.get("values", ()), wanted.type)
    except filters.Unsupported as error:
        return _undecidable(str(error))
    spec = wanted

    def evaluate(invocation: Invocation) -> Truth:
        value = _recorded(spec, where(invocation))
        return value if isinstance(value, Truth) else match(value)

    return evaluate


def _recorded(wanted: Declared, args: Sequence[Argument]) -> Value | Truth:
    """The recorded value of an argument, if it was recorded in a form that decides what the policy asks."""
    for arg in args:
        one = arg.declared
        same = (one.index, one.resolve, one.source) == (wanted.index, wanted.resolve, wanted.source)
        if same and (one.type == wanted.type or _wide_enough(one.type, wanted.type)):
            return arg.value
    what = f"argument {wanted.index}" + (f" resolved as {wanted.resolve}" if wanted.resolve else "")
    return unknown(f"the recording lacks {what} as {wanted.type}")


def _wide_enough(recorded: str, wanted: str) -> bool:
    """An integer recorded with all 64 bits, or with as many as are compared, decides a narrower one; never a wider one."""
    if recorded not in filters.INTEGERS or wanted not in filters.INTEGERS:
        return False
    bits = 64 if recorded == "size_t" else filters.INTEGERS[recorded][0]
    return bits >= filters.INTEGERS[wanted][0]


def _return_filters(selector: Mapping[str, Any], return_arg: Mapping[str, Any] | None) -> list[Predicate]:
    predicates: list[Predicate] = []
    for raw in selector.get("matchReturnArgs", ()):
        try:
            match = filters.compile_filter(raw["operator"], raw.get("values", ()), (return_arg or {}).get("type", "int"))
        except filters.Unsupported as error:
            predicates.append(_undecidable(str(error)))
            continue
        predicates.append(_returned(match))
    return predicates


def _returned(match: filters.Matcher) -> Predicate:
    def evaluate(invocation: Invocation) -> Truth:
        value = invocation.returned
        return unknown("the recording lacks the return value") if value is None else match(value)

    return evaluate


# --- processes ------------------------------------------------------------------------------------------------------


def _process_filters(selector: Mapping[str, Any]) -> list[Predicate]:
    predicates: list[Predicate] = []
    for raw in selector.get("matchBinaries", ())[:1]:
        predicates.append(_binaries(raw))
    for raw in selector.get("matchParentBinaries", ())[:1]:
        predicates.append(_parent_binaries(raw))
    for key, build in (("matchPIDs", _pids), ("matchCapabilities", _capabilities)):
        entries = selector.get(key, ())
        if len(entries) > 1:  # R2.1.6, R2.6.4: the kernel misreads every entry after the first
            predicates.append(_undecidable(f"{key} has more than one entry: the agent misreads all but the first"))
        elif entries:
            predicates.append(build(entries[0]))
    predicates += [_namespaces(raw) for raw in selector.get("matchNamespaces", ())]
    for key in ("matchNamespaceChanges", "matchCapabilityChanges", "matchWorkloads"):
        if selector.get(key):
            predicates.append(_undecidable(f"{key} depends on what a recording does not hold"))
    return predicates


def _name_matcher(operator: str, values: Sequence[str]) -> Callable[[str], bool]:
    negated, base = operator.startswith("Not"), operator.removeprefix("Not")
    if base == "In":
        wanted = frozenset(values)
        return lambda name: (name[:255] in wanted) != negated
    several = tuple(values)
    if base == "Prefix":
        return lambda name: name[:255].startswith(several) != negated
    return lambda name: name[-127:].endswith(several) != negated


def _binaries(raw: Mapping[str, Any]) -> Predicate:
    """R2.2.1: the executed file is compared, not the name it was executed by."""
    if not raw["values"]:
        return lambda invocation: TRUE
    match = _name_matcher(raw["operator"], raw["values"])
    listed = frozenset(raw["values"])
    follow, negated = bool(raw.get("followChildren")), raw["operator"].startswith("Not")

    def evaluate(invocation: Invocation) -> Truth:
        process = invocation.process
        if process.executable is None:
            return unknown("the recording lacks the executed file of the process")
        if not follow:
            return truth(match(process.executable))
        if process.executable in listed:
            return truth(not negated)
        if process.ancestors is None:
            return unknown("the recording lacks the executed files of the process's ancestors")
        return truth(any(one in listed for one in process.ancestors) != negated)

    return evaluate


def _parent_binaries(raw: Mapping[str, Any]) -> Predicate:
    if not raw["values"]:
        return lambda invocation: TRUE
    match = _name_matcher(raw["operator"], raw["values"])

    def evaluate(invocation: Invocation) -> Truth:
        executable = invocation.process.parent_executable
        return unknown("the recording lacks the executed file of the parent") if executable is None else truth(match(executable))

    return evaluate


def _pids(raw: Mapping[str, Any]) -> Predicate:
    wanted, negated = frozenset(raw["values"][:4]), raw["operator"] == "NotIn"
    if raw.get("followForks"):
        return _undecidable("matchPIDs with followForks needs the process's ancestry")

    def evaluate(invocation: Invocation) -> Truth:
        process: Process = invocation.process
        pid = process.namespace_pid if raw.get("isNamespacePID") else process.pid
        return unknown("the recording lacks the pid inside the namespace") if pid is None else truth((pid in wanted) != negated)

    return evaluate


def _capabilities(raw: Mapping[str, Any]) -> Predicate:
    if raw.get("isNamespaceCapability"):
        return _undecidable("isNamespaceCapability needs the user namespace at the time of the hook")
    kind, negated = raw.get("type", "Effective").lower(), raw["operator"] == "NotIn"
    try:
        mask = sum({1 << filters.capability_bit(name) for name in raw["values"]})
    except filters.Unsupported as error:
        return _undecidable(str(error))

    def evaluate(invocation: Invocation) -> Truth:
        process = invocation.process
        if not process.current or process.capabilities is None:  # R2.6.5
            return unknown("the recording holds the capabilities of the last exec, not those at the hook")
        return truth(bool(process.capabilities.get(kind, 0) & mask) != negated)

    return evaluate


_NAMESPACE_KEYS = {"PidForChildren": "pid_for_children", "TimeForChildren": "time_for_children"}


def _namespaces(raw: Mapping[str, Any]) -> Predicate:
    key = _NAMESPACE_KEYS.get(raw["namespace"], raw["namespace"].lower())
    values, negated = raw["values"], raw["operator"] == "NotIn"
    numbers = frozenset(int(value) for value in values if value.isdecimal())
    host = "host_ns" in values

    def evaluate(invocation: Invocation) -> Truth:
        process = invocation.process
        if key not in process.namespaces:
            return unknown(f"the recording lacks the process's {key} namespace")
        # A process stays in its pid namespace for life, so the value of its exec holds; any other may have changed (R2.5).
        if not process.current and not (key == "pid" and process.executed):
            return unknown(f"the recording holds the {key} namespace of the last exec, not that at the hook")
        number, is_host = process.namespaces[key]
        return truth((number in numbers or (host and is_host)) != negated)

    return evaluate


# --- workloads ------------------------------------------------------------------------------------------------------


def _workload(spec: Mapping[str, Any], namespace: str | None) -> Predicate:
    """podSelector, containerSelector, hostSelector and a policy's namespace (R4.1 to R4.5)."""
    pods, containers, host = spec.get("podSelector"), spec.get("containerSelector"), spec.get("hostSelector")
    if namespace is None and (all(one is None for one in (pods, containers, host)) or all(one == {} for one in (pods, containers, host))):
        return lambda invocation: TRUE
    if pods is not None or containers is not None or namespace is not None:
        pods, containers = pods or {}, containers or {}

    def evaluate(invocation: Invocation) -> Truth:
        process = invocation.process
        pod = process.pod
        if pod is None:
            if process.in_container is None:
                return unknown("the recording names a container but no pod")
            return truth(host is not None)
        if pods is None or containers is None or (namespace is not None and pod.namespace != namespace):
            return FALSE
        labels = {"k8s:io.kubernetes.pod.namespace": pod.namespace, **pod.labels}
        fields = {"name": pod.container, "repo": pod.image_repo}
        return truth(_selects(pods, labels) and _selects(containers, fields))

    return evaluate


def _selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for one in selector.get("matchExpressions", ()):
        key, operator, values = one["key"], one["operator"], one.get("values", ())
        held = {
            "In": key in labels and labels[key] in values,
            "NotIn": key not in labels or labels[key] not in values,
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }
        if not held[operator]:
            return False
    return True
