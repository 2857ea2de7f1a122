# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The chart's admission policies on the real API server: who may move a node, write the truth, delete what agents use."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from cluster import Cluster

CHART = Path(__file__).parents[2] / "charts/apiary"
NODE = "node-0003"  # ring early
KUBELET = ("--as", f"system:node:{NODE}", "--as-group", "system:nodes", "--as-group", "system:authenticated")
OPERATOR = ("--as", "operator", "--as-group", "editors", "--as-group", "system:authenticated")
TRUSTED = ("--as", "gitops", "--as-group", "system:authenticated")
TRUSTED_GROUP = ("--as", "anybody", "--as-group", "sre", "--as-group", "system:authenticated")
BY_RBAC = ("--as", "promoter", "--as-group", "system:authenticated")
RINGS_MESSAGE = "The labels apiary.dev/ring and kubernetes.io/os decide which policies a node enforces."
RIGHTS = [
    ({"groups": ["system:nodes"]}, "system:node"),
    ({"groups": ["system:nodes"]}, "apiary-test-reader"),
    ({"groups": ["editors", "sre"], "users": ["gitops", "promoter"]}, "apiary-test-editor"),
    ({"users": ["promoter"]}, "apiary-test-promoter"),
]
ROLES = {
    "apiary-test-editor": [
        {"apiGroups": [""], "resources": ["nodes", "nodes/status", "configmaps"], "verbs": ["*"]},
        {"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get", "delete"]},
    ],
    "apiary-test-reader": [{"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["get"]}],  # kubectl reads what it patches
    "apiary-test-promoter": [{"apiGroups": ["apiary.dev"], "resources": ["rings"], "verbs": ["update"]}],
}


def rbac(kind: str, name: str, **more: Any) -> dict[str, Any]:
    return {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": {"name": name}, **more}


def bindings() -> Iterator[dict[str, Any]]:
    for number, (subjects, role) in enumerate(RIGHTS):
        listed = [
            {"kind": kind, "name": name, "apiGroup": "rbac.authorization.k8s.io"}
            for kind, key in (("Group", "groups"), ("User", "users"))
            for name in subjects.get(key, ())
        ]
        reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role}
        yield rbac("ClusterRoleBinding", f"apiary-test-{number}", roleRef=reference, subjects=listed)


@pytest.fixture(scope="module")
def people(cluster: Cluster) -> Iterator[None]:
    """Users with every right to nodes and ConfigMaps, so that what stops them is the policy; and kubelets with their own."""
    objects = [*(rbac("ClusterRole", name, rules=rules) for name, rules in ROLES.items()), *bindings()]
    cluster.apply(*objects)
    yield
    for one in objects:
        cluster.kubectl("delete", one["kind"], one["metadata"]["name"])


def install(cluster: Cluster, namespace: str, **admission: Any) -> None:
    """The chart's release in that namespace, without pods; returns when its policies for that namespace are at work."""
    values = {
        "admission": {"users": ["gitops"], "groups": ["sre"], **admission},
        "nodeRequirements": [{"key": "apiary.dev/none", "operator": "Exists"}],
        "rings": [{"name": "canary", "agentVersion": "1.7.0"}, {"name": "fleet", "agentVersion": "1.7.0"}],
    }
    file = cluster.directory / f"{namespace}.json"
    file.write_text(json.dumps(values), "utf-8")
    cluster.helm(3, "upgrade", "--install", "apiary", str(CHART), "--namespace", namespace, "--values", str(file))
    name = min(used(cluster, namespace)["apiary-fleet"])
    attempts = {
        "truth": ("create", "-f", "-"),
        "in-use": ("delete", "configmap", name, "--namespace", namespace),
    }
    probe = configmap(namespace, "probe", kind="truth")
    for policy, attempt in attempts.items():
        cluster.wait(
            lambda policy=policy, attempt=attempt: (  # type: ignore[misc]
                f"{namespace}-apiary-{policy}" in tried(cluster, OPERATOR, *attempt, "--dry-run=server", given=probe)
            ),
            f"the policy {policy}",
            180,
        )


@pytest.fixture(scope="module")
def guarded(cluster: Cluster, people: None) -> Iterator[str]:
    """A namespace with a release, for all cases that only ask."""
    name = "guarded"
    cluster.kubectl("create", "namespace", name)
    install(cluster, name)
    attempt = ("patch", "node", NODE, "--dry-run=server", "--patch", patch({"apiary.dev/ring": "canary"}))
    cluster.wait(lambda: f"{name}-apiary-nodes" in tried(cluster, OPERATOR, *attempt), "the policy nodes", 180)
    yield name
    uninstall(cluster, name)
    cluster.kubectl("delete", "namespace", name)


@pytest.fixture
def release(cluster: Cluster, people: None, namespace: str) -> Iterator[str]:
    """A namespace for a release of the case's own, which goes with it."""
    yield namespace
    uninstall(cluster, namespace)


def uninstall(cluster: Cluster, namespace: str) -> None:
    """Take a release off, and what is not in its namespace where that went first."""
    cluster.helm(3, "uninstall", "apiary", "--namespace", namespace, check=False)
    kinds = "validatingadmissionpolicies,validatingadmissionpolicybindings,clusterroles,clusterrolebindings"
    names = cluster.kubectl("get", kinds, "--output", "name").split()
    left = [name for name in names if name.partition("/")[2].startswith(f"{namespace}-apiary")]
    if left:
        cluster.kubectl("delete", *left)


def configmap(namespace: str, name: str, kind: str, **data: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace, "labels": {"apiary.dev/kind": kind}}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def tried(cluster: Cluster, who: tuple[str, ...], *arguments: str, given: Mapping[str, Any] | None = None) -> str:
    """What kubectl says to somebody, errors included."""
    return cluster.kubectl(*who, *arguments, input=json.dumps(given) if given is not None else None, check=False)


def ring_of(cluster: Cluster, node: str) -> str | None:
    found = cluster.request("GET", f"/api/v1/nodes/{node}")["metadata"]["labels"].get("apiary.dev/ring")
    return str(found) if found is not None else None


def patch(labels: Mapping[str, str | None]) -> str:
    return json.dumps({"metadata": {"labels": labels}})


MOVES = {
    "to another ring": {"apiary.dev/ring": "canary"},
    "to no ring": {"apiary.dev/ring": None},
    "to an empty ring": {"apiary.dev/ring": ""},
    "to a ring that is none": {"apiary.dev/ring": "nowhere"},
    "to another system": {"kubernetes.io/os": "windows"},
    "to no system": {"kubernetes.io/os": None},
}


@pytest.mark.parametrize("subresource", [(), ("--subresource", "status")], ids=["node", "status"])
@pytest.mark.parametrize("labels", MOVES.values(), ids=MOVES.keys())
def test_a_kubelet_cannot_move_its_node(
    cluster: Cluster, guarded: str, labels: Mapping[str, str | None], subresource: tuple[str, ...]
) -> None:
    said = tried(cluster, KUBELET, "patch", "node", NODE, *subresource, "--patch", patch(labels))
    assert RINGS_MESSAGE in said and f"{guarded}-apiary-nodes" in said
    assert ring_of(cluster, NODE) == "early"


@pytest.mark.parametrize("who", [KUBELET, OPERATOR], ids=["kubelet", "operator"])
def test_a_node_that_has_no_ring_cannot_be_given_one(cluster: Cluster, guarded: str, who: tuple[str, ...]) -> None:
    said = tried(cluster, who, "patch", "node", "node-0015", "--patch", patch({"apiary.dev/ring": "canary"}))
    assert RINGS_MESSAGE in said
    assert ring_of(cluster, "node-0015") is None


@pytest.mark.parametrize("who", [TRUSTED, TRUSTED_GROUP, BY_RBAC, ()], ids=["user", "group", "RBAC", "cluster-admin"])
def test_who_is_trusted_moves_nodes(cluster: Cluster, guarded: str, who: tuple[str, ...]) -> None:
    for ring in ("canary", "early"):
        said = tried(cluster, who, "label", "node", NODE, "--overwrite", f"apiary.dev/ring={ring}")
        assert ring_of(cluster, NODE) == ring, said


@pytest.mark.parametrize("who", [KUBELET, OPERATOR], ids=["kubelet", "operator"])
def test_everything_else_about_a_node_stays_free(cluster: Cluster, guarded: str, who: tuple[str, ...]) -> None:
    for node in (NODE, "node-0015"):
        named = tuple(one.replace(NODE, node) for one in who)
        changes = {"metadata": {"labels": {"zone": "b", "apiary.dev/other": "x"}, "annotations": {"a": "b"}}}
        assert "patched" in tried(cluster, named, "patch", "node", node, "--patch", json.dumps(changes))
        beat = {"status": {"conditions": [{"type": "DiskPressure", "status": "False", "reason": node}]}}
        assert "patched" in tried(cluster, named, "patch", "node", node, "--subresource", "status", "--patch", json.dumps(beat))


def registering(name: str, ring: str | None) -> dict[str, Any]:
    labels = {"kubernetes.io/os": "linux", "kubernetes.io/hostname": name, **({"apiary.dev/ring": ring} if ring is not None else {})}
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}}


def test_a_kubelet_registers_its_node_with_a_ring_and_cannot_do_so_again(cluster: Cluster, guarded: str) -> None:
    who = ("--as", "system:node:fresh", "--as-group", "system:nodes", "--as-group", "system:authenticated")
    try:
        assert "created" in tried(cluster, who, "create", "-f", "-", given=registering("fresh", "canary"))
        assert RINGS_MESSAGE in tried(cluster, who, "patch", "node", "fresh", "--patch", patch({"apiary.dev/ring": "early"}))
        assert "cannot delete resource" in tried(cluster, who, "delete", "node", "fresh")
    finally:
        cluster.kubectl("delete", "node", "fresh")


def test_a_ring_at_registration_may_be_refused_and_nodes_without_one_join(cluster: Cluster, release: str) -> None:
    install(cluster, release, registration=False)
    who = ("--as", "system:node:fresh", "--as-group", "system:nodes", "--as-group", "system:authenticated")
    attempt = ("create", "--dry-run=server", "-f", "-")
    cluster.wait(lambda: RINGS_MESSAGE in tried(cluster, who, *attempt, given=registering("fresh", "canary")), "the policy nodes", 180)
    assert "created" in tried(cluster, who, *attempt, given=registering("fresh", None))
    assert "created" in tried(cluster, TRUSTED, *attempt, given=registering("fresh", "canary"))


def test_only_who_is_trusted_writes_the_truth(cluster: Cluster, guarded: str) -> None:
    truth = configmap(guarded, "apiary-truth-canary", kind="truth", **{"truth.json": "{}"})
    assert "is what its health is judged by" in tried(cluster, OPERATOR, "create", "-f", "-", given=truth)
    assert "created" in tried(cluster, TRUSTED, "create", "-f", "-", given=truth)
    at = ("configmap", "apiary-truth-canary", "--namespace", guarded)
    attempts = [
        ("patch", *at, "--patch", json.dumps({"data": {"truth.json": "healthy"}})),
        ("patch", *at, "--patch", patch({"apiary.dev/kind": None})),
        ("annotate", *at, "apiary.dev/bundle=other"),
        ("delete", *at),
    ]
    for attempt in attempts:
        assert "is what its health is judged by" in tried(cluster, OPERATOR, *attempt), attempt
    assert "created" in tried(cluster, OPERATOR, "create", "-f", "-", given=configmap(guarded, "mine", kind="mine"))
    relabelled = tried(cluster, OPERATOR, "label", "configmap", "mine", "--namespace", guarded, "--overwrite", "apiary.dev/kind=truth")
    assert "is what its health is judged by" in relabelled
    assert "deleted" in tried(cluster, TRUSTED, "delete", *at)


def test_a_namespace_goes_with_its_truth(cluster: Cluster, release: str) -> None:
    install(cluster, release)
    assert "created" in tried(cluster, TRUSTED, "create", "-f", "-", given=configmap(release, "apiary-truth-canary", kind="truth"))
    cluster.kubectl("delete", "namespace", release, "--wait=false")
    cluster.wait(lambda: "NotFound" in tried(cluster, (), "get", "namespace", release), "the end of the namespace", 180)
    cluster.kubectl("create", "namespace", release)


def used(cluster: Cluster, namespace: str) -> dict[str, set[str]]:
    """The ConfigMaps that each DaemonSet's pods mount."""
    return {
        one["metadata"]["name"]: {
            volume["configMap"]["name"] for volume in one["spec"]["template"]["spec"]["volumes"] if "configMap" in volume
        }
        for one in cluster.request("GET", f"/apis/apps/v1/namespaces/{namespace}/daemonsets")["items"]
    }


@pytest.mark.parametrize("who", [OPERATOR, TRUSTED, ()], ids=["operator", "trusted", "cluster-admin"])
def test_nobody_deletes_what_agents_use(cluster: Cluster, guarded: str, who: tuple[str, ...]) -> None:
    found = used(cluster, guarded)
    assert set(found) == {"apiary-canary", "apiary-fleet"}
    for name in set().union(*found.values()):
        said = tried(cluster, who, "delete", "configmap", name, "--namespace", guarded)
        assert "gives this to its agents" in said, said
    said = tried(cluster, who, "delete", "configmap", "--selector", "apiary.dev/kind=policies", "--namespace", guarded)
    assert "gives this to its agents" in said


def test_what_no_daemonset_names_can_be_deleted(cluster: Cluster, release: str) -> None:
    cluster.apply(configmap(release, "apiary-policies-0000000000", kind="policies"))
    install(cluster, release)
    assert "deleted" in tried(cluster, OPERATOR, "delete", "configmap", "apiary-policies-0000000000", "--namespace", release)
    names = set().union(*used(cluster, release).values())
    cluster.helm(3, "uninstall", "apiary", "--namespace", release)
    for name in names:
        assert "deleted" in tried(cluster, OPERATOR, "delete", "configmap", name, "--namespace", release)


def test_another_namespace_is_none_of_its_business(cluster: Cluster, guarded: str, namespace: str) -> None:
    for kind in ("truth", "policies"):
        assert "created" in tried(cluster, OPERATOR, "create", "-f", "-", given=configmap(namespace, kind, kind=kind))
        assert "deleted" in tried(cluster, OPERATOR, "delete", "configmap", kind, "--namespace", namespace)


def test_warnings_stop_nobody(cluster: Cluster, release: str) -> None:
    install(cluster, release, action="Warn")
    truth = configmap(release, "apiary-truth-canary", kind="truth")
    said = tried(cluster, OPERATOR, "create", "-f", "-", given=truth)
    assert "created" in said and "is what its health is judged by" in said


def test_the_chart_leaves_them_out_where_they_are_not_wanted(cluster: Cluster) -> None:
    def kinds(*arguments: str) -> list[str]:
        text = cluster.helm(3, "template", "apiary", str(CHART), *arguments).stdout
        return [line for line in text.splitlines() if line.startswith("kind: ValidatingAdmission")]

    assert len(kinds("--kube-version", "1.30")) == 6
    assert kinds("--kube-version", "1.29") == kinds("--kube-version", "1.30", "--set", "admission.enabled=false") == []
