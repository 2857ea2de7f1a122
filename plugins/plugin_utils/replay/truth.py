# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Three-valued logic: true, false, or undecidable with the reasons why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Truth:
    """``value`` is None when the recording cannot tell; ``reasons`` then say what it lacks."""

    value: bool | None
    reasons: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        raise TypeError("a Truth has three values: compare .value")

    def negated(self) -> Truth:
        return self if self.value is None else FALSE if self.value else TRUE


TRUE = Truth(True)
FALSE = Truth(False)


def unknown(*reasons: str) -> Truth:
    return Truth(None, frozenset(reasons))


def truth(value: bool) -> Truth:
    return TRUE if value else FALSE


def all_of(terms: Iterable[Truth]) -> Truth:
    """Conjunction: one false decides, whatever is unknown beside it."""
    reasons: set[str] = set()
    for term in terms:
        if term.value is False:
            return FALSE
        if term.value is None:
            reasons |= term.reasons
    return Truth(None, frozenset(reasons)) if reasons else TRUE
