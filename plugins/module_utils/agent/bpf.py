# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Pinned BPF maps, read and written by bpf(2) with nothing but the standard library."""

from __future__ import annotations

import ctypes
import os
import struct
import time
from typing import AbstractSet, Dict, Iterator, List, Mapping, Sequence, Set, Tuple

_SYSCALL = {"x86_64": 321, "aarch64": 280}
_LOOKUP, _UPDATE, _DELETE, _NEXT_KEY, _OBJ_GET, _INFO_BY_FD = 1, 2, 3, 4, 7, 15
_EXIST = 2
_ATTRIBUTE_BYTES = 128
MODE_VALUES = {"enforce": 0, "monitor": 1}
_MONITOR_ONLY = 2


class BpfError(OSError):
    """A map cannot be reached or is not the kind of map it should be."""


def _bpf(command: int, layout: str, *fields: int) -> int:
    number = _SYSCALL.get(os.uname().machine)
    if number is None:
        raise BpfError("bpf(2) is not known for machine {0}".format(os.uname().machine))
    libc = ctypes.CDLL(None, use_errno=True)
    attribute = ctypes.create_string_buffer(struct.pack(layout, *fields).ljust(_ATTRIBUTE_BYTES, b"\0"), _ATTRIBUTE_BYTES)
    result = libc.syscall(number, command, attribute, _ATTRIBUTE_BYTES)
    if result < 0:
        error = ctypes.get_errno()
        raise BpfError(error, os.strerror(error))
    return int(result)


class PinnedMap:
    """One open pinned map; close it or use it in a with statement."""

    def __init__(self, path: str) -> None:
        name = ctypes.create_string_buffer(os.fsencode(path))
        try:
            self.fd = _bpf(_OBJ_GET, "=QII", ctypes.addressof(name), 0, 0)
        except BpfError as error:
            raise BpfError("{0}: {1}".format(path, error.strerror or error)) from None
        info = ctypes.create_string_buffer(80)
        _bpf(_INFO_BY_FD, "=IIQ", self.fd, len(info), ctypes.addressof(info))
        _type, _id, self.key_size, self.value_size, self.max_entries = struct.unpack_from("=IIIII", info)

    def __enter__(self) -> PinnedMap:
        return self

    def __exit__(self, *_unused: object) -> None:
        os.close(self.fd)

    def read(self, key: bytes) -> bytes:
        value = ctypes.create_string_buffer(max(self.value_size, 8))
        self._element(_LOOKUP, key, ctypes.addressof(value))
        return value.raw[: self.value_size]

    def write(self, key: bytes, value: bytes) -> None:
        """Replace the value of a key that exists."""
        buffer = ctypes.create_string_buffer(value, max(len(value), 8))
        self._element(_UPDATE, key, ctypes.addressof(buffer), _EXIST)

    def delete(self, key: bytes) -> None:
        self._element(_DELETE, key)

    def _element(self, command: int, key: bytes, value: int = 0, flags: int = 0) -> None:
        buffer = ctypes.create_string_buffer(key, len(key))
        _bpf(command, "=IxxxxQQQ", self.fd, ctypes.addressof(buffer), value, flags)

    def keys(self) -> Iterator[bytes]:
        """Every key, as a walk that concurrent changes may disturb."""
        following = ctypes.create_string_buffer(self.key_size)
        current, seen = None, 0
        while seen <= self.max_entries:
            try:
                _bpf(_NEXT_KEY, "=IxxxxQQ", self.fd, ctypes.addressof(current) if current else 0, ctypes.addressof(following))
            except BpfError:
                return
            yield following.raw
            current, seen = ctypes.create_string_buffer(following.raw, self.key_size), seen + 1


def mode_of(path: str) -> str:
    """The mode in a pinned ``policy_conf`` map."""
    with PinnedMap(path) as conf:
        if conf.key_size != 4 or conf.value_size != 1:
            raise BpfError("{0}: is no policy_conf map".format(path))
        value = conf.read(struct.pack("=I", 0))[0]
    return {0: "enforce", 1: "monitor", _MONITOR_ONLY: "monitor_only"}.get(value, "unknown")


def set_modes(changes: Sequence[Tuple[str, str]]) -> None:
    """Write modes into pinned ``policy_conf`` maps: (path, mode), all opened before the first is written, in this order.

    A policy that can only monitor is refused. Two calls of ``tetra`` take seconds, this takes less than a millisecond.
    """
    opened: List[Tuple[PinnedMap, str]] = []
    key = struct.pack("=I", 0)
    try:
        for path, mode in changes:
            conf = PinnedMap(path)
            opened.append((conf, mode))
            if conf.key_size != 4 or conf.value_size != 1:
                raise BpfError("{0}: is no policy_conf map".format(path))
            if conf.read(key)[0] == _MONITOR_ONLY and mode == "enforce":
                raise BpfError("{0}: this policy has no enforcing action and can only monitor".format(path))
        for conf, mode in opened:
            conf.write(key, bytes([MODE_VALUES[mode]]))
    finally:
        for conf, _mode in opened:
            os.close(conf.fd)


def purge_stale(paths: Sequence[str], pause: float = 0.5) -> int:
    """Delete the entries of ``override_tasks`` maps that outlive ``pause`` seconds; returns how many there were.

    A live entry is consumed within the same call of the hooked function; what stays belongs to threads that are gone,
    and a map full of them denies nothing any more.
    """
    before = {path: keys for path, keys in ((path, _keys(path)) for path in paths) if keys}
    if not before:
        return 0
    time.sleep(pause)
    return delete({path: keys & _keys(path) for path, keys in before.items()})


def abandoned(paths: Sequence[str]) -> Dict[str, Set[bytes]]:
    """The entries of ``override_tasks`` maps whose threads are gone: path -> keys (pid << 32 | thread). Raises BpfError.

    Where two policies that override one function both enforce, each denied thread that ends leaves one in the older
    policy's map; when it is full, that policy denies nothing, and goes on being listed as enforcing (measured).
    """
    found = {path: {key for key in _keys(path) if not _lives(key)} for path in paths}
    # A thread may have consumed its own and ended between the two looks.
    left = {path: keys & _keys(path) for path, keys in found.items() if keys}
    return {path: keys for path, keys in left.items() if keys}


def delete(entries: Mapping[str, AbstractSet[bytes]]) -> int:
    """Delete entries of maps; returns how many were still there."""
    deleted = 0
    for path, keys in entries.items():
        with PinnedMap(path) as opened:
            for key in keys:
                try:
                    opened.delete(key)
                    deleted += 1
                except BpfError:
                    continue
    return deleted


def _lives(key: bytes) -> bool:
    (both,) = struct.unpack("=Q", key)
    return os.path.isdir("/proc/{0}/task/{1}".format(both >> 32, both & 0xFFFFFFFF))


def _keys(path: str) -> Set[bytes]:
    with PinnedMap(path) as tasks:
        if tasks.key_size != 8:
            raise BpfError("{0}: is no override_tasks map".format(path))
        return set(tasks.keys())
