# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The real agent in a machine with a stock kernel: what of the forbidden acts comes through while it is stopped and changed.

real.py DIRECTORY RELEASE [EVENT...]: installs the release (a tarball as upstream publishes it) through the role, brings one
policy per kind of hook there, and prints attempts, allowed and wrong per kind for every event; DIRECTORY gets ``real.json``.
Exit code 1 when something came through that must not. Machines and snapshots: tests/lab/hosts/vm; needs root only for
the first image.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
VM = HERE.parent / "lab" / "hosts" / "vm"
sys.path.insert(0, str(HERE))

import forbidden  # noqa: E402

from ansible_collections.apiary.tetragon.plugins.module_utils.agent import prober  # noqa: E402
from ansible_collections.apiary.tetragon.plugins.plugin_utils import bundle  # noqa: E402

REPOSITORY = HERE.parents[1]
PROBE, PAUSE = "/var/lib/probe", 0.5
UNIT = "apiary-tetragon.service"
KINDS = tuple(forbidden.HOOKS)
LIST = "/usr/local/bin/tetra --timeout 120s tracingpolicy list -o json"
READY_SECONDS, CALL_SECONDS = 1800, 600
# v1.7 pins no link of an LSM hook: it is open whenever no agent has it attached. Its Override map has one place, so
# that two threads in the hook at the same moment cost one of them its verdict: single attempts come through at any time.
UNPINNED = ("lsm", "lsm-long")
OVERRIDES = ("override", "override-long")


class Machine:
    """One machine, by the tool ``vm``."""

    def __init__(self, name: str, state: Path, suite: str) -> None:
        self.name = name
        self.suite = suite
        self.environment = {**os.environ, "VM_STATE": str(state)}

    def vm(self, command: str, *arguments: str, **run: Any) -> subprocess.CompletedProcess[str]:
        options = {"text": True, "stdin": subprocess.DEVNULL, **run}
        check = options.pop("check", True)
        return subprocess.run([str(VM), command, self.name, *arguments], check=check, env=self.environment, **options)

    def begin(self, command: str, *arguments: str) -> subprocess.Popen[bytes]:
        """The same, not awaited: a process group of its own."""
        return subprocess.Popen(
            [str(VM), command, self.name, *arguments], env=self.environment, stdin=subprocess.DEVNULL, start_new_session=True
        )

    def up(self) -> None:
        self.vm("up", self.suite)
        self.vm("wait")

    def ssh(self, script: str, **run: Any) -> str:
        return str(self.vm("ssh", script, stdout=subprocess.PIPE, **run).stdout)

    def write(self, path: str, text: str) -> None:
        self.ssh(f"mkdir -p $(dirname {path}) && cat >{path}.new && mv {path}.new {path}", stdin=None, input=text)


class Lab:
    """The machine with its agent and prober, which attempts each act every ``pause`` seconds."""

    pause = PAUSE

    def __init__(self, machine: Machine, directory: Path, release: Path) -> None:
        self.machine = machine
        self.directory = directory
        self.release = release
        self.inventory = directory / "inventory.ini"
        self.revision = self.handovers = 0

    def start(self) -> None:
        """A machine with agent and prober: from the snapshot that an earlier run of the same files left, else anew."""
        places = ("roles", "plugins/module_utils", "plugins/modules", "tests/real/forbidden.py")
        sources = sorted(path for place in places for path in ((REPOSITORY / place), *(REPOSITORY / place).rglob("*")))
        content = hashlib.sha256(self.release.read_bytes())
        for path in sources:
            if path.is_file() and path.suffix != ".pyc":
                content.update(path.read_bytes())
        tag = f"loaded-{content.hexdigest()[:12]}"
        self.trust()
        self.machine.vm("kill")
        if self.machine.vm("restore", tag, check=False, stderr=subprocess.DEVNULL).returncode == 0:
            self.machine.vm("wait")
            return
        self.machine.vm("rm")
        self.machine.up()
        self.play("apiary.tetragon.install", self.variables())
        self.probe()
        self.mark("loading")
        self.converge(KINDS)
        self.machine.ssh("sync")
        self.machine.vm("snap", tag)

    def trust(self) -> None:
        """Let the copy of the collection that plays know this tarball's sum alone: it need not be the one that upstream built."""
        known = Path(os.environ["ANSIBLE_COLLECTIONS_PATH"], "ansible_collections/apiary/tetragon/plugins/plugin_utils/release/sums.yml")
        known.write_text("{}\n", encoding="utf-8")

    def variables(self, **options: Any) -> dict[str, Any]:
        """What the role is told: this release, and options of the agent."""
        version = re.search(r"tetragon-v(\d+\.\d+\.\d+\S*?)-(amd64|arm64)\.tar\.gz$", self.release.name)
        if version is None:
            raise SystemExit(f"real: {self.release.name}: a release is called tetragon-vVERSION-ARCHITECTURE.tar.gz")
        return {
            "apiary_agent_version": version.group(1),
            "apiary_agent_source": str(self.release),
            "apiary_agent_sha256": {version.group(2): hashlib.sha256(self.release.read_bytes()).hexdigest()},
            "apiary_agent_options": options,
            "apiary_agent_start_timeout": READY_SECONDS,
            "apiary_cache_dir": str(self.directory / "releases"),
            "apiary_timeout": CALL_SECONDS,
            "apiary_become": False,
        }

    def probe(self) -> None:
        """Start the prober, after every boot at once and before the agent."""
        self.machine.write("/usr/local/lib/prober.py", Path(prober.__file__).read_text(encoding="utf-8"))
        self.machine.write(f"{PROBE}/acts.json", json.dumps(forbidden.acts()))
        for name in ("plain", "kprobe", "override", "lsm"):
            self.machine.write(f"{forbidden.FILES}/{name}", name)
        self.machine.ssh(f"cp {forbidden.LIBRARY} {forbidden.FILES}/library")
        run = f"/usr/bin/python3 /usr/local/lib/prober.py run {PROBE} {self.pause}"
        unit = f"[Unit]\nDefaultDependencies=no\nAfter=local-fs.target\n[Service]\nExecStart={run}\n[Install]\nWantedBy=multi-user.target\n"
        self.machine.write("/etc/systemd/system/prober.service", unit)
        self.machine.ssh("systemctl daemon-reload && systemctl enable -q --now prober.service")

    def mark(self, phase: str) -> None:
        print(f"[{time.strftime('%H:%M:%S')}] {phase}", flush=True)
        self.machine.ssh(f"python3 /usr/local/lib/prober.py mark {PROBE} {phase}")

    def report(self) -> dict[str, Any]:
        return dict(json.loads(self.machine.ssh(f"python3 /usr/local/lib/prober.py report {PROBE}")))

    def slot(self) -> str:
        """The slot that boots."""
        return self.machine.ssh(f"readlink /etc/systemd/system/{UNIT}").strip().removesuffix(".service")[-1]

    def until(self, condition: str) -> None:
        """Wait until a command succeeds in the machine."""
        self.machine.ssh(f"end=$(($(date +%s) + {READY_SECONDS})); until {condition}; do [ $(date +%s) -lt $end ] || exit 1; sleep 1; done")

    def ready(self) -> None:
        """Wait until the unit is active, which means that every policy of its set is enabled in its mode; read that back."""
        self.until(f"systemctl -q is-active {UNIT}")
        listed = json.loads(self.machine.ssh(LIST)).get("policies", [])
        found = sorted((one.get("state", ""), one.get("mode", "")) for one in listed)
        if found != [("TP_STATE_ENABLED", "TP_MODE_ENFORCE")] * len(KINDS):
            raise SystemExit(f"real: {len(KINDS)} policies are to be enabled and enforce; the agent lists {found}")

    def converge(self, kinds: Sequence[str], mode: str = "enforce", must_fail: bool = False) -> str:
        """Bring the machine to one policy per kind through the collection's module over ssh; returns what Ansible said."""
        policies = [forbidden.policy(kind, f"r{self.revision}", mode) for kind in kinds]
        if must_fail:
            policies.append(forbidden.broken())
        arguments = {"policies": policies, "digest": f"r{self.revision}", "timeout": CALL_SECONDS}
        task = {"name": "Converge", "apiary.tetragon.policies": arguments}
        book = self.directory / "play.json"
        book.write_text(json.dumps([{"hosts": "vm", "gather_facts": False, "tasks": [task]}]), encoding="utf-8")
        return self.play(str(book), {}, must_fail)

    def play(self, playbook: str, variables: dict[str, Any], must_fail: bool = False) -> str:
        started = self.begin(playbook, variables)
        said = started.communicate()[0]
        if bool(started.returncode) is not must_fail:
            raise SystemExit(f"real: {playbook}: exit code {started.returncode}\n{said[-3000:]}")
        return said

    def begin(self, playbook: str, variables: dict[str, Any]) -> subprocess.Popen[str]:
        host = self.machine.vm("host", stdout=subprocess.PIPE).stdout
        self.inventory.write_text(f"vm {host}", encoding="utf-8")
        return subprocess.Popen(
            ["ansible-playbook", "-i", str(self.inventory), playbook, "--extra-vars", json.dumps(variables)],
            env={**os.environ, "ANSIBLE_PIPELINING": "1", "ANSIBLE_PYTHON_INTERPRETER": "/usr/bin/python3", "ANSIBLE_TIMEOUT": "120"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


def _stop(lab: Lab) -> None:
    lab.machine.ssh(f"systemctl stop {UNIT} && sleep 10")
    lab.mark("start")
    lab.machine.ssh(f"systemctl start {UNIT}")
    lab.ready()


def _kill(lab: Lab) -> None:
    lab.machine.ssh(f"systemctl kill -s KILL --kill-who=main {UNIT} && sleep 4")
    lab.ready()


def _restart(lab: Lab) -> None:
    lab.machine.ssh(f"systemctl restart {UNIT}")
    lab.ready()


def _boot(lab: Lab) -> None:
    """Until the agent has loaded its directory, a boot is open: the prober begins the phase "booting" by itself."""
    read = "cat /proc/sys/kernel/random/boot_id"
    boot, end = lab.machine.ssh(f"sync; {read}"), time.monotonic() + READY_SECONDS
    lab.machine.ssh("systemctl reboot", check=False)
    while lab.machine.ssh(read, check=False) in ("", boot):
        if time.monotonic() > end:
            raise SystemExit("real: the machine did not reboot")
        time.sleep(5)
    lab.ready()


def _power_cut(lab: Lab) -> None:
    lab.machine.ssh("sync")
    lab.machine.vm("kill")
    lab.machine.up()
    lab.ready()


def _handover(lab: Lab) -> None:
    """To the same version with another option: upgrade, downgrade and change of configuration are one procedure."""
    lab.handovers += 1
    slot = lab.slot()
    lab.play("apiary.tetragon.upgrade", lab.variables(**{"rb-size": str(65536 << lab.handovers)}))
    lab.ready()
    if lab.slot() == slot:
        raise SystemExit(f"real: slot {slot} still boots after the hand-over")


def _handover_cut(lab: Lab) -> None:
    """Cut the power while the next agent loads; one agent boots, with everything; the next run goes on from there."""
    lab.handovers += 1
    slot = lab.slot()
    started = lab.begin("apiary.tetragon.upgrade", lab.variables(**{"rb-size": str(65536 << lab.handovers)}))
    waiting = 'until grep -q \'"step": "load"\' /var/lib/apiary/handover.json 2>/dev/null; do sleep 0.5; done; sleep 20'
    lab.machine.ssh(waiting)
    lab.machine.vm("kill")
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    lab.machine.up()
    lab.ready()
    if lab.slot() != slot:
        raise SystemExit(f"real: the power was cut before slot {slot} gave way, and it does not boot")
    lab.handovers -= 1
    lab.mark("handover-again")
    _handover(lab)


def _bad_file(lab: Lab) -> None:
    """A broken file in the middle of the policy directory: into the third start that it makes fail, then without it.

    Left to itself the second start would delete the pins that the first one has moved aside.
    """
    slot = lab.slot()
    path = f"/etc/apiary/slots/{slot}/policies/apiary/1-l-broken.yaml"
    lab.machine.write(path, forbidden.broken()["text"])
    lab.machine.ssh(f"systemctl restart --no-block {UNIT}")
    lab.until(f"[ $(systemctl show -P NRestarts {UNIT}) -ge 2 ]")
    time.sleep(20)
    lab.mark("mended")
    lab.machine.ssh(f"rm {path}; systemctl reset-failed {UNIT}; systemctl restart {UNIT}")
    lab.ready()
    journal = f"journalctl -b -u apiary-tetragon-{slot} -o cat"
    healed = int(lab.machine.ssh(f"{journal} | grep -c 'the start before this one did not finish'", check=False))
    if healed < 2:
        raise SystemExit(f"real: pins that a failed start had moved aside were put back {healed} times; at least 2 starts failed")


def _replaced(lab: Lab) -> None:
    """What a package upgrade does to a library: another file under its path, in which nothing is watched until the next converge."""
    path = f"{forbidden.FILES}/library"
    lab.machine.ssh(f"cp {path} {path}.new && mv {path}.new {path}; sleep 10")
    lab.mark("reload")
    said = lab.converge(KINDS)
    if "replaced since it was loaded" not in " ".join(said.split()):
        raise SystemExit(f"real: the library was replaced, and it was not noticed:\n{said[-3000:]}")


def _drill(lab: Lab) -> None:
    """The role's own drill, with a reboot. It must find that LSM is open without an agent, and nothing else but its race."""
    reports = lab.directory / "reports"
    said = lab.play(
        "apiary.tetragon.drill",
        {
            **lab.variables(),
            "apiary_bundle": str(bundle.write(forbidden.bundle(f"r{lab.revision}"), lab.directory / "bundles")),
            "apiary_drill_confirmed": True,
            "apiary_drill_reboot": True,
            "apiary_drill_pause": PAUSE,
            "apiary_report_dir": str(reports),
        },
        must_fail=True,
    )
    if "drill of vm" not in said:
        raise SystemExit(f"real: the drill came to no result:\n{said[-3000:]}")
    print(said[said.index("drill of vm") :])
    found = json.loads((reports / "drill-vm.json").read_text(encoding="utf-8"))["lapses"]
    wrong = [one for one in found if not re.match(r"(stop|start|kill|restart|shutdown): lsm: |\S+: lsm: 1 of ", one)]
    if wrong or not found:
        raise SystemExit(f"real: the drill was to find LSM alone, open without an agent; it found: {found}")


def _adopt(lab: Lab) -> None:
    """Take ours off, put the agent there as upstream's installer does, and take that over."""
    lab.play("apiary.tetragon.remove", {**lab.variables(), "apiary_remove_confirmed": True})
    lab.mark("upstream")
    with lab.release.open("rb") as file:
        lab.machine.ssh("mkdir -p /root/upstream && tar -xz -C /root/upstream --strip-components=1", stdin=file)
    etc = "/etc/tetragon/tetragon"
    for kind in KINDS:
        lab.machine.write(f"{etc}.tp.d/{kind}.yaml", forbidden.policy(kind, "upstream")["text"])
    lab.machine.write(f"{etc}.conf.d/keep-sensors-on-exit", "true")
    lab.machine.ssh("/root/upstream/install.sh >&2")
    lab.until(f"[ $({LIST} | grep -o TP_STATE_ENABLED | wc -l) = {len(KINDS)} ]")
    lab.mark("take-over")
    lab.play("apiary.tetragon.upgrade", {**lab.variables(), "apiary_agent_adopt": True})
    lab.ready()


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

    act: Callable[[Any], None]
    open: Sequence[str] = ()
    wrong: bool = False


ALL = tuple(forbidden.acts())
EVENTS = {
    "revision": Event(_revision),
    "bad-policy": Event(_bad_policy),
    "mode": Event(_monitor_and_back, ALL),
    "handover": Event(_handover),
    "handover-cut": Event(_handover_cut),
    "stop": Event(_stop, UNPINNED),
    "kill": Event(_kill, UNPINNED, True),
    "restart": Event(_restart, UNPINNED, True),
    "bad-file": Event(_bad_file, UNPINNED, True),
    "reboot": Event(_boot, UNPINNED),
    "power-cut": Event(_power_cut, UNPINNED),
    "replaced": Event(_replaced, ("uprobe",)),
    "drill": Event(_drill, UNPINNED, True),
    "adopt": Event(_adopt, ALL),
}
# Phases that an event begins on its own.
INNER = {
    "loading": Event(_revision, ALL),
    "enforce": Event(_monitor_and_back, ALL),
    "start": Event(_stop, UNPINNED, True),
    "booting": Event(_boot, ALL),
    "mended": Event(_bad_file, UNPINNED, True),
    "reload": Event(_replaced, ("uprobe",)),
    "upstream": Event(_adopt, ALL),
}


def table(counts: dict[str, Any]) -> str:
    """Phases down, kinds across: attempts/allowed/wrong."""
    kinds = list(ALL)
    rows = [["", *kinds]]
    for phase, found in counts.items():
        cells = [found.get(kind) for kind in kinds]
        rows.append([phase, *("{attempts}/{allowed}/{wrong}".format(**cell) if cell else "-" for cell in cells)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def lapses(counts: dict[str, Any], events: Mapping[str, Event] = EVENTS | INNER) -> list[str]:
    """What came through although it must not, or was refused wrongly.

    Single attempts of LSM hooks are the agent's own race. So is one unrelated act after an Override, refused because its thread
    was between two copies when one process flipped their modes.

    ``events``: by phase, ``booting`` for all boots; a phase that it does not have is to be without a gap.
    """
    found = []
    for phase, kinds in counts.items():
        name = "booting" if phase.endswith("booting") else re.sub(r"-\d+$", "", phase)
        event = events.get(name, Event(_revision))
        for kind, cell in kinds.items():
            if cell["allowed"] and kind not in event.open and not (kind in UNPINNED and cell["gap"] == 0):
                found.append(f"{phase}: {kind}: {cell['allowed']} of {cell['attempts']} came through, longest {cell['gap']} s")
            if cell["wrong"] > (kind in OVERRIDES) and not event.wrong:
                found.append(f"{phase}: {kind}: {cell['wrong']} of {cell['attempts']} unrelated acts were refused")
    return found


def read_arguments(description: str, events: Mapping[str, Event]) -> argparse.Namespace:
    """What the command line names: directory, which is made, release, events, suite and state. Exits with 2 for what is not there."""
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("release", type=Path)
    parser.add_argument("events", nargs="*", help=f"of {', '.join(events)}, in this order; all when none is named")
    parser.add_argument("--suite", default="bookworm", help="bookworm (kernel 6.1) or trixie (6.12)")
    parser.add_argument("--state", type=Path, default=Path("~/.cache/apiary/vm").expanduser())
    arguments = parser.parse_args()
    unknown = [name for name in arguments.events if name not in events]
    if unknown:
        parser.error(f"unknown events: {', '.join(unknown)}; there are {', '.join(events)}")
    if not arguments.release.is_file():
        parser.error(f"{arguments.release}: no such file; give the release's tarball, as in TETRAGON_RELEASE=tetragon-v1.7.0-amd64.tar.gz")
    arguments.directory = arguments.directory.resolve()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    return arguments


def main() -> int:
    """Entry point."""
    arguments = read_arguments(__doc__ or "", EVENTS)
    machine = Machine(f"real-{arguments.suite}", arguments.state, arguments.suite)
    lab = Lab(machine, arguments.directory, arguments.release.resolve())
    try:
        lab.start()
        counts: dict[str, Any] = {}
        names = arguments.events or list(EVENTS)
        for index, name in enumerate(names):
            before = names[:index].count(name)
            phase = f"{name}-{before + 1}" if before else name
            lab.mark(phase)
            EVENTS[name].act(lab)
            machine.ssh(f"sed -i 's/ booting$/ {phase}-booting/' {PROBE}/phases")
            lab.mark(f"after-{phase}")
            time.sleep(10)
            counts = lab.report()
            (lab.directory / "real.json").write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")
    finally:
        machine.vm("kill")
    print("attempts/allowed/wrong\n" + table(counts))
    found = lapses(counts)
    print("\n".join(found) or "nothing came through that must not")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
