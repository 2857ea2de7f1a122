# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The chart's entry script on a node: pods take over from each other, crash, fail, are killed, and never let anything through."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from node import DENIED, KILL, LAB, LSM, SCRIPT, Node, Seen, deny

POLICIES = [deny("1"), KILL, LSM]
NEXT = [deny("2", "/more"), KILL, LSM]
MODES = {"deny-1": "enforce", "kill-1": "enforce", "lsm-1": "enforce"}


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with Node(tmp_path) as made:
        yield made


def forbidden(node: Node) -> dict[str, str]:
    return {path: node.host.kernel.act("open", path).result for path in DENIED}


def wrap(node: Node, script: str) -> None:
    """Put a shell script in the place of bpftool; it has the real one as REAL."""
    real = node.bin / "bpftool.real"
    (node.bin / "bpftool").rename(real)
    (node.bin / "bpftool").write_text("#!/bin/sh\n" + script.replace("REAL", str(real)) + "\n", encoding="utf-8")
    (node.bin / "bpftool").chmod(0o755)


def clean(seen: Seen) -> None:
    """Every kind of act was attempted often enough, none was allowed, nothing else was refused."""
    assert len(seen.attempts) == 2 * len(DENIED)
    assert min(seen.attempts.values()) > 10
    assert (seen.allowed, seen.wrong) == ([], [])


def test_the_first_pod_of_a_node_enforces_and_is_ready_only_then(node: Node) -> None:
    pod = node.pod(POLICIES)
    assert "not started yet" in pod.verb("ready").stderr
    pod.start().wait_ready()
    assert forbidden(node) == DENIED
    node.settled(pod)
    assert pod.verb("live").returncode == 0


def test_a_new_pod_takes_over_without_a_gap_and_the_old_ones_pins_go_when_it_ends(node: Node) -> None:
    old, new, seen = node.pod(POLICIES), node.pod(NEXT, "1.7.1"), Seen()
    old.start().wait_ready()
    node.host.faults(load_seconds=0.3)
    with node.probed(seen):
        new.start().wait_ready()
        assert "not in charge" in old.verb("ready").stderr
        assert old.stop() == 0
        node.settled(new)
    clean(seen)
    assert node.host.kernel.act("open", "/more").result == "denied"


def test_at_every_moment_of_the_flip_somebody_enforces(node: Node) -> None:
    """Each command of the flip is run alone here, with a forbidden act after it."""
    old, new = node.pod(POLICIES), node.pod(NEXT)
    old.start().wait_ready()
    tried = node.path / "tried"
    wrap(
        node,
        f"""if [ "$1" = batch ] && [ "${{3##*/}}" = flip ]; then
            while read -r line; do
                echo "$line" >"$3.one"; REAL batch file "$3.one" || exit
                {LAB}/bin/act open /secret >>{tried} || true
            done <"$3"
            exit 0
        fi
        exec REAL "$@\"""",
    )
    new.start().wait_ready()
    assert tried.read_text(encoding="utf-8").splitlines() == ["open /secret: denied (EPERM)"] * 2


def test_two_agents_never_load_at_the_same_time(node: Node) -> None:
    pods = [node.pod(POLICIES), node.pod(NEXT), node.pod(POLICIES)]
    node.host.faults(load_seconds=0.2)
    for pod in pods:
        pod.start()
    together = [0]
    deadline = time.monotonic() + 60
    while not all("is in charge" in pod.log for pod in pods):
        together.append(sum("Starting tetragon" in pod.log and "is in charge" not in pod.log for pod in pods))
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert max(together) == 1


def test_a_crash_of_the_agent_in_charge_keeps_what_is_pinned_and_is_mended_by_the_next_start(node: Node) -> None:
    """LSM links are not pinned before 1.8: between the crash and the load they do not enforce, and nothing else lets through."""
    pod, seen = node.pod(POLICIES), Seen()
    pod.start().wait_ready()
    with node.probed(seen):
        os.kill(pod.agent_pid, signal.SIGKILL)
        assert pod.wait_end() != 0
        pod.start().wait_ready()
        node.settled(pod)
    assert not seen.wrong
    assert {path for _time, path in seen.allowed} <= {"/lsm"}
    assert forbidden(node) == DENIED


def test_a_set_that_does_not_load_leaves_the_old_agent_in_charge(node: Node) -> None:
    old, new, seen = node.pod(POLICIES), node.pod(NEXT), Seen()
    old.start().wait_ready()
    pins = node.pins
    node.host.faults(load_seconds=0.1, fail_load=[["kill-1", "the verifier says no"]])
    with node.probed(seen):
        for _start in range(3):
            new.start()
            assert new.wait_end() == 1
            assert node.pins == pins
        assert old.ready
    clean(seen)
    assert "policy kill-1 does not load" in new.log
    assert "the verifier says no" in new.log
    assert node.active == old.uid


def test_a_flip_that_is_not_seen_is_taken_back(node: Node) -> None:
    """The agent's list goes on saying monitor: the new pod ends, and the old one enforces as before."""
    old, new, seen = node.pod(POLICIES), node.pod(NEXT), Seen()
    old.start().wait_ready()
    pins = node.pins
    # Sets what the old agent loses, and not what the new one gains.
    wrap(node, 'if [ "${3##*/}" = flip ]; then grep "value 1" "$3" >"$3.half"; exec REAL batch file "$3.half"; fi\nexec REAL "$@"')
    with node.probed(seen):
        new.start()
        assert new.wait_end() == 1
    assert "the flip did not do what it was to do: deny-2 is enabled monitor, not enforce" in new.log
    assert node.pins == pins
    assert old.ready
    assert forbidden(node) == DENIED
    assert {path for _time, path in seen.allowed} <= {"/secret"}  # for as long as the lie took
    assert not seen.wrong


def test_a_pod_killed_between_flip_and_take_over_is_mended_by_the_one_in_charge(node: Node) -> None:
    old, new = node.pod(POLICIES), node.pod(NEXT)
    old.start().wait_ready()
    wrap(node, 'REAL "$@" || exit\nif [ "${3##*/}" = flip ]; then kill -9 -"$(ps -o sid= $$ | tr -d " ")"; fi')
    new.start()
    assert new.wait_end() == -signal.SIGKILL
    node.settled(old)
    assert forbidden(node) == DENIED


def test_a_rollback_while_the_new_pod_still_loads_and_after_it_took_over(node: Node) -> None:
    old, new, back, seen = node.pod(POLICIES), node.pod(NEXT), node.pod(POLICIES), Seen()
    old.start().wait_ready()
    node.host.faults(load_seconds=0.5)
    with node.probed(seen):
        new.start().wait_log("Loading sensor")
        assert new.stop() == 0
        node.settled(old)
        new.start().wait_ready()
        assert old.stop() == 0
        back.start().wait_ready()
        assert new.stop() == 0
        node.settled(back)
    clean(seen)


def test_the_old_pod_is_back_in_charge_when_the_new_one_dies(node: Node) -> None:
    old, new, seen = node.pod(POLICIES), node.pod(NEXT), Seen()
    old.start().wait_ready()
    with node.probed(seen):
        new.start().wait_ready()
        new.kill()
        node.settled(old)
    clean(seen)


def test_a_pod_killed_hard_is_followed_by_one_that_takes_over_its_pins(node: Node) -> None:
    old, new, seen = node.pod(POLICIES), node.pod(NEXT), Seen()
    old.start().wait_ready()
    with node.probed(seen):
        old.kill()
        new.start().wait_ready()
        node.settled(new)
    assert not seen.wrong
    assert {path for _time, path in seen.allowed} <= {"/lsm"}
    assert forbidden(node) == DENIED


def test_a_pod_that_ends_in_charge_leaves_what_is_pinned(node: Node) -> None:
    pod = node.pod(POLICIES)
    pod.start().wait_ready()
    assert pod.stop() == 0
    assert {**forbidden(node), "/lsm": "denied"} == DENIED
    assert len(node.pins) == 1


def test_a_power_cut_in_the_middle_of_a_change_ends_with_one_pod_in_charge(node: Node) -> None:
    old, new = node.pod(POLICIES), node.pod(NEXT)
    old.start().wait_ready()
    node.host.faults(load_seconds=0.5)
    new.start().wait_log("Loading sensor")
    node.power_off()
    assert set(forbidden(node).values()) == {"allowed"}
    node.host.faults(load_seconds=0.1)
    old.start()
    new.start()
    old.wait_log("is in charge")
    for pod in (old, new):
        pod.wait_log("is in charge")
    ((loser, winner),) = [(one, other) for one, other in ((old, new), (new, old)) if node.active == other.uid]
    assert loser.stop() == 0
    node.settled(winner)
    assert forbidden(node) == DENIED


def test_stale_verdicts_of_threads_that_are_gone_are_cleared(node: Node) -> None:
    pod = node.pod(POLICIES)
    pod.start().wait_ready()
    (tasks,) = (node.bpffs / node.pins[0] / "deny-1").rglob("override_tasks")
    thread = [str(byte) for byte in (77 << 32 | 77).to_bytes(8, "little")]
    node.bpftool("map", "update", "pinned", str(tasks), "key", *thread, "value", "255", "255", "255", "255")
    other = node.pod(POLICIES)
    node.host.faults(load_seconds=0, fail_load=["lsm-1"])
    assert other.start().wait_end() == 1  # once it is gone, the one in charge tidies up
    pod.wait_log("1 stale override entries cleared")
    assert json.loads(node.bpftool("-j", "map", "dump", "pinned", str(tasks))) == []


def test_clean_removes_everything_once_no_pod_is_there(node: Node) -> None:
    pod, job = node.pod(POLICIES), node.pod([])
    pod.start().wait_ready()
    refused = job.verb("clean")
    assert refused.returncode == 1
    assert "still runs here: remove it first" in refused.stderr
    assert forbidden(node) == DENIED
    pod.stop()
    (node.bpffs / "apiary-a").mkdir()  # a slot of a host, which is not the chart's
    assert job.verb("clean").returncode == 0
    assert node.pins == ["apiary-a"]
    assert list(node.run.iterdir()) == []
    assert set(forbidden(node).values()) == {"allowed"}
    assert "nothing to remove" in job.verb("clean").stderr


def test_pins_are_made_on_a_bpf_file_system_of_the_node_only(node: Node) -> None:
    pod = node.pod(POLICIES)
    (node.path / "proc/1/mounts").write_text("sysfs /sys sysfs rw 0 0\n", encoding="utf-8")
    assert pod.start().wait_end() == 1
    assert "the node has no BPF file system" in pod.log
    assert not node.run.exists()


def test_a_namespaced_policy_and_one_that_only_observes_count_too(node: Node) -> None:
    namespaced = json.loads(deny("3").text)
    namespaced["kind"] = "TracingPolicyNamespaced"
    namespaced["metadata"]["namespace"] = "shop"
    watch = json.loads(LSM.text)
    watch["metadata"]["name"] = "watch-1"
    watch["spec"]["lsmhooks"][0]["selectors"][0].pop("matchActions")
    policies = [
        dataclasses.replace(deny("3"), namespace="shop", text=json.dumps(namespaced)),
        dataclasses.replace(LSM, name="watch-1", mode="observe", text=json.dumps(watch)),
    ]
    options = {"enable-policy-filter": "true"}
    old, new = node.pod(policies, options=options), node.pod(policies, options=options)
    old.start().wait_ready()
    new.start().wait_ready()
    assert old.stop() == 0
    node.settled(new)


def test_upstreams_agent_is_taken_over_from_without_a_gap(node: Node) -> None:
    for policy in POLICIES:
        (node.host.policies / policy.file).write_text(policy.text, encoding="utf-8")
    node.host.start()
    assert node.host.process is not None
    (node.path / "proc" / str(node.host.process.pid)).symlink_to(f"/proc/{node.host.process.pid}")
    pod, seen = node.pod(NEXT), Seen()
    node.adopt = True
    with node.probed(seen):
        pod.start().wait_ready()
        time.sleep(0.5)
        assert "tetragon" in node.pins
        node.host.stop()  # it keeps its pins
        node.settled(pod)
    clean(seen)
    assert "upstream's agent is gone: its pins are removed" in pod.log


def test_a_set_without_policies_takes_over_too_and_what_was_enforced_ends(node: Node) -> None:
    old, new = node.pod(POLICIES), node.pod([])
    old.start().wait_ready()
    new.start().wait_ready()
    assert old.stop() == 0
    node.settled(new)
    assert set(forbidden(node).values()) == {"allowed"}


def test_the_tools_of_the_agents_image_are_enough(node: Node) -> None:
    """That image is Alpine's: bash and busybox. Debian's busybox has no flock, Alpine's has."""
    tools = node.path / "tools"
    tools.mkdir()
    subprocess.run(["busybox", "--install", "-s", str(tools)], check=True)
    for program in ("bash", "flock"):
        (tools / program).unlink(missing_ok=True)
        (tools / program).symlink_to(str(shutil.which(program)))
    node.tools = str(tools)
    old, new = node.pod(POLICIES), node.pod(NEXT)
    old.start().wait_ready()
    (node.path / "export" / f"{old.uid}.log").touch()
    (node.path / "export" / f"{'0' * 8}-0000-0000-0000-{'0' * 12}.log").touch()
    for file in (node.path / "export").iterdir():
        os.utime(file, (0, 0))
    new.start().wait_ready()
    assert old.stop() == 0
    node.settled(new)
    assert new.stop() == 0
    assert new.verb("clean").returncode == 0
    assert node.pins == []
    assert f"{old.uid}.log" in [file.name for file in (node.path / "export").iterdir()]
    assert not list((node.path / "export").glob("0000*"))


def test_the_script_is_sound() -> None:
    done = subprocess.run(["shellcheck", str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.stdout == ""
