# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Pins: what of a policy is in the kernel, as a tree with the real agent's names.

On a real bpffs they are real maps, programs and links, made by bpf(2): the program is a raw tracepoint that returns 0,
on an event that hardly ever happens. On a host with a cgroup tree of its own, an Override by IPv4 ranges is a program on
connect(2) instead, which really denies, as long as its link is pinned and policy_conf says enforce. Anywhere else pins
are plain files with the same content.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Network
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
CGROUP = Path("/sys/fs/cgroup")
Identity = tuple[int, int]


@dataclass(frozen=True)
class Egress:
    """Connections that a policy overrides: to these networks or, ``outside``, to all others."""

    networks: tuple[IPv4Network, ...]
    outside: bool


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
_LINK_CREATE = 28
_HASH, _ARRAY, _RAW_TRACEPOINT, _CGROUP_SOCK_ADDR, _INET4_CONNECT, _NO_PREALLOC = 1, 2, 17, 18, 10, 1
_PROGRAM = "=IIQQIIQII16sII"
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
    fields = (_RAW_TRACEPOINT, 2, ctypes.addressof(code), ctypes.addressof(gpl), 0, 0, 0, 0, 0, b"standin", 0, 0)
    descriptor = _bpf(_PROG_LOAD, _PROGRAM, *fields)
    if link is not None:
        _pin(_bpf(_RAW_TP_OPEN, "=QI", ctypes.addressof(event), descriptor), link)
    _pin(descriptor, program)


def _new_connect_program(program: Path, link: Path, conf: Path, egress: Egress) -> None:
    """A program on every connect(2) of this host, and its link."""
    name = ctypes.create_string_buffer(bytes(conf))
    mode = _bpf(_GET, "=QII", ctypes.addressof(name), 0, 0)
    code, gpl = ctypes.create_string_buffer(_connect_code(egress, mode)), ctypes.create_string_buffer(b"GPL")
    count = (len(code) - 1) // 8
    fields = (_CGROUP_SOCK_ADDR, count, ctypes.addressof(code), ctypes.addressof(gpl), 0, 0, 0, 0, 0, b"standin", 0, _INET4_CONNECT)
    descriptor = _bpf(_PROG_LOAD, _PROGRAM, *fields)
    os.close(mode)
    cgroup = os.open(CGROUP, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _pin(_bpf(_LINK_CREATE, "=IIII", descriptor, cgroup, _INET4_CONNECT, 0), link)
    finally:
        os.close(cgroup)
    _pin(descriptor, program)


def _connect_code(egress: Egress, conf: int) -> bytes:
    """0 (deny) for the addresses of ``egress`` while the first byte of the map ``conf`` is 0 (enforce), else 1."""

    def op(code: int, to: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
        return struct.pack("<BBhI", code, to | source << 4, offset, value & 0xFFFFFFFF)

    key_on_stack = op(0x62, 10, offset=-4) + op(0xBF, 2, 10) + op(0x07, 2, value=-4)
    look_up = op(0x18, 1, 1, value=conf) + op(0) + op(0x85, value=1)
    allow = op(0xB7, 0, value=1) + op(0x95)
    if_enforcing = op(0x15, 0, offset=4) + op(0x71, 1, 0) + op(0x55, 1, offset=2)
    deny = key_on_stack + look_up + if_enforcing + op(0xB7) + op(0x95) + allow
    fall, jump = (deny, allow) if egress.outside else (allow, deny)
    tests = b""
    for left, network in zip(reversed(range(len(egress.networks))), egress.networks, strict=True):
        address, mask = (int.from_bytes(one.packed, "little") for one in (network.network_address, network.netmask))
        tests += op(0xBC, 2, 6) + op(0x54, 2, value=mask) + op(0x16, 2, offset=3 * left + len(fall) // 8, value=address)
    return op(0x61, 6, 1, 4) + tests + fall + jump


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

    def __init__(self, directory: str, whole_host: bool = False) -> None:
        self.directory = Path(directory)
        self.real = is_bpffs(directory)
        self.denies_connections = self.real and whole_host and (CGROUP / "cgroup.controllers").exists()

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

    def create_hook(self, folder: Path, links: bool, override_link: bool, override_entries: int, egress: Egress | None = None) -> None:
        """One hook; ``override_entries``: size of its override_tasks, 0: none, to deny nothing; ``egress``: what it denies for real."""
        folder.mkdir(parents=True)
        self._program(folder, "", links)
        if override_link and override_entries and egress is not None and self.denies_connections:
            conf = folder.parents[1] / "policy_conf"
            _new_connect_program(folder / "prog_override", folder / "link_override", conf, egress)
        elif override_link:
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
