# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""YAML documents whose every value knows its line, and their validation against a JSON Schema."""

from __future__ import annotations

import difflib
import functools
import ipaddress
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Problem, Refused, refuse

Path_ = tuple[str | int, ...]
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
MAX_VALUES = 1_000_000
MAX_DEPTH = 200


@dataclass(frozen=True)
class Document:
    """A parsed YAML file. ``lines`` maps the path of each value to its line (1-based)."""

    file: str
    data: Any
    lines: Mapping[Path_, int]

    def problem(self, path: Sequence[str | int], message: str) -> Problem:
        """A problem with the value at ``path``; a path that does not exist takes its nearest parent's line."""
        key = tuple(path)
        while key and key not in self.lines:
            key = key[:-1]
        return Problem(self.file, self.lines.get(key, 1), show_path(path), message)


def show_path(path: Sequence[str | int]) -> str:
    """``("policies", 2, "mode")`` as ``policies[2].mode``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".")


def load(path: str | Path, shown_as: str = "") -> Document:
    """Read one YAML file, named ``shown_as`` in errors. Raises Refused when it cannot be read, parsed, or holds a key twice."""
    file = shown_as or str(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise refuse("no such file", file=file) from None
    except (OSError, UnicodeDecodeError) as error:
        raise refuse(f"cannot be read: {error}", file=file) from None
    return parse(text, file)


def parse(text: str, file: str) -> Document:
    """Parse YAML text that came from ``file``."""
    loader = None
    try:
        _check_depth(text, file)
        loader = _Loader(text)
        node = loader.get_single_node()
        lines: dict[Path_, int] = {}
        problems = list(_walk(node, (), lines, file)) if node is not None else []
        if problems:
            raise Refused(problems)
        data = loader.construct_document(node) if node is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise refuse(f"not valid YAML: {error.problem or error.context}", file=file, line=mark.line + 1 if mark else 0) from None
    except (yaml.YAMLError, ValueError) as error:
        raise refuse(f"not valid YAML: {error}", file=file) from None
    finally:
        if loader is not None:
            loader.dispose()
    return Document(file, data, lines)


# A key is text, as it is in JSON, whatever YAML makes of an unquoted on, 1 or 2026-01-01.
_TEXT_TAG = "tag:yaml.org,2002:str"
_KEY_TAGS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("bool", "float", "int", "null", "timestamp"))


def _check_depth(text: str, file: str) -> None:
    """libyaml composes by recursion in C: deep enough a text takes the process with it, so it is measured first."""
    depth = 0
    for event in yaml.parse(text, _Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                line = event.start_mark.line + 1 if event.start_mark else 0
                raise refuse(f"not valid YAML: nests more than {MAX_DEPTH} levels deep", file=file, line=line)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _walk(node: yaml.Node, path: Path_, lines: dict[Path_, int], file: str) -> Iterator[Problem]:
    lines.setdefault(path, node.start_mark.line + 1)
    if len(path) > MAX_DEPTH:
        raise refuse("not valid YAML: a value holds itself", file=file, line=node.start_mark.line + 1)
    if len(lines) > MAX_VALUES:
        message = f"holds more than {MAX_VALUES} values, aliases counted wherever they stand"
        raise refuse(f"not valid YAML: {message}", file=file, line=node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _walk(item, (*path, index), lines, file)
    elif isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            if key.tag in _KEY_TAGS:
                key.tag = _TEXT_TAG
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen:
                yield Problem(file, line, show_path((*path, name)), f"written twice, first on line {seen[name]}: keep one")
            seen[name] = line
            lines[(*path, name)] = line
            yield from _walk(value, (*path, name), lines, file)


@functools.cache
def _checker() -> tuple[Any, Any]:
    """The validator class and the format checker. jsonschema takes a quarter of a second to import: only who validates waits.

    ``$`` in a pattern is the very end of a text, as in ECMA-262, where Python's would let a newline follow.
    """
    try:
        import jsonschema
    except ImportError:
        raise refuse("the Python package jsonschema is missing on the controller: pip install jsonschema") from None
    plain = jsonschema.Draft202012Validator
    extend: Any = jsonschema.validators.extend
    types = plain.TYPE_CHECKER.redefine("integer", _is_integer).redefine("number", _is_number)
    formats = jsonschema.FormatChecker(formats=())

    def pattern(validator: Any, wanted: str, instance: Any, schema: Any) -> Iterator[Any]:
        if isinstance(instance, str) and not re.search(re.sub(r"\$$", r"\\Z", wanted), instance):
            yield jsonschema.ValidationError(f"{instance!r} does not match {wanted!r}")

    @formats.checks("cidr", raises=ValueError)
    def is_cidr(value: object) -> bool:
        if isinstance(value, str):
            ipaddress.ip_network(value, strict=True)
        return True

    return extend(plain, {"pattern": pattern}, type_checker=types), formats


def _is_integer(checker: object, value: object) -> bool:
    """JSON Schema takes 2.0 for an integer; code that formats or parses one does not."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(checker: object, value: object) -> bool:
    """YAML has .nan, which no bound holds, and .inf; JSON has neither."""
    return _is_integer(checker, value) or (isinstance(value, float) and math.isfinite(value))


def validate(document: Document, schema: Mapping[str, Any], at: Sequence[str | int] = ()) -> list[Problem]:
    """Every way in which ``document`` (or the value at ``at``) breaks ``schema``, in document order."""
    value = document.data
    for part in at:
        value = value[part]
    validator, formats = _checker()
    problems = [
        document.problem((*at, *path), message)
        for error in validator(schema, format_checker=formats).iter_errors(value)
        for path, message in _explain(error)
    ]
    return sorted(set(problems), key=lambda problem: (problem.line, problem.path, problem.message))


def _explain(error: Any) -> Iterator[tuple[Path_, str]]:
    path: Path_ = tuple(error.absolute_path)
    instance, schema = error.instance, error.schema
    seen = show_value(instance)
    rule, wanted = error.validator, error.validator_value
    if rule == "additionalProperties":
        known = sorted(schema.get("properties", {}))
        for name in instance:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, 1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                yield (*path, name), f"unknown key; {hint}allowed here: {', '.join(known)}"
    elif rule == "required":
        for name in wanted:
            if name not in instance:
                yield path, f"key {name!r} is missing"
    elif rule in ("enum", "const"):
        allowed = wanted if rule == "enum" else [wanted]
        yield path, f"is {seen}; allowed: {', '.join(show_value(item) for item in allowed)}"
    elif rule == "type":
        names = [wanted] if isinstance(wanted, str) else wanted
        yield path, f"is {seen}; needed: {' or '.join(_TYPES[name] for name in names)}"
    elif rule in ("pattern", "format", "not"):
        yield path, f"is {seen}; needed: {schema.get('description', f'{rule} {wanted}')}"
    elif rule in _BOUNDS:
        yield path, f"is {seen}; {_BOUNDS[rule].format(wanted)}"
    else:
        yield path, error.message


_TYPES = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping",
    "null": "nothing",
}
_BOUNDS = {
    "minimum": "must be at least {}",
    "maximum": "must be at most {}",
    "exclusiveMinimum": "must be more than {}",
    "minItems": "needs at least {} entries",
    "maxItems": "may have at most {} entries",
    "minLength": "needs at least {} characters",
    "maxLength": "may have at most {} characters",
    "minProperties": "needs at least {} keys",
    "maxProperties": "may have at most {} keys",
    "uniqueItems": "no entry may stand twice",
}


def show_value(value: object) -> str:
    """A value as a person would type it, cut when long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
