# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The chart's entry script with the real agent, in a machine with a stock kernel: pods that take over from each other.

pods.py DIRECTORY RELEASE: "pods" are units of the machine, each with its own mounts, as the chart's pods have them; no
Kubernetes. Prints attempts, allowed and wrong per kind of hook for every event; DIRECTORY gets ``pods.json``. Exit code 1
when something came through that must not. bpftool, which the agent's image has and its tarball not, comes from this machine.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import forbidden  # noqa: E402
import real  # noqa: E402

SCRIPT = HERE.parents[1] / "charts/apiary/files/agent.sh"
AGENT, PODS = "/opt/agent", "/var/lib/pods"
OPTIONS = {
    "bpf-lib": f"{AGENT}/lib/tetragon/bpf/",
    "gops-address": "",
    "health-server-address": "",
    "keep-sensors-on-exit": "true",
    "metrics-server": "",
    "release-pinned-bpf": "false",
}


class Pods(real.Lab):
    """The machine, its prober, and pods by a letter."""

    def start(self) -> None:
        self.machine.vm("rm", check=False)
        self.machine.up()
        self.machine.ssh("findmnt -n -t bpf /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf")
        self.machine.ssh(f"mkdir -p {AGENT}")
        inside = f"tar -xz -C {AGENT} --strip-components=3 --wildcards '*/usr/local/bin/*' '*/usr/local/lib/tetragon/bpf/*'"
        with self.release.open("rb") as tarball:
            self.machine.vm("ssh", inside, stdin=tarball, text=False)
        self.bpftool()
        self.machine.write(f"{AGENT}/agent.sh", SCRIPT.read_text(encoding="utf-8"))
        self.probe()

    def bpftool(self) -> None:
        """The program and what it is linked to, from here."""
        program = shutil.which("bpftool")
        if program is None:
            raise SystemExit("pods: bpftool is missing here (Debian's package bpftool)")
        linked = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
        libraries = [words[2] for words in map(str.split, linked.splitlines()) if len(words) > 2 and "libc.so" not in words[0]]
        packed = subprocess.run(["tar", "-cz", "--dereference", "-P", program, *libraries], capture_output=True, check=True).stdout
        unpack = f"mkdir -p {AGENT}/tools && tar -xz -P --transform 's,.*/,{AGENT}/tools/,'"
        self.machine.vm("ssh", unpack, stdin=None, input=packed, text=False)
        wrapper = f'#!/bin/sh\nLD_LIBRARY_PATH={AGENT}/tools exec {AGENT}/tools/bpftool "$@"\n'
        self.machine.write(f"{AGENT}/bin/bpftool", wrapper)
        self.machine.ssh(f"chmod +x {AGENT}/bin/bpftool && {AGENT}/bin/bpftool version")

    def run(self, letter: str, revision: str, broken: bool = False) -> None:
        """Lay out a pod with one policy per kind, and start it."""
        home = f"{PODS}/{letter}"
        policies = [forbidden.policy(kind, revision) for kind in real.KINDS]
        if broken:
            wrong = forbidden.policy("kprobe", "broken")
            policies.append({**wrong, "text": wrong["text"].replace("fd_install", "no_such_function")})
        self.machine.ssh(f"rm -rf {home}; mkdir -p {home}/run")
        for name, value in OPTIONS.items():
            self.machine.write(f"{home}/config/{name}", value)
        lines = []
        for one in sorted(policies, key=lambda one: not one["unpinned"]):
            self.machine.write(f"{home}/policies/..data/{one['loaded']}.yaml", one["text"])
            how = "overrides" if one["overrides"] else "-"
            lines.append(f"{one['loaded']}.yaml\t{one['loaded']}\t-\tenforce\t{how}\n")
        self.machine.write(f"{home}/policies/..data/policies.tsv", "".join(lines))
        self.machine.write(f"{home}/uid", str(uuid.uuid4()))
        self.begin_pod(letter)

    def environment(self, letter: str) -> str:
        home = f"{PODS}/{letter}"
        path = f"PATH={AGENT}/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return f"{path} POD_UID=$(cat {home}/uid) APIARY_ETC={home} APIARY_POD={home}/run APIARY_PROC=/proc"

    def begin_pod(self, letter: str) -> None:
        inner = f"mkdir -p /run/tetragon && mount -t tmpfs tmpfs /run/tetragon && exec bash {AGENT}/agent.sh run"
        properties = "--property=KillMode=mixed --property=TimeoutStopSec=900 --collect"
        self.machine.ssh(
            f"systemd-run --quiet --unit pod-{letter} {properties} env {self.environment(letter)} unshare -m bash -c '{inner}'"
        )

    def await_ready(self, letter: str) -> None:
        ready = f"env {self.environment(letter)} bash {AGENT}/agent.sh ready"
        failed = f"{{ journalctl -u pod-{letter} | tail -40 >&2; exit 1; }}"
        self.machine.ssh(
            f"end=$(($(date +%s) + {real.READY_SECONDS})); until {ready} 2>/dev/null; do"
            f" [ $(date +%s) -lt $end ] && systemctl -q is-active pod-{letter} || {failed}; sleep 2; done"
        )

    def stop(self, letter: str) -> None:
        self.machine.ssh(f"systemctl stop pod-{letter}")

    def alone(self, letter: str) -> None:
        """Wait until the pod's pins are the only ones; print what its script said."""
        self.machine.ssh("for i in $(seq 300); do [ $(ls -d /sys/fs/bpf/apiary-* | wc -l) = 1 ] && break; sleep 1; done")
        found = self.machine.ssh(f"ls -d /sys/fs/bpf/apiary-*; cat {PODS}/{letter}/uid").split()
        if len(found) != 2 or found[1] not in found[0]:
            raise SystemExit(f"pods: only the pins of {letter} ({found[-1]}) are to be left, and there are {found[:-1]}")
        print(self.machine.ssh(f"journalctl -o cat -u pod-{letter} | grep ^apiary"), flush=True)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("release", type=Path)
    parser.add_argument("--suite", default="bookworm", help="bookworm (kernel 6.1) or trixie (6.12)")
    parser.add_argument("--state", type=Path, default=Path("~/.cache/apiary/vm").expanduser())
    arguments = parser.parse_args()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    machine = real.Machine(f"pods-{arguments.suite}", arguments.state, arguments.suite)
    lab = Pods(machine, arguments.directory.resolve(), arguments.release.resolve())

    def done(phase: str) -> None:
        lab.mark(phase)
        time.sleep(10)
        (lab.directory / "pods.json").write_text(json.dumps(lab.report(), indent=1) + "\n", encoding="utf-8")

    try:
        lab.start()
        lab.mark("loading")
        lab.run("a", "r0")
        lab.await_ready("a")
        done("first")
        lab.mark("take-over")
        lab.run("b", "r1")
        lab.await_ready("b")
        lab.stop("a")
        lab.alone("b")
        done("after-take-over")
        lab.mark("bad-set")
        lab.run("c", "r2", broken=True)
        machine.ssh("while systemctl -q is-active pod-c; do sleep 2; done")
        lab.alone("b")
        lab.await_ready("b")
        done("after-bad-set")
        lab.mark("back")
        lab.run("a", "r0")
        lab.await_ready("a")
        lab.stop("b")
        lab.alone("a")
        done("after-back")
        lab.mark("crash")
        machine.ssh("pkill -KILL -x tetragon; while systemctl -q is-active pod-a; do sleep 1; done")
        lab.begin_pod("a")
        lab.await_ready("a")
        lab.alone("a")
        done("after-crash")
        counts = lab.report()
    finally:
        machine.vm("kill")
    print("attempts/allowed/wrong\n" + real.table(counts))
    meant = {name: one for name, one in counts.items() if name not in ("booting", "loading")}
    found = [line for line in real.lapses(meant) if not line.startswith("crash: lsm")]  # v1.7 pins no link of an LSM hook
    print("\n".join(found) or "nothing came through that must not")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
