# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Argument filters (matchArgs, matchData, matchReturnArgs) as functions of a value.

Each rule id in a comment names the behaviour of the real agent (v1.7, kernel 6.1 programs) that the code follows.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.records import FilePath, ReadError, Socket, Value
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.truth import FALSE, Truth, truth, unknown

Matcher = Callable[[Value], Truth]

PATH_TYPES = frozenset(["file", "path", "dentry", "linux_binprm"])
STRING_TYPES = frozenset(["string", "net_device", "data_loc"])
SOCKET_TYPES = frozenset(["sock", "socket", "skb", "sockaddr"])
CAPABILITY_TYPES = frozenset(["kernel_cap_t", "cap_inheritable", "cap_permitted", "cap_effective"])
# type -> (bits compared, ordered as signed). size_t compares its low 32 bits only; 8 and 16 bit order as unsigned (R2.3.10-14).
INTEGERS = {
    **dict.fromkeys(("int", "int32", "sint32"), (32, True)),
    "uint32": (32, False),
    **dict.fromkeys(("int64", "sint64", "long"), (64, True)),
    **dict.fromkeys(("uint64", "ulong", "syscall64"), (64, False)),
    "size_t": (32, False),
    **dict.fromkeys(("int16", "sint16", "uint16"), (16, False)),
    **dict.fromkeys(("int8", "sint8", "uint8"), (8, False)),
}
RANGE_OPERATORS = frozenset(["InRange", "NotInRange"])
SET_OPERATORS = frozenset(["InMap", "NotInMap"])
NUMBER_OPERATORS = frozenset(["Equal", "NotEqual", "GT", "GreaterThan", "LT", "LessThan", "Mask"]) | RANGE_OPERATORS | SET_OPERATORS
TEXT_OPERATORS = frozenset(["Equal", "NotEqual", "Prefix", "NotPrefix", "Postfix", "NotPostfix"])
FILE_TYPE_OPERATORS = frozenset(["FileType", "NotFileType"])
SUBSTRING_OPERATORS = frozenset(["SubString", "SubStringIgnCase"])
PORT_OPERATORS = frozenset(["SPort", "NotSPort", "DPort", "NotDPort"])
PRIVILEGED_OPERATORS = frozenset(["SPortPriv", "NotSportPriv", "DPortPriv", "NotDPortPriv"])
ADDRESS_OPERATORS = frozenset(["SAddr", "NotSAddr", "DAddr", "NotDAddr"])
NAME_OPERATORS = frozenset(["Protocol", "Family", "State"])
SOCKET_OPERATORS = PORT_OPERATORS | PRIVILEGED_OPERATORS | ADDRESS_OPERATORS | NAME_OPERATORS

_MAX_STRING, _MAX_PREFIX, _MAX_POSTFIX = 4096, 255, 127
_FILE_TYPES = {
    "sock": "s", "socket": "s", "lnk": "l", "link": "l", "reg": "-", "regular": "-",
    "blk": "b", "block": "b", "dir": "d", "chr": "c", "char": "c", "fifo": "p", "pipe": "p",
}  # fmt: skip
_NUMBERS = {
    "AF_UNSPEC": 0, "AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10, "AF_NETLINK": 16, "AF_PACKET": 17, "AF_ALG": 38,
    "AF_VSOCK": 40, "AF_XDP": 44,
    "IPPROTO_ICMP": 1, "IPPROTO_IGMP": 2, "IPPROTO_TCP": 6, "IPPROTO_UDP": 17, "IPPROTO_ICMPV6": 58, "IPPROTO_SCTP": 132,
    "IPPROTO_RAW": 255,
    "TCP_ESTABLISHED": 1, "TCP_SYN_SENT": 2, "TCP_SYN_RECV": 3, "TCP_FIN_WAIT1": 4, "TCP_FIN_WAIT2": 5, "TCP_TIME_WAIT": 6,
    "TCP_CLOSE": 7, "TCP_CLOSE_WAIT": 8, "TCP_LAST_ACK": 9, "TCP_LISTEN": 10, "TCP_CLOSING": 11, "TCP_NEW_SYN_RECV": 12,
}  # fmt: skip


class Unsupported(ValueError):
    """The agent would refuse this filter, or this engine does not model it; the text says which."""


def parse_integer(text: str) -> int:
    """Decimal, 0x, 0o or 0b, and a leading 0 for octal, as the agent reads numbers (R2.3.8)."""
    text = text.strip()
    body = text.lstrip("+-")
    if re.fullmatch(r"0[0-7]+", body):
        number = int(body, 8)
    else:
        number = int(body, 0)
    return -number if text.startswith("-") else number


def compile_filter(operator: str, values: Sequence[str], type_: str) -> Matcher:
    """The filter as a function. Raises Unsupported where no honest function exists."""
    if operator in TEXT_OPERATORS and (type_ in PATH_TYPES or type_ in STRING_TYPES or type_ == "char_buf"):
        match = _text(operator, values, type_)
    elif operator in FILE_TYPE_OPERATORS and type_ in ("file", "path"):
        match = _file_type(operator, values)
    elif operator in NUMBER_OPERATORS and type_ in INTEGERS:
        match = _number(operator, values, type_)
    elif operator in ("Equal", "NotEqual") and type_ in CAPABILITY_TYPES:
        match = _capability_mask(operator, values)
    elif operator in SOCKET_OPERATORS and type_ in SOCKET_TYPES:
        match = _socket(operator, values, type_)
    elif operator in TEXT_OPERATORS and (type_ in INTEGERS or type_ in SOCKET_TYPES):
        return lambda value: FALSE  # R2.3.6: accepted by the loader, never true in the kernel
    else:
        raise Unsupported(f"operator {operator} on an argument of type {type_} is not modelled")
    return lambda value: FALSE if isinstance(value, ReadError) else match(value)  # R2.3.4


def _decided(value: Value, kind: type, then: Callable[..., bool]) -> Truth:
    return truth(then(value)) if isinstance(value, kind) else unknown("the recording holds this argument in another type")


def _text(operator: str, values: Sequence[str], type_: str) -> Matcher:
    negated, base = operator.startswith("Not"), operator.removeprefix("Not")
    is_path = type_ in PATH_TYPES
    wanted = [value.rstrip("\0") if type_ == "string" and base != "Prefix" else value for value in values]
    exact, several = frozenset(wanted), tuple(wanted)

    def compare(text: str) -> bool:
        if base == "Equal":
            return text[:_MAX_STRING] in exact
        if not text:
            return False
        return text[:_MAX_PREFIX].startswith(several) if base == "Prefix" else text[-_MAX_POSTFIX:].endswith(several)

    def match(value: Value) -> Truth:
        if isinstance(value, FilePath):
            text: str = value.path
        elif isinstance(value, bytes):
            text = value.decode("utf-8", "surrogateescape")
        elif isinstance(value, str):
            text = value
        else:
            return unknown("the recording holds this argument in another type")
        if is_path and not text:
            return FALSE  # R2.3.20: no path, no match, negated or not
        if "\ufffd" in text:
            return unknown("the recorded text lost bytes that are not UTF-8")  # R2.3.26
        return truth(compare(text) != negated)

    return match


def _file_type(operator: str, values: Sequence[str]) -> Matcher:
    try:
        wanted = {_FILE_TYPES[value] for value in values}
    except KeyError as error:
        raise Unsupported(f"file type {error} is not known; known: {', '.join(_FILE_TYPES)}") from None
    negated = operator.startswith("Not")

    def match(value: Value) -> Truth:
        if not isinstance(value, FilePath) or not value.permission:
            return unknown("the recording does not say of what type the file is")
        return truth((value.permission[0] in wanted) != negated)

    return match


def _ranges(values: Sequence[str]) -> list[tuple[int, int]]:
    """``5`` and ``lo:hi`` entries of a set, decimal; a reversed range is turned round (R2.3.13)."""
    ranges = []
    for value in values:
        try:
            low, _unused, high = value.partition(":")
            first, last = int(low, 10), int(high or low, 10)
        except ValueError:
            raise Unsupported(f"value {value!r} is no decimal number or range lo:hi") from None
        ranges.append((min(first, last), max(first, last)))
    return ranges


def _number(operator: str, values: Sequence[str], type_: str) -> Matcher:
    bits, signed = INTEGERS[type_]
    mask = (1 << bits) - 1

    def low(value: int) -> int:
        return value & mask

    def ordered(value: int) -> int:
        value &= mask
        return value - (1 << bits) if signed and value >> (bits - 1) else value

    if operator in SET_OPERATORS:
        if any(value.startswith("list:") for value in values):
            raise Unsupported("values taken from a list are not modelled")
        ranges = _ranges(values)
        wide = bits == 64

        def in_set(value: int) -> bool:  # the key is the argument, zero-extended: a negative value is found in 64 bits only
            key = low(value)
            return any((low(first) <= key <= low(last)) if wide else (first <= key <= last) for first, last in ranges)

        return lambda value: _decided(value, int, lambda number: in_set(number) != operator.startswith("Not"))
    if operator in RANGE_OPERATORS:
        bounds = []
        for value in values:
            first, _unused, last = value.partition(":")
            try:
                bounds.append((ordered(parse_integer(first)), ordered(parse_integer(last))))
            except ValueError:
                raise Unsupported(f"value {value!r} is no range min:max") from None
        return lambda value: _decided(
            value, int, lambda number: any(a <= ordered(number) <= b for a, b in bounds) != operator.startswith("Not")
        )
    try:
        numbers = [parse_integer(value) for value in values]
    except ValueError:
        raise Unsupported(f"values {list(values)} are not all numbers") from None
    if operator in ("Equal", "NotEqual"):
        # R2.3.12: below 32 bits a negative value is sign-extended and the argument is not, so they are never equal
        wanted = {low(number) for number in numbers if number >= 0 or bits >= 32}
        return lambda value: _decided(value, int, lambda number: (low(number) in wanted) != (operator == "NotEqual"))
    if operator == "Mask":
        return lambda value: _decided(value, int, lambda number: any(low(number) & low(one) for one in numbers))
    limits = [ordered(number) for number in numbers]
    if operator in ("GT", "GreaterThan"):
        return lambda value: _decided(value, int, lambda number: any(ordered(number) > limit for limit in limits))
    return lambda value: _decided(value, int, lambda number: any(ordered(number) < limit for limit in limits))


def _capability_mask(operator: str, values: Sequence[str]) -> Matcher:
    masks = set()
    for value in values:
        try:
            masks.add(parse_integer(value))
        except ValueError:
            mask = 0
            for name in value.split(","):
                mask |= 1 << capability_bit(name.strip())
            masks.add(mask)
    return lambda value: _decided(value, int, lambda number: (number in masks) != (operator == "NotEqual"))


_CAPABILITIES = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE "
    "NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT "
    "SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP "
    "MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
).split()
# The agent spells one of them without its prefix (R2.3.35).
CAPABILITY_NAMES = {("DAC_OVERRIDE" if name == "DAC_OVERRIDE" else f"CAP_{name}"): bit for bit, name in enumerate(_CAPABILITIES)}


def capability_bit(name: str) -> int:
    """A capability's number. Raises Unsupported for a name that the agent does not know."""
    if name not in CAPABILITY_NAMES:
        hint = " (the agent spells it DAC_OVERRIDE)" if name == "CAP_DAC_OVERRIDE" else ""
        raise Unsupported(f"capability {name!r} is not known{hint}")
    return CAPABILITY_NAMES[name]


def _family(value: Socket) -> str:
    if value.family:
        return value.family
    address = value.daddr or value.saddr
    if not address:
        return ""
    return "AF_INET6" if ":" in address else "AF_INET"


def _numbers_of(values: Sequence[str]) -> list[tuple[int, int]]:
    ranges = []
    for value in values:
        if value in _NUMBERS:
            ranges.append((_NUMBERS[value], _NUMBERS[value]))
        else:
            ranges += _ranges([value])
    return ranges


def _in(number: int, ranges: Iterable[tuple[int, int]]) -> bool:
    return any(first <= number <= last for first, last in ranges)


def _socket(operator: str, values: Sequence[str], type_: str) -> Matcher:
    if (type_ == "sockaddr" and operator.removeprefix("Not")[:1] in ("D", "P")) or (type_ == "sockaddr" and operator == "State"):
        raise Unsupported(f"operator {operator} on an argument of type sockaddr is refused by the agent")
    negated, base = operator.startswith("Not"), operator.removeprefix("Not")
    if operator in NAME_OPERATORS:
        wanted = _numbers_of(values)

        def named(value: Socket) -> bool:
            if operator == "State" and type_ == "skb":
                return False
            text = {"Family": _family(value), "Protocol": value.protocol, "State": value.state}[operator]
            number = _NUMBERS.get(text, int(text) if text.isdecimal() else -1)
            return _in(number, wanted)

        return lambda value: _decided(value, Socket, named)
    if operator in PRIVILEGED_OPERATORS:
        source = base.startswith("S")
        return lambda value: _decided(value, Socket, lambda one: ((one.sport if source else one.dport) < 1024) != negated)
    if operator in PORT_OPERATORS:
        ports = _ranges(values)
        return lambda value: _decided(value, Socket, lambda one: _in(one.sport if base == "SPort" else one.dport, ports) != negated)
    try:
        networks = [ipaddress.ip_network(value, strict=False) for value in values]
    except ValueError as error:
        raise Unsupported(f"address {error}") from None
    by_family: dict[str, list[Any]] = {
        "AF_INET": [n for n in networks if n.version == 4],
        "AF_INET6": [n for n in networks if n.version == 6],
    }

    def addressed(value: Value) -> Truth:
        if not isinstance(value, Socket):
            return unknown("the recording holds this argument in another type")
        family = _family(value)
        if family not in by_family:
            return FALSE  # R2.3.29: neither IPv4 nor IPv6, no match, negated or not
        text = value.saddr if base == "SAddr" else value.daddr
        try:
            address = ipaddress.ip_address(text or ("0.0.0.0" if family == "AF_INET" else "::"))
        except ValueError:
            return unknown(f"the recorded address {text!r} cannot be read")
        return truth(any(address in network for network in by_family[family]) != negated)

    return addressed
