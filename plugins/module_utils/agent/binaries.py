# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Which files uprobes sit in, and whether their paths still lead there.

The kernel binds a uprobe to an inode. A package upgrade puts another one under the same path: from then on the policy
sees nothing and enforces nothing, while the agent lists it as enabled (measured). Only loading it again binds it anew.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import BinaryIO, Dict, Iterator, Mapping, Optional, Sequence, Tuple

from ansible_collections.apiary.tetragon.plugins.module_utils.agent.process import Life
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.tetra import Key

_PT_NOTE = 4
_BUILD_IDS = ((b"GNU\0", 3), (b"Go\0\0", 4))
_NOTES_MOST = 1 << 16


@dataclass(frozen=True)
class Binary:
    """The file behind a path. ``build_id`` is empty for one without; ``inode`` is 0 where there is no file."""

    path: str
    device: int = 0
    inode: int = 0
    build_id: str = ""


Binaries = Mapping[Key, Tuple[Binary, ...]]


@dataclass(frozen=True)
class Survey:
    """``current``: the files behind each policy's paths. ``replaced``: policies that sit in other files, with those paths."""

    current: Dict[Key, Tuple[Binary, ...]]
    replaced: Dict[Key, Tuple[str, ...]]


def survey(paths: Mapping[Key, Sequence[str]], recorded: Binaries, recorded_life: str, life: Life) -> Survey:
    """Hold the files behind the paths of loaded policies against those that were recorded in a life of the agent."""
    current = {key: tuple(identify(path) for path in names) for key, names in paths.items() if names}
    replaced = {}
    for key, files in current.items():
        loaded = {one.path: one for one in recorded.get(key, ())}
        bad = [now.path for now in files if _is_replaced(loaded.get(now.path), now, recorded_life == life.id, life.since)]
        if bad:
            replaced[key] = tuple(bad)
    return Survey(current, replaced)


def _is_replaced(loaded: Optional[Binary], now: Binary, same_life: bool, since: Optional[float]) -> bool:
    """Whether a uprobe sits in another file than ``now``. A path without a file has nothing to watch.

    An agent that has started after ``loaded`` was recorded took what it found: ``now``, if that was there by ``since``.
    """
    if not now.inode or now == loaded:
        return False
    return (loaded is not None and same_life) or since is None or last_change(now.path) > since


def identify(path: str) -> Binary:
    """The file behind a path, now."""
    try:
        found = os.stat(path)
        return Binary(path, found.st_dev, found.st_ino, build_id(path))
    except OSError:
        return Binary(path)


def last_change(path: str) -> float:
    """When the file behind a path, or a link on the way to it, last changed; infinite for a path that leads nowhere."""
    try:
        newest = os.stat(path).st_ctime
        at, left = "/", path.split("/")
        while left:
            step = os.path.join(at, left[0])
            if os.path.islink(step):
                newest = max(newest, os.lstat(step).st_ctime)
                at, left = "/", os.path.join(at, os.readlink(step)).split("/") + left[1:]
            else:
                at, left = step, left[1:]
    except OSError:
        return float("inf")
    return newest


def build_id(path: str) -> str:
    """The build id of an ELF file, in hex; empty for any other file and for one without. Raises OSError."""
    with open(path, "rb") as file:
        try:
            return next(_build_ids(file), "")
        except struct.error:  # cut off
            return ""


def _build_ids(file: BinaryIO) -> Iterator[str]:
    kind = file.read(16)
    if kind[:4] != b"\x7fELF":
        return
    wide, order = kind[4:5] == b"\2", ">" if kind[5:6] == b"\2" else "<"
    header = _unpack(file, order + ("HHIQQQIHHH" if wide else "HHIIIIIHHH"))
    table, size, count = header[4], header[8], header[9]
    for index in range(count):
        file.seek(table + index * size)
        segment = _unpack(file, order + ("IIQQQQ" if wide else "IIIII"))
        if segment[0] == _PT_NOTE:
            file.seek(segment[2 if wide else 1])
            yield from _notes(file.read(min(segment[5 if wide else 4], _NOTES_MOST)), order)


def _notes(data: bytes, order: str) -> Iterator[str]:
    at = 0
    while at + 12 <= len(data):
        name, size, kind = struct.unpack_from(order + "III", data, at)
        text = at + 12 + (name + 3) // 4 * 4
        if (data[at + 12 : at + 12 + name], kind) in _BUILD_IDS:
            yield data[text : text + size].hex()
        at = text + (size + 3) // 4 * 4


def _unpack(file: BinaryIO, form: str) -> Tuple[int, ...]:
    return struct.unpack(form, file.read(struct.calcsize(form)))
