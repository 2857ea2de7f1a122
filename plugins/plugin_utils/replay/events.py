# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Exported JSON events: decoded as far as a replay needs them, and turned into invocations.

``Event`` is one line as msgspec reads it: identity and names are decoded, the bulk (arguments, namespaces, pod) stays
raw JSON until somebody asks. Facts about the JSON come from the agent's v1.7 exporter: 64-bit integers are text, bytes are
base64, empty fields are left out, arguments stand in the order of the recording policy without their function index.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec

from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.prototypes import by_prototype
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.records import (
    Argument,
    Declared,
    FilePath,
    Hook,
    Invocation,
    Opaque,
    Pod,
    Process,
    ReadError,
    Socket,
    Value,
    call_context,
    hook_name,
)

Declarations = Mapping[Hook, tuple[Sequence[Declared], Sequence[Declared]]]
_Raw = msgspec.Raw
NOTHING = _Raw()
_UNSET = msgspec.UNSET
_Unset = msgspec.UnsetType
_NOTHING_GRANTED: Mapping[Hook, frozenset[str]] = {}


class ProcessRecord(msgspec.Struct, gc=False):
    """``process`` of an event. Data of the last exec, not of the moment of the hook."""

    exec_id: str = ""
    pid: int = 0
    tid: int = 0
    binary: str = ""
    flags: str = ""
    docker: str = ""
    pod: _Raw = NOTHING
    ns: _Raw = NOTHING


class ParentRecord(msgspec.Struct, gc=False):
    """``parent`` of an event."""

    binary: str = ""


class Body(msgspec.Struct, gc=False, rename={"returned": "return", "usdt": "name"}):
    """What the events of all hook kinds hold; each kind fills those that name its hook."""

    process: ProcessRecord = msgspec.field(default_factory=ProcessRecord)
    parent: ParentRecord = msgspec.field(default_factory=ParentRecord)
    policy_name: str = ""
    function_name: str = ""
    subsys: str = ""
    event: str = ""
    path: str = ""
    symbol: str = ""
    offset: int | str = 0
    provider: str = ""
    usdt: str = ""
    args: _Raw = NOTHING
    data: _Raw = NOTHING
    returned: _Raw = NOTHING


class Event(msgspec.Struct, gc=False):
    """One line of an export. At most one of its members is set; those of no hook are only told apart."""

    process_kprobe: Body | _Unset = _UNSET
    process_lsm: Body | _Unset = _UNSET
    process_tracepoint: Body | _Unset = _UNSET
    process_uprobe: Body | _Unset = _UNSET
    process_usdt: Body | _Unset = _UNSET
    process_exec: _Raw = NOTHING
    process_exit: _Raw = NOTHING
    process_loader: _Raw = NOTHING
    process_throttle: _Raw = NOTHING
    rate_limit_info: _Raw = NOTHING
    test: _Raw = NOTHING
    node_name: str = ""
    node_labels: _Raw = NOTHING
    time: str = ""

    def of_no_hook(self) -> bool:
        """Whether this is an event that the agent emits beside those of hooks."""
        others = (self.process_exec, self.process_exit, self.process_loader, self.process_throttle, self.rate_limit_info, self.test)
        return any(len(bytes(one)) for one in others)


decode_line: Callable[[bytes], Event] = msgspec.json.Decoder(Event).decode
# What decoding text that is no event of the agent can raise: not JSON, of another shape, not UTF-8, nested too deep.
DECODE_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


@dataclass(frozen=True, eq=False)
class Context:
    """What is known about a recording beside its events.

    ``recorders`` maps the name of a recording policy (``policy_name`` of its events) to what it declares per hook; the
    name "" stands for every policy that is not named. ``executables`` maps exec names to executed files where they
    differ; None says that it is not known, and then nothing that compares executables can be decided. ``at_hook`` says
    that namespaces are known to have been the same at the hook. ``policies`` are the recording policies themselves.
    ``complete`` adds to an invocation what other events of the recording say of its process (see ``history``). ``seen`` are the
    hooks that it has events of; None before somebody has looked. ``granted``: by recording policy and hook, see ``Invocation``.
    """

    recorders: Mapping[str, Declarations] = field(default_factory=dict)
    executables: Mapping[str, str] | None = None
    at_hook: bool = False
    policies: tuple[Mapping[str, Any], ...] = ()
    complete: Callable[[Invocation], Invocation] | None = None
    seen: frozenset[Hook] | None = None
    granted: Mapping[str, Mapping[Hook, frozenset[str]]] = field(default_factory=dict)

    def declared(self, policy_name: str, hook: Hook) -> tuple[Sequence[Declared], Sequence[Declared]] | None:
        """The ``args`` and ``data`` of the policy that recorded an event; None when that policy is not known."""
        recorder = self.recorders.get(policy_name) or self.recorders.get("", {})
        return recorder.get(hook)


def body_of(event: Event) -> tuple[str, Body] | None:
    """The kind of hook and the body of an event; None for an event of no hook."""
    for kind, body in (
        ("kprobe", event.process_kprobe),
        ("lsm", event.process_lsm),
        ("tracepoint", event.process_tracepoint),
        ("uprobe", event.process_uprobe),
        ("usdt", event.process_usdt),
    ):
        if isinstance(body, Body):
            return kind, body
    return None


def event_hook(kind: str, body: Body) -> Hook:
    """The hook that an exported event names."""
    if kind == "tracepoint":
        return Hook(kind, f"{body.subsys}/{body.event}")
    if kind == "uprobe":
        return Hook(kind, f"{body.path}:{body.symbol or f'{_integer(body.offset):#x}'}")
    if kind == "usdt":
        return Hook(kind, f"{body.path}:{body.provider}:{body.usdt}")
    return Hook(kind, hook_name(body.function_name) if kind == "kprobe" else body.function_name)


def invocation(
    kind: str, body: Body, context: Context, time: str = "", source: tuple[str, int] = ("", 0), node_labels: bytes = b""
) -> Invocation:
    """An event as one call of its hook. Raises one of DECODE_ERRORS when its raw parts are of another shape."""
    hook = event_hook(kind, body)
    raw_args, raw_data = _values(body.args), _values(body.data)
    known = context.declared(body.policy_name, hook)
    args, data = known if known is not None else _undeclared(hook, raw_args, raw_data)
    recorded_args, recorded_data = _arguments(args, raw_args), _arguments(data, raw_data)
    returned = bytes(body.returned)
    found = Invocation(
        hook=hook,
        process=_process(body, context, _recorded_executable((*recorded_args, *recorded_data))),
        args=recorded_args,
        data=recorded_data,
        returned=_value(_member_decoder(returned)) if returned not in (b"", b"{}") else None,
        time=time,
        source=source,
        node_labels=_labels_decoder(node_labels) if node_labels else None,
        granted=context.granted.get(body.policy_name, _NOTHING_GRANTED).get(hook, frozenset()),
    )
    if context.complete is None:
        return found
    try:
        return context.complete(found)
    except ValueError as error:
        raise msgspec.ValidationError(f"{error} - at `$.time`") from None


def decode(line: bytes, context: Context, source: tuple[str, int] = ("", 0)) -> Invocation | None:
    """One exported line as an invocation; None for events of no hook. Raises one of DECODE_ERRORS."""
    event = decode_line(line)
    found = body_of(event)
    return None if found is None else invocation(*found, context, event.time, source, bytes(event.node_labels))


# --- values ---------------------------------------------------------------------------------------------------------


class _Path(msgspec.Struct):
    path: str = ""
    permission: str = ""


class _Sock(msgspec.Struct):
    family: str = ""
    type: str = ""
    protocol: str = ""
    state: str = ""
    saddr: str = ""
    daddr: str = ""
    sport: int = 0
    dport: int = 0


class _Sockaddr(msgspec.Struct):
    family: str = ""
    addr: str = ""
    port: int = 0


class _Syscall(msgspec.Struct):
    id: int = 0
    abi: str = ""


class _Error(msgspec.Struct):
    message: str = ""
    Message: str = ""


class _SockaddrUn(msgspec.Struct):
    family: str = ""
    path: str = ""


class _Capability(msgspec.Struct):
    value: int = 0


class _Truncated(msgspec.Struct):
    bytes_arg: bytes = b""


_Members = Mapping[str, msgspec.Raw]
_member_decoder: Callable[[bytes], _Members] = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_list_decoder: Callable[[bytes], Sequence[_Members]] = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode
_labels_decoder: Callable[[bytes], Mapping[str, str]] = msgspec.json.Decoder(dict[str, str]).decode
_integer_decoder: Callable[[bytes | msgspec.Raw], int] = msgspec.json.Decoder(int, strict=False).decode
# What char_buf holds instead of content when the kernel could not read it: the same text may not be compared (R2.3.25).
_UNREAD = frozenset([b"CharBufErrorPageFault", b"CharBufErrorTooLarge", b"CharBufErrorENOMEM"])
_MAX_CHAR_BUF = 4095
_ABI_32_BIT = 1 << 31


def _integer(value: int | str) -> int:
    return msgspec.convert(value, int, strict=False)


def _of(type_: Any, then: Callable[[Any], Value]) -> Callable[[msgspec.Raw], Value]:
    decode = msgspec.json.Decoder(type_, strict=False).decode
    return lambda raw: then(decode(raw))


def _buffer(member: str, value: bytes) -> Value:
    return Opaque(member) if value in _UNREAD or len(value) > _MAX_CHAR_BUF else value


_file = _of(_Path, lambda one: FilePath(one.path, one.permission))
_socket = _of(_Sock, lambda one: Socket(one.family, one.type, one.protocol, one.state, one.saddr, one.daddr, one.sport, one.dport))
_capabilities = _of(Annotated[str, msgspec.Meta(pattern="^[0-9a-fA-F]{1,16}$")], lambda text: int(text, 16))
_READERS: Mapping[str, Callable[[msgspec.Raw], Value]] = {
    **dict.fromkeys(("int_arg", "uint_arg", "long_arg", "size_arg"), _integer_decoder),
    "string_arg": _of(str, lambda text: text),
    "bytes_arg": _of(bytes, functools.partial(_buffer, "bytes_arg")),
    "truncated_bytes_arg": _of(_Truncated, lambda one: _buffer("truncated_bytes_arg", one.bytes_arg)),
    **dict.fromkeys(("file_arg", "path_arg", "linux_binprm_arg"), _file),
    **dict.fromkeys(("sock_arg", "skb_arg"), _socket),
    "sockaddr_arg": _of(_Sockaddr, lambda one: Socket(family=one.family, saddr=one.addr, sport=one.port)),
    "sockaddrun_arg": _of(_SockaddrUn, lambda one: Socket(family=one.family, saddr=one.path)),
    **dict.fromkeys(("kernel_cap_t_arg", "cap_inheritable_arg", "cap_permitted_arg", "cap_effective_arg"), _capabilities),
    "capability_arg": _of(_Capability, lambda one: one.value),
    # R5.3: the kernel numbers the calls of a 32-bit ABI with bit 31 set.
    "syscall_id": _of(_Syscall, lambda one: one.id | (_ABI_32_BIT if one.abi in ("i386", "arm32") else 0)),
    "error_arg": _of(_Error, lambda one: ReadError(one.message or one.Message)),
}


def _values(raw: msgspec.Raw) -> Sequence[_Members]:
    content = bytes(raw)
    return _list_decoder(content) if content else []


def _value(members: _Members) -> Value:
    for member, value in members.items():
        if member != "label":
            reader = _READERS.get(member)
            return Opaque(member) if reader is None else reader(value)
    return Opaque("")


# --- arguments ------------------------------------------------------------------------------------------------------


_LABEL = re.compile(r'"(?:a([0-4]):(\w+)|(exe))"').fullmatch


def _undeclared(hook: Hook, args: Sequence[_Members], data: Sequence[_Members]) -> tuple[tuple[Declared, ...], tuple[Declared, ...]]:
    """What a recorder that is not at hand must have declared: as its labels say, else as the function's prototype does."""
    context = call_context(hook.name) if hook.kind == "kprobe" else ""
    labelled = _labelled(args, context)
    return labelled or by_prototype(hook, [next((one for one in each if one != "label"), "") for each in args]), _labelled(data, "")


def _labelled(raw: Sequence[_Members], context: str) -> tuple[Declared, ...]:
    """What a recorder's labels say: ``a<index>:<type>``, and ``exe``.

    One argument without such a label makes all unknown.
    """
    found = []
    for members in raw:
        match = _LABEL(bytes(members.get("label", b"")).decode("utf-8", "replace"))
        if match is None:
            return ()
        index, type_, exe = match.groups()
        found.append(Declared(0, "file", "mm.exe_file", "current_task", exe) if exe else Declared(int(index), type_, context=context))
    return tuple(found)


def _arguments(declared: Sequence[Declared], raw: Sequence[_Members]) -> tuple[Argument, ...]:
    """The values beside their declarations; nothing when they cannot be told apart.

    ``nop`` is never printed. An array of a classic tracepoint (``const_buf``, ``auto``) prints an entry per element.
    """
    printed = [one for one in declared if one.type != "nop"]
    more = len(raw) - len(printed)
    if more > 0:
        arrays = [place for place, one in enumerate(printed) if one.type in ("const_buf", "auto")]
        if len(arrays) != 1 or any("size_arg" not in one for one in raw[arrays[0] : arrays[0] + more + 1]):
            return ()
        (place,) = arrays
        values: list[Value] = [*map(_value, raw[:place]), Opaque("const_buf"), *map(_value, raw[place + more + 1 :])]
    elif more < 0:
        return ()
    else:
        values = [_value(one) for one in raw]
    return tuple(Argument(one, value) for one, value in zip(printed, values, strict=True))


def _recorded_executable(arguments: Sequence[Argument]) -> str | None:
    """The executed file, where the recorder declared it as an argument labelled ``exe`` (``mm.exe_file`` of the task)."""
    return next((one.value.path for one in arguments if one.declared.label == "exe" and isinstance(one.value, FilePath)), None)


# --- processes ------------------------------------------------------------------------------------------------------


class _Namespace(msgspec.Struct):
    inum: int = 0
    is_host: bool = False


class _Image(msgspec.Struct):
    id: str = ""


class _Container(msgspec.Struct):
    name: str = ""
    pid: int | None = None
    image: _Image = msgspec.field(default_factory=_Image)


class _Pod(msgspec.Struct):
    namespace: str = ""
    pod_labels: dict[str, str] = msgspec.field(default_factory=dict)
    container: _Container = msgspec.field(default_factory=_Container)


@functools.lru_cache(1024)
def _namespaces(raw: bytes) -> Mapping[str, tuple[int, bool]]:
    if not raw:
        return {}
    found = msgspec.json.decode(raw, type=dict[str, _Namespace])
    return {kind: (one.inum, one.is_host) for kind, one in found.items() if one.inum}


@functools.lru_cache(1024)
def _pod(raw: bytes) -> tuple[Pod, int | None] | None:
    """The pod, and the process's pid inside its container."""
    if raw in (b"", b"{}"):
        return None
    one = msgspec.json.decode(raw, type=_Pod)
    image = one.container.image.id
    repo = image.split("@")[0] if image.count("@") == 1 else ""
    return Pod(one.namespace, one.pod_labels, one.container.name, repo), one.container.pid


def _process(body: Body, context: Context, executable: str | None) -> Process:
    raw = body.process
    # A forked child repeats its parent's "execve"; only an exec after the fork shows "clone" beside it (measured).
    executed = {"execve", "clone"} <= set(raw.flags.split())
    pod, namespace_pid = _pod(bytes(raw.pod)) or (None, None)

    def executed_file(binary: str) -> str | None:
        return None if context.executables is None or not binary else context.executables.get(binary, binary)

    return Process(
        binary=raw.binary,
        executable=executable or executed_file(raw.binary),
        parent_executable=executed_file(body.parent.binary) if executed else None,  # R2.2.9: else another's, or nobody's
        pid=raw.pid,
        namespace_pid=namespace_pid,
        executed=executed,
        current=context.at_hook,
        namespaces=_namespaces(bytes(raw.ns)),
        pod=pod,
        in_container=True if pod else None if raw.docker else False,
        exec_id=raw.exec_id,
        thread=raw.tid,
    )


# --- what tells events apart ----------------------------------------------------------------------------------------

# Where an invocation's attributes come from: members of ``Body``. An attribute that is not named here is the same for all
# events of one hook and one recorder.
_SOURCES: Mapping[str, tuple[str, ...]] = {
    "args": ("args",),
    "data": ("data",),
    "returned": ("returned",),
    "binary": ("process.binary",),
    "executable": ("process.binary",),
    "parent_executable": ("parent.binary", "process.flags"),
    "pid": ("process.pid",),
    "namespace_pid": ("process.pod",),
    "executed": ("process.flags",),
    "namespaces": ("process.ns",),
    "pod": ("process.pod",),
    "in_container": ("process.pod", "process.docker"),
    "exec_id": ("process.exec_id",),
    "thread": ("process.tid",),
}
# What the rest of a recording says of a process. Of these, what it has at the moment of the call is of no two events the same.
_OF_PROCESS = ("executable", "parent_executable", "ancestors", "ancestor_pids", "executed", "bare_fork")
_OF_MOMENT = ("capabilities", "current_capabilities", "current_namespaces", "kept", "ancestors_alive")
RAW = frozenset(["args", "data", "returned", "process.pod", "process.ns"])


def sources(known: tuple[Sequence[Declared], Sequence[Declared]] | None, completed: bool) -> Mapping[str, tuple[str, ...]]:
    """What an attribute of Invocation or Process is made of, for events with these declarations: members of ``Body``, ``time``.

    ``completed``: see ``Context.complete``.
    """
    found = dict(_SOURCES)
    if known is None or any(one.label == "exe" for one in (*known[0], *known[1])):
        found["executable"] = ("process.binary", "args", "data")
    if completed:
        for name in (*_OF_PROCESS, *_OF_MOMENT):
            found[name] = (*found.get(name, ()), "process.exec_id", *(("time",) if name in _OF_MOMENT else ()))
    return found


def identity(event: Event) -> tuple[str, Body, tuple[str | bytes, ...]] | None:
    """The kind of hook, the body, and what names the hook, its recorder and its node's labels; None for an event of no hook."""
    found = body_of(event)
    if found is None:
        return None
    kind, one = found
    names = (
        bytes(event.node_labels),
        one.function_name,
        one.subsys,
        one.event,
        one.path,
        one.symbol,
        str(one.offset),
        one.provider,
        one.usdt,
    )
    return kind, one, (kind, one.policy_name, *names)


@functools.lru_cache(4096)
def shown(args: bytes) -> str:
    """Arguments as a person would name them: paths, texts, numbers, ``family address:port`` of the peer."""
    try:
        return ", ".join(_shown(_value(one)) for one in _list_decoder(args))
    except DECODE_ERRORS:
        return ""


def _shown(value: Value) -> str:
    if isinstance(value, FilePath):
        return value.path
    if isinstance(value, Socket):
        return f"{value.daddr or value.saddr}:{value.dport or value.sport}"
    if isinstance(value, ReadError):
        return value.message
    if isinstance(value, Opaque):
        return value.member
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
