# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Recordings on disk: JSON lines as the agent exports them, plain, gzip or zstd.

A directory holds files of events, the policies that recorded them (``*.yaml`` in it or in its ``policies/``), and may say
more of itself in ``recording.yml``: ``agent_version``, ``executables`` and ``at_hook`` (see ``events.Context``).
"""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from ansible_collections.apiary.tetragon.plugins.plugin_utils import documents
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Problem, Refused, refuse
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay import events
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.compile import recorder
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.events import Context, Declarations
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.records import Invocation

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

SUFFIXES = (".jsonl", ".ndjson", ".json", ".log")
COMPRESSED = ("", ".gz", ".zst")
DESCRIPTION = "recording.yml"
MAX_LINE = 16 << 20
_CHUNK = 1 << 18
READ_ERRORS = (OSError, EOFError, zlib.error, zstd.ZstdError)


@dataclass(frozen=True)
class Recording:
    """One file of events, with what is known about it. ``agent_version`` is empty when nobody states it."""

    path: Path
    context: Context
    agent_version: str = ""


_STATES: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "agent_version": {"type": "string", "pattern": r"^v?\d+\.\d+(\.\d+)?", "description": "a version of the agent, such as 1.7.0"},
        "executables": {"type": "object", "additionalProperties": {"type": "string"}},
        "at_hook": {"type": "boolean"},
    },
}


@dataclass
class _Directory:
    """What the files of one directory have in common."""

    path: Path
    stated: Mapping[str, Any] = field(default_factory=dict)
    recorders: dict[str, Declarations] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.path / DESCRIPTION).is_file():
            document = documents.load(self.path / DESCRIPTION)
            problems = documents.validate(document, _STATES)
            if problems:
                raise Refused(problems)
            self.stated = document.data
        for place in (self.path, self.path / "policies"):
            for file in sorted((*place.glob("*.yaml"), *place.glob("*.yml"))):
                if file.name != DESCRIPTION:
                    self.recorders.update(recorders_of([documents.load(file)]))


def recorders_of(policies: Iterable[documents.Document]) -> dict[str, Declarations]:
    """What these policies declare, by their names. Documents that are no tracing policies declare nothing."""
    found: dict[str, Declarations] = {}
    for policy in policies:
        if isinstance(policy.data, dict) and str(policy.data.get("kind", "")).startswith("TracingPolicy"):
            try:
                found[policy.data["metadata"]["name"]] = recorder(policy.data)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise refuse(f"is no tracing policy that an agent could have recorded under: {error!r}", file=policy.file) from None
    return found


def find(
    paths: Sequence[Path],
    recorders: Mapping[str, Declarations] | None = None,
    executables: Mapping[str, str] | None = None,
    at_hook: bool = False,
) -> list[Recording]:
    """The recordings at these files and directories, in the order of the paths, a directory's by name.

    ``recorders`` (see ``recorders_of``), ``executables`` and ``at_hook`` go before what the directories say of themselves.
    Raises Refused for a path that does not exist, a directory without files of events, and a description that is not sound.
    """
    found: dict[Path, Recording] = {}
    contexts: dict[Path, tuple[Context, str]] = {}
    problems: list[Problem] = []
    for path in paths:
        files = sorted(file for file in path.rglob("*") if file.is_file() and is_recording(file)) if path.is_dir() else [path]
        if not files:
            endings = ", ".join(SUFFIXES)
            problems.append(Problem(str(path), 0, "", f"holds no recording: needed is a file that ends in {endings}, plain, .gz or .zst"))
        elif not path.exists():
            problems.append(Problem(str(path), 0, "", "no such file or directory"))
            continue
        for file in files:
            if file.parent not in contexts:
                home = _Directory(file.parent)
                said = home.stated
                known = {**home.recorders, **(recorders or {})}
                context = Context(
                    known, said.get("executables") if executables is None else executables, at_hook or said.get("at_hook", False)
                )
                contexts[file.parent] = context, said.get("agent_version", "")
            found.setdefault(file, Recording(file, *contexts[file.parent]))
    if problems:
        raise Refused(problems)
    return list(found.values())


def is_recording(file: Path) -> bool:
    """Whether a file's name says that it holds events."""
    return any(file.name.endswith(suffix + packed) for suffix in SUFFIXES for packed in COMPRESSED)


class Lines:
    """The lines of one file of events, unpacked after its name. Use as a context manager; it may raise any of READ_ERRORS."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._stream: Any = self._file
        if path.suffix == ".gz":
            self._stream = gzip.GzipFile(fileobj=self._file)
        elif path.suffix == ".zst":
            self._stream = zstd.ZstdFile(self._file)

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def position(self) -> int:
        """How many bytes of the file are read, packed as they are."""
        return self._file.tell()

    def chunks(self) -> Iterator[list[bytes | None]]:
        """Many lines at a time, without their ends; None stands for a line of more than MAX_LINE bytes.

        Holds one chunk and one line at most, whatever the file holds. All that can be unpacked comes before an error.
        """
        rest: list[bytes] = []
        held, lost = 0, False
        while piece := self._stream.read1(_CHUNK):
            first, *lines = piece.split(b"\n")
            lost = lost or held + len(first) > MAX_LINE
            rest.append(b"" if lost else first)
            held += len(first)
            if lines:
                yield [None if lost else b"".join(rest), *lines[:-1]]
                rest, held, lost = [lines[-1]], len(lines[-1]), False
            elif lost:
                rest = []
        if held:
            yield [None if lost else b"".join(rest)]


def read(
    path: Path, recorded_under: Mapping[str, Any], executables: Mapping[str, str] | None, at_hook: bool = False
) -> Iterator[Invocation]:
    """Every hook invocation in one file of cases, in file order.

    Raises Refused for a file that cannot be read and at the first line that is no event of the agent.
    """
    context = Context({"": recorder(recorded_under)}, executables, at_hook)
    number = 0
    try:
        with Lines(path) as file:
            for lines in file.chunks():
                for line in lines:
                    number += 1
                    if line is None:
                        raise refuse(f"is longer than {MAX_LINE} bytes", file=str(path), line=number)
                    if not line.strip():
                        continue
                    try:
                        found = events.decode(line, context, (str(path), number))
                    except events.DECODE_ERRORS as error:
                        raise refuse(why_not(error), file=str(path), line=number) from None
                    if found is not None:
                        yield found
    except READ_ERRORS as error:
        raise refuse(f"cannot be read: {error}", file=str(path)) from None


def why_not(error: Exception) -> str:
    """What is wrong with a line that raised one of ``events.DECODE_ERRORS``."""
    if isinstance(error, msgspec.ValidationError):
        return f"is no event of the agent: {error}" if "$" in str(error) else "is not a JSON object"
    return f"is not JSON: {error}"
