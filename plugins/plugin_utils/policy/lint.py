# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Lints: what the agent would refuse, or accept and then not do, or do to the wrong process.

Each rule looks at one rendered policy. Facts: the real agent of v1.7, read and measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils.documents import show_path
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.schema import HOOK_SECTIONS, Version
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.traits import (
    ENFORCING,
    WORKLOAD_SELECTORS,
    HookEntry,
    Traits,
    hook_entries,
    is_filtered,
)
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay import filters
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.compile import addressed, addressed_data
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.records import declared

HOT_FUNCTIONS = frozenset(
    (
        "fd_install security_file_open security_file_permission security_file_ioctl security_file_fcntl "
        "security_mmap_file security_file_mprotect security_inode_permission security_inode_getattr "
        "security_inode_follow_link security_bprm_check security_bprm_creds_for_exec security_task_alloc "
        "security_task_kill security_capable capable ns_capable cap_capable commit_creds vfs_read vfs_write vfs_open "
        "do_filp_open do_sys_openat2 filp_close tcp_sendmsg tcp_recvmsg udp_sendmsg ip_output ip_queue_xmit "
        "__dev_queue_xmit dev_hard_start_xmit security_socket_sendmsg security_socket_recvmsg sock_sendmsg sock_recvmsg "
        "sys_execve sys_read sys_write sys_open sys_openat sys_openat2 sys_close sys_newfstatat sys_fstat sys_stat "
        "sys_statx sys_mmap sys_mprotect sys_futex sys_poll sys_ppoll sys_epoll_wait sys_select sys_ioctl sys_recvmsg "
        "sys_sendmsg sys_recvfrom sys_sendto sys_clock_nanosleep sys_nanosleep sys_lseek sys_getpid sys_fcntl sys_brk"
    ).split()
)
HOT_LSM = frozenset(
    (
        "file_open file_permission file_ioctl file_fcntl mmap_file inode_permission inode_getattr bprm_check_security "
        "bprm_creds_for_exec task_alloc capable socket_sendmsg socket_recvmsg"
    ).split()
)
HOT_TRACEPOINTS = frozenset(["raw_syscalls/sys_enter", "raw_syscalls/sys_exit", "sched/sched_switch", "sched/sched_wakeup"])

ALLOWED_ACTIONS: Mapping[str, frozenset[str]] = {
    "kprobes": frozenset(
        (
            "Post NoPost Sigkill Signal Override GetUrl DnsLookup TrackSock UntrackSock NotifyEnforcer "
            "CleanupEnforcerNotification FollowFD UnfollowFD CopyFD"
        ).split()
    ),
    "fentries": frozenset(["Post", "NoPost", "GetUrl", "DnsLookup", "TrackSock", "UntrackSock", "FollowFD", "UnfollowFD", "CopyFD"]),
    "tracepoints": frozenset(
        ["Post", "NoPost", "Sigkill", "Signal", "GetUrl", "DnsLookup", "NotifyEnforcer", "CleanupEnforcerNotification"]
    ),
    "lsmhooks": frozenset(["Post", "NoPost", "Sigkill", "Signal", "Override"]),
    "uprobes": frozenset(["Post", "NoPost", "Sigkill", "Signal", "Override"]),
    "usdts": frozenset(["Post", "NoPost", "Sigkill", "Signal", "Set"]),
}
OPTIONS = frozenset(["disable-kprobe-multi", "disable-uprobe-multi", "override-method", "policy-mode"])
MAX_SELECTORS, MAX_ACTIONS, MAX_FILTERS, MAX_ARGUMENTS, MAX_NUMBERS = 5, 3, 5, 5, 4
MAX_TRAMPOLINES_PER_FUNCTION, MAX_WORKLOAD_POLICIES, MAX_FOLLOW_CHILDREN = 38, 128, 64


@dataclass(frozen=True)
class Finding:
    """``severity`` error keeps a policy out of a bundle; a warning is shown and recorded."""

    rule: str
    severity: str
    policy: str
    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.policy}: {self.path + ': ' if self.path else ''}{self.message} [{self.rule}]"


@dataclass(frozen=True)
class Context:
    """A rendered policy under inspection. ``protected`` are executables that no policy may ever kill."""

    policy: str
    spec: Mapping[str, Any]
    namespace: str | None
    mode: str
    version: Version
    protected: tuple[str, ...]
    traits: Traits

    @property
    def hooks(self) -> list[HookEntry]:
        return hook_entries(self.spec)

    @property
    def has_workload_scope(self) -> bool:
        return self.namespace is not None or any(self.spec.get(key) for key in WORKLOAD_SELECTORS if key != "hostSelector")


Where = Sequence[str | int]
Found = Iterator[tuple[Where, str]]
Rule = Callable[[Context], Found]
RULES: dict[str, tuple[str, Rule]] = {}


def _rule(name: str, severity: str = "error") -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        RULES[name] = (severity, rule)
        return rule

    return register


def lint(context: Context) -> list[Finding]:
    """All findings of all rules for one policy."""
    return [
        Finding(name, severity, context.policy, show_path(path), message)
        for name, (severity, rule) in RULES.items()
        for path, message in rule(context)
    ]


@_rule("one-section")
def _one_section(context: Context) -> Found:
    used = [section for section in HOOK_SECTIONS if context.spec.get(section)]
    if len(used) > 1:
        yield ("spec",), f"has hooks in {', '.join(used)}: the agent loads one section per policy; make it {len(used)} policies"
    if not used and not context.spec.get("loader"):
        yield ("spec",), f"has no hooks; needed: one of {', '.join(HOOK_SECTIONS)}"


def _is_hot(hook: HookEntry) -> bool:
    if hook.section == "tracepoints":
        return hook.name in HOT_TRACEPOINTS
    if hook.section == "lsmhooks":
        return hook.name in HOT_LSM
    return hook.section in ("kprobes", "fentries") and hook.name in HOT_FUNCTIONS


@_rule("hot-hook-unfiltered")
def _hot_hook(context: Context) -> Found:
    for hook in filter(_is_hot, context.hooks):
        if not hook.selectors:
            yield (
                hook.path,
                f"{hook.name} is called all the time and has no selectors: every call becomes an event; add matchArgs or matchBinaries",
            )
        for index, selector in enumerate(hook.selectors):
            if not is_filtered(selector) and not _is_silent(selector):
                yield (
                    (*hook.path, "selectors", index),
                    f"{hook.name} is called all the time and this selector filters nothing: add matchArgs or matchBinaries",
                )


def _is_silent(selector: Mapping[str, Any]) -> bool:
    return any(action["action"] == "NoPost" for action in selector.get("matchActions", ()))


@_rule("enforce-unscoped")
def _enforce_unscoped(context: Context) -> Found:
    for hook in context.hooks:
        for path, name in hook.actions():
            selector = hook.selectors[int(path[-3])]
            if name in ENFORCING and not is_filtered(selector) and not context.has_workload_scope:
                yield path, f"{name} hits every process that calls {hook.name}: narrow the selector or scope the policy to workloads"


@_rule("kills-protected")
def _kills_protected(context: Context) -> Found:
    for hook in context.hooks:
        for key in ("matchActions", "matchReturnActions"):
            for path, name in hook.actions(key):
                if name not in ("Sigkill", "Signal"):
                    continue
                reason = _may_hit_protected(context, hook, hook.selectors[int(path[-3])])
                if reason:
                    yield (
                        path,
                        f"{name} can hit {reason}: exclude the protected executables (matchBinaries NotIn), "
                        "list the ones meant (In), or scope to workloads",
                    )


def _may_hit_protected(context: Context, hook: HookEntry, selector: Mapping[str, Any]) -> str:
    if context.has_workload_scope:
        return ""
    for one in selector.get("matchNamespaces", ()):
        if one["namespace"] in ("Pid", "Mnt") and one["operator"] == "NotIn" and "host_ns" in one["values"]:
            return ""
    if hook.section in ("uprobes", "usdts") and ".so" not in hook.raw["path"]:
        return hook.raw["path"] if hook.raw["path"] in context.protected else ""
    for one in selector.get("matchBinaries", ()):
        operator, values = one["operator"], one["values"]
        if operator in ("In", "NotIn"):
            hit = [name for name in context.protected if (name in values) == (operator == "In")]
        elif operator in ("Prefix", "NotPrefix"):
            hit = [name for name in context.protected if name.startswith(tuple(values)) == (operator == "Prefix")]
        else:
            hit = [name for name in context.protected if name.endswith(tuple(values)) == (operator == "Postfix")]
        return ", ".join(hit[:3]) + (f" and {len(hit) - 3} more" if len(hit) > 3 else "")
    return "any process of the host, protected ones among them" if context.protected else ""


@_rule("action-not-for-hook")
def _action_for_hook(context: Context) -> Found:
    for hook in context.hooks:
        allowed = ALLOWED_ACTIONS[hook.section]
        for path, name in (*hook.actions(), *hook.actions("matchReturnActions")):
            if name not in allowed:
                yield path, f"action {name} does not exist for {hook.section}; allowed: {', '.join(sorted(allowed))}"
            elif name == "NotifyEnforcer" and not context.spec.get("enforcers"):
                yield path, "NotifyEnforcer needs an enforcers section in the policy"


@_rule("override-target")
def _override_target(context: Context) -> Found:
    for hook in context.hooks:
        if hook.section == "kprobes" and not hook.is_security and not hook.is_syscall:
            for path, name in hook.actions():
                if name == "Override":
                    yield path, f"Override works on system calls and security_* functions, not on {hook.name}"


@_rule("override-kprobe-multi")
def _override_multi(context: Context) -> Found:
    options = {one["name"]: one.get("value") for one in context.spec.get("options", ())}
    if context.traits.overrides and options.get("disable-kprobe-multi") not in ("1", "true"):
        yield (
            ("spec", "options"),
            f"Override on {', '.join(context.traits.overrides)} does not load on kernels with kprobe-multi: "
            'add option disable-kprobe-multi with value "1"',
        )


_KPROBE_OF = {"bprm_check_security": "security_bprm_check"}


@_rule("lsm-override-leaks")
def _lsm_override(context: Context) -> Found:
    for hook in context.hooks:
        if hook.section == "lsmhooks":
            for path, name in hook.actions():
                if name == "Override":
                    yield (
                        path,
                        f"Override in an LSM hook lets 2 to 5 of 100 attempts through when two threads race: "
                        f"use a kprobe on {_KPROBE_OF.get(hook.name, f'security_{hook.name}')}",
                    )


@_rule("return-enforcement")
def _return_enforcement(context: Context) -> Found:
    for hook in context.hooks:
        for path, name in hook.actions("matchReturnActions"):
            if name in ENFORCING:
                yield path, f"{name} on the return side runs even in monitor mode: move it to matchActions"


@_rule("enforce-without-action")
def _enforce_without_action(context: Context) -> Found:
    direct = any(name in ENFORCING for hook in context.hooks for _unused, name in hook.actions())
    if context.mode == "enforce" and not direct:
        yield ("spec",), "mode is enforce but no selector has an enforcing action outside a macro: the agent would only monitor"


@_rule("not-persistent", "warning")
def _not_persistent(context: Context) -> Found:
    if context.mode == "enforce" and context.traits.unpinned:
        version = ".".join(map(str, context.version))
        yield (
            (),
            f"agent {version} does not pin the links of {', '.join(context.traits.unpinned)}: enforcement ends whenever the agent stops",
        )


_SYSCALL_NAMES = ("list:", "sys_", "__x64_sys_", "__arm64_sys_", "__ia32_sys_")


@_rule("syscall-default")
def _syscall_default(context: Context) -> Found:
    for hook in context.hooks:
        call = hook.name
        is_function = hook.section in ("kprobes", "fentries") and not call.startswith(_SYSCALL_NAMES)
        if is_function and hook.raw.get("syscall", True):
            yield hook.path, f"{call} is no system call, and syscall is true unless said otherwise: add syscall: false"


@_rule("lsm-without-selector")
def _lsm_without_selector(context: Context) -> Found:
    for hook in context.hooks:
        if hook.section == "lsmhooks" and not hook.selectors:
            yield hook.path, f"LSM hook {hook.name} without selectors never posts an event: add one, be it empty ({{}})"


@_rule("unknown-option")
def _unknown_option(context: Context) -> Found:
    for index, option in enumerate(context.spec.get("options", ())):
        if option["name"] not in OPTIONS:
            yield (
                ("spec", "options", index),
                f"option {option['name']!r} is not known and the agent ignores it silently; known: {', '.join(sorted(OPTIONS))}",
            )


@_rule("operator-not-for-type")
def _operator_for_type(context: Context) -> Found:
    for hook in context.hooks:
        args, data = declared(hook.raw.get("args", ())), declared(hook.raw.get("data", ()))
        return_type = (hook.raw.get("returnArg") or {}).get("type", "int")
        for index, selector in enumerate(hook.selectors):
            for key in ("matchArgs", "matchData", "matchReturnArgs"):
                for position, one in enumerate(selector.get(key, ())):
                    path = (*hook.path, "selectors", index, key, position)
                    if key == "matchReturnArgs":
                        yield from _bad_operator(path, one, return_type)
                        continue
                    target = addressed(one, args, hook.section) if key == "matchArgs" else addressed_data(one, data)
                    if target is None:
                        yield path, f"filters an argument that the hook does not list under {'args' if key == 'matchArgs' else 'data'}"
                    else:
                        yield from _bad_operator(path, one, target.type)


_UNMODELLED = frozenset(["CelExpr", "CapabilitiesGained", "SubString", "SubStringIgnCase"])


def _bad_operator(path: Where, one: Mapping[str, Any], type_: str) -> Found:
    operator, values = one["operator"], one.get("values", ())
    if operator in _UNMODELLED or type_ in ("sockaddr_un", "fd", "auto"):
        return
    if operator in filters.TEXT_OPERATORS - {"Equal", "NotEqual"} and type_ in {*filters.INTEGERS, *filters.SOCKET_TYPES}:
        yield path, f"{operator} on an argument of type {type_} loads and never matches"
        return
    if operator not in filters.PRIVILEGED_OPERATORS and not values:
        yield path, f"{operator} needs values"
        return
    try:
        filters.compile_filter(operator, values, type_)
    except filters.Unsupported as error:
        if "list:" not in str(values):
            yield path, str(error)


@_rule("multiple-entries")
def _multiple_entries(context: Context) -> Found:
    for hook in context.hooks:
        for index, selector in enumerate(hook.selectors):
            for key in ("matchPIDs", "matchCapabilities", "matchCapabilityChanges"):
                if len(selector.get(key, ())) > 1:
                    yield (
                        (*hook.path, "selectors", index, key),
                        f"the agent reads only the first entry of {key} and misreads what follows: keep one",
                    )


@_rule("ceiling")
def _ceilings(context: Context) -> Found:
    for hook in context.hooks:
        arguments = len(hook.raw.get("args", ())) + len(hook.raw.get("data", ()))
        if arguments > MAX_ARGUMENTS:
            yield hook.path, f"has {arguments} args and data; at most {MAX_ARGUMENTS}"
        for position, one in enumerate(hook.raw.get("args", ())):
            if one["index"] > 4 and hook.section not in ("tracepoints", "usdts"):
                yield (*hook.path, "args", position, "index"), f"is {one['index']}; the agent reads function arguments 0 to 4"
        if len(hook.selectors) > MAX_SELECTORS:
            yield (*hook.path, "selectors"), f"has {len(hook.selectors)} selectors; at most {MAX_SELECTORS}"
        for tag in hook.raw.get("tags", ()):
            if len(tag) < 2:
                yield (*hook.path, "tags"), f"tag {tag!r} is too short; at least 2 characters"
        if "message" in hook.raw and not 2 <= len(hook.raw["message"]) <= 256:
            yield (*hook.path, "message"), f"has {len(hook.raw['message'])} characters; 2 to 256 are kept"
        for index, selector in enumerate(hook.selectors):
            yield from _selector_ceilings((*hook.path, "selectors", index), hook, selector)


def _selector_ceilings(path: tuple[str | int, ...], hook: HookEntry, selector: Mapping[str, Any]) -> Found:
    for key in ("matchActions", "matchReturnActions"):
        if len(selector.get(key, ())) > MAX_ACTIONS:
            yield (*path, key), f"has {len(selector[key])} actions; at most {MAX_ACTIONS}"
    argument_filters = len(selector.get("matchArgs", ())) + len(selector.get("matchData", ()))
    if argument_filters > MAX_FILTERS:
        yield path, f"has {argument_filters} argument filters; at most {MAX_FILTERS}"
    for position, one in enumerate(selector.get("matchNamespaces", ())):
        if len(one["values"]) > 4:
            yield (*path, "matchNamespaces", position), f"has {len(one['values'])} values; at most 4"
    for key in ("matchBinaries", "matchParentBinaries"):
        for one in selector.get(key, ()):
            limit = 127 if "Postfix" in one["operator"] else 255
            for value in one["values"]:
                if len(value.encode()) > limit:
                    yield (*path, key), f"value {value[:40]!r}... has {len(value.encode())} bytes; at most {limit}"
    types = {arg["index"]: arg["type"] for arg in hook.raw.get("args", ())}
    for position, one in enumerate(selector.get("matchArgs", ())):
        operator, values = one["operator"], one.get("values", ())
        here = (*path, "matchArgs", position)
        numeric = types.get(one.get("index", 0)) in filters.INTEGERS
        if numeric and operator in filters.NUMBER_OPERATORS - filters.SET_OPERATORS and len(values) > MAX_NUMBERS:
            yield here, f"{operator} takes at most {MAX_NUMBERS} numbers, has {len(values)}: use InMap"
        limit = {"Prefix": 255, "NotPrefix": 255, "Postfix": 127, "NotPostfix": 127}.get(operator, 4096)
        for value in values:
            if len(value.encode()) > limit:
                yield here, f"value {value[:40]!r}... has {len(value.encode())} bytes; {operator} takes at most {limit}"


def lint_set(policies: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Ceilings that all policies of one host share; each policy as its rendered document."""
    findings = []
    trampolines: Counter[str] = Counter()
    followers = workload = 0
    for document in policies:
        spec = document["spec"]
        for hook in hook_entries(spec):
            overridden = hook.is_security and any(name == "Override" for _unused, name in hook.actions())
            if hook.section in ("lsmhooks", "fentries") or overridden:
                trampolines[hook.name if hook.section != "lsmhooks" else f"bpf_lsm_{hook.name}"] += 1
            followers += sum(bool(one.get("followChildren")) for s in hook.selectors for one in s.get("matchBinaries", ()))
        workload += any(spec.get(key) is not None for key in WORKLOAD_SELECTORS) or "namespace" in document["metadata"]
    for function, count in sorted(trampolines.items()):
        if count > MAX_TRAMPOLINES_PER_FUNCTION:
            findings.append(
                Finding(
                    "ceiling",
                    "error",
                    "all policies",
                    "",
                    f"{count} programs on {function}; the kernel takes {MAX_TRAMPOLINES_PER_FUNCTION}",
                )
            )
    if workload > MAX_WORKLOAD_POLICIES:
        findings.append(
            Finding(
                "ceiling", "error", "all policies", "", f"{workload} policies select workloads; the agent takes {MAX_WORKLOAD_POLICIES}"
            )
        )
    if followers > MAX_FOLLOW_CHILDREN:
        findings.append(
            Finding(
                "ceiling", "error", "all policies", "", f"{followers} selectors use followChildren; the agent takes {MAX_FOLLOW_CHILDREN}"
            )
        )
    return findings
