# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The cache gives back what was computed for the very same parts, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.cache import Cache

RESULT: dict[str, Any] = {"text": "ü", "list": [1, 2.5, None, True], "nested": {"a": {}}}


class Counter:
    """Computes a result and counts how often."""

    def __init__(self, result: object = RESULT) -> None:
        self.result = result
        self.calls = 0

    def __call__(self) -> object:
        self.calls += 1
        return self.result


@pytest.mark.parametrize("on_disk", [False, True], ids=["in memory", "on disk"])
def test_a_result_is_computed_once(on_disk: bool, tmp_path: Path) -> None:
    cache, compute = Cache(tmp_path if on_disk else None), Counter()
    assert [cache.get(["a", 1], compute) for _unused in range(3)] == [RESULT] * 3
    assert compute.calls == 1


def test_another_cache_takes_the_result_from_disk(tmp_path: Path) -> None:
    Cache(tmp_path).get(["a", 1], Counter())
    compute = Counter()
    assert Cache(tmp_path).get(["a", 1], compute) == RESULT
    assert compute.calls == 0


def test_another_cache_without_a_directory_knows_nothing() -> None:
    Cache().get(["a", 1], Counter())
    compute = Counter()
    Cache().get(["a", 1], compute)
    assert compute.calls == 1


@pytest.mark.parametrize("parts", [["a", 2], ["a", "1"], ["a"], ["a", 1, None], {"a": 1}, [["a", 1]]], ids=str)
def test_other_parts_have_another_result(parts: object, tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.get(["a", 1], Counter("first"))
    assert cache.get(parts, Counter("second")) == "second"


def test_the_order_of_keys_in_the_parts_does_not_matter() -> None:
    cache, compute = Cache(), Counter()
    cache.get({"a": 1, "b": 2}, compute)
    cache.get({"b": 2, "a": 1}, compute)
    assert compute.calls == 1


@pytest.mark.parametrize("damage", [b"", b"{", b'{"text": "\xff"}', b"\0" * 64, b"null", RESULT["text"].encode()], ids=ascii)
def test_a_damaged_entry_counts_as_none(damage: bytes, tmp_path: Path) -> None:
    Cache(tmp_path).get(["a"], Counter())
    (entry,) = (path for path in tmp_path.rglob("*") if path.is_file())
    entry.write_bytes(damage)
    compute = Counter()
    assert Cache(tmp_path).get(["a"], compute) == RESULT
    assert compute.calls == 1
    assert Cache(tmp_path).get(["a"], Counter("not asked for")) == RESULT


def test_an_entry_that_is_a_directory_counts_as_none(tmp_path: Path) -> None:
    Cache(tmp_path).get(["a"], Counter())
    (entry,) = (path for path in tmp_path.rglob("*") if path.is_file())
    entry.unlink()
    entry.mkdir()
    assert Cache(tmp_path).get(["a"], Counter()) == RESULT


def test_a_directory_that_cannot_be_written_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    assert Cache(tmp_path / "file").get(["a"], Counter()) == RESULT


def test_a_full_disk_does_no_harm_and_is_not_littered(full_disk: Path) -> None:
    assert Cache(full_disk).get(["a"], Counter()) == RESULT
    assert [path.name for path in full_disk.rglob("*") if path.is_file()] == ["filler"]


def test_nothing_but_whole_entries_is_left_on_disk(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for number in range(5):
        cache.get([number], Counter())
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json"}


def test_nothing_is_left_behind_when_an_entry_cannot_be_stored(tmp_path: Path) -> None:
    Cache(tmp_path).get(["a"], Counter())
    (entry,) = (path for path in tmp_path.rglob("*") if path.is_file())
    entry.unlink()
    (entry / "inside").mkdir(parents=True)
    Cache(tmp_path).get(["a"], Counter())
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
