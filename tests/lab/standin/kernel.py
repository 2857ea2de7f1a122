# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The stand-in for one host's kernel: what is attached, what an act meets, and what agents get to hear of it.

State lies in ``<root>/run/standin-kernel``: one record per loaded policy, one ring per agent. A program is attached as
long as its link is pinned; where v1.7 pins none (LSM, raw tracepoints), as long as its pin is there and its agent lives.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.compile import (
    ENFORCING,
    CompiledHook,
    CompiledPolicy,
    Outcome,
    recorder,
)
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.filters import INTEGERS, PATH_TYPES, SOCKET_TYPES
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
)

from . import acts, events, pins, ring
from .root import Root

if TYPE_CHECKING:
    from .policy import Program

_COUNTER = {"Sigkill": "signal", "Signal": "signal", "Override": "override", "NotifyEnforcer": "notify_enforcer", "Set": "set"}
_OPERATION = {"kprobe": ring.KPROBE, "tracepoint": ring.TRACEPOINT, "uprobe": ring.UPROBE, "lsm": ring.LSM}
_ALL_CAPABILITIES, _CONTAINER_CAPABILITIES = (1 << 41) - 1, 0xA80425FB
_BAD_ADDRESS = ReadError("Bad address")
_LOOKS = 1000


@dataclass(frozen=True, slots=True)
class Caller:
    """The process that attempts an act. ``pid`` 0 stands for the one that asks; ``tid`` 0 for its first thread."""

    binary: str = "/usr/bin/cat"
    parent: str = "/usr/bin/bash"
    pid: int = 0
    tid: int = 0
    container: bool = False
    pod: Pod | None = None

    @property
    def process(self) -> int:
        return self.pid or os.getpid()

    @property
    def thread(self) -> int:
        """The key of override_tasks."""
        return self.process << 32 | (self.tid or self.process)


@dataclass
class Result:
    """How an act ended: ``allowed``, ``denied`` (with the error's name) or ``killed``.

    ``policies`` decided it. ``stale``: denied by an entry that an earlier act of this thread left behind. ``happened``:
    what was attempted took place, killed or not. ``undecided``: why a policy could not be evaluated; it then counts as
    not matching.
    """

    act: str
    result: str = "allowed"
    error: str = ""
    happened: bool = True
    stale: bool = False
    policies: list[str] = field(default_factory=list)
    undecided: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Program:
    """An attached program: the record's entry, and whether its pin has vanished (a vanished pin never comes back).

    ``inode`` is that of a uprobe's binary, to which it stays bound: a binary that was replaced is not watched (measured).
    """

    section: str
    kind: str
    name: str
    folder: str
    pins_link: bool
    overrides: bool
    pin: tuple[int, int]
    inode: int = 0
    gone: bool = False
    pin_path: str = field(init=False)

    def __post_init__(self) -> None:
        self.pin_path = f"{self.folder}/{'link' if self.pins_link else 'prog'}"


class _Load:
    """One loaded policy as the kernel sees it."""

    conf: pins.Conf
    stats: pins.Stats

    def __init__(self, tree: pins.Pins, raw: Mapping[str, Any], writer: ring.Writer) -> None:
        self.sequence: int = raw["sequence"]
        self.folder: str = raw["folder"]
        self.document: Mapping[str, Any] = raw["document"]
        self.ring: str = raw["ring"]
        self.writer = writer
        self.programs = [_Program(**{**one, "pin": tuple(one["pin"])}) for one in raw["programs"]]
        self._tree = tree
        self._place = f"{tree.directory}/{raw['directory']}/{self.folder}"
        self.tasks: dict[str, pins.Tasks | None] = {}

    @property
    def name(self) -> str:
        return str(self.document["metadata"]["name"])

    @cached_property
    def compiled(self) -> CompiledPolicy:
        return CompiledPolicy(self.document)

    @cached_property
    def declared(self) -> Mapping[Hook, tuple[Sequence[Declared], Sequence[Declared]]]:
        return recorder(self.document)

    def attached(self, program: _Program) -> bool:
        """Whether the kernel would run this program now. If so, the policy's maps are open."""
        for _unused in range(_LOOKS):
            if program.gone or (pins.identity(f"{self._place}/{program.pin_path}") != program.pin and not self._find(program)):
                break
            try:
                self._open()
            except FileNotFoundError:
                continue  # being moved or removed at this very moment
            return _inode(program) == program.inode and (program.pins_link or self.writer.alive())
        program.gone = True
        return False

    def _open(self) -> None:
        """Open maps stay what they are, whoever renames or removes their pins."""
        if self.tasks:
            return
        place = Path(self._place)
        self.conf, self.stats = self._tree.conf(place), self._tree.stats(place)
        self.tasks = {one.folder: self._tree.tasks(place / one.folder) if one.overrides else None for one in self.programs}

    def _find(self, program: _Program) -> bool:
        """Look for a pin in every agent's directory: at a restart they are renamed."""
        while True:
            names = sorted(os.listdir(self._tree.directory))
            for name in names:
                place = f"{self._tree.directory}/{name}/{self.folder}"
                if pins.identity(f"{place}/{program.pin_path}") == program.pin:
                    self._place = place
                    return True
            if names == sorted(os.listdir(self._tree.directory)):
                return False


class Kernel:
    """One host's kernel. Cheap to keep and cheap to ask: a program of many acts needs one object only."""

    def __init__(self, root: Root | str) -> None:
        self.root = root if isinstance(root, Root) else Root(root)
        self.directory = Path(self.root.path("/run/standin-kernel"))
        bpffs = self.root.path("/sys/fs/bpf")
        for path in (self.directory, Path(bpffs)):
            path.mkdir(parents=True, exist_ok=True)
        self.pins = pins.Pins(bpffs, whole_host=not self.root.prefix)
        self._changes = str(self.directory / "changes")
        self._lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        os.close(os.open(self._changes, os.O_WRONLY | os.O_CREAT, 0o600))
        self._seen = -1
        self._loads: dict[str, _Load] = {}
        self._writers: dict[str, ring.Writer] = {}
        self._hooks: dict[Hook, list[tuple[_Load, _Program]]] = {}

    def __del__(self) -> None:
        os.close(self._lock)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    # --- for agents

    def new_ring(self, size: int) -> ring.Reader:
        """The ring of one agent; whoever has one hears of programs that are executed."""
        with self._locked():
            made = ring.Reader(self.directory / f"{os.urandom(4).hex()}.ring", size)
            self._bump()
        return made

    def attach(self, document: Mapping[str, Any], path: Path, programs: Sequence[Program], reader: ring.Reader) -> int:
        """Programs whose pins stand below ``path`` (``<bpffs>/<directory>/<policy>``) take effect. Returns their number."""
        entries = []
        for program in programs:
            pin = pins.identity(f"{path}/{program.folder}/{'link' if program.pins_link else 'prog'}")
            overrides = (path / program.folder / "override_tasks").exists()
            entries.append({**asdict(program), "overrides": overrides, "pin": pin, "inode": _inode(program)})
        with self._locked():
            self._collect()
            sequence = self._bump()
            raw = {
                "sequence": sequence,
                "directory": path.parent.name,
                "folder": path.name,
                "ring": reader.path.name,
                "document": document,
                "programs": entries,
            }
            target = self.directory / f"{sequence:08d}.load"
            target.with_suffix(".new").write_text(json.dumps(raw), encoding="utf-8")
            target.with_suffix(".new").rename(target)
        return sequence

    def detach(self, sequence: int) -> None:
        with self._locked():
            (self.directory / f"{sequence:08d}.load").unlink(missing_ok=True)
            self._bump()

    def _bump(self) -> int:
        """Tell all users of this kernel that something changed; the number never repeats."""
        with open(self._changes, "ab") as file:
            file.write(b".")
        return os.stat(self._changes).st_size

    def _collect(self) -> None:
        """Forget what is attached nowhere any more, and the rings of agents that died."""
        self._refresh()
        for name, load in list(self._loads.items()):
            if not load.writer.alive() and not any(load.attached(program) for program in load.programs):
                (self.directory / name).unlink(missing_ok=True)
                self._loads.pop(name)
        used = {load.ring for load in self._loads.values()}
        for name, writer in list(self._writers.items()):
            if name not in used and not writer.alive():
                (self.directory / name).unlink(missing_ok=True)
                (self.directory / name).with_suffix(".missed").unlink(missing_ok=True)

    # --- for processes

    def act(self, *words: str, caller: Caller | None = None) -> Result:
        """Attempt one act, such as ``act("open", "/etc/shadow")``. Raises UnknownAct."""
        steps = acts.steps(*words)
        caller = caller or Caller()
        attempt = _Attempt(self, caller, Result(" ".join(words)))
        with self._locked():
            self._refresh()
            for step in steps:
                if isinstance(step, acts.Executed):
                    attempt.execute(step.binary)
                elif step.hook in self._hooks and not attempt.meet(step, self._hooks[step.hook]):
                    break
            if attempt.result.result == "killed":
                attempt.post_base(ring.EXIT, "process_exit", {"signal": "SIGKILL"})
        return attempt.result

    @property
    def listeners(self) -> list[ring.Writer]:
        return [writer for writer in self._writers.values() if writer.alive()]

    def _refresh(self) -> None:
        size = os.stat(self._changes).st_size
        if size == self._seen:
            return
        self._seen = size
        names = os.listdir(self.directory)
        rings = {name for name in names if name.endswith(".ring")}
        self._writers = {name: self._writers.get(name) or ring.Writer(self.directory / name) for name in rings}
        records = sorted(name for name in names if name.endswith(".load"))
        self._loads = {name: self._loads.get(name) or self._read(name) for name in records}
        self._hooks = {}
        for load in self._loads.values():
            for program in load.programs:
                self._hooks.setdefault(Hook(program.kind, program.name), []).append((load, program))

    def _read(self, name: str) -> _Load:
        raw = json.loads((self.directory / name).read_text(encoding="utf-8"))
        writer = self._writers.get(raw["ring"]) or ring.Writer(self.directory / raw["ring"])
        return _Load(self.pins, raw, writer)


class _Attempt:
    """One act on its way through the hooks."""

    def __init__(self, kernel: Kernel, caller: Caller, result: Result) -> None:
        self._kernel = kernel
        self._caller = caller
        self.result = result
        self._binary = caller.binary
        self._parent = caller.parent
        self._time = time.time_ns()

    @cached_property
    def _process(self) -> Process:
        mask = _CONTAINER_CAPABILITIES if self._caller.container else _ALL_CAPABILITIES
        return Process(
            binary=self._binary,
            executable=self._binary,
            parent_executable=self._parent,
            ancestors=(self._parent,),
            pid=self._caller.process,
            namespace_pid=1 if self._caller.container else self._caller.process,
            namespaces=events.namespaces(self._caller.container),
            capabilities={"effective": mask, "permitted": mask, "inheritable": 0},
            current=True,
            pod=self._caller.pod,
            in_container=self._caller.container,
        )

    def execute(self, binary: str) -> None:
        """From here on the process is another program, and every agent hears of it."""
        self._parent, self._binary = self._binary, binary
        self.__dict__.pop("_process", None)
        self.post_base(ring.EXEC, "process_exec", {})

    def post_base(self, operation: int, key: str, body: Mapping[str, Any]) -> None:
        for writer in self._kernel.listeners:
            writer.post(operation, self._record(key, body))

    def meet(self, call: acts.Call, found: Sequence[tuple[_Load, _Program]]) -> bool:
        """Run every program on one hook; False when the call is denied.

        Measured on v1.7.0: each kprobe stores its verdict in its own override_tasks; then the fmod_ret programs run,
        the newest first, and the first that finds an entry takes it and ends the call. What the older ones stored stays
        for this thread's next call of the function.
        """
        attached = [(load, program) for load, program in found if load.attached(program)]
        stored = set()
        for load, program in attached:
            error = self._run(load, program, call)
            if error and call.hook.kind == "lsm":
                return self._deny(load, error, False)
            tasks = load.tasks[program.folder]
            if error and tasks is not None:
                stored.add(load.sequence)
                tasks.store(self._caller.thread, error)
        passed = True
        for load, program in reversed(attached):
            tasks = load.tasks[program.folder]
            taken = tasks.consume(self._caller.thread) if tasks is not None and program.section == "kprobes" else None
            if taken:
                passed = self._deny(load, taken, load.sequence not in stored)
                if call.hook.name.startswith("security_"):
                    break
        return passed

    def _deny(self, load: _Load, error: int, stale: bool) -> bool:
        if self.result.result != "killed":
            self.result.result = "denied"
        self.result.error = errno.errorcode.get(-error, str(error))
        self.result.happened = False
        self.result.stale |= stale
        self.result.policies.append(load.name)
        return False

    def _run(self, load: _Load, program: _Program, call: acts.Call) -> int:
        """One program: counters, event, signal. Returns the error that it wants the call to end with, or 0."""
        declared = load.declared.get(call.hook, ((), ()))
        raw_tracepoint = program.section == "tracepoints" and not program.pins_link
        values = call.raw_values if raw_tracepoint else call.values
        args, data = (tuple(self._argument(one, call, values) for one in part if one.type != "nop") for part in declared)
        invocation = Invocation(call.hook, self._process, args, data, returned=0)
        error = 0
        for hook in load.compiled.hooks.get(call.hook, ()):
            verdict = hook.evaluate(invocation)
            if len(verdict.outcomes) > 1:
                self.result.undecided += [f"{load.name}: {reason}" for reason in sorted(verdict.fires.reasons)]
                continue
            (outcome,) = verdict.outcomes
            if outcome.selector is not None or outcome.posts:
                error = self._apply(load, program, hook, outcome) or error
                if outcome.posts:
                    self._post(load, program, call, hook, outcome, args, data)
        return error

    def _apply(self, load: _Load, program: _Program, hook: CompiledHook, outcome: Outcome) -> int:
        """What the winning selector's actions do, and the counters that move. LSM hooks count no posts (measured)."""
        entry, back = _sides(hook, outcome)
        enforce = bool(ENFORCING & set(entry)) and load.conf.read() == pins.ENFORCE
        counted = ["post"] if outcome.posts and program.kind != "lsm" else []
        counted += [_COUNTER[name] if enforce else f"monitor_{_COUNTER[name]}" for name in entry if name in ENFORCING]
        load.stats.add(counted)
        if {"Sigkill", "Signal"} & {*(entry if enforce else ()), *back}:  # the return side ignores the mode (measured)
            self.result.result = "killed"
            self.result.policies.append(load.name)
        if not enforce or "Override" not in entry:
            return 0
        return -errno.EPERM if program.kind == "lsm" else self._error(load, program, hook, outcome)

    @staticmethod
    def _error(load: _Load, program: _Program, hook: CompiledHook, outcome: Outcome) -> int:
        selector = load.document["spec"][program.section][hook.index]["selectors"][outcome.selector]
        return next((int(one.get("argError", 0)) for one in selector["matchActions"] if one["action"] == "Override"), 0)

    def _argument(self, wanted: Declared, call: acts.Call, values: Mapping[int, Value]) -> Argument:
        if wanted.resolve or wanted.source:
            value = call.resolved.get(wanted.resolve)
            if wanted.resolve.endswith("mm.exe_file"):
                value = FilePath(self._binary, "-rwxr-xr-x")
        else:
            value = _as(wanted.type, values.get(wanted.index))
        return Argument(wanted, _BAD_ADDRESS if value is None else value)

    def _post(
        self,
        load: _Load,
        program: _Program,
        call: acts.Call,
        hook: CompiledHook,
        outcome: Outcome,
        args: Sequence[Argument],
        data: Sequence[Argument],
    ) -> None:
        raw = load.document["spec"][program.section][hook.index]
        entry, back = _sides(hook, outcome)
        body: events.Json = {**events.place(call.hook), "policy_name": load.name, "action": events.action(entry)}
        for key, several in (("args", args), ("data", data)):
            if several:
                body[key] = [events.argument(one) for one in several]
        for key in ("message", "tags"):
            if raw.get(key):
                body[key] = raw[key]
        if hook.has_return:
            body["return"] = {"int_arg": 0}
        if program.kind == "kprobe":
            body["return_action"] = events.action(back)
        load.writer.post(_OPERATION.get(program.kind, ring.UPROBE), self._record(events.KEYS.get(program.kind, "process_usdt"), body))

    def _record(self, key: str, body: Mapping[str, Any]) -> events.Json:
        caller = self._caller
        process: events.Json = {"binary": self._binary, "parent": self._parent, "pid": caller.process, "tid": caller.tid or caller.process}
        process |= {
            "parent_pid": max(caller.process - 1, 1),
            "start": self._time - 1_000_000,
            "arguments": self.result.act.partition(" ")[2],
        }
        if caller.container:
            process["container"] = True
        if caller.pod:
            name = {"namespace": caller.pod.namespace, "name": f"{caller.pod.container}-0"}
            process["pod"] = events.pod(name, caller.pod.labels, caller.pod.container, caller.pod.image_repo)
        return {"key": key, "time": self._time, "process": process, "body": body}


def _sides(hook: CompiledHook, outcome: Outcome) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The actions that ran where the function was entered, and where it returned."""
    selector = hook.selectors[outcome.selector] if outcome.selector is not None else None
    entry = len(selector.actions) if selector and selector.actions else 1
    return outcome.actions[:entry], outcome.actions[entry:]


def _inode(program: Program | _Program) -> int:
    """The inode of a uprobe's binary; 0 when there is none."""
    binary = program.name.rpartition(":")[0] if program.kind == "uprobe" else ""
    found = pins.identity(binary) if binary else None
    return found[0] if found else 0


def _as(type_: str, value: Value | None) -> Value | None:
    """A value as the declared type reads it; None where the memory does not hold such a thing."""
    if isinstance(value, FilePath):
        return (
            value if type_ in PATH_TYPES or type_ in ("fd", "kiocb") else value.path if type_ in ("string", "filename") else Opaque(type_)
        )
    if isinstance(value, Socket):
        return value if type_ in SOCKET_TYPES else Opaque(type_)
    if isinstance(value, int):
        return value if type_ in INTEGERS else None
    return value
