# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The agent's export file: JSON lines, rotated by the agent itself, and its rate limit.

Measured on v1.7.0: a deleted file stays open and is written on; on a full disk events are counted, bytes are not, and
nothing is logged.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from .config import Options


class Exporter:
    """One export file. Only one thread writes."""

    def __init__(self, options: Options) -> None:
        self.path = Path(options.path("export-filename"))
        self.events = 0
        self.bytes = 0
        self.limited = 0
        self.last = 0.0
        self._max_bytes = options.number("export-file-max-size-mb") << 20
        self._backups = options.number("export-file-max-backups")
        self._compress = options.flag("export-file-compress")
        self._mode = int(options.text("export-file-perm"), 8)
        self._limit = options.number("export-rate-limit")
        self._tokens = float(max(self._limit, 0))
        self._filled = time.monotonic()
        self._open()

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, self._mode)
        self._size = os.fstat(self._fd).st_size

    def write(self, line: bytes) -> None:
        if not self._admit():
            self.limited += 1
            return
        if self._size and self._size + len(line) > self._max_bytes:
            self._rotate()
        self.events += 1
        self.last = time.time()
        try:
            written = os.write(self._fd, line)
        except OSError:
            return
        self.bytes += written
        self._size += written

    def _admit(self) -> bool:
        """The limit is events per minute, with as large a burst; -1 is none and 0 lets nothing through."""
        if self._limit < 0:
            return True
        now = time.monotonic()
        self._tokens = min(self._tokens + (now - self._filled) * self._limit / 60, self._limit)
        self._filled = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def _rotate(self) -> None:
        os.close(self._fd)
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H-%M-%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}"
        backup = self.path.with_name(f"{self.path.stem}-{stamp}{self.path.suffix}")
        if self.path.exists():
            self.path.rename(backup)
            if self._compress:
                _gzip(backup)
        for old in sorted(self.path.parent.glob(f"{self.path.stem}-*"))[: -self._backups or None]:
            old.unlink()
        self._open()


def _gzip(path: Path) -> None:
    import gzip

    with gzip.open(f"{path}.gz", "wb") as packed:
        packed.write(path.read_bytes())
    path.unlink()
