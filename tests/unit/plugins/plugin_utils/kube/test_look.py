# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The truth of rings outside a rollout, read from an API server of answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube import look, observe, truth
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.client import Place
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.rings import LABEL

RINGS = ("canary", "fleet")
POLICY = "kind: TracingPolicy\nmetadata: {name: watch-aaaa}\nspec:\n  options: [{name: policy-mode, value: %s}]\n"


@dataclass
class Cluster:
    """Nodes by ring; ``sets`` is the policies ConfigMap of each pod by its node, ``unready`` the nodes whose pod is not ready."""

    place: Place = field(default_factory=lambda: Place("eu", "lab"))
    nodes: dict[str, str] = field(default_factory=lambda: {"a": "canary", "b": "fleet", "c": "fleet"})
    wanted: dict[str, str] = field(default_factory=lambda: {"canary": "apiary-policies-1-canary", "fleet": "apiary-policies-1-fleet"})
    sets: dict[str, str] = field(default_factory=dict)
    down: set[str] = field(default_factory=set)
    unready: set[str] = field(default_factory=set)
    loaded: bool = True

    def spec(self, name: str) -> dict[str, Any]:
        return {
            "containers": [{"name": "tetragon", "image": "tetragon:v1.7.0"}],
            "volumes": [{"name": "policies", "configMap": {"name": name}}],
        }

    def find(self, path: str) -> Any:
        kind, name = path.rsplit("/", 2)[1:]
        if kind == "configmaps":
            return {"data": {"cluster-watch.yaml": POLICY % "monitor", "policies.tsv": "x"}}
        ring = name.removeprefix("apiary-")
        metadata = {"annotations": {"apiary.dev/bundle": f"bundle-{ring}"}}
        return {"metadata": metadata, "spec": {"template": {"spec": self.spec(self.wanted[ring])}}} if ring in self.wanted else None

    def items(self, path: str, **_query: Any) -> Any:
        if path == "/api/v1/nodes":
            for name, ring in self.nodes.items():
                ready = {"type": "Ready", "status": "Unknown" if name in self.down else "True"}
                yield {"metadata": {"name": name, "labels": {LABEL: ring}}, "status": {"conditions": [ready], "nodeInfo": {}}}
        elif path.endswith("/pods"):
            for name, ring in self.nodes.items():
                status = {"type": "Ready", "status": "False" if name in self.unready else "True", "message": "loading"}
                labels = {"app.kubernetes.io/instance": "apiary", LABEL: ring}
                yield {
                    "metadata": {"name": f"pod-{name}", "namespace": "tetragon", "labels": labels, "creationTimestamp": "", "uid": name},
                    "spec": {"nodeName": name, **self.spec(self.sets.get(name, self.wanted.get(ring, "")))},
                    "status": {"conditions": [status]},
                }

    def proxy(self, _pod: str, _port: int, _path: str) -> str:
        lines = ['tetragon_build_info{version="v1.7.0"} 1', f'tetragon_tracingpolicy_loaded{{state="enabled"}} {int(self.loaded)}']
        lines += ['tetragon_tracingpolicy_kernel_memory_bytes{policy="watch-aaaa",policy_namespace=""} 1'] if self.loaded else []
        return "\n".join([*lines, ""])


def read(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    monkeypatch.setattr(observe, "asker", lambda _api: None)
    return {one["ring"]: one for one in look.truths(cluster, RINGS)}  # type: ignore[arg-type]


def test_rings_whose_nodes_run_their_set_are_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    found = read(Cluster(), monkeypatch)
    assert {ring: one["verdict"] for ring, one in found.items()} == dict.fromkeys(RINGS, truth.HEALTHY)
    assert found["fleet"]["bundle"] == "bundle-fleet" and (found["fleet"]["ready"], found["fleet"]["nodes"]) == (2, 2)
    assert found["fleet"]["policies"] == {"watch-aaaa": {"mode": "monitor", "wanted": 2, "enabled": 2}}


def test_a_ring_whose_pods_change_is_progressing_and_the_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for cluster in (Cluster(sets={"b": "apiary-policies-0-fleet"}), Cluster(unready={"b"})):
        found = read(cluster, monkeypatch)
        assert found["canary"]["verdict"] == truth.HEALTHY and found["fleet"]["verdict"] == truth.PROGRESSING
        assert "1 of 2 nodes run it" in found["fleet"]["reason"]
        assert [one["node"] for one in found["fleet"]["off"]] == ["b"]


def test_a_dead_node_and_a_policy_that_is_not_loaded_degrade_a_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    found = read(Cluster(down={"a"}), monkeypatch)
    assert found["canary"]["verdict"] == truth.DEGRADED and found["fleet"]["verdict"] == truth.HEALTHY
    assert found["canary"]["off"] == [{"node": "a", "reason": "the node is not ready"}]
    found = read(Cluster(loaded=False), monkeypatch)
    assert {one["verdict"] for one in found.values()} == {truth.DEGRADED}
    assert "watch-aaaa is not enabled in its mode" in found["canary"]["off"][0]["reason"]


def test_a_ring_that_is_not_there_yet_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(read(Cluster(nodes={"a": "canary"}, wanted={"canary": "apiary-policies-1-canary"}), monkeypatch)) == {"canary"}
