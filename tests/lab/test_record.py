# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Recordings against the stand-in: what they hold, when they end, and that their policies go, whatever is killed."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.apiary.tetragon.plugins.module_utils.agent import recorder
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.converge import Host
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.scrub import Scrubber
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.state import Busy
from ansible_collections.apiary.tetragon.plugins.plugin_utils import recording
from fleet import Fleet
from standin.host import LabHost
from standin.kernel import Caller

OWN = """
apiVersion: cilium.io/v1alpha1
kind: TracingPolicy
metadata: {name: own}
spec: {kprobes: [{call: sys_mount}]}
"""
SECONDS = 120.0

Start = Callable[..., recorder.Job]


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)


@pytest.fixture
def start(host: LabHost, target: Host, tmp_path: Path) -> Iterator[Start]:
    """Starts a recording of file accesses beside a policy of somebody else."""
    host.add(OWN)
    jobs = []

    def begin(seconds: float = 60, events: int = 1000, size: int = 1 << 20, cpu: float = 99, **scrub: Any) -> recorder.Job:
        (one,) = recording.recorders(["file"])
        text = json.dumps(recorder.observing(one["document"], one["name"], ["/usr/bin/left-out"]))
        pid_file = str(host.inside("/var/run/tetragon/tetragon.pid"))
        limits = recorder.Limits(seconds, events, size, cpu)
        job = recorder.Job(target.tetra, pid_file, str(tmp_path / "recording"), {one["name"]: text}, limits, Scrubber(**scrub))
        recorder.start(job)
        jobs.append(job)
        return job

    yield begin
    for job in jobs:
        recorder.stop(job.directory)


def ended(job: recorder.Job) -> dict[str, Any]:
    until(lambda: recorder.read_result(job.directory) and not recorder.running(job.directory))
    return recorder.read_result(job.directory)


def recorded(job: recorder.Job) -> list[dict[str, Any]]:
    with gzip.open(job.path(recorder.EVENTS), "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def test_a_recording_holds_its_own_events_and_ends_by_itself(host: LabHost, start: Start) -> None:
    job = start(seconds=2)
    assert set(host.listed()) == {"own", *job.policies}
    time.sleep(0.3)
    host.kernel.act("write", "/etc/app.conf", caller=Caller(binary="/usr/bin/vi"))
    host.kernel.act("write", "/etc/app.conf", caller=Caller(binary="/usr/bin/left-out"))
    result = ended(job)
    assert result["ended"] == "its time is over"
    assert result["stuck"] == []
    assert set(host.listed()) == {"own"}
    events = recorded(job)
    assert len(events) == result["events"] >= 1
    assert {event["process_kprobe"]["policy_name"] for event in events} == set(job.policies)
    assert {event["process_kprobe"]["process"]["binary"] for event in events} == {"/usr/bin/vi"}


def test_a_second_recording_is_refused(start: Start) -> None:
    start()
    with pytest.raises(Busy, match="a recording is running"):
        start()


def test_a_recording_ends_when_it_is_told_to(host: LabHost, start: Start) -> None:
    job = start()
    assert recorder.stop(job.directory)
    assert ended(job)["ended"] == "it was told to end"
    assert set(host.listed()) == {"own"}


@pytest.mark.parametrize(("limit", "why"), [({"events": 3}, "it holds 3 events"), ({"size": 2000}, "bytes, as many as it may")])
def test_a_recording_ends_at_its_limits(limit: dict[str, int], why: str, host: LabHost, start: Start) -> None:
    job = start(**limit)
    time.sleep(0.3)
    for _unused in range(20):
        host.kernel.act("write", "/etc/app.conf")
    result = ended(job)
    assert why in result["ended"]
    assert result["events"] == len(recorded(job)) <= 4
    assert set(host.listed()) == {"own"}


def test_a_recording_ends_when_the_agent_gets_busy(host: LabHost, start: Start) -> None:
    job = start(cpu=-1)
    assert "more than -1 cores" in ended(job)["ended"]
    assert set(host.listed()) == {"own"}


def test_the_policies_go_when_the_recorder_is_killed(host: LabHost, start: Start) -> None:
    job = start()
    pid = recorder.running(job.directory)
    assert pid
    os.kill(pid, signal.SIGKILL)
    until(lambda: set(host.listed()) == {"own"})
    assert ended(job) == {"ended": "the recorder was killed", "stuck": []}


def test_a_recording_ends_with_its_agent(host: LabHost, start: Start) -> None:
    job = start()
    host.stop()
    host.start()
    assert ended(job)["ended"] == "the agent's stream of events ended"
    assert not [name for name in host.listed() if name.startswith(recorder.PREFIX)]


def test_what_a_former_recording_left_goes_with_the_next(host: LabHost, start: Start) -> None:
    host.add(OWN.replace("name: own", f"name: {recorder.PREFIX}left"))
    assert set(host.listed()) == {"own", f"{recorder.PREFIX}left"}
    assert set(host.listed()) == {"own", *start().policies} or set(host.listed()) > {"own"}
    assert f"{recorder.PREFIX}left" not in host.listed()


def test_a_policy_that_does_not_load_leaves_nothing(host: LabHost, start: Start) -> None:
    (one,) = recording.recorders(["file"])
    host.faults(load_seconds=0, fail_load=[[one["name"], "the verifier says no"]])
    with pytest.raises(recorder.Recording, match="the verifier says no"):
        start()
    until(lambda: set(host.listed()) == {"own"})


def test_secrets_are_taken_out_before_they_are_written(host: LabHost, start: Start) -> None:
    job = start(seconds=2, arguments="all")
    time.sleep(0.3)
    host.kernel.act("write", "/etc/app.conf", caller=Caller(binary="/usr/bin/vi"))
    assert ended(job)["scrubbed"].get("arguments", 0) >= 1
    assert {event["process_kprobe"]["process"].get("arguments") for event in recorded(job)} == {"[scrubbed]"}


# --- the playbook ---------------------------------------------------------------------------------------------------


def command(fleet: Fleet, home: Path, **variables: object) -> list[str]:
    program = str(Path(sys.executable).with_name("ansible-playbook"))
    extra = json.dumps({"apiary_recording": str(home), "apiary_record": ["file", "network"], **variables})
    return [program, "apiary.tetragon.record", "-i", str(fleet.inventory), "-e", extra]


@pytest.fixture(scope="module")
def busy_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Two hosts on which something happens."""
    with Fleet(tmp_path_factory.mktemp("fleet"), 2, rate=20) as fleet:
        yield fleet


def left(fleet: Fleet) -> list[str]:
    return [name for host in fleet.hosts.values() for name in host.listed() if name.startswith(recorder.PREFIX)]


def test_recordings_come_home(busy_fleet: Fleet, tmp_path: Path) -> None:
    home = tmp_path / "recording"
    done = subprocess.run(
        command(busy_fleet, home, apiary_record_seconds=3, apiary_record_label="the lab"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "its time is over; nothing had to be taken out" in done.stdout
    described = yaml.safe_load((home / "recording.yml").read_text(encoding="utf-8"))
    assert (described["agent_version"], described["label"], set(described["hosts"])) == ("1.7.0", "the lab", {"host01", "host02"})
    for name in busy_fleet.hosts:
        with gzip.open(home / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
            events = [json.loads(line)["process_kprobe"] for line in lines]
        assert len(events) == described["hosts"][name]["events"] > 0
        assert {f"{event['policy_name']}.yaml" for event in events} <= {path.name for path in (home / "policies").iterdir()}
    assert left(busy_fleet) == []
    assert not any(host.inside("/var/lib/apiary/recording").exists() for host in busy_fleet.hosts.values())


def test_a_killed_controller_leaves_no_policy(busy_fleet: Fleet, tmp_path: Path) -> None:
    running = subprocess.Popen(
        command(busy_fleet, tmp_path / "recording", apiary_record_seconds=8),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    until(lambda: len(left(busy_fleet)) == 4)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    until(lambda: left(busy_fleet) == [])
    done = subprocess.run(command(busy_fleet, tmp_path / "recording", apiary_record_seconds=1), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
