# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""What the agent's role costs on hosts with a real systemd, beside what people do without it. Needs root.

``hosts.py DIRECTORY COLLECTIONS LAB`` prints a table and writes ``hosts.json``; LAB is what ``tests/lab/hosts/setup`` makes. Hosts
run the stand-in, so the agent's own cost is not in it; CPU seconds are the controller's and the hosts', each host's share.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from measure import Play, Plays, Result, report

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
LAB = REPOSITORY / "tests/lab"
PROBER = REPOSITORY / "plugins/module_utils/agent/prober.py"
VERSION = "1.7.100"
HOSTS = {"role": ("h-bnr12", "h-bnr13"), "list": ("h-bnl12", "h-bnl13")}
OPTIONS = {
    "bpf-lib": "/usr/local/lib/tetragon/bpf/",
    "export-file-compress": "true",
    "export-file-max-backups": "5",
    "export-file-max-size-mb": "64",
    "export-filename": "/var/log/tetragon/tetragon.log",
    "gops-address": "",
    "health-server-address": "",
    "keep-sensors-on-exit": "true",
    "metrics-server": "127.0.0.1:2112",
    "release-pinned-bpf": "false",
    "server-address": "unix:///var/run/tetragon/tetragon.sock",
}
CGROUPS = next(path for path in (Path("/sys/fs/cgroup/unified/nshost"), Path("/sys/fs/cgroup/nshost")) if path.parent.is_dir())
PAUSE, PROBED_SECONDS, PROBED_POLICIES = 0.2, 10, 5
SAMPLE_SECONDS = 0.05


@dataclass(frozen=True)
class Cost:
    """Of one run: CPU seconds a host, calls of modules a host, seconds in all."""

    cpu: float
    calls: float
    seconds: float


class Bench:
    """All measurements, on hosts of their own."""

    def __init__(self, directory: Path, collections: Path, lab: Path) -> None:
        self.directory = directory
        self.lab = lab
        self.plays = Plays(directory, collections, ANSIBLE_INTERPRETER_PYTHON="/usr/bin/python3", ANSIBLE_HOST_KEY_CHECKING="false")
        directory.mkdir(parents=True, exist_ok=True)
        releases = directory / "releases"
        subprocess.run([sys.executable, str(LAB / "release.py"), str(releases), VERSION], check=True)
        sums = json.loads((releases / "sums.json").read_text(encoding="utf-8"))[VERSION]
        (self.tarball,) = releases.glob("*.tar.gz")
        self.sum = next(iter(sums.values()))
        self.plays.play(
            "apiary.tetragon.bundle", None, apiary_environment=str(REPOSITORY / "molecule/shared/environment.yml"),
            apiary_bundle_dir=str(directory / "bundles"), apiary_cache_dir=str(directory / "cache"),
        )  # fmt: skip
        (self.bundle,) = (directory / "bundles").iterdir()
        self.variables = {
            "apiary_agent_version": VERSION,
            "apiary_agent_sha256": sums,
            "apiary_agent_source": str(releases / "{file}"),
            "apiary_release_cache": str(directory / "kept"),
            "apiary_bundle": str(self.bundle),
        }

    def _nshost(self, *words: str, base: str = "") -> None:
        environment = {**os.environ, "NSHOST_STATE": str(self.lab / "state"), "NSHOST_BASE": str(self.lab / f"base-{base}")}
        subprocess.run([str(LAB / "hosts/nshost"), *words], env=environment, check=True, stdout=subprocess.DEVNULL)

    @contextmanager
    def hosts(self) -> Iterator[None]:
        names = [name for some in HOSTS.values() for name in some]
        self._nshost("rm", *names)
        try:
            for name in names:
                self._nshost("up", name, base="bookworm" if name.endswith("12") else "trixie")
            self._nshost("wait", *names)
            self.plays.play(REPOSITORY / "molecule/shared/prepare.yml", self.inventory("role"))
            yield
        finally:
            self._nshost("rm", *names)

    def inventory(self, which: str) -> Path:
        file = self.directory / f"{which}.json"
        shared = {"ansible_user": "root", "ansible_ssh_common_args": f"-F {self.lab}/ssh_config"}
        file.write_text(json.dumps({"all": {"hosts": {name: {} for name in HOSTS[which]}, "vars": shared}}), encoding="utf-8")
        return file

    def cost(self, which: str, playbook: str, **variables: object) -> Cost:
        before, began = _used(HOSTS[which]), time.monotonic()
        done = self.plays.play(HERE / playbook, self.inventory(which), **variables)
        seconds, used, count = time.monotonic() - began, _used(HOSTS[which]) - before, len(HOSTS[which])
        return Cost((done.cpu + used) / count, _calls(done) / count, seconds)

    def run(self) -> bool:
        with self.hosts():
            return report((self.install, self.handover, self.drill), self.directory / "hosts.json")

    def install(self) -> list[Result]:
        """From nothing to enforced policies, and a run that has nothing to change: the role, and a usual list of tasks."""
        listed = {"version": VERSION, "tarball": str(self.tarball), "sum": self.sum, "options": OPTIONS, "bundle": str(self.bundle)}
        results = []
        for what, goal in (("install", 1.0), ("no change", 3.0)):
            usual, ours = self.cost("list", "tasklist.yml", **listed), self.cost("role", "install.yml", **self.variables)
            cpu, calls = usual.cpu / ours.cpu, usual.calls / ours.calls
            detail = f"CPU seconds a host {usual.cpu:.1f} : {ours.cpu:.1f}"
            results += [
                Result(f"list of tasks : role, {what}", cpu, "x", f">= {goal:g}", cpu >= goal, detail),
                Result(f"the same, calls of modules, {what}", calls, "x", ">= 4", calls >= 4, f"{usual.calls:.0f} : {ours.calls:.0f}"),
            ]
        return results

    def handover(self) -> list[Result]:
        """An option changes, by a hand-over; against a restart of the same agent on the same hosts."""
        with _agents(HOSTS["role"]) as alone:
            restart = self.cost("role", "restart.yml")
        with _agents(HOSTS["role"]) as both:
            change = self.cost("role", "handover.yml", **self.variables, options={"rb-size": "1M"})
        memory, cpu = both.peak / alone.usual, change.cpu / restart.cpu
        mib = f"{both.peak / 2**20:.0f} : {alone.usual / 2**20:.0f} MiB of agents (PSS) on {len(HOSTS['role'])} hosts"
        return [
            Result("hand-over : agent alone, memory at most", memory, "x", "<= 2.2", memory <= 2.2, mib),
            Result("hand-over : restart, CPU seconds", cpu, "x", "<= 4", cpu <= 4,
                   f"a host {change.cpu:.1f} : {restart.cpu:.1f}; seconds in all {change.seconds:.1f} : {restart.seconds:.1f}"),
        ]  # fmt: skip

    def drill(self) -> list[Result]:
        """The prober at its usual rate, with acts that are a process each."""
        place = self.directory / "drill"
        place.mkdir()
        act = {"steps": [{"kind": "connect", "address": "192.0.2.1"}], "fresh": True}
        (place / "acts.json").write_text(json.dumps({f"p{number}": act for number in range(PROBED_POLICIES)}), encoding="utf-8")
        prober = subprocess.Popen([sys.executable, str(PROBER), "run", str(place), str(PAUSE)], start_new_session=True)
        time.sleep(PROBED_SECONDS)
        spent = sum(map(_cpu, _descendants(prober.pid)))
        os.killpg(prober.pid, signal.SIGKILL)
        prober.wait()
        share = 100 * spent / PROBED_SECONDS / PROBED_POLICIES
        attempts = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in place.glob("*.log"))
        detail = f"of one core, per policy at an attempt each {PAUSE} s; {attempts} attempts in {PROBED_SECONDS} s"
        return [Result("drill, the prober's share", share, "%", "<= 3", share <= 3, detail)]


def _used(names: tuple[str, ...]) -> float:
    """CPU seconds of all processes that hosts ever had."""
    texts = [(CGROUPS / name / "cpu.stat").read_text(encoding="ascii") for name in names]
    return sum(int(re.search(r"usage_usec (\d+)", text)[1]) for text in texts) / 1e6  # type: ignore[index]


def _calls(done: Play) -> int:
    """Results of tasks, an item of a loop being one."""
    return len(re.findall(r"^(?:ok|changed): \[", done.output, re.MULTILINE))


class _Agents(threading.Thread):
    """Watches the memory of hosts' agents: ``usual`` before anything happens, ``peak`` of their sum while it does (PSS, bytes)."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self._groups = [CGROUPS / name for name in names]
        self._end = threading.Event()
        self.usual = self.peak = self._memory()

    def _memory(self) -> int:
        total = 0
        for group in self._groups:
            for processes in group.rglob("cgroup.procs"):
                for pid in _lines(processes):
                    if "bin/tetragon\0" in _text(f"/proc/{pid}/cmdline"):
                        found = re.search(r"^Pss: +(\d+) kB", _text(f"/proc/{pid}/smaps_rollup"), re.MULTILINE)
                        total += int(found[1]) * 1024 if found else 0
        return total

    def run(self) -> None:
        while not self._end.wait(SAMPLE_SECONDS):
            self.peak = max(self.peak, self._memory())

    def stop(self) -> None:
        self._end.set()
        self.join()


@contextmanager
def _agents(names: tuple[str, ...]) -> Iterator[_Agents]:
    watch = _Agents(names)
    watch.start()
    try:
        yield watch
    finally:
        watch.stop()


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:  # a process or a group that has gone meanwhile
        return ""


def _lines(path: Path) -> list[str]:
    return _text(path).split()


def _descendants(pid: int) -> list[int]:
    found = [pid]
    for child in _text(f"/proc/{pid}/task/{pid}/children").split():
        found += _descendants(int(child))
    return found


def _cpu(pid: int) -> float:
    """CPU seconds of a process and of those of its children that it has waited for."""
    fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def main() -> None:
    """Command line."""
    directory, collections, lab = (Path(word).resolve() for word in sys.argv[1:4])
    sys.exit(not Bench(directory, collections, lab).run())


if __name__ == "__main__":
    main()
