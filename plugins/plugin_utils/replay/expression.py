# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The expressions of the operator CelExpr, as functions of the arguments (R2.3.36).

The agent takes integers of 32 and 64 bits and truth values, no mixture of integer types, and of operators
``+ - ! && || == != < <= > >=`` and parentheses. ``arg0`` is the first argument of the filter's list. A sum that leaves
its type is undecidable here: what the agent's program does with it is not known.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.filters import Unsupported
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.records import ReadError, Value
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.truth import FALSE, Truth, truth, unknown

Expression = Callable[[Sequence[Value]], Truth]
_Node = Callable[[Sequence[int]], "int | bool | None"]
# Kind of a value: its bits and whether it is signed; "bool"; or "literal" for a number that fits itself to the other side.
_KINDS = {
    **dict.fromkeys(("int", "int32", "sint32"), "s32"),
    "uint32": "u32",
    **dict.fromkeys(("int64", "sint64", "long"), "s64"),
    **dict.fromkeys(("uint64", "ulong"), "u64"),
}
_TOKEN = re.compile(r"\s*(?:(0[xX][0-9a-fA-F]+|[0-9]+)([uU]?)|(arg[0-9]+|true|false)\b|(&&|\|\||==|!=|<=|>=|[-+!<>()]))")
_COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}
_LEVELS = (("||",), ("&&",), tuple(_COMPARISONS), ("+", "-"))


def compile_expression(text: str, types: Sequence[str]) -> Expression:
    """The expression over arguments of these types. Raises Unsupported for what the agent's compiler would not take."""
    kinds = []
    for type_ in types:
        if type_ not in _KINDS:
            raise Unsupported(f"CelExpr on an argument of type {type_} is refused by the agent")
        kinds.append(_KINDS[type_])
    node, kind = _Parser(text, kinds).parse()
    if kind != "bool":
        raise Unsupported(f"expression {text!r} is no condition")

    def evaluate(values: Sequence[Value]) -> Truth:
        if any(isinstance(value, ReadError) for value in values):
            return FALSE
        numbers = [_fit(value, kind) for value, kind in zip(values, kinds, strict=True) if isinstance(value, int)]
        if len(numbers) != len(values):
            return unknown("the recording holds this argument in another type")
        answer = node(numbers)
        return unknown("a sum leaves its type, and what the agent makes of it is not known") if answer is None else truth(bool(answer))

    return evaluate


def _fit(value: int, kind: str) -> int:
    bits = int(kind[1:])
    value &= (1 << bits) - 1
    return value - (1 << bits) if kind[0] == "s" and value >> (bits - 1) else value


def _in_range(value: int, kind: str) -> bool:
    bits = int(kind[1:])
    return -(1 << bits - 1) <= value < 1 << bits - 1 if kind[0] == "s" else 0 <= value < 1 << bits


class _Parser:
    """Recursive descent, one level of precedence per step. A node gives None where a sum leaves its type."""

    def __init__(self, text: str, kinds: Sequence[str]) -> None:
        self._text, self._kinds = text, kinds
        self._tokens: list[tuple[str, str]] = []
        place = 0
        while text[place:].strip():
            match = _TOKEN.match(text, place)
            if match is None:
                raise Unsupported(f"expression {text!r} cannot be read at {text[place:].strip()[:12]!r}")
            number, suffix, word, sign = match.groups()
            self._tokens.append(("number" + suffix.lower(), number) if number else ("word", word) if word else ("sign", sign))
            place = match.end()

    def parse(self) -> tuple[_Node, str]:
        node = self._level(0)
        if self._tokens:
            raise self._wrong()
        return node

    def _wrong(self) -> Unsupported:
        return Unsupported(f"expression {self._text!r} cannot be read at {self._tokens[0][1] if self._tokens else 'its end'!r}")

    def _next(self, *signs: str) -> str:
        if self._tokens and self._tokens[0][0] == "sign" and self._tokens[0][1] in signs:
            return self._tokens.pop(0)[1]
        return ""

    def _level(self, depth: int) -> tuple[_Node, str]:
        if depth == len(_LEVELS):
            return self._unary()
        left, kind = self._level(depth + 1)
        while sign := self._next(*_LEVELS[depth]):
            right, other = self._level(depth + 1)
            left, kind = self._join(sign, left, kind, right, other)
        return left, kind

    def _join(self, sign: str, left: _Node, kind: str, right: _Node, other: str) -> tuple[_Node, str]:
        if sign in ("&&", "||"):
            if kind != "bool" or other != "bool":
                raise Unsupported(f"expression {self._text!r} joins by {sign} what is no condition")
            return (_both if sign == "&&" else _either)(left, right), "bool"
        shared = other if kind == "s64?" else kind if other == "s64?" else kind if kind == other else ""
        if not shared or (shared == "bool" and sign not in ("==", "!=")):
            raise Unsupported(f"expression {self._text!r} mixes types at {sign}")
        if sign in _COMPARISONS:
            return _compared(_COMPARISONS[sign], left, right), "bool"
        return _summed(1 if sign == "+" else -1, left, right, shared.rstrip("?")), shared

    def _unary(self) -> tuple[_Node, str]:
        if self._next("!"):
            node, kind = self._unary()
            if kind != "bool":
                raise Unsupported(f"expression {self._text!r} negates what is no condition")
            return _opposite(node), "bool"
        if self._next("-"):
            node, kind = self._unary()
            if kind == "bool" or kind.startswith("u"):
                raise Unsupported(f"expression {self._text!r} negates an unsigned number or a condition")
            return _summed(-1, lambda numbers: 0, node, kind.rstrip("?")), kind
        if self._next("("):
            inner = self._level(0)
            if not self._next(")"):
                raise self._wrong()
            return inner
        if not self._tokens or self._tokens[0][0] == "sign":
            raise self._wrong()
        what, text = self._tokens.pop(0)
        if what.startswith("number"):
            value = int(text, 0) if text[:2].lower() == "0x" else int(text)
            return lambda numbers: value, "u64" if what == "numberu" else "s64?"
        if text in ("true", "false"):
            answer = text == "true"
            return lambda numbers: answer, "bool"
        place = int(text[3:])
        if place >= len(self._kinds):
            raise Unsupported(f"expression {self._text!r} names {text}, which the filter does not list")
        return lambda numbers: numbers[place], self._kinds[place]


def _both(left: _Node, right: _Node) -> _Node:
    def node(numbers: Sequence[int]) -> bool | None:
        answers = (left(numbers), right(numbers))
        return False if False in answers else None if None in answers else True

    return node


def _either(left: _Node, right: _Node) -> _Node:
    def node(numbers: Sequence[int]) -> bool | None:
        answers = (left(numbers), right(numbers))
        return True if True in answers else None if None in answers else False

    return node


def _opposite(inner: _Node) -> _Node:
    def node(numbers: Sequence[int]) -> bool | None:
        answer = inner(numbers)
        return None if answer is None else not answer

    return node


def _compared(compare: Callable[[int, int], bool], left: _Node, right: _Node) -> _Node:
    def node(numbers: Sequence[int]) -> bool | None:
        one, other = left(numbers), right(numbers)
        return None if one is None or other is None else compare(one, other)

    return node


def _summed(sign: int, left: _Node, right: _Node, kind: str) -> _Node:
    def node(numbers: Sequence[int]) -> int | None:
        one, other = left(numbers), right(numbers)
        if one is None or other is None:
            return None
        total = one + sign * other
        return total if _in_range(total, kind) else None

    return node
