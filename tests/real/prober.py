# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Attempt one forbidden act per kind of hook at a steady rate, and count what came through. Runs on the host under test.

prober.py run DIRECTORY SECONDS    one worker per kind, each attempt every SECONDS, until killed; phase "booting" when run again
prober.py mark DIRECTORY PHASE     what follows belongs to this phase
prober.py report DIRECTORY         JSON: phase -> kind -> {attempts, allowed, wrong, gap}; gap: longest run of allowed, in seconds

Denied is SIGKILL or EPERM. Wrong is an act that no policy forbids and that was refused all the same: the next open of an
unrelated file by the same thread, or an innocent act of the worker "innocent". A "fresh" attempt is made by a new
process, a "long" one by a process that lives on. Logs are one line an attempt; they survive the worker, not a power cut.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FILES = Path("/srv/apiary")
WHENCE = ARGUMENT = 4444
_WRONG = 2


def _open(name: str) -> bool:
    """Whether the open was let through."""
    try:
        os.close(os.open(FILES / name, os.O_RDONLY))
    except PermissionError:
        return False
    return True


def _lseek(whence: int) -> bool:
    _LIBC.lseek(0, ctypes.c_long(0), whence)
    return True


def _call(argument: int) -> bool:
    _LIBC.l64a(ctypes.c_long(argument))
    return True


def _innocent() -> bool:
    return _open("plain") and _lseek(os.SEEK_CUR) and _call(1)


_LIBC = ctypes.CDLL("libc.so.6")
_LIBC.l64a.restype = ctypes.c_char_p
ACTS: dict[str, tuple[Callable[[], bool], bool]] = {
    "kprobe": (lambda: _open("kprobe"), True),
    "override": (lambda: _open("override"), True),
    "override-long": (lambda: _open("override"), False),
    "lsm": (lambda: _open("lsm"), True),
    "lsm-long": (lambda: _open("lsm"), False),
    "tracepoint": (lambda: _lseek(WHENCE), True),
    "uprobe": (lambda: _call(ARGUMENT), True),
    "innocent": (_innocent, True),
}


def _attempt(act: Callable[[], bool]) -> int:
    """Bit 0: denied. Bit 1: the next open of an unrelated file was refused."""
    denied = not act()
    return denied + _WRONG * (not _open("plain"))


def _fresh(act: Callable[[], bool]) -> int:
    child = os.fork()
    if child == 0:
        os._exit(_attempt(act))
    status = os.waitpid(child, 0)[1]
    return 1 if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL else os.WEXITSTATUS(status)


def _worker(directory: Path, kind: str, pause: float) -> None:
    act, fresh = ACTS[kind]
    log = os.open(directory / f"{kind}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    following = time.monotonic()
    while True:
        began = time.time()
        result = _fresh(act) if fresh else _attempt(act)
        os.write(log, f"{began:.3f} {result}\n".encode())
        following = max(following + pause, time.monotonic())
        time.sleep(max(0.0, following - time.monotonic()))


def run(directory: Path, pause: float) -> None:
    """Never returns; the workers die with this process's group."""
    directory.mkdir(parents=True, exist_ok=True)
    FILES.mkdir(exist_ok=True)
    if (directory / "phases").exists():
        mark(directory, "booting")
    for name in ("plain", "kprobe", "override", "lsm"):
        if not (FILES / name).exists():
            (FILES / name).write_text(name, encoding="utf-8")
    for kind in ACTS:
        if os.fork() == 0:
            _worker(directory, kind, pause)
    signal.pause()


def mark(directory: Path, phase: str) -> None:
    """Begin a phase now."""
    with (directory / "phases").open("a", encoding="utf-8") as file:
        file.write(f"{time.time():.3f} {phase}\n")


def _lines(path: Path) -> list[tuple[float, str]]:
    with path.open(encoding="utf-8") as file:
        split = [line.split() for line in file if line.endswith("\n") and "\0" not in line]
    return [(float(at), word) for at, word in split]


def report(directory: Path) -> dict[str, Any]:
    """Counts by phase and kind; an attempt belongs to the phase that was on when it began."""
    phases = _lines(directory / "phases")
    counts: dict[str, Any] = {phase: {} for _at, phase in phases}
    for kind in ACTS:
        path = directory / f"{kind}.log"
        if not path.exists():
            continue
        opened, last = None, 0
        for at, word in _lines(path):
            while last + 1 < len(phases) and phases[last + 1][0] <= at:
                last, opened = last + 1, None
            if not phases or at < phases[0][0]:
                continue
            row = counts[phases[last][1]].setdefault(kind, {"attempts": 0, "allowed": 0, "wrong": 0, "gap": 0.0})
            denied, wrong = int(word) & 1, int(word) & _WRONG
            if kind == "innocent":
                denied, wrong = 1, int(word)
            row["attempts"] += 1
            row["allowed"] += not denied
            row["wrong"] += bool(wrong)
            opened = None if denied else opened or at
            if opened:
                row["gap"] = round(max(row["gap"], at - opened), 3)
    return counts


def main(arguments: list[str]) -> None:
    """Entry point."""
    command, directory = arguments[0], Path(arguments[1])
    if command == "run":
        run(directory, float(arguments[2]))
    elif command == "mark":
        mark(directory, arguments[2])
    else:
        json.dump(report(directory), sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
