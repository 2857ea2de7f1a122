# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""One run on the controller, step by step, on real files: what a person cannot see from the playbooks."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ansible_collections.apiary.tetragon.plugins.plugin_utils import bundle as bundles
from ansible_collections.apiary.tetragon.plugins.plugin_utils.bundle import Bundle
from ansible_collections.apiary.tetragon.plugins.plugin_utils.fleet.ledger import Ledger, Lock
from ansible_collections.apiary.tetragon.plugins.plugin_utils.fleet.run import Request, Run
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Refused
from ansible_collections.apiary.tetragon.tests.unit.plugins.plugin_utils.samples import messages, refused

from ..samples import HEAD
from .conftest import observation

RINGS = "rings:\n  - {name: canary, take: 2, batch: 1}\n  - {name: fleet, take: rest, batch: 1}\n"
Begin = Callable[..., Run]


def make_bundle(directory: Path, agent_version: str) -> Path:
    """A bundle without policies; its agent version makes its digest."""
    manifest = {"format": bundles.FORMAT, "environment": "lab", "agent_version": agent_version, "policies": [], "assignments": []}
    return bundles.write(Bundle(manifest, {}), directory)


@pytest.fixture
def request_to(tmp_path: Path) -> Request:
    """A request to roll out a bundle."""
    environment = tmp_path / "lab.yml"
    environment.write_text(HEAD + RINGS, encoding="utf-8")
    chosen = make_bundle(tmp_path / "bundles", "1.7.0")
    return Request(str(environment), str(chosen), str(tmp_path / "ledger"), str(tmp_path / "bundles"))


@pytest.fixture
def begin(request_to: Request) -> Begin:
    """Begins a run, and plans it for some hosts that are as they should be."""

    def planned(*hosts: str, version: str = "1.7.0") -> Run:
        run = Run.begin(request_to, os.getpid())
        for host in hosts:
            seen = observation()
            seen["agent"]["version"] = version
            record(run, "fleet", host, seen)
        run.plan(dict.fromkeys(hosts, ()))
        return Run(run.directory)

    return planned


def record(run: Run, place: str, host: str, content: object) -> None:
    """What a host module leaves on the controller."""
    path = run.directory / place / f"{host}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def digest(path: str | Path) -> str:
    return bundles.read(path).digest


# --- the beginning --------------------------------------------------------------------------------------------------


def test_a_full_disk_is_refused_and_leaves_no_lock(request_to: Request, full_disk: Path) -> None:
    (full_disk / "filler").unlink()
    filled = Request(request_to.environment, request_to.bundle, str(full_disk), request_to.bundle_dir)
    with (full_disk / "filler").open("wb") as file:
        file.truncate(0)
        file.write(bytes(12 << 10))  # room for the lock, not for the run
    assert "cannot be written: No space left on device; free some space" in messages(refused(Run.begin, filled, os.getpid()))
    assert Lock(full_disk, "lab").holder() is None
    assert Ledger(full_disk).read() == []


def test_a_rollout_that_ends_before_the_lock_is_taken_is_not_overlooked(request_to: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    other = make_bundle(Path(request_to.bundle_dir), "1.8.0")
    take = Lock.take

    def late(self: Lock, *arguments: object) -> None:
        if not Ledger(request_to.ledger_dir).read():
            for kind in ("rollout-started", "rollout-finished"):
                Ledger(request_to.ledger_dir).append(kind, run="other", environment="lab", bundle=digest(other), plan="p")
        take(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Lock, "take", late)
    assert Run.begin(request_to, os.getpid()).facts["previous_digest"] == digest(other)


def test_the_same_bundle_that_another_rollout_finished_meanwhile_is_a_new_run(request_to: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Run.begin(request_to, os.getpid())
    first._note("rollout-started", bundle=first.facts["digest"], plan="p")
    take = Lock.take

    def late(self: Lock, *arguments: object) -> None:
        if len(Ledger(request_to.ledger_dir).read()) == 1:
            first.finish()
        take(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Lock, "take", late)
    second = Run.begin(request_to, os.getpid())
    assert second.name != first.name
    assert (Lock(request_to.ledger_dir, "lab").holder() or {})["run"] == second.name


@pytest.mark.parametrize("version", ["main", "1.x", "", "1.6.9", "1.70.0"])
def test_an_agent_of_another_version_is_refused_in_words(version: str, begin: Begin) -> None:
    with pytest.raises(Refused, match=rf"runs agent {version}; the environment's policies were checked for 1\.7\.0"):
        begin("a", "b", "c", version=version)


# --- batches --------------------------------------------------------------------------------------------------------


def test_a_batch_is_held_back_when_more_hosts_are_lost_than_may_be(begin: Begin) -> None:
    run = begin("a", "b", "c", "d", "e")
    first, second, _third = run.ring("fleet").hosts
    assert run.ring_begins("fleet") == "open"
    assert run.batch_begins("fleet", 0) == ""
    assert run.batch_begins("fleet", 1) == f"1 host(s) lost and 0 may be: {first}"
    assert run.batch_begins("fleet", 2) == f"1 host(s) lost and 0 may be: {first}"
    assert run.attempted("fleet") == [first]
    record(run, "rings/fleet/start", first, observation())
    assert run.batch_begins("fleet", 1) == ""
    assert run.attempted("fleet") == [first, second]


def test_a_ring_that_is_taken_up_takes_no_host_for_lost_that_is_still_to_come(begin: Begin) -> None:
    run = begin("a", "b", "c", "d")
    run.ring_begins("canary")
    run.batch_begins("canary", 0)
    record(run, "rings/canary/start", run.ring("canary").hosts[0], observation())
    run.batch_begins("canary", 1)
    again = begin("a", "b", "c", "d")
    assert again.ring_begins("canary") == "open"
    assert again.batch_begins("canary", 0) == ""


# --- another plan ---------------------------------------------------------------------------------------------------


def test_hosts_changed_under_a_former_plan_go_back_too(begin: Begin) -> None:
    run = begin("a", "b", "c", "d")
    run.ring_begins("canary")
    run.batch_begins("canary", 0)
    changed = run.ring("canary").hosts[0]
    rest = [host for host in "abcd" if host not in run.ring("canary").hosts]
    again = begin(*rest, "e", "f")  # a host that was changed is gone from the plan
    assert again.name == run.name
    assert changed not in {host for ring in again.planned.rings for host in ring.hosts}
    again.ring_begins("canary")
    again.batch_begins("canary", 0)
    assert again.to_roll_back("canary") == [again.ring("canary").hosts[0], changed]
    once_more = begin(*rest, "e", "g")
    assert set(once_more.to_roll_back("canary")) == {again.ring("canary").hosts[0], changed}


def test_hosts_of_a_ring_that_passed_under_a_former_plan_stay(begin: Begin) -> None:
    run = begin("a", "b", "c", "d")
    run.ring_begins("canary")
    run.batch_begins("canary", 0)
    run.ring_passed("canary")
    again = begin("c", "d", "e", "f")
    assert again.to_roll_back("canary") == []


def test_hosts_that_passed_under_the_new_plan_stay(begin: Begin) -> None:
    run = begin("a", "b", "c", "d")
    run.ring_begins("canary")
    run.batch_begins("canary", 0)
    changed = run.ring("canary").hosts[0]
    again = begin("a", "b", "c", "d", "e")
    assert changed in again.ring("canary").hosts
    assert again.to_roll_back("canary") == [changed]
    again.ring_begins("canary")
    again.batch_begins("canary", 0)
    again.ring_passed("canary")
    assert again.to_roll_back("fleet") == []
