# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""What happened: one call of one hook, as a recording (or a running kernel) tells it.

Facts about the agent's JSON come from its v1.7 exporter: values stand in the order of the recording policy's
``args``, without their function index; process data is that of the last exec, not of the moment of the hook.
"""

from __future__ import annotations

import base64
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
    thread: int = 0
    ancestor_pids: tuple[int, ...] | None = None
    current_namespaces: bool = False
    current_capabilities: bool = False


@dataclass(frozen=True, slots=True)
class Invocation:
    """One call of one hook. ``source`` is where it was read from: file and line. ``node_labels``: None when unknown."""

    hook: Hook
    process: Process
    args: Sequence[Argument] = ()
    data: Sequence[Argument] = ()
    returned: Value | None = None
    time: str = ""
    source: tuple[str, int] = ("", 0)
    node_labels: Mapping[str, str] | None = None


def hook_name(call: str) -> str:
    """A kprobe's function without the architecture's prefix of system calls."""
    for prefix in _SYSCALL_PREFIXES:
        if call.startswith(prefix + "sys_"):
            return call[len(prefix) :]
    return call


def event_hook(kind: str, body: Mapping[str, Any]) -> Hook:
    """The hook that an exported event names."""
    if kind == "tracepoint":
        return Hook(kind, f"{body.get('subsys', '')}/{body.get('event', '')}")
    if kind == "uprobe":
        place = body.get("symbol") or f"{int(body.get('offset', 0)):#x}"
        return Hook(kind, f"{body.get('path', '')}:{place}")
    if kind == "usdt":
        return Hook(kind, f"{body.get('path', '')}:{body.get('provider', '')}:{body.get('name', '')}")
    name = str(body.get("function_name", ""))
    return Hook(kind, hook_name(name) if kind == "kprobe" else name)


def decode(
    event: Mapping[str, Any],
    recorder: Mapping[Hook, tuple[Sequence[Declared], Sequence[Declared]]],
    executables: Mapping[str, str] | None,
    at_hook: bool,
    source: tuple[str, int],
) -> Invocation | None:
    """One exported JSON event as an invocation; None for events of no hook (exec, exit, loader, rate limit).

    ``recorder`` gives the ``args`` and ``data`` that the recording policy declared per hook. ``executables`` maps
    exec names to executed files where they differ; None says that it is not known, and then nothing that compares
    executables can be decided. ``at_hook`` says that namespaces are known to have been the same at the hook.
    """
    key = next((one for one in EVENT_KINDS if one in event), None)
    if key is None:
        return None
    kind, body = EVENT_KINDS[key], event[key]
    hook = event_hook(kind, body)
    args, data = recorder.get(hook, ((), ()))
    raw = body.get("return")
    recorded_args, recorded_data = _arguments(args, body.get("args", ())), _arguments(data, body.get("data", ()))
    return Invocation(
        hook=hook,
        process=_process(body, executables, at_hook, _recorded_executable((*recorded_args, *recorded_data))),
        args=recorded_args,
        data=recorded_data,
        returned=_value(raw) if raw else None,
        time=str(event.get("time", "")),
        source=source,
        node_labels=event.get("node_labels"),
    )


def _arguments(declared: Sequence[Declared], raw: Sequence[Mapping[str, Any]]) -> tuple[Argument, ...]:
    printed = [one for one in declared if one.type != "nop"]
    if len(printed) != len(raw):
        return ()
    return tuple(Argument(one, _value(value)) for one, value in zip(printed, raw, strict=True))


def _value(raw: Mapping[str, Any]) -> Value:
    for member, value in raw.items():
        if member == "label":
            continue
        if member in ("int_arg", "uint_arg"):
            return int(value)
        if member in ("long_arg", "size_arg"):
            return int(value)
        if member == "string_arg":
            return str(value)
        if member == "bytes_arg":
            return base64.b64decode(value)
        if member in ("file_arg", "path_arg", "linux_binprm_arg"):
            return FilePath(value.get("path", ""), value.get("permission", ""))
        if member in ("sock_arg", "skb_arg"):
            return Socket(
                family=value.get("family", ""),
                type=value.get("type", ""),
                protocol=str(value.get("protocol", "")),
                state=value.get("state", ""),
                saddr=value.get("saddr", ""),
                daddr=value.get("daddr", ""),
                sport=int(value.get("sport", 0)),
                dport=int(value.get("dport", 0)),
            )
        if member == "sockaddrun_arg":
            return Socket(family=value.get("family", ""), saddr=value.get("path", ""))
        if member == "sockaddr_arg":
            return Socket(family=value.get("family", ""), saddr=value.get("addr", ""), sport=int(value.get("port", 0)))
        if member in ("kernel_cap_t_arg", "cap_inheritable_arg", "cap_permitted_arg", "cap_effective_arg"):
            return int(value, 16)
        if member == "syscall_id":
            return int(value.get("id", 0))
        if member == "error_arg":
            return ReadError(str(value.get("message", value.get("Message", ""))))
        return Opaque(member)
    return Opaque("")


def _recorded_executable(arguments: Sequence[Argument]) -> str | None:
    """The executed file, where the recorder declared it as an argument labelled ``exe`` (``mm.exe_file`` of the task)."""
    return next((one.value.path for one in arguments if one.declared.label == "exe" and isinstance(one.value, FilePath)), None)


def _process(body: Mapping[str, Any], executables: Mapping[str, str] | None, at_hook: bool, executable: str | None) -> Process:
    raw, parent = body.get("process", {}), body.get("parent", {})
    pod = raw.get("pod")
    container = pod.get("container", {}) if pod else {}
    image = container.get("image", {}).get("id", "")

    def executed_file(binary: str) -> str | None:
        return None if executables is None or not binary else executables.get(binary, binary)

    return Process(
        binary=raw.get("binary", ""),
        executable=executable or executed_file(raw.get("binary", "")),
        parent_executable=executed_file(parent.get("binary", "")),
        pid=int(raw.get("pid", 0)),
        namespace_pid=container.get("pid"),
        # A forked child repeats its parent's "execve"; only an exec after the fork shows "clone" beside it (measured).
        executed={"execve", "clone"} <= set(raw.get("flags", "").split()),
        current=at_hook,
        namespaces={kind: (int(ns["inum"]), bool(ns.get("is_host"))) for kind, ns in raw.get("ns", {}).items() if ns.get("inum")},
        pod=Pod(
            namespace=pod.get("namespace", ""),
            labels=pod.get("pod_labels", {}),
            container=container.get("name", ""),
            image_repo=image.split("@")[0] if image.count("@") == 1 else "",
        )
        if pod
        else None,
        in_container=True if pod else None if raw.get("docker") else False,
        exec_id=raw.get("exec_id", ""),
        thread=int(raw.get("tid", 0)),
    )


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
