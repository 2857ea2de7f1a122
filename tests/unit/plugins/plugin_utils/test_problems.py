# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Problems say where and what; a refusal carries all of them."""

from __future__ import annotations

import pytest

from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Problem, Refused, refuse, required


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        pytest.param(Problem("a.yml", 3, "rings[0].name", "is 1"), "a.yml:3: rings[0].name: is 1", id="everything"),
        pytest.param(Problem("a.yml", 0, "name", "is 1"), "a.yml: name: is 1", id="no line"),
        pytest.param(Problem("a.yml", 3, "", "is 1"), "a.yml:3: is 1", id="no path"),
        pytest.param(Problem("", 0, "", "is 1"), "is 1", id="message alone"),
    ],
)
def test_a_problem_is_one_line_of_place_path_and_message(problem: Problem, text: str) -> None:
    assert str(problem) == text


def test_problems_sort_by_file_then_line() -> None:
    late, early, other = Problem("a", 10, "", "x"), Problem("a", 9, "", "y"), Problem("b", 1, "", "z")
    assert sorted([other, late, early]) == [early, late, other]


def test_a_refusal_carries_every_problem_and_shows_one_a_line() -> None:
    problems = [Problem("a", 1, "", "one"), Problem("a", 2, "", "two")]
    error = Refused(iter(problems))
    assert error.problems == tuple(problems)
    assert str(error) == "a:1: one\na:2: two"


def test_refuse_makes_a_refusal_with_a_single_problem() -> None:
    assert refuse("is gone", file="x.yml", line=4, path="a.b").problems == (Problem("x.yml", 4, "a.b", "is gone"),)


def test_a_package_that_is_missing_is_named() -> None:
    with pytest.raises(Refused, match=r"package no_such_package_here is missing on the controller"), required():
        import no_such_package_here  # noqa: F401
