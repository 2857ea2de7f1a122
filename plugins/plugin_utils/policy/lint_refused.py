# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Checks for what the agent refuses to load. Facts: its loader of v1.7.0 and main, read and tried."""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.lint_base import (
    ACTION_KEYS,
    Check,
    Context,
    Filter,
    Found,
    register,
)
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.schema import HOOK_SECTIONS, Version
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.traits import ENFORCING, HookEntry

CHECKS: dict[str, Check] = {}
check = register(CHECKS)

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

# type -> (bits compared, signed). size_t compares its low 32 bits only (R2.3.10-14).
INTEGERS: Mapping[str, tuple[int, bool]] = {
    **dict.fromkeys(("int", "int32", "sint32", "size_t"), (32, True)),
    "uint32": (32, False),
    **dict.fromkeys(("int64", "sint64", "long", "syscall64"), (64, True)),
    **dict.fromkeys(("uint64", "ulong"), (64, False)),
    **dict.fromkeys(("int16", "sint16"), (16, True)),
    "uint16": (16, False),
    **dict.fromkeys(("int8", "sint8"), (8, True)),
    "uint8": (8, False),
}
CAPABILITY_TYPES = frozenset(["kernel_cap_t", "cap_inheritable", "cap_permitted", "cap_effective"])
SOCKETS = frozenset(["sock", "socket", "skb", "sockaddr"])
TEXTS = frozenset(["string", "char_buf", "net_device", "data_loc", "file", "path", "dentry", "linux_binprm", "fd", "sockaddr_un"])
ENDS = frozenset(["Prefix", "NotPrefix", "Postfix", "NotPostfix"])
EXACT = frozenset(["Equal", "NotEqual"])
ORDERED = frozenset(["GT", "GreaterThan", "LT", "LessThan", "Mask"])
RANGES = frozenset(["InRange", "NotInRange"])
SETS = frozenset(["InMap", "NotInMap"])
PORTS = frozenset(["SPort", "NotSPort", "DPort", "NotDPort"])
PRIVILEGED = frozenset(["SPortPriv", "NotSportPriv", "DPortPriv", "NotDPortPriv"])
ADDRESSES = frozenset(["SAddr", "NotSAddr", "DAddr", "NotDAddr"])
NAMED = frozenset(["Protocol", "Family", "State"])
SUBSTRINGS = frozenset(["SubString", "SubStringIgnCase"])
FILE_TYPES = frozenset("sock socket lnk link reg regular blk block dir chr char fifo pipe".split())
CAPABILITIES = frozenset(
    (
        "CAP_CHOWN DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_FSETID CAP_KILL CAP_SETGID CAP_SETUID CAP_SETPCAP "
        "CAP_LINUX_IMMUTABLE CAP_NET_BIND_SERVICE CAP_NET_BROADCAST CAP_NET_ADMIN CAP_NET_RAW CAP_IPC_LOCK CAP_IPC_OWNER "
        "CAP_SYS_MODULE CAP_SYS_RAWIO CAP_SYS_CHROOT CAP_SYS_PTRACE CAP_SYS_PACCT CAP_SYS_ADMIN CAP_SYS_BOOT CAP_SYS_NICE "
        "CAP_SYS_RESOURCE CAP_SYS_TIME CAP_SYS_TTY_CONFIG CAP_MKNOD CAP_LEASE CAP_AUDIT_WRITE CAP_AUDIT_CONTROL CAP_SETFCAP "
        "CAP_MAC_OVERRIDE CAP_MAC_ADMIN CAP_SYSLOG CAP_WAKE_ALARM CAP_BLOCK_SUSPEND CAP_AUDIT_READ CAP_PERFMON CAP_BPF "
        "CAP_CHECKPOINT_RESTORE"
    ).split()
)
MAX_SELECTORS, MAX_ACTIONS, MAX_FILTERS, MAX_ARGUMENTS, MAX_NUMBERS, MAX_MAPS = 5, 3, 5, 5, 4, 8


@check("one-section")
def _one_section(context: Context) -> Found:
    used = [section for section in HOOK_SECTIONS if context.spec.get(section)]
    if len(used) > 1:
        yield ("spec",), f"has hooks in {', '.join(used)}: the agent loads one section per policy; make it {len(used)} policies"


@check("no-hooks")
def _no_hooks(context: Context) -> Found:
    if not any(context.spec.get(section) for section in (*HOOK_SECTIONS, "loader", "enforcers")):
        yield ("spec",), f"has no hooks; needed: one of {', '.join(HOOK_SECTIONS)}"


@check("action-not-for-hook")
def _action_for_hook(context: Context) -> Found:
    for action in context.actions:
        section = action.hook.section
        if section == "fentries" and action.key == "matchReturnActions" and action.name in ENFORCING:
            continue  # the loader does not look there, see return-enforcement
        if action.name not in ALLOWED_ACTIONS[section]:
            allowed = ", ".join(sorted(ALLOWED_ACTIONS[section]))
            yield action.path, f"action {action.name} does not exist for {section}; allowed: {allowed}"


@check("enforcers")
def _enforcers(context: Context) -> Found:
    enforcers = context.spec.get("enforcers", ())
    for action in context.actions:
        if action.name == "NotifyEnforcer" and not enforcers:
            yield action.path, "NotifyEnforcer needs an enforcers section in the policy"
    if len(enforcers) > 1:
        yield ("spec", "enforcers"), f"has {len(enforcers)} entries; the agent takes one: put all calls into it"
    for index, one in enumerate(enforcers):
        for place, call in enumerate(one["calls"]):
            if not call.startswith(("sys_", "__", "security_", "list:")):
                yield ("spec", "enforcers", index, "calls", place), f"{call} is neither a system call nor a security_* function"


@check("override-target")
def _override_target(context: Context) -> Found:
    for action in context.actions:
        hook = action.hook
        if action.name == "Override" and hook.section == "kprobes" and not hook.is_security and not hook.is_syscall:
            yield action.path, f"Override works on system calls and security_* functions, not on {hook.name}"


@check("override-kprobe-multi")
def _override_multi(context: Context) -> Found:
    if context.traits.overrides and context.kprobe_multi:
        yield (
            ("spec", "options"),
            f"Override on {', '.join(context.traits.overrides)} does not load on kernels with kprobe-multi: "
            'add option disable-kprobe-multi with value "1"',
        )


@check("duplicate-symbol")
def _duplicate_symbol(context: Context) -> Found:
    seen: dict[str, int] = {}
    for index, hook in enumerate(hook for hook in context.hooks if hook.section == "kprobes"):
        for name in context.functions(hook):
            if name in seen and seen[name] != index and context.kprobe_multi:
                yield (
                    hook.path,
                    f"{name} is hooked twice, which kernels with kprobe-multi refuse: make it one hook, or disable-kprobe-multi",
                )
            seen.setdefault(name, index)


@check("kernel-lacks")
def _kernel_lacks(context: Context) -> Found:
    for one in context.traits.requirements:
        if one.kind == "probe" and context.kernel.lacks(*one.any_of):
            yield ("spec",), f"{one.reason} needs {' or '.join(one.any_of)}, which the kernels of this environment do not have"
    if context.spec.get("enforcers") and context.kernel.lacks("override_return", "fmodret_syscall"):
        yield ("spec", "enforcers"), "needs override_return or fmodret_syscall, which the kernels of this environment do not have"
    for path, what, needed in _by_release(context):
        if context.kernel.release < needed:
            seen = ".".join(map(str, context.kernel.release))
            yield path, f"{what} needs Linux {needed[0]}.{needed[1]}; the oldest of this environment is {seen}"


def _by_release(context: Context) -> Iterator[tuple[tuple[str | int, ...], str, tuple[int, int]]]:
    for hook, path, selector in context.selectors():
        for key in ("matchNamespaceChanges", "matchCapabilityChanges", "matchParentBinaries"):
            if selector.get(key):
                yield (*path, key), key, (5, 3)
        if sum(len(selector.get(key, ())) for key in ("matchArgs", "matchData")) > 1:
            yield path, "more than one argument filter in a selector", (5, 3)
        if hook.section == "kprobes" and any(one["action"] in ("Sigkill", "Signal") for one in selector.get("matchActions", ())):
            yield (*path, "matchActions"), "Sigkill or Signal", (5, 3)
    for hook in context.hooks:
        for key in ("args", "data"):
            for place, one in enumerate(hook.raw.get(key, ())):
                if one.get("resolve"):
                    yield (*hook.path, key, place), "resolve", (5, 4)
    for one in context.filters:
        if one.type == "sockaddr_un":
            yield one.path, "a filter on sockaddr_un", (5, 11)
        if one.operator in ENDS and "Post" in one.operator and any(len(value.encode()) > 94 for value in one.values):
            yield one.path, "an end of more than 94 bytes", (5, 3)
        longest = max((len(value.encode()) for value in one.values), default=0)
        if one.operator in EXACT and one.type in TEXTS and longest > 510:
            yield one.path, f"a value of {longest} bytes", (5, 11)


@check("operator-not-for-type")
def _operator_for_type(context: Context) -> Found:
    for one in context.filters:
        if one.argument is None:
            listed = "data" if one.key == "matchData" else "args"
            yield one.path, f"filters an argument that the hook does not list under {listed}"
        elif one.type != "auto":
            problem = refused(one.operator, one.type, context.version) or next(bad_values(one), "")
            if problem:
                yield one.path, problem


def refused(operator: str, type_: str, version: Version) -> str:
    """Why the loader refuses this operator on an argument of this type; empty when it takes it (R2.3.6, R2.3.23, R2.3.28)."""
    base = operator.removeprefix("Not")
    if operator in EXACT:
        taken = type_ in INTEGERS or type_ in CAPABILITY_TYPES or (type_ in TEXTS and (type_ != "dentry" or version >= (1, 7, 1)))
        hint = "; agents from 1.7.1 on take it" if type_ == "dentry" else ""
    elif operator in ORDERED or operator in RANGES:
        taken, hint = type_ in INTEGERS or type_ in CAPABILITY_TYPES, ""
    elif operator in SETS:
        taken, hint = type_ in INTEGERS, ""
    elif base in ("FileType",):
        taken, hint = type_ in ("file", "path"), "; needed: file or path"
    elif operator in PORTS | PRIVILEGED | ADDRESSES | NAMED:
        taken = type_ in SOCKETS or (type_ == "sockaddr_un" and operator == "Family")
        if type_ == "sockaddr" and (base[0] == "D" or operator in ("Protocol", "State")):
            taken = False
        hint = "; a sockaddr has an address (SAddr), a port (SPort) and a family alone" if type_ == "sockaddr" else ""
    elif operator == "CapabilitiesGained":
        taken, hint = type_ in CAPABILITY_TYPES, "; needed: two capability sets"
    else:
        return ""
    return "" if taken else f"the agent refuses {operator} on an argument of type {type_}{hint}"


def bad_values(one: Filter) -> Iterator[str]:
    """Values that the loader cannot read (R2.3.8, R2.3.13, R2.3.23, R2.3.31, R2.3.35)."""
    operator = one.operator
    for value in one.values:
        if value.startswith("list:") and operator in SETS:
            continue
        if operator in SETS | PORTS and not re.fullmatch(r"-?[0-9]+(:-?[0-9]+)?", value):
            yield f"value {value!r} is no decimal number or range lo:hi"
        elif operator in RANGES and (value.count(":") != 1 or None in map(integer, value.split(":"))):
            yield f"value {value!r} is no range min:max"
        elif operator in EXACT | ORDERED and one.type in INTEGERS:
            yield from _bad_number(value, one.type)
        elif operator in EXACT | ORDERED and one.type in CAPABILITY_TYPES and integer(value) is None:
            yield from bad_capabilities(value.split(","))
        elif operator in NAMED and not re.fullmatch(r"(AF|IPPROTO|TCP)_[A-Z0-9_]+|[0-9]+(:[0-9]+)?", value):
            yield f"value {value!r} is no {operator.lower()}: needed: a name such as AF_INET, IPPROTO_TCP or TCP_LISTEN, or a number"
        elif operator in ("FileType", "NotFileType") and value not in FILE_TYPES:
            yield f"file type {value!r} is not known; known: {', '.join(sorted(FILE_TYPES))}"
        elif operator in ADDRESSES:
            try:
                ipaddress.ip_network(value, strict=False)
            except ValueError as error:
                yield f"address {error}"


def integer(text: str) -> int | None:
    """A number as the agent reads it: decimal, 0x, 0b, and a leading 0 for octal (R2.3.8). None when it is none."""
    sign, body = (-1, text[1:]) if text[:1] == "-" else (1, text)
    try:
        return sign * (int(body, 8) if re.fullmatch(r"0[0-7]+", body) else int(body, 0))
    except ValueError:
        return None


def _bad_number(value: str, type_: str) -> Iterator[str]:
    number = integer(value)
    bits, signed = INTEGERS[type_]
    if type_ == "size_t":
        bits = 64  # read as 64 bits and cut, see the rule size-t
    bits = max(bits, 32)
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    if number is None:
        yield f"value {value!r} is no number"
    elif not low <= number <= high:
        yield f"value {value} does not fit {type_}: {low} to {high}"


def bad_capabilities(names: Sequence[str]) -> Iterator[str]:
    """Names of capabilities that the agent does not know."""
    for name in (one.strip() for one in names):
        if name not in CAPABILITIES:
            hint = "; the agent spells it DAC_OVERRIDE" if name == "CAP_DAC_OVERRIDE" else ""
            yield f"capability {name!r} is not known{hint}"


@check("capability-name")
def _capability_name(context: Context) -> Found:
    for _hook, path, selector in context.selectors():
        for key in ("matchCapabilities", "matchCapabilityChanges"):
            for place, one in enumerate(selector.get(key, ())):
                for problem in bad_capabilities(one["values"]):
                    yield (*path, key, place), problem


@check("ceiling")
def _ceilings(context: Context) -> Found:
    for hook in context.hooks:
        arguments = len(hook.raw.get("args", ())) + len(hook.raw.get("data", ()))
        if arguments > (8 if hook.section == "usdts" else MAX_ARGUMENTS):
            yield hook.path, f"has {arguments} args and data; at most {8 if hook.section == 'usdts' else MAX_ARGUMENTS}"
        for position, one in enumerate(hook.raw.get("args", ())):
            if one["index"] > 4 and hook.section not in ("tracepoints", "usdts"):
                yield (*hook.path, "args", position, "index"), f"is {one['index']}; the agent reads function arguments 0 to 4"
        if len(hook.selectors) > MAX_SELECTORS:
            yield (*hook.path, "selectors"), f"has {len(hook.selectors)} selectors; at most {MAX_SELECTORS}"
        for tag in hook.raw.get("tags", ()):
            if len(tag) < 2:
                yield (*hook.path, "tags"), f"tag {tag!r} is too short; at least 2 characters"
        if len(hook.raw.get("message", "ab")) < 2:
            yield (*hook.path, "message"), f"has {len(hook.raw['message'])} characters; at least 2"
        yield from _substrings(context, hook)
    for _hook, path, selector in context.selectors():
        yield from _selector_ceilings(path, selector)
    for one in context.filters:
        yield from _filter_ceilings(one)
    expressions = sum(one.operator == "CelExpr" for one in context.filters)
    if expressions > 8:
        yield ("spec",), f"has {expressions} filters CelExpr; at most 8 in a policy"


def _selector_ceilings(path: tuple[str | int, ...], selector: Mapping[str, Any]) -> Found:
    for key in ACTION_KEYS:
        if len(selector.get(key, ())) > MAX_ACTIONS:
            yield (*path, key), f"has {len(selector[key])} actions; at most {MAX_ACTIONS}"
    argument_filters = len(selector.get("matchArgs", ())) + len(selector.get("matchData", ()))
    if argument_filters > MAX_FILTERS:
        yield path, f"has {argument_filters} argument filters; at most {MAX_FILTERS}"
    if len(selector.get("matchNamespaces", ())) > 10:
        yield (*path, "matchNamespaces"), f"has {len(selector['matchNamespaces'])} entries; at most 10"
    if len(selector.get("matchNamespaceChanges", ())) > 1:
        yield (*path, "matchNamespaceChanges"), f"has {len(selector['matchNamespaceChanges'])} entries; at most 1"
    for position, one in enumerate(selector.get("matchNamespaces", ())):
        if len(one["values"]) > 4:
            yield (*path, "matchNamespaces", position), f"has {len(one['values'])} values; at most 4"
    for key in ("matchBinaries", "matchParentBinaries"):
        for one in selector.get(key, ()):
            limit = 127 if "Postfix" in one["operator"] else 255
            for value in one["values"]:
                if len(value.encode()) > limit:
                    yield (*path, key), f"value {value[:40]!r}... has {len(value.encode())} bytes; at most {limit}"
            if one.get("followChildren") and one["operator"] not in ("In", "NotIn"):
                yield (*path, key), f"followChildren goes with In and NotIn, not with {one['operator']}"


def _filter_ceilings(one: Filter) -> Found:
    limited = EXACT | ORDERED if one.type in INTEGERS or one.type in CAPABILITY_TYPES else frozenset()
    if one.operator in limited | RANGES | {"FileType", "NotFileType"} and len(one.values) > MAX_NUMBERS:
        yield one.path, f"{one.operator} takes at most {MAX_NUMBERS} values, has {len(one.values)}: use InMap for numbers"
    if one.operator == "CelExpr" and len(one.values) != 1:
        yield one.path, f"CelExpr takes one expression, has {len(one.values)}"
    limit = {"Prefix": 256, "Postfix": 127, "SubString": 99, "SubStringIgnCase": 99}.get(one.base, 4096)
    for value in one.values:
        if len(value.encode()) > limit:
            yield one.path, f"value {value[:40]!r}... has {len(value.encode())} bytes; {one.operator} takes at most {limit}"


def _substrings(context: Context, hook: HookEntry) -> Found:
    """Outside of uprobes the map of substrings has one slot (R2.3.24)."""
    found = [(one.path, len(one.values)) for one in context.filters_of(hook) if one.operator in SUBSTRINGS]
    limit = 100 if hook.section == "uprobes" else 1
    if sum(count for _unused, count in found) > limit:
        yield found[-1][0], f"the hook searches for {sum(count for _unused, count in found)} substrings; at most {limit}"


@check("filter-maps")
def _filter_maps(context: Context) -> Found:
    """A program has 8 maps per family; kprobes that share a program share those of texts (R1.11, R1.13)."""
    counts: Counter[tuple[Any, str]] = Counter()
    for one in context.filters:
        program = "all kprobes" if one.hook.section == "kprobes" and context.kprobe_multi else one.hook.path
        for family in _families(one):
            counts[program, family] += 1
    for (program, family), count in counts.items():
        if count > MAX_MAPS:
            path = ("spec",) if program == "all kprobes" else program
            yield path, f"has {count} filters that need a map of {family}; a program has {MAX_MAPS}: join their values, or split the policy"


def _families(one: Filter) -> Iterator[str]:
    if one.operator in EXACT and one.type in TEXTS:
        sizes = sorted({_size_class(len(value.encode())) for value in one.values})
        yield from (f"texts of up to {size} bytes" for size in sizes)
    elif one.operator in ENDS and one.type in TEXTS:
        yield one.base.lower() + "es"
    elif one.operator in SETS | PORTS | NAMED:
        yield "numbers"
    elif one.operator in ADDRESSES:
        yield from sorted({"IPv6 addresses" if ":" in value else "IPv4 addresses" for value in one.values})


def _size_class(size: int) -> int:
    steps = (24, 48, 72, 96, 120, 144, 256, 512, 1024, 2048, 4096)
    return next((step for step in steps if size <= step), steps[-1])


@check("argument-type")
def _argument_type(context: Context) -> Found:
    barred = {"kprobes": ("auto", "syscall64"), "tracepoints": ("const_buf",)}
    for hook in context.hooks:
        for place, one in enumerate(hook.raw.get("args", ())):
            if one["type"] in barred.get(hook.section, ()):
                yield (*hook.path, "args", place, "type"), f"type {one['type']} cannot be chosen for {hook.section}"
            if one.get("sizeArgIndex", 0) > 15:
                yield (*hook.path, "args", place, "sizeArgIndex"), f"is {one['sizeArgIndex']}; at most 15, counted from 1"


@check("argument-source")
def _argument_source(context: Context) -> Found:
    for hook in context.hooks:
        for place, one in enumerate(hook.raw.get("args", ())):
            path = (*hook.path, "args", place)
            if one.get("source") and hook.section in ("kprobes", "fentries", "uprobes"):
                yield path, "source stands in data only: move the entry there"
            if one.get("resolve") and hook.section == "tracepoints" and not hook.raw.get("raw"):
                yield path, "resolve works on raw tracepoints only"
        for place, one in enumerate(hook.raw.get("data", ())):
            path = (*hook.path, "data", place)
            if not one.get("resolve") or one.get("source") not in ("current_task", "pt_regs"):
                yield path, "needs resolve, and source: current_task or pt_regs"
            elif one["source"] == "current_task" and hook.section == "uprobes":
                yield path, "source current_task does not work in uprobes; needed: pt_regs"


@check("return-argument")
def _return_argument(context: Context) -> Found:
    for hook in context.hooks:
        if hook.raw.get("return") and not hook.raw.get("returnArg"):
            yield hook.path, "return is true and returnArg is missing: say index and type of what is returned"
        wanted = hook.raw.get("returnArgAction")
        if wanted and wanted not in ("TrackSock", "UntrackSock") and context.version >= (1, 7, 0):
            yield (*hook.path, "returnArgAction"), f"is {wanted!r}; allowed: TrackSock, UntrackSock (1.6 took Post as well)"
    for _hook, path, selector in context.selectors():
        if path[1] == "lsmhooks" and selector.get("matchReturnArgs"):
            yield (*path, "matchReturnArgs"), "LSM hooks run before the outcome is known and take no matchReturnArgs"


@check("namespaced-scope")
def _namespaced_scope(context: Context) -> Found:
    if context.namespace is None:
        return
    if context.spec.get("hostSelector") is not None:
        yield ("spec", "hostSelector"), "a policy of a namespace cannot select the host"
    for section in ("uprobes", "usdts"):
        if context.spec.get(section) and context.version >= (1, 7, 1):
            yield ("spec", section), f"agents from 1.7.1 on refuse {section} in a policy of a namespace"


@check("macro")
def _macro(context: Context) -> Found:
    macros = context.spec.get("selectorsMacros", {})
    for name, one in macros.items():
        if one.get("macros"):
            yield ("spec", "selectorsMacros", name, "macros"), "macros cannot use macros"
    for section in HOOK_SECTIONS:
        for index, hook in enumerate(context.spec.get(section, ())):
            for place, selector in enumerate(hook.get("selectors", ())):
                path = ("spec", section, index, "selectors", place)
                taken = set(selector)
                for name in selector.get("macros", ()):
                    if name not in macros:
                        yield (*path, "macros"), f"no macro {name!r}; known: {', '.join(macros) or 'none'}"
                    for key in macros.get(name, {}):
                        if key in taken:
                            yield (*path, "macros"), f"macro {name!r} sets {key}, which is set already"
                        taken.add(key)


@check("list")
def _list(context: Context) -> Found:
    lists = {one["name"]: one for one in context.spec.get("lists", ())}
    known = ", ".join(lists) or "none"
    for hook in context.hooks:
        if hook.name.startswith("list:") and hook.section in ("kprobes", "fentries") and hook.name[5:] not in lists:
            yield (*hook.path, "call"), f"no list {hook.name[5:]!r}; known: {known}"
    for index, one in enumerate(context.spec.get("enforcers", ())):
        for place, call in enumerate(one["calls"]):
            if call.startswith("list:") and call[5:] not in lists:
                yield ("spec", "enforcers", index, "calls", place), f"no list {call[5:]!r}; known: {known}"
    for one in context.filters:
        for value in one.values:
            if value.startswith("list:") and one.operator in SETS:
                if one.hook.section != "tracepoints":
                    yield one.path, f"values from a list work on tracepoints only, not on {one.hook.section}"
                elif one.type != "syscall64":
                    yield one.path, f"values from a list need an argument of type syscall64, not {one.type}"
                elif value[5:] not in lists:
                    yield one.path, f"no list {value[5:]!r}; known: {known}"


@check("uprobe-place")
def _uprobe_place(context: Context) -> Found:
    for hook in context.hooks:
        if hook.section == "uprobes":
            kinds = [key for key in ("symbols", "offsets", "addrs") if hook.raw.get(key)]
            if len(kinds) != 1:
                yield hook.path, f"has {' and '.join(kinds) or 'none'} of symbols, offsets, addrs; needed: one of them"
            elif hook.raw.get("refCtrOffsets") and len(hook.raw["refCtrOffsets"]) != len(hook.raw[kinds[0]]):
                yield (
                    (*hook.path, "refCtrOffsets"),
                    f"has {len(hook.raw['refCtrOffsets'])} entries for {len(hook.raw[kinds[0]])} {kinds[0]}",
                )


@check("action-option")
def _action_option(context: Context) -> Found:
    for action in context.actions:
        traced = [key for key in ("kernelStackTrace", "userStackTrace") if action.raw.get(key)]
        if traced and (action.name != "Post" or action.hook.section == "lsmhooks"):
            yield action.path, f"{traced[0]} goes with Post, and not in LSM hooks"
        if action.raw.get("imaHash") and action.hook.section != "lsmhooks":
            yield action.path, "imaHash works in LSM hooks only"
        limit = action.raw.get("rateLimit")
        if limit is not None and not re.fullmatch(r"[0-9]+[smh]?", limit):
            yield (*action.path, "rateLimit"), f"is {limit!r}; needed: a number of seconds, or one with s, m or h"
        scope = action.raw.get("rateLimitScope")
        if scope is not None and scope not in ("thread", "process", "global"):
            yield (*action.path, "rateLimitScope"), f"is {scope!r}; allowed: thread, process, global"
        for key in ("GetUrl", "DnsLookup"):
            if action.name == key and action.hook.section in ("uprobes", "usdts") and context.version >= (1, 7, 1):
                yield action.path, f"agents from 1.7.1 on refuse {key} in {action.hook.section}"
