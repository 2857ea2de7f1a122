# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Equal data has one spelling and one digest, and YAML that every reader understands alike."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import yaml

from ansible_collections.apiary.tetragon.plugins.plugin_utils import canonical


def test_encoding_sorts_keys_and_leaves_no_white_space() -> None:
    assert canonical.encode({"b": [1, True, None], "a": {"d": 1.5, "c": "x y"}}) == b'{"a":{"c":"x y","d":1.5},"b":[1,true,null]}'


def test_encoding_keeps_text_as_utf8() -> None:
    assert canonical.encode("Grüße") == '"Grüße"'.encode()


def test_the_digest_of_bytes_is_their_sha256() -> None:
    assert canonical.digest(b"abc") == hashlib.sha256(b"abc").hexdigest()


def test_the_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert canonical.digest({"a": 1, "b": 2}) == canonical.digest({"b": 2, "a": 1})


@pytest.mark.parametrize("other", [{"a": 2}, {"a": "1"}, {"b": 1}, {"a": [1]}, {"a": None}], ids=str)
def test_the_digest_differs_for_different_data(other: dict[str, Any]) -> None:
    assert canonical.digest(other) != canonical.digest({"a": 1})


ODD_TEXTS = [
    "", " ", "a ", " a", "a: b", "- a", "# a", "a # b", "{a}", "[a]", "*a", "&a", "!a", "%a", "@a", "`a", "'a'", '"a"', "it's",
    "a\\b", "a\nb", "word\n", "\n", "a\tb", "a\rb", "\0", "\x1b", "ü", "a\ufeffb", "😀", "~", "null", "true", "no",
    "y", "=", "<<", "1", "012", "0x1f", "0o17", "1e3", ".5", "1_000", "1:30", "2026-01-01", "-", "/", "?", "|", ">", "---", "...",
    "trailing\\", '\\"', "{{ x }}",
]  # fmt: skip
VALUES_ONLY = ["a\u2028b", "x" * 5000, "word " * 400]  # PyYAML reads no key that is long or has a separator of lines
NOT_PRINTED = ["a\x7fb", "a\x80b", "a\x85b", "a\x9fb"]


@pytest.mark.parametrize("text", ODD_TEXTS + VALUES_ONLY, ids=lambda text: ascii(text[:20]))
def test_any_text_survives_yaml(text: str) -> None:
    assert yaml.safe_load(canonical.to_yaml({"value": text, "list": [text]})) == {"value": text, "list": [text]}


@pytest.mark.parametrize("text", ODD_TEXTS, ids=ascii)
def test_any_text_survives_yaml_as_a_key(text: str) -> None:
    assert yaml.safe_load(canonical.to_yaml({text: 1})) == {text: 1}


@pytest.mark.parametrize("text", NOT_PRINTED, ids=ascii)
def test_characters_that_yaml_cannot_hold_are_escaped(text: str) -> None:
    assert yaml.safe_load(canonical.to_yaml({"value": text})) == {"value": text}


@pytest.mark.parametrize("text", ODD_TEXTS + VALUES_ONLY, ids=lambda text: ascii(text[:20]))
def test_any_text_takes_a_single_line(text: str) -> None:
    assert canonical.to_yaml({"value": text}).count("\n") == 1


@pytest.mark.parametrize(
    "value",
    [{}, [], {"a": {}, "b": []}, [[1, [2]], []], [{"a": [{"b": 1, "c": None}]}, {"d": 1.5}], {"a": [[{"b": True}], -1]}, 7, None, "text"],
    ids=str,
)
def test_any_nesting_survives_yaml(value: object) -> None:
    assert yaml.safe_load(canonical.to_yaml(value)) == value


@pytest.mark.parametrize("text", ["null", "true", "no", "on", "~", "y", "1", "012", "1e3", "0o17", "1:30", "2026-01-01", ".5", "=", ""])
def test_text_that_some_reader_takes_for_something_else_is_quoted(text: str) -> None:
    assert canonical.to_yaml({"key": text}) in (f'key: "{text}"\n', f"key: '{text}'\n")


@pytest.mark.parametrize("text", ["security_file_open", "/usr/bin/cat", "cilium.io/v1alpha1", "Post", "a-b.c"])
def test_text_that_is_plainly_text_stands_without_quotes(text: str) -> None:
    assert canonical.to_yaml({"key": text}) == f"key: {text}\n"


def test_yaml_keeps_the_order_of_keys() -> None:
    assert list(yaml.safe_load(canonical.to_yaml({"zz": 1, "aa": 2, "mm": 3}))) == ["zz", "aa", "mm"]


def test_yaml_writes_a_repeated_value_again_instead_of_an_anchor() -> None:
    shared = {"inner": ["one"]}
    text = canonical.to_yaml({"first": shared, "second": shared})
    assert "&" not in text
    assert text.count("inner:") == 2


def test_yaml_indents_lists_below_their_key() -> None:
    assert canonical.to_yaml({"list": ["one", {"kk": "two"}]}) == "list:\n  - one\n  - kk: two\n"
