# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Pins: what of a policy is in the kernel, as a tree with the real agent's names.

On a real bpffs they are real maps, programs and links, made by bpf(2): the program is a raw tracepoint that returns 0,
on an event that hardly ever happens. Anywhere else they are plain files with the same content.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable
from functools import cache
from pathlib import Path

ENFORCE, MONITOR, MONITOR_ONLY = range(3)
MODES = {"enforce": ENFORCE, "monitor": MONITOR, "monitor_only": MONITOR_ONLY}
# Position of each counter in policy_stats, an array of ten u64.
COUNTERS = ("invalid post signal monitor_signal override monitor_override notify_enforcer monitor_notify_enforcer set monitor_set").split()
GLOBAL_MAPS = (
    "execve_map execve_map_stats execve_map_update_data tcpmon_map tg_conf_map tg_errmetrics_map "
    "tg_execve_joined_info_map tg_execve_joined_info_map_stats tg_mbset_gen tg_mbset_map tg_rb_events tg_stats_map"
).split()
BASE_PROGRAMS = "event_execve event_exit execve_map_update kprobe_pid_clear tg_kp_bprm_committing_creds".split()
_STATS = struct.Struct("=10Q")
_ENTRY = struct.Struct("=Qi")
_KEY0 = bytes(4)
Identity = tuple[int, int]


def identity(path: str) -> Identity | None:
    """What tells one pin from every other, wherever it is moved to: inode number and time of creation."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return (status.st_ino, status.st_mtime_ns)


# --- bpf(2) ---------------------------------------------------------------------------------------------------------

_SYSCALL = {"x86_64": 321, "aarch64": 280}
_MAP_CREATE, _LOOKUP, _UPDATE, _DELETE, _PROG_LOAD, _PIN, _GET, _RAW_TP_OPEN = 0, 1, 2, 3, 5, 6, 7, 17
_HASH, _ARRAY, _RAW_TRACEPOINT, _NO_PREALLOC = 1, 2, 17, 1
_RETURN_0 = struct.pack("<BBhi", 0xB7, 0, 0, 0) + struct.pack("<BBhi", 0x95, 0, 0, 0)
_QUIET_EVENT = b"oom_score_adj_update"


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _bpf(command: int, layout: str, *fields: int | bytes) -> int:
    attribute = ctypes.create_string_buffer(struct.pack(layout, *fields), 144)
    result = _libc().syscall(_SYSCALL[os.uname().machine], command, attribute, 144)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"bpf({command}): {os.strerror(number)}")
    return int(result)


def _pin(descriptor: int, path: Path) -> None:
    name = ctypes.create_string_buffer(bytes(path))
    _bpf(_PIN, "=QI", ctypes.addressof(name), descriptor)
    os.close(descriptor)


def _new_map(path: Path, kind: int, key: int, value: int, entries: int, flags: int = 0) -> None:
    _pin(_bpf(_MAP_CREATE, "=IIIIIII16s", kind, key, value, entries, flags, 0, 0, path.name[:15].encode()), path)


def _new_program(program: Path, link: Path | None) -> None:
    code, gpl, event = (ctypes.create_string_buffer(one) for one in (_RETURN_0, b"GPL", _QUIET_EVENT))
    layout = "=IIQQIIQII16s"
    fields = (_RAW_TRACEPOINT, 2, ctypes.addressof(code), ctypes.addressof(gpl), 0, 0, 0, 0, 0, b"standin")
    descriptor = _bpf(_PROG_LOAD, layout, *fields)
    if link is not None:
        _pin(_bpf(_RAW_TP_OPEN, "=QI", ctypes.addressof(event), descriptor), link)
    _pin(descriptor, program)


class _Open:
    """A descriptor that is closed with its owner."""

    _fd = -1

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


class _BpfMap(_Open):
    """An open pinned map of the kernel."""

    def __init__(self, path: Path, value_size: int) -> None:
        name = ctypes.create_string_buffer(bytes(path))
        self._fd = _bpf(_GET, "=QII", ctypes.addressof(name), 0, 0)
        self._value = ctypes.create_string_buffer(value_size)

    def _element(self, command: int, key: bytes, value: int = 0) -> None:
        buffer = ctypes.create_string_buffer(key, len(key))
        _bpf(command, "=IIQQQ", self._fd, 0, ctypes.addressof(buffer), value, 0)

    def get(self, key: bytes) -> bytes | None:
        try:
            self._element(_LOOKUP, key, ctypes.addressof(self._value))
        except FileNotFoundError:
            return None
        return self._value.raw

    def put(self, key: bytes, value: bytes) -> bool:
        buffer = ctypes.create_string_buffer(value, len(value))
        try:
            self._element(_UPDATE, key, ctypes.addressof(buffer))
        except OSError as error:
            if error.errno == errno.E2BIG:
                return False
            raise
        return True

    def delete(self, key: bytes) -> None:
        self._element(_DELETE, key)


class _FileArray(_Open):
    """An array of one element in a file."""

    def __init__(self, path: Path, value_size: int) -> None:
        self._fd = os.open(path, os.O_RDWR)
        self._size = value_size

    def get(self, key: bytes) -> bytes | None:
        return os.pread(self._fd, self._size, 0)

    def put(self, key: bytes, value: bytes) -> bool:
        os.pwrite(self._fd, value, 0)
        return True

    def delete(self, key: bytes) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


class _FileHash(_Open):
    """A hash in a file: its capacity (u32), then packed records of key (u64) and value (i32)."""

    _HEAD = 4

    def __init__(self, path: Path, value_size: int) -> None:
        self._fd = os.open(path, os.O_RDWR)
        (self._capacity,) = struct.unpack("=I", os.pread(self._fd, self._HEAD, 0))

    def _find(self, key: bytes) -> tuple[bytes, int]:
        records = os.pread(self._fd, self._capacity * _ENTRY.size, self._HEAD)
        at = records.find(key)
        while at >= 0 and at % _ENTRY.size:
            at = records.find(key, at + 1)
        return records, at

    def get(self, key: bytes) -> bytes | None:
        records, at = self._find(key)
        return records[at + 8 : at + _ENTRY.size] if at >= 0 else None

    def put(self, key: bytes, value: bytes) -> bool:
        records, at = self._find(key)
        if at < 0 and len(records) >= self._capacity * _ENTRY.size:
            return False
        os.pwrite(self._fd, key + value, self._HEAD + (at if at >= 0 else len(records)))
        return True

    def delete(self, key: bytes) -> None:
        records, at = self._find(key)
        last = len(records) - _ENTRY.size
        os.pwrite(self._fd, records[last:], self._HEAD + at)
        os.ftruncate(self._fd, self._HEAD + last)


# --- both -----------------------------------------------------------------------------------------------------------


def is_bpffs(path: str) -> bool:
    """Whether a BPF file system is mounted at ``path``."""
    wanted = os.path.realpath(path)
    with open("/proc/self/mounts", encoding="utf-8") as mounts:
        return any(fields[1:3] == [wanted, "bpf"] for fields in map(str.split, mounts))


class Pins:
    """The tree of one host's pins, made by agents and used by its kernel."""

    def __init__(self, directory: str) -> None:
        self.directory = Path(directory)
        self.real = is_bpffs(directory)

    def _map(self, path: Path, kind: int, key: int, value: int, entries: int) -> None:
        if self.real:
            _new_map(path, kind, key, value, entries, _NO_PREALLOC if kind == _HASH else 0)
        else:
            path.write_bytes(struct.pack("=I", entries) if kind == _HASH else bytes(value))

    def _program(self, folder: Path, suffix: str, with_link: bool) -> None:
        program, link = folder / f"prog{suffix}", folder / f"link{suffix}" if with_link else None
        if self.real:
            _new_program(program, link)
            return
        for path in filter(None, (program, link)):
            path.touch()

    def create_base(self, folder: Path) -> None:
        """The base sensor's programs and the maps that all policies share."""
        for name in BASE_PROGRAMS:
            (folder / "__base__" / name).mkdir(parents=True)
            self._program(folder / "__base__" / name, "", name != "execve_map_update")
        for name in GLOBAL_MAPS:
            self._map(folder / name, _ARRAY, 4, 8, 1)

    def create_policy(self, folder: Path, mode: str) -> None:
        folder.mkdir(parents=True)
        self._map(folder / "policy_conf", _ARRAY, 4, 1, 1)
        self._map(folder / "policy_stats", _ARRAY, 4, _STATS.size, 1)
        self.conf(folder).write(MODES[mode])

    def create_hook(self, folder: Path, links: bool, override_link: bool, override_entries: int) -> None:
        """One hook; ``override_entries`` is the size of its override_tasks, 0 for none."""
        folder.mkdir(parents=True)
        self._program(folder, "", links)
        if override_link:
            self._program(folder, "_override", True)
        if override_entries:
            self._map(folder / "override_tasks", _HASH, 8, 4, override_entries)

    def conf(self, folder: Path) -> Conf:
        return Conf((_BpfMap if self.real else _FileArray)(folder / "policy_conf", 1))

    def stats(self, folder: Path) -> Stats:
        return Stats((_BpfMap if self.real else _FileArray)(folder / "policy_stats", _STATS.size))

    def tasks(self, hook: Path) -> Tasks:
        return Tasks((_BpfMap if self.real else _FileHash)(hook / "override_tasks", 4))


class Conf:
    """A policy's mode: one byte, for whoever writes it, at once."""

    def __init__(self, array: _BpfMap | _FileArray) -> None:
        self._array = array

    def read(self) -> int:
        return (self._array.get(_KEY0) or b"\0")[0]

    def write(self, mode: int) -> None:
        self._array.put(_KEY0, bytes([mode]))


class Stats:
    """A policy's counters."""

    def __init__(self, array: _BpfMap | _FileArray) -> None:
        self._array = array

    def read(self) -> tuple[int, ...]:
        return _STATS.unpack(self._array.get(_KEY0) or bytes(_STATS.size))

    def add(self, names: Iterable[str]) -> None:
        numbers = list(self.read())
        for name in names:
            numbers[COUNTERS.index(name)] += 1
        self._array.put(_KEY0, _STATS.pack(*numbers))


class Tasks:
    """Verdicts on their way from a kprobe to its fmod_ret program, by thread (tgid << 32 | tid)."""

    def __init__(self, table: _BpfMap | _FileHash) -> None:
        self._table = table

    def store(self, thread: int, error: int) -> bool:
        """False when the table is full: then nothing will be denied."""
        record = _ENTRY.pack(thread, error)
        return self._table.put(record[:8], record[8:])

    def consume(self, thread: int) -> int | None:
        key = _ENTRY.pack(thread, 0)[:8]
        found = self._table.get(key)
        if found is None:
            return None
        self._table.delete(key)
        return int.from_bytes(found, "little", signed=True)
