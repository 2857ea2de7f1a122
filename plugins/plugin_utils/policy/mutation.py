# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""How good a policy's cases are: plant the bugs that authors make, one at a time, and see which of them the cases catch.

A mutant is one such bug in one place of the policy. It is planted into every case's own rendering. A case that then fails
has killed it. A mutant whose selectors match and act exactly as before, for reasons that can be read off the policy
(``normal``), is equivalent: no case can kill it, and it does not count.
"""

from __future__ import annotations

import copy
import ipaddress
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils.documents import Path_, show_path
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.check import Prepared, judge, prepare
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.load import Policy
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import refuse
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.compile import ENFORCING, SECTIONS
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.filters import (
    ADDRESS_OPERATORS,
    INTEGERS,
    PORT_OPERATORS,
    parse_integer,
)
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.target import DEFAULT, Target

NEEDED_SCORE = 0.9
# What authors mistake for each other. A hook's neighbour sees other calls, or the same ones at another moment.
NEIGHBOURS: Mapping[str, str] = {
    "security_file_permission": "security_file_open",
    "security_file_open": "security_file_permission",
    "security_mmap_file": "security_file_mprotect",
    "security_path_truncate": "security_file_truncate",
    "security_path_unlink": "security_inode_unlink",
    "security_path_rename": "security_inode_rename",
    "security_path_link": "security_inode_link",
    "security_socket_connect": "security_socket_bind",
    "security_bprm_check": "security_bprm_creds_for_exec",
    "tcp_connect": "tcp_close",
    "file_open": "file_permission",
    "bprm_check_security": "bprm_creds_for_exec",
}
_SWAPS: Mapping[str, str] = {
    "Equal": "Prefix", "NotEqual": "NotPrefix", "Prefix": "Equal", "NotPrefix": "NotEqual", "Postfix": "Equal", "NotPostfix": "NotEqual",
    "DAddr": "SAddr", "NotDAddr": "NotSAddr", "DPort": "SPort", "NotDPort": "NotSPort", "SPort": "DPort", "NotSPort": "NotDPort",
    "GT": "LT", "GreaterThan": "LessThan", "LT": "GT", "LessThan": "GreaterThan", "Mask": "Equal",
}  # fmt: skip
_NUMBER_SWAPS: Mapping[str, str] = {"Equal": "GT", "NotEqual": "LT"}
_NEGATIONS: Mapping[str, str] = {
    **{
        name: f"Not{name}"
        for name in ("Equal", "Prefix", "Postfix", "In", "InMap", "InRange", "SAddr", "DAddr", "SPort", "DPort", "FileType", "DPortPriv")
    },
    "SPortPriv": "NotSportPriv",
}
_POSITIVES: Mapping[str, str] = {negated: plain for plain, negated in _NEGATIONS.items()}
_HOOK_KEYS: Mapping[str, str] = {"kprobes": "call", "fentries": "call", "tracepoints": "event", "lsmhooks": "hook", "usdts": "name"}
_ARGUMENT_KEYS = ("matchArgs", "matchData")
_FILTER_KEYS = (
    *_ARGUMENT_KEYS,
    "matchReturnArgs",
    "matchBinaries",
    "matchParentBinaries",
    "matchPIDs",
    "matchNamespaces",
    "matchNamespaceChanges",
    "matchCapabilities",
    "matchCapabilityChanges",
    "matchWorkloads",
)
_WORKLOADS = ("podSelector", "containerSelector", "hostSelector")

Edit = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Mutant:
    """One bug in one place. ``identity`` is the same in every rendering of the policy that has the place."""

    kind: str
    where: str
    change: str
    detail: str = ""

    @property
    def identity(self) -> tuple[str, str, str]:
        return (self.kind, self.where, self.detail)

    def __str__(self) -> str:
        return f"{self.kind} at {self.where}: {self.change}"


@dataclass(frozen=True)
class Fate:
    """What became of a mutant: ``killed`` by a case, ``survived``, or ``equivalent``; ``by`` says which case and how."""

    mutant: Mutant
    outcome: str
    by: str = ""


@dataclass(frozen=True)
class Mutation:
    """The mutation check of one policy."""

    policy: str
    fates: tuple[Fate, ...]

    def of(self, outcome: str) -> tuple[Fate, ...]:
        return tuple(fate for fate in self.fates if fate.outcome == outcome)

    @property
    def score(self) -> float:
        """The share of the mutants that are not equivalent which the cases kill; 1 when there are none."""
        counts = Counter(fate.outcome for fate in self.fates)
        judged = counts["killed"] + counts["survived"]
        return counts["killed"] / judged if judged else 1.0


def mutate(policy: Policy, protected: Sequence[str], target: Target = DEFAULT) -> Mutation:
    """Plant every mutant into every case of a policy. Raises Refused when a case fails without any."""
    cases = [prepare(policy, case, protected, target) for case in policy.cases]
    broken = [result.name for result in (judge(case, case.document) for case in cases) if not result.passed]
    if broken:
        raise refuse(f"case {broken[0]!r} fails already: mend it before the mutation check", file=str(policy.directory))
    planted: dict[tuple[str, str, str], Mutant] = {}
    for case in cases:
        for mutant, _edit in mutants(case.document):
            planted.setdefault(mutant.identity, mutant)
    edits = [{mutant.identity: edit for mutant, edit in mutants(case.document)} for case in cases]
    normals = [normal(case.document) for case in cases]
    return Mutation(policy.reference, tuple(_fate(mutant, cases, edits, normals) for mutant in planted.values()))


def _fate(
    mutant: Mutant, cases: Sequence[Prepared], edits: Sequence[Mapping[tuple[str, str, str], Edit]], normals: Sequence[object]
) -> Fate:
    equivalent = True
    for case, edit, before in zip(cases, edits, normals, strict=True):
        if mutant.identity not in edit:
            continue
        document = plant(case.document, edit[mutant.identity])
        if normal(document) == before:
            continue
        equivalent = False
        failures = judge(case, document).failures
        if failures:
            return Fate(mutant, "killed", f"{case.case.name}: {failures[0]}")
    return Fate(mutant, "equivalent" if equivalent else "survived")


def plant(document: Mapping[str, Any], edit: Edit) -> dict[str, Any]:
    """The document with one bug in it."""
    changed = copy.deepcopy(dict(document))
    edit(changed)
    return changed


# --- the bugs -------------------------------------------------------------------------------------------------------


def mutants(document: Mapping[str, Any]) -> Iterator[tuple[Mutant, Edit]]:
    """Every mutant of a TracingPolicy, each with what plants it."""
    spec = document["spec"]
    for key in _WORKLOADS:
        if spec.get(key) is not None:
            yield Mutant("workload-lost", f"spec.{key}", f"{key} left out"), _drop(("spec", key))
            for label in spec[key].get("matchLabels", {}):
                yield (
                    Mutant("workload-lost", f"spec.{key}.matchLabels.{label}", f"label {label!r} left out"),
                    _drop(("spec", key, "matchLabels", label)),
                )
    for section in SECTIONS:
        for index, hook in enumerate(spec.get(section, ())):
            yield from _hook_mutants(hook, ("spec", section, index), section)


def _hook_mutants(hook: Mapping[str, Any], at: Path_, section: str) -> Iterator[tuple[Mutant, Edit]]:
    where = show_path(at)
    yield Mutant("hook-lost", where, "the hook left out"), _drop(at)
    if section in _HOOK_KEYS:
        key = _HOOK_KEYS[section]
        wrong = NEIGHBOURS.get(hook[key], f"{hook[key]}_other")
        yield Mutant("wrong-hook", f"{where}.{key}", f"{hook[key]} -> {wrong}"), _put((*at, key), wrong)
    elif hook.get("symbols"):
        wrong = f"{hook['symbols'][0]}_other"
        yield Mutant("wrong-hook", f"{where}.symbols", f"{hook['symbols'][0]} -> {wrong}"), _put((*at, "symbols"), [wrong])
    selectors = hook.get("selectors") or ()
    for index, selector in enumerate(selectors):
        here = (*at, "selectors", index)
        yield Mutant("selector-lost", show_path(here), "the selector left out"), _drop(here)
        if index + 1 < len(selectors):
            swapped = [*selectors[:index], selectors[index + 1], selector, *selectors[index + 2 :]]
            yield Mutant("selectors-swapped", show_path(here), "evaluated after the next one"), _put((*at, "selectors"), swapped)
        for key in ("matchActions", "matchReturnActions"):
            for position, action in enumerate(selector.get(key, ())):
                yield from _action_mutants(action, (*here, key, position))
        for key in _FILTER_KEYS:
            for position, raw in enumerate(selector.get(key, ())):
                yield from _filter_mutants(raw, (*here, key, position), hook, section)


def _action_mutants(action: Mapping[str, Any], at: Path_) -> Iterator[tuple[Mutant, Edit]]:
    name, where = action["action"], show_path(at)
    yield Mutant("action-lost", where, f"{name} left out"), _drop(at)
    if name in ENFORCING:
        yield Mutant("action-softened", where, f"{name} -> Post"), _put(at, {"action": "Post"})


def _filter_mutants(raw: Mapping[str, Any], at: Path_, hook: Mapping[str, Any], section: str) -> Iterator[tuple[Mutant, Edit]]:
    where, key, operator = show_path(at), str(at[-2]), str(raw.get("operator", ""))
    values: list[Any] = list(raw.get("values", ()))
    type_ = _type(raw, key, hook)
    yield Mutant("namespace-missing" if key == "matchNamespaces" else "filter-lost", where, f"the {operator} filter left out"), _drop(at)
    if operator in _POSITIVES:
        yield Mutant("negation-lost", where, f"{operator} -> {_POSITIVES[operator]}"), _put((*at, "operator"), _POSITIVES[operator])
    if operator in _NEGATIONS:
        yield Mutant("negated", where, f"{operator} -> {_NEGATIONS[operator]}"), _put((*at, "operator"), _NEGATIONS[operator])
    swap = (_NUMBER_SWAPS if type_ in INTEGERS else {}).get(operator) or _SWAPS.get(operator)
    if key in _ARGUMENT_KEYS and swap and not (type_ == "sockaddr" and swap.removeprefix("Not").startswith("D")):
        yield Mutant("operator-swapped", where, f"{operator} -> {swap}"), _put((*at, "operator"), swap)
    if key == "matchNamespaces":
        wrong = "Mnt" if raw["namespace"] != "Mnt" else "Pid"
        yield Mutant("wrong-namespace", where, f"{raw['namespace']} -> {wrong}"), _put((*at, "namespace"), wrong)
    if key in _ARGUMENT_KEYS:
        yield from _index_mutants(raw, at, hook, key)
    if len(values) > 1:
        for detail, rest, lost in (("first", values[1:], values[0]), ("last", values[:-1], values[-1])):
            yield Mutant("value-lost", where, f"the {detail} value, {lost!r}, left out", detail), _put((*at, "values"), rest)
    for kind, change, wrong_values in _value_mutants(operator, values, type_):
        yield Mutant(kind, where, change), _put((*at, "values"), wrong_values)


def _index_mutants(raw: Mapping[str, Any], at: Path_, hook: Mapping[str, Any], key: str) -> Iterator[tuple[Mutant, Edit]]:
    listed = hook.get("args" if key == "matchArgs" else "data", ())
    by_position = bool(raw.get("args")) or key == "matchData"
    types = {place if by_position else one.get("index", 0): str(one.get("type", "auto")) for place, one in enumerate(listed)}
    name = "args" if raw.get("args") else "index"
    now = raw["args"][0] if raw.get("args") else raw.get("index", 0)
    # Another argument of the same type is the mistake that nobody but a case notices.
    others = sorted((other for other in types if other != now), key=lambda other: types[other] != types.get(now))
    wrong = others[0] if others else now + 1
    yield Mutant("wrong-index", show_path(at), f"{name} {now} -> {wrong}"), _put((*at, name), [wrong] if name == "args" else wrong)


def _value_mutants(operator: str, values: Sequence[Any], type_: str) -> Iterator[tuple[str, str, list[Any]]]:
    """Wrong values of a whole filter: (kind, what changed on the first value, the values)."""
    if not values:
        return
    if operator in ADDRESS_OPERATORS:
        for kind, step in (("range-widened", -1), ("range-narrowed", 1)):
            changed = [_resized(value, step) for value in values]
            yield kind, f"{values[0]} -> {changed[0]}", changed
    elif operator in PORT_OPERATORS:
        ports = [":".join(str(int(part) + 1) for part in str(value).split(":")) for value in values]
        yield "port-off-by-one", f"{values[0]} -> {ports[0]}", ports
    elif operator == "Mask":
        shifted: list[Any] = [str(parse_integer(str(value)) << 1) for value in values]
        yield "bit-off-by-one", f"{values[0]} -> {shifted[0]}", shifted
    elif type_ in INTEGERS and all(":" not in str(value) for value in values):
        numbers: list[Any] = [str(parse_integer(str(value)) + 1) for value in values]
        yield "number-off-by-one", f"{values[0]} -> {numbers[0]}", numbers
    elif all(isinstance(value, str) and "/" in value for value in values):
        cut = [value[1:] if operator.endswith("Postfix") else value[:-1] for value in values]
        yield "path-truncated", f"{values[0]!r} -> {cut[0]!r}", cut


def _resized(value: str, step: int) -> str:
    network = ipaddress.ip_network(value, strict=False)
    length = min(max(network.prefixlen + step, 0), network.max_prefixlen)
    return str(ipaddress.ip_network((network.network_address, length), strict=False))


def _type(raw: Mapping[str, Any], key: str, hook: Mapping[str, Any]) -> str:
    if key == "matchReturnArgs":
        return str(hook.get("returnArg", {}).get("type", "int"))
    if key not in _ARGUMENT_KEYS:
        return ""
    listed = hook.get("args" if key == "matchArgs" else "data", ())
    if raw.get("args") or key == "matchData":
        position = raw["args"][0] if raw.get("args") else raw.get("index", 0)
        return str(listed[position].get("type", "auto")) if position < len(listed) else ""
    return next((str(one.get("type", "auto")) for one in listed if one.get("index", 0) == raw.get("index", 0)), "")


def _holder(document: Any, at: Path_) -> Any:
    for part in at[:-1]:
        document = document[part]
    return document


def _drop(at: Path_) -> Edit:
    def edit(document: dict[str, Any]) -> None:
        del _holder(document, at)[at[-1]]

    return edit


def _put(at: Path_, value: Any) -> Edit:
    def edit(document: dict[str, Any]) -> None:
        _holder(document, at)[at[-1]] = copy.deepcopy(value)

    return edit


# --- what makes no difference ---------------------------------------------------------------------------------------


def normal(document: Mapping[str, Any]) -> object:
    """What a policy matches and does, in a form that is equal for policies that do so in the same way.

    Two policies with different forms may still do the same; two with the same form do. Each step below keeps every
    verdict and every action, for the reason it names.
    """
    spec = document["spec"]
    workloads = tuple((key, repr(spec.get(key))) for key in _WORKLOADS)
    hooks = []
    for section in SECTIONS:
        for raw in spec.get(section, ()):
            hook = {key: value for key, value in raw.items() if key not in ("selectors", "message", "tags")}
            selectors = raw.get("selectors") or ()
            if section == "lsmhooks" and not selectors:
                continue  # R1.6: never posts and never acts
            hooks.append((section, repr(sorted(hook.items())), _normal_selectors(selectors, raw, bool(raw.get("selectors")))))
    return workloads, tuple(hooks)


def _normal_selectors(selectors: Sequence[Mapping[str, Any]], hook: Mapping[str, Any], any_selectors: bool) -> object:
    if not any_selectors:
        return "every call"  # R1.5: unlike a hook whose selectors match nothing
    # R1.3: the first that matches acts, so neighbours with the same actions may change places, and one that asks for
    # all that an earlier neighbour asks for, and more, never decides anything.
    runs: list[tuple[object, list[frozenset[object]]]] = []
    for selector in selectors:
        filters = _normal_filters(selector, hook)
        actions = (_normal_actions(selector.get("matchActions", ())), _normal_actions(selector.get("matchReturnActions", ())))
        if not runs or runs[-1][0] != actions:
            runs.append((actions, []))
        runs[-1][1].append(filters)
    return tuple((actions, frozenset(one for one in members if not any(other < one for other in members))) for actions, members in runs)


def _normal_actions(actions: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """R1.7, R3.1: Post without options is what happens anyway, whatever other actions stand beside it."""
    shown = tuple(repr(sorted(action.items())) for action in actions if dict(action) != {"action": "Post"})
    last = actions[-1]["action"] if actions else "Post"
    return (*shown, f"last {last}")  # R3.2: the event names the last action


def _normal_filters(selector: Mapping[str, Any], hook: Mapping[str, Any]) -> frozenset[object]:
    """R1.2: filters are a conjunction, so their order and repetition do not matter."""
    filters: set[object] = set()
    addressed: set[str] = set()
    for key in _FILTER_KEYS:
        for position, raw in enumerate(selector.get(key, ())):
            if key in ("matchBinaries", "matchParentBinaries") and not raw.get("values"):
                continue  # without values it passes every process
            rest = {name: value for name, value in raw.items() if name not in ("operator", "values")}
            if raw.get("operator") in ADDRESS_OPERATORS:
                addressed.add(repr(sorted(rest.items())))
            # R2.1.6, R2.6.4: only the first entry of these is read as it stands
            place = position if key in ("matchPIDs", "matchCapabilities", "matchCapabilityChanges") else 0
            filters.add((key, place, repr(sorted(rest.items())), raw.get("operator", ""), _normal_values(raw, key, hook)))
    # R2.3.29: an address filter holds for no socket outside these families, negated or not.
    both = frozenset(["AF_INET", "AF_INET6"])
    return frozenset(
        one for one in filters if not (isinstance(one, tuple) and one[3] == "Family" and one[4] == both and one[2] in addressed)
    ) | frozenset((key, repr(selector[key])) for key in ("macros",) if selector.get(key))


def _normal_values(raw: Mapping[str, Any], key: str, hook: Mapping[str, Any]) -> frozenset[object]:
    """R1.4: values are a set, and one that another covers adds nothing."""
    operator, values = str(raw.get("operator", "")), [str(value) for value in raw.get("values", ())]
    base = operator.removeprefix("Not")
    if operator in ADDRESS_OPERATORS:
        networks = [ipaddress.ip_network(value, strict=False) for value in values]
        return frozenset(
            one
            for family in (4, 6)
            for one in ipaddress.collapse_addresses(n for n in networks if n.version == family)  # type: ignore[type-var]
        )
    if base == "Prefix":
        return frozenset(one for one in values if not any(one != other and one.startswith(other) for other in values))
    if base == "Postfix":
        return frozenset(one for one in values if not any(one != other and one.endswith(other) for other in values))
    if _type(raw, key, hook) in INTEGERS:
        with suppress(ValueError):  # a range, or a value that the agent refuses
            return frozenset(parse_integer(value) for value in values)
    return frozenset(values)
