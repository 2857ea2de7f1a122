# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The part of ``bpftool`` that works on pinned maps, for maps that are the stand-in's files.

``[-j] map dump|update|delete pinned PATH ...`` and ``batch file FILE``, which ends at the first line that fails.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

from .pins import _ENTRY, _FileArray, _FileHash
from .root import Root


class _Failed(Exception):
    pass


def _bytes(words: Sequence[str]) -> bytes:
    return bytes(int(word, 0) for word in words)


def _hex(data: bytes) -> list[str]:
    return [f"0x{byte:02x}" for byte in data]


def _map(words: Sequence[str]) -> None:
    verb, pinned, path, *rest = words
    if pinned != "pinned" or not Path(path).is_file():
        raise _Failed(f"Error: bpf obj get ({path}): No such file or directory")
    table = _FileArray(Path(path), 1) if path.endswith("/policy_conf") else _FileHash(Path(path), 4)
    if verb == "dump":
        if isinstance(table, _FileArray):
            pairs = [(bytes(4), table.get(bytes(4)) or b"\0")]
        else:
            data = Path(path).read_bytes()[struct.calcsize("=I") :]
            pairs = [(data[at : at + 8], data[at + 8 : at + _ENTRY.size]) for at in range(0, len(data), _ENTRY.size)]
        sys.stdout.write(json.dumps([{"key": _hex(key), "value": _hex(value)} for key, value in pairs], separators=(",", ":")) + "\n")
        return
    at = rest.index("value") if "value" in rest else len(rest)
    key = _bytes(rest[1:at])
    if verb == "update":
        table.put(key, _bytes(rest[at + 1 :]))
    elif verb == "delete":
        if table.get(key) is None:
            raise _Failed("Error: delete failed: No such file or directory")
        table.delete(key)
    else:
        raise _Failed(f"Error: map {verb} is not known here")


def main(arguments: Sequence[str]) -> int:
    words = [word for word in arguments if word != "-j"]
    directory = Path(Root().path("/run/standin-kernel"))
    directory.mkdir(parents=True, exist_ok=True)
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        lines = [words[1:]] if words[0] == "map" else [line.split()[1:] for line in Path(words[2]).read_text("ascii").splitlines()]
        for line in lines:
            fcntl.flock(lock, fcntl.LOCK_EX)  # each command alone, as every call of bpf(2) is
            try:
                _map(line)
            finally:
                fcntl.flock(lock, fcntl.LOCK_UN)
    except (_Failed, OSError, IndexError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 255
    return 0
