# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Filters on arguments: which argument they mean, whether the recording holds it in a form that decides, and the comparison.

Rule ids in comments name the behaviour of the real agent that the code follows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay import expression, filters, layout, syscalls
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.equivalences import Equivalence
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.processes import Filter, undecidable
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.records import (
    Declared,
    FilePath,
    Invocation,
    Opaque,
    ReadError,
    Socket,
    Value,
)
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.target import Target
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.truth import FALSE, Truth, unknown

# Their values stand in maps that hooks of one policy share under kprobe-multi (R1.13).
SHARED_MAP_OPERATORS = (
    filters.SET_OPERATORS | filters.PORT_OPERATORS | filters.ADDRESS_OPERATORS | filters.NAME_OPERATORS | filters.SUBSTRING_OPERATORS
)
# What a classic tracepoint reads; any other type reads 0 (R2.3.15). Before 1.8 an ``int`` reads 0 too.
_READ_BY_TRACEPOINTS = frozenset(["char_buf", "string", "data_loc", "const_buf", "skb", "sock", "socket", "sockaddr", *filters.INTEGERS])
_ALIASES = {"sint32": "int", "int32": "int", "sint16": "int16", "sint8": "int8", "sint64": "int64", "long": "int64", "ulong": "uint64"}
# The types that the agent may find in the kernel's own description for a resolved field, whatever the policy says (R2.3.37).
_RESOLVED_TYPES = ("int", "uint32", "int64", "uint64")
Read = Callable[[Invocation], "Value | Truth"]


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


class Reader:
    """How the filters of one hook entry find what they compare. ``via``: in the recording of another hook."""

    def __init__(
        self,
        args: Sequence[Declared],
        data: Sequence[Declared],
        section: str,
        raw: bool,
        target: Target,
        via: Equivalence | None = None,
        lists: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self._args, self._data, self._section, self._target, self._via = args, data, section, target, via
        self._lists = lists or {}
        self._classic = section == "tracepoints" and not raw

    def filter(self, key: str, raw: Mapping[str, Any]) -> Filter:
        """One entry of matchArgs or matchData."""
        try:
            if raw["operator"] in ("CelExpr", "CapabilitiesGained"):
                return self._over_several(key, raw)
            return self._over_one(key, raw)
        except filters.Unsupported as error:
            return undecidable(key, raw, str(error))

    def _named(self, key: str, raw: Mapping[str, Any]) -> Declared:
        of_data = key == "matchData"
        wanted = addressed_data(raw, self._data) if of_data else addressed(raw, self._args, self._section)
        if wanted is None or len(raw.get("args") or ()) > 1:
            raise filters.Unsupported(f"filter {raw['operator']} names an argument that this engine cannot find")
        return wanted

    def _over_one(self, key: str, raw: Mapping[str, Any]) -> Filter:
        wanted, operator, values = self._named(key, raw), raw["operator"], tuple(raw.get("values") or ())
        if wanted.read:
            raise filters.Unsupported(f"with {wanted.read} the agent compares other bytes than it exports")
        if self._classic and wanted.type not in _READ_BY_TRACEPOINTS:
            raise filters.Unsupported(f"a tracepoint does not read an argument of type {wanted.type}")
        match = self._matcher(operator, self._listed(values, wanted) if operator in filters.SET_OPERATORS else values, wanted)
        read = self._read(wanted, key == "matchData")

        def evaluate(invocation: Invocation) -> Truth:
            value = read(invocation)
            return value if isinstance(value, Truth) else match(value)

        return Filter(key, _subject(wanted, key), operator, values, evaluate, lambda invocation: shown(read(invocation)))

    def _matcher(self, operator: str, values: Sequence[str], wanted: Declared) -> filters.Matcher:
        filters.counted(operator, values, wanted.type, self._target)
        match = filters.compile_filter(operator, values, wanted.type, self._target, self._section)
        if not wanted.resolve or wanted.type not in filters.INTEGERS:
            return match
        matchers = [(match, *filters.bounds(wanted.type))]
        for type_ in _RESOLVED_TYPES:
            try:
                other = filters.compile_filter(operator, values, type_, self._target, self._section)
            except filters.Unsupported:
                continue  # no value of this type can be meant
            matchers.append((other, *filters.bounds(type_)))

        def agreed(value: Value) -> Truth:
            answers = {one(value) for one, low, high in matchers if not isinstance(value, int) or low <= value <= high}
            if len(answers) == 1:
                return answers.pop()
            return unknown("the kernel decides the type of a resolved field, and the types that it may be disagree")

        return agreed

    def _listed(self, values: Sequence[str], wanted: Declared) -> Sequence[str]:
        """R5.3: a list of system calls stands for their numbers, on tracepoints and for syscall64 only."""
        numbers: list[str] = []
        for value in values:
            if not value.startswith("list:"):
                numbers.append(value)
                continue
            listing = self._lists.get(value.removeprefix("list:"), {})
            if self._section != "tracepoints" or wanted.type != "syscall64" or listing.get("type") != "syscalls":
                raise filters.Unsupported("the agent takes a list as value on tracepoints only, of system calls and for a syscall64")
            found = [(name, syscalls.number(name)) for name in listing.get("values") or ()]
            missing = [name for name, number in found if number is None]
            if missing:
                raise filters.Unsupported(f"the number of {', '.join(missing)} is not known")
            numbers += [str(number) for _unused, number in found]
        return numbers

    def _over_several(self, key: str, raw: Mapping[str, Any]) -> Filter:
        """CelExpr and CapabilitiesGained compare several arguments, by position."""
        places = raw.get("args") or [raw.get("index", 0)]
        listed = self._data if key == "matchData" else self._args
        if any(place >= len(listed) for place in places):
            raise filters.Unsupported(f"filter {raw['operator']} names an argument that this engine cannot find")
        wanted = [listed[place] for place in places]
        operator, values = raw["operator"], tuple(raw.get("values") or ())
        reads = [self._read(one, key == "matchData") for one in wanted]
        compare = self._expression(values, wanted) if operator == "CelExpr" else self._gained(wanted)

        def evaluate(invocation: Invocation) -> Truth:
            found = [read(invocation) for read in reads]
            if any(isinstance(one, ReadError) for one in found):
                return FALSE  # R2.3.4
            missing = [one for one in found if isinstance(one, Truth)]
            return missing[0] if missing else compare([one for one in found if not isinstance(one, Truth)])

        def told(invocation: Invocation) -> str | None:
            texts = [shown(read(invocation)) for read in reads]
            return None if None in texts else ", ".join(str(text) for text in texts)

        return Filter(key, " and ".join(_subject(one, key) for one in wanted), operator, values, evaluate, told)

    def _expression(self, values: Sequence[str], wanted: Sequence[Declared]) -> expression.Expression:
        if len(values) != 1:
            raise filters.Unsupported("CelExpr takes one expression")
        if self._section not in ("kprobes", "uprobes"):
            return lambda found: FALSE  # R2.3.36
        return expression.compile_expression(values[0], [one.type for one in wanted])

    def _gained(self, wanted: Sequence[Declared]) -> expression.Expression:
        if len(wanted) != 2 or any(one.type not in filters.CAPABILITY_TYPES for one in wanted) or not self._target.at_least("large"):
            raise filters.Unsupported("CapabilitiesGained compares two arguments that hold capabilities, from kernel 5.3 on")
        return lambda found: filters.capabilities_gained(found[0], found[1])

    # --- what was recorded

    def _read(self, wanted: Declared, of_data: bool) -> Read:
        if self._classic and wanted.type == "int" and not self._target.is_main:
            return lambda invocation: 0  # R2.3.15
        sought = self._sought(wanted)
        listed = self._data if of_data else self._args
        before = [(self._sought(one), False) for one in (self._args if of_data else ())]
        before += [(self._sought(one), of_data) for one in listed[: listed.index(wanted)]]
        if sum(layout.most_bytes(one.type) for one, _unused in before) <= layout.MAX_ARGUMENT_OFFSET:
            before = []

        def read(invocation: Invocation) -> Value | Truth:
            if before:
                taken = sum(layout.argument_bytes(one, _value(self._find(one, invocation, data))) for one, data in before)
                if taken > layout.MAX_ARGUMENT_OFFSET:  # R2.3.5
                    return unknown(f"the arguments before it take, or may take, more than {layout.MAX_ARGUMENT_OFFSET} bytes")
            return self._find(sought, invocation, of_data)

        return read

    def _sought(self, wanted: Declared) -> Declared:
        """The argument as the recorded hook has it."""
        if self._via is None or wanted.source:
            return wanted
        return replace(wanted, index=wanted.index + self._via.shift, context=self._via.context)

    def _find(self, wanted: Declared, invocation: Invocation, of_data: bool) -> Value | Truth:
        if self._via is not None and self._via.numbers_only and wanted.type not in filters.INTEGERS:
            return unknown(f"a recording of {self._via.recorded} does not decide an argument of type {wanted.type}")
        for arg in invocation.data if of_data or wanted.source else invocation.args:
            if decides(arg.declared, wanted, self._classic or self._via_tracepoint(), self._target):
                return arg.value
        if wanted.source:  # LSM hooks read the current task as an argument, others as data
            for arg in invocation.args:
                if decides(arg.declared, wanted, False, self._target):
                    return arg.value
        what = f"argument {wanted.index}" + (f" resolved as {wanted.resolve}" if wanted.resolve else "")
        if any(not arg.declared.type for arg in invocation.args):
            return unknown(f"the policy that recorded this is not at hand to tell {what} as {wanted.type}")
        return unknown(f"the recording lacks {what} as {wanted.type}")

    def _via_tracepoint(self) -> bool:
        return self._via is not None and self._via.recorded.kind == "tracepoint"


def decides(recorded: Declared, wanted: Declared, classic: bool, target: Target) -> bool:
    """Whether an argument that was recorded so decides one that is asked for so (5.7).

    ``classic``: it was recorded at a classic tracepoint, where an agent before 1.8 reads 0 for every int.
    """
    same = recorded.resolve == wanted.resolve and recorded.source == wanted.source and recorded.context == wanted.context
    if not same or (recorded.index != wanted.index and not wanted.source) or recorded.read:
        return False
    one, other = _ALIASES.get(recorded.type, recorded.type), _ALIASES.get(wanted.type, wanted.type)
    if one == other:
        return one != "char_buf" or recorded.size_index == wanted.size_index
    if classic and recorded.type == "int" and not target.is_main:
        return False
    return not wanted.resolve and _wide_enough(one, other)


def _wide_enough(recorded: str, wanted: str) -> bool:
    """An integer recorded with all 64 bits, or with as many as are compared, decides a narrower one; never a wider one.

    syscall64 is left out: it holds a bit for the ABI beside the number. A capability is read as an int.
    """
    recorded = "int" if recorded == "capability" else recorded
    if recorded not in filters.INTEGERS or wanted not in filters.INTEGERS or "syscall64" in (recorded, wanted):
        return False
    bits = 64 if recorded == "size_t" else filters.INTEGERS[recorded][0]
    return bits >= filters.INTEGERS[wanted][0]


def return_filter(raw: Mapping[str, Any], type_: str, target: Target, section: str) -> Filter:
    """One entry of matchReturnArgs (2.10)."""
    key, values = "matchReturnArgs", tuple(raw.get("values") or ())
    try:
        filters.counted(raw["operator"], values, type_, target)
        match = filters.compile_filter(raw["operator"], values, type_, target, section)
    except filters.Unsupported as error:
        return undecidable(key, raw, str(error))

    def evaluate(invocation: Invocation) -> Truth:
        value = invocation.returned
        return unknown("the recording lacks the return value") if value is None else match(value)

    def told(invocation: Invocation) -> str | None:
        return None if invocation.returned is None else shown(invocation.returned)

    return Filter(key, f"return value ({type_})", raw["operator"], values, evaluate, told)


def _value(found: Value | Truth) -> Value | None:
    return None if isinstance(found, Truth) else found


def _subject(wanted: Declared, key: str) -> str:
    name = "data" if key == "matchData" else "argument"
    return f"{name} {wanted.index} ({wanted.type}{f', {wanted.resolve}' if wanted.resolve else ''})"


def shown(value: Value | Truth) -> str | None:
    """A recorded value as text; None where nothing was recorded that decides."""
    if isinstance(value, Truth):
        return None
    if isinstance(value, FilePath):
        return f"{value.path or 'no path'} ({value.permission})" if value.permission else value.path or "no path"
    if isinstance(value, Socket):
        words = [value.family, value.protocol, value.state, f"{value.saddr}:{value.sport}", f"-> {value.daddr}:{value.dport}"]
        return " ".join(word for word in words if word)
    if isinstance(value, ReadError):
        return f"could not be read: {value.message}"
    if isinstance(value, Opaque):
        return f"a value that no filter compares ({value.member})"
    return repr(value) if isinstance(value, bytes) else str(value)
