# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Recordings on disk: JSON lines as the agent exports them, plain, gzip or zstd.

A directory holds files of events, the policies that recorded them (``*.yaml`` in it or in its ``policies/``), and may say
more of itself in ``recording.yml``: ``agent_version``, ``executables`` and ``at_hook`` (see ``events.Context``).
"""

from __future__ import annotations

import codecs
import contextlib
import functools
import gzip
import io
import itertools
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, cast

import msgspec

from ansible_collections.apiary.tetragon.plugins.plugin_utils import documents
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Problem, Refused, refuse
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay import events
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.compile import granted, recorder
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.events import Context, Declarations
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.history import History
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.records import Hook, Invocation

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

SUFFIXES = (".jsonl", ".ndjson", ".json", ".log")
COMPRESSED = ("", ".gz", ".zst")
DESCRIPTION = "recording.yml"
MAX_LINE = 16 << 20
MAX_SURVEYED = 256 << 20
_BUFFER = 1 << 18
_BEGINS = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd", "": b"{"}
_MAGIC = max(map(len, _BEGINS.values()))
READ_ERRORS = (OSError, EOFError, zlib.error, zstd.ZstdError)

_ODD = (ValueError, TypeError, AttributeError, KeyError)  # what a history makes of an event of another shape
_parsed = msgspec.json.Decoder(dict[str, Any]).decode


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
    policies: list[Mapping[str, Any]] = field(default_factory=list)

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
                    document = documents.load(file)
                    found = recorders_of([document])
                    self.recorders.update(found)
                    self.policies += [document.data] if found else []


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
                    known,
                    said.get("executables") if executables is None else executables,
                    at_hook or said.get("at_hook", False),
                    tuple(home.policies),
                )
                contexts[file.parent] = context, said.get("agent_version", "")
            found.setdefault(file, Recording(file, *contexts[file.parent]))
    if problems:
        raise Refused(problems)
    return list(found.values())


def hooks(recordings: Iterable[Recording]) -> frozenset[Hook]:
    """The hooks that these recordings hold events of; of those that nobody has looked through, what their recorders declare."""
    return frozenset(hook for one in recordings for hook in (_declared(one.context) if one.context.seen is None else one.context.seen))


def _declared(context: Context) -> frozenset[Hook]:
    return frozenset(hook for declared in context.recorders.values() for hook in declared)


def surveyed(recordings: Sequence[Recording]) -> list[Recording]:
    """The same recordings, with the hooks that they hold, and what the files of each directory together say of processes.

    Nothing is known of the processes of a directory of more than MAX_SURVEYED bytes, unpacked (see ``history``): that takes
    memory. Of its hooks those count that its recorders declare.
    """
    by_context: dict[Context, list[Recording]] = {}
    for one in recordings:
        by_context.setdefault(one.context, []).append(one)
    completed = {context: context if context.seen is not None else _survey(context, found) for context, found in by_context.items()}
    return [replace(one, context=completed[one.context]) for one in recordings]


def _survey(context: Context, recordings: Sequence[Recording]) -> Context:
    seen: set[Hook] = set()
    context = replace(context, granted={one["metadata"]["name"]: granted(one) for one in context.policies})
    too_large = replace(context, seen=_declared(context))
    left = MAX_SURVEYED - sum(one.path.stat().st_size for one in recordings)
    history = History(context.policies, context.executables)
    for one in recordings if left >= 0 else ():
        try:
            with Lines(one.path) as lines:
                left += one.path.stat().st_size
                for line in lines:
                    left -= len(line)
                    if left < 0:
                        return too_large
                    with contextlib.suppress(*events.DECODE_ERRORS, *_ODD):
                        found = events.body_of(events.decode_line(line))
                        seen |= {events.event_hook(*found)} if found is not None else set()
                        history.add(_parsed(line))
        except READ_ERRORS:
            continue  # the replay tells
    return replace(context, complete=history.complete, seen=frozenset(seen)) if left >= 0 else too_large


def is_recording(file: Path) -> bool:
    """Whether a file's name says that it holds events."""
    return any(file.name.endswith(suffix + packed) for suffix in SUFFIXES for packed in COMPRESSED)


class _Unpacked(io.RawIOBase):
    """What a packed file holds, piece by piece: all that can be unpacked comes before an error."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._stream.read1(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)


class Lines:
    """The lines of one file of events, unpacked, with their ends. Whatever can go wrong is in READ_ERRORS.

    How a file is packed its first bytes say; where they say nothing, its name does. A line that is longer than MAX_LINE
    comes in pieces of one byte more.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        start = self._file.read(_MAGIC)
        self._file.seek(0)
        packed = next((suffix for suffix, begins in _BEGINS.items() if start.startswith(begins)), path.suffix)
        raw: io.RawIOBase = self._file
        if packed == ".gz":
            raw = _Unpacked(gzip.GzipFile(fileobj=self._file))
        elif packed == ".zst":
            raw = _Unpacked(zstd.ZstdFile(cast(IO[bytes], self._file)))
        self._stream = io.BufferedReader(raw, _BUFFER)

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[bytes]:
        if self._stream.peek(len(codecs.BOM_UTF8)).startswith(codecs.BOM_UTF8):
            self._stream.read(len(codecs.BOM_UTF8))
        return iter(functools.partial(self._stream.readline, MAX_LINE + 1), b"")

    def batches(self, count: int) -> Iterator[list[bytes]]:
        """Up to ``count`` lines at a time. All that can be read comes before an error; of a line that is too long, its start."""
        lines, cut, error = iter(self), False, None
        while error is None:
            pieces: list[bytes] = []
            try:
                pieces.extend(itertools.islice(lines, count))  # keeps what it got when it fails
            except READ_ERRORS as caught:
                error = caught
            else:
                if not pieces:
                    return
            if cut or max(map(len, pieces), default=0) > MAX_LINE:
                starts = [cut, *(not piece.endswith(b"\n") for piece in pieces)]
                cut = starts.pop()
                pieces = [piece for piece, inside in zip(pieces, starts, strict=True) if not inside]
            if pieces:
                yield pieces
        raise error

    def position(self) -> int:
        """How many bytes of the file are read, packed as they are."""
        return self._file.tell()


def read(
    path: Path, recorded_under: Mapping[str, Any], executables: Mapping[str, str] | None, at_hook: bool = False
) -> Iterator[Invocation]:
    """Every hook invocation in one file of cases, in file order.

    Raises Refused for a file that cannot be read and at the first line that is no event of the agent.
    """
    context = Context({"": recorder(recorded_under)}, executables, at_hook)
    try:
        with Lines(path) as lines:
            for number, line in enumerate(lines, 1):
                if len(line) > MAX_LINE:
                    raise refuse(f"is longer than {MAX_LINE} bytes", file=str(path), line=number)
                if not line.strip():
                    continue
                try:
                    found = events.decode(line, context, (str(path), number))
                except events.DECODE_ERRORS as error:
                    hint = spread(line) if number == 1 else ""
                    raise refuse(why_not(error) + hint, file=str(path), line=number) from None
                if found is not None:
                    yield found
    except READ_ERRORS as error:
        raise refuse(f"cannot be read: {error}", file=str(path)) from None


def spread(line: bytes) -> str:
    """What to do about a file whose first line is this, when that is no event: "" unless it is JSON of another form."""
    start = line.strip()
    if start.startswith(b"["):
        return "; a JSON array: events stand one per line, as 'jq -c .[]' writes them"
    return "; JSON over several lines: events stand one per line, as 'jq -c .' writes them" if start == b"{" else ""


def why_not(error: Exception) -> str:
    """What is wrong with a line that raised one of ``events.DECODE_ERRORS``."""
    if isinstance(error, msgspec.ValidationError):
        return f"is no event of the agent: {error}" if "$" in str(error) else "is not a JSON object"
    return f"is not JSON: {error}"
