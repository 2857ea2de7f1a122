# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Filters on the process that hit a hook, and the workloads that a policy applies to.

They read what the kernel holds at the moment of the hook. A recording holds most of it as it was at the last exec; where
that may differ, the answer is undecidable. Rule ids name the behaviour of the real agent that the code follows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay import filters
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.records import FilePath, Invocation, Process, Value, token
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.target import Target
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.truth import FALSE, TRUE, Truth, truth, unknown

Predicate = Callable[[Invocation], Truth]
LACKS_OWN_FILE = "the recording lacks the executed file of the process"
LACKS_PARENTS_FILE = "the recording lacks the executed file of the parent"
_MAX_PIDS, _MISREAD_PIDS, _MAX_LEVELS, _MAX_NAMESPACE_VALUES = 4, 8, 9, 4


@dataclass(frozen=True, slots=True)
class Filter:
    """One filter: what it says of a call, and what an explanation needs to tell it in words (see ``explain``)."""

    kind: str
    subject: str
    operator: str
    values: tuple[str, ...]
    match: Predicate
    found: Callable[[Invocation], str | None]


def undecidable(kind: str, raw: Mapping[str, Any], reason: str) -> Filter:
    """A filter that this engine cannot judge, whatever was recorded."""
    values = tuple(str(value) for value in raw.get("values", ()) or ())
    return Filter(kind, reason, str(raw.get("operator", "")), values, lambda invocation: unknown(reason), lambda invocation: None)


_SETTLED = ("matchBinaries", "matchParentBinaries", "matchPIDs", "matchNamespaces", "matchCapabilities")


def tokens(selector: Mapping[str, Any]) -> frozenset[str]:
    """The filters on processes that a call has passed once this selector matched. Of several entries the agent may misread one."""
    lone = [(key, selector[key][0]) for key in _SETTLED if len(selector.get(key) or ()) == 1]
    return frozenset(token(key, raw) for key, raw in lone)


def _unless_granted(kind: str, raw: Mapping[str, Any], made: Filter) -> Filter:
    """The same filter, which holds where the policy that recorded the call has compared it already, at that very call."""
    mine = token(kind, raw)

    def match(invocation: Invocation) -> Truth:
        return TRUE if mine in invocation.granted else made.match(invocation)

    def found(invocation: Invocation) -> str | None:
        return made.found(invocation) or ("one that the same filter of the recorder let through" if mine in invocation.granted else None)

    return replace(made, match=match, found=found)


def process_filters(selector: Mapping[str, Any], target: Target) -> list[Filter]:
    """Every filter of a selector that looks at the process, in the agent's order (R1.2)."""
    built: list[Filter] = []
    if selector.get("matchWorkloads"):
        built.append(_selector_workloads(selector["matchWorkloads"], target))
    for key, own in (("matchBinaries", True), ("matchParentBinaries", False)):
        entries: Sequence[Mapping[str, Any]] = selector.get(key) or []
        if len(entries) > 1:
            built.append(undecidable(key, entries[0], f"{key} has more than one entry: the agent refuses it"))
        elif entries:
            built.append(_unless_granted(key, entries[0], _binaries(key, entries[0], own, target)))
    for key, build in (("matchPIDs", _pids), ("matchCapabilities", _capabilities)):
        entries = selector.get(key) or []
        if len(entries) > 1:  # R2.1.6, R2.6.4: the kernel misreads every entry after the first
            built.append(undecidable(key, entries[0], f"{key} has more than one entry: the agent misreads all but the first"))
        elif entries:
            built.append(_unless_granted(key, entries[0], build(entries[0])))
    built += [_unless_granted("matchNamespaces", raw, _namespaces(raw)) for raw in selector.get("matchNamespaces") or ()]
    changes = [(key, raw, what) for key, what in _CHANGES.items() for raw in (selector.get(key) or [])[:1]]
    return [*built, *(_changes(key, raw, what, target) for key, raw, what in changes)]


# --- executed files -------------------------------------------------------------------------------------------------


def _name_matcher(operator: str, values: Sequence[str], target: Target) -> Callable[[str], bool]:
    """R2.2.4, R2.2.5: bytes, the first 255 of them; for an ending the last 127."""
    negated, base = operator.startswith("Not"), operator.removeprefix("Not")
    wanted = [value.encode("utf-8", "surrogateescape") for value in values]
    limits = {"In": 255, "Prefix": 256, "Postfix": 127}
    if base not in limits:
        raise filters.Unsupported(f"operator {operator} is not one for executed files")
    if any(len(value) > limits[base] for value in wanted):
        raise filters.Unsupported(f"operator {operator} takes files of at most {limits[base]} bytes")
    if base != "In" and not target.at_least("large"):
        raise filters.Unsupported(f"operator {operator} on executed files is refused below kernel 5.3")
    exact = frozenset(wanted)
    compare = exact.__contains__ if base == "In" else filters.starting(wanted) if base == "Prefix" else filters.ending(wanted)
    last = 127 if base == "Postfix" else 0

    def match(name: str) -> bool:
        path = name.encode("utf-8", "surrogateescape")
        return compare(path[-last:] if last else path[:255]) != negated

    return match


def _binaries(kind: str, raw: Mapping[str, Any], own: bool, target: Target) -> Filter:
    """R2.2.1: the executed file is compared, not the name it was executed by."""
    values: Sequence[str] = raw.get("values") or ()
    subject = "executed file of " + ("the process" if own else "the parent")

    def executed(invocation: Invocation) -> str | None:
        process = invocation.process
        if own:
            return process.executable or _path(side_channel(invocation, "mm.exe_file"))
        return process.parent_executable or _path(side_channel(invocation, "real_parent.mm.exe_file"))

    if not values:  # R2.2.7
        return Filter(kind, subject, str(raw["operator"]), (), lambda invocation: TRUE, executed)
    try:
        match = _name_matcher(raw["operator"], values, target)
        follow = _followed(raw, target)
    except filters.Unsupported as error:
        return undecidable(kind, raw, str(error))
    listed, negated = frozenset(values), raw["operator"].startswith("Not")

    def evaluate(invocation: Invocation) -> Truth:
        if not own and invocation.process.bare_fork:
            return TRUE  # R2.2.9: without a record of the parent the filter is left out
        executable = executed(invocation)
        ancestors = invocation.process.ancestors
        if follow and ancestors is not None and any(one in listed for one in ancestors):  # R2.2.8
            return truth(not negated)
        if executable is None:
            return unknown(LACKS_OWN_FILE if own else LACKS_PARENTS_FILE)
        if "\ufffd" in executable:
            return unknown("the recorded text lost bytes that are not UTF-8")
        if not follow:
            return truth(match(executable))
        if executable in listed:
            return truth(not negated)
        if ancestors is None or "" in ancestors:
            return unknown("the recording lacks the executed files of the process's ancestors")
        return truth(negated)

    return Filter(kind, subject + (" and its ancestors" if follow else ""), raw["operator"], tuple(values), evaluate, executed)


def _followed(raw: Mapping[str, Any], target: Target) -> bool:
    follow = bool(raw.get("followChildren"))
    if follow and raw["operator"] not in ("In", "NotIn"):
        raise filters.Unsupported(f"followChildren with operator {raw['operator']} is refused by the agent")
    if follow and not target.at_least("large"):
        raise filters.Unsupported("followChildren is refused below kernel 5.3")
    return follow


def _path(value: Value | None) -> str | None:
    return value.path if isinstance(value, FilePath) and value.path else None


def side_channel(invocation: Invocation, resolve: str) -> Value | None:
    """What the recorder read from the current task beside the hook's own arguments; None when it did not."""
    for part in (invocation.data, invocation.args):
        for one in part:
            if one.declared.source == "current_task" and one.declared.resolve == resolve:
                return one.value
    return None


# --- pids -----------------------------------------------------------------------------------------------------------


def _pids(raw: Mapping[str, Any]) -> Filter:
    """R2.1: the pid of the process, on the host or in its innermost pid namespace."""
    kind, values, negated = "matchPIDs", raw.get("values") or (), raw["operator"] == "NotIn"
    if len(values) >= _MISREAD_PIDS:
        return undecidable(kind, raw, f"matchPIDs has {len(values)} values: the agent misreads {_MISREAD_PIDS} and more")
    wanted = frozenset(values[:_MAX_PIDS])  # R2.1.7
    inside, follow = bool(raw.get("isNamespacePID")), bool(raw.get("followForks"))

    def own(process: Process) -> int | None:
        if not inside or process.namespace_pid is not None:
            return process.namespace_pid if inside else process.pid
        _unused, on_host = process.namespaces.get("pid", (0, False))
        return 0 if on_host and (process.executed or process.current or process.current_namespaces) else None  # R2.1.1

    def evaluate(invocation: Invocation) -> Truth:
        process = invocation.process
        pid = own(process)
        if pid is None:
            return unknown("the recording lacks the pid inside the namespace")
        if not follow:
            return truth((pid in wanted) != negated)
        if inside and pid == 0:
            return FALSE  # R2.1.5: a process of the host fails, negated or not
        if pid in wanted or (inside and 0 in wanted):
            return truth(not negated)
        return _followed_pids(process, wanted, inside, negated)

    where = "pid inside the namespace" if inside else "pid"
    return Filter(
        kind,
        where + (" and those of its ancestors" if follow else ""),
        raw["operator"],
        tuple(str(value) for value in values),
        evaluate,
        lambda invocation: None if (pid := own(invocation.process)) is None else str(pid),
    )


def _followed_pids(process: Process, wanted: frozenset[int], inside: bool, negated: bool) -> Truth:
    """R2.1.5: up to 9 levels, as long as the ancestors between are alive; the direct parent's pid counts in any case."""
    if inside or process.ancestor_pids is None:
        return unknown("matchPIDs with followForks needs the pids of the process's ancestors")
    place = next((place for place, pid in enumerate(process.ancestor_pids[:_MAX_LEVELS]) if pid in wanted), None)
    if place is None:
        return truth(negated)
    if place > process.ancestors_alive:
        return unknown("the recording does not show that the ancestors between still lived")
    return truth(not negated)


# --- capabilities and namespaces ------------------------------------------------------------------------------------

_CAPABILITY_SETS = ("effective", "inheritable", "permitted")


def _capabilities(raw: Mapping[str, Any]) -> Filter:
    """R2.6: capabilities at the moment of the hook."""
    kind, negated = str(raw.get("type", "Effective")).lower(), raw["operator"] == "NotIn"
    if kind not in _CAPABILITY_SETS:
        return undecidable("matchCapabilities", raw, f"a set of capabilities {kind!r} does not exist")
    try:
        mask = sum({1 << filters.capability_bit(name) for name in raw.get("values") or ()})
    except filters.Unsupported as error:
        return undecidable("matchCapabilities", raw, str(error))
    in_namespace = bool(raw.get("isNamespaceCapability"))

    def held(invocation: Invocation) -> int | None:
        value = side_channel(invocation, f"cred.cap_{kind}")
        if isinstance(value, int):
            return value
        process = invocation.process
        if process.capabilities is None or not (process.current or process.current_capabilities):  # R2.6.5
            return None
        return process.capabilities.get(kind, 0)

    def evaluate(invocation: Invocation) -> Truth:
        if in_namespace:  # R2.6.3
            on_host = _is_host(invocation, "user")
            if on_host is None:
                return unknown("isNamespaceCapability needs the user namespace at the time of the hook")
            if on_host:
                return FALSE
        mine = held(invocation)
        if mine is None:
            return unknown("the recording holds the capabilities of the last exec, not those at the hook")
        return truth(bool(mine & mask) != negated)

    return Filter(
        "matchCapabilities",
        f"{kind} capabilities" + (" outside the host's user namespace" if in_namespace else ""),
        raw["operator"],
        tuple(raw.get("values") or ()),
        evaluate,
        lambda invocation: None if (mine := held(invocation)) is None else f"{mine:016x}",
    )


_NAMESPACE_KEYS = {"PidForChildren": "pid_for_children", "TimeForChildren": "time_for_children"}
# Where a recorder finds them in the current task. A task's own pid namespace stands in no such field.
_NAMESPACE_FIELDS = {
    **{key: f"nsproxy.{key}_ns.ns.inum" for key in ("uts", "ipc", "mnt", "net", "time", "cgroup")},
    "pid_for_children": "nsproxy.pid_ns_for_children.ns.inum",
    "time_for_children": "nsproxy.time_ns_for_children.ns.inum",
    "user": "mm.user_ns.ns.inum",
}


def _inode(invocation: Invocation, key: str) -> int | None:
    """The inode number of a namespace at the moment of the hook; None when the recording does not say."""
    process = invocation.process
    value = side_channel(invocation, _NAMESPACE_FIELDS[key]) if key in _NAMESPACE_FIELDS else None
    if isinstance(value, int):
        return value
    if key not in process.namespaces or not _holds(process, key):
        return None
    return process.namespaces[key][0]


def _holds(process: Process, key: str) -> bool:
    """Whether the value of the last exec holds at the hook (R2.5).

    A process stays in its pid namespace for life; a bare fork may have entered another than its parent's. The user
    namespace is that of the memory, which only an exec replaces and a fork copies.
    """
    return process.current or process.current_namespaces or key == "user" or (key == "pid" and process.executed)


def _is_host(invocation: Invocation, key: str) -> bool | None:
    number = _inode(invocation, key)
    if number is None or key not in invocation.process.namespaces:
        return None
    known, is_host = invocation.process.namespaces[key]
    return is_host if number == known else False if is_host else None


def _namespaces(raw: Mapping[str, Any]) -> Filter:
    """R2.5: one namespace at the moment of the hook. ``host_ns`` stands for that of the machine's first process."""
    key = _NAMESPACE_KEYS.get(raw["namespace"], raw["namespace"].lower())
    values, negated = raw.get("values") or (), raw["operator"] == "NotIn"
    if len(values) > _MAX_NAMESPACE_VALUES:
        return undecidable("matchNamespaces", raw, f"matchNamespaces takes at most {_MAX_NAMESPACE_VALUES} values")
    if any(not value.isdecimal() and value != "host_ns" for value in values):
        return undecidable("matchNamespaces", raw, f"values {list(values)} are not all inode numbers or host_ns")
    numbers = frozenset(int(value) for value in values if value.isdecimal())
    host = "host_ns" in values

    def evaluate(invocation: Invocation) -> Truth:
        number = _inode(invocation, key)
        if number is None:
            if key not in invocation.process.namespaces:
                return unknown(f"the recording lacks the process's {key} namespace")
            return unknown(f"the recording holds the {key} namespace of the last exec, not that at the hook")
        if number in numbers:
            return truth(not negated)
        on_host = _is_host(invocation, key) if host else False
        if on_host is None:
            return unknown(f"the recording lacks the host's {key} namespace")
        return truth(on_host != negated)

    return Filter(
        "matchNamespaces",
        f"{key} namespace",
        raw["operator"],
        tuple(values),
        evaluate,
        lambda invocation: None if (number := _inode(invocation, key)) is None else str(number),
    )


_CHANGES = {"matchNamespaceChanges": "namespaces", "matchCapabilityChanges": "capabilities"}


def _changes(key: str, raw: Mapping[str, Any], what: str, target: Target) -> Filter:
    """R2.7: compared with what the agent keeps since the fork, the exec that follows it, and the last event that told a change.

    Without a change neither operator holds. After one, only the agent knows whether an event, of any policy, has told it.
    """
    if not target.at_least("large"):
        return undecidable(key, raw, f"{key} is refused below kernel 5.3")

    def evaluate(invocation: Invocation) -> Truth:
        if what in invocation.process.kept:
            return FALSE
        return unknown(
            f"the recording does not show that the process's {what} never changed, and what the agent last told it keeps to itself"
        )

    def found(invocation: Invocation) -> str | None:
        return "unchanged" if what in invocation.process.kept else None

    subject = f"{what} since the process's start"
    return Filter(key, subject, str(raw["operator"]), tuple(str(one) for one in raw.get("values") or ()), evaluate, found)


# --- workloads ------------------------------------------------------------------------------------------------------


def workload(spec: Mapping[str, Any], namespace: str | None, target: Target) -> Filter | None:
    """podSelector, containerSelector, hostSelector, a policy's namespace (R4.1 to R4.5) and, on main, nodeSelector (R4.9).

    None where the policy applies everywhere.
    """
    where = _where(spec, namespace)
    node = spec.get("nodeSelector") if target.is_main else None
    if where is None and not node:
        return None

    def evaluate(invocation: Invocation) -> Truth:
        here = TRUE if where is None else where(invocation)
        if not node or here.value is False:
            return here
        if invocation.node_labels is None:
            return unknown("the recording lacks the labels of the node")
        return here if selects(node, invocation.node_labels) else FALSE

    if namespace is not None and spec.get("hostSelector") is not None:
        return undecidable("workload", {}, "a policy in a namespace with a hostSelector is refused by the agent")
    return Filter("workload", "pod, container or host", "", _words(spec, namespace), evaluate, _place)


def _words(spec: Mapping[str, Any], namespace: str | None) -> tuple[str, ...]:
    keys = ("podSelector", "containerSelector", "hostSelector", "nodeSelector")
    return tuple([f"namespace {namespace}"] if namespace is not None else []) + tuple(
        f"{key} {spec[key]}" for key in keys if spec.get(key) is not None
    )


def _place(invocation: Invocation) -> str | None:
    process = invocation.process
    if process.pod is not None:
        return (
            f"pod in {process.pod.namespace} with {dict(process.pod.labels)}, container {process.pod.container} of {process.pod.image_repo}"
        )
    return None if process.in_container is None else "a container" if process.in_container else "the host"


def _selector_workloads(raw: Mapping[str, Any], target: Target) -> Filter:
    """matchWorkloads of a selector: the same selectors, within a policy (2.9)."""
    if not target.is_main:
        return undecidable("matchWorkloads", {}, "matchWorkloads is known from version 1.8 on")
    where = _where(raw, None)
    return Filter("matchWorkloads", "pod, container or host", "", _words(raw, None), where or (lambda invocation: TRUE), _place)


def _where(spec: Mapping[str, Any], namespace: str | None) -> Predicate | None:
    pods, containers, host = spec.get("podSelector"), spec.get("containerSelector"), spec.get("hostSelector")
    if namespace is None and (all(one is None for one in (pods, containers, host)) or all(one == {} for one in (pods, containers, host))):
        return None
    if pods is not None or containers is not None or namespace is not None:
        pods, containers = pods or {}, containers or {}

    def evaluate(invocation: Invocation) -> Truth:
        process = invocation.process
        pod = process.pod
        if pod is None:
            if process.in_container is None:
                return unknown("the recording names a container but no pod")
            return truth(host is not None)  # a container of no pod counts as the host too (R4.5)
        if pods is None or containers is None or (namespace is not None and pod.namespace != namespace):
            return FALSE
        labels = {"k8s:io.kubernetes.pod.namespace": pod.namespace, **pod.labels}
        fields = {"name": pod.container, "repo": pod.image_repo}
        return truth(selects(pods, labels) and selects(containers, fields))

    return evaluate


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """A label selector (R4.2): every label and every expression must hold."""
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    for one in selector.get("matchExpressions") or ():
        key, operator, values = one["key"], one["operator"], one.get("values") or ()
        held = {
            "In": key in labels and labels[key] in values,
            "NotIn": key not in labels or labels[key] not in values,
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }
        if not held[operator]:
            return False
    return True
