# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The agent: its start in the order of v1.7.0, what it answers, and its end.

Everything waits in blocking calls of its own thread, so that an idle agent costs nothing.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import re
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from . import metrics, wire
from .config import Options, StartError, UsageError
from .events import Renderer, metric_label
from .export import Exporter
from .faults import FaultFile
from .kernel import Kernel
from .manager import Denied, Manager
from .policy import LoadError, Refused
from .ring import Reader
from .root import Root

_BYTES_PER_CPU = 64 << 10
_FAILED = 255
_SLICE = 0.25
_CONTROL = re.compile(r'[\s"=]')


def log(level: str, message: str, **fields: object) -> None:
    """One line in the agent's text format."""
    text = "".join(f" {name}={_quoted(value)}" for name, value in fields.items())
    sys.stderr.write(f"level={level} msg={_quoted(message)}{text}\n")
    sys.stderr.flush()


def _quoted(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return json.dumps(text, ensure_ascii=False) if not text or _CONTROL.search(text) else text


def policy_files(directory: Path) -> Iterator[Path]:
    """What is loaded from a policy directory: every file and link to a file, one level deep, in order of name.

    Whatever a file is called, it counts. Links to directories and deeper directories are passed over (measured).
    """
    for entry in sorted(directory.iterdir()) if directory.is_dir() else ():
        if entry.is_dir() and not entry.is_symlink():
            yield from (one for one in sorted(entry.iterdir()) if one.is_file())
        elif entry.is_file():
            yield entry


class Agent:
    """One run of ``tetragon``."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.root = Root()
        self.options = Options(self.root, arguments)
        self.faults = FaultFile(self.root)
        self.features = self.faults.features()
        self.version = f"v{self.faults.current().version}"
        self.counts = metrics.Counts()
        self.stop = threading.Event()
        self.run_dir = Path(self.root.path(wire.RUN_DIR))
        self.keep = self.options.flag("keep-sensors-on-exit")
        self.exporter: Exporter | None = None
        self._streams: list[queue.Queue[bytes]] = []

    # --- start and end

    def run(self) -> int:
        """Start, wait for a signal, end. Returns the exit code; raises StartError when another agent runs."""
        log("info", "Starting tetragon", version=self.version)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._signalled)
        self._take_pid_file()
        self._prepare()
        try:
            if self.stop.is_set():  # a signal does not cut the base sensor's loading short (measured)
                raise StartError("error starting JSON exporter: context canceled")
            self._serve()
            self._load_files()
            if not self.stop.is_set():
                self._drop_old()
                self._start(self._consume)
                log("info", "Listening for events...")
                self.stop.wait()
                log("info", "Listening for events completed.", error="context canceled")
            failure = None
        except StartError as error:
            failure = error
        self._close()
        if failure is not None:
            log("error", "Failed to execute tetragon", error=failure)
        return 0 if failure is None else _FAILED

    def _signalled(self, number: int, frame: object) -> None:
        name = "terminated" if number == signal.SIGTERM else "interrupt"
        log("info", f"Received signal {name}, shutting down...")
        self.stop.set()

    def _take_pid_file(self) -> None:
        """The check is only whether such a process exists, so a stale number can be taken for an agent (measured)."""
        self.run_dir.mkdir(parents=True, exist_ok=True)
        path = self.run_dir / "tetragon.pid"
        earlier = path.read_text(encoding="ascii").strip() if path.exists() else ""
        if earlier.isdigit() and Path("/proc", earlier).exists():
            reason = "another Tetragon instance seems to be up and running: process is already running"
            raise StartError(f"failed to create pid file '{path}', {reason}")
        path.write_text(str(os.getpid()), encoding="ascii")
        log("info", "Tetragon pid file creation succeeded", pid=os.getpid(), pidfile=path)

    def _prepare(self) -> None:
        """Former pins out of the way, features, metrics, the base sensor: all before the agent can be asked."""
        release = self.options.flag("release-pinned-bpf")
        if self.keep:
            log("info", "Not unloading sensors on exit")
            if release:
                log("warn", "keep-sensors-on-exit is set and release-pinned-bpf too: pinned programs go at the next start")
        self.kernel = Kernel(self.root)
        self.folder = self.kernel.pins.directory / self.options.text("bpf-dir")
        self.old = Path(f"{self.folder}_old")
        self.remembered = self._set_aside(release)
        if release:
            shutil.rmtree(self.folder, ignore_errors=True)
        if not self.features["fmodret_syscall"]:
            sys.stderr.write(wire.NO_FMODRET_SYSCALL + "\n")
        shown = ", ".join(f"{name}: {str(value).lower()}" for name, value in self.features.items())
        log("info", f"BPF detected features: {shown}")
        listeners = []
        if self.options.text("metrics-server"):
            log("info", "Starting metrics server", addr=self.options.text("metrics-server"))
            with contextlib.suppress(OSError):  # a port that is taken is not even logged (measured)
                listeners.append(wire.listen(self.options.text("metrics-server")))
        log("info", "Loading sensor", name="__base__")
        time.sleep(self.faults.current().start_seconds)
        self.kernel.pins.create_base(self.folder)
        size = self.options.number("rb-size-total") or (self.options.number("rb-size") or _BYTES_PER_CPU) * (os.cpu_count() or 1)
        self.reader: Reader = self.kernel.new_ring(size)
        self.manager = Manager(self.kernel, self.folder, self.reader, self.options, self.faults, log)
        log("info", "Loaded sensor successfully", sensor="__base__")
        for listener in listeners:
            self._start(metrics.serve, listener, self._metrics)

    def _set_aside(self, release: bool) -> bool:
        """Move a former instance's pins to ``<dir>_old``; an older ``_old`` is deleted, but only if there is a newer."""
        if release or not self.folder.exists():
            return False
        if self.old.exists():
            log("info", f"Found bpf leftover instance, removing: {self.old}")
            shutil.rmtree(self.old)
        self.folder.rename(self.old)
        log("info", f"Found bpf instance: {self.folder}, moved to: {self.old}")
        return True

    def _serve(self) -> None:
        """Export file, health and gRPC addresses, tetragon-info.json."""
        if self.options.text("export-filename"):
            self.exporter = Exporter(self.options)
            log("info", "Exporter configuration", enabled=True, fileName=self.exporter.path)
        health = self.options.text("health-server-address")
        if health:
            log("info", "Starting gRPC health server", address=health, interval=10)
            try:
                self._health = wire.listen(health)
            except OSError as error:
                reason = (error.strerror or "").lower()
                raise StartError(f"failed to listen for gRPC health server: listen tcp {health}: bind: {reason}") from None
        self.address = self.root.address(self.options.text("server-address"))
        protocol = "unix" if self.address.startswith("unix://") else "tcp"
        log("info", "Starting gRPC server", protocol=protocol, address=self.address.removeprefix("unix://"))
        Path(self.address.removeprefix("unix://")).parent.mkdir(parents=True, exist_ok=True)
        try:
            listener = wire.listen(self.address)
        except OSError as error:
            raise StartError(f"failed to listen on {self.address}: {(error.strerror or '').lower()}") from None
        self._start(self._accept, listener)
        self._start(self._burn)
        self._write_info()

    def _write_info(self) -> None:
        info = {
            "export_fname": self.options.text("export-filename"),
            "lib_dir": self.options.text("bpf-lib").rstrip("/"),
            "btf_fname": "",
            "server_address": self.options.text("server-address"),
            "metrics_address": self.options.text("metrics-server"),
            "gops_address": self.options.text("gops-address"),
            "map_dir": f"/sys/fs/bpf/{self.options.text('bpf-dir')}",
            "bpftool_path": "",
            "gops_path": "",
            "max_recv_size": 0,
            "pid": os.getpid(),
        }
        path = self.run_dir / "tetragon-info.json"
        path.write_text(json.dumps(info, separators=(",", ":")), encoding="utf-8")
        path.chmod(0o744)

    def _load_files(self) -> None:
        """Every policy file; the first that fails ends the agent."""
        single = self.options.path("tracing-policy")
        for path in (*policy_files(Path(self.options.path("tracing-policy-dir"))), *([Path(single)] if single else [])):
            if self.stop.is_set():
                return
            try:
                policy = self.manager.add(path.read_text(encoding="utf-8", errors="replace"))
            except (Refused, Denied, LoadError) as error:
                raise StartError(str(error)) from None
            except OSError as error:
                raise StartError(f"open {path}: {(error.strerror or '').lower()}") from None
            names = {"metadata.namespace": policy.namespace, "metadata.name": policy.name}
            log("info", "Added TracingPolicy with success", TracingPolicy=path, **names)

    def _drop_old(self) -> None:
        if self.remembered:
            shutil.rmtree(self.old, ignore_errors=True)
            log("info", f"Removed bpf instance: {self.old}")

    def _close(self) -> None:
        unpin = not self.keep
        self.manager.close(unpin)
        log("info", "Unloading sensor __base__")
        if unpin:
            shutil.rmtree(self.folder / "__base__", ignore_errors=True)
            for path in self.folder.glob("*"):
                if path.is_file():
                    path.unlink()
            with contextlib.suppress(OSError):
                self.folder.rmdir()
        log("info", "Sensor unloaded", sensor="__base__", **{"maps-error": "[]"})
        log("info", f"BPF events statistics: {self.counts.received} received, 0% events loss")
        self.reader.remove()
        (self.run_dir / "tetragon.pid").unlink(missing_ok=True)
        if getattr(self, "address", "").startswith("unix://"):
            Path(self.address.removeprefix("unix://")).unlink(missing_ok=True)

    @staticmethod
    def _start(work: Callable[..., None], *arguments: object) -> None:
        threading.Thread(target=work, args=arguments, daemon=True).start()

    # --- requests

    def _accept(self, listener: socket.socket) -> None:
        while True:
            connection, _unused = listener.accept()
            self._start(self._answer, connection)

    def _answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            request = wire.receive(connection)
            if request is None:
                return
            method = request.pop("method")
            faults = self.faults.current()
            if faults.hang or faults.hang_on == method:
                connection.recv(1)  # until the client gives up
            elif method == "events":
                self._stream(connection)
            else:
                wire.send(connection, self._result(method, request))

    def _result(self, method: str, request: dict[str, Any]) -> dict[str, Any]:
        manager = self.manager
        methods: dict[str, Callable[..., Any]] = {
            "add": lambda text, mode: manager.add(text, mode).name,
            "delete": manager.delete,
            "enable": manager.enable,
            "disable": manager.disable,
            "set-mode": manager.set_mode,
            "list": manager.listing,
            "info": self._info,
            "version": lambda: self.version,
            "health": lambda: "running",
            "loglevel": lambda: f"LOG_LEVEL_{self.options.text('log-level').upper()}",
        }
        try:
            return {"result": methods[method](**request)}
        except (Refused, Denied, LoadError) as error:
            return {"error": str(error)}

    def _info(self) -> dict[str, Any]:
        conf = dict(sorted(self.options.values.items()))
        build = {"GoVersion": "go1.26.8", "Commit": "", "Time": "", "Modified": ""}
        return {"Name": "tetragon", "Version": self.version, "Probes": dict(sorted(self.features.items())), "Conf": conf, "Build": build}

    def _stream(self, connection: socket.socket) -> None:
        lines: queue.Queue[bytes] = queue.Queue(self.options.number("event-queue-size"))
        self._streams.append(lines)
        try:
            while True:
                connection.sendall(lines.get())
        finally:
            self._streams.remove(lines)

    # --- events

    def _consume(self) -> None:
        """Read the ring for ever: count, export, pass on."""
        renderer = Renderer(os.uname().nodename, self.options.flag("enable-process-ns"))
        owed = 0.0
        for record in self.reader.records():
            operation = record["op"]
            owed += self.faults.current().drop_events
            if owed >= 1:
                owed -= 1
                self.counts.dropped[operation] += 1
                continue
            self.counts.received += 1
            self.counts.operations[operation] += 1
            event = renderer.render(record)
            body, binary = record["body"], record["process"]["binary"]
            self.counts.events[binary, record["key"].upper()] += 1
            if "policy_name" in body:
                self.counts.policy_events[binary, metric_label(record["key"], body), body["policy_name"]] += 1
            line = json.dumps(event, separators=(",", ":")).encode() + b"\n"
            if self.exporter is not None:
                self.exporter.write(line)
            for stream in self._streams:
                try:
                    stream.put_nowait(line)
                except queue.Full:
                    self.counts.overflowed += 1

    def _metrics(self) -> str:
        counts, export, states = self.counts, self.exporter, self.manager.states()
        build = (("commit", ""), ("go_version", "go1.26.8"), ("modified", ""), ("time", ""), ("version", self.version))
        memory = [((("policy", name), ("policy_namespace", space)), size) for name, space, size in self.manager.memory()]
        missed = counts.dropped.copy()
        missed.update(self.reader.missed())
        one = metrics.one
        families: list[metrics.Family] = [
            *metrics.process(),
            ("tetragon_bpf_missed_events_total", "counter", metrics.missed(missed)),
            ("tetragon_build_info", "gauge", [(build, 1)]),
            ("tetragon_events_exported_bytes_total", "counter", one(export.bytes if export else 0)),
            ("tetragon_events_exported_total", "counter", one(export.events if export else 0)),
            ("tetragon_events_last_exported_timestamp", "gauge", one(int(export.last) if export else 0)),
            ("tetragon_events_total", "counter", metrics.events_by_binary(counts)),
            ("tetragon_export_ratelimit_events_dropped_total", "counter", one(export.limited if export else 0)),
            ("tetragon_missed_prog_probes_total", "counter", [((("attach", "acct_process"), ("policy", "__base__")), 0)]),
            ("tetragon_msg_op_total", "counter", metrics.labelled("msg_op", {str(op): n for op, n in counts.operations.items()})),
            ("tetragon_notify_overflowed_events_total", "counter", one(counts.overflowed)),
            ("tetragon_observer_ringbuf_errors_total", "counter", one(0)),
            ("tetragon_observer_ringbuf_events_lost_total", "counter", one(0)),
            ("tetragon_observer_ringbuf_events_received_total", "counter", one(counts.received)),
            ("tetragon_observer_ringbuf_queue_events_lost_total", "counter", one(0)),
            ("tetragon_observer_ringbuf_queue_events_received_total", "counter", one(counts.received)),
            ("tetragon_policy_events_total", "counter", metrics.events_by_policy(counts)),
            ("tetragon_process_cache_capacity", "gauge", one(self.options.number("process-cache-size"))),
            ("tetragon_tracingpolicy_kernel_memory_bytes", "gauge", memory),
            ("tetragon_tracingpolicy_loaded", "gauge", metrics.labelled("state", states)),
        ]
        return metrics.page(families)

    def _burn(self) -> None:
        """Use as much processor time as the faults ask for; look once a second whether they do."""
        import zlib

        block = bytes(1 << 20)

        def burn(until: float) -> None:
            while time.monotonic() < until:
                zlib.crc32(block)  # without the interpreter's lock

        while not self.stop.is_set():
            cores = self.faults.current().cores(name for name, _unused, _unused in self.manager.memory())
            now = time.monotonic()
            for core in range(math.ceil(cores)):
                self._start(burn, now + _SLICE * min(cores - core, 1.0))
            self.stop.wait(_SLICE if cores else 1.0)


def main(arguments: Sequence[str]) -> int:
    try:
        return Agent(arguments).run()
    except UsageError as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1
    except StartError as error:
        log("error", "Failed to execute tetragon", error=error)
        return _FAILED
