# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The ledger: what ran where since when, as JSON lines, each chained to the one before by its SHA-256.

``ledger.jsonl`` only grows, and fits into git. ``ledger.head`` names the last line, so that lines missing at the end
show too. A line torn by a crash is taken off when the ledger is opened for writing.
"""

from __future__ import annotations

import datetime
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils import files
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import refuse

_START = "0" * 64
Entry = dict[str, Any]


def now() -> str:
    """This moment in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


class Ledger:
    """One ledger directory."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.path = self.directory / "ledger.jsonl"
        self._head = self.directory / "ledger.head"

    def read(self) -> list[Entry]:
        """All entries, verified. Raises Refused when a line was altered or removed; a torn last line is passed over."""
        return [json.loads(line) for line in self._verified()]

    def append(self, kind: str, **fields: Any) -> Entry:
        """Write one entry, on disk before this returns."""
        try:
            with _guarded(self.directory):
                lines = self._verified()
                self._cut_torn_line(lines)
                chain = _digest(lines[-1]) if lines else _START
                if not lines:
                    files.write(self._head, f"0 {_START}\n")
                entry = {**fields, "sequence": len(lines) + 1, "time": now(), "chain": chain, "kind": kind}
                line = json.dumps(entry, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")
                with self.path.open("ab") as file:
                    file.write(line + b"\n")
                    file.flush()
                    os.fsync(file.fileno())
                files.write(self._head, f"{entry['sequence']} {_digest(line)}\n")
                return entry
        except OSError as error:
            raise refuse(
                f"the ledger cannot be written: {error.strerror}; free some space or set apiary_ledger_dir", file=str(self.path)
            ) from None

    def _lines(self) -> list[bytes]:
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise refuse(f"the ledger cannot be read: {error.strerror}", file=str(self.path)) from None
        return content.split(b"\n")[:-1]

    def _cut_torn_line(self, lines: Sequence[bytes]) -> None:
        whole = sum(len(line) + 1 for line in lines)
        if self.path.exists() and self.path.stat().st_size > whole:
            os.truncate(self.path, whole)

    def _verified(self) -> list[bytes]:
        head = self._read_head()  # before the lines: a writer at work then only adds to what it names
        lines = self._lines()
        previous = _START
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
                sound = entry["chain"] == previous and entry["sequence"] == number
            except (ValueError, KeyError, TypeError):
                sound = False
            if not sound:
                raise refuse(
                    "does not follow from the line before it: the ledger was altered; restore it from its history",
                    file=str(self.path),
                    line=number,
                )
            previous = _digest(line)
        if lines and not self._head.exists():
            raise refuse("is missing: restore it with the ledger from its history", file=str(self._head))
        number, digest = head
        if number > len(lines) or (_digest(lines[number - 1]) if number else _START) != digest:
            raise refuse(
                f"ends before line {number}, which was written: lines are missing; restore it from its history", file=str(self.path)
            )
        return lines

    def _read_head(self) -> tuple[int, str]:
        try:
            number, digest = self._head.read_text(encoding="utf-8").split()
            return int(number), digest
        except FileNotFoundError:
            return 0, _START
        except (ValueError, OSError):
            raise refuse("is damaged: restore it with the ledger from its history", file=str(self._head)) from None


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


@contextmanager
def _guarded(directory: Path) -> Iterator[None]:
    """Change a ledger directory alone."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        guard = (directory / ".guard").open("a")
    except OSError as error:
        raise refuse(f"cannot be written: {error.strerror}; set apiary_ledger_dir to a directory that can", file=str(directory)) from None
    with guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        yield


_HOLDER = ("run", "host", "pid", "pid_start", "user", "since")


class Lock:
    """One rollout at a time per environment: a file that names who holds it.

    A holder that no longer runs on this machine has lost the lock. One on another machine keeps it until it is broken.
    """

    def __init__(self, directory: str | Path, environment: str) -> None:
        self.path = Path(directory) / f"{environment}.lock"

    def take(self, holder: Entry, break_run: str = "") -> None:
        """Take the lock for ``holder`` (``run``, ``host``, ``pid``, ``pid_start``, ``user``, ``since``).

        ``break_run`` names a run whose lock may be taken over. Raises Refused naming the present holder.
        """
        with _guarded(self.path.parent):
            present = self.holder()
            mine = present is not None and (present["host"], present["pid"], present["pid_start"]) == (
                holder["host"],
                holder["pid"],
                holder["pid_start"],
            )
            if present is not None and not mine and present["run"] != break_run and not _is_gone(present, holder["host"]):
                raise refuse(
                    f"rollout {present['run']} is under way: started {present['since']} by {present['user']} on {present['host']} "
                    f"(process {present['pid']}); wait for it, or if it is dead, run again with -e apiary_break_lock={present['run']}",
                    file=str(self.path),
                )
            files.write(self.path, json.dumps(holder, sort_keys=True) + "\n")

    def release(self, run: str) -> None:
        """Give the lock back if this run holds it."""
        with _guarded(self.path.parent):
            present = self.holder()
            if present is not None and present["run"] == run:
                self.path.unlink()

    def holder(self) -> Entry | None:
        """Who holds the lock; None when nobody does."""
        try:
            holder: Entry = json.loads(self.path.read_text(encoding="utf-8"))
            return {name: holder[name] for name in _HOLDER}
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            raise refuse("is damaged: remove it if no rollout is under way", file=str(self.path)) from None


def _is_gone(holder: Entry, host: str) -> bool:
    return bool(holder["host"] == host and process_start(holder["pid"]) != holder["pid_start"])


def process_start(pid: int) -> str:
    """When a process of this machine started (ticks after boot), so that a reused pid is not taken for it; empty if none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except OSError:
        return ""


@dataclass(frozen=True)
class Progress:
    """Where an environment stands, from its ledger.

    ``current`` is the bundle of the last rollout that finished, ``former`` the one before it (empty: none). ``run`` and
    the rest describe the last rollout when it did not finish: ``passed`` rings, the ring that is ``failing`` (its gate
    failed and it is not rolled back yet), and ``halted`` with its verdict.
    """

    current: str = ""
    former: str = ""
    run: str = ""
    bundle: str = ""
    plan: str = ""
    passed: tuple[str, ...] = ()
    failing: str = ""
    halted: str = ""
    reason: str = ""


def progress(entries: Sequence[Entry], environment: str) -> Progress:
    """Fold an environment's entries into where it stands."""
    state = Progress()
    for entry in entries:
        if entry.get("environment") != environment:
            continue
        kind = entry["kind"]
        if kind == "rollout-started":
            state = Progress(state.current, state.former, entry["run"], entry["bundle"], entry["plan"])
        elif kind == "ring-passed":
            state = replace(state, passed=(*state.passed, entry["ring"]))
        elif kind == "gate" and entry["verdict"] == "fail":
            state = replace(state, failing=entry["ring"])
        elif kind == "rollout-halted":
            state = replace(state, failing="", halted=entry["verdict"], reason=entry["reason"])
        elif kind == "rollout-resumed":
            state = replace(state, halted="", reason="")
        elif kind == "rollout-finished":
            former = state.former if entry["bundle"] == state.current else state.current
            state = Progress(entry["bundle"], former)
    return state
