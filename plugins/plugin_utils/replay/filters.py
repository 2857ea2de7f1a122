# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Argument filters (matchArgs, matchData, matchReturnArgs) as functions of a value.

Each rule id in a comment names the behaviour of the real agent (v1.7; main where it differs) that the code follows.
"""

from __future__ import annotations

import bisect
import ipaddress
import re
from collections.abc import Callable, Iterable, Sequence

from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.records import FilePath, ReadError, Socket, Value
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.target import DEFAULT, STRCASESTR, STRNSTR, Target
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.truth import FALSE, TRUE, Truth, truth, unknown

Matcher = Callable[[Value], Truth]

PATH_TYPES = frozenset(["file", "path", "dentry", "linux_binprm"])
STRING_TYPES = frozenset(["string", "net_device", "data_loc"])
SOCKET_TYPES = frozenset(["sock", "socket", "skb", "sockaddr"])
CAPABILITY_TYPES = frozenset(["kernel_cap_t", "cap_inheritable", "cap_permitted", "cap_effective"])
# Read and exported, but the kernel has no comparator for them: what the loader lets through is always true (R2.3.6).
UNCOMPARED_TYPES = frozenset(["filename", "char_iovec", "iov_iter", "kiocb", "cred", "capability", "bpf_attr"])
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
END_OPERATORS = TEXT_OPERATORS - {"Equal", "NotEqual"}

MAX_NUMBERS = 4
_MAX_BUFFER, _MAX_PREFIX, _MAX_PREFIX_VALUE, _MAX_SUBSTRING = 4095, 255, 256, 99
_LOST = "\ufffd".encode()
_SIGNED_SMALL = frozenset(["int16", "sint16", "int8", "sint8"])
_FAILED_READS = (b"CharBufErrorPageFault", b"CharBufErrorTooLarge", b"CharBufErrorENOMEM")
_OTHER_TYPE = "the recording holds this argument in another type"
_FILE_TYPES = {
    "sock": "s", "socket": "s", "lnk": "l", "link": "l", "reg": "-", "regular": "-",
    "blk": "b", "block": "b", "dir": "d", "chr": "c", "char": "c", "fifo": "p", "pipe": "p",
}  # fmt: skip
_FAMILIES = (
    "UNSPEC UNIX INET AX25 IPX APPLETALK NETROM BRIDGE ATMPVC X25 INET6 ROSE DECnet NETBEUI SECURITY KEY NETLINK PACKET ASH "
    "ECONET ATMSVC RDS SNA IRDA PPPOX WANPIPE LLC IB MPLS CAN TIPC BLUETOOTH IUCV RXRPC ISDN PHONET IEEE802154 CAIF ALG NFC "
    "VSOCK KCM QIPCRTR SMC XDP MCTP"
).split()
_STATES = "ESTABLISHED SYN_SENT SYN_RECV FIN_WAIT1 FIN_WAIT2 TIME_WAIT CLOSE CLOSE_WAIT LAST_ACK LISTEN CLOSING NEW_SYN_RECV".split()
_NUMBERS = {
    **{f"AF_{name}": number for number, name in enumerate(_FAMILIES)},
    **{f"TCP_{name}": number for number, name in enumerate(_STATES, 1)},
    "IPPROTO_IP": 0, "IPPROTO_ICMP": 1, "IPPROTO_IGMP": 2, "IPPROTO_IPIP": 4, "IPPROTO_TCP": 6, "IPPROTO_EGP": 8, "IPPROTO_PUP": 12,
    "IPPROTO_UDP": 17, "IPPROTO_IDP": 22, "IPPROTO_TP": 29, "IPPROTO_DCCP": 33, "IPPROTO_IPV6": 41, "IPPROTO_ROUTING": 43,
    "IPPROTO_FRAGMENT": 44, "IPPROTO_RSVP": 46, "IPPROTO_GRE": 47, "IPPROTO_ESP": 50, "IPPROTO_AH": 51, "IPPROTO_ICMPV6": 58,
    "IPPROTO_NONE": 59, "IPPROTO_DSTOPTS": 60, "IPPROTO_MTP": 92, "IPPROTO_BEETPH": 94, "IPPROTO_ENCAP": 98, "IPPROTO_PIM": 103,
    "IPPROTO_COMP": 108, "IPPROTO_L2TP": 115, "IPPROTO_SCTP": 132, "IPPROTO_MH": 135, "IPPROTO_UDPLITE": 136, "IPPROTO_MPLS": 137,
    "IPPROTO_ETHERNET": 143, "IPPROTO_RAW": 255, "IPPROTO_MPTCP": 262,
}  # fmt: skip


class Unsupported(ValueError):
    """The agent would refuse this filter, or this engine does not model it; the text says which."""


def parse_integer(text: str) -> int:
    """Decimal, 0x, 0o or 0b, and a leading 0 for octal, as the agent reads numbers (R2.3.8)."""
    match = re.fullmatch(r"([+-]?)(0[xX][0-9a-fA-F]+|0[bB][01]+|0[oO]?[0-7]+|0|[1-9][0-9]*)", text)
    if match is None:
        raise ValueError(f"{text!r} is no number")
    sign, body = match.groups()
    number = int(body, 8) if re.fullmatch(r"0[0-7]+", body) else int(body, 0)
    return -number if sign == "-" else number


def compile_filter(operator: str, values: Sequence[str], type_: str, target: Target = DEFAULT, section: str = "kprobes") -> Matcher:
    """The filter as a function. Raises Unsupported where no honest function exists."""
    match = _matcher(operator, values, type_, target, section)
    return lambda value: FALSE if isinstance(value, ReadError) else match(value)  # R2.3.4


def counted(operator: str, values: Sequence[str], type_: str, target: Target) -> None:
    """Raises Unsupported for more values, or longer ones, than a filter can hold (R1.11, R2.3.17, R2.3.19)."""
    numeric = type_ in INTEGERS or type_ in CAPABILITY_TYPES
    if ((operator in NUMBER_OPERATORS - SET_OPERATORS and numeric) or operator in FILE_TYPE_OPERATORS) and len(values) > MAX_NUMBERS:
        raise Unsupported(f"operator {operator} takes at most {MAX_NUMBERS} values")
    base = operator.removeprefix("Not")
    longest = {"Equal": target.max_string, "Prefix": _MAX_PREFIX_VALUE, "Postfix": _max_postfix(target)}.get(base)
    if operator in TEXT_OPERATORS and longest and any(len(value.encode("utf-8", "surrogateescape")) > longest for value in values):
        raise Unsupported(f"operator {operator} takes values of at most {longest} bytes")


def _max_postfix(target: Target) -> int:
    return 127 if target.at_least("large") else 94


def _matcher(operator: str, values: Sequence[str], type_: str, target: Target, section: str) -> Matcher:
    if operator in NUMBER_OPERATORS and type_ in INTEGERS:
        return _number(operator, values, type_)
    if operator in ("Equal", "NotEqual") and type_ in CAPABILITY_TYPES:
        return _capability_mask(operator, values)
    if operator in TEXT_OPERATORS:
        return _any_text(operator, values, type_, target)
    if operator in SUBSTRING_OPERATORS:
        return _substring(operator, values, type_, target, section)
    if operator in FILE_TYPE_OPERATORS and type_ in ("file", "path"):
        return _file_type(operator, values)
    if operator in SOCKET_OPERATORS and (type_ in SOCKET_TYPES or (operator == "Family" and type_ == "sockaddr_un")):
        return _socket(operator, values, type_)
    raise _refused(operator, type_)


def _refused(operator: str, type_: str, why: str = "") -> Unsupported:
    return Unsupported(f"operator {operator} on an argument of type {type_} is refused by the agent or is not modelled{why}")


def _decided(kind: type, then: Callable[..., bool]) -> Matcher:
    return lambda value: truth(then(value)) if isinstance(value, kind) else unknown(_OTHER_TYPE)


# --- texts ----------------------------------------------------------------------------------------------------------


def _any_text(operator: str, values: Sequence[str], type_: str, target: Target) -> Matcher:
    """Operators on texts, and on everything that the loader lets through with them (R2.3.6)."""
    ends = operator in END_OPERATORS
    if type_ == "dentry" and not ends and not target.is_main:
        raise _refused(operator, type_, " (1.8 compares it)")
    if type_ == "fd":
        if not target.is_main:
            raise Unsupported("an fd is not modelled before 1.8: it is compared with what FollowFD remembered (R2.3.22)")
        return _text(operator, values, type_, target)
    if type_ == "sockaddr_un":
        if operator.endswith("Postfix") or not target.at_least("v511"):
            raise _refused(operator, type_)
        return _unix_address(operator, values, target)
    if type_ == "linux_binprm" and not target.at_least("large"):
        raise _refused(operator, type_, " below kernel 5.3")
    if type_ in PATH_TYPES or type_ in STRING_TYPES or type_ == "char_buf":
        return _text(operator, values, type_, target)
    if ends and (type_ in INTEGERS or type_ in SOCKET_TYPES):
        return lambda value: FALSE
    if ends and type_ in UNCOMPARED_TYPES:
        return lambda value: TRUE
    raise _refused(operator, type_)


def _wanted(operator: str, values: Sequence[str], type_: str) -> list[bytes]:
    """The values as bytes. R2.3.18: NULs at the end are dropped for some types and operators only."""
    base = operator.removeprefix("Not")
    strips = (base == "Equal" and type_ == "string") or (base == "Postfix" and type_ != "char_buf")
    wanted = [value.encode("utf-8", "surrogateescape") for value in values]
    return [value.rstrip(b"\0") if strips else value for value in wanted]


def _text(operator: str, values: Sequence[str], type_: str, target: Target) -> Matcher:
    negated, base = operator.startswith("Not"), operator.removeprefix("Not")
    wanted = _wanted(operator, values, type_)
    compare, lossy = _comparison(base, wanted, target)
    is_path = type_ in PATH_TYPES or type_ == "fd"
    longest = _MAX_BUFFER if type_ in ("char_buf", "data_loc") else target.max_string

    def match(value: Value) -> Truth:
        text = _bytes(value)
        if text is None:
            return unknown(_OTHER_TYPE)
        if is_path and not text:
            return FALSE  # R2.3.20: no path, no match, negated or not
        if not isinstance(value, bytes):
            if _LOST in text:
                found = lossy(text)
                return found.negated() if negated else found
        elif text.startswith(_FAILED_READS):
            return unknown("the agent could not read these bytes (R2.3.25)")
        return truth(compare(text[:longest]) != negated)

    return match


def _bytes(value: Value) -> bytes | None:
    if isinstance(value, FilePath):
        return value.path.encode("utf-8", "surrogateescape")
    if isinstance(value, bytes):
        return value
    return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else None


def _comparison(base: str, wanted: Sequence[bytes], target: Target) -> tuple[Callable[[bytes], bool], Callable[[bytes], Truth]]:
    """Equal, Prefix or Postfix of exact bytes, and of a text that lost bytes which are not UTF-8 (R2.3.26)."""
    if base == "Equal":
        exact = frozenset(wanted)

        def equal_lossy(text: bytes) -> Truth:
            head, tail = text.split(_LOST)[0], text.split(_LOST)[-1]
            fits = any(v.startswith(head) and v.endswith(tail) and len(v) > len(head) + len(tail) for v in exact)
            return _lost() if fits else FALSE

        return exact.__contains__, equal_lossy
    if base == "Prefix":
        heads = [one for one in wanted if len(one) <= _MAX_PREFIX]
        starts = starting(heads)

        def prefix_lossy(text: bytes) -> Truth:
            head = text.split(_LOST)[0]
            return TRUE if starts(head) or b"" in heads else _lost() if any(one.startswith(head) for one in heads) else FALSE

        return lambda text: bool(text) and starts(text), prefix_lossy
    tails = [one for one in wanted if len(one) <= _max_postfix(target)]
    ends = ending(tails)

    def postfix_lossy(text: bytes) -> Truth:
        tail = text.split(_LOST)[-1]
        return TRUE if ends(tail) else _lost() if any(one.endswith(tail) for one in tails) else FALSE

    return lambda text: bool(text) and ends(text), postfix_lossy


def _lost() -> Truth:
    return unknown("the recorded text lost bytes that are not UTF-8")


def starting(values: Iterable[bytes]) -> Callable[[bytes], bool]:
    """Whether a text starts with one of these: one look-up per length that occurs, however many values there are."""
    by_length: dict[int, set[bytes]] = {}
    for value in values:
        by_length.setdefault(len(value), set()).add(value)
    if sum(map(len, by_length.values())) <= 8:
        several = tuple(one for some in by_length.values() for one in some)
        return lambda text: text.startswith(several)
    tables = sorted(by_length.items())
    return lambda text: any(text[:length] in some for length, some in tables)


def ending(values: Iterable[bytes]) -> Callable[[bytes], bool]:
    """Whether a text ends with one of these."""
    backwards = starting(value[::-1] for value in values)
    return lambda text: backwards(text[: -_MAX_PREFIX - 1 : -1])


def _unix_address(operator: str, values: Sequence[str], target: Target) -> Matcher:
    """R2.3.32: JSON shows an abstract name as @name; what is compared is the name, padded with NULs to 107 bytes."""
    negated, base = operator.startswith("Not"), operator.removeprefix("Not")
    compare, lossy = _comparison(base, _wanted(operator, values, "sockaddr_un"), target)

    def match(value: Value) -> Truth:
        if not isinstance(value, Socket):
            return unknown(_OTHER_TYPE)
        text = value.saddr.encode("utf-8", "surrogateescape")
        if not text:
            return unknown("the recorded socket has no name")
        if _LOST in text:
            found = lossy(text)
        else:
            found = truth(compare(text))
            if text.startswith(b"@") and compare(text[1:].ljust(107, b"\0")) != found.value:
                return unknown("the recording does not tell an abstract name from a path that starts with @")
        return found.negated() if negated else found

    return match


def _substring(operator: str, values: Sequence[str], type_: str, target: Target, section: str) -> Matcher:
    """R2.3.24: needs a kfunc of the kernel; without it the filter is never true."""
    if any(not value or len(value.encode()) > _MAX_SUBSTRING for value in values):
        raise Unsupported(f"operator {operator} takes values of 1 to {_MAX_SUBSTRING} bytes")
    if len(values) > 1 and section not in ("uprobes", "usdts"):
        raise Unsupported(f"operator {operator} takes one value in {section}: the agent's map has room for one")
    if type_ in INTEGERS or type_ in SOCKET_TYPES:
        return lambda value: FALSE
    if type_ in UNCOMPARED_TYPES:
        return lambda value: TRUE
    compared = {"string", "char_buf"} | ({"file", "path", "dentry", "linux_binprm", "data_loc", "net_device"} if target.is_main else set())
    if type_ in ("file", "path") and not target.is_main:
        return lambda value: FALSE
    if type_ not in compared:
        raise _refused(operator, type_)
    folds = operator == "SubStringIgnCase"
    if (STRCASESTR if folds else STRNSTR) not in target.features:
        if section in ("uprobes", "usdts"):
            raise _refused(operator, type_, " without the kernel's function for it")
        return lambda value: FALSE
    needles = [value.encode() for value in values]
    needles = [one.lower() for one in needles] if folds else needles

    def match(value: Value) -> Truth:
        text = _bytes(value)
        if text is None:
            return unknown(_OTHER_TYPE)
        if isinstance(value, FilePath) and not text:
            return FALSE
        text = text[: target.max_string].lower() if folds else text[: target.max_string]
        if any(one in text for one in needles):
            return TRUE
        return _lost() if _LOST in text and not isinstance(value, bytes) else FALSE

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


# --- numbers --------------------------------------------------------------------------------------------------------


def _ranges(values: Sequence[str]) -> list[tuple[int, int]]:
    """``5`` and ``lo:hi`` entries of a set, decimal; a reversed range is turned round (R2.3.13)."""
    ranges = []
    for value in values:
        if not re.fullmatch(r"[+-]?[0-9]+(:[+-]?[0-9]+)?", value):
            raise Unsupported(f"value {value!r} is no decimal number or range lo:hi")
        low, _unused, high = value.partition(":")
        first, last = sorted((int(low), int(high or low)))
        ranges.append((first, last))
    return ranges


def members(ranges: Iterable[tuple[int, int]]) -> Callable[[int], bool]:
    """Whether a number lies in one of these ranges: a set for single numbers, sorted bounds for the rest."""
    singles, wide = set(), []
    for first, last in ranges:
        if first == last:
            singles.add(first)
        else:
            wide.append((first, last))
    if not wide:
        return singles.__contains__
    merged: list[list[int]] = []
    for first, last in sorted(wide):
        if merged and first <= merged[-1][1] + 1:
            merged[-1][1] = max(merged[-1][1], last)
        else:
            merged.append([first, last])
    starts, ends = [one[0] for one in merged], [one[1] for one in merged]

    def inside(number: int) -> bool:
        place = bisect.bisect_right(starts, number) - 1
        return number in singles or (place >= 0 and number <= ends[place])

    return inside


def bounds(type_: str) -> tuple[int, int]:
    """The least and the greatest number that the agent exports for an argument of this type."""
    if type_ == "size_t":
        return 0, (1 << 64) - 1
    bits = INTEGERS[type_][0]
    return (0, (1 << bits) - 1) if type_.startswith("u") or type_ == "syscall64" else (-(1 << bits - 1), (1 << bits - 1) - 1)


def _parsed(text: str, type_: str) -> int:
    """One value of a numeric filter, refused where the agent refuses it (R2.3.8)."""
    signed = not type_.startswith("u")
    bits = 64 if type_ in ("int64", "sint64", "long", "uint64", "ulong", "syscall64") else 32
    try:
        number = parse_integer(text)
    except ValueError:
        raise Unsupported(f"value {text!r} is no number") from None
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    if not low <= number <= high or (not signed and text[0] in "+-"):
        raise Unsupported(f"value {text!r} does not fit an argument of type {type_}")
    return number


def _number(operator: str, values: Sequence[str], type_: str) -> Matcher:
    bits, signed = INTEGERS[type_]
    negated = operator.startswith("Not")
    mask = (1 << bits) - 1
    width = max(bits, 32)  # below 32 bits a value is compared with 32, the argument is zero-extended (R2.3.12)
    if operator in SET_OPERATORS:
        if any(value.startswith("list:") for value in values):
            raise Unsupported("values taken from a list are not modelled")  # tracepoints expand them before
        inside = members(_keys(_ranges(values)))
        return _decided(int, lambda number: inside(number & mask) != negated)

    def ordered(value: int, width: int = width) -> int:
        value &= (1 << width) - 1
        return value - (1 << width) if signed and value >> (width - 1) else value

    if operator in RANGE_OPERATORS:
        bounds = []
        for value in values:
            first, colon, last = value.partition(":")
            if not colon:
                raise Unsupported(f"value {value!r} is no range min:max")
            bounds.append((_parsed(first, type_), _parsed(last, type_)))
        return _ordered(type_, mask, [two for pair in bounds for two in pair], ordered, _between, negated)
    numbers = [_parsed(value, type_) for value in values]
    if operator in ("Equal", "NotEqual"):
        wanted = {number & ((1 << width) - 1) for number in numbers}
        return _decided(int, lambda number: (number & mask in wanted) != negated)
    if operator == "Mask":
        return _decided(int, lambda number: any(number & mask & one for one in numbers))
    if operator in ("GT", "GreaterThan"):
        return _ordered(type_, mask, numbers, ordered, lambda one, limits: any(one > limit for limit in limits), False)
    return _ordered(type_, mask, numbers, ordered, lambda one, limits: any(one < limit for limit in limits), False)


def _between(number: int, bounds: Sequence[int]) -> bool:
    return any(first <= number <= last for first, last in zip(bounds[::2], bounds[1::2], strict=True))


def _ordered(
    type_: str,
    mask: int,
    limits: Sequence[int],
    ordered: Callable[..., int],
    compare: Callable[[int, Sequence[int]], bool],
    negated: bool,
) -> Matcher:
    """R2.3.12 says that a negative limit of 8 or 16 bits is a large number, not how large: both readings must agree."""
    wide = [ordered(limit) for limit in limits]
    if type_ in _SIGNED_SMALL and any(limit < 0 for limit in limits):
        narrow = [ordered(limit & mask) for limit in limits]

        def both(value: Value) -> Truth:
            if not isinstance(value, int):
                return unknown(_OTHER_TYPE)
            answers = {compare(ordered(value & mask), some) for some in (wide, narrow)}
            if len(answers) > 1:
                return unknown(f"how the agent orders a negative value of type {type_} is not known")
            return truth(answers.pop() != negated)

        return both
    return _decided(int, lambda number: compare(ordered(number & mask), wide) != negated)


def _keys(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Map keys of 64 bits: a range is expanded one by one, and a negative number is its two's complement (R2.3.10, R2.3.13)."""
    keys = []
    for first, last in ranges:
        if first < 0:
            keys.append((first + (1 << 64), min(last, -1) + (1 << 64)))
        if last >= 0:
            keys.append((max(first, 0), last))
    return keys


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
    return _decided(int, lambda number: (number in masks) != (operator == "NotEqual"))


def capabilities_gained(old: Value, new: Value) -> Truth:
    """R2.3.34: the second set holds a capability that the first lacks."""
    if isinstance(old, ReadError) or isinstance(new, ReadError):
        return FALSE
    return truth(bool(new & ~old)) if isinstance(old, int) and isinstance(new, int) else unknown(_OTHER_TYPE)


# --- capabilities ---------------------------------------------------------------------------------------------------

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


# --- sockets --------------------------------------------------------------------------------------------------------


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


def _socket(operator: str, values: Sequence[str], type_: str) -> Matcher:
    if type_ == "sockaddr" and (operator.removeprefix("Not")[:1] in ("D", "P") or operator == "State"):
        raise Unsupported(f"operator {operator} on an argument of type sockaddr is refused by the agent")
    if operator in NAME_OPERATORS:
        compare = _named(operator, _numbers_of(values), type_)
    elif operator in PRIVILEGED_OPERATORS:
        compare = _ported(operator, lambda port: port < 1024)
    elif operator in PORT_OPERATORS:
        compare = _ported(operator, members(_ranges(values)))
    else:
        compare = _addressed(operator, values)

    def match(value: Value) -> Truth:
        if not isinstance(value, Socket):
            return unknown(_OTHER_TYPE)
        if type_ in ("skb", "socket") and not _family(value):
            return unknown(f"a {type_} without addresses holds what an earlier event left behind (R2.3.27)")
        return compare(value)

    return match


def _named(operator: str, wanted: Sequence[tuple[int, int]], type_: str) -> Callable[[Socket], Truth]:
    inside = members(wanted)

    def compare(value: Socket) -> Truth:
        if operator == "State" and type_ == "skb":
            return FALSE  # R2.3.28
        text = {"Family": _family(value), "Protocol": value.protocol, "State": value.state}[operator]
        number = _NUMBERS.get(text, int(text) if text.isdecimal() else None)
        if number is None:
            return unknown(f"the recording does not name a {operator.lower()} that is known: {text!r}")
        return truth(inside(number))

    return compare


def _ported(operator: str, inside: Callable[[int], bool]) -> Callable[[Socket], Truth]:
    negated, source = operator.startswith("Not"), operator.removeprefix("Not").startswith("S")
    return lambda value: truth(inside(value.sport if source else value.dport) != negated)


def _addressed(operator: str, values: Sequence[str]) -> Callable[[Socket], Truth]:
    negated, source = operator.startswith("Not"), operator.removeprefix("Not") == "SAddr"
    try:
        networks = [ipaddress.ip_network(value, strict=False) for value in values]
    except ValueError as error:
        raise Unsupported(f"address {error}") from None
    tables = {"AF_INET": within(networks, 4), "AF_INET6": within(networks, 6)}

    def compare(value: Socket) -> Truth:
        family = _family(value)
        if family not in tables:
            return FALSE  # R2.3.29: neither IPv4 nor IPv6, no match, negated or not
        text = value.saddr if source else value.daddr
        try:
            address = ipaddress.ip_address(text or ("0.0.0.0" if family == "AF_INET" else "::"))
        except ValueError:
            return unknown(f"the recorded address {text!r} cannot be read")
        return truth(tables[family](int(address)) != negated)

    return compare


def within(networks: Iterable[ipaddress.IPv4Network | ipaddress.IPv6Network], version: int) -> Callable[[int], bool]:
    """Whether an address of this version lies in one of these networks: one look-up per length of a mask."""
    bits = 32 if version == 4 else 128
    by_length: dict[int, set[int]] = {}
    for network in networks:
        if network.version == version:
            shift = bits - network.prefixlen
            by_length.setdefault(shift, set()).add(int(network.network_address) >> shift)
    tables = tuple(by_length.items())
    return lambda address: any(address >> shift in some for shift, some in tables)
