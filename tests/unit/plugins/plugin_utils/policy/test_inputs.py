# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Input types: which values they take, and how a policy may declare them."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.apiary.tetragon.plugins.plugin_utils import documents
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.inputs import SCHEMA, TYPES, Input, values_schema


def errors(declared: dict[str, Any], value: object) -> list[str]:
    """What is wrong with a value of an input, as messages."""
    schema = Input.from_meta("it", {"description": "d", **declared}).schema()
    return [problem.message for problem in documents.validate(documents.Document("e.yml", value, {}), schema)]


ACCEPTED: dict[str, list[Any]] = {
    "string": ["x", "two words", "{{ x }}", "line\nline"],
    "integer": [0, -1, 1 << 40],
    "boolean": [True, False],
    "path": ["/", "/etc/passwd", "/with space/ü", "/" + "x" * 254],
    "cidr": ["10.0.0.0/8", "192.0.2.1", "::/0", "2001:db8::1", "0.0.0.0/0"],
    "port": [1, 443, 65535],
    "identifier": ["main", "_start", "Foo.bar_2"],
    "label_value": ["", "a", "a.b-c_d", "x" * 63],
    "labels": [{}, {"app": "cart", "example.org/tier": ""}],
}
REFUSED: dict[str, list[Any]] = {
    "string": ["", 1, None, ["x"], True],
    "integer": ["1", 1.5, True, None],
    "boolean": [0, "true", None],
    "path": ["etc/passwd", "", "~/x", "/nul\0byte", "/" + "x" * 255, 7],
    "cidr": ["10.0.0.1/8", "10.0.0.0/33", "10.0.0", "localhost", "::/129", "", 10],
    "port": [0, 65536, -1, "443", 1.5],
    "identifier": ["2fast", "a-b", "a b", "", "x;y"],
    "label_value": ["-a", "a-", "a b", "x" * 64, 1],
    "labels": [{"app": "-a"}, {"app": 1}, ["app"], "app=cart"],
}


def test_every_type_has_examples_here() -> None:
    assert set(ACCEPTED) == set(REFUSED) == set(TYPES)


@pytest.mark.parametrize(
    ("kind", "value"),
    [pytest.param(kind, value, id=f"{kind}-{str(value)[:16]!a}") for kind, values in ACCEPTED.items() for value in values],
)
def test_a_type_takes(kind: str, value: object) -> None:
    assert errors({"type": kind}, value) == []


@pytest.mark.parametrize(
    ("kind", "value"), [pytest.param(kind, value, id=f"{kind}-{str(value)[:16]!a}") for kind, values in REFUSED.items() for value in values]
)
def test_a_type_does_not_take(kind: str, value: object) -> None:
    assert errors({"type": kind}, value)


@pytest.mark.parametrize("kind", list(TYPES))
def test_a_list_holds_values_of_its_element_type(kind: str) -> None:
    declared = {"type": "list", "elements": kind}
    assert errors(declared, ACCEPTED[kind][:1]) == []
    assert errors(declared, [ACCEPTED[kind][0], REFUSED[kind][0]])


@pytest.mark.parametrize(
    ("declared", "value", "message"),
    [
        pytest.param({"type": "integer", "min": 2}, 1, "must be at least 2", id="a number too small"),
        pytest.param({"type": "integer", "max": 2}, 3, "must be at most 2", id="a number too large"),
        pytest.param({"type": "list", "elements": "integer", "min": 1}, [], "needs at least 1 entries", id="a list too short"),
        pytest.param({"type": "list", "elements": "integer", "max": 1}, [1, 2], "may have at most 1 entries", id="a list too long"),
        pytest.param({"type": "list", "elements": "integer"}, [1, 1], "no entry may stand twice", id="an entry twice"),
        pytest.param({"type": "string", "choices": ["a", "b"]}, "c", 'allowed: "a", "b"', id="a choice that is none"),
        pytest.param({"type": "list", "elements": "string", "choices": ["a"]}, ["b"], 'allowed: "a"', id="a chosen element that is none"),
    ],
)
def test_bounds_and_choices_hold(declared: dict[str, Any], value: object, message: str) -> None:
    (text,) = errors(declared, value)
    assert message in text


@pytest.mark.parametrize(
    ("declared", "value"),
    [
        pytest.param({"type": "integer", "min": 2, "max": 2}, 2, id="a number at both bounds"),
        pytest.param({"type": "list", "elements": "integer", "min": 1, "max": 1}, [5], id="a list at both bounds"),
        pytest.param({"type": "string", "choices": ["a", "b"]}, "b", id="a choice"),
    ],
)
def test_values_within_bounds_and_choices_are_taken(declared: dict[str, Any], value: object) -> None:
    assert errors(declared, value) == []


@pytest.mark.parametrize(
    ("declared", "value"), [({"type": "port", "max": 70000}, 66000), ({"type": "port", "min": 0}, 0)], ids=["max", "min"]
)
def test_bounds_of_a_port_cannot_widen_it(declared: dict[str, Any], value: int) -> None:
    assert errors(declared, value)


@pytest.mark.parametrize(("kind", "value"), [("identifier", "main\n"), ("label_value", "cart\n"), ("labels", {"app": "cart\n"})], ids=ascii)
def test_a_newline_at_the_end_is_no_part_of_a_name(kind: str, value: object) -> None:
    assert errors({"type": kind}, value)


def test_an_input_with_a_default_is_not_required() -> None:
    given = Input.from_meta("it", {"type": "integer", "description": "d", "default": 0})
    assert (given.required, given.default) == (False, 0)


def test_an_input_without_a_default_is_required() -> None:
    assert Input.from_meta("it", {"type": "integer", "description": "d"}).required


def test_the_schema_of_values_names_inputs_and_what_is_required() -> None:
    inputs = {
        "one": Input.from_meta("one", {"type": "integer", "description": "d"}),
        "two": Input.from_meta("two", {"type": "boolean", "description": "d", "default": True}),
    }
    schema = values_schema(inputs)
    assert schema["required"] == ["one"]
    assert set(schema["properties"]) == {"one", "two"}
    assert schema["additionalProperties"] is False


# --- declarations ---------------------------------------------------------------------------------------------------


def declaration_errors(text: str) -> list[str]:
    """What is wrong with an ``inputs`` section."""
    return [str(problem) for problem in documents.validate(documents.parse(text, "m.yml"), SCHEMA)]


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "it: {type: integer, description: d}",
        "it: {type: integer, description: d, default: 1, min: 0, max: 5}",
        "it: {type: list, elements: path, description: d, default: []}",
        "it: {type: string, description: d, choices: [a, b]}",
    ],
)
def test_a_sound_declaration_is_accepted(text: str) -> None:
    assert declaration_errors(text) == []


@pytest.mark.parametrize(
    ("text", "part"),
    [
        pytest.param("it: {description: d}", "key 'type' is missing", id="no type"),
        pytest.param("it: {type: integer}", "key 'description' is missing", id="no description"),
        pytest.param("it: {type: int, description: d}", 'is "int"; allowed: "string", "integer"', id="unknown type"),
        pytest.param("it: {type: list, description: d}", "key 'elements' is missing", id="a list of nothing"),
        pytest.param("it: {type: list, elements: list, description: d}", 'is "list"; allowed:', id="a list of lists"),
        pytest.param("it: {type: integer, elements: path, description: d}", "it.elements", id="elements of a number"),
        pytest.param("it: {type: integer, description: d, choices: []}", "needs at least 1 entries", id="no choices"),
        pytest.param("it: {type: integer, description: d, minimum: 1}", "did you mean 'min'?", id="unknown key"),
        pytest.param("It: {type: integer, description: d}", "lower-case letters, digits and underscores", id="a name in capitals"),
        pytest.param("form: {type: integer, description: d}", "form", id="the name form, which templates see already"),
        pytest.param("protected: {type: integer, description: d}", "protected", id="the name protected, which templates see already"),
    ],
)
def test_a_declaration_that_is_not_sound_is_refused(text: str, part: str) -> None:
    (problem,) = declaration_errors(text)
    assert part in problem
