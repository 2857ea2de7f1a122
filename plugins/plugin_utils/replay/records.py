# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""What happened: one call of one hook, as a recording (or a running kernel) tells it.

Facts about the agent's JSON come from its v1.7 exporter: values stand in the order of the recording policy's
``args``, without their function index; process data is that of the last exec, not of the moment of the hook.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

EVENT_KINDS: Mapping[str, str] = {
    "process_kprobe": "kprobe",
    "process_tracepoint": "tracepoint",
    "process_lsm": "lsm",
    "process_uprobe": "uprobe",
    "process_usdt": "usdt",
}
_SYSCALL_PREFIXES = ("__x64_", "__arm64_")


@dataclass(frozen=True, slots=True)
class Hook:
    """Where a program is attached. fentry and kprobe share a kind: their events cannot be told apart."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True)
class Declared:
    """One entry of a hook's ``args`` or ``data``.

    ``context`` is where the hook's arguments come from when it is not the plain function: ``syscall`` for the registers
    of a system call (R5.5), ``raw`` for a raw tracepoint. ``size_index`` is sizeArgIndex; ``read`` names what else the
    agent does to read it: ``maxData`` or ``returnCopy`` (R2.3.25).
    """

    index: int
    type: str
    resolve: str = ""
    source: str = ""
    label: str = ""
    context: str = ""
    size_index: int = 0
    read: str = ""


@dataclass(frozen=True, slots=True)
class FilePath:
    path: str
    permission: str = ""


@dataclass(frozen=True, slots=True)
class Socket:
    """Addresses as text, ports and state as the exporter prints them; empty or 0 when absent.

    ``saddr`` of a sockaddr_un is its path.
    """

    family: str = ""
    type: str = ""
    protocol: str = ""
    state: str = ""
    saddr: str = ""
    daddr: str = ""
    sport: int = 0
    dport: int = 0


@dataclass(frozen=True, slots=True)
class ReadError:
    message: str


@dataclass(frozen=True, slots=True)
class Opaque:
    """A value that no filter can compare."""

    member: str


Value = int | str | bytes | FilePath | Socket | ReadError | Opaque


@dataclass(frozen=True, slots=True)
class Argument:
    declared: Declared
    value: Value


@dataclass(frozen=True, slots=True)
class Pod:
    namespace: str
    labels: Mapping[str, str]
    container: str
    image_repo: str


@dataclass(frozen=True, slots=True)
class Process:
    """The process that hit the hook.

    ``executable`` and ``parent_executable`` are the files that were executed (``mm->exe_file``), which the JSON does
    not carry: None when unknown. ``namespaces`` maps a kind (``pid``, ``mnt``...) to (inode number, is the host's);
    ``current`` says that namespaces and capabilities were read at the hook and not at the last exec. ``bare_fork``: it has
    executed nothing since it was forked, so the agent keeps no record of its parent's file. Of ``ancestor_pids`` the
    first ``ancestors_alive`` are known to have lived at the call. ``kept`` names what
    (``capabilities``, ``namespaces``) nothing has changed since the fork, or the exec that followed it.
    """

    binary: str
    executable: str | None = None
    parent_executable: str | None = None
    ancestors: tuple[str, ...] | None = None
    pid: int = 0
    namespace_pid: int | None = None
    executed: bool = True
    namespaces: Mapping[str, tuple[int, bool]] = field(default_factory=dict)
    capabilities: Mapping[str, int] | None = None
    current: bool = False
    pod: Pod | None = None
    in_container: bool | None = None
    exec_id: str = ""
    thread: int = 0
    ancestor_pids: tuple[int, ...] | None = None
    ancestors_alive: int = 0
    current_namespaces: bool = False
    current_capabilities: bool = False
    bare_fork: bool = False
    kept: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Invocation:
    """One call of one hook. ``source`` is where it was read from: file and line. ``node_labels``: None when unknown.

    ``granted`` are the filters on processes that it has passed already, those of the policy that recorded it (see ``token``).
    """

    hook: Hook
    process: Process
    args: Sequence[Argument] = ()
    data: Sequence[Argument] = ()
    returned: Value | None = None
    time: str = ""
    source: tuple[str, int] = ("", 0)
    node_labels: Mapping[str, str] | None = None
    granted: frozenset[str] = frozenset()


def token(kind: str, raw: Mapping[str, Any]) -> str:
    """What tells one filter of a policy from others."""
    return kind + json.dumps(raw, sort_keys=True)


def hook_name(call: str) -> str:
    """A kprobe's function without the architecture's prefix of system calls."""
    for prefix in _SYSCALL_PREFIXES:
        if call.startswith(prefix + "sys_"):
            return call[len(prefix) :]
    return call


def call_context(name: str) -> str:
    """The context (see ``Declared``) of a kprobe's arguments when ``syscall`` is not set, which is true (R5.6)."""
    return "syscall" if name.startswith(("sys_", "__ia32_sys_")) else ""


def declared(raw: Iterable[Mapping[str, Any]], context: str = "") -> tuple[Declared, ...]:
    """A policy hook's ``args`` or ``data`` list. ``context``: see ``Declared``."""
    return tuple(
        Declared(
            int(one.get("index", 0)),
            str(one.get("type", "auto")),
            str(one.get("resolve", "")),
            str(one.get("source", "")),
            str(one.get("label", "")),
            "" if one.get("source") else context,
            int(one.get("sizeArgIndex", 0)),
            "maxData" if one.get("maxData") else "returnCopy" if one.get("returnCopy") else "",
        )
        for one in raw
    )
