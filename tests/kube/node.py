# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""A node on which pods of the chart run: its entry script for real, over the stand-in for the agent and its kernel."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.apiary.tetragon.plugins.module_utils.agent.plan import Wanted

LAB = Path(__file__).parents[1] / "lab"
sys.path.insert(0, str(LAB))
from enforcing import KILL, LSM, deny  # noqa: E402
from standin.host import BIN, LabHost  # noqa: E402
from standin.kernel import Caller, Kernel  # noqa: E402

SCRIPT = Path(__file__).parents[2] / "charts/apiary/files/agent.sh"
__all__ = ["DENIED", "KILL", "LAB", "LSM", "SCRIPT", "Node", "Pod", "Seen", "deny"]
DENIED = {"/secret": "denied", "/kill": "killed", "/lsm": "denied"}
# As tests/lab: with $STANDIN_BPFFS set, in a mount namespace of one's own, pins are real and bpftool is the real one.
REAL_BPFFS = bool(os.environ.get("STANDIN_BPFFS"))
OPTIONS = {
    "gops-address": "",
    "health-server-address": "",
    "keep-sensors-on-exit": "true",
    "metrics-server": "",
    "release-pinned-bpf": "false",
}


class NotReady(AssertionError):
    """A pod did not get as far as it was to; the text is its log."""


@dataclass
class Pod:
    """One pod. Its container can be started again; what lies in ``home`` (ConfigMaps, emptyDirs) stays."""

    node: Node
    uid: str
    home: Path
    version: str
    process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        root = self.node.path
        return {
            "PATH": f"{self.node.bin}:{self.node.tools}",
            "POD_UID": self.uid,
            "STANDIN_ROOT": str(root),
            "STANDIN_RUN_DIR": "/" + str((self.home / "tetragon").relative_to(root)),
            "STANDIN_VERSION": self.version,
            "APIARY_BPFFS": str(self.node.bpffs),
            "APIARY_RUN": str(self.node.run),
            "APIARY_POD": str(self.home / "tetragon"),
            "APIARY_ETC": str(self.home),
            "APIARY_PROC": str(root / "proc"),
            "APIARY_EXPORT": str(root / "export"),
            "APIARY_TICK": "0.1",
            **({"APIARY_ADOPT": "yes"} if self.node.adopt else {}),
        }

    def verb(self, name: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["bash", str(SCRIPT), name], env=self.environment, capture_output=True, text=True, check=False)

    def start(self) -> Pod:
        with (self.home / "log").open("ab") as log:
            self.process = subprocess.Popen(
                ["bash", str(SCRIPT), "run"], env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        return self

    @property
    def log(self) -> str:
        return (self.home / "log").read_text(encoding="utf-8", errors="replace")

    @property
    def ready(self) -> bool:
        return self.verb("ready").returncode == 0

    def wait_ready(self, seconds: float = 40) -> Pod:
        deadline = time.monotonic() + seconds
        while not self.ready:
            assert self.process is not None
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise NotReady(f"{self.verb('ready').stderr}\n{self.log}")
            time.sleep(0.05)
        return self

    def wait_log(self, line: str, seconds: float = 40) -> None:
        deadline = time.monotonic() + seconds
        while line not in self.log:
            if time.monotonic() > deadline:
                raise NotReady(f"no {line!r} in\n{self.log}")
            time.sleep(0.02)

    def wait_end(self, seconds: float = 40) -> int:
        assert self.process is not None
        return self.process.wait(seconds)

    def stop(self) -> int:
        """What the kubelet does: SIGTERM to the first process, and time to end."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(30)

    def kill(self) -> None:
        """The container's processes are gone at once."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)

    @property
    def agent_pid(self) -> int:
        return int((self.home / "tetragon/tetragon.pid").read_text(encoding="ascii"))


@dataclass
class Seen:
    """What a prober met. ``allowed`` and ``wrong`` are the failures, each with the time since its start."""

    attempts: Counter[str] = field(default_factory=Counter)
    allowed: list[tuple[float, str]] = field(default_factory=list)
    wrong: list[tuple[float, str]] = field(default_factory=list)


class Node:
    """A node. Also a context manager that ends whatever runs there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.host = LabHost(path / "host")  # its faults and its kernel
        self.path = self.host.path
        self.bpffs = self.path / "sys/fs/bpf"
        self.run = self.path / "run/apiary"
        self.bin = self.path / "bin"
        self.tools = "/usr/sbin:/usr/bin:/sbin:/bin"
        self.adopt = False
        self.pods: list[Pod] = []
        for directory in (self.bpffs, self.bin, self.path / "export"):
            directory.mkdir(parents=True)
        for name in ("self", "1"):
            (self.path / "proc" / name).mkdir(parents=True)
            (self.path / "proc" / name / "mounts").write_text(f"bpf {self.bpffs} bpf rw 0 0\n", encoding="utf-8")
        if REAL_BPFFS:
            subprocess.run(["mount", "-t", "bpf", "bpf", str(self.bpffs)], check=True)
        for program in ("tetragon", "tetra", "bpftool"):
            real = shutil.which(program) if REAL_BPFFS and program == "bpftool" else BIN / program
            interpreter = f"{sys.executable} " if program == "tetragon" else ""
            path = self.bin / program
            path.write_text(f'#!/bin/sh\nexec {interpreter}{real} "$@"\n', encoding="utf-8")
            path.chmod(0o755)
        self.host.faults(load_seconds=0)

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *_unused: object) -> None:
        self.host.__exit__()
        for pod in self.pods:
            if pod.process is not None:
                pod.kill()

    def pod(self, policies: Sequence[Wanted], version: str = "1.7.0", options: Mapping[str, str] | None = None) -> Pod:
        """A pod with a set of policies, as the chart lays them out, and options beside the usual ones; not started."""
        uid = str(uuid.uuid4())
        home = self.path / "pods" / uid[:8]
        for directory in ("tetragon", "config", "policies/..data"):
            (home / directory).mkdir(parents=True)
        for name, value in {**OPTIONS, **(options or {})}.items():
            (home / "config" / name).write_text(value, encoding="utf-8")
        lines = []
        for policy in sorted(policies, key=lambda one: (not one.early, one.file)):
            (home / "policies/..data" / policy.file).write_text(policy.text, encoding="utf-8")
            how = "overrides" if policy.overrides else "-"
            lines.append("\t".join([policy.file, policy.name, policy.namespace or "-", policy.mode, how]) + "\n")
        (home / "policies/..data/policies.tsv").write_text("".join(lines), encoding="utf-8")
        made = Pod(self, uid, home, version)
        self.pods.append(made)
        return made

    def bpftool(self, *words: str) -> str:
        environment = {**os.environ, "STANDIN_ROOT": str(self.path)}
        return subprocess.run([str(self.bin / "bpftool"), *words], env=environment, capture_output=True, text=True, check=True).stdout

    @property
    def pins(self) -> list[str]:
        return sorted(path.name for path in self.bpffs.iterdir() if path.is_dir())

    @property
    def active(self) -> str:
        """The pod in charge, by uid."""
        return (self.run / "active").read_text(encoding="ascii").strip()[:36]

    def settled(self, pod: Pod, seconds: float = 20) -> None:
        """This pod is in charge, ready, and nothing of another is left."""
        deadline = time.monotonic() + seconds
        while True:
            instances = [path.name for path in self.run.iterdir() if path.is_dir()]
            if self.active == pod.uid and len(instances) == 1 and self.pins == [f"apiary-{instances[0]}"] and pod.ready:
                return
            assert time.monotonic() < deadline, f"active {self.active}, wanted {pod.uid}: {instances}, {self.pins}\n{pod.log}"
            time.sleep(0.05)

    def power_off(self) -> None:
        for pod in self.pods:
            if pod.process is not None:
                pod.kill()
        self.host.__dict__.pop("kernel", None)
        for path in (self.path / "run", self.bpffs):
            for entry in path.iterdir():
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        for pod in self.pods:  # emptyDirs of pods outlive a boot, as in a kubelet that finds its pods again
            pod.process = None

    @contextlib.contextmanager
    def probed(self, seen: Seen) -> Iterator[None]:
        """Forbidden acts by fresh and by long-lived threads, each followed by a harmless one, as long as the block runs."""
        stop = threading.Event()

        def attempt() -> None:
            kernel, start, fresh = Kernel(self.host.root), time.monotonic(), 0
            while not stop.is_set():
                fresh += 1
                for path, wanted in DENIED.items():
                    for name, tid in (("fresh", 10_000 + fresh), ("long-lived", 7)):
                        caller = Caller(pid=4000, tid=tid)
                        found = kernel.act("open", path, caller=caller).result
                        seen.attempts[f"{path} {name}"] += 1
                        if found != wanted:
                            seen.allowed.append((round(time.monotonic() - start, 3), path))
                        if kernel.act("open", "/harmless", caller=caller).result != "allowed":
                            seen.wrong.append((round(time.monotonic() - start, 3), path))
                time.sleep(0.005)

        thread = threading.Thread(target=attempt)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
