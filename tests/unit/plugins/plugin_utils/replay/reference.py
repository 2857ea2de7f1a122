# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""A slow, obvious interpreter of the matching rules, to check the engine against.

It shares no code with the engine but the records. It works on one policy and one call, for an agent of 1.7 (``main``: 1.8)
on a kernel of 6.1, and answers True, False or None. Each function says which rule it writes down.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.records import FilePath, Invocation, ReadError, Socket, Value

Answer = bool | None
PATHS, TEXTS, SOCKETS = (
    ("file", "path", "dentry", "linux_binprm"),
    ("string", "net_device", "data_loc"),
    ("sock", "socket", "skb", "sockaddr"),
)
ALWAYS = ("filename", "char_iovec", "iov_iter", "kiocb", "cred", "capability", "bpf_attr")
BITS = {
    "int": 32, "int32": 32, "sint32": 32, "uint32": 32, "int64": 64, "sint64": 64, "long": 64, "uint64": 64, "ulong": 64,
    "syscall64": 64, "size_t": 32, "int16": 16, "sint16": 16, "uint16": 16, "int8": 8, "sint8": 8, "uint8": 8,
}  # fmt: skip
SIGNED = ("int", "int32", "sint32", "int64", "sint64", "long")
CAPABILITIES = {"CAP_CHOWN": 0, "DAC_OVERRIDE": 1, "CAP_KILL": 5, "CAP_SETUID": 7, "CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}
NUMBERS = {
    "AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10, "AF_NETLINK": 16, "IPPROTO_ICMP": 1, "IPPROTO_TCP": 6, "IPPROTO_UDP": 17,
    "TCP_ESTABLISHED": 1, "TCP_SYN_SENT": 2, "TCP_CLOSE": 7, "TCP_LISTEN": 10,
}  # fmt: skip


def both(one: Answer, other: Answer) -> Answer:
    """AND of three values."""
    if one is False or other is False:
        return False
    return None if one is None or other is None else True


def number(text: str) -> int:
    """R2.3.8."""
    sign = -1 if text.startswith("-") else 1
    digits = text.lstrip("-")
    for prefix, base in (("0x", 16), ("0b", 2)):
        if digits.startswith(prefix):
            return sign * int(digits[2:], base)
    return sign * int(digits, 8 if digits.startswith("0") and len(digits) > 1 else 10)


def signed(value: int, bits: int) -> int:
    value %= 1 << bits
    return value - (1 << bits) if value >= 1 << (bits - 1) else value


def compare_number(operator: str, values: Sequence[str], type_: str, value: int) -> Answer:
    """The table of integers and R2.3.9 to R2.3.13."""
    bits = BITS[type_]
    argument = value % (1 << bits)  # what is read, zero-extended
    width = max(bits, 32)
    if operator in ("InMap", "NotInMap"):
        found = False
        for text in values:
            ends = [int(part) for part in text.split(":")]
            for member in range(min(ends), max(ends) + 1):  # expanded one by one; the key is 64 bits wide
                found = found or member % (1 << 64) == argument
        return found != (operator == "NotInMap")
    if operator in ("Equal", "NotEqual"):
        equal = any(number(text) % (1 << width) == argument for text in values)
        return equal != (operator == "NotEqual")
    if operator == "Mask":
        return any(number(text) % (1 << width) & argument != 0 for text in values)

    answers = {ordered(operator, values, type_, argument, width)}
    if type_ in ("int16", "sint16", "int8", "sint8") and any("-" in text for text in values):
        answers.add(ordered(operator, values, type_, argument, bits))  # R2.3.12 does not say how wide a negative limit is
    return answers.pop() if len(answers) == 1 else None


def ordered(operator: str, values: Sequence[str], type_: str, argument: int, width: int) -> bool:
    """GT, LT and ranges, in the order of the type: R2.3.12, R2.3.13."""

    def order(one: int) -> int:
        return signed(one, width) if type_ in SIGNED else one % (1 << width)

    left = order(argument)
    if operator in ("GT", "GreaterThan"):
        return any(left > order(number(text)) for text in values)
    if operator in ("LT", "LessThan"):
        return any(left < order(number(text)) for text in values)
    ranges = [[order(number(part)) for part in text.split(":")] for text in values]
    inside = any(low <= left <= high for low, high in ranges)
    return inside != (operator == "NotInRange")


def compare_text(operator: str, values: Sequence[str], type_: str, value: Value) -> Answer:
    """R2.3.17 to R2.3.20."""
    text = value.path.encode() if isinstance(value, FilePath) else value if isinstance(value, bytes) else str(value).encode()
    if type_ in PATHS and text == b"":
        return False
    found = False
    for one in values:
        wanted = one.encode()
        if operator in ("Equal", "NotEqual"):
            wanted = wanted.rstrip(b"\0") if type_ == "string" else wanted
            found = found or wanted == text[: 4095 if type_ in ("char_buf", "data_loc") else 4096]
        elif operator in ("Prefix", "NotPrefix"):
            found = found or (text != b"" and len(wanted) <= 255 and text[: len(wanted)] == wanted)
        else:
            wanted = wanted if type_ == "char_buf" else wanted.rstrip(b"\0")
            found = found or (text != b"" and len(wanted) <= len(text) and text[len(text) - len(wanted) :] == wanted)
    return found != operator.startswith("Not")


def compare_socket(operator: str, values: Sequence[str], type_: str, value: Socket) -> Answer:
    """R2.3.27 to R2.3.31."""
    base, negated = operator.removeprefix("Not").replace("Sport", "SPort"), operator.startswith("Not")
    if type_ in ("skb", "socket") and value.family == "":
        return None  # what an earlier event left behind
    if operator == "State" and type_ == "skb":
        return False
    if operator in ("Family", "Protocol", "State"):
        text = {"Family": value.family, "Protocol": value.protocol, "State": value.state}[operator]
        if text == "":
            return None
        mine = NUMBERS.get(text, int(text) if text.isdigit() else -1)
        for one in values:
            ends = [NUMBERS.get(part, -2) if not part.isdigit() else int(part) for part in one.split(":")]
            if min(ends) <= mine <= max(ends):
                return True
        return False
    port = value.sport if base.startswith("SPort") else value.dport
    if base.endswith("Priv"):
        return (port < 1024) != negated
    if base in ("SPort", "DPort"):
        hit = any(min(ends) <= port <= max(ends) for ends in ([int(part) for part in one.split(":")] for one in values))
        return hit != negated
    if value.family not in ("AF_INET", "AF_INET6"):
        return False
    nothing = "0.0.0.0" if value.family == "AF_INET" else "::"
    address = ipaddress.ip_address((value.saddr if base == "SAddr" else value.daddr) or nothing)
    hit = False
    for one in values:
        network = ipaddress.ip_network(one, strict=False)
        hit = hit or (network.version == address.version and address in network)
    return hit != negated


def compare_capabilities(operator: str, values: Sequence[str], value: int) -> Answer:
    """R2.3.35."""
    masks = []
    for one in values:
        if one[0].isdigit():
            masks.append(number(one))
        else:
            masks.append(sum(1 << bit for bit in {CAPABILITIES[name] for name in one.split(",")}))
    return (value in masks) != (operator == "NotEqual")


def compare(operator: str, values: Sequence[str], type_: str, value: Value | None) -> Answer:
    """One filter and the value of its argument; None was not recorded."""
    if value is None:
        return None
    if isinstance(value, ReadError):
        return False  # R2.3.4
    if operator in ("Prefix", "NotPrefix", "Postfix", "NotPostfix"):
        if type_ in BITS or type_ in SOCKETS:
            return False  # R2.3.6
        if type_ in ALWAYS:
            return True
    if operator in ("SubString", "SubStringIgnCase"):
        return type_ in ALWAYS  # R2.3.24: the kernel has no function for the rest
    if operator in ("FileType", "NotFileType"):
        letters = {"sock": "s", "socket": "s", "lnk": "l", "link": "l", "reg": "-", "regular": "-", "blk": "b", "block": "b"}
        letters |= {"dir": "d", "chr": "c", "char": "c", "fifo": "p", "pipe": "p"}
        assert isinstance(value, FilePath)
        return any(value.permission[0] == letters[one] for one in values) != (operator == "NotFileType")
    if type_ in BITS:
        assert isinstance(value, int)
        return compare_number(operator, values, type_, value)
    if type_.startswith(("cap_", "kernel_cap")):
        assert isinstance(value, int)
        return compare_capabilities(operator, values, value)
    if type_ in SOCKETS:
        assert isinstance(value, Socket)
        return compare_socket(operator, values, type_, value)
    return compare_text(operator, values, type_, value)


def matches_binary(entry: Mapping[str, Any], executable: str | None, ancestors: Sequence[str] | None) -> Answer:
    """2.2."""
    if not entry["values"]:
        return True
    negated = entry["operator"].startswith("Not")
    if entry.get("followChildren"):
        links = [executable, *(ancestors if ancestors is not None else [None])]
        if any(link in entry["values"] for link in links):
            return not negated
        return None if None in links or "" in links else negated
    if executable is None:
        return None
    base = entry["operator"].removeprefix("Not")
    hit = any(
        executable == one if base == "In" else executable.startswith(one) if base == "Prefix" else executable.endswith(one)
        for one in entry["values"]
    )
    return hit != negated


def matches_process(selector: Mapping[str, Any], call: Invocation) -> Answer:
    """R1.2 and sections 2.1, 2.2, 2.5, 2.6."""
    process, answer = call.process, True
    for entry in selector.get("matchBinaries", ()):
        answer = both(answer, matches_binary(entry, process.executable, process.ancestors))  # type: ignore[assignment]
    for entry in selector.get("matchParentBinaries", ()):
        if not process.bare_fork:
            answer = both(answer, matches_binary(entry, process.parent_executable, ()))  # type: ignore[assignment]
    for entry in selector.get("matchPIDs", ()):
        pid = process.namespace_pid if entry.get("isNamespacePID") else process.pid
        if pid is None and process.namespaces.get("pid", (0, False))[1] and (process.current or process.executed):
            pid = 0
        answer = both(answer, None if pid is None else (pid in entry["values"][:4]) != (entry["operator"] == "NotIn"))  # type: ignore[assignment]
    for entry in selector.get("matchCapabilities", ()):
        held = None if process.capabilities is None or not process.current else process.capabilities.get(entry["type"].lower(), 0)
        hit = None if held is None else any(held >> CAPABILITIES[name] & 1 for name in entry["values"])
        answer = both(answer, None if hit is None else hit != (entry["operator"] == "NotIn"))  # type: ignore[assignment]
    for entry in selector.get("matchNamespaces", ()):
        known = process.namespaces.get(entry["namespace"].lower())
        sure = process.current or entry["namespace"] == "User" or (entry["namespace"] == "Pid" and process.executed)
        if known is None or not sure:
            answer = both(answer, None)  # type: ignore[assignment]
            continue
        hit = any(known[1] if one == "host_ns" else known[0] == int(one) for one in entry["values"])
        answer = both(answer, hit != (entry["operator"] == "NotIn"))  # type: ignore[assignment]
    return answer


def matches_arguments(selector: Mapping[str, Any], hook: Mapping[str, Any], call: Invocation) -> Answer:
    """Section 2.3 for functions: an index is the first argument with that number."""
    answer: Answer = True
    for entry in selector.get("matchArgs", ()):
        declared = next(one for one in hook["args"] if one["index"] == entry["index"])
        recorded = {one.declared.index: one.value for one in call.args}
        value = recorded.get(entry["index"])
        for before in hook["args"][: hook["args"].index(declared)]:
            if before["type"] in (*TEXTS, *PATHS) and not isinstance(recorded.get(before["index"]), str | FilePath | ReadError):
                value = None  # R2.3.5: how long it was is not known, so neither is what the agent compares
        answer = both(answer, compare(entry["operator"], entry["values"], declared["type"], value))
    return answer


def possible(hook: Mapping[str, Any], call: Invocation, lsm: bool) -> set[tuple[int | None, bool]]:
    """Every (selector that wins, is an event posted) that the recording leaves possible: R1.3, R1.5, R1.6, R1.9, R1.10, R3.1."""
    selectors = hook["selectors"]
    if not selectors:
        return {(None, not lsm)}
    found: set[tuple[int | None, bool]] = set()
    for index, selector in enumerate(selectors):
        answer = both(matches_process(selector, call), matches_arguments(selector, hook, call))
        if answer is False:
            continue
        entry_posts = "NoPost" not in [one["action"] for one in selector.get("matchActions", ())]
        for back in returned(hook, call, index) if hook.get("return") else [True]:
            found.add((index, entry_posts and back))
        if answer is True:
            return found
    return {*found, (None, False)}


def returned(hook: Mapping[str, Any], call: Invocation, first: int) -> set[bool]:
    """What the return half may do: R1.10."""
    posts: set[bool] = set()
    for index in range(first, len(hook["selectors"])):
        selector = hook["selectors"][index]
        answer: Answer = True if index == first else matches_process(selector, call)
        for entry in selector.get("matchReturnArgs", ()):
            answer = both(answer, compare(entry["operator"], entry["values"], hook["returnArg"]["type"], call.returned))
        if answer is False:
            continue
        posts.add("NoPost" not in [one["action"] for one in selector.get("matchReturnActions", ())])
        if answer is True:
            return posts
    return {*posts, False}


def selected(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """R4.2."""
    answers = [labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()]
    for one in selector.get("matchExpressions", ()):
        has = one["key"] in labels
        listed = has and labels[one["key"]] in one.get("values", ())
        answers.append({"In": listed, "NotIn": not listed, "Exists": has, "DoesNotExist": not has}[one["operator"]])
    return all(answers)


def applies(spec: Mapping[str, Any], namespace: str | None, call: Invocation) -> Answer:
    """R4.1 to R4.5."""
    pods, containers, host = (spec.get(key) for key in ("podSelector", "containerSelector", "hostSelector"))
    if namespace is None and ([pods, containers, host] == [None] * 3 or [pods, containers, host] == [{}] * 3):
        return True
    if pods is not None and containers is None:
        containers = {}
    if containers is not None and pods is None:
        pods = {}
    if namespace is not None and pods is None:
        pods, containers = {}, {}
    pod = call.process.pod
    if pod is None:
        return None if call.process.in_container is None else host is not None
    if pods is None or containers is None or namespace not in (None, pod.namespace):
        return False
    labels = {"k8s:io.kubernetes.pod.namespace": pod.namespace} | dict(pod.labels)
    return selected(pods, labels) and selected(containers, {"name": pod.container, "repo": pod.image_repo})


def fires(document: Mapping[str, Any], section: str, call: Invocation) -> tuple[Answer, set[int | None]]:
    """Whether the only hook of a policy posts an event, and which selectors may win (None: none)."""
    spec = document["spec"]
    where = applies(spec, document["metadata"].get("namespace"), call)
    outcomes = {(None, False)} if where is False else possible(spec[section][0], call, section == "lsmhooks")
    if where is None:
        outcomes = {*outcomes, (None, False)}
    posts = {post for _unused, post in outcomes}
    return (posts.pop() if len(posts) == 1 else None), {selector for selector, _unused in outcomes}
