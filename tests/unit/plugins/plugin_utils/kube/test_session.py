# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""A cluster's part in a run, step by step, over a cluster of this module's own making: what is changed, recorded, published."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.apiary.tetragon.plugins.plugin_utils import bundle as bundles
from ansible_collections.apiary.tetragon.plugins.plugin_utils import canonical
from ansible_collections.apiary.tetragon.plugins.plugin_utils.bundle import Bundle
from ansible_collections.apiary.tetragon.plugins.plugin_utils.fleet import gates
from ansible_collections.apiary.tetragon.plugins.plugin_utils.fleet.run import Request, Run
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube import change, observe, session, values
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.client import ApiError, Place
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.helm import Release
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.rings import LABEL
from ansible_collections.apiary.tetragon.tests.unit.plugins.plugin_utils.samples import messages, refused

PLACE = Place("eu", "lab")
RINGS = ("canary", "fleet")


@dataclass
class World:
    """A cluster: nodes with their ring labels, a release, and what its agents do. It is api and helm at once."""

    place: Place = PLACE
    labels: dict[str, str] = field(default_factory=lambda: {"a": "canary", "b": "fleet", "c": ""})
    down: set[str] = field(default_factory=set)
    pressure: set[str] = field(default_factory=set)
    broken: str = ""
    answers: bool = True
    requests: int = 0
    release_values: dict[str, Any] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict)
    upgrades: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.release_values = values.for_install({}, {}, {"canary": "100%", "fleet": "1"}, "1.7.0")

    # helm

    def version(self) -> str:
        return "4.3.1"

    def recover(self, _api: object) -> str:
        return ""

    def release(self) -> Release:
        return Release("deployed", 1, self.release_values)

    def render(self, given: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [
            {
                "apiVersion": "apps/v1",
                "kind": "DaemonSet",
                "metadata": {"name": f"apiary-{one['name']}", "labels": {LABEL: one["name"]}},
                "spec": {"template": {"spec": self._spec(one)}},
            }
            for one in given["rings"]
        ]

    def manifest(self) -> list[dict[str, Any]]:
        return self.render(self.release_values)

    def upgrade(self, given: Mapping[str, Any]) -> None:
        self.upgrades += [one["name"] for one, former in zip(given["rings"], self.release_values["rings"], strict=True) if one != former]
        for one in given["rings"]:
            self.kept[self._set(one)] = {"data": dict(one["policies"])}
        self.release_values = dict(given)

    def _set(self, ring: Mapping[str, Any]) -> str:
        return f"apiary-policies-{hashlib.sha256(json.dumps(ring['policies']).encode()).hexdigest()[:10]}"

    def _spec(self, ring: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "containers": [{"name": "tetragon", "image": f"tetragon:v{ring['agentVersion']}"}],
            "volumes": [{"name": "policies", "configMap": {"name": self._set(ring)}}],
        }

    # API server

    def _ring(self, name: str) -> dict[str, Any]:
        return next(one for one in self.release_values["rings"] if one["name"] == (self.labels[name] or "fleet"))

    def get(self, path: str, **_query: Any) -> dict[str, Any]:
        if "/daemonsets/" in path:
            ring = path.rpartition("apiary-")[2]
            document = next(one for one in self.manifest() if one["metadata"]["name"] == f"apiary-{ring}")
            done = {"observedGeneration": 1, "desiredNumberScheduled": 0}
            return {**document, "metadata": {**document["metadata"], "generation": 1}, "status": done}
        raise AssertionError(path)

    def kinds(self, root):
        return [{"name": "daemonsets", "kind": "DaemonSet", "namespaced": True}]

    def find(self, path: str) -> Any:
        return self.kept.get(path.rpartition("/")[2])

    def items(self, path: str, **query: Any) -> Iterator[dict[str, Any]]:
        self.requests += 1
        selector = query.get("labelSelector", "")
        if path == "/api/v1/nodes":
            for name, label in self.labels.items():
                ring = label or "fleet"
                if f"{LABEL}={'canary' if ring == 'fleet' else 'fleet'}" in selector or (ring == "canary" and "notin" in selector):
                    continue
                yield {
                    "metadata": {"name": name, "labels": {LABEL: label} if label else {}},
                    "status": {
                        "conditions": [
                            {"type": "Ready", "status": "Unknown" if name in self.down else "True"},
                            {"type": "DiskPressure", "status": str(name in self.pressure)},
                        ],
                        "nodeInfo": {"kernelVersion": "6.8.0", "architecture": "amd64", "osImage": "Ubuntu 24.04"},
                    },
                }
        elif path.endswith("/pods"):
            for name in self.labels:
                yield self._pod(name)
        elif path.endswith("/daemonsets"):
            for ring in self.release_values["rings"]:
                metadata = {"labels": {LABEL: ring["name"]}, "annotations": {"apiary.dev/bundle": ring["bundle"]}}
                yield {"metadata": metadata, "spec": {"template": {"spec": self._spec(ring)}}}
        elif path.endswith("/configmaps"):
            for name in self.kept:
                if name.startswith("apiary-policies-"):
                    yield {"metadata": {"name": name, "creationTimestamp": "2026-11-01T00:00:00Z"}}

    def _bad(self, name: str) -> bool:
        return bool(self.broken) and any(self.broken in file for file in self._ring(name)["policies"])

    def _pod(self, name: str) -> dict[str, Any]:
        ring = self._ring(name)
        waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": "unknown function"}} if self._bad(name) else {}
        return {
            "metadata": {
                "name": f"pod-{name}",
                "namespace": "tetragon",
                "uid": f"{name}-{self._set(ring)}",
                "creationTimestamp": "2026-11-22T08:00:00Z",
                "labels": {"app.kubernetes.io/instance": "apiary", LABEL: ring["name"]},
            },
            "spec": {"nodeName": name, **self._spec(ring)},
            "status": {
                "conditions": [{"type": "Ready", "status": str(not self._bad(name))}],
                "containerStatuses": [{"name": "tetragon", "restartCount": 0, "state": waiting}],
            },
        }

    def proxy(self, pod: str, _port: int, _path: str) -> str:
        self.asked.append(pod)
        if not self.answers:
            raise ApiError(self.place, 503, {"message": "connection refused"})
        ring = self._ring(pod.removeprefix("pod-"))
        names = [yaml.safe_load(text)["metadata"]["name"] for text in ring["policies"].values()]
        lines = [f'tetragon_tracingpolicy_kernel_memory_bytes{{policy="{name}",policy_namespace=""}} 1' for name in names]
        lines += [f'tetragon_tracingpolicy_loaded{{state="enabled"}} {len(names)}', 'tetragon_build_info{version="v1.7.0"} 1']
        return "\n".join([*lines, "process_start_time_seconds 1", "process_resident_memory_bytes 1", "process_cpu_seconds_total 1"])

    def apply(self, path: str, document: Any, *, dry: bool = False, **_unused: Any) -> dict[str, Any]:
        if not dry:
            self.kept[path.rpartition("/")[2]] = document
        return {}

    def send(self, _method: str, _path: str, _query: object, document: Any) -> dict[str, Any]:
        self.kept[document["metadata"]["name"]] = {**document, "metadata": {**document["metadata"], "resourceVersion": "1"}}
        return {}

    def delete(self, path: str) -> bool:
        return self.kept.pop(path.rpartition("/")[2], None) is not None

    def truth(self, ring: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.kept[f"apiary-truth-{ring}"]["data"]["truth.json"])
        return content


class Cluster(session.Cluster):
    """The world in place of what talks to a real one."""

    api: Any = None
    helm: Any = None


def make_bundle(directory: Path, *names: str) -> Path:
    """A bundle of policies in monitor, for clusters."""
    policies, files = [], {}
    for name in names:
        file = f"cluster-{name}.yaml"
        files[file] = f"kind: TracingPolicy\nmetadata: {{name: {name}}}\nspec: {{options: [{{name: policy-mode, value: monitor}}]}}\n"
        policies.append(
            {"loaded": name, "form": "cluster", "file": file, "mode": "monitor", "unpinned": [], "reference": f"file/{name}"}
            | {"requirements": [], "namespace": None, "event_budget": 0, "hooks": [], "sha256": canonical.digest(files[file].encode())}
        )
    assignments = [
        {"policy": one["reference"], "form": "cluster", "where": [], "choices": [{"where": [], "loaded": one["loaded"]}]}
        for one in policies
    ]
    manifest = {"format": bundles.FORMAT, "environment": "lab", "agent_version": "1.7.0"}
    return bundles.write(Bundle({**manifest, "policies": policies, "assignments": assignments}, files), directory)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(change, "POLL", 0.001)
    monkeypatch.setattr(observe, "asker", lambda _api: None)
    return World()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    environment = tmp_path / "lab.yml"
    environment.write_text(
        'name: lab\nagent_version: "1.7.0"\npolicies:\n  - {policy: network/c2-ranges, mode: monitor, form: cluster}\n'
        "rings: [{name: canary, take: 1}, {name: fleet, take: rest}]\ngates: {bake: 0s, unreachable: 50%}\n",
        encoding="utf-8",
    )
    chosen = make_bundle(tmp_path / "bundles", "one", "two")
    return Run.begin(Request(str(environment), str(chosen), str(tmp_path / "ledger"), str(tmp_path / "bundles")), os.getpid())


def part_of(run: Run, world: World) -> session.Part:
    cluster = Cluster(PLACE, ("apiary_clusters",), timeout=0.05)
    cluster.__dict__.update(api=world, helm=world)
    return session.Part(cluster, Run(run.directory), lambda _text: None)


def planned(run: Run, world: World) -> Run:
    part_of(run, world).observe_fleet()
    run.plan({"eu": ["apiary_clusters"]})
    return Run(run.directory)


def take_on(run: Run, ring: str) -> None:
    run.ring_begins(ring)
    run.batch_begins(ring, 0)


def test_a_ring_is_changed_observed_and_told_while_the_others_keep_what_they_have(run: Run, world: World) -> None:
    run = planned(run, world)
    assert "apiary-rollout" in world.kept
    take_on(run, "canary")
    assert part_of(run, world).change("canary") is True
    assert world.upgrades == ["canary"]
    assert world.truth("canary")["verdict"] == "progressing"
    part_of(run, world).observe("canary", "end")
    run = Run(run.directory)
    assert set(run.nodes("canary", "end", "eu") or ()) == {"a", "b", "c"}
    assert run.judge("canary").status == gates.PASS
    assert part_of(run, world).publish("canary") == "healthy"
    told = world.truth("canary")
    assert (told["nodes"], told["ready"], told["bundle"], set(told["policies"])) == (1, 1, run.facts["digest"], {"one", "two"})
    assert part_of(run, world).change("canary") is False
    used = set(world.kept) - {"apiary-rollout"}
    world.kept["apiary-policies-0123456789"] = {}
    part_of(run, world).end()
    assert set(world.kept) == used


def test_each_node_is_asked_once_at_the_start_and_twice_in_its_ring(run: Run, world: World) -> None:
    run = planned(run, world)
    for ring in RINGS:
        take_on(run, ring)
        part = part_of(run, world)
        if ring != "canary":
            part.observe(ring, "before")
        part.change(ring)
        part.observe(ring, "end")
    control = len(run.ring("canary").control)
    assert len(world.asked) == 3 * len(world.labels) + control
    world.asked.clear()
    assert set(run.nodes("fleet", "before", "eu") or ()) == {"b", "c"}


def test_what_was_seen_at_the_start_stands_for_hours_but_for_the_troubles_of_nodes(
    run: Run, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = planned(run, world)
    take_on(run, "canary")
    world.asked.clear()
    world.pressure = {"b"}
    part_of(run, world).observe("fleet", "before")
    assert world.asked == []
    seen = run.nodes("fleet", "before", "eu") or {}
    assert {name: one["health"]["failed_units"] for name, one in seen.items()} == {"b": ["DiskPressure"], "c": []}
    part_of(run, world).observe("canary", "before")
    assert sorted(world.asked) == sorted(f"pod-{member.partition('/')[2]}" for member in run.ring("canary").control)
    assert "pod-a" not in world.asked, "the nodes that a ring is compared with are read anew, its own are not"
    world.asked.clear()
    monkeypatch.setattr(session, "STANDS", datetime.timedelta(0))
    part_of(Run(run.directory), world).observe("fleet", "before")
    assert sorted(world.asked) == ["pod-b", "pod-c"]


def test_a_set_that_fails_is_taken_back(run: Run, world: World) -> None:
    run = planned(run, world)
    take_on(run, "canary")
    world.broken = "two"
    text = messages(refused(part_of(run, world).change, "canary"))
    assert text == "cluster eu: 1 of 1 nodes: a: pod pod-a is not ready: CrashLoopBackOff: unknown function"
    part_of(run, world).observe("canary", "end")
    run = Run(run.directory)
    assert run.judge("canary").status == gates.FAIL
    assert part_of(run, world).back("canary") is True
    assert world.release_values["rings"][0]["policies"] == {}
    assert Run(run.directory).ring_failed("canary", gates.FAIL, "x") == []
    assert part_of(run, world).publish("canary") == "degraded"
    assert world.truth("canary")["reason"].startswith("went back to the former bundle: eu/a: change: pod pod-a is not ready")
    assert world.upgrades == ["canary", "canary"]


def test_a_node_that_joins_while_the_ring_bakes_is_no_part_of_its_verdict(run: Run, world: World) -> None:
    run = planned(run, world)
    take_on(run, "canary")
    part_of(run, world).change("canary")
    world.labels.update(d="canary")
    part_of(run, world).observe("canary", "end")
    assert Run(run.directory).attempted("canary") == ["eu/a"]
    assert "d" in (Run(run.directory).nodes("canary", "end", "eu") or {})


def test_nodes_without_metrics_are_refused_before_anything_changes(run: Run, world: World) -> None:
    world.answers = False
    text = messages(refused(planned, run, world))
    assert "3 of 3 hosts cannot take part" in text
    assert "metrics of pod pod-a: cluster eu: connection refused" in text
    assert world.upgrades == []


def test_a_release_with_other_rings_or_with_the_library_is_refused(run: Run, world: World) -> None:
    world.release_values["library"] = {"enabled": True}
    assert "loads the chart's own library" in messages(refused(part_of(run, world).observe_fleet))
    world.release_values["rings"] = world.release_values["rings"][:1]
    assert "has the rings canary, and the environment gives it canary, fleet" in messages(refused(part_of(run, world).observe_fleet))


def test_a_bundle_for_another_agent_is_refused(run: Run, world: World, tmp_path: Path) -> None:
    path = run.directory / "environment.yml"
    path.write_text(path.read_text().replace("1.7.0", "1.6.1"), encoding="utf-8")
    text = messages(refused(part_of(Run(run.directory), world).observe_fleet))
    assert "is '1.6.1', and bundle lab-" in text
    assert "was checked for 1.7.0, whose fields the other may not know" in text
