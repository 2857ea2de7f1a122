# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The chart's life on a real API server with the real DaemonSet controller, by Helm 3 and Helm 4."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube import prune
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.client import Api, Place

if TYPE_CHECKING:
    from cluster import Cluster

CHART = Path(__file__).parents[2] / "charts/apiary"
CASES = sorted(path.name.removesuffix("-values.yaml") for path in (CHART / "ci").glob("*-values.yaml"))
POLICY = """
apiVersion: cilium.io/v1alpha1
kind: TracingPolicy
metadata: {name: %s}
spec:
  %s:
    - %s
      args: [{index: 0, type: file}]
      selectors:
        - matchActions: [{action: Override, argError: -1}]
"""
DENY = POLICY % ("deny-1", "kprobes", "call: security_file_open\n      syscall: false")
LSM = POLICY % ("lsm-1", "lsmhooks", "hook: file_open")
Object = dict[str, Any]


def rings(**early: Any) -> Object:
    """Values of three rings, of which ``early`` may differ."""
    common = {"agentVersion": "1.7.0", "policies": {"deny.yaml": DENY}, "maxSurge": "50%"}
    return {"rings": [{"name": "canary", **common}, {"name": "early", **common, **early}, {"name": "rest", **common}]}


class Release:
    """One release in a namespace."""

    def __init__(self, cluster: Cluster, namespace: str, directory: Path) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self._values = directory / "values.json"

    def helm(self, version: int, *words: str, values: Object | None = None, check: bool = True) -> Any:
        if values is not None:
            self._values.write_text(json.dumps(values), encoding="utf-8")
            words = (*words, "--values", str(self._values))
        return self.cluster.helm(version, *words, "--namespace", self.namespace, check=check)

    def all(self, kinds: str) -> list[Object]:
        found: list[Object] = json.loads(self.cluster.kubectl("--namespace", self.namespace, "get", kinds, "--output", "json"))["items"]
        return found

    def pods(self) -> dict[str, tuple[str, str]]:
        """Node -> (ring, uid) of pods that are Ready and stay; of two on a node, as there are while it changes, one."""
        found: dict[str, tuple[str, str]] = {}
        for pod in self.all("pods"):
            conditions = {one["type"]: one["status"] for one in pod.get("status", {}).get("conditions", ())}
            if conditions.get("Ready") == "True" and "deletionTimestamp" not in pod["metadata"]:
                found[pod["spec"]["nodeName"]] = (pod["metadata"]["labels"]["apiary.dev/ring"], pod["metadata"]["uid"])
        return found

    def rolled(self) -> bool:
        """Whether every DaemonSet's pods are its newest, ready, and alone on their nodes."""
        for one in self.all("daemonsets"):
            status = one["status"]
            wanted = status["desiredNumberScheduled"]
            counts = [status.get(name, 0) for name in ("updatedNumberScheduled", "numberAvailable", "currentNumberScheduled")]
            if status.get("observedGeneration") != one["metadata"]["generation"] or counts != [wanted] * 3:
                return False
        return len(self.all("pods")) == sum(one["status"]["desiredNumberScheduled"] for one in self.all("daemonsets"))

    def wait(self) -> dict[str, tuple[str, str]]:
        self.cluster.wait(self.rolled, f"the pods of {self.namespace}", 120)
        return self.pods()

    def maps(self) -> set[str]:
        return {one["metadata"]["name"] for one in self.all("configmaps") if "apiary.dev/kind" in one["metadata"].get("labels", {})}


@pytest.fixture
def release(cluster: Cluster, namespace: str, tmp_path: Path) -> Iterator[Release]:
    made = Release(cluster, namespace, tmp_path)
    yield made
    made.helm(3, "uninstall", "apiary", check=False)


def expected(cluster: Cluster) -> dict[str, str]:
    """Node -> ring, by the nodes' labels."""
    nodes = json.loads(cluster.kubectl("get", "nodes", "--output", "json"))["items"]
    labels = {one["metadata"]["name"]: one["metadata"]["labels"].get("apiary.dev/ring") for one in nodes}
    return {name: ring if ring in ("canary", "early") else "rest" for name, ring in labels.items()}


@pytest.mark.parametrize("version", [3, 4])
def test_a_release_lives_from_install_to_uninstall(release: Release, version: int) -> None:
    done = release.helm(version, "install", "apiary", str(CHART), values=rings())
    assert "enforces: deny-1" in done.stdout
    first = release.wait()
    assert {node: ring for node, (ring, _uid) in first.items()} == expected(release.cluster)
    maps = release.maps()
    assert len(maps) == 3

    release.helm(version, "upgrade", "apiary", str(CHART), values=rings(policies={"deny.yaml": DENY, "lsm.yaml": LSM}))
    second = release.wait()
    changed = {ring for node, (ring, uid) in second.items() if first[node][1] != uid}
    kept = {ring for node, (ring, uid) in second.items() if first[node][1] == uid}
    assert (changed, kept) == ({"early"}, {"canary", "rest"})
    assert len(release.maps() - maps) == 1
    assert maps < release.maps()

    release.helm(version, "rollback", "apiary", "1")
    third = release.wait()
    assert {ring for node, (ring, uid) in third.items() if second[node][1] != uid} == {"early"}
    for one in release.all("daemonsets"):
        used = {volume["configMap"]["name"] for volume in one["spec"]["template"]["spec"]["volumes"] if "configMap" in volume}
        assert used <= maps

    release.helm(version, "uninstall", "apiary")
    release.cluster.wait(lambda: not release.all("pods"), "the end of all pods")
    assert maps < release.maps()
    assert not release.all("daemonsets,serviceaccounts,networkpolicies") or {
        one["metadata"]["name"] for one in release.all("daemonsets,serviceaccounts,networkpolicies")
    } == {"default"}

    release.helm(version, "install", "apiary", str(CHART), values=rings())
    assert len(release.wait()) == len(first)


def test_a_release_of_helm_3_goes_on_under_helm_4(release: Release) -> None:
    release.helm(3, "install", "apiary", str(CHART), values=rings())
    first = release.wait()
    release.helm(4, "upgrade", "apiary", str(CHART), values=rings(options={"rb-size": "1M"}))
    second = release.wait()
    assert {ring for node, (ring, uid) in second.items() if first[node][1] != uid} == {"early"}
    release.helm(4, "rollback", "apiary", "1")
    release.wait()


def test_another_version_of_the_chart_changes_no_pod_by_its_name_alone(release: Release, tmp_path: Path) -> None:
    release.helm(3, "package", str(CHART), "--version", "0.0.9", "--destination", str(tmp_path))
    release.helm(3, "install", "apiary", str(tmp_path / "apiary-0.0.9.tgz"), values=rings())
    first = release.wait()
    release.helm(3, "upgrade", "apiary", str(CHART), values=rings())
    assert release.wait() == first
    (label,) = {one["metadata"]["labels"]["helm.sh/chart"] for one in release.all("daemonsets")}
    assert label != "apiary-0.0.9"


def test_a_held_ring_stays_as_it_is(release: Release) -> None:
    release.helm(4, "install", "apiary", str(CHART), values=rings())
    first = release.wait()
    held = rings(agentVersion="1.7.1", hold=True)
    held["rings"][0]["agentVersion"] = "1.7.1"
    release.helm(4, "upgrade", "apiary", str(CHART), values=held)

    def changed() -> set[str]:
        return {ring for node, (ring, uid) in release.pods().items() if first[node][1] != uid}

    release.cluster.wait(lambda: changed() == {"canary"} and len(release.all("pods")) == len(first), "the ring that is not held", 120)
    held["rings"][1].pop("hold")
    release.helm(4, "upgrade", "apiary", str(CHART), values=held)
    release.wait()
    assert changed() == {"canary", "early"}


def test_a_node_that_is_relabelled_changes_its_ring(release: Release) -> None:
    release.helm(3, "install", "apiary", str(CHART), values=rings())
    release.wait()
    node = "node-0010"
    try:
        release.cluster.label([node], "canary")
        release.cluster.wait(lambda: release.pods().get(node, ("",))[0] == "canary", "the pod of the other ring", 60)
        release.cluster.label([node], "a-ring-that-nobody-has")
        release.cluster.wait(lambda: release.pods().get(node, ("",))[0] == "rest", "the pod of the last ring", 60)
    finally:
        release.cluster.label([node], None)


def test_a_set_that_does_not_load_stops_the_ring_at_its_first_nodes(release: Release) -> None:
    release.helm(4, "install", "apiary", str(CHART), values=rings())
    first = release.wait()
    release.cluster.faults({"namespaces": [release.namespace], "policy": "lsm-*", "load_error": True})
    release.helm(4, "upgrade", "apiary", str(CHART), values=rings(policies={"deny.yaml": DENY, "lsm.yaml": LSM}, maxSurge=1))
    release.cluster.wait(lambda: len(release.all("pods")) == len(first) + 1, "the first new pod", 60)
    assert release.pods() == first
    release.helm(4, "rollback", "apiary", "1")
    assert release.wait() == first


@pytest.mark.parametrize("case", CASES)
def test_the_api_server_takes_every_object_as_it_is(release: Release, case: str) -> None:
    release.cluster.crds()
    text = release.helm(
        3, "template", "apiary", str(CHART), "--kube-version", "1.35.4", "--values", str(CHART / f"ci/{case}-values.yaml")
    ).stdout
    found = [
        one
        for one in yaml.safe_load_all(text)
        if one and "monitoring.coreos.com" not in one["apiVersion"] and one["kind"] != "TracingPolicy"
    ]
    words = ("create", "--dry-run=server", "--validate=strict", "--namespace", release.namespace, "--filename", "-")
    release.cluster.kubectl(*words, input=json.dumps({"apiVersion": "v1", "kind": "List", "items": found}))


def test_the_agents_may_read_pods_and_nodes_and_nothing_else(release: Release) -> None:
    release.helm(3, "install", "apiary", str(CHART), values=rings())
    account = f"system:serviceaccount:{release.namespace}:apiary"
    for verb, resource, wanted in [
        *((verb, resource, "yes") for verb in ("get", "list", "watch") for resource in ("pods", "nodes")),
        ("create", "pods", "no"),
        ("patch", "nodes", "no"),
        ("get", "secrets", "no"),
        ("list", "configmaps", "no"),
        ("create", "pods/exec", "no"),
    ]:
        said = release.cluster.kubectl("auth", "can-i", verb, resource, "--all-namespaces", "--as", account, check=False).split()
        assert said[-1] == wanted or wanted in said, (verb, resource, said)


def test_a_policy_is_no_custom_resource_where_the_cluster_would_drop_its_node_selector(release: Release) -> None:
    release.cluster.crds("v1.7.0")
    watching = {"watch.yaml": DENY.replace("Override, argError: -1", "Post")}
    values = {
        "customResources": {"enabled": True, "assumeNodeSelector": True},
        "rings": [
            {"name": "canary", "agentVersion": "1.8.0", "customResources": watching},
            {"name": "fleet", "agentVersion": "1.8.0"},
        ],
    }
    for version in (3, 4):
        done = release.helm(version, "install", "apiary", str(CHART), values=values, check=False)
        assert "this cluster's CRD has no spec.nodeSelector" in done.stderr
    assert not release.all("daemonsets")


def test_policies_alone_are_brought_to_agents_that_are_there(release: Release) -> None:
    release.cluster.crds("v1.7.0")
    values = {
        "agents": {"enabled": False},
        "customResources": {"enabled": True},
        "rings": [
            {"name": "all", "agentVersion": "1.7.0", "customResources": {"watch.yaml": DENY.replace("Override, argError: -1", "Post")}}
        ],
    }

    def known() -> list[str]:
        return [one["metadata"]["name"] for one in release.cluster.request("GET", "/apis/cilium.io/v1alpha1/tracingpolicies")["items"]]

    for version in (3, 4):
        said = release.helm(version, "install", "apiary", str(CHART), values=values).stdout
        assert "Ring all, agents 1.7.0: deny-1" in said, said
        assert (known(), release.all("daemonsets,networkpolicies,deployments,services")) == (["deny-1"], [])
        release.helm(version, "uninstall", "apiary")
        assert known() == []


def test_sets_that_no_daemonset_can_go_back_to_are_pruned_after_a_day(release: Release) -> None:
    labels = {"app.kubernetes.io/name": "apiary", "app.kubernetes.io/instance": "apiary", "apiary.dev/kind": "policies"}
    left = {"name": "apiary-policies-0123456789", "namespace": release.namespace, "labels": labels}
    release.helm(4, "install", "apiary", str(CHART), values=rings())
    release.helm(4, "upgrade", "apiary", str(CHART), values=rings(policies={"a.yaml": DENY, "b.yaml": LSM}))
    release.cluster.wait(lambda: len(release.all("controllerrevisions")) == 4, "the revisions of three rings, one of them changed")
    kept = release.maps()
    release.cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": left})
    api = Api(Place("kube1", "lab", str(release.cluster.kubeconfig), release.namespace))
    now = datetime.datetime.now(datetime.UTC)
    assert prune.prune(api, now) == []
    assert prune.prune(api, now + datetime.timedelta(hours=25)) == [left["name"]]
    assert release.maps() == kept
