# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""One run over a cluster, on real files: which nodes are in it while they come and go, and what is told of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.apiary.tetragon.plugins.plugin_utils import bundle as bundles
from ansible_collections.apiary.tetragon.plugins.plugin_utils.bundle import Bundle
from ansible_collections.apiary.tetragon.plugins.plugin_utils.environment import Environment
from ansible_collections.apiary.tetragon.plugins.plugin_utils.fleet import gates
from ansible_collections.apiary.tetragon.plugins.plugin_utils.fleet import run as runs
from ansible_collections.apiary.tetragon.plugins.plugin_utils.fleet.run import Request, Run
from ansible_collections.apiary.tetragon.plugins.plugin_utils.fleet.status import fleet_status
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube import label, records
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.rings import Node
from ansible_collections.apiary.tetragon.tests.unit.plugins.plugin_utils.fleet.conftest import observation
from ansible_collections.apiary.tetragon.tests.unit.plugins.plugin_utils.samples import HEAD, messages, refused

RINGS = "rings:\n  - {name: canary, take: 1}\n  - {name: fleet, take: rest}\n"
GROUPS = {"eu": ["apiary_clusters"], "host1": [], "host2": []}
Records = dict[str, dict[str, Any]]


def seen(ring: str, at: float = 0.0) -> dict[str, Any]:
    return {**observation(at), "ring": ring}


FLEET: Records = {"a": seen("canary"), "b": seen("fleet"), "c": seen("fleet"), "dead": {"ring": "canary", "lost": "the node is not ready"}}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A planned run over one cluster and two hosts."""
    environment = tmp_path / "lab.yml"
    environment.write_text(HEAD + RINGS + "gates: {unreachable: 1, bake: 60s}\n", encoding="utf-8")
    manifest = {"format": bundles.FORMAT, "environment": "lab", "agent_version": "1.7.0", "policies": [], "assignments": []}
    chosen = bundles.write(Bundle(manifest, {}), tmp_path / "bundles")
    made = Run.begin(Request(str(environment), str(chosen), str(tmp_path / "ledger"), str(tmp_path / "bundles")), os.getpid())
    return planned(made, FLEET)


def planned(run: Run, nodes: Records) -> Run:
    write(run, "fleet", nodes)
    for host in ("host1", "host2"):
        path = run.directory / "fleet" / f"{host}.json"
        runs._write(path, observation())
    run.plan(GROUPS)
    return Run(run.directory)


def write(run: Run, place: str, nodes: Records) -> None:
    records.write(records.path_of(run.directory / place, "eu"), nodes)


def begin_ring(run: Run, ring: str = "canary") -> None:
    run.ring_begins(ring)
    for index in range(len(run.ring(ring).batches)):
        run.batch_begins(ring, index)


def test_nodes_are_planned_by_their_label_and_the_dead_are_left_out(run: Run) -> None:
    assert [sum("/" in host for host in ring.hosts) for ring in run.planned.rings] == [1, 2]
    assert dict(run.planned.left_out) == {"eu/dead": "the node is not ready"}
    assert run.clusters == ["eu"]


def test_nodes_that_come_and_go_do_not_make_it_another_plan(run: Run) -> None:
    begin_ring(run)
    kept = run.stand().plan
    again = planned(run, {"a": seen("canary"), "new": seen("fleet"), "c": seen("fleet")})
    assert again.stand().plan == kept
    assert (again.ring_directory("canary") / "batches/1.json").exists()


def test_a_ring_holds_the_nodes_that_the_newest_record_has(run: Run) -> None:
    begin_ring(run)
    assert [one for one in run.attempted("canary") if "/" in one] == ["eu/a"]
    write(
        run,
        "rings/canary/start",
        {"a": seen("canary"), "j": seen("canary"), "late": {"ring": "canary", "held": "not reached"}, "dead": FLEET["dead"]},
    )
    assert [one for one in run.attempted("canary") if "/" in one] == ["eu/a", "eu/j"]
    write(run, "rings/canary/end", {"j": seen("canary", 60), "b": seen("fleet", 60), "dead": seen("canary", 60)})
    assert [one for one in run.attempted("canary") if "/" in one] == ["eu/j", "eu/dead"]


def test_hosts_and_nodes_are_judged_each_by_their_own_kind(run: Run) -> None:
    begin_ring(run)
    (host,) = (one for one in run.ring("canary").hosts if "/" not in one)
    for phase, at in (("start", 0), ("end", 60)):
        runs._write(run.ring_directory("canary") / phase / f"{host}.json", observation(at, cpu=10 + at / 100))
        write(run, f"rings/canary/{phase}", {"a": {**seen("canary", at), "agent": {**observation(at)["agent"], "started": "new"}}})
    verdict = run.judge("canary")
    assert (verdict.status, verdict.reasons) == (gates.PASS, ())
    restarts = {reading.host: reading.value for reading in verdict.readings if reading.signal == "agent_restarts"}
    assert restarts == {"eu/a": 0.0, host: 0.0}


def test_a_change_that_failed_names_its_nodes(run: Run) -> None:
    begin_ring(run)
    write(run, "rings/canary/start", {"a": {"ring": "canary", "failed": "pod x is not ready: CrashLoopBackOff"}})
    assert run.errors("canary") == {"eu/a": "pod x is not ready: CrashLoopBackOff"}
    verdict = run.judge("canary")
    assert (verdict.status, verdict.reasons[0]) == (gates.FAIL, "eu/a: change: pod x is not ready: CrashLoopBackOff")
    assert run.rings_to_roll_back("canary", "eu") == ["canary"]
    write(run, "rings/canary/back", {"a": seen("canary")})
    stuck = run.ring_failed("canary", verdict.status, "x")
    assert [one for one in stuck if "/" in one] == []


def test_a_node_that_left_is_not_one_that_is_not_back(run: Run) -> None:
    begin_ring(run)
    write(run, "rings/canary/start", {"a": {"ring": "canary", "failed": "x"}})
    run.judge("canary")
    write(run, "rings/canary/back", {"b": seen("fleet")})
    assert [one for one in run.ring_failed("canary", gates.FAIL, "x") if "/" in one] == []


def test_a_cluster_that_was_not_observed_stops_the_plan(run: Run) -> None:
    records.path_of(run.directory / "fleet", "eu").unlink()
    assert "cluster eu: could not be observed" in messages(refused(Run(run.directory).plan, GROUPS))


def test_readings_of_nodes_that_passed_are_kept_by_the_highest_only() -> None:
    readings = [gates.Reading("events", f"eu/n{number}", gates.PASS, float(number), subject="p") for number in range(200)]
    readings += [gates.Reading("events", "eu/bad", gates.FAIL, 1.0, subject="p"), gates.Reading("cpu", "host1", gates.PASS, 0.0)]
    kept = runs._telling(readings)
    assert {"eu/bad", "host1", "eu/n199"} <= {one.host for one in kept}
    assert len(kept) == runs.MAX_POINTS + 2


def test_the_status_of_a_node_that_came_later_is_held_against_its_ring() -> None:
    entries = [{"environment": "lab", "kind": "ring-passed", "ring": "fleet", "hosts": ["eu/b"], "bundle": "d", "run": "r"}]
    manifest = {"format": bundles.FORMAT, "environment": "lab", "agent_version": "1.7.0", "policies": [], "assignments": []}
    observed = {
        "eu/b": seen("fleet"),
        "eu/new": seen("fleet"),
        "eu/other": seen("canary"),
        "eu/gone": {"ring": "fleet", "lost": "is not ready"},
    }
    told = fleet_status(entries, "lab", {"d": Bundle(manifest, {})}, dict.fromkeys(observed, ("apiary_clusters",)), observed)
    assert {one["name"]: one["drift"] for one in told["hosts"]} == {
        "eu/b": (),
        "eu/gone": ("is not ready",),
        "eu/new": (),
        "eu/other": ("was never part of a rollout",),
    }


def node(name: str, named: str = "", kernel: str = "6.8.0") -> Node:
    return Node(
        name, named or "fleet", named, True, {"kernel": kernel, "architecture": "x86_64", "os": "ubuntu", "os_version": "24.04"}, ()
    )


def test_labels_are_drawn_once_and_the_first_ring_has_every_cell(make_environment: Callable[..., Environment]) -> None:
    environment = make_environment("  - {name: canary, take: cells}\n  - {name: early, take: 25%}\n  - {name: fleet, take: rest}\n")
    rings = ("canary", "early", "fleet")
    nodes = [node(f"n{number}", kernel="5.15.0" if number % 2 else "6.8.0") for number in range(8)]
    drawn = label.draw(environment, "eu", rings, nodes)
    sizes = [sum(ring == name for ring in drawn.values()) for name in rings]
    assert sizes == [2, 2, 4]
    labelled = [node(one.name, drawn[one.name], str(one.host["kernel"])) for one in nodes]
    assert label.draw(environment, "eu", rings, labelled) == {}
    more = label.draw(environment, "eu", rings, [*labelled, node("new1"), node("new2"), node("odd", kernel="6.1.0")])
    assert more["odd"] == "canary"
    assert sorted(more) == ["new1", "new2", "odd"]
    assert sorted(more.values()) == ["canary", "early", "fleet"]
    strange = label.draw(environment, "eu", rings, [node("n1", "elsewhere"), node("n2")])
    assert "n1" not in strange
