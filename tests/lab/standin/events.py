# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Events: what the kernel puts into an agent's ring, and the JSON that the agent makes of it (as v1.7 exports it)."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay import filters
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.records import Argument, FilePath, Hook, ReadError, Socket

Json = dict[str, Any]
KEYS = {"kprobe": "process_kprobe", "tracepoint": "process_tracepoint", "lsm": "process_lsm", "uprobe": "process_uprobe"}
_UNSET_UID = 4294967295
# Inode numbers of a host's first namespaces; a container has others.
HOST_NAMESPACES = {
    "uts": 4026531838, "ipc": 4026531839, "mnt": 4026531841, "pid": 4026531836, "pid_for_children": 4026531836,
    "net": 4026531840, "time": 4026531834, "time_for_children": 4026531834, "cgroup": 4026531835, "user": 4026531837,
}  # fmt: skip
_SHARED_NAMESPACES = frozenset(["time", "time_for_children", "user"])
_FILE_MEMBERS = {"file": "file_arg", "fd": "file_arg", "kiocb": "file_arg", "linux_binprm": "linux_binprm_arg"}
_NUMBER_MEMBERS = {
    **dict.fromkeys(("int", "int32", "sint32", "int16", "sint16", "int8", "sint8"), "int_arg"),
    **dict.fromkeys(("uint32", "uint16", "uint8"), "uint_arg"),
    **dict.fromkeys(("int64", "sint64", "long"), "long_arg"),
}


def namespaces(container: bool) -> dict[str, tuple[int, bool]]:
    """Kind of namespace to (inode number, is the host's) for a process."""
    shared = HOST_NAMESPACES if not container else _SHARED_NAMESPACES
    return {kind: (number, True) if kind in shared else (number + 5000, False) for kind, number in HOST_NAMESPACES.items()}


def argument(arg: Argument) -> Json:
    """One argument as its KprobeArgument."""
    member = {**_value(arg)}
    if arg.declared.label:
        member["label"] = arg.declared.label
    return member


def _value(arg: Argument) -> Json:
    value, type_ = arg.value, arg.declared.type
    if isinstance(value, ReadError):
        return {"error_arg": {"Message": value.message}}
    if isinstance(value, FilePath):
        return {_FILE_MEMBERS.get(type_, "path_arg"): {"path": value.path, "permission": value.permission}}
    if isinstance(value, Socket):
        if type_ == "sockaddr":
            return {"sockaddr_arg": {"family": value.family, "addr": value.saddr, "port": value.sport}}
        shown = {"family": value.family, "type": value.type, "protocol": value.protocol, "state": value.state}
        shown |= {"saddr": value.saddr, "daddr": value.daddr}
        ports = {"sport": value.sport, "dport": value.dport}
        return {"sock_arg": {name: one for name, one in {**shown, **ports}.items() if one}}
    if isinstance(value, int):
        if type_ == "syscall64":
            return {"syscall_id": {"id": value, "abi": "x64"}}
        member = _NUMBER_MEMBERS.get(type_, "size_arg")
        if member in ("size_arg", "long_arg"):
            return {member: str(value & (1 << 64) - 1 if member == "size_arg" else value)}
        bits = filters.INTEGERS[type_][0]
        low = value & (1 << bits) - 1
        return {member: low - (1 << bits) if member == "int_arg" and low >> (bits - 1) else low}
    if isinstance(value, str):
        return {"string_arg": value}
    return {"bytes_arg": base64.b64encode(value).decode() if isinstance(value, bytes) else ""}


def place(hook: Hook) -> Json:
    """A hook as the members of an event that name it."""
    if hook.kind == "tracepoint":
        subsystem, _unused, event = hook.name.partition("/")
        return {"subsys": subsystem, "event": event}
    if hook.kind == "uprobe":
        path, _unused, symbol = hook.name.rpartition(":")
        return {"path": path, "symbol": symbol}
    is_syscall = hook.kind == "kprobe" and hook.name.startswith("sys_")
    return {"function_name": f"__x64_{hook.name}" if is_syscall else hook.name}


def metric_label(key: str, body: Mapping[str, Any]) -> str:
    """The label ``hook`` of the metric policy_events_total."""
    if key == "process_tracepoint":
        return f"tracepoint:{body['subsys']}/{body['event']}"
    if key == "process_uprobe":
        return f"uprobe:{body['path']}/{body['symbol']}"
    return f"{key.removeprefix('process_')}:{body['function_name']}"


def timestamp(nanoseconds: int) -> str:
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest:09d}Z"


class Renderer:
    """Makes exported events out of kernel records."""

    def __init__(self, node: str, with_namespaces: bool) -> None:
        self._node = node
        self._with_namespaces = with_namespaces

    def render(self, record: Mapping[str, Any]) -> Json:
        raw = record["process"]
        process = self._process(raw["binary"], raw["pid"], raw["start"], raw)
        process["parent_exec_id"] = self._exec_id(raw["parent_pid"], raw["start"] - 1_000_000_000)
        parent = self._process(raw["parent"], raw["parent_pid"], raw["start"] - 1_000_000_000, {})
        body = {"process": process, "parent": parent, **record["body"]}
        when = timestamp(record["time"])
        if record["key"] == "process_exit":
            body["time"] = when
        return {record["key"]: body, "node_name": self._node, "time": when}

    def _exec_id(self, pid: int, start: int) -> str:
        return base64.b64encode(f"{self._node}:{start}:{pid}".encode()).decode()

    def _process(self, binary: str, pid: int, start: int, raw: Mapping[str, Any]) -> Json:
        shown: Json = {"exec_id": self._exec_id(pid, start), "pid": pid, "uid": 0, "cwd": "/", "binary": binary}
        if raw.get("arguments"):
            shown["arguments"] = raw["arguments"]
        shown |= {"flags": "execve rootcwd clone", "start_time": timestamp(start), "auid": _UNSET_UID, "refcnt": 1}
        shown |= {"tid": raw.get("tid", pid), "in_init_tree": bool(raw.get("container"))}
        if raw.get("pod"):
            shown |= {"pod": raw["pod"], "docker": "0123456789abcdef0123456789abcde"}
        elif raw.get("container"):
            shown["docker"] = "0123456789abcdef0123456789abcde"
        if self._with_namespaces:
            here = namespaces(bool(raw.get("container")))
            shown["ns"] = {kind: {"inum": number, **({"is_host": True} if host else {})} for kind, (number, host) in here.items()}
        return shown


def pod(raw: Mapping[str, Any], labels: Mapping[str, str], container: str, image: str) -> Json:
    """The member ``pod`` of a process."""
    shown = {"id": "containerd://0123456789abcdef", "name": container, "image": {"id": f"{image}@sha256:00", "name": image}}
    return {**raw, "uid": "00000000-0000-4000-8000-000000000000", "container": {**shown, "pid": 1}, "pod_labels": dict(labels)}


def action(names: Sequence[str]) -> str:
    """What an event shows of the actions of one side: the last that ran (measured)."""
    return f"KPROBE_ACTION_{(names or ('Post',))[-1].upper()}"
