# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Attempt forbidden acts at a steady rate, and count what came through. One file, for python3 alone.

prober.py run DIRECTORY SECONDS    one worker per act of acts.json, each attempt every SECONDS, until killed; phase "booting" when run again
prober.py mark DIRECTORY PHASE     what follows belongs to this phase
prober.py report DIRECTORY         JSON: phase -> act -> {attempts, allowed, wrong, gap}; gap: longest run of allowed, in seconds

``DIRECTORY/acts.json`` maps a name to ``{"steps": [STEP...], "fresh": true, "innocent": false}``; for steps see ``step``.
Denied is SIGKILL or EPERM. Wrong is an act that no policy forbids and that was refused all the same: the next open of
``DIRECTORY/bystander`` by the same thread, or an innocent act. A fresh attempt is made by a new process, another one by a process
that lives on. Once it runs it needs no other file than those in DIRECTORY. Logs are one line an attempt; they survive
the worker, not a power cut.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
import time
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

_WRONG, _VOID = 2, 4
Act = Callable[[], bool]


class Void(Exception):
    """The act could not be attempted, and proves nothing."""


def step(raw: Mapping[str, Any]) -> Act:
    """What attempts one act and tells whether it was let through. Raises KeyError for a kind that there is not.

    ``open`` path; ``write`` (no bytes) path; ``connect`` (UDP: nothing is sent) address; ``exec`` path; ``exec-memory``;
    ``call`` library, symbol, argument; ``seek`` whence; ``links`` directory, folder, count: as many links are pinned.
    """
    kind = raw["kind"]
    if kind in ("open", "write"):
        return lambda: _open(raw["path"], kind == "write")
    if kind == "connect":
        return lambda: _connect(raw["address"])
    if kind == "exec":
        return lambda: _exec(raw["path"])
    if kind == "exec-memory":
        return _exec_memory
    if kind == "seek":
        seek = ctypes.CDLL("libc.so.6").lseek
        return lambda: seek(0, ctypes.c_long(0), raw["whence"]) is not None
    if kind == "call":
        return lambda: _call(raw["library"], raw["symbol"], raw["argument"])
    if kind == "links":
        return lambda: not _pinned(raw["directory"], raw["folder"], raw["count"])
    raise KeyError(kind)


def _open(path: str, write: bool = False) -> bool:
    try:
        descriptor = os.open(path, os.O_WRONLY if write else os.O_RDONLY)
    except PermissionError:
        return False
    except OSError as error:
        raise Void(str(error)) from None
    try:
        if write:
            os.write(descriptor, b"")
    except PermissionError:
        return False
    finally:
        os.close(descriptor)
    return True


def _connect(address: str) -> bool:
    try:
        one = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    except OSError as error:
        raise Void(str(error)) from None
    with one:
        try:
            one.connect((address, 9))
        except PermissionError:
            return False
        except OSError:  # no route: nobody has refused it
            return True
    return True


def _call(library: str, symbol: str, argument: int) -> bool:
    """A new process maps the library anew: the file that is under its path by now."""
    try:
        function = getattr(ctypes.CDLL(library), symbol)
    except (OSError, AttributeError) as error:
        raise Void(str(error)) from None
    return function(ctypes.c_long(argument)) is not None


def _exec(program: Any) -> bool:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.execve(program, ["true"], {})
        except PermissionError:
            os.write(writing, b"d")
        except OSError:
            os.write(writing, b"v")
        os._exit(0)
    os.close(writing)
    said, status = os.read(reading, 1), os.waitpid(child, 0)[1]
    os.close(reading)
    if said == b"v":
        raise Void(str(program))
    return not said and not _killed(status)


def _exec_memory() -> bool:
    descriptor = os.memfd_create("apiary-drill", 0)
    try:
        os.write(descriptor, b"#!/bin/true\n")
        return _exec(descriptor)
    finally:
        os.close(descriptor)


def _pinned(directory: str, folder: str, count: int) -> bool:
    """Whether a policy's links are all there. A starting agent moves the former pins aside until it has its own."""
    return any(links(os.path.join(place, folder)) >= count for place in (directory, directory + "_old", directory))


def links(folder: str) -> int:
    """The number of links that are pinned below a folder."""
    return sum(name.startswith("link") for _place, _dirs, files in os.walk(folder) for name in files)


def _killed(status: int) -> bool:
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def _attempt(act: Act, bystander: str) -> int:
    """Bit 0: denied. Bit 1: the next open of an unrelated file was refused. Bit 2: it was no attempt."""
    try:
        denied = not act()
    except Void:
        return _VOID
    return denied + _WRONG * (not _open(bystander))


def _fresh(act: Act, bystander: str) -> int:
    child = os.fork()
    if child == 0:
        try:
            os._exit(_attempt(act, bystander))
        finally:
            os._exit(_VOID)
    status = os.waitpid(child, 0)[1]
    return 1 if _killed(status) else os.WEXITSTATUS(status)


def once(raw: Mapping[str, Any]) -> Optional[bool]:
    """Whether a step is refused, attempted once by a process of its own; None when it could not be attempted."""
    outcome = _fresh(step(raw), os.devnull)
    return None if outcome & _VOID else bool(outcome & 1)


def _worker(directory: str, name: str, raw: Mapping[str, Any], pause: float) -> None:
    steps = [step(one) for one in raw["steps"]]
    attempt = _fresh if raw.get("fresh", True) else _attempt
    bystander = os.path.join(directory, "bystander")
    log = os.open(os.path.join(directory, name + ".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    following = time.monotonic()
    while True:
        began = time.time()
        result = attempt(lambda: all(one() for one in steps), bystander)
        os.write(log, "{0:.3f} {1}\n".format(began, result).encode())
        following = max(following + pause, time.monotonic())
        time.sleep(max(0.0, following - time.monotonic()))


def acts(directory: str) -> Dict[str, Any]:
    with open(os.path.join(directory, "acts.json"), encoding="utf-8") as file:
        found: Dict[str, Any] = json.load(file)
    return found


def run(directory: str, pause: float) -> None:
    """Never returns; the workers die with this process's group."""
    if os.path.exists(os.path.join(directory, "phases")):
        mark(directory, "booting")
    with open(os.path.join(directory, "bystander"), "w", encoding="utf-8"):
        pass
    for name, raw in acts(directory).items():
        if os.fork() == 0:
            _worker(directory, name, raw, pause)
    signal.pause()


def mark(directory: str, phase: str) -> None:
    """Begin a phase now."""
    with open(os.path.join(directory, "phases"), "a", encoding="utf-8") as file:
        file.write("{0:.3f} {1}\n".format(time.time(), phase))


def _lines(path: str) -> List[Tuple[float, str]]:
    with open(path, encoding="utf-8") as file:
        split = [line.split() for line in file if line.endswith("\n") and "\0" not in line]
    return [(float(at), word) for at, word in split]


def report(directory: str) -> Dict[str, Any]:
    """Counts by phase and act; an attempt belongs to the phase that was on when it began, a gap to each in which it lasts."""
    phases = _lines(os.path.join(directory, "phases"))
    counts: Dict[str, Any] = {phase: {} for _at, phase in phases}
    for name, raw in acts(directory).items():
        path = os.path.join(directory, name + ".log")
        if not os.path.exists(path):
            continue
        opened: Optional[float] = None
        last = 0
        for at, word in _lines(path):
            while last + 1 < len(phases) and phases[last + 1][0] <= at:
                last += 1
            if not phases or at < phases[0][0] or int(word) & _VOID:
                continue
            row = counts[phases[last][1]].setdefault(name, {"attempts": 0, "allowed": 0, "wrong": 0, "gap": 0.0})
            denied, wrong = int(word) & 1, int(word) & _WRONG
            if raw.get("innocent"):
                denied, wrong = 1, int(word)
            row["attempts"] += 1
            row["allowed"] += not denied
            row["wrong"] += bool(wrong)
            opened = None if denied else opened or at
            if opened:
                row["gap"] = round(max(row["gap"], at - opened), 3)
    return counts


def main(arguments: List[str]) -> None:
    """Entry point."""
    command, directory = arguments[0], arguments[1]
    if command == "run":
        run(directory, float(arguments[2]))
    elif command == "mark":
        mark(directory, arguments[2])
    else:
        json.dump(report(directory), sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
