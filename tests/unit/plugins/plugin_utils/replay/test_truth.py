# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Three-valued logic."""

from __future__ import annotations

import pytest

from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.truth import FALSE, TRUE, Truth, all_of, truth, unknown

A, B = unknown("a"), unknown("b", "c")


@pytest.mark.parametrize(
    ("terms", "result"),
    [
        pytest.param([], TRUE, id="nothing"),
        pytest.param([TRUE, TRUE], TRUE, id="all true"),
        pytest.param([TRUE, FALSE], FALSE, id="one false"),
        pytest.param([A, FALSE], FALSE, id="false after unknown"),
        pytest.param([FALSE, A], FALSE, id="false before unknown"),
        pytest.param([TRUE, A], A, id="one unknown"),
        pytest.param([A, TRUE, B], unknown("a", "b", "c"), id="two unknown, with all their reasons"),
    ],
)
def test_a_conjunction(terms: list[Truth], result: Truth) -> None:
    assert all_of(terms) == result


def test_a_conjunction_looks_no_further_than_the_first_false() -> None:
    terms = iter([FALSE, TRUE])
    all_of(terms)
    assert list(terms) == [TRUE]


@pytest.mark.parametrize(("one", "other"), [(TRUE, FALSE), (FALSE, TRUE), (B, B)], ids=["true", "false", "unknown"])
def test_a_negation(one: Truth, other: Truth) -> None:
    assert one.negated() == other


@pytest.mark.parametrize(("value", "result"), [(True, TRUE), (False, FALSE)], ids=["true", "false"])
def test_a_boolean_is_one_of_two(value: bool, result: Truth) -> None:
    assert truth(value) is result


@pytest.mark.parametrize("one", [TRUE, FALSE, A], ids=["true", "false", "unknown"])
def test_a_truth_cannot_be_taken_for_a_boolean(one: Truth) -> None:
    with pytest.raises(TypeError, match="three values"):
        bool(one)
