# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Whole rollouts through the playbooks, over a few hosts: how they end, halt, go back, and survive their controller."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from ansible_collections.apiary.tetragon.plugins.plugin_utils import bundle
from ansible_collections.apiary.tetragon.plugins.plugin_utils.fleet.ledger import progress
from fleet import Fleet
from playbooks import Playbooks

REPOSITORY = Path(__file__).parents[2]
HOSTS = 3
POLICIES = [
    {"policy": "network/c2-ranges", "mode": "enforce", "values": {"ranges": ["192.0.2.0/24"]}},
    {"policy": "process/fileless-execution", "mode": "monitor"},
]
OWN = """
apiVersion: cilium.io/v1alpha1
kind: TracingPolicy
metadata: {name: own}
spec: {kprobes: [{call: sys_mount}]}
"""
RINGS = [{"name": "canary", "take": 1}, {"name": "fleet", "take": "rest", "batch": 1}]
GATES = {"bake": "1s", "failed_units": False, "control": 2}


class Controller(Playbooks):
    """A controller of a few hosts."""

    defaults: ClassVar[Mapping[str, Any]] = {"policies": POLICIES, "rings": RINGS, "gates": GATES}

    def __init__(self, directory: Path, fleet: Fleet) -> None:
        super().__init__(directory, fleet.inventory)
        self.fleet = fleet

    def modes(self) -> dict[str, dict[str, str]]:
        """What every agent lists: host, policy without revision, mode."""
        return {
            name: {policy.rpartition("-")[0]: one["mode"].removeprefix("TP_MODE_").lower() for policy, one in host.listed().items()}
            for name, host in self.fleet.hosts.items()
        }


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[Controller]:
    with Fleet(tmp_path / "lab", HOSTS) as fleet:
        yield Controller(tmp_path, fleet)


WANTED = {"c2-ranges": "enforce", "fileless-execution": "monitor"}
NOTHING: dict[str, str] = {}


def everywhere(what: dict[str, str]) -> dict[str, dict[str, str]]:
    return {f"host{number:02d}": what for number in range(1, HOSTS + 1)}


def test_a_rollout_reaches_every_host_ring_by_ring(controller: Controller) -> None:
    path = controller.environment()
    chosen = controller.bundle(path)
    done = controller.rollout(path, chosen)
    assert done.code == 0, done.output
    assert controller.modes() == everywhere(WANTED)
    assert controller.kinds() == [
        "rollout-started",
        *("ring-started", "gate", "ring-passed") * 2,
        "rollout-finished",
    ]
    started = [entry["ring"] for entry in controller.ledger.read() if entry["kind"] == "ring-started"]
    assert started == ["canary", "fleet"]
    assert re.findall(r"batch \d of \d", done.output) == ["batch 1 of 1", "batch 1 of 2", "batch 2 of 2"]
    report = controller.report()
    assert (report["outcome"], [ring["state"] for ring in report["rings"]]) == ("finished", ["passed", "passed"])
    processes = {name: host.process and host.process.pid for name, host in controller.fleet.hosts.items()}
    again = controller.rollout(path, chosen)
    assert (again.code, "add " in again.output) == (0, False)
    assert processes == {
        name: json.loads(host.inside("/var/run/tetragon/tetragon.pid").read_text()) for name, host in controller.fleet.hosts.items()
    }
    told = controller.play("status", path)
    assert "every host runs what it should" in told.output


def test_check_mode_tells_what_would_happen_and_does_nothing(controller: Controller) -> None:
    path = controller.environment()
    chosen = controller.bundle(path)
    done = controller.rollout(path, chosen, "--check", "--diff")
    assert done.code == 0, done.output
    assert done.output.count("add c2-ranges-") == HOSTS
    assert re.search(r"^\+c2-ranges-[0-9a-f]{8}: enforce$", done.output, re.MULTILINE)
    assert controller.modes() == everywhere(NOTHING)
    assert not (controller.directory / "ledger").exists()
    assert controller.rollout(path, chosen).code == 0
    after = controller.rollout(path, chosen, "--check", "--diff")
    assert (after.code, "add " in after.output) == (0, False)


def test_a_noisy_policy_halts_at_the_canary_and_goes_back(controller: Controller) -> None:
    path = controller.environment()
    assert controller.rollout(path, controller.bundle(path)).code == 0
    noisy = controller.environment(
        "noisy.yml", policies=[*POLICIES, {"policy": "file/config-reads", "mode": "monitor"}], gates={**GATES, "bake": "3s"}
    )
    chosen = controller.bundle(noisy)
    roots = [str(host.path) for host in controller.fleet.hosts.values()]
    workload = subprocess.Popen([sys.executable, "-m", "standin.workload", "--rate", "60", *roots], cwd=REPOSITORY / "tests/lab")
    try:
        done = controller.rollout(noisy, chosen)
    finally:
        workload.terminate()
        workload.wait()
    assert done.code != 0
    assert re.search(
        r"halted at ring canary: host\d\d: events of config-reads-[0-9a-f]{8}: \d+ events; limit 20.*every changed host is back",
        done.output,
    )
    assert controller.modes() == everywhere(WANTED)
    report = controller.report()
    assert (report["outcome"], [ring["state"] for ring in report["rings"]]) == ("rolled back", ["rolled back", "waiting"])
    refused = controller.rollout(noisy, chosen)
    assert "failed its gate before" in refused.output
    assert refused.code != 0
    assert controller.rollout(noisy, chosen, apiary_retry=True).code == 0


@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        pytest.param(
            {"fail_load": [["c2-ranges", "the verifier says no"]]},
            "c2-ranges-.*: the verifier says no; the host is as before",
            id="refused",
        ),
        pytest.param(
            {"burn_cpu_policy": {"prefix": "c2-ranges", "cores": 0.9}}, "cpu: 0.* cores; limit 0.1 above the baseline", id="costs too much"
        ),
        pytest.param({"exit_after_load": "c2-ranges"}, "tetra cannot|connection|agent", id="crashes"),
    ],
)
def test_a_policy_that_misbehaves_on_the_canary_reaches_nobody_else(controller: Controller, faults: dict[str, Any], reason: str) -> None:
    path = controller.environment(gates={**GATES, "bake": "3s"})
    chosen = controller.bundle(path)
    for host in controller.fleet.hosts.values():
        host.faults(**faults)
    done = controller.rollout(path, chosen)
    assert done.code != 0
    assert re.search(f"halted at ring canary: .*({reason})", done.output), done.output
    changed = [entry["hosts"] for entry in controller.ledger.read() if entry["kind"] == "rolled-back"]
    alive = {name: host for name, host in controller.fleet.hosts.items() if host.process and host.process.poll() is None}
    assert len(changed) == 1
    assert len(alive) >= HOSTS - 1
    assert all(host.listed() == {} for host in alive.values())
    if len(alive) < HOSTS:
        assert "NOT back: " in done.output


def test_a_host_that_cannot_go_back_is_named(controller: Controller) -> None:
    path = controller.environment(gates={**GATES, "commands": ["false"]})
    chosen = controller.bundle(path)
    for host in controller.fleet.hosts.values():
        host.faults(hang_on="delete")
    controller.fleet.write_inventory(**{name: {"apiary_timeout": 3} for name in controller.fleet.hosts})
    done = controller.rollout(path, chosen)
    assert done.code != 0
    assert re.search(r"halted at ring canary: host\d\d: health of false: exit code 1; NOT back: host\d\d", done.output), done.output


def test_missing_data_halts_without_going_back_and_the_next_run_goes_on(controller: Controller) -> None:
    path = controller.environment()
    chosen = controller.bundle(path)
    for host in controller.fleet.hosts.values():
        (host.inside("/etc/tetragon/tetragon.conf.d/metrics-server")).unlink()
        host.stop()
        host.start()
    done = controller.rollout(path, chosen)
    assert done.code != 0
    assert "the gate is inconclusive" in done.output
    assert "set its flag metrics-server" in done.output
    assert sorted(map(len, controller.modes().values())) == [0, 0, 2]
    quiet = controller.environment(gates={**GATES, "events_lost": False, "export_stalled": False})
    assert controller.bundle(quiet) == chosen
    again = controller.rollout(quiet, chosen)
    assert again.code == 0, again.output
    assert "rollout-resumed" in controller.kinds()
    assert controller.kinds().count("rollout-started") == 1
    assert controller.modes() == everywhere(WANTED)


def test_hosts_that_cannot_be_reached_count_against_the_budget(controller: Controller) -> None:
    lost = {"ansible_connection": "ansible.builtin.ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
    controller.fleet.write_inventory(host02=lost)
    path = controller.environment()
    chosen = controller.bundle(path)
    refused = controller.rollout(path, chosen)
    assert refused.code != 0
    assert "1 of 3 hosts cannot take part and 0 may be missing: host02: unreachable" in refused.output
    assert controller.modes() == everywhere(NOTHING)
    tolerant = controller.environment(gates={**GATES, "unreachable": 1})
    done = controller.rollout(tolerant, chosen)
    assert done.code == 0, done.output
    assert controller.modes() == {"host01": WANTED, "host02": NOTHING, "host03": WANTED}
    told = controller.play("status", tolerant)
    assert "host02: was never part of a rollout" in told.output


@pytest.fixture
def losable(controller: Controller, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every host is lost in the middle of its first change, until its file here that ends in .lost is removed."""
    directory = controller.directory / "losable"
    directory.mkdir()
    for name, host in controller.fleet.hosts.items():
        (directory / f"{name}.armed").write_text(str(host.inside("/var/lib/apiary/policies.json")), encoding="utf-8")
    monkeypatch.setenv("LOSABLE", str(directory))
    monkeypatch.setenv("ANSIBLE_CONNECTION_PLUGINS", str(REPOSITORY / "tests/lab/connection"))
    controller.fleet.write_inventory(**{name: {"ansible_connection": "losable"} for name in controller.fleet.hosts})
    return directory


def pending(controller: Controller) -> list[str]:
    """Hosts on which a change is under way or was cut off."""
    states = {name: host.inside("/var/lib/apiary/policies.json") for name, host in controller.fleet.hosts.items()}
    return [name for name, path in states.items() if path.exists() and json.loads(path.read_text(encoding="utf-8"))["pending"]]


def test_a_host_that_is_lost_in_the_middle_of_its_change_halts_the_rollout(controller: Controller, losable: Path) -> None:
    path = controller.environment()
    chosen = controller.bundle(path)
    done = controller.rollout(path, chosen)
    assert done.code != 0, done.output
    (lost,) = (file.stem for file in losable.glob("*.lost"))
    assert f"halted at ring canary: unreachable: 1 hosts; limit 0; lost: {lost}; NOT back: {lost}" in done.output, done.output
    assert pending(controller) == [lost]
    assert {name: modes for name, modes in controller.modes().items() if name != lost} == dict.fromkeys(
        set(controller.fleet.hosts) - {lost}, NOTHING
    )
    for file in (*losable.glob("*.lost"), *losable.glob("*.armed")):
        file.unlink()
    again = controller.rollout(path, chosen, apiary_retry=True)
    assert again.code == 0, again.output
    assert controller.modes() == everywhere(WANTED)
    assert pending(controller) == []


def test_batches_are_held_back_when_hosts_are_lost(controller: Controller, losable: Path) -> None:
    path = controller.environment(rings=[{"name": "all", "take": "rest", "batch": 1}])
    done = controller.rollout(path, controller.bundle(path))
    assert done.code != 0, done.output
    (lost,) = (file.stem for file in losable.glob("*.lost"))
    assert f"batch 2 of 3: held back: 1 host(s) lost and 0 may be: {lost}" in done.output, done.output
    assert f"NOT back: {lost}" in done.output
    assert len(list(losable.glob("*.armed"))) == HOSTS - 1


def test_a_full_disk_on_the_controller_is_an_error_and_the_next_run_goes_on(controller: Controller) -> None:
    path = controller.environment()
    chosen = controller.bundle(path)
    place = controller.directory / "ledger"
    place.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=28k", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mounted, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        done = controller.rollout(path, chosen)
        assert done.code != 0
        assert re.search(r"ledger/\S*: (the ledger )?cannot be written: No space left on device", done.output), done.output
        assert "Traceback" not in done.output
        assert not (place / "lab.lock").exists()
        assert not list(place.rglob("*.new"))
        subprocess.run(["mount", "-o", "remount,size=8m", str(place)], check=True)
        again = controller.rollout(path, chosen)
        assert again.code == 0, again.output
        assert controller.modes() == everywhere(WANTED)
        assert progress(controller.ledger.read(), "lab").current == bundle.read(chosen).digest
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param("agent", "no agent answers", id="agent not there"),
        pytest.param("client", "no program '/no/such/tetra' here", id="client not there"),
        pytest.param("hangs", "no answer within 2 seconds", id="agent hangs"),
        pytest.param("version", "runs agent 1.6.1; the environment's policies were checked for 1.7.0", id="other version"),
        pytest.param("kernel", "lacks fmodret, which Override on security_.* functions need", id="kernel lacks it"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_changes(controller: Controller, spoil: str, message: str) -> None:
    host = controller.fleet.hosts["host01"]
    if spoil == "agent":
        host.stop()
    elif spoil == "client":
        controller.fleet.write_inventory(host01={"apiary_tetra": "/no/such/tetra"})
    elif spoil == "hangs":
        host.faults(hang=True)
        controller.fleet.write_inventory(host01={"apiary_timeout": 2})
    else:
        host.faults(**({"version": "1.6.1"} if spoil == "version" else {"kernel_features": {"fmodret": False}}))
        host.stop()
        host.start()
    path = controller.environment()
    done = controller.rollout(path, controller.bundle(path))
    assert done.code != 0
    assert re.search(message, done.output), done.output
    assert controller.kinds() == []
    assert controller.fleet.hosts["host02"].listed() == {}


def test_a_bundle_altered_by_one_byte_is_refused(controller: Controller) -> None:
    path = controller.environment()
    chosen = controller.bundle(path)
    file = sorted(chosen.glob("host-*.yaml"))[0]
    file.write_bytes(file.read_bytes().replace(b"enforce", b"enfarce"))
    done = controller.rollout(path, chosen)
    assert done.code != 0
    assert f"{file.name}: was altered or is missing" in done.output
    assert controller.modes() == everywhere(NOTHING)


def test_a_second_rollout_is_refused_while_the_first_lasts(controller: Controller) -> None:
    path = controller.environment(gates={**GATES, "bake": "60s"})
    chosen = controller.bundle(path)
    command = controller.command("rollout", path, apiary_bundle=chosen)
    first = controller.start(command)
    try:
        wait_for(lambda: "ring-started" in controller.kinds())
        run = controller.ledger.read()[0]["run"]
        second = controller.rollout(path, chosen)
        assert second.code != 0
        assert f"rollout {run} is under way" in second.output
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()


def test_going_back_is_a_rollout_of_the_former_bundle(controller: Controller) -> None:
    path = controller.environment()
    first = controller.bundle(path)
    assert controller.rollout(path, first).code == 0
    wider = controller.environment(policies=[{**POLICIES[0], "values": {"ranges": ["192.0.2.0/24", "198.51.100.0/24"]}}, POLICIES[1]])
    assert controller.rollout(wider, controller.bundle(wider)).code == 0
    names = {name for host in controller.fleet.hosts.values() for name in host.listed()}
    done = controller.play("rollback", wider)
    assert done.code == 0, done.output
    assert {name for host in controller.fleet.hosts.values() for name in host.listed()} != names
    stand = progress(controller.ledger.read(), "lab")
    assert stand.current == bundle.read(first).digest
    shutil.rmtree(controller.directory / "bundles")
    lost = controller.play("rollback", wider)
    assert lost.code != 0
    assert "is not there, and it is what a roll-back would need" in lost.output


def test_hosts_changed_before_the_rings_were_redrawn_go_back_with_the_new_canary(controller: Controller) -> None:
    path = controller.environment(gates={**GATES, "bake": "60s"})
    chosen = controller.bundle(path)
    first = controller.start(controller.command("rollout", path, apiary_bundle=chosen))
    runs = controller.directory / "ledger/runs"
    try:
        wait_for(lambda: list(runs.glob("*/rings/canary/start/*.json")))
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    (changed,) = (name for name, modes in controller.modes().items() if modes == WANTED)
    rings = [{"name": "canary", "groups": ["databases"]}, RINGS[1]]
    redrawn = controller.environment(rings=rings, gates={**GATES, "commands": ["false"]})
    done = controller.rollout(redrawn, chosen)
    assert done.code != 0
    assert len(list(runs.iterdir())) == 1
    assert re.search(r"rolling 2 host\(s\) back", done.output), done.output
    assert [set(entry["hosts"]) for entry in controller.ledger.read() if entry["kind"] == "rolled-back"] == [{"host01", changed}]
    assert controller.modes() == everywhere(NOTHING)


def test_drift_is_told_by_host_and_policy(controller: Controller) -> None:
    path = controller.environment()
    assert controller.rollout(path, controller.bundle(path)).code == 0
    host = controller.fleet.hosts["host02"]
    (name,) = (policy for policy in host.listed() if policy.startswith("c2-ranges"))
    host.tetra("tp", "set-mode", name, "monitor")
    host.add(OWN)
    told = controller.play("status", path)
    assert "1 of 3 host(s) differ" in told.output
    assert f"host02: {name} is in mode monitor, not enforce" in told.output
    assert "policies that are not managed here: own" in told.output


def test_a_policy_whose_binary_was_replaced_is_told_and_the_next_run_loads_it_again(controller: Controller) -> None:
    libc = next(Path("/lib").glob("*/libc.so.6"))
    program = controller.directory / "program"
    shutil.copy(libc, program)
    values = {"program": str(program), "function": "malloc", "first_argument": [7]}
    path = controller.environment(policies=[{"policy": "application/function-call", "mode": "monitor", "values": values}])
    chosen = controller.bundle(path)
    assert controller.rollout(path, chosen).code == 0
    shutil.copy(libc, controller.directory / "upgraded")
    (controller.directory / "upgraded").rename(program)
    host = controller.fleet.hosts["host02"]
    (name,) = host.listed()
    told = controller.play("status", path)
    assert "3 of 3 host(s) differ" in told.output
    assert f"host02: {name} watches and enforces nothing in {program}, replaced since it was loaded" in told.output
    host.kernel.act("call", str(program), "malloc", "7")
    assert controller.rollout(path, chosen).code == 0
    host.kernel.act("call", str(program), "malloc", "7")
    wait_for(lambda: any("process_uprobe" in event for event in host.events()))
    assert sum("process_uprobe" in event for event in host.events()) == 1
    assert "every host runs what it should" in controller.play("status", path).output


def wait_for(condition: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def walk(controller: Controller, command: list[str]) -> tuple[int, set[str]]:
    """Start a rollout over and over, each time killing it at a milestone that was not reached before.

    What both bundles forbid is tried after every kill. Returns the exit code of the run that got to its end, and all
    milestones at which one was killed.
    """
    former = controller.runs()
    known: set[str] = set()
    while True:
        process = controller.start(command)
        new: set[str] = set()
        while process.poll() is None and not new:
            time.sleep(0.002)
            new = controller.milestones(former) - known
        if process.poll() is not None:
            return process.returncode, known
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        known |= controller.milestones(former)
        for host in controller.fleet.hosts.values():
            assert host.kernel.act("connect", "192.0.2.7", "443").result == "denied", new


def test_a_controller_that_is_killed_anywhere_is_taken_over_by_the_next_run(controller: Controller) -> None:
    gates = {**GATES, "bake": "0s", "blocks": 1000, "event_burst": 1000}  # our own probes are blocked
    path = controller.environment(gates=gates)
    assert controller.rollout(path, controller.bundle(path)).code == 0
    changed = controller.environment("changed.yml", gates=gates, policies=[{**POLICIES[0], "values": {"ranges": ["192.0.2.0/25"]}}])
    chosen = controller.bundle(changed)

    code, known = walk(controller, controller.command("rollout", changed, apiary_bundle=chosen))
    assert code == 0, (controller.directory / "output").read_text()
    rings = {f"{kind} {ring}" for kind in ("ring-started", "gate", "ring-passed") for ring in ("canary", "fleet")}
    assert {"run.json", "fleet/host.json", "plan.json", "rollout-started ", *rings} <= known
    assert len(known) > 18
    expected = {policy["loaded"] for policy in bundle.read(chosen).policies_for(())}
    assert {name: set(host.listed()) for name, host in controller.fleet.hosts.items()} == dict.fromkeys(controller.fleet.hosts, expected)
    stand = progress(controller.ledger.read(), "lab")
    assert (stand.current, stand.run) == (bundle.read(chosen).digest, "")
    assert not (controller.directory / "ledger/lab.lock").exists()


def test_a_controller_that_is_killed_anywhere_on_the_way_back_still_gets_there(controller: Controller) -> None:
    path = controller.environment(gates={**GATES, "bake": "0s"})
    assert controller.rollout(path, controller.bundle(path)).code == 0
    bad = controller.environment(
        "bad.yml", gates={**GATES, "bake": "0s", "commands": ["false"]}, policies=[{**POLICIES[0], "values": {"ranges": ["192.0.2.0/25"]}}]
    )

    code, known = walk(controller, controller.command("rollout", bad, apiary_bundle=controller.bundle(bad)))
    assert code != 0
    assert {"gate canary", "rings/canary/back/host.json", "rolled-back canary", "rollout-halted canary"} <= known
    assert controller.modes() == everywhere(WANTED)
