# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Whole rollouts over a cluster's nodes, through the playbooks: how they end, halt, go back, and survive what happens to them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ansible_collections.apiary.tetragon.plugins.plugin_utils import bundle
from ansible_collections.apiary.tetragon.plugins.plugin_utils.fleet.ledger import progress

if TYPE_CHECKING:
    from cluster import Cluster
    from controller import Site

LABELS = {"canary": 2, "early": 6}
NODES = 20
PLAIN = "ansible.builtin.default"  # with a recap
NARROWER = {"policy": "network/c2-ranges", "mode": "enforce", "form": "cluster", "values": {"ranges": ["192.0.2.0/25"]}}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of this module: twenty nodes of one kind."""
    import cluster as lab

    if reason := lab.obstacle():
        pytest.skip(reason)
    with lab.Cluster(tmp_path_factory.mktemp("fleet")) as made:
        made.nodes(NODES, LABELS)
        yield made


@pytest.fixture
def place(fleet: Cluster) -> Iterator[str]:
    """A namespace for the case; what the case left of faults, nodes and agents is gone after it."""
    name = f"case-{os.urandom(4).hex()}"
    yield name
    fleet.faults()
    if dead := fleet.dead():
        fleet.revive_nodes(dead)
    fleet.helm(4, "uninstall", "apiary", "-n", name, check=False)
    fleet.kubectl("delete", "namespace", name, "--ignore-not-found", "--wait=false")
    wait_for(lambda: not [one for one in fleet.request("GET", "/api/v1/pods")["items"] if one["metadata"]["namespace"] == name])
    nodes = [one["metadata"]["name"] for one in fleet.request("GET", "/api/v1/nodes")["items"]]
    fleet.remove(name for name in nodes if not name.startswith("node-"))
    missing = NODES - sum(name.startswith("node-") for name in nodes)
    assert not missing


@pytest.fixture
def site(fleet: Cluster, place: str, tmp_path: Path) -> Site:
    from controller import Site

    return Site(tmp_path, fleet, place)


def wait_for(condition: Callable[[], object], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def files(chosen: Path) -> set[str]:
    return {one["file"] for one in bundle.read(chosen).policies_for((), "cluster")}


def everywhere(site: Site, chosen: Path | None) -> None:
    """Assert that every node's agent was given this bundle's policies."""
    wanted = files(chosen) if chosen else set()
    given = site.policies()
    assert len(given) >= NODES
    assert {node: found for node, found in given.items() if found != wanted} == {}


@pytest.mark.parametrize("helm", [3, 4])
def test_a_rollout_reaches_every_node_ring_by_ring(fleet: Cluster, place: str, tmp_path: Path, helm: int) -> None:
    from controller import Site

    site = Site(tmp_path, fleet, place, helm)
    path = site.environment()
    chosen = site.bundle(path)
    site.install(path)
    revisions = len(site.get("secrets"))
    site.install(path)
    assert len(site.get("secrets")) == revisions, "an installation with nothing to change made a revision of the release"
    everywhere(site, None)
    shown = site.rollout(path, chosen, "--check", "--diff")
    assert shown.code == 0, shown.output
    assert shown.output.count("+cluster-c2-ranges-") == 3
    everywhere(site, None)
    done = site.rollout(path, chosen)
    assert done.code == 0, done.output
    everywhere(site, chosen)
    assert site.kinds() == ["rollout-started", *("ring-started", "gate", "ring-passed") * 3, "rollout-finished"]
    passed = {entry["ring"]: entry["hosts"] for entry in site.ledger.read() if entry["kind"] == "ring-passed"}
    assert sorted(passed["canary"]) == ["kube1/node-0000", "kube1/node-0001"]
    assert {ring: len(hosts) for ring, hosts in passed.items()} == {"canary": 2, "early": 6, "fleet": 12}
    assert re.search(r"kube1: fleet: 12 of 12 nodes run it", done.output)
    for ring, count in (("canary", 2), ("early", 6), ("fleet", 12)):
        told = site.truth(ring)
        assert (told["verdict"], told["nodes"], told["ready"], told["bundle"]) == ("healthy", count, count, bundle.read(chosen).digest)
        assert {(one["wanted"], one["enabled"]) for one in told["policies"].values()} == {(count, count)}
    report = site.report()
    assert (report["outcome"], [ring["state"] for ring in report["rings"]]) == ("finished", ["passed"] * 3)
    assert len([host for host in report["hosts"] if host["name"].startswith("kube1/node-")]) == NODES
    assert site.get("leases", "/apis/coordination.k8s.io/v1") == []
    before = {pod["metadata"]["uid"] for pod in site.get("pods")}
    again = site.rollout(path, chosen)
    assert again.code == 0, again.output
    assert {pod["metadata"]["uid"] for pod in site.get("pods")} == before
    told = site.play("status", path)
    assert "every host runs what it should" in told.output, told.output


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        pytest.param({"load_error": True}, r"kube1/node-000\d: change: pod apiary-canary-\S+ is not ready: ", id="does not load"),
        pytest.param({"crash": True}, r"kube1/node-000\d: change: pod apiary-canary-\S+ is not ready: CrashLoopBackOff", id="crashes"),
        pytest.param({"events": 60}, r"kube1/node-000\d: events of credential-writes-[0-9a-f]{8}: \d+ events; limit 20", id="noisy"),
        pytest.param({"cpu": 0.9}, r"kube1/node-000\d: cpu: 0.* cores; limit 0.1 above the baseline", id="costs too much"),
    ],
)
def test_a_bad_policy_stops_at_the_canary_and_nobody_else_ever_saw_it(site: Site, fault: dict[str, Any], reason: str) -> None:
    path = site.environment()
    first = site.bundle(path)
    site.install(path)
    assert site.rollout(path, first).code == 0
    bad = site.environment(
        "bad.yml",
        policies=[NARROWER, {"policy": "file/credential-writes", "mode": "monitor", "form": "cluster"}],
        gates={"bake": "4s", "control": 2},
    )
    chosen = site.bundle(bad)
    site.write_inventory(apiary_kube_stall=20)
    site.cluster.faults({"namespaces": [site.namespace], "policy": "credential-writes*", **fault})
    done = site.rollout(bad, chosen)
    assert done.code != 0
    assert re.search(f"halted at ring canary: {reason}.*every changed host is back", done.output), done.output
    everywhere(site, first)
    assert site.ever(chosen) == {"canary"}
    told = site.truth("canary")
    assert (told["verdict"], told["bundle"]) == ("degraded", bundle.read(first).digest)
    assert told["reason"].startswith("went back to the former bundle: ")
    back = next(entry for entry in site.ledger.read() if entry["kind"] == "rolled-back")
    assert (sorted(back["hosts"]), back["failed"]) == (["kube1/node-0000", "kube1/node-0001"], [])
    refused = site.rollout(bad, chosen)
    assert "failed its gate before" in refused.output
    site.cluster.faults()
    site.write_inventory()
    again = site.rollout(bad, chosen, apiary_retry=True)
    assert again.code == 0, again.output
    everywhere(site, chosen)


def test_an_api_server_that_is_killed_in_the_middle_is_waited_for(site: Site) -> None:
    path = site.environment(gates={"bake": "4s", "control": 2})
    chosen = site.bundle(path)
    site.install(path)
    site.write_inventory(apiary_kube_stall=120)  # the controllers take their time to come back
    process = site.start(site.command("rollout", path, apiary_bundle=chosen))
    for ring in ("canary", "early", "fleet"):
        wait_for(lambda ring=ring: any(entry.get("ring") == ring for entry in site.ledger.read()) or process.poll() is not None)
        time.sleep(1)
        site.cluster.stop_api()
        time.sleep(5)
        site.cluster.start_api()
    assert process.wait(300) == 0, (site.directory / "output").read_text()
    everywhere(site, chosen)
    assert [site.truth(ring)["verdict"] for ring in ("canary", "early", "fleet")] == ["healthy"] * 3


def milestones(site: Site, former: set[Path]) -> set[str]:
    """Everything durable that the newest run after ``former`` has left so far, and once it has, the release's revisions."""
    found = site.milestones(former)
    secrets = (one["metadata"] for one in site.get("secrets") if one["metadata"]["name"].startswith("sh.helm.release")) if found else ()
    return found | {f"{one['name']} {one['labels']['status']}" for one in secrets}


def test_a_controller_that_is_killed_anywhere_is_taken_over_by_the_next_run(site: Site) -> None:
    path = site.environment(gates={"bake": "0s", "control": 2}, rings=[{"name": "canary", "take": 2}, {"name": "fleet", "take": "rest"}])
    site.install(path)
    assert site.rollout(path, site.bundle(path)).code == 0
    changed = site.environment(
        "changed.yml",
        gates={"bake": "0s", "control": 2},
        rings=[{"name": "canary", "take": 2}, {"name": "fleet", "take": "rest", "batch": "100%"}],
        policies=[NARROWER],
    )
    chosen = site.bundle(changed)
    command = site.command("rollout", changed, apiary_bundle=chosen)
    former = site.runs()
    known = milestones(site, former)
    kills = 0
    while True:
        process = site.start(command)
        new: set[str] = set()
        while process.poll() is None and not new:
            time.sleep(0.02)
            new = milestones(site, former) - known
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
        known |= milestones(site, former)
    assert process.returncode == 0, (site.directory / "output").read_text()
    assert kills > 12
    assert any("pending-upgrade" in name for name in known), known
    assert {f"{kind} {ring}" for kind in ("ring-started", "gate", "ring-passed") for ring in ("canary", "fleet")} <= known
    everywhere(site, chosen)
    stand = progress(site.ledger.read(), "lab")
    assert (stand.current, stand.run) == (bundle.read(chosen).digest, "")
    assert site.get("leases", "/apis/coordination.k8s.io/v1") == []


def test_two_controllers_do_not_roll_out_to_one_cluster(site: Site, tmp_path: Path) -> None:
    from controller import Site

    path = site.environment(gates={"bake": "60s"})
    chosen = site.bundle(path)
    site.install(path)
    first = site.start(site.command("rollout", path, apiary_bundle=chosen))
    try:
        wait_for(lambda: "ring-started" in site.kinds())
        run = site.ledger.read()[0]["run"]
        (tmp_path / "other").mkdir()
        other = Site(tmp_path / "other", site.cluster, site.namespace)
        second = other.rollout(other.environment(gates={"bake": "0s"}), chosen)
        assert second.code != 0
        assert f"cluster kube1: rollout {run} is under way in it" in second.output, second.output
        assert other.kinds() == []
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    broken = other.rollout(other.environment(gates={"bake": "0s"}), chosen, apiary_break_lock=run)
    assert broken.code == 0, broken.output
    everywhere(site, chosen)


def test_nodes_that_join_count_in_and_nodes_that_leave_are_not_lost(site: Site) -> None:
    site.cluster.nodes(2, {"canary": 2}, prefix="leaver")
    path = site.environment(gates={"bake": "12s", "control": 2})
    chosen = site.bundle(path)
    site.install(path)
    process = site.start(site.command("rollout", path, apiary_bundle=chosen))
    wait_for(lambda: list((site.directory / "ledger/runs").glob("*/fleet/*.json")) or process.poll() is not None)
    site.cluster.nodes(1, {"canary": 1}, prefix="joiner")
    wait_for(lambda: list((site.directory / "ledger/runs").glob("*/rings/canary/start/*.json")) or process.poll() is not None)
    site.cluster.remove(["leaver-0000"])
    site.cluster.nodes(1, {"canary": 1}, prefix="last")
    site.cluster.nodes(1, prefix="late")
    assert process.wait(300) == 0, (site.directory / "output").read_text()
    passed = {entry["ring"]: set(entry["hosts"]) for entry in site.ledger.read() if entry["kind"] == "ring-passed"}
    assert passed["canary"] == {f"kube1/{name}" for name in ("node-0000", "node-0001", "leaver-0001", "joiner-0000")}
    assert "kube1/late-0000" in passed["fleet"]
    everywhere(site, chosen)


def test_dead_nodes_count_against_the_budget_and_do_not_hold_up_the_others(site: Site) -> None:
    path = site.environment()
    chosen = site.bundle(path)
    site.install(path)
    site.cluster.kill_nodes(["node-0019"])
    refused = site.rollout(path, chosen)
    assert "1 of 20 hosts cannot take part and 0 may be missing: kube1/node-0019: the node is not ready" in refused.output
    assert site.ever(chosen) == set()
    tolerant = site.environment(gates={"bake": "1s", "control": 2, "unreachable": "5%"})
    done = site.rollout(tolerant, chosen)
    assert done.code == 0, done.output
    assert "12 of 12" not in done.output
    assert {node for node, given in site.policies().items() if given == files(chosen)} >= {f"node-{number:04d}" for number in range(19)}
    told = site.truth("fleet")
    assert (told["nodes"], told["ready"], told["off"]) == (12, 11, [{"node": "node-0019", "reason": "the node is not ready"}])


def test_a_node_that_dies_in_a_ring_halts_the_rollout(site: Site) -> None:
    path = site.environment(gates={"bake": "8s", "control": 2})
    chosen = site.bundle(path)
    site.install(path)
    process = site.start(site.command("rollout", path, apiary_bundle=chosen))
    wait_for(lambda: list((site.directory / "ledger/runs").glob("*/rings/canary/start/*.json")) or process.poll() is not None)
    site.cluster.kill_nodes(["node-0001"])
    assert process.wait(300) != 0
    output = (site.directory / "output").read_text()
    assert "halted at ring canary: unreachable: 1 hosts; limit 0; lost: kube1/node-0001; NOT back: kube1/node-0001" in output, output
    assert site.ever(chosen) == {"canary"}


def test_metrics_that_cannot_be_read_halt_a_rollout_and_the_next_run_goes_on(site: Site) -> None:
    path = site.environment(gates={"bake": "4s", "control": 2})
    chosen = site.bundle(path)
    site.install(path)
    site.cluster.faults({"nodes": ["node-0012"], "answer": "reset"})
    refused = site.rollout(path, chosen)
    assert re.search(r"1 of 20 hosts cannot take part and 0 may be missing: kube1/node-0012: counters: metrics of pod", refused.output)
    assert site.ever(chosen) == set()
    site.cluster.faults()
    process = site.start(site.command("rollout", path, apiary_bundle=chosen))
    wait_for(lambda: list((site.directory / "ledger/runs").glob("*/rings/canary/start/*.json")) or process.poll() is not None)
    site.cluster.faults({"nodes": ["node-0000"], "answer": "reset"})
    assert process.wait(300) != 0
    output = (site.directory / "output").read_text()
    assert re.search(r"halted at ring canary: the gate is inconclusive: kube1/node-0000: \S+: .*metrics of pod", output), output
    assert site.truth("canary")["verdict"] == "degraded"
    site.cluster.faults()
    again = site.rollout(path, chosen)
    assert again.code == 0, again.output
    assert site.kinds().count("rollout-started") == 1
    everywhere(site, chosen)


def broken_kubeconfig(site: Site, **changes: str) -> dict[str, Any]:
    """Variables of the cluster with a kubeconfig in which something is otherwise."""
    content = json.loads(site.cluster.kubeconfig.read_text(encoding="utf-8"))
    content["clusters"][0]["cluster"].update({key: value for key, value in changes.items() if key == "server"})
    content["users"][0]["user"].update({key: value for key, value in changes.items() if key == "token"})
    path = site.directory / "broken.kubeconfig"
    path.write_text(json.dumps(content), encoding="utf-8")
    return {"apiary_kubeconfig": str(path)}


def oversized(site: Site, chosen: Path) -> Path:
    """A bundle like this one, too large for a ConfigMap."""
    former = bundle.read(chosen)
    files = {name: text + "# " + "x" * 900_000 + "\n" if name.startswith("cluster-") else text for name, text in former.files.items()}
    policies = [{**one, "sha256": hashlib.sha256(files[one["file"]].encode()).hexdigest()} for one in former.manifest["policies"]]
    return bundle.write(bundle.Bundle({**former.manifest, "policies": policies}, files), site.directory / "bundles")


def foreign_image(site: Site) -> None:
    """Somebody else sets the image of the canary's agents."""
    container = {"name": "tetragon", "image": "registry.example/tetragon:v1.7.0"}
    document = {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "apiary-canary", "namespace": site.namespace},
        "spec": {"template": {"spec": {"containers": [container]}}},
    }
    command = ["apply", "--server-side", "--force-conflicts", "--field-manager=gitops", "-f", "-"]
    site.cluster.kubectl(*command, input=json.dumps(document))


def second_release(site: Site) -> None:
    """Agents of another release on the canary's nodes."""
    found = next(one for one in site.get("daemonsets", "/apis/apps/v1") if one["metadata"]["name"] == "apiary-canary")
    labels = {**found["spec"]["selector"]["matchLabels"], "app.kubernetes.io/instance": "other"}
    spec = found["spec"]
    spec["selector"]["matchLabels"] = spec["template"]["metadata"]["labels"] = labels
    metadata = {"name": "other-canary", "namespace": site.namespace, "labels": labels}
    site.cluster.apply({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": metadata, "spec": spec})
    wait_for(lambda: sum(pod["metadata"]["labels"]["app.kubernetes.io/instance"] == "other" for pod in site.get("pods")) == 2)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param("context", "context 'production' cannot be used: .*set apiary_kube_context", id="context missing"),
        pytest.param("server", "the API server https://127.0.0.1:1 does not answer: .*check the network", id="API out of reach"),
        pytest.param("token", "does not accept the credentials of context 'lab': they have expired or are wrong", id="token expired"),
        pytest.param("rbac", r"RBAC forbids to get or list .*cannot (get|list) resource", id="forbidden by RBAC"),
        pytest.param("helm", "/no/such/helm: is not there: install helm 3 or 4", id="no helm"),
        pytest.param("release", "has no namespace case-.* and so no release apiary: install it with the playbook", id="not installed"),
        pytest.param(
            "rings", "its release apiary has the rings canary, early, fleet, and the environment gives it canary, rest", id="other rings"
        ),
        pytest.param("empty", "ring 'none' is empty: it selects no node; label nodes with apiary.dev/ring=none", id="ring without nodes"),
        pytest.param("two", "node node-000[01]: is in two rings: agents of ring 'canary' of release", id="node in two rings"),
        pytest.param("version", "is '1.6.1', and bundle lab-[0-9a-f]+ was checked for 1.7.0, whose fields", id="other agent"),
        pytest.param("size", "ring canary: its 2 policies are 1,8.* bytes and a ConfigMap holds 1,048,576", id="bundle too large"),
        pytest.param(
            "manager", r"DaemonSet apiary-canary: field .*image: conflict with \"gitops\".*somebody else manages it", id="field manager"
        ),
    ],
)
def test_what_cannot_work_is_refused_before_anything_changes(site: Site, spoil: str, message: str) -> None:
    path = site.environment()
    chosen = site.bundle(path)
    if spoil == "empty":
        site.install(site.environment(rings=[{"name": "none", "take": 1}, *site.defaults["rings"]]))
        path = site.environment(rings=[{"name": "none", "take": 1}, *site.defaults["rings"]])
    elif spoil != "release":
        site.install(path)
    if spoil == "context":
        site.write_inventory(apiary_kube_context="production")
    elif spoil == "server":
        site.write_inventory(**broken_kubeconfig(site, server="https://127.0.0.1:1"))
    elif spoil == "token":
        site.write_inventory(**broken_kubeconfig(site, token="expired"))
    elif spoil == "rbac":
        site.write_inventory(apiary_kubeconfig=str(site.cluster.directory / "nobody.kubeconfig"))
    elif spoil == "helm":
        site.write_inventory(apiary_helm="/no/such/helm")
    elif spoil == "rings":
        path = site.environment(rings=[site.defaults["rings"][0], {"name": "rest", "take": "rest"}])
    elif spoil == "two":
        second_release(site)
    elif spoil == "version":
        path = site.environment(agent_version="1.6.1")
    elif spoil == "size":
        chosen = oversized(site, chosen)
    elif spoil == "manager":
        foreign_image(site)
    before = {one["metadata"]["name"]: one["metadata"]["generation"] for one in site.get("daemonsets", "/apis/apps/v1")}
    done = site.rollout(path, chosen)
    assert done.code != 0
    assert re.search(message, done.output), done.output
    assert "Traceback" not in done.output
    assert site.kinds() == []
    assert {one["metadata"]["name"]: one["metadata"]["generation"] for one in site.get("daemonsets", "/apis/apps/v1")} == before
    assert site.ever(chosen) == set()


def test_custom_resources_without_their_crds_are_refused_at_the_installation(site: Site) -> None:
    policy = "apiVersion: cilium.io/v1alpha1\nkind: TracingPolicy\nmetadata: {name: watch}\nspec: {kprobes: [{call: sys_mount}]}\n"
    given = {
        "customResources": {"enabled": True},
        "rings": [{"name": "canary", "agentVersion": "1.8.0", "customResources": {"watch.yaml": policy}}],
    }
    (site.directory / "values.yml").write_text(json.dumps(given), encoding="utf-8")
    done = site.play("install", site.environment(agent_version="1.8.0"))
    assert done.code != 0
    assert "no CRD tracingpolicies.cilium.io can be seen" in done.output, done.output
    assert site.cluster.helm(4, "list", "-n", site.namespace, "-q").stdout == ""


def test_nodes_are_labelled_once_and_a_cluster_is_judged_and_removed(site: Site) -> None:
    path = site.environment()
    site.cluster.nodes(2, prefix="bare")
    shown = site.play("cluster_label", path, "--check", "--diff")
    assert "+bare-0000: " in shown.output, shown.output
    done = site.play("cluster_label", path, callback=PLAIN)
    assert (done.code, "changed=1" in done.output) == (0, True), done.output
    again = site.play("cluster_label", path, callback=PLAIN)
    assert "changed=0" in again.output
    labels = {
        one["metadata"]["name"]: one["metadata"]["labels"].get("apiary.dev/ring")
        for one in site.cluster.request("GET", "/api/v1/nodes")["items"]
    }
    assert (labels["node-0000"], labels["node-0002"], labels["bare-0000"], labels["node-0019"]) == ("canary", "early", "fleet", "fleet")
    judged = site.play("cluster_preflight", path, callback=PLAIN)
    assert judged.code == 0, judged.output
    assert re.search(r"ok +ring early +7 nodes", judged.output), judged.output
    site.install(path)
    assert site.rollout(path, site.bundle(path)).code == 0
    removed = site.play("remove", path, callback=PLAIN, apiary_remove_confirmed=True)
    assert removed.code == 0, removed.output
    assert "22 of 22 nodes are clean" in removed.output
    assert site.get("pods") == site.get("daemonsets", "/apis/apps/v1") == []
    assert not [one for one in site.get("configmaps") if "apiary.dev/kind" in one["metadata"].get("labels", {})]
    again = site.play("remove", path, callback=PLAIN, apiary_remove_confirmed=True)
    assert (again.code, "changed=0" in again.output) == (0, True), again.output
    site.cluster.label([name for name in labels if name.startswith("node-") and name > "node-0007"], None)


def test_hosts_and_a_cluster_change_in_the_same_rings(fleet: Cluster, place: str, tmp_path: Path) -> None:
    from controller import FILELESS, RANGES, Site

    sys.path.insert(0, str(Path(__file__).parents[1] / "lab"))
    from fleet import Fleet

    with Fleet(tmp_path / "lab", 2) as hosts:
        inventory = json.loads(hosts.inventory.read_text(encoding="utf-8"))["all"]
        shared = {name: {**inventory["vars"], **variables} for name, variables in inventory["hosts"].items()}
        site = Site(tmp_path, fleet, place, hosts=shared)
        policies = [RANGES, FILELESS, {**RANGES, "form": "host"}]
        rings = [{"name": "canary", "take": 1}, {"name": "fleet", "take": "rest"}]
        path = site.environment(policies=policies, rings=rings, gates={"bake": "1s", "control": 2, "failed_units": False})
        chosen = site.bundle(path)
        installed = site.play("install", path, "--limit", "kube1")
        assert installed.code == 0, installed.output
        done = site.rollout(path, chosen)
        assert done.code == 0, done.output
        passed = {entry["ring"]: set(entry["hosts"]) for entry in site.ledger.read() if entry["kind"] == "ring-passed"}
        assert {len([one for one in members if "/" not in one]) for members in passed.values()} == {1}
        assert {ring: len(members) for ring, members in passed.items()} == {"canary": 3, "fleet": 19}
        everywhere(site, chosen)
        assert all(len(host.listed()) == 1 for host in hosts.hosts.values())
        hosts.hosts["host01"].stop()
        told = site.play("status", path)
        assert re.search(r"1 of 22 host\(s\) differ", told.output), told.output
