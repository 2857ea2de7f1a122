# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The real agent in a machine with a stock kernel: what of the forbidden acts comes through while it is stopped and changed.

real.py DIRECTORY RELEASE [EVENT...]: installs the release (a tarball as upstream publishes it), runs policies.py's one
policy per kind of hook, and prints attempts, allowed and wrong per kind for every event; DIRECTORY gets ``real.json``.
Exit code 1 when something came through that must not. Machines and snapshots: tests/lab/hosts/vm; needs root only for
the first image.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
VM = HERE.parent / "lab" / "hosts" / "vm"
sys.path.insert(0, str(HERE))

import forbidden  # noqa: E402
import prober  # noqa: E402

PROBE, PAUSE = "/var/lib/probe", 0.3
CONF, POLICIES = "/etc/tetragon/tetragon.conf.d", "/etc/tetragon/tetragon.tp.d"
OPTIONS = {"keep-sensors-on-exit": "true", "release-pinned-bpf": "false", "metrics-server": "127.0.0.1:2112", "health-server-address": ""}
KINDS = tuple(forbidden.HOOKS)
READY_SECONDS = 900
# v1.7 pins no link of an LSM hook: it is open whenever no agent has it attached. Its Override map has one place, so
# that two threads in the hook at the same moment cost one of them its verdict: single attempts come through at any time.
UNPINNED = ("lsm", "lsm-long")


class Machine:
    """One machine, by the tool ``vm``."""

    def __init__(self, name: str, state: Path, suite: str, release: Path) -> None:
        self.name = name
        self.suite = suite
        self.environment = {**os.environ, "VM_STATE": str(state), "VM_DATA": str(release)}

    def vm(self, command: str, *arguments: str, **run: Any) -> subprocess.CompletedProcess[str]:
        options = {"text": True, "stdin": subprocess.DEVNULL, **run}
        check = options.pop("check", True)
        return subprocess.run([str(VM), command, self.name, *arguments], check=check, env=self.environment, **options)

    def up(self) -> None:
        self.vm("up", self.suite)
        self.vm("wait")

    def ssh(self, script: str, **run: Any) -> str:
        return str(self.vm("ssh", script, stdout=subprocess.PIPE, **run).stdout)

    def write(self, path: str, text: str) -> None:
        self.ssh(f"mkdir -p $(dirname {path}) && cat >{path}.new && mv {path}.new {path}", stdin=None, input=text)


class Lab:
    """The machine with its agent and prober."""

    def __init__(self, machine: Machine, directory: Path) -> None:
        self.machine = machine
        self.directory = directory
        self.inventory = directory / "inventory.ini"
        self.revision = 0

    def start(self, release: Path) -> None:
        """A machine with agent and prober: from the snapshot that an earlier run left for this release and these files, else anew."""
        content = [Path(__file__).read_bytes(), (HERE / "prober.py").read_bytes(), release.read_bytes()]
        tag = "installed-" + hashlib.sha256(b"".join(hashlib.sha256(one).digest() for one in content)).hexdigest()[:12]
        self.machine.vm("kill")
        if self.machine.vm("restore", tag, check=False, stderr=subprocess.DEVNULL).returncode == 0:
            self.machine.vm("wait")
            return
        self.machine.vm("rm")
        self.machine.up()
        self.install()
        self.probe()
        self.machine.ssh("sync")
        self.machine.vm("snap", tag)

    def install(self) -> None:
        """Put the release there as a person would by hand, with the options that keep enforcement, and start it."""
        self.machine.ssh("tar xzf /dev/vdb -C /opt")
        for name, value in OPTIONS.items():
            self.machine.write(f"{CONF}/{name}", value + "\n")
        self.machine.ssh("bash /opt/tetragon-*/install.sh && rm -rf /opt/tetragon-*")
        self.ready(0)

    def ready(self, policies: int) -> None:
        """Wait until the agent that runs now has loaded its directory and enforces with so many policies."""
        script = (
            f"end=$(($(date +%s) + {READY_SECONDS})); until journalctl -q --no-pager -o cat _SYSTEMD_INVOCATION_ID="
            "$(systemctl show -p InvocationID --value tetragon) | grep -q 'Listening for events\\.\\.\\.'; do"
            " [ $(date +%s) -lt $end ] || exit 1; sleep 1; done; tetra --timeout 120s tracingpolicy list -o json"
        )
        listed = json.loads(self.machine.ssh(script)).get("policies", [])
        states = sorted(one.get("state", "") for one in listed)
        if states != ["TP_STATE_ENABLED"] * policies:
            raise SystemExit(f"real: {policies} policies were to be enabled; the agent lists {states}")

    def probe(self) -> None:
        """Start the prober, after every boot at once and before the agent."""
        self.machine.write("/usr/local/lib/prober.py", (HERE / "prober.py").read_text(encoding="utf-8"))
        run = f"/usr/bin/python3 /usr/local/lib/prober.py run {PROBE} {PAUSE}"
        unit = f"[Unit]\nDefaultDependencies=no\nAfter=local-fs.target\n[Service]\nExecStart={run}\n[Install]\nWantedBy=multi-user.target\n"
        self.machine.write("/etc/systemd/system/prober.service", unit)
        self.machine.ssh("systemctl daemon-reload && systemctl enable -q --now prober.service")

    def mark(self, phase: str) -> None:
        print(f"[{time.strftime('%H:%M:%S')}] {phase}", flush=True)
        self.machine.ssh(f"python3 /usr/local/lib/prober.py mark {PROBE} {phase}")

    def report(self) -> dict[str, Any]:
        return dict(json.loads(self.machine.ssh(f"python3 /usr/local/lib/prober.py report {PROBE}")))

    def converge(self, kinds: Sequence[str], mode: str = "enforce", must_fail: bool = False) -> str:
        """Bring the machine to one policy per kind through the collection's module over ssh; returns what Ansible said."""
        policies = [forbidden.policy(kind, f"r{self.revision}", mode) for kind in kinds]
        if must_fail:
            broken = forbidden.policy("kprobe", "broken")
            policies.append({**broken, "text": broken["text"].replace("fd_install", "no_such_function")})
        return self.ansible("apiary.tetragon.policies", {"policies": policies, "digest": f"r{self.revision}", "timeout": 300}, must_fail)

    def ansible(self, module: str, arguments: dict[str, Any], must_fail: bool = False) -> str:
        host = self.machine.vm("host", stdout=subprocess.PIPE).stdout
        self.inventory.write_text(f"vm {host}", encoding="utf-8")
        play = [{"hosts": "vm", "gather_facts": False, "tasks": [{"name": "Do it", module: arguments}]}]
        book = self.directory / "play.json"
        book.write_text(json.dumps(play), encoding="utf-8")
        done = subprocess.run(
            ["ansible-playbook", "-i", str(self.inventory), str(book)],
            env={**os.environ, "ANSIBLE_PIPELINING": "1", "ANSIBLE_PYTHON_INTERPRETER": "/usr/bin/python3"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if bool(done.returncode) is not must_fail:
            raise SystemExit(f"real: {module}: exit code {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-1000:]}")
        return done.stdout


def _stop(lab: Lab) -> None:
    lab.machine.ssh("systemctl stop tetragon && sleep 10")
    lab.mark("start")
    lab.machine.ssh("systemctl start tetragon")
    lab.ready(len(KINDS))


def _kill(lab: Lab) -> None:
    lab.machine.ssh("systemctl kill -s KILL tetragon && sleep 8")
    lab.ready(len(KINDS))


def _restart(lab: Lab) -> None:
    lab.machine.ssh("systemctl restart tetragon")
    lab.ready(len(KINDS))


def _boot(lab: Lab) -> None:
    """Until the agent has loaded its directory, a boot is open: the prober begins the phase "booting" by itself."""
    lab.machine.ssh("sync; systemctl reboot", check=False)
    time.sleep(20)
    lab.machine.vm("wait")
    lab.ready(len(KINDS))


def _power_cut(lab: Lab) -> None:
    lab.machine.ssh("sync")
    lab.machine.vm("kill")
    lab.machine.up()
    lab.ready(len(KINDS))


def _configuration(lab: Lab) -> None:
    lab.machine.write(f"{CONF}/rb-size", "131072\n")
    _restart(lab)


def _bad_file(lab: Lab) -> None:
    """A broken file in the policy directory, and the crash loop that it makes of a restart."""
    broken = forbidden.policy("kprobe", "broken")["text"].replace("fd_install", "no_such_function")
    lab.machine.write(f"{POLICIES}/5-broken.yaml", broken)
    lab.machine.ssh("systemctl restart tetragon; sleep 60")
    lab.machine.ssh(f"systemctl stop tetragon; rm {POLICIES}/5-broken.yaml; systemctl reset-failed tetragon; systemctl start tetragon")
    lab.ready(len(KINDS))


def _revision(lab: Lab) -> None:
    lab.revision += 1
    lab.converge(KINDS)


def _monitor_and_back(lab: Lab) -> None:
    lab.converge(KINDS, "monitor")
    lab.mark("enforce")
    lab.converge(KINDS)


def _bad_policy(lab: Lab) -> None:
    said = lab.converge(KINDS, must_fail=True)
    if "the host is as before" not in said:
        raise SystemExit(f"real: the refused policy was not undone:\n{said[-3000:]}")


@dataclass(frozen=True)
class Event:
    """``open``: kinds that the agent cannot keep shut meanwhile. ``wrong``: two enforcing copies refuse unrelated acts."""

    act: Callable[[Lab], None]
    open: Sequence[str] = ()
    wrong: bool = False


ALL = tuple(prober.ACTS)
EVENTS = {
    "revision": Event(_revision),
    "bad-policy": Event(_bad_policy),
    "mode": Event(_monitor_and_back, ALL),
    "stop": Event(_stop, UNPINNED),
    "kill": Event(_kill, UNPINNED, True),
    "restart": Event(_restart, UNPINNED, True),
    "configuration": Event(_configuration, UNPINNED, True),
    "bad-file": Event(_bad_file, ALL, True),
    "reboot": Event(_boot, UNPINNED),
    "power-cut": Event(_power_cut, UNPINNED),
}
# Phases that an event begins on its own.
INNER = {
    "loading": Event(_revision, ALL),
    "enforce": Event(_monitor_and_back, ALL),
    "start": Event(_stop, UNPINNED, True),
    "booting": Event(_boot, ALL),
}


def table(counts: dict[str, Any]) -> str:
    """Phases down, kinds across: attempts/allowed/wrong."""
    kinds = list(prober.ACTS)
    rows = [["", *kinds]]
    for phase, found in counts.items():
        cells = [found.get(kind) for kind in kinds]
        rows.append([phase, *("{attempts}/{allowed}/{wrong}".format(**cell) if cell else "-" for cell in cells)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def lapses(counts: dict[str, Any]) -> list[str]:
    """What came through although it must not, or was refused wrongly. Single attempts of LSM hooks are the agent's own race."""
    found = []
    for phase, kinds in counts.items():
        event = {**EVENTS, **INNER}.get(phase, Event(_revision))
        for kind, cell in kinds.items():
            if cell["allowed"] and kind not in event.open and not (kind in UNPINNED and cell["gap"] == 0):
                found.append(f"{phase}: {kind}: {cell['allowed']} of {cell['attempts']} came through, longest {cell['gap']} s")
            if cell["wrong"] and not event.wrong:
                found.append(f"{phase}: {kind}: {cell['wrong']} of {cell['attempts']} unrelated acts were refused")
    return found


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("release", type=Path)
    parser.add_argument("events", nargs="*", help=f"of {', '.join(EVENTS)}; all when none is named")
    parser.add_argument("--suite", default="bookworm", help="bookworm (kernel 6.1) or trixie (6.12)")
    parser.add_argument("--state", type=Path, default=Path("~/.cache/apiary/vm").expanduser())
    arguments = parser.parse_args()
    unknown = [name for name in arguments.events if name not in EVENTS]
    if unknown:
        parser.error(f"unknown events: {', '.join(unknown)}; there are {', '.join(EVENTS)}")
    if not arguments.release.is_file():
        parser.error(f"{arguments.release}: no such file; give the release's tarball, as in TETRAGON_RELEASE=tetragon-v1.7.0-amd64.tar.gz")
    arguments.directory.mkdir(parents=True, exist_ok=True)
    machine = Machine(f"real-{arguments.suite}", arguments.state, arguments.suite, arguments.release.resolve())
    lab = Lab(machine, arguments.directory.resolve())
    try:
        lab.start(arguments.release)
        lab.mark("loading")
        lab.converge(KINDS)
        for name in arguments.events or EVENTS:
            lab.mark(name)
            EVENTS[name].act(lab)
            lab.mark(f"after-{name}")
            time.sleep(10)
        counts = lab.report()
    finally:
        machine.vm("kill")
    (lab.directory / "real.json").write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")
    print("attempts/allowed/wrong\n" + table(counts))
    found = lapses(counts)
    print("\n".join(found) or "nothing came through that must not")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
