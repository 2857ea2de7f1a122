# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""What is wrong with an input, said so that a person can mend it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong: where it stands, what was seen, what is needed."""

    file: str
    line: int
    path: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return ": ".join(part for part in (place, self.path, self.message) if part)


class Refused(Exception):
    """Input that cannot be used. Carries every problem found, not only the first."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def refuse(message: str, *, file: str = "", line: int = 0, path: str = "") -> Refused:
    """A refusal with a single problem."""
    return Refused([Problem(file, line, path, message)])


def few(words: Sequence[str], most: int = 5, separator: str = ", ") -> str:
    """The first of many words, and how many more there are."""
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return separator.join(words[:most]) + more


@contextlib.contextmanager
def required() -> Iterator[None]:
    """Around imports that need a package of ``requirements.txt``: a missing one is named. Raises Refused."""
    try:
        yield
    except ImportError as error:
        raise refuse(
            f"the Python package {error.name} is missing on the controller: pip install what the collection's requirements.txt lists"
        ) from None
