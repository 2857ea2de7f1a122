# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Documents know their lines; every refusal names file, line, path, what was seen and what is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.apiary.tetragon.plugins.plugin_utils import documents
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Problem
from ansible_collections.apiary.tetragon.tests.unit.plugins.plugin_utils.samples import messages, refused

NESTED = """\
---
name: staging

policies:
  - policy: a/b
    values:
      paths:
        - /one
        - /two
  - {policy: c/d,
     mode: enforce}
"""


@pytest.mark.parametrize(
    ("path", "line"),
    [
        pytest.param((), 2, id="the document"),
        pytest.param(("name",), 2, id="a scalar"),
        pytest.param(("policies",), 4, id="a list, at its key"),
        pytest.param(("policies", 0), 5, id="an entry of a list"),
        pytest.param(("policies", 0, "values", "paths", 1), 9, id="deep inside"),
        pytest.param(("policies", 1, "mode"), 11, id="a flow mapping over two lines"),
        pytest.param(("policies", 0, "mode"), 5, id="a missing key, at its mapping"),
        pytest.param(("policies", 7, "values", "x"), 4, id="a missing entry, at its list"),
        pytest.param(("rings",), 2, id="a missing top-level key, at the document"),
    ],
)
def test_every_value_knows_its_line(path: tuple[str | int, ...], line: int) -> None:
    assert documents.parse(NESTED, "e.yml").problem(path, "x").line == line


def test_the_values_are_those_of_the_yaml_text() -> None:
    assert documents.parse(NESTED, "e.yml").data == yaml.safe_load(NESTED)


@pytest.mark.parametrize(
    ("path", "shown"),
    [((), ""), (("a",), "a"), (("a", "b"), "a.b"), (("a", 0, "b", 12), "a[0].b[12]"), ((3, "b"), "[3].b")],
    ids=str,
)
def test_paths_are_shown_with_dots_and_brackets(path: tuple[str | int, ...], shown: str) -> None:
    assert documents.show_path(path) == shown


# --- reading --------------------------------------------------------------------------------------------------------


def test_a_file_is_named_in_problems_by_its_path(tmp_path: Path) -> None:
    file = tmp_path / "e.yml"
    file.write_text("a: 1\n", encoding="utf-8")
    assert documents.load(file).problem(("a",), "x").file == str(file)


def test_a_file_is_named_in_problems_as_the_caller_says(tmp_path: Path) -> None:
    file = tmp_path / "e.yml"
    file.write_text("a: 1\n", encoding="utf-8")
    assert documents.load(file, "environments/e.yml").problem(("a",), "x").file == "environments/e.yml"


def test_a_file_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    assert refused(documents.load, tmp_path / "none.yml") == (Problem(str(tmp_path / "none.yml"), 0, "", "no such file"),)


def test_a_directory_is_refused(tmp_path: Path) -> None:
    assert "cannot be read" in messages(refused(documents.load, tmp_path))


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "e.yml").write_bytes(b"a: \xff\xfe\n")
    assert "cannot be read" in messages(refused(documents.load, tmp_path / "e.yml", "e.yml"))


def test_an_empty_file_is_a_document_without_data() -> None:
    document = documents.parse("", "e.yml")
    assert document.data is None
    assert document.problem(("a",), "x").line == 1


@pytest.mark.parametrize(
    ("text", "line"),
    [
        pytest.param("a: 1\nb: [1, 2\nc: 3\n", 3, id="open bracket"),
        pytest.param('a: 1\nb: "x\n', 3, id="open quote"),
        pytest.param("a:\n\t- b\n", 2, id="tab as indentation"),
        pytest.param("a: 1\n  b: 2\n", 2, id="wrong indentation"),
        pytest.param("a: b: c\n", 1, id="two colons"),
        pytest.param("a: *nowhere\n", 1, id="alias without anchor"),
        pytest.param("a: 1\n---\nb: 2\n", 2, id="two documents"),
        pytest.param("a: 1\nb: !!python/object:os.system x\n", 2, id="Python object"),
        pytest.param("a: 1\nb: !vault x\n", 2, id="unknown tag"),
        pytest.param("? [a]\n: b\n", 1, id="list as key"),
    ],
)
def test_text_that_is_not_yaml_is_refused_at_its_line(text: str, line: int) -> None:
    (problem,) = refused(documents.parse, text, "e.yml")
    assert (problem.file, problem.line) == ("e.yml", line)
    assert problem.message.startswith("not valid YAML: ")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("a: 1\nb: 2026-02-30\n", id="a day that does not exist"),
        pytest.param("a: 1\nb: !!int x\n", id="text tagged as a number"),
        pytest.param("a: &x\n  - *x\n", id="a list that holds itself"),
        pytest.param("a: &x\n  b: *x\n", id="a mapping that holds itself"),
        pytest.param("[" * 2000 + "]" * 2000 + "\n", id="lists in lists without end"),
        pytest.param(
            "a0: &a0 [1]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)),
            id="aliases that grow tenfold eight times",
        ),
    ],
)
def test_yaml_that_cannot_become_data_is_refused(text: str) -> None:
    assert "not valid YAML" in messages(refused(documents.parse, text, "e.yml"))


@pytest.mark.parametrize("loader", [getattr(yaml, "CSafeLoader", yaml.SafeLoader), yaml.SafeLoader], ids=["libyaml", "pure Python"])
def test_control_characters_are_refused(loader: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "_Loader", loader)
    assert "not valid YAML" in messages(refused(documents.parse, 'a: "\0"\n', "e.yml"))


# --- keys that stand twice ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("a: 1\nb: 2\na: 3\n", Problem("e.yml", 3, "a", "written twice, first on line 1: keep one"), id="at the top"),
        pytest.param("a:\n  - b: 1\n    b: 1\n", Problem("e.yml", 3, "a[0].b", "written twice, first on line 2: keep one"), id="in a list"),
        pytest.param("a: {b: 1, b: 2}\n", Problem("e.yml", 1, "a.b", "written twice, first on line 1: keep one"), id="in a flow mapping"),
        pytest.param('a: 1\n"a": 2\n', Problem("e.yml", 2, "a", "written twice, first on line 1: keep one"), id="once in quotes"),
        pytest.param("1: a\n'1': b\n", Problem("e.yml", 2, "1", "written twice, first on line 1: keep one"), id="number and text"),
    ],
)
def test_a_key_that_stands_twice_is_refused(text: str, problem: Problem) -> None:
    assert refused(documents.parse, text, "e.yml") == (problem,)


def test_every_key_that_stands_twice_is_reported() -> None:
    assert [problem.line for problem in refused(documents.parse, "a: 1\na: 2\nb: {c: 1, c: 2}\na: 3\n", "e.yml")] == [2, 3, 4]


def test_equal_keys_of_different_mappings_are_no_duplicates() -> None:
    assert documents.parse("- {a: 1}\n- {a: 1}\n", "e.yml").data == [{"a": 1}, {"a": 1}]


def test_a_merged_mapping_may_be_overridden() -> None:
    assert documents.parse("x: &x {m: 1, n: 2}\ny:\n  <<: *x\n  m: 3\n", "e.yml").data["y"] == {"m": 3, "n": 2}


# --- schemas --------------------------------------------------------------------------------------------------------

SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name"],
    "properties": {
        "name": {"type": "string"},
        "namespace": {"type": "string"},
        "mode": {"enum": ["monitor", "enforce"]},
        "kind": {"const": "List"},
        "count": {"type": "integer", "minimum": 1, "maximum": 9},
        "ratio": {"type": "number", "exclusiveMinimum": 0},
        "share": {"type": ["string", "integer"], "pattern": "^[0-9]+%$", "description": "a share such as 25%"},
        "word": {"type": "string", "pattern": "^[a-z]+$", "minLength": 2, "maxLength": 4},
        "range": {"type": "string", "format": "cidr", "description": "an address range"},
        "flag": {"type": "boolean"},
        "items": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 2, "uniqueItems": True},
        "map": {"type": "object", "minProperties": 1, "maxProperties": 2},
        "nothing": {"type": "null"},
    },
}


@pytest.mark.parametrize(
    ("line", "path", "message"),
    [
        pytest.param(
            "nmae: x",
            "nmae",
            "unknown key; did you mean 'name'? allowed here: "
            "count, flag, items, kind, map, mode, name, namespace, nothing, range, ratio, share, word",
            id="unknown key that is nearly a known one",
        ),
        pytest.param(
            "zzzzzz: x",
            "zzzzzz",
            "unknown key; allowed here: count, flag, items, kind, map, mode, name, namespace, nothing, range, ratio, share, word",
            id="unknown key like no other",
        ),
        pytest.param("mode: monitr", "mode", 'is "monitr"; allowed: "monitor", "enforce"', id="enum"),
        pytest.param("kind: Pod", "kind", 'is "Pod"; allowed: "List"', id="const"),
        pytest.param("count: many", "count", 'is "many"; needed: a whole number', id="text for a whole number"),
        pytest.param("count: 1.5", "count", "is 1.5; needed: a whole number", id="fraction for a whole number"),
        pytest.param("count: true", "count", "is true; needed: a whole number", id="boolean for a whole number"),
        pytest.param("ratio: []", "ratio", "is []; needed: a number", id="list for a number"),
        pytest.param("namespace: 1.7", "namespace", "is 1.7; needed: text", id="number for text"),
        pytest.param("namespace: null", "namespace", "is null; needed: text", id="nothing for text"),
        pytest.param("flag: 1", "flag", "is 1; needed: true or false", id="number for a boolean"),
        pytest.param("items: a", "items", 'is "a"; needed: a list', id="text for a list"),
        pytest.param("map: [a]", "map", 'is ["a"]; needed: a mapping', id="list for a mapping"),
        pytest.param("nothing: 1", "nothing", "is 1; needed: nothing", id="something for nothing"),
        pytest.param("share: 1.5", "share", "is 1.5; needed: text or a whole number", id="one of two types"),
        pytest.param("share: half", "share", 'is "half"; needed: a share such as 25%', id="pattern with a description"),
        pytest.param("word: ABC", "word", 'is "ABC"; needed: pattern ^[a-z]+$', id="pattern without a description"),
        pytest.param("range: 10.0.0.0/99", "range", 'is "10.0.0.0/99"; needed: an address range', id="format"),
        pytest.param("range: ten", "range", 'is "ten"; needed: an address range', id="format, no address at all"),
        pytest.param("range: 10.0.0.1/8", "range", 'is "10.0.0.1/8"; needed: an address range', id="format, bits of a host"),
        pytest.param("count: 0", "count", "is 0; must be at least 1", id="minimum"),
        pytest.param("count: 10", "count", "is 10; must be at most 9", id="maximum"),
        pytest.param("ratio: 0", "ratio", "is 0; must be more than 0", id="exclusive minimum"),
        pytest.param("word: a", "word", 'is "a"; needs at least 2 characters', id="too short"),
        pytest.param("word: abcde", "word", 'is "abcde"; may have at most 4 characters', id="too long"),
        pytest.param("items: []", "items", "is []; needs at least 1 entries", id="too few entries"),
        pytest.param("items: [a, b, c]", "items", 'is ["a", "b", "c"]; may have at most 2 entries', id="too many entries"),
        pytest.param("items: [a, a]", "items", 'is ["a", "a"]; no entry may stand twice', id="an entry twice"),
        pytest.param("items: [a, 1]", "items[1]", "is 1; needed: text", id="inside a list"),
        pytest.param("map: {}", "map", "is {}; needs at least 1 keys", id="too few keys"),
        pytest.param("map: {a: 1, b: 2, c: 3}", "map", 'is {"a": 1, "b": 2, "c": 3}; may have at most 2 keys', id="too many keys"),
    ],
)
def test_what_breaks_a_schema_is_named_with_line_path_value_and_what_is_allowed(line: str, path: str, message: str) -> None:
    document = documents.parse(f"name: x\n\n{line}\n", "e.yml")
    assert documents.validate(document, SCHEMA) == [Problem("e.yml", 3, path, message)]


def test_a_key_that_yaml_takes_for_a_boolean_is_named_as_it_was_written() -> None:
    (problem,) = documents.validate(documents.parse("name: x\n\non: 1\n", "e.yml"), SCHEMA)
    assert (problem.line, problem.path) == (3, "on")


@pytest.mark.parametrize("value", ["10.0.0.0/8", "192.0.2.7", '"2001:db8::/32"', '"::1"'])
def test_addresses_and_ranges_of_both_families_are_accepted(value: str) -> None:
    assert documents.validate(documents.parse(f"name: x\nrange: {value}\n", "e.yml"), SCHEMA) == []


def test_a_missing_key_is_named_at_its_mapping() -> None:
    document = documents.parse("mode: enforce\n", "e.yml")
    assert documents.validate(document, SCHEMA) == [Problem("e.yml", 1, "", "key 'name' is missing")]


def test_a_whole_document_of_the_wrong_type_is_named() -> None:
    assert documents.validate(documents.parse("- a\n", "e.yml"), SCHEMA) == [Problem("e.yml", 1, "", 'is ["a"]; needed: a mapping')]


def test_all_problems_come_in_the_order_of_the_document() -> None:
    document = documents.parse("word: A\nname: x\ncount: 0\nmode: off\n", "e.yml")
    assert [problem.line for problem in documents.validate(document, SCHEMA)] == [1, 1, 3, 4]


def test_a_part_of_a_document_is_validated_with_its_whole_path() -> None:
    document = documents.parse("list:\n  - values:\n      name: 1\n", "e.yml")
    assert documents.validate(document, SCHEMA, ("list", 0, "values")) == [Problem("e.yml", 3, "list[0].values.name", "is 1; needed: text")]


def test_a_sound_document_has_no_problems() -> None:
    assert documents.validate(documents.parse("name: x\nmode: enforce\nitems: [a]\n", "e.yml"), SCHEMA) == []


@pytest.mark.parametrize(
    ("value", "shown"),
    [("a", '"a"'), (1.7, "1.7"), (None, "null"), (True, "true"), ({"ü": [1]}, '{"ü": [1]}'), ("x" * 78, f'"{"x" * 78}"')],
    ids=lambda value: repr(value)[:20],
)
def test_values_are_shown_as_a_person_would_type_them(value: object, shown: str) -> None:
    assert documents.show_value(value) == shown


def test_a_long_value_is_cut() -> None:
    assert documents.show_value("x" * 79) == '"' + "x" * 76 + "..."
