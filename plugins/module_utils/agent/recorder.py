# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Records what happens on a host for a while, through policies of its own that are gone afterwards.

``start`` leaves two processes behind that need neither the controller nor a connection to it. The recorder loads the
policies, reads the agent's stream of events, and ends at its deadline, at a limit, or when it is asked to. The guard waits
for the recorder to end, in whatever way, and removes what it left. Only names that begin with ``PREFIX`` are touched.
"""

from __future__ import annotations

import gzip
import json
import os
import selectors
import signal
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from ansible_collections.apiary.tetragon.plugins.module_utils.agent.process import CLOCK_TICKS, agent_pid, stat_fields
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.scrub import Scrubber
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.state import Busy
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.tetra import Tetra, TetraError

PREFIX = "apiary-record-"
SECTIONS = ("kprobes", "fentries", "tracepoints", "lsmhooks", "uprobes", "usdts")
EVENTS = "recording.jsonl.gz"
_RESULT = "result.json"
_STOP = "stop"
_PID = "pid"
_TICK = 0.5
_CPU_WINDOW = 5.0
_REMOVE_SECONDS = 120.0


@dataclass(frozen=True)
class Limits:
    """When a recording ends. ``cpu`` is in cores of the agent, over some seconds; ``size`` in bytes, unpacked."""

    seconds: float
    events: int
    size: int
    cpu: float


@dataclass(frozen=True)
class Job:
    """One recording on one host. ``policies`` maps names, all with PREFIX, to their texts; ``directory`` is its own."""

    tetra: Tetra
    pid_file: str
    directory: str
    policies: Mapping[str, str]
    limits: Limits
    scrubber: Scrubber

    def path(self, name: str) -> str:
        return os.path.join(self.directory, name)


class Recording(Exception):
    """Why a recording cannot be started or read."""


def running(directory: str) -> Optional[int]:
    """The process id of the recorder that works in a directory; None when there is none."""
    try:
        with open(os.path.join(directory, _PID), encoding="utf-8") as file:
            pid, started = file.read().split()
    except (OSError, ValueError):
        return None
    fields = stat_fields(int(pid))
    return int(pid) if fields and fields[19] == started and fields[0] != "Z" else None


def leftovers(tetra: Tetra) -> List[str]:
    """Policies of recordings that the agent still lists."""
    return [policy.name for policy in tetra.policies() if policy.name.startswith(PREFIX) and not policy.namespace]


def remove(tetra: Tetra, names: Sequence[str], seconds: float = _REMOVE_SECONDS) -> List[str]:
    """Delete policies until the agent lists none of them; returns those that would not go in time."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            left = [name for name in leftovers(tetra) if name in names]
            for name in left:
                tetra.delete(("", name))
            left = [name for name in leftovers(tetra) if name in names] if left else []
        except TetraError:
            left = list(names)
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(1)


def start(job: Job) -> None:
    """Begin a recording and return once its policies are loaded and events are being read.

    Raises Busy when one is running, Recording when the agent does not take the policies.
    """
    if running(job.directory):
        raise Busy("a recording is running on this host: wait for it, or end it with state absent")
    os.makedirs(job.directory, mode=0o700, exist_ok=True)
    for name in (EVENTS, _RESULT, _STOP, _PID):
        if os.path.exists(job.path(name)):
            os.unlink(job.path(name))
    former = leftovers(job.tetra)
    stuck = remove(job.tetra, former) if former else []
    if stuck:
        raise Recording("policies of a former recording cannot be removed: {0}".format(", ".join(stuck)))
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(ready)
            _detach()
            _watched(job, told)
        finally:
            os._exit(0)  # whatever happens, this process never returns into what called start; the guard sees it end
    os.close(told)
    os.waitpid(child, 0)
    with os.fdopen(ready, encoding="utf-8") as pipe:
        said = pipe.read()
    if said != "ready":
        raise Recording(
            said or "the recorder ended before it began: {0}".format(read_result(job.directory).get("ended", "no reason known"))
        )


def _detach() -> None:
    """Leave the session of the connection; the process that asked sees its child end at once."""
    if os.fork():
        os._exit(0)
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.chdir("/")


def _watched(job: Job, told: int) -> None:
    """Fork the guard, then record."""
    watched, alive = os.pipe()
    if os.fork() == 0:
        os.close(alive)
        os.close(told)
        _guard(job, watched)
        return
    os.close(watched)
    with open(job.path(_PID), "w", encoding="utf-8") as file:
        file.write("{0} {1}".format(os.getpid(), stat_fields(os.getpid())[19]))
    _record(job, told)


def _guard(job: Job, watched: int) -> None:
    """Wait for the end of the recorder, whatever ends it, and see to it that nothing of it is left."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with selectors.DefaultSelector() as selector:
        selector.register(watched, selectors.EVENT_READ)
        selector.select(job.limits.seconds + _REMOVE_SECONDS)
    pid = running(job.directory)
    if pid:
        os.kill(pid, signal.SIGKILL)
    result = read_result(job.directory)
    clean = bool(result) and not result["stuck"]
    if os.path.isdir(job.directory) and not clean:  # no directory: it has been brought home and cleared away
        stuck = remove(job.tetra, list(job.policies))
        _write_result(job, {**(result or {"ended": "the recorder was killed"}), "stuck": stuck})


def _record(job: Job, told: int) -> None:
    """Load, read until something ends it, remove, and write the result."""
    stopped: List[str] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append("it was told to end"))
    result: Dict[str, Any] = {"events": 0, "bytes": 0, "unreadable": 0}
    try:
        failed = _load(job)
        if failed:
            _tell(told, failed)
            result["ended"] = failed
        else:
            _read(job, told, stopped, result)
    except Exception:  # whatever it is: the policies have to go, and somebody wants to know
        result["ended"] = traceback.format_exc()
        _tell(told, result["ended"])
    result["stuck"] = remove(job.tetra, list(job.policies))
    result["scrubbed"] = dict(job.scrubber.counts)
    _write_result(job, result)


def _tell(told: int, text: str) -> None:
    with suppress(OSError):  # nobody listens any more
        os.write(told, text.encode("utf-8"))
        os.close(told)


def _load(job: Job) -> str:
    """Add the policies, in monitor; returns why one could not be."""
    for name, text in job.policies.items():
        path = job.path(name + ".yaml")
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        try:
            job.tetra.add(path, "monitor")
        except TetraError as error:
            return "policy {0} cannot be loaded: {1}".format(name, error)
    return ""


def _read(job: Job, told: int, stopped: List[str], result: Dict[str, Any]) -> None:
    limits, begun = job.limits, time.monotonic()
    cpu = _Cpu(job.pid_file, limits.cpu)
    names = ",".join(job.policies)
    command = [*job.tetra.command(int(limits.seconds + _REMOVE_SECONDS)), "getevents", "-o", "json", "--policy-names", names]
    stream = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert stream.stdout is not None
    os.set_blocking(stream.stdout.fileno(), False)
    rest = b""
    try:
        with gzip.open(job.path(EVENTS), "wb", compresslevel=6) as out, selectors.DefaultSelector() as selector:
            selector.register(stream.stdout, selectors.EVENT_READ)
            _tell(told, "ready")
            while "ended" not in result:
                ended = stream.poll() is not None
                if selector.select(_TICK):
                    piece = stream.stdout.read(1 << 20) or b""
                    lines = (rest + piece).split(b"\n")
                    rest = lines.pop()
                    for line in lines:
                        _keep(job, line, out.write, result)
                    ended = ended and not piece
                ends: Tuple[Tuple[bool, str], ...] = (
                    (bool(stopped) or os.path.exists(job.path(_STOP)), "it was told to end"),
                    (time.monotonic() - begun >= limits.seconds, "its time is over"),
                    (result["events"] >= limits.events, "it holds {0} events, as many as it may".format(limits.events)),
                    (result["bytes"] >= limits.size, "it holds {0} bytes, as many as it may".format(result["bytes"])),
                    (cpu.exceeded(), "the agent took more than {0} cores".format(limits.cpu)),
                    (ended, "the agent's stream of events ended"),
                )
                for true, why in ends:
                    if true:
                        result["ended"] = why
                        break
    finally:
        result["seconds"] = round(time.monotonic() - begun, 1)
        stream.kill()
        stream.wait()


def _keep(job: Job, line: bytes, write: Callable[[bytes], Any], result: Dict[str, Any]) -> None:
    """Scrub and write one line, if it is an event of one of our policies and there is room for it."""
    if not line.strip() or result["events"] >= job.limits.events or result["bytes"] >= job.limits.size:
        return
    try:
        event = json.loads(line.decode("utf-8"))
        body = next((body for name, body in event.items() if name.startswith("process_")), None)
        ours = isinstance(body, dict) and body.get("policy_name") in job.policies
    except (ValueError, AttributeError):
        result["unreadable"] += 1
        return
    if ours:
        text = json.dumps(job.scrubber.event(event), separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        write(text)
        result["events"] += 1
        result["bytes"] += len(text)


class _Cpu:
    """The agent's use of processors, in windows of some seconds."""

    def __init__(self, pid_file: str, limit: float) -> None:
        self._pid_file = pid_file
        self._limit = limit
        self._then, self._used = time.monotonic(), self._seconds()

    def _seconds(self) -> Optional[float]:
        pid = agent_pid(self._pid_file)
        fields = stat_fields(pid) if pid else []
        return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS if fields else None

    def exceeded(self) -> bool:
        now = time.monotonic()
        if now - self._then < _CPU_WINDOW:
            return False
        used, then, before = self._seconds(), self._then, self._used
        self._then, self._used = now, used
        return used is not None and before is not None and (used - before) / (now - then) > self._limit


def _write_result(job: Job, result: Mapping[str, Any]) -> None:
    temporary = job.path(_RESULT + ".new")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(result, file)
    os.replace(temporary, job.path(_RESULT))


def read_result(directory: str) -> Dict[str, Any]:
    """How the last recording in a directory ended; empty when it has not."""
    try:
        with open(os.path.join(directory, _RESULT), encoding="utf-8") as file:
            result: Dict[str, Any] = json.load(file)
            return result
    except (OSError, ValueError):
        return {}


def stop(directory: str, seconds: float = _REMOVE_SECONDS) -> bool:
    """Ask a running recorder to end and wait for it; returns whether there was one."""
    if not running(directory):
        return False
    with open(os.path.join(directory, _STOP), "w", encoding="utf-8"):
        pass
    deadline = time.monotonic() + seconds
    while running(directory) and time.monotonic() < deadline:
        time.sleep(0.2)
    return True


def discard(directory: str) -> None:
    """Remove what a finished recording left on the host's disk."""
    if os.path.isdir(directory):
        for name in os.listdir(directory):
            os.unlink(os.path.join(directory, name))
        os.rmdir(directory)


def excluded_programs(tetra: Tetra, pid_file: str) -> List[str]:
    """The executables whose own doing a recording leaves out: recording them would make more of it, without end."""
    pid = agent_pid(pid_file)
    programs = [os.path.realpath(tetra.command(1)[0]), os.path.realpath(sys.executable)]
    if pid:
        with suppress(OSError):
            programs.append(os.readlink("/proc/{0}/exe".format(pid)))
    return sorted(set(programs))


def observing(document: Mapping[str, Any], name: str, programs: Sequence[str]) -> Dict[str, Any]:
    """A recorder's policy under its name on this host, without what these programs do.

    The exclusion is added to every selector that has no filter on executables of its own.
    """
    policy = json.loads(json.dumps(document))
    policy["metadata"] = {"name": name}
    for section in SECTIONS:
        for hook in policy["spec"].get(section) or ():
            hook["selectors"] = hook.get("selectors") or [{}]
            for selector in hook["selectors"]:
                selector.setdefault("matchBinaries", [{"operator": "NotIn", "values": list(programs)}])
    result: Dict[str, Any] = policy
    return result
