# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""What happened: one call of one hook, as a recording (or a running kernel) tells it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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
    """One entry of a hook's ``args`` or ``data``."""

    index: int
    type: str
    resolve: str = ""
    source: str = ""
    label: str = ""


@dataclass(frozen=True, slots=True)
class FilePath:
    path: str
    permission: str = ""


@dataclass(frozen=True, slots=True)
class Socket:
    """Addresses as text, ports and state as the exporter prints them; empty or 0 when absent."""

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
    ``current`` says that namespaces and capabilities were read at the hook and not at the last exec.
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


@dataclass(frozen=True, slots=True)
class Invocation:
    """One call of one hook. ``source`` is where it was read from: file and line."""

    hook: Hook
    process: Process
    args: Sequence[Argument] = ()
    data: Sequence[Argument] = ()
    returned: Value | None = None
    time: str = ""
    source: tuple[str, int] = ("", 0)


def hook_name(call: str) -> str:
    """A kprobe's function without the architecture's prefix of system calls."""
    for prefix in _SYSCALL_PREFIXES:
        if call.startswith(prefix + "sys_"):
            return call[len(prefix) :]
    return call


def declared(raw: Iterable[Mapping[str, Any]]) -> tuple[Declared, ...]:
    """A policy hook's ``args`` or ``data`` list."""
    return tuple(
        Declared(
            int(one.get("index", 0)),
            str(one.get("type", "auto")),
            str(one.get("resolve", "")),
            str(one.get("source", "")),
            str(one.get("label", "")),
        )
        for one in raw
    )
