# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Checks for what the agent loads and then does otherwise than written. Facts: v1.7.0 and main, read and tried."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, zip_longest
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.lint_base import Check, Context, Filter, Found, register
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.lint_refused import (
    ADDRESSES,
    CAPABILITY_TYPES,
    ENDS,
    EXACT,
    INTEGERS,
    MAX_FILTERS,
    MAX_SELECTORS,
    NAMED,
    PORTS,
    PRIVILEGED,
    RANGES,
    SETS,
    SOCKETS,
    SUBSTRINGS,
    TEXTS,
    integer,
    refused,
)
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.traits import ENFORCING, HookEntry

CHECKS: dict[str, Check] = {}
check = register(CHECKS)

_PATHS = frozenset(["file", "path", "dentry", "linux_binprm", "fd"])
# Encoded bytes of an argument, its status left out, at most (R2.3.5).
_SIZES = {
    **dict.fromkeys(("string", "filename", "char_buf", "char_iovec", "iov_iter", "data_loc", "const_buf"), 4100),
    **dict.fromkeys(("file", "path", "dentry", "linux_binprm", "kiocb", "fd"), 4106),
    **dict.fromkeys(("int64", "sint64", "long", "uint64", "ulong", "size_t", "syscall64", *CAPABILITY_TYPES), 8),
    **dict.fromkeys(("skb", "sock", "socket"), 64), "sockaddr": 24, "sockaddr_un": 112, "cred": 88, "net_device": 20,
}  # fmt: skip
_SEEN = 2047
_BLOCK = 1024
_SOME = MAX_SELECTORS * MAX_FILTERS


@check("unknown-option")
def _unknown_option(context: Context) -> Found:
    known = ["disable-kprobe-multi", "override-method", "policy-mode"]
    known += ["disable-uprobe-multi"] if context.version >= (1, 7, 0) else []
    known += ["sleepable-preload-size"] if context.version >= (1, 8, 0) else []
    for index, option in enumerate(context.spec.get("options", ())):
        if option["name"] not in known:
            yield (
                ("spec", "options", index),
                f"option {option['name']!r} is not known and the agent ignores it silently; known: {', '.join(sorted(known))}",
            )


@check("mode-ignored")
def _mode_ignored(context: Context) -> Found:
    if context.version < (1, 4, 0) and context.options.get("policy-mode") == "monitor" and context.traits.enforcing:
        yield (
            ("spec", "options"),
            "agents before 1.4 ignore policy-mode and enforce: take the enforcing actions out, or raise the agent first",
        )


@check("pruned-field")
def _pruned_field(context: Context) -> Found:
    for key, since in (("nodeSelector", "1.8"), ("hostSelector", "1.7")):
        if context.spec.get(key) is not None:
            yield (
                ("spec", key),
                f"a cluster whose CRD is older than {since} drops {key} and applies the policy everywhere: raise the CRD first",
            )
    for _hook, path, selector in context.selectors():
        for key, since in (("matchWorkloads", "1.8"), ("matchParentBinaries", "1.7"), ("macros", "1.7")):
            if selector.get(key):
                yield (
                    (*path, key),
                    f"a cluster whose CRD is older than {since} drops {key}, and the selector matches more: raise the CRD first",
                )


@check("uprobe-scope")
def _uprobe_scope(context: Context) -> Found:
    if context.version >= (1, 7, 1):
        return
    selected = [key for key in ("podSelector", "containerSelector") if context.spec.get(key) is not None]
    for hook in context.hooks:
        if hook.section in ("uprobes", "usdts") and (selected or context.namespace is not None):
            what = " and ".join(selected) or "the namespace"
            yield hook.path, f"agents before 1.7.1 do not look at {what} in {hook.section}: every process that runs the file is hit"


@check("syscall-default")
def _syscall_default(context: Context) -> Found:
    for hook in context.hooks:
        is_function = hook.section in ("kprobes", "fentries") and not hook.name.startswith(
            ("list:", "sys_", "__x64_", "__arm64_", "__ia32_")
        )
        if is_function and hook.raw.get("syscall", True):
            yield hook.path, f"{hook.name} is no system call, and syscall is true unless said otherwise: add syscall: false"


@check("lsm-without-selector")
def _lsm_without_selector(context: Context) -> Found:
    for hook in context.hooks:
        if hook.section == "lsmhooks" and not hook.selectors:
            yield hook.path, f"LSM hook {hook.name} without selectors never posts an event: add one, be it empty ({{}})"


@check("duplicate-lsm-hook")
def _duplicate_lsm(context: Context) -> Found:
    counts = Counter(hook.name for hook in context.hooks if hook.section == "lsmhooks")
    for hook in context.hooks:
        if hook.section == "lsmhooks" and counts[hook.name] > 1 and context.version < (1, 7, 1):
            yield (
                hook.path,
                f"{hook.name} stands here {counts[hook.name]} times: agents before 1.7.1 use the selectors of the last one alone",
            )


@check("lsm-echo")
def _lsm_echo(context: Context) -> Found:
    for hook in context.hooks:
        if hook.section == "lsmhooks" and context.scoped(hook):
            yield hook.path, "with workload selectors an LSM hook repeats the last event of a CPU for calls that the selectors reject"


@check("lsm-error-number")
def _lsm_error(context: Context) -> Found:
    for action in context.actions:
        if action.hook.section == "lsmhooks" and action.name == "Override" and action.raw.get("argError", -1) != -1:
            yield (*action.path, "argError"), f"is {action.raw['argError']}; LSM hooks answer -1 (EPERM), whatever it says"


@check("override-without-error")
def _override_without_error(context: Context) -> Found:
    for action in context.actions:
        if action.name == "Override" and (action.hook.section == "lsmhooks" or action.hook.is_security) and not action.raw.get("argError"):
            yield action.path, "Override without argError answers 0, which lets the call go on: add argError: -1"


@check("signal-without-number")
def _signal_without_number(context: Context) -> Found:
    for action in context.actions:
        if action.name == "Signal" and not action.raw.get("argSig"):
            yield action.path, "Signal without argSig sends signal 0, which does nothing: add argSig"
        if action.name == "NotifyEnforcer" and not action.raw.get("argSig") and not action.raw.get("argError"):
            yield action.path, "NotifyEnforcer without argError and argSig makes the enforcer do nothing: add one"


@check("action-without-effect")
def _action_without_effect(context: Context) -> Found:
    for action in context.actions:
        if action.key == "matchReturnActions":
            if action.name in ("Override", "NotifyEnforcer", "Set"):
                yield action.path, f"{action.name} does nothing on the return side: move it to matchActions"
            elif action.hook.section in ("lsmhooks", "tracepoints", "usdts"):
                yield action.path, f"{action.hook.section} have no return side: move it to matchActions"
        elif action.name in ("GetUrl", "DnsLookup"):
            listed = action.selector["matchActions"]
            if action.raw is not listed[-1] or any(one["action"] == "NoPost" for one in listed):
                yield action.path, f"{action.name} happens only as the last action, of an event that is posted"


@check("return-enforcement")
def _return_enforcement(context: Context) -> Found:
    for action in context.actions:
        if action.key == "matchReturnActions" and action.name in ("Sigkill", "Signal"):
            yield action.path, f"{action.name} on the return side runs even in monitor mode: move it to matchActions"


@check("enforce-without-action")
def _enforce_without_action(context: Context) -> Found:
    if context.mode == "enforce" and not _acts(context.spec):
        yield ("spec",), "mode is enforce but no selector has an enforcing action outside a macro: the agent would only monitor"


@check("macro-enforcement")
def _macro_enforcement(context: Context) -> Found:
    if context.mode == "enforce":
        return  # enforce-without-action says it
    for name, macro in context.spec.get("selectorsMacros", {}).items():
        if any(one["action"] in ENFORCING for one in macro.get("matchActions", ())) and not _acts(context.spec):
            yield (
                ("spec", "selectorsMacros", name, "matchActions"),
                "the agent looks for enforcing actions outside of macros: it only monitors",
            )


def _acts(spec: Mapping[str, Any]) -> bool:
    """Whether the agent finds an enforcing action; it looks neither into macros nor at the return side (R3.10)."""
    return any(
        action["action"] in ENFORCING
        for section in ("kprobes", "tracepoints", "lsmhooks", "uprobes", "usdts")
        for hook in spec.get(section, ())
        for selector in hook.get("selectors", ())
        for action in selector.get("matchActions", ())
    )


@check("filter-constant")
def _filter_constant(context: Context) -> Found:
    for one in context.filters:
        if one.argument is not None and one.type != "auto" and not refused(one.operator, one.type, context.version):
            problem = _constant(one, context)
            if problem:
                yield one.path, problem


def _constant(one: Filter, context: Context) -> str:
    """Why this filter gives the same answer for every argument; empty when it does not."""
    operator, type_ = one.operator, one.type
    if operator not in PRIVILEGED and operator != "CapabilitiesGained" and not one.values:
        return f"{operator} has no values to compare with"
    if operator in ENDS:
        if type_ in INTEGERS or type_ in SOCKETS or type_ in CAPABILITY_TYPES:
            return f"{operator} on an argument of type {type_} loads and never matches"
        if type_ not in TEXTS or (type_ == "sockaddr_un" and one.base == "Postfix"):
            return f"{operator} on an argument of type {type_} loads and matches always: the kernel has no comparison for it"
        if one.base == "Prefix" and "" in one.values:
            return f"{operator} with an empty value matches every argument that is not empty"
        if one.base == "Prefix" and any(len(value.encode()) == 256 for value in one.values):
            return "255 bytes of the argument are compared: a prefix of 256 never matches"
    if operator in SUBSTRINGS:
        able = {"string", "char_buf"} | (
            {"file", "path", "data_loc", "net_device", "sockaddr_un"} if context.version >= (1, 8, 0) else set()
        )
        if type_ not in able:
            return f"{operator} on an argument of type {type_} loads and never matches; on this version: {', '.join(sorted(able))}"
        newest = (6, 17) if operator == "SubString" else (6, 19)
        if context.kernel.release < newest and one.hook.section != "uprobes":
            return f"{operator} never matches on kernels before {newest[0]}.{newest[1]}"
    if operator == "CelExpr" and one.hook.section not in ("kprobes", "uprobes"):
        return f"CelExpr never matches in {one.hook.section}"
    if operator == "State" and type_ == "skb":
        return "State on a skb never matches"
    if operator == "Mask" and all(integer(value) == 0 for value in one.values):
        return "Mask asks for one of the value's bits, and 0 has none: it never matches"
    if operator in RANGES:
        bounds = [tuple(integer(part) or 0 for part in value.split(":")) for value in one.values if value.count(":") == 1]
        if bounds and all(first > last for first, last in bounds):
            return "a range whose first number is the larger one never matches"
    return ""


@check("empty-filter")
def _empty_filter(context: Context) -> Found:
    for _hook, path, selector in context.selectors():
        for key in ("matchBinaries", "matchParentBinaries"):
            if any(not one["values"] for one in selector.get(key, ())):
                yield (*path, key), "has no values: the agent drops the entry, and every process matches"


@check("negative-number")
def _negative_number(context: Context) -> Found:
    for one in context.filters:
        bits, signed = INTEGERS.get(one.type, (64, True))
        numbers = [integer(part) for value in one.values for part in value.split(":")]
        if not any(number is not None and number < 0 for number in numbers) or not signed:
            continue
        if one.operator in SETS and bits < 64:
            yield one.path, f"{one.operator} never finds a negative number of type {one.type}: the argument is taken without its sign"
        elif bits < 32 and one.operator not in SETS:
            yield (
                one.path,
                f"arguments of type {one.type} are compared without their sign: a negative value gives a wrong answer; declare int",
            )


@check("size-t")
def _size_t(context: Context) -> Found:
    for one in context.filters:
        if one.type == "size_t":
            numbers = [integer(part) or 0 for value in one.values for part in value.split(":")]
            if any(number >= 1 << 32 or number < 0 for number in numbers):
                yield one.path, "of a size_t the low 32 bits are compared, without a sign: declare uint64"


@check("nul-in-value")
def _nul_in_value(context: Context) -> Found:
    for one in context.filters:
        literal = one.type != "string" or one.base == "Prefix"
        if one.type in TEXTS and literal and any("\0" in value for value in one.values) and one.type != "sockaddr_un":
            yield one.path, f"a NUL in a value is compared as it stands, and {one.base} on {one.type} never meets one: leave it out"


@check("prefix-is-no-directory")
def _prefix_is_no_directory(context: Context) -> Found:
    for one in context.filters:
        if one.base == "Prefix" and one.type in _PATHS | {"string"}:
            open_ended = [value for value in one.values if value.startswith("/") and not value.endswith(("/", "-", ".", "_"))]
            if open_ended:
                yield one.path, f"{open_ended[0]} matches every path that begins so, {open_ended[0]}-other too: end directories with /"


@check("multiple-entries")
def _multiple_entries(context: Context) -> Found:
    for _hook, path, selector in context.selectors():
        for key in ("matchPIDs", "matchCapabilities", "matchCapabilityChanges"):
            if len(selector.get(key, ())) > 1:
                yield (*path, key), f"the agent reads only the first entry of {key} and misreads what follows: keep one"


@check("pid-values")
def _pid_values(context: Context) -> Found:
    for _hook, path, selector in context.selectors():
        for place, one in enumerate(selector.get("matchPIDs", ())):
            here = (*path, "matchPIDs", place)
            if len(one["values"]) > 4:
                yield here, f"has {len(one['values'])} values: four are compared, and eight or more spoil the rest of the selector"
            if one.get("isNamespacePID") and one.get("followForks") and 0 in one["values"]:
                yield here, "0 with isNamespacePID and followForks is found in every process: leave it out"


@check("literal-pid")
def _literal_pid(context: Context) -> Found:
    for _hook, path, selector in context.selectors():
        for place, one in enumerate(selector.get("matchPIDs", ())):
            numbers = [value for value in one["values"] if value > 2]
            if numbers and not one.get("isNamespacePID"):
                yield (
                    (*path, "matchPIDs", place),
                    f"process number {numbers[0]} is another process after the next start, and on another host",
                )


@check("silently-cut")
def _silently_cut(context: Context) -> Found:
    for hook in context.hooks:
        if len(hook.raw.get("message", "")) > 256:
            yield (*hook.path, "message"), f"has {len(hook.raw['message'])} characters; 256 are kept"
        if any(len(tag) > 128 for tag in hook.raw.get("tags", ())):
            yield (*hook.path, "tags"), "has a tag of more than 128 characters; 128 are kept"


@check("char-buffer")
def _char_buffer(context: Context) -> Found:
    for one in context.filters:
        if one.argument is not None and one.type == "char_buf" and one.key == "matchArgs":
            for key, why in (("maxData", "the filter reads at the wrong place"), ("returnCopy", "the content is not there at entry")):
                if one.argument.get(key):
                    yield one.path, f"compares a buffer with {key}: {why}"


@check("tracepoint-int")
def _tracepoint_int(context: Context) -> Found:
    for hook in context.hooks:
        for place, one in enumerate(hook.raw.get("args", ())):
            if hook.section == "tracepoints" and not hook.raw.get("raw") and one["type"] == "int" and context.version < (1, 7, 1):
                yield (*hook.path, "args", place), "an int of a tracepoint reads as 0 before 1.7.1: declare int32"


@check("raw-index")
def _raw_index(context: Context) -> Found:
    for one in context.filters:
        if one.hook.section == "tracepoints" and one.key == "matchArgs" and not one.raw.get("args"):
            listed = one.hook.raw.get("args", ())
            wanted = one.raw.get("index", 0)
            first = next((place for place, argument in enumerate(listed) if argument["index"] == wanted), wanted)
            if one.position is not None and one.position != first:
                yield (
                    one.path,
                    f"index {wanted} is rewritten twice and ends at argument {one.position}: name the position with args: [{first}]",
                )


@check("argument-offset")
def _argument_offset(context: Context) -> Found:
    for one in context.filters:
        if one.position is None or one.key == "matchReturnArgs":
            continue
        before = list(one.hook.raw.get("args", ()))
        before = before + list(one.hook.raw.get("data", ()))[: one.position] if one.key == "matchData" else before[: one.position]
        pinned = {id(other.argument) for other in context.beside(one) if other.operator == "Equal"}
        sizes = [0 if id(argument) in pinned else 4 + _SIZES.get(argument["type"], 4) for argument in before]
        if sum(sizes) > _SEEN:
            long = before[max(range(len(sizes)), key=sizes.__getitem__)]
            yield (
                one.path,
                f"the argument stands after one of type {long['type']}: when that is longer than about 2,000 bytes, other bytes "
                "are compared; list the longest argument last",
            )


@check("selector-block")
def _selector_block(context: Context) -> Found:
    for hook in context.hooks:
        size = block_size(context, hook)
        if size > _BLOCK:
            yield (
                (*hook.path, "selectors"),
                f"take {size} bytes; the kernel side reads {_BLOCK} and loses what follows: fewer selectors, or numbers as InMap",
            )


def block_size(context: Context, hook: HookEntry) -> int:
    """Bytes of a hook's encoded selectors (R1.12)."""
    size = 4 + 4 * len(hook.selectors)
    actions = {"Post": 24, "NotifyEnforcer": 16, **dict.fromkeys(("FollowFD", "UnfollowFD", "CopyFD", "Set"), 12)}
    for selector in hook.selectors:
        size += 4 + 20 + 24 + 4
        size += sum(12 + 4 * len(one["values"]) for key in ("matchPIDs", "matchNamespaces") for one in selector.get(key, ()))
        size += 20 * sum(len(selector.get(key, ())) for key in ("matchCapabilities", "matchCapabilityChanges"))
        size += 8 * len(selector.get("matchNamespaceChanges", ()))
        for one in selector.get("matchActions", ()):
            size += actions.get(one["action"], 4 if one["action"] in ("Sigkill", "NoPost", "CleanupEnforcerNotification") else 8)
    for one in context.filters_of(hook):
        if one.key != "matchReturnArgs":
            size += _filter_size(one)
    return size


def _filter_size(one: Filter) -> int:
    wide = one.type in CAPABILITY_TYPES or INTEGERS.get(one.type, (32, True))[0] == 64
    if one.operator in SETS | PORTS | NAMED | ENDS or one.operator == "CapabilitiesGained":
        return 20
    if one.operator in ADDRESSES:
        return 24
    if one.operator in PRIVILEGED:
        return 16
    if one.operator in EXACT and one.type in TEXTS:
        return 60
    step = (16 if wide else 8) if one.operator in RANGES else 8 if wide and one.operator not in SUBSTRINGS else 4
    return 16 + step * len(one.values)


_SHARED = SETS | PORTS | NAMED | ADDRESSES | SUBSTRINGS


@check("shared-maps")
def _shared_maps(context: Context) -> Found:
    hooks = [hook for hook in context.hooks if hook.section == "kprobes"]
    if len(hooks) < 2 or not context.kprobe_multi:
        return
    advice = 'add option disable-kprobe-multi with value "1"'
    for index in range(MAX_SELECTORS):
        chosen = [hook.selectors[index].get("matchBinaries") for hook in hooks if index < len(hook.selectors)]
        if any(chosen) and any(one != chosen[0] for one in chosen):
            yield ("spec", "kprobes"), f"kernels with kprobe-multi use one matchBinaries for selector {index} of all hooks: {advice}"
            break
    lists: dict[str, list[Sequence[Sequence[str]]]] = {}
    for hook in hooks:
        for family in ("numbers", "addresses", "substrings"):
            values = [one.values for one in context.filters_of(hook) if _family(one) == family]
            if values:
                lists.setdefault(family, []).append(values)
    for family, several in lists.items():
        if any(len({tuple(sorted(values)) for values in numbered if values}) > 1 for numbered in islice(zip_longest(*several), _SOME)):
            yield (
                ("spec", "kprobes"),
                f"kernels with kprobe-multi number the maps of {family} anew for each hook, so hooks use each other's: {advice}",
            )


def _family(one: Filter) -> str:
    if one.operator not in _SHARED:
        return ""
    return "addresses" if one.operator in ADDRESSES else "substrings" if one.operator in SUBSTRINGS else "numbers"


@check("mapped-addresses")
def _mapped_addresses(context: Context) -> Found:
    for one in context.filters:
        if one.operator not in ADDRESSES:
            continue
        try:
            networks = [ipaddress.ip_network(value, strict=False) for value in one.values]
        except ValueError:
            continue  # refused, and told by another rule
        covered = {net for net in networks if net.version == 6 and net.prefixlen >= 96}
        missing = next((net for net in networks if net.version == 4 and not any(mapped in covered for mapped in _mapped(net))), None)
        if missing is not None:
            yield one.path, f"{missing} is not compared with IPv4 traffic of IPv6 sockets: list {next(_mapped(missing))} too"


def _mapped(net: Any) -> Iterator[Any]:
    """An IPv4 network as IPv6 sockets show it, and all that hold it, the narrowest first."""
    address = int(net.network_address) | 0xFFFF << 32
    for bits in range(net.prefixlen, -1, -1):
        yield ipaddress.IPv6Network((address >> (32 - bits) << (32 - bits), 96 + bits))


@check("port-without-family")
def _port_without_family(context: Context) -> Found:
    for one in context.filters:
        loose = one.operator in ("SPortPriv", "DPortPriv", "NotSPort", "NotDPort")
        if loose and not any(other.operator == "Family" for other in context.beside(one)):
            yield one.path, f"{one.operator} is true for sockets without a port, such as unix sockets: add Family AF_INET, AF_INET6"


@check("negated-path")
def _negated_path(context: Context) -> Found:
    for one in context.filters:
        if one.type in _PATHS and one.operator in ("NotEqual", "NotPrefix", "NotPostfix"):
            yield one.path, f"{one.operator} does not match a file without a path, such as /, a pipe or a socket"


@check("binary-path")
def _binary_path(context: Context) -> Found:
    for _hook, path, selector in context.selectors():
        for key in ("matchBinaries", "matchParentBinaries"):
            for one in selector.get(key, ()):
                values = set(one["values"])
                odd = [value for value in one["values"] if "Postfix" not in one["operator"] and _is_link(value, values)]
                if odd:
                    yield (
                        (*path, key),
                        f"{odd[0]} is compared with the executed file, symlinks resolved, and is likely to be one itself: "
                        "name the file it leads to",
                    )


def _is_link(value: str, values: set[str]) -> bool:
    if not value.startswith("/") or value in ("/usr/bin/sh", "/usr/bin/python3", "/usr/bin/python", "/usr/bin/vi", "/usr/bin/nc"):
        return True
    return value.startswith(("/bin/", "/sbin/", "/lib/", "/lib64/")) and "/usr" + value not in values


@check("rate-limit-slot")
def _rate_limit_slot(context: Context) -> Found:
    for action in context.actions:
        if action.raw.get("rateLimit") and action.hook.section != "kprobes":
            yield (
                action.path,
                f"in {action.hook.section} a rate limit remembers one event alone: it holds back immediate repeats and no more",
            )


@check("post-before-action")
def _post_before_action(context: Context) -> Found:
    for action in context.actions:
        is_last = action.raw is action.selector[action.key][-1]
        if action.name == "Post" and not is_last and context.kernel.release < (5, 11):
            yield action.path, "before Linux 5.11 the action after Post is misread: put Post last"


@check("call-not-found")
def _call_not_found(context: Context) -> Found:
    for hook in context.hooks:
        if (hook.raw.get("ignore") or {}).get("callNotFound") and context.version < (1, 8, 0):
            yield (
                (*hook.path, "ignore"),
                f"agents before 1.8 drop {hook.name} without a word where the kernel lacks it, and list the policy as enabled",
            )


@check("fd-argument")
def _fd_argument(context: Context) -> Found:
    follows = any(action.name == "FollowFD" for action in context.actions)
    for hook in context.hooks:
        for place, one in enumerate(hook.raw.get("args", ())):
            if one["type"] == "fd" and context.version < (1, 8, 0) and not follows:
                yield (
                    (*hook.path, "args", place),
                    "agents before 1.8 know the path of an fd only after FollowFD: hook a function with a file instead",
                )


@check("hidden-enforcement")
def _hidden_enforcement(context: Context) -> Found:
    for action in context.actions:
        if action.name == "NoPost" and action.key == "matchActions":
            acting = [one["action"] for one in action.selector["matchActions"] if one["action"] in ENFORCING]
            if acting:
                yield action.path, f"NoPost hides that {acting[0]} happened: nobody learns of it"
