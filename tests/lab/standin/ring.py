# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The ring buffer between the kernel and one agent: limited in bytes, never waited for, counted when it is full.

A named pipe. As long as its agent lives, it has a reader; what does not fit is missed and counted per kind of event.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# Kinds of events in the kernel's numbering, the label msg_op of the metrics.
EXEC, EXIT, KPROBE, TRACEPOINT, UPROBE, LSM = 5, 7, 13, 14, 15, 16
_KINDS = 64
_COUNTS = struct.Struct(f"={_KINDS}Q")
_F_SETPIPE_SZ = 1031
_PAUSE = 0.01
_MAX_RECORD = 4096  # a pipe takes this much in one piece


class Reader:
    """The agent's end. ``size`` in bytes; the system may allow less."""

    def __init__(self, path: Path, size: int) -> None:
        os.mkfifo(path, 0o600)
        _missed(path).write_bytes(bytes(_COUNTS.size))
        self.path = path
        self._fd = os.open(path, os.O_RDWR)
        self._rest = b""
        with contextlib.suppress(PermissionError):
            fcntl.fcntl(self._fd, _F_SETPIPE_SZ, max(size, _MAX_RECORD))

    def records(self) -> Iterator[dict[str, Any]]:
        """Every record, waiting for the next without end.

        The pause gathers what comes close together: waking a reader for each record costs the writer more than the rest.
        """
        while True:
            *lines, self._rest = (self._rest + os.read(self._fd, 1 << 16)).split(b"\n")
            for line in lines:
                yield json.loads(line)
            time.sleep(_PAUSE)

    def missed(self) -> dict[int, int]:
        counts = _COUNTS.unpack(_missed(self.path).read_bytes())
        return {kind: count for kind, count in enumerate(counts) if count}

    def remove(self) -> None:
        for path in (self.path, _missed(self.path)):
            path.unlink(missing_ok=True)


class Writer:
    """The kernel's end. One writer at a time: the kernel's lock sees to it."""

    def __init__(self, path: Path) -> None:
        self._missed = _missed(path)
        self._poll = select.poll()
        self._fd = -1
        with contextlib.suppress(OSError):
            self._fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
            self._poll.register(self._fd, 0)

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def alive(self) -> bool:
        """Whether the agent that reads this ring is still there."""
        return self._fd >= 0 and not any(seen & select.POLLERR for _unused, seen in self._poll.poll(0))

    def post(self, kind: int, record: Mapping[str, Any]) -> None:
        data = json.dumps({"op": kind, **record}, separators=(",", ":")).encode() + b"\n"
        try:
            if len(data) > _MAX_RECORD:
                raise BlockingIOError
            os.write(self._fd, data)
        except BlockingIOError:
            self._miss(kind)
        except OSError:
            return  # nobody reads any more

    def _miss(self, kind: int) -> None:
        counts = list(_COUNTS.unpack(self._missed.read_bytes()))
        counts[kind] += 1
        self._missed.write_bytes(_COUNTS.pack(*counts))


def _missed(path: Path) -> Path:
    return path.with_suffix(".missed")
