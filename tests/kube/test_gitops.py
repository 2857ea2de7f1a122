# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The tree for a git repository with the real Helm, the real kustomize, and a real API server that it is applied to."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from lupa.lua51 import LuaRuntime

from ansible_collections.apiary.tetragon.plugins.plugin_utils.gitops import argocd

if TYPE_CHECKING:
    from cluster import Cluster

RINGS = ("canary", "early", "fleet")
ENVIRONMENT = """\
name: lab
agent_version: "1.7.0"
policies:
  - {policy: process/fileless-execution, mode: monitor, form: cluster}
  - {policy: network/c2-ranges, mode: enforce, form: cluster, values: {ranges: [192.0.2.0/24]}}
  - {policy: network/egress-allowlist, mode: monitor, form: cluster, where: [databases], values: {allowed: [10.0.0.0/8]}}
rings:
  - {name: canary, take: 1%}
  - {name: early, take: 10%, batch: 5}
  - {name: fleet, take: rest, batch: 50%}
"""
Object = dict[str, Any]


class Desk:
    """A working directory with an environment, an inventory of two clusters and a checkout, and who works there."""

    def __init__(self, directory: Path, programs: Path, namespace: str = "tetragon") -> None:
        self.directory = directory
        self.programs = programs
        self.root = directory / "repository" / "apiary"
        (directory / "environment.yml").write_text(ENVIRONMENT, "utf-8")
        clusters = {"one": {}, "data.example": {}}
        common = {"ansible_connection": "local", "apiary_helm": str(programs / "helm3"), "apiary_kube_namespace": namespace}
        groups = {"apiary_clusters": {"hosts": clusters, "vars": common}, "databases": {"hosts": {"data.example": {}}}}
        (directory / "inventory.json").write_text(json.dumps({"all": {"children": groups}}), "utf-8")

    def play(self, *arguments: str, playbook: str = "gitops", **variables: Any) -> str:
        """One run of a playbook; its output. Raises AssertionError with it."""
        given = {
            "apiary_environment": "environment.yml",
            "apiary_gitops_dir": "repository",
            "apiary_gitops_path": "apiary",
            "apiary_gitops_repo": "https://git.example.com/fleet.git",
            "apiary_cache_dir": str(self.directory / "cache"),
            **variables,
        }
        program = str(Path(sys.executable).with_name("ansible-playbook"))
        command = [program, f"apiary.tetragon.{playbook}", "-i", "inventory.json", "-e", json.dumps(given), *arguments]
        done = subprocess.run(command, cwd=self.directory, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def change(self) -> None:
        file = self.directory / "environment.yml"
        file.write_text(file.read_text("utf-8").replace("192.0.2.0/24", "198.51.100.0/24"), "utf-8")

    def kustomize(self, place: str) -> list[Object]:
        command = [str(self.programs / "kubectl"), "kustomize", str(self.root / place)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return [one for one in yaml.safe_load_all(done.stdout) if one]

    def files(self) -> dict[str, str]:
        base = self.directory / "repository"
        return {path.relative_to(base).as_posix(): path.read_text("utf-8") for path in base.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def programs() -> Path:
    import cluster as lab

    return lab.programs()


@pytest.fixture
def desk(tmp_path: Path, programs: Path) -> Desk:
    return Desk(tmp_path, programs)


def by_key(objects: list[Object]) -> dict[tuple[str, str], Object]:
    found = {(one["kind"], one["metadata"]["name"]): one for one in objects}
    assert len(found) == len(objects)
    return found


def chart(desk: Desk, cluster: str) -> dict[tuple[str, str], Object]:
    """What Helm makes of the chart with the same policies and rings, without any of our code between."""
    (text,) = (desk.root / f"clusters/{cluster}/rings/canary/kustomization.yaml").read_text("utf-8").split("bundles/")[1:]
    bundle = text.partition("/")[0]
    rings = []
    for ring, surge in (("canary", "100%"), ("early", 5), ("fleet", "50%")):
        directory = desk.root / f"clusters/{cluster}/bundles/{bundle}/{ring}"
        (place,) = [
            one for one in yaml.safe_load((directory / "kustomization.yaml").read_text("utf-8"))["resources"] if "/policies/" in one
        ]
        policies = {path.name: path.read_text("utf-8") for path in (directory / place).rglob("cluster-*.yaml")}
        truth = yaml.safe_load((directory / f"configmap-apiary-truth-{ring}.yaml").read_text("utf-8"))
        digest = truth["metadata"]["annotations"]["apiary.dev/bundle"]
        rings.append({"name": ring, "agentVersion": "1.7.0", "policies": policies, "bundle": digest, "maxSurge": surge})
    command = [str(desk.programs / "helm4"), "template", "apiary", str(Path(__file__).parents[2] / "charts/apiary")]
    command += ["--namespace", "tetragon", "--kube-version", "1.30", "--values", "-"]
    values = json.dumps({"rings": rings, "library": {"enabled": False}})
    done = subprocess.run(command, input=values, capture_output=True, text=True, check=True)
    return by_key([one for one in yaml.safe_load_all(done.stdout) if one])


def without_ours(one: Object, ring: str) -> Object:
    """A ConfigMap of a ring as the chart has it: its name without the ring, and without what Argo CD is told."""
    metadata = one["metadata"]
    annotations = {name: text for name, text in metadata["annotations"].items() if name not in argocd.KEPT}
    return {**one, "metadata": {**metadata, "name": metadata["name"].removesuffix(f"-{ring}"), "annotations": annotations}}


@pytest.mark.parametrize("cluster_name", ["one", "data.example"])
def test_kustomize_makes_of_the_tree_what_helm_makes_of_the_chart(desk: Desk, cluster_name: str) -> None:
    desk.play()
    wanted = chart(desk, cluster_name)
    seen = by_key(desk.kustomize(f"common/{cluster_name}"))
    for ring in RINGS:
        objects = by_key(desk.kustomize(f"clusters/{cluster_name}/rings/{ring}"))
        truth = objects.pop(("ConfigMap", f"apiary-truth-{ring}"))
        assert truth["metadata"]["namespace"] == "tetragon" and "data" not in truth
        for (kind, name), one in objects.items():
            if kind == "ConfigMap":
                assert name.endswith(f"-{ring}")
                own = without_ours(one, ring)
                seen[kind, own["metadata"]["name"]] = own
            else:
                names = {name: name.removesuffix(f"-{ring}") for other, name in objects if other == "ConfigMap"}
                volumes = one["spec"]["template"]["spec"]["volumes"]
                for volume in volumes:
                    if "configMap" in volume:
                        volume["configMap"]["name"] = names.pop(volume["configMap"]["name"])
                assert not names
                seen[kind, name] = one
    assert seen.keys() == wanted.keys()
    for key, one in wanted.items():
        assert seen[key] == one, key


def test_every_helm_gives_the_same_files(desk: Desk) -> None:
    desk.play()
    before = desk.files()
    assert "changed=0" in desk.play(apiary_helm=str(desk.programs / "helm4"))
    assert desk.files() == before


def test_check_mode_shows_all_and_writes_nothing(desk: Desk) -> None:
    said = desk.play("--check", "--diff")
    assert "changed=1" in said and not (desk.directory / "repository").exists()
    assert "+++ after: apiary/clusters/one/rings/canary/kustomization.yaml" in said and "+kind: ApplicationSet" in said
    desk.play()
    desk.change()
    before = desk.files()
    said = desk.play("--check", "--diff")
    assert '-  - "../../bundles/lab-' in said and '+  - "../../bundles/lab-' in said and desk.files() == before


def test_a_bundle_that_was_built_before_is_taken(desk: Desk) -> None:
    desk.play()
    (name,) = {path.name for path in (desk.root / "clusters/one/bundles").iterdir()}
    program = str(Path(sys.executable).with_name("ansible-playbook"))
    variables = json.dumps({"apiary_environment": "environment.yml"})
    subprocess.run([program, "apiary.tetragon.bundle", "-e", variables], cwd=desk.directory, check=True, capture_output=True)
    (built,) = (desk.directory / "bundles").iterdir()
    assert name.startswith(built.name)
    assert "changed=0" in desk.play(apiary_bundle=f"bundles/{built.name}")


# --- on a cluster


@pytest.fixture
def applied(cluster: Cluster, namespace: str, tmp_path: Path) -> Iterator[Desk]:
    """A desk whose cluster "one" is applied, ring by ring."""
    desk = Desk(tmp_path, cluster.bin, namespace)
    desk.play()
    for place in ("common/one", *(f"clusters/one/rings/{ring}" for ring in RINGS)):
        apply(cluster, desk, place)
    yield desk
    cluster.kubectl("delete", "--kustomize", str(desk.root / "common/one"))


def apply(cluster: Cluster, desk: Desk, place: str) -> None:
    """As Argo CD does with ServerSideApply."""
    flags = ("--server-side", "--force-conflicts", "--field-manager", "argocd-controller", "--validate=strict")
    cluster.kubectl("apply", *flags, "--kustomize", str(desk.root / place))


def daemonsets(cluster: Cluster, namespace: str) -> dict[str, Object]:
    found = cluster.request("GET", f"/apis/apps/v1/namespaces/{namespace}/daemonsets")["items"]
    return {one["metadata"]["labels"]["apiary.dev/ring"]: one for one in found}


def rolled(cluster: Cluster, namespace: str) -> None:
    def done() -> bool:
        found = daemonsets(cluster, namespace)
        return set(found) == set(RINGS) and all(
            one["status"].get("observedGeneration") == one["metadata"]["generation"]
            and one["status"]["desiredNumberScheduled"]
            == one["status"].get("updatedNumberScheduled")
            == one["status"].get("numberAvailable")
            for one in found.values()
        )

    cluster.wait(done, "all rings", 300)


def health(configmap: Mapping[str, Any]) -> tuple[str, str]:
    lua = LuaRuntime(register_eval=False, register_builtins=False)
    lua.globals()["obj"] = lua.table_from(configmap, recursive=True)
    result = lua.execute(argocd.health_check(3600))
    return result["status"], result["message"]


def test_the_tree_runs_and_a_promotion_moves_one_ring(cluster: Cluster, namespace: str, applied: Desk) -> None:
    rolled(cluster, namespace)
    before = daemonsets(cluster, namespace)
    nodes = {ring: one["status"]["desiredNumberScheduled"] for ring, one in before.items()}
    assert nodes["canary"] == 2 and nodes["early"] == 6 and sum(nodes.values()) == 20
    applied.change()
    applied.play()
    applied.play(apiary_promote="early")
    for place in ("common/one", *(f"clusters/one/rings/{ring}" for ring in RINGS)):
        apply(cluster, applied, place)
    rolled(cluster, namespace)
    after = daemonsets(cluster, namespace)
    changed = {ring for ring in RINGS if after[ring]["metadata"]["generation"] != before[ring]["metadata"]["generation"]}
    assert changed == {"canary", "early"}
    maps = {one["metadata"]["name"] for one in cluster.request("GET", f"/api/v1/namespaces/{namespace}/configmaps")["items"]}
    for found in (before, after):
        for one in found.values():
            assert {volume["configMap"]["name"] for volume in one["spec"]["template"]["spec"]["volumes"] if "configMap" in volume} <= maps


def test_the_truth_that_is_published_makes_the_health_of_a_ring(cluster: Cluster, namespace: str, applied: Desk) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps/apiary-truth-canary"
    at = {"apiary_kubeconfig": str(cluster.kubeconfig), "apiary_hosts": "one"}
    rolled(cluster, namespace)
    assert health(cluster.request("GET", path)) == ("Progressing", "no truth has been published for this ring yet")
    applied.play(playbook="cluster_truth", **at)
    assert health(cluster.request("GET", path)) == ("Healthy", "2 of 2 nodes ready")
    apply(cluster, applied, "clusters/one/rings/canary")
    assert health(cluster.request("GET", path)) == ("Healthy", "2 of 2 nodes ready")
    former = cluster.request("GET", path)["metadata"]["annotations"]["apiary.dev/bundle"]
    applied.change()
    applied.play()
    cluster.faults({"namespaces": [namespace], "nodes": ["node-0001"], "policy": "c2-ranges*", "load_error": True})
    apply(cluster, applied, "clusters/one/rings/canary")
    status, message = health(cluster.request("GET", path))
    assert status == "Progressing" and f"the published truth is of bundle {former[:16]}" in message

    def told(wanted: str, part: str) -> bool:
        applied.play(playbook="cluster_truth", **at)
        status, message = health(cluster.request("GET", path))
        return status == wanted and part in message

    cluster.wait(lambda: told("Progressing", "node-0001 ("), "the node that cannot load it", 240)
    cluster.faults()
    cluster.wait(lambda: told("Healthy", "2 of 2 nodes ready"), "the ring", 240)
