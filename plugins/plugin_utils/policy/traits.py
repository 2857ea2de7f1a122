# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""What a rendered TracingPolicy is, in the terms that lints, hand-over, capability checks and diffs need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.schema import HOOK_SECTIONS, Version

ENFORCING = frozenset(["Sigkill", "Signal", "Override", "NotifyEnforcer", "Set"])
PROCESS_FILTERS = (
    "matchBinaries",
    "matchParentBinaries",
    "matchPIDs",
    "matchNamespaces",
    "matchNamespaceChanges",
    "matchCapabilities",
    "matchCapabilityChanges",
    "matchWorkloads",
)
ARGUMENT_FILTERS = ("matchArgs", "matchData")
WORKLOAD_SELECTORS = ("podSelector", "containerSelector", "hostSelector")


@dataclass(frozen=True)
class HookEntry:
    """One hook of a policy. ``path`` is where it stands in the document."""

    section: str
    name: str
    raw: Mapping[str, Any]
    path: tuple[str | int, ...]

    @property
    def selectors(self) -> Sequence[Mapping[str, Any]]:
        return self.raw.get("selectors") or ()

    @property
    def is_security(self) -> bool:
        return self.section == "kprobes" and self.name.startswith("security_")

    @property
    def is_syscall(self) -> bool:
        return self.section == "kprobes" and bool(self.raw.get("syscall", True))

    def actions(self, key: str = "matchActions") -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Path and name of every action in ``matchActions`` or ``matchReturnActions``."""
        for index, selector in enumerate(self.selectors):
            for position, action in enumerate(selector.get(key, ())):
                yield (*self.path, "selectors", index, key, position), action["action"]


@dataclass(frozen=True)
class Requirement:
    """Something an agent on its kernel must have: one of these probes (``tetra probe``), or a flag that is set."""

    kind: str
    any_of: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Traits:
    """``overrides``: the security_* functions whose return this policy replaces by a kprobe (two enforcing copies of
    such a policy disturb each other). ``unpinned``: links that do not outlive the agent on this version. ``binaries``:
    paths of the programs and libraries that uprobes and usdts sit in, which stop at a file that is replaced."""

    hooks: tuple[str, ...]
    actions: tuple[str, ...]
    enforcing: bool
    overrides: tuple[str, ...]
    unpinned: tuple[str, ...]
    binaries: tuple[str, ...]
    scope: str
    requirements: tuple[Requirement, ...]


def hook_entries(spec: Mapping[str, Any]) -> list[HookEntry]:
    """All hooks of a policy, in document order of their sections."""
    entries = []
    for section in HOOK_SECTIONS:
        for index, raw in enumerate(spec.get(section) or ()):
            if section in ("kprobes", "fentries"):
                name = raw["call"]
            elif section == "tracepoints":
                name = f"{raw['subsystem']}/{raw['event']}"
            elif section == "lsmhooks":
                name = raw["hook"]
            elif section == "usdts":
                name = f"{raw['path']}:{raw['provider']}:{raw['name']}"
            else:
                places = raw.get("symbols") or raw.get("offsets") or raw.get("addrs") or ()
                name = f"{raw['path']}:{','.join(map(str, places))}"
            entries.append(HookEntry(section, name, raw, ("spec", section, index)))
    return entries


def is_filtered(selector: Mapping[str, Any]) -> bool:
    """Whether a selector narrows anything down."""
    return any(selector.get(key) for key in (*PROCESS_FILTERS, *ARGUMENT_FILTERS, "macros"))


def scope(document: Mapping[str, Any]) -> str:
    """Where the policy applies, for a person: pods, containers, a namespace, or the whole host."""
    spec, namespace = document["spec"], document["metadata"].get("namespace")
    parts = [f"namespace {namespace}"] if namespace else []
    if spec.get("podSelector") is not None:
        parts.append("pods " + _show_selector(spec["podSelector"]))
    if spec.get("containerSelector") is not None:
        parts.append("containers " + _show_selector(spec["containerSelector"]))
    if spec.get("hostSelector") is not None:
        parts.append("host processes")
    return ", ".join(parts) or "everything on the host"


def _show_selector(selector: Mapping[str, Any]) -> str:
    parts = [f"{key}={value}" for key, value in sorted(selector.get("matchLabels", {}).items())]
    for one in selector.get("matchExpressions", ()):
        values = f" ({', '.join(one.get('values', ()))})" if one.get("values") else ""
        parts.append(f"{one['key']} {one['operator']}{values}")
    return "; ".join(parts) or "(all)"


def traits(document: Mapping[str, Any], version: Version) -> Traits:
    """Derive the traits of a rendered policy for an agent of this version."""
    spec = document["spec"]
    entries = hook_entries(spec)
    actions = sorted({name for entry in entries for key in ("matchActions", "matchReturnActions") for _unused, name in entry.actions(key)})
    return Traits(
        hooks=tuple(f"{entry.section}:{entry.name}" for entry in entries),
        actions=tuple(actions or ["Post"]),
        enforcing=any(name in ENFORCING for name in actions),
        overrides=tuple(sorted({entry.name for entry in entries if entry.is_security and "Override" in _names(entry)})),
        unpinned=tuple(sorted({f"{entry.section}:{entry.name}" for entry in entries if not _link_is_pinned(entry, version)})),
        binaries=tuple(sorted({entry.raw["path"] for entry in entries if entry.section in ("uprobes", "usdts")})),
        scope=scope(document),
        requirements=tuple(dict.fromkeys(_requirements(spec, entries, _needs_policy_filter(document, version)))),
    )


def _names(entry: HookEntry) -> set[str]:
    return {name for _unused, name in entry.actions()}


def _link_is_pinned(entry: HookEntry, version: Version) -> bool:
    """Upstream's gaps: raw tracepoints nowhere, LSM links from 1.8 on (facts of v1.6.1, v1.7.0 and main)."""
    if entry.section == "tracepoints":
        return not entry.raw.get("raw")
    return entry.section != "lsmhooks" or version >= (1, 8, 0)


def _needs_policy_filter(document: Mapping[str, Any], version: Version) -> bool:
    """From 1.7.1 on the host alone is selected without it (cf64243b4)."""
    keys = [key for key in WORKLOAD_SELECTORS if document["spec"].get(key) is not None]
    return "namespace" in document["metadata"] or bool(keys and (keys != ["hostSelector"] or version < (1, 7, 1)))


def _requirements(spec: Mapping[str, Any], entries: Sequence[HookEntry], policy_filter: bool) -> Iterator[Requirement]:
    for entry in entries:
        names = _names(entry) | {name for _unused, name in entry.actions("matchReturnActions")}
        if entry.section == "lsmhooks":
            yield Requirement("probe", ("lsm",), "hooks of BPF LSM")
        if entry.section == "fentries":
            yield Requirement("probe", ("fentry",), "fentry hooks")
        if "Override" in names and entry.is_security:
            yield Requirement("probe", ("fmodret",), "Override on security_* functions")
        if "Override" in names and entry.is_syscall and not entry.is_security:
            yield Requirement("probe", ("override_return", "fmodret_syscall"), "Override on system calls")
        if "Override" in names and entry.section == "uprobes":
            yield Requirement("probe", ("uprobe_regs_change",), "Override in uprobes")
        if names & {"Sigkill", "Signal"}:
            yield Requirement("probe", ("signal",), "Sigkill and Signal")
        if any(selector.get("matchParentBinaries") for selector in entry.selectors):
            yield Requirement("flag", ("parents-map-enabled",), "matchParentBinaries")
    if policy_filter:
        yield Requirement("flag", ("enable-policy-filter",), "podSelector, containerSelector, hostSelector and policies of a namespace")
