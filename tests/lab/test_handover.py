# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""One agent takes over from another, killed before every single thing it does, by SIGKILL or by a power cut."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.apiary.tetragon.plugins.module_utils.agent import bpf, handover, slots
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.handover import Agent, Handover, HandoverError, Record
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.state import write_json
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.tetra import Tetra
from enforcing import KILL, LSM, deny
from slothost import SlotHost
from standin.kernel import Caller

POLICIES = [deny("1"), KILL, LSM]
DENIED = {"/secret": "denied", "/kill": "killed", "/lsm": "denied"}
ENFORCING = dict.fromkeys((policy.name for policy in POLICIES), "enforce")


def change(host: SlotHost, **how: Any) -> Handover:
    return Handover(host.layout, host.services, timeout=10, **how)


def forbidden(host: SlotHost) -> dict[str, str]:
    """How forbidden acts end, each by a thread of its own."""
    threads = itertools.count(1)
    return {path: host.kernel.act("open", path, caller=Caller(pid=4000, tid=next(threads))).result for path in DENIED}


def modes(host: SlotHost) -> dict[str, str]:
    """What the agent that boots runs."""
    active = host.layout.active()
    assert active
    return {policy.name: policy.mode for policy in host.layout.slot(active).client(10).policies()}


def settled(host: SlotHost, version: str) -> None:
    """Exactly one agent of this version, all policies in their modes and effective, nothing left of another."""
    active = host.layout.active()
    assert active
    assert host.agents == [host.layout.unit(active)]
    assert host.layout.version(active) == version
    assert modes(host) == ENFORCING
    assert forbidden(host) == DENIED
    assert [path.name for path in host.inside("/sys/fs/bpf").iterdir()] == [f"apiary-{active}"]
    assert [path.name for path in host.inside("/etc/apiary/slots").iterdir()] == [active]
    assert not Path(change(host).path).exists()


def killed_before(step: int, run: Callable[[], Any], host: SlotHost) -> bool:
    """Run in a child that dies by SIGKILL before its ``step``-th operation; says whether it got that far."""
    child = os.fork()
    if child:
        _pid, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        return os.WIFSIGNALED(status)
    left = step

    def counted(operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*arguments, **named)

        return call

    places: list[tuple[Any, str]] = [(Tetra, "add"), (Tetra, "set_mode"), (host.services, "start"), (host.services, "stop")]
    places += [(bpf, "set_modes"), (handover, "write_json"), (handover, "link"), (slots, "link")]
    places += [(os, "rename"), (shutil, "rmtree"), (shutil, "move")]
    for place, name in places:
        setattr(place, name, counted(getattr(place, name)))
    run()
    os._exit(0)


def test_an_upgrade_and_back_leaves_one_agent_with_all_policies(slot_host: SlotHost) -> None:
    slot_host.place("a", "1.6.1", POLICIES)
    done = change(slot_host).execute(Agent("1.7.0"))
    assert (done.changed, done.slot) == (True, "b")
    assert "version: 1.6.1 -> 1.7.0" in done.reasons
    settled(slot_host, "1.7.0")
    assert not change(slot_host).execute(Agent("1.7.0")).changed
    change(slot_host).execute(Agent("1.6.1"))
    settled(slot_host, "1.6.1")
    assert slot_host.layout.active() == "a"


def test_check_mode_says_what_and_why_and_does_nothing(slot_host: SlotHost) -> None:
    slot_host.place("a", "1.6.1", POLICIES)
    pid = slot_host.layout.slot("a").pid
    said = change(slot_host).execute(Agent("1.6.1", {"rb-size": "1M"}), check=True)
    assert said.changed and said.reasons == ["rb-size: not set -> 1M"]
    assert said.actions[:2] == ["clean b", "start b"]
    assert slot_host.layout.slot("a").pid == pid
    settled(slot_host, "1.6.1")


def test_a_person_finds_the_agent_in_charge(slot_host: SlotHost) -> None:
    slot_host.place("a", "1.6.1", POLICIES)
    change(slot_host).execute(Agent("1.7.0"))
    assert str(slot_host.inside("/usr/local/bin/tetra").readlink()) == "/opt/apiary/tetragon/1.7.0/bin/tetra"
    assert str(slot_host.inside("/run/tetragon/tetragon-info.json").readlink()) == "/run/apiary/b/tetragon-info.json"


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ({"fail_load": [["lsm-1", "the verifier says no"]]}, "the verifier says no"),
        ({"exit_after_load": "kill-1"}, "kill-1"),
    ],
)
def test_a_new_agent_that_cannot_load_a_policy_never_takes_over(slot_host: SlotHost, faults: dict[str, Any], message: str) -> None:
    slot_host.place("a", "1.6.1", POLICIES)
    slot_host.faults(load_seconds=0, **faults)
    with pytest.raises(HandoverError, match=message) as raised:
        change(slot_host).execute(Agent("1.7.0"))
    assert raised.value.restored
    settled(slot_host, "1.6.1")


def test_an_act_that_is_allowed_after_the_flip_brings_the_old_agent_back(slot_host: SlotHost) -> None:
    slot_host.place("a", "1.6.1", POLICIES)
    with pytest.raises(HandoverError, match="a forbidden act was allowed: deny-1"):
        change(slot_host, probe=lambda: ["deny-1"]).execute(Agent("1.7.0"))
    settled(slot_host, "1.6.1")


def test_a_version_that_is_not_here_changes_nothing(slot_host: SlotHost) -> None:
    slot_host.place("a", "1.6.1", POLICIES)
    with pytest.raises(HandoverError, match=r"version 1\.5\.0 is not on this host"):
        change(slot_host).execute(Agent("1.5.0"))
    settled(slot_host, "1.6.1")


def test_a_policy_loaded_by_hand_is_not_lost_unasked(slot_host: SlotHost) -> None:
    slot_host.place("a", "1.6.1", [KILL, LSM])
    file = slot_host.path / "own.yaml"
    file.write_text(deny("1").text, encoding="utf-8")
    slot_host.layout.slot("a").client(10).add(str(file), "enforce")
    with pytest.raises(HandoverError, match="loaded by hand, without a file, and lost with this agent: deny-1"):
        change(slot_host).execute(Agent("1.7.0"))
    change(slot_host, drop_loaded_by_hand=True).execute(Agent("1.7.0"))
    assert sorted(modes(slot_host)) == ["kill-1", "lsm-1"]


def test_leftovers_of_a_killed_run_without_a_record_are_cleaned_first(slot_host: SlotHost) -> None:
    slot_host.place("b", "1.7.1", POLICIES)
    slot_host.place("a", "1.6.1", POLICIES)
    assert len(slot_host.agents) == 2
    change(slot_host).execute(Agent("1.7.0"))
    settled(slot_host, "1.7.0")


def test_an_interrupted_run_is_undone_while_the_agent_that_boots_still_loads(slot_host: SlotHost) -> None:
    slot_host.place("a", "1.6.1", POLICIES)
    source = slot_host.layout.slot("a")
    flips = [("", policy.name) for policy in POLICIES if policy.overrides]
    write_json(change(slot_host).path, Record("load", source, "b", "1.7.0", flips).dump())
    slot_host.power_off()
    slot_host.faults(start_seconds=1, load_seconds=1)
    boot = threading.Thread(target=slot_host.boot)
    boot.start()
    while source.pid is None:
        time.sleep(0.01)
    change(slot_host).execute(Agent("1.6.1"))
    boot.join()
    settled(slot_host, "1.6.1")


def test_an_agent_of_somebody_else_is_adopted_with_its_policies(slot_host: SlotHost) -> None:
    slot_host.install_foreign(POLICIES)
    with pytest.raises(HandoverError, match="take it over with adopt"):
        change(slot_host).execute(Agent("1.7.0"))
    change(slot_host).execute(Agent("1.7.0"), adopt=True)
    settled(slot_host, "1.7.0")
    slot_host.power_off()
    slot_host.boot()
    settled(slot_host, "1.7.0")


def interrupted(host: SlotHost, power: bool, begin: Callable[[], Any], end: Callable[[int], str]) -> int:
    """Kill a change before each of its operations, with the power or alone. Returns how many there were."""
    step = 1
    while killed_before(step, begin, host):
        assert forbidden(host) == DENIED, step
        if power:
            host.power_off()
            host.boot()
            assert len(host.agents) == 1, step
            assert modes(host) == ENFORCING, step
            assert forbidden(host) == DENIED, step
        version = end(step)
        settled(host, version)
        step += 1
    return step


@pytest.mark.parametrize("power", [False, True], ids=["killed", "power cut"])
def test_an_upgrade_that_ends_anywhere_is_finished_or_undone_by_the_next_run(slot_host: SlotHost, power: bool) -> None:
    """Every other time the next run wants the former version again; the change after that is the other way round."""
    runs = {"1.6.1": "1.7.0", "1.7.0": "1.6.1"}
    now = "1.6.1"
    slot_host.place("a", now, POLICIES)

    def end(step: int) -> str:
        nonlocal now
        now = runs[now] if step % 2 else now
        change(slot_host).execute(Agent(now))
        return now

    assert interrupted(slot_host, power, lambda: change(slot_host).execute(Agent(runs[now])), end) > 25


@pytest.mark.parametrize("step", range(1, 40, 3))
def test_an_adoption_that_ends_anywhere_boots_one_agent_and_is_finished(slot_host: SlotHost, step: int) -> None:
    slot_host.install_foreign(POLICIES)
    killed_before(step, lambda: change(slot_host).execute(Agent("1.7.0"), adopt=True), slot_host)
    assert forbidden(slot_host) == DENIED
    slot_host.power_off()
    slot_host.boot()
    assert len(slot_host.agents) == 1
    assert forbidden(slot_host) == DENIED
    change(slot_host).execute(Agent("1.7.0"), adopt=True)
    settled(slot_host, "1.7.0")
