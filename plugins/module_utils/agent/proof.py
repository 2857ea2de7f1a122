# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""How it is proved on a host that a policy enforces: by its trigger, attempted, or by its links in the BPF file system.

What the agent lists is no proof: a policy can be enabled, in enforce, and deny nothing (measured, see ``bpf.abandoned``).
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterator, Mapping, Optional, Sequence

_NO_FOLLOW, _IMMUTABLE = 0x100, 0x10 | 0x20  # of statx(2): AT_SYMLINK_NOFOLLOW; STATX_ATTR_IMMUTABLE, STATX_ATTR_APPEND
_MOST_FILES = 5000
# Acts that change nothing, whatever a policy's author names in them. What runs a program or calls a function needs consent.
HARMLESS = frozenset(["open", "write", "connect", "exec-memory"])
_TRIES, _PAUSE_SECONDS = 3, 0.05


@dataclass(frozen=True)
class Proof:
    """How one policy is proved: by ``trigger`` or by ``links``; ``step`` is what the prober does (see ``prober.step``)."""

    loaded: str
    reference: str
    by: str
    step: Mapping[str, Any]
    note: str = ""

    def __str__(self) -> str:
        if self.by == "links":
            what = "{0} pinned link{1}".format(self.step["count"], "s" if self.step["count"] != 1 else "")
        else:
            what = " ".join([str(self.step["kind"]), *(str(value) for name, value in sorted(self.step.items()) if name != "kind")])
        return "{0}: {1}: {2}{3}".format(self.reference, self.by, what, " ({0})".format(self.note) if self.note else "")


def refused(step: Mapping[str, Any], attempt: Callable[[Mapping[str, Any]], Optional[bool]]) -> Optional[bool]:
    """Whether a step is refused; None when it cannot be attempted. ``attempt`` does it once and tells the same.

    Refused once is refused: single acts come through an LSM hook that enforces (measured), and where nothing enforces,
    nothing is refused.
    """
    seen = []
    for number in range(_TRIES):
        if number:
            time.sleep(_PAUSE_SECONDS)
        seen.append(attempt(step))
        if seen[-1]:
            return True
    return False if False in seen else None


def resolve(trigger: Mapping[str, Any]) -> Optional[Dict[str, Any]]:
    """A trigger as a step of the prober, its file looked for on this host; None when there is no such file."""
    kind = trigger["kind"]
    if kind in ("connect", "exec-memory", "call"):
        return dict(trigger)
    named = (path for path in trigger.get("files", ()) if os.path.isfile(path))
    if kind != "write":
        path = next(named, None)
    else:
        found = (path for group in (named, _below(trigger.get("below", ()))) for path in group)
        path = next((one for one in found if _can_be_written(one)), None)
    return {"kind": kind, "path": path} if path else None


def _below(directories: Sequence[str]) -> Iterator[str]:
    """Files below these directories, each directory's first ones, in order of name."""
    for directory in directories:
        seen = 0
        for place, folders, names in os.walk(directory):
            folders.sort()
            for name in sorted(names):
                seen += 1
                yield os.path.join(place, name)
            if seen > _MOST_FILES:
                break


def _can_be_written(path: str) -> bool:
    """Whether nothing but a policy would refuse a write, and none hurts: whoever executes a file that is open for it is refused.

    Nothing is opened to find out: a policy may kill for that.
    """
    mode = os.lstat(path).st_mode
    if not stat.S_ISREG(mode) or mode & 0o111:
        return False
    found = ctypes.create_string_buffer(256)
    try:
        done = ctypes.CDLL(None).statx(-1, os.fsencode(path), _NO_FOLLOW, 0, found)
    except AttributeError:  # a C library without it
        return True
    return done != 0 or not struct.unpack_from("=Q", found, 8)[0] & _IMMUTABLE
