# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""What a process attempts, as the calls of hooks that a kernel would make, in order.

A call's values are by argument number of the hooked function (of a tracepoint: the field's number), in the widest form;
``resolved`` holds what a policy may reach through an argument. A denied call ends the act; a kill does not, since the
signal is delivered when the system call returns.
"""

from __future__ import annotations

import ipaddress
import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.records import FilePath, Hook, Socket, Value

from .known import SYSCALL_NUMBERS

READ, WRITE = 4, 2  # MAY_READ and MAY_WRITE of the kernel's permission masks
_AT_FDCWD, _READING_MODULE, _PROT_RW, _MAP_SHARED = -100, 2, 3, 1
_HASH_LINK = "file.f_path.dentry.d_hash.pprev"


class UnknownAct(ValueError):
    """No such act, or not with these arguments."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of one hook. ``raw_values`` is what a raw tracepoint sees instead."""

    hook: Hook
    values: Mapping[int, Value]
    resolved: Mapping[str, Value] = field(default_factory=dict)
    raw_values: Mapping[int, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Executed:
    """At this point of an act a new program replaces the process's."""

    binary: str


Step = Call | Executed


def _function(name: str, *values: Value) -> Call:
    return Call(Hook("kprobe", name), dict(enumerate(values)))


def _security(name: str, *values: Value) -> Iterator[Call]:
    """A security_* function and then the LSM hook that it calls with the same arguments."""
    yield _function(f"security_{name}", *values)
    yield Call(Hook("lsm", name), dict(enumerate(values)))


def _syscall(name: str, *values: Value) -> Iterator[Call]:
    yield _raw_syscall(SYSCALL_NUMBERS[name], *values)
    yield from _named_syscall(name, *values)


def _raw_syscall(number: int, *values: Value) -> Call:
    fields = {4: number, **{5 + index: value for index, value in enumerate(values)}}
    return Call(Hook("tracepoint", "raw_syscalls/sys_enter"), fields, raw_values={1: number})


def _named_syscall(name: str, *values: Value) -> Iterator[Call]:
    fields = {4: SYSCALL_NUMBERS[name], **{5 + index: value for index, value in enumerate(values)}}
    yield Call(Hook("tracepoint", f"syscalls/sys_enter_{name}"), fields)
    yield _function(f"sys_{name}", *values)


def _file(path: str) -> FilePath:
    return FilePath(path, "-rw-r--r--")


def _directory(path: str) -> FilePath:
    return FilePath(posixpath.dirname(path) or "/", "drwxr-xr-x")


def _open(path: str) -> Iterator[Step]:
    yield from _syscall("openat", _AT_FDCWD, path, 0, 0)
    yield from _security("file_open", _file(path))
    yield _function("fd_install", 3, _file(path))


def _read(path: str) -> Iterator[Step]:
    yield from _open(path)
    yield from _syscall("read", 3, 0, 4096)
    yield from _security("file_permission", _file(path), READ)


def _write(path: str) -> Iterator[Step]:
    yield from _open(path)
    yield from _syscall("write", 3, 0, 4096)
    yield from _security("file_permission", _file(path), WRITE)


def _map(path: str) -> Iterator[Step]:
    yield from _open(path)
    yield from _syscall("mmap", 0, 4096, _PROT_RW, _MAP_SHARED, 3, 0)
    yield _function("security_mmap_file", _file(path), _PROT_RW, _MAP_SHARED)
    yield Call(Hook("lsm", "mmap_file"), {0: _file(path), 1: _PROT_RW, 2: _PROT_RW, 3: _MAP_SHARED})


def _execute(path: str, hashed: int) -> Iterator[Step]:
    program = FilePath(path, "-rwxr-xr-x")
    yield from _syscall("execve", path)
    yield from _security("file_open", program)
    yield from _security("bprm_creds_for_exec", program)
    yield Call(Hook("kprobe", "security_bprm_check"), {0: program}, {_HASH_LINK: hashed})
    yield Call(Hook("lsm", "bprm_check_security"), {0: program}, {_HASH_LINK: hashed})
    yield from _security("bprm_committing_creds", program)
    yield Executed(path)
    yield Call(Hook("tracepoint", "sched/sched_process_exec"), {5: path})


def _exec(path: str) -> Iterator[Step]:
    return _execute(path, 1 << 40)


def _exec_memory(name: str = "program") -> Iterator[Step]:
    return _execute(f"/memfd:{name}", 0)


def _connect(address: str, port: str) -> Iterator[Step]:
    family = "AF_INET6" if ipaddress.ip_address(address).version == 6 else "AF_INET"
    stream = Socket(family=family, type="SOCK_STREAM", protocol="IPPROTO_TCP")
    there = Socket(family=family, saddr=address, sport=int(port))
    here = "::1" if family == "AF_INET6" else "10.0.0.2"
    opened = Socket(family, "SOCK_STREAM", "IPPROTO_TCP", "TCP_SYN_SENT", here, address, 40000, int(port))
    yield from _syscall("connect", 3, there, 16)
    yield from _security("socket_connect", stream, there, 16)
    yield _function("tcp_connect", opened)


def _load_module(path: str = "/lib/modules/extra.ko") -> Iterator[Step]:
    yield from _syscall("finit_module", 3, "", 0)
    yield from _security("kernel_read_file", _file(path), _READING_MODULE, 1)
    yield _function("do_init_module")


def _request_module(name: str) -> Iterator[Step]:
    yield from _security("kernel_module_request", name)


def _truncate(path: str) -> Iterator[Step]:
    yield from _syscall("truncate", path, 0)
    yield from _security("path_truncate", _file(path))


def _rename(old: str, new: str) -> Iterator[Step]:
    yield from _syscall("renameat2", _AT_FDCWD, old, _AT_FDCWD, new, 0)
    yield from _security("path_rename", _directory(old), _file(old), _directory(new), _file(new), 0)
    yield from _security("inode_rename", 0, _file(old), 0, _file(new))


def _link(old: str, new: str) -> Iterator[Step]:
    yield from _syscall("linkat", _AT_FDCWD, old, _AT_FDCWD, new, 0)
    yield from _security("path_link", _file(old), _directory(new), _file(new))


def _entry(syscall: str, hook: str) -> Callable[[str], Iterator[Step]]:
    """Making or removing one entry of a directory."""

    def act(path: str) -> Iterator[Step]:
        yield from _syscall(syscall, _AT_FDCWD, path, 0)
        yield from _security(f"path_{hook}", _directory(path), _file(path), 0)
        yield from _security(f"inode_{hook}", 0, _file(path))

    return act


def _call(binary: str, symbol: str, *numbers: str) -> Iterator[Step]:
    yield Call(Hook("uprobe", f"{binary}:{symbol}"), {index: int(number) for index, number in enumerate(numbers)})


def _any_syscall(number: str, *numbers: str) -> Iterator[Step]:
    values = [int(one) for one in numbers]
    name = next((name for name, known in SYSCALL_NUMBERS.items() if known == int(number)), None)
    yield _raw_syscall(int(number), *values)
    if name is not None:
        yield from _named_syscall(name, *values)


ACTS: Mapping[str, Callable[..., Iterator[Step]]] = {
    "open": _open,
    "read": _read,
    "write": _write,
    "mmap-write": _map,
    "exec": _exec,
    "exec-memory": _exec_memory,
    "connect": _connect,
    "load-module": _load_module,
    "request-module": _request_module,
    "truncate": _truncate,
    "rename": _rename,
    "link": _link,
    "unlink": _entry("unlinkat", "unlink"),
    "rmdir": _entry("unlinkat", "rmdir"),
    "mkdir": _entry("mkdirat", "mkdir"),
    "mknod": _entry("mknodat", "mknod"),
    "symlink": _entry("symlinkat", "symlink"),
    "call": _call,
    "raw-syscall": _any_syscall,
}


@lru_cache(maxsize=4096)
def steps(*words: str) -> Sequence[Step]:
    """The calls of an act such as ``"open", "/etc/shadow"``. Raises UnknownAct."""
    act = ACTS.get(words[0]) if words else None
    if act is None:
        raise UnknownAct(f"no act {' '.join(words)!r}; known: {', '.join(ACTS)}")
    try:
        return tuple(act(*words[1:]))
    except (TypeError, ValueError) as error:
        raise UnknownAct(f"{' '.join(words)}: {error}") from None
