# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""One agent takes over from another, killed before every single thing it does, by SIGKILL or by a power cut."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.apiary.tetragon.plugins.module_utils.agent import bpf, break_glass, handover, prober, slots
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.handover import Agent, Handover, HandoverError, Record
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.plan import Wanted
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.state import State, StateFile, write_json
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.tetra import Tetra
from enforcing import KILL, LSM, deny
from slothost import SlotHost
from standin.kernel import Caller

POLICIES = [deny("1"), KILL, LSM]
DENIED = {"/secret": "denied", "/kill": "killed", "/lsm": "denied"}
ENFORCING = dict.fromkeys((policy.name for policy in POLICIES), "enforce")


def change(host: SlotHost, **how: Any) -> Handover:
    """A hand-over whose attempts meet the stand-in's kernel; other steps are the prober's own."""
    threads = itertools.count(1)

    def attempt(step: Mapping[str, Any]) -> bool | None:
        if step["kind"] != "open":
            return prober.once(step)
        path = step["path"].removeprefix(str(host.path))
        return host.kernel.act("open", path, caller=Caller(pid=5000, tid=next(threads))).result != "allowed"

    return Handover(host.layout, host.services, **{"timeout": 10, "attempt": attempt, **how})


def with_triggers(host: SlotHost, *policies: Wanted) -> None:
    """What a converge run leaves on a host: the policies' triggers, whose files are there, as real ones must be."""
    triggers = {}
    for policy in policies:
        assert policy.trigger
        files = [host.inside(path) for path in policy.trigger["files"]]
        for file in files:
            file.touch()
        triggers[policy.key] = {"kind": "open", "files": list(map(str, files))}
    StateFile(host.layout.state).write(State("bundle-1", False, frozenset(triggers), triggers=triggers))


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


def test_what_policies_forbid_is_attempted_under_the_new_agent_alone(slot_host: SlotHost) -> None:
    slot_host.place("a", "1.6.1", POLICIES)
    with_triggers(slot_host, *POLICIES)
    run = change(slot_host)
    attempt, seen = run.attempt, []

    def watched(step: Mapping[str, Any]) -> bool | None:
        agents = [slot_host.layout.slot(name) for name in ("a", "b") if slot_host.layout.slot(name).pid]
        modes = {agent.name: {one.mode for one in agent.client(10).policies()} for agent in agents}
        seen.append((Path(step["path"]).name, modes))
        return attempt(step)

    run.attempt = watched
    done = run.execute(Agent("1.7.0"))
    under = [{"a": {"enforce"}}, {"a": {"monitor"}, "b": {"enforce"}}, {"b": {"enforce"}}]
    assert seen == [(name, modes) for modes in under for name in ("secret", "kill", "lsm")]
    assert [one.partition(" /")[0] for one in done.proofs] == [f"{name}-1: trigger: open" for name in ("deny", "kill", "lsm")]
    settled(slot_host, "1.7.0")


def test_a_new_agent_that_lists_a_policy_and_denies_nothing_never_takes_over(slot_host: SlotHost) -> None:
    slot_host.place("a", "1.6.1", POLICIES)
    with_triggers(slot_host, *POLICIES)
    slot_host.faults(load_seconds=0, override_entries=0)
    with pytest.raises(HandoverError, match=r"deny-1: trigger: open /.*/secret is allowed .*the former agent is in charge") as failure:
        change(slot_host).execute(Agent("1.7.0"))
    assert failure.value.restored
    settled(slot_host, "1.6.1")


def test_a_policy_without_a_trigger_is_proved_by_its_links(slot_host: SlotHost, monkeypatch: pytest.MonkeyPatch) -> None:
    slot_host.place("a", "1.6.1", POLICIES)

    def flip_and_lose(changes: Any) -> None:
        set_modes(changes)
        for link in slot_host.inside("/sys/fs/bpf/apiary-b/kill-1").rglob("link"):
            link.unlink()

    set_modes = handover.set_modes
    with monkeypatch.context() as patched:
        patched.setattr(handover, "set_modes", flip_and_lose)
        with pytest.raises(HandoverError, match="kill-1: links: 1 pinned link are gone"):
            change(slot_host).execute(Agent("1.7.0"))
    settled(slot_host, "1.6.1")
    done = change(slot_host).execute(Agent("1.7.0"))
    assert done.proofs == ["deny-1: links: 1 pinned link", "kill-1: links: 1 pinned link"]
    assert "lsm-1: is only listed as enforcing: it has neither an act to attempt nor pinned links" in done.warnings


def test_a_trigger_that_the_old_agent_allows_too_is_told_and_proves_nothing(slot_host: SlotHost) -> None:
    slot_host.faults(load_seconds=0, override_entries=0)
    slot_host.place("a", "1.6.1", POLICIES)
    with_triggers(slot_host, *POLICIES)
    slot_host.faults(load_seconds=0)
    done = change(slot_host).execute(Agent("1.7.0"))
    assert done.proofs[0] == "deny-1: links: 1 pinned link (its trigger is not refused)"
    assert any(re.match("deny-1: trigger: .* is not refused under the agent in charge", one) for one in done.warnings)
    settled(slot_host, "1.7.0")  # a new map is what the old agent lacked


def test_a_trigger_that_cannot_be_attempted_here_proves_nothing(slot_host: SlotHost) -> None:
    slot_host.place("a", "1.6.1", [KILL])
    with_triggers(slot_host, KILL)
    run = change(slot_host, attempt=lambda step: None if step["kind"] == "open" else prober.once(step))
    done = run.execute(Agent("1.7.0"))
    assert done.proofs == ["kill-1: links: 1 pinned link (its trigger cannot be attempted here)"]
    assert [one for one in done.warnings if "kill-1" in one] == []


@pytest.mark.parametrize(
    ("trigger", "how"),
    [
        ({"kind": "call", "library": "/lib/x.so", "symbol": "f", "argument": 1}, {}),
        ({"kind": "open", "files": ["/etc/passwd"]}, {"triggers": False}),
    ],
    ids=["not harmless by construction", "switched off"],
)
def test_only_harmless_triggers_are_attempted_and_none_when_told_so(slot_host: SlotHost, trigger: Any, how: dict[str, bool]) -> None:
    slot_host.place("a", "1.6.1", [KILL])
    StateFile(slot_host.layout.state).write(State("bundle-1", False, frozenset([KILL.key]), triggers={KILL.key: trigger}))
    kinds = []
    run = change(slot_host, **how)
    attempt = run.attempt
    run.attempt = lambda step: (kinds.append(step["kind"]), attempt(step))[1]
    assert run.execute(Agent("1.7.0")).proofs == ["kill-1: links: 1 pinned link"]
    assert kinds == ["links"] * 2


def test_break_glass_during_an_interrupted_hand_over_holds(slot_host: SlotHost) -> None:
    slot_host.place("a", "1.6.1", POLICIES)
    keys = [policy.key for policy in POLICIES]
    write_json(change(slot_host).path, Record("flip", slot_host.layout.slot("a"), "b", "1.7.0", keys, keys[:1]).dump())
    slot_host.layout.slot("a").client(10).set_mode(("", "deny-1"), "monitor")
    write_json(break_glass.record_file(slot_host.layout.state), {"policies": ["deny"], "time": "now"})
    change(slot_host).execute(Agent("1.6.1"))
    assert modes(slot_host) == {**ENFORCING, "deny-1": "monitor"}


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
    enforcing = [policy.key for policy in POLICIES]
    write_json(change(slot_host).path, Record("load", source, "b", "1.7.0", enforcing, flips).dump())
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
    with_triggers(slot_host, *POLICIES)

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
