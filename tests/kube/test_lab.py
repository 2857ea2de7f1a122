# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The lab's own tests: the control plane works, agents answer as what they were given, faults do what they say."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ansible_collections.apiary.tetragon.plugins.module_utils.agent import metrics

if TYPE_CHECKING:
    from cluster import Cluster


def policies(*names: str) -> dict[str, str]:
    return {
        f"{name}.yaml": f"apiVersion: cilium.io/v1alpha1\nkind: TracingPolicy\nmetadata: {{name: {name}}}\nspec: {{}}\n" for name in names
    }


def config(namespace: str, name: str, data: dict[str, str]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace}, "immutable": True, "data": data}


def agents(namespace: str, config: str, ring: str = "", version: str = "1.7.0") -> dict[str, Any]:
    """A DaemonSet of agents, of one ring or of all nodes, that surges."""
    labels = {"app": f"agent-{ring}"}
    wanted = {"matchExpressions": [{"key": "apiary.dev/ring", "operator": "In", "values": [ring]}]}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [wanted]}}} if ring else {}
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": labels["app"], "namespace": namespace},
        "spec": {
            "selector": {"matchLabels": labels},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "affinity": affinity,
                    "tolerations": [{"operator": "Exists"}],
                    "containers": [{"name": "tetragon", "image": f"quay.io/cilium/tetragon:v{version}"}],
                    "volumes": [{"name": "policies", "configMap": {"name": config}}],
                },
            },
        },
    }


def pods(cluster: Cluster, namespace: str) -> list[dict[str, Any]]:
    return list(cluster.request("GET", f"/api/v1/namespaces/{namespace}/pods")["items"])


def ready(pod: dict[str, Any]) -> bool:
    return any(one["type"] == "Ready" and one["status"] == "True" for one in pod["status"].get("conditions", ()))


def status(cluster: Cluster, namespace: str, name: str = "agent-canary") -> dict[str, Any]:
    found = cluster.request("GET", f"/apis/apps/v1/namespaces/{namespace}/daemonsets/{name}")
    current = found["status"].get("observedGeneration") == found["metadata"]["generation"]
    return {"current": current, "updated": 0, **found["status"]}


def rolled(cluster: Cluster, namespace: str, count: int = 2) -> None:
    def done() -> bool:
        now = status(cluster, namespace)
        return now["current"] and now.get("updatedNumberScheduled") == count == now.get("numberAvailable") == now.get("numberReady")

    cluster.wait(done, "the roll")


def scrape(cluster: Cluster, pod: dict[str, Any]) -> str:
    name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
    return str(cluster.request("GET", f"/api/v1/namespaces/{namespace}/pods/{name}:2112/proxy/metrics"))


def install(cluster: Cluster, namespace: str, *names: str, version: str = "1.7.0", wait: bool = True) -> None:
    """Agents of the ring canary with these policies."""
    given = f"policies-{'-'.join(names)}"
    cluster.apply(config(namespace, given, policies(*names)), agents(namespace, given, "canary", version))
    if wait:
        rolled(cluster, namespace)


def test_a_ring_has_its_nodes_and_their_agents_say_what_they_were_given(cluster: Cluster, namespace: str) -> None:
    install(cluster, namespace, "one", "two", version="1.6.1")
    found = pods(cluster, namespace)
    assert sorted(pod["spec"]["nodeName"] for pod in found) == ["node-0000", "node-0001"]
    for pod in found:
        text = scrape(cluster, pod)
        assert metrics.by_label(text, "tracingpolicy_loaded", "state") == {"disabled": 0, "enabled": 2, "error": 0, "load_error": 0}
        assert set(metrics.by_label(text, "tracingpolicy_kernel_memory_bytes", "policy")) == {"one", "two"}
        assert metrics.by_label(text, "build_info", "version") == {"v1.6.1": 1}
        assert f"process_start_time_seconds {time.time():.0f}"[:-2] in text


def test_a_roll_surges_and_never_leaves_a_node_without_a_ready_agent(cluster: Cluster, namespace: str) -> None:
    install(cluster, namespace, "one")
    before = {pod["metadata"]["name"] for pod in pods(cluster, namespace)}
    cluster.faults({"namespaces": [namespace], "policy": "two", "start_seconds": 2})
    install(cluster, namespace, "two", wait=False)
    most = 0

    def both() -> bool:
        nonlocal most
        found = pods(cluster, namespace)
        served = {pod["spec"]["nodeName"] for pod in found if ready(pod)}
        assert served == {"node-0000", "node-0001"}
        most = max(most, sum("deletionTimestamp" not in pod["metadata"] for pod in found))
        return not before & {pod["metadata"]["name"] for pod in found}

    cluster.wait(both, "the end of the old pods")
    assert most == 3
    rolled(cluster, namespace)


def test_a_refused_policy_stops_the_roll_on_that_node_alone(cluster: Cluster, namespace: str) -> None:
    install(cluster, namespace, "one")
    cluster.faults({"nodes": ["node-0001"], "policy": "bad*", "load_error": True})
    install(cluster, namespace, "one", "bad", wait=False)
    given = "policies-one-bad"

    def found() -> dict[str, Any]:
        return {pod["spec"]["nodeName"]: pod for pod in pods(cluster, namespace) if pod["spec"]["volumes"][0]["configMap"]["name"] == given}

    cluster.wait(lambda: "node-0001" in found() and found()["node-0001"]["status"].get("podIP"), "the pod that cannot be ready")
    assert not ready(found()["node-0001"])
    text = scrape(cluster, found()["node-0001"])
    assert metrics.by_label(text, "tracingpolicy_loaded", "state") == {"disabled": 0, "enabled": 1, "error": 0, "load_error": 1}
    assert set(metrics.by_label(text, "tracingpolicy_kernel_memory_bytes", "policy")) == {"one"}
    cluster.faults()
    rolled(cluster, namespace)


def test_counters_rise_at_the_rates_of_their_time(cluster: Cluster, namespace: str) -> None:
    install(cluster, namespace, "quiet", "loud")
    pod = pods(cluster, namespace)[0]
    cluster.faults({"policy": "loud", "events": 1000, "missed": 500, "cpu": 2, "memory": 1 << 30})
    start = scrape(cluster, pod)
    time.sleep(1)
    cluster.faults()
    end, later = scrape(cluster, pod), scrape(cluster, pod)
    rise = {
        name: metrics.by_label(end, "policy_events_total", "policy").get(name, 0)
        - metrics.by_label(start, "policy_events_total", "policy").get(name, 0)
        for name in ("quiet", "loud")
    }
    assert rise["quiet"] <= 1
    assert rise["loud"] > 900
    missed = metrics.counts(end)["events_missed"]
    assert missed > 450
    assert metrics.counts(later)["events_missed"] == missed
    assert "process_resident_memory_bytes 1231" in start
    assert "process_resident_memory_bytes 157" in end


@pytest.mark.parametrize(("answer", "error"), [("reset", "50"), ("hang", "timed out"), ("garbage", "")])
def test_metrics_that_cannot_be_had(cluster: Cluster, namespace: str, answer: str, error: str) -> None:
    install(cluster, namespace, "one")
    pod = next(pod for pod in pods(cluster, namespace) if pod["spec"]["nodeName"] == "node-0001")
    other = next(pod for pod in pods(cluster, namespace) if pod["spec"]["nodeName"] == "node-0000")
    cluster.faults({"nodes": ["node-0001"], "answer": answer})
    connection = cluster.connect(timeout=1)
    path = f"/api/v1/namespaces/{namespace}/pods/{pod['metadata']['name']}:2112/proxy/metrics"
    if error:
        with pytest.raises(Exception, match=error):
            cluster.request("GET", path, connection=connection)
    else:
        assert not any(metrics.samples(cluster.request("GET", path)))
    assert ready(pods(cluster, namespace)[0])
    assert "tetragon_build_info" in scrape(cluster, other)


def test_a_crash_loop_shows_in_the_pod_and_ends_with_the_fault(cluster: Cluster, namespace: str) -> None:
    install(cluster, namespace, "one")
    cluster.faults({"nodes": ["node-0000"], "namespaces": [namespace], "crash": True})

    def state() -> dict[str, Any]:
        pod = next(pod for pod in pods(cluster, namespace) if pod["spec"]["nodeName"] == "node-0000")
        return {**pod["status"]["containerStatuses"][0], "pod": ready(pod)}

    cluster.wait(lambda: not state()["pod"], "the crash")
    assert state()["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    assert state()["restartCount"] == 1
    cluster.faults()
    rolled(cluster, namespace)
    assert state()["restartCount"] == 1


def test_a_dead_node_holds_its_pods_and_comes_back(cluster: Cluster, namespace: str) -> None:
    install(cluster, namespace, "one")
    cluster.kill_nodes(["node-0001"])
    cluster.wait(lambda: status(cluster, namespace).get("numberReady") == 1, "one agent less")
    install(cluster, namespace, "two", wait=False)
    cluster.wait(lambda: status(cluster, namespace).get("updatedNumberScheduled", 0) >= 1, "a new pod")
    time.sleep(2)
    assert status(cluster, namespace)["numberAvailable"] == 1
    dead = [pod for pod in pods(cluster, namespace) if pod["spec"]["nodeName"] == "node-0001"]
    assert dead and not any(ready(pod) for pod in dead)
    cluster.revive_nodes(["node-0001"])
    rolled(cluster, namespace)


def test_the_client_in_a_pod_tells_what_metrics_do_not(cluster: Cluster, namespace: str) -> None:
    text = (
        "kind: TracingPolicy\nmetadata: {name: shut}\nspec: {options: [{name: policy-mode, value: MODE}], kprobes: [{action: Sigkill}]}\n"
    )
    data = {mode: text.replace("MODE", mode).replace("shut", mode) for mode in ("enforce", "monitor")}
    cluster.faults({"policy": "enforce", "events": 100, "blocks": 50})
    cluster.apply(config(namespace, "modes", {**data, **policies("watch")}), agents(namespace, "modes", "canary"))
    rolled(cluster, namespace)
    name = pods(cluster, namespace)[0]["metadata"]["name"]
    command = ["exec", "-n", namespace, name, "-c", "tetragon", "--", "tetra", "tracingpolicy", "list", "-o", "json"]
    time.sleep(1)
    listed = {one["name"]: one for one in json.loads(cluster.kubectl(*command))["policies"]}
    assert {name: one["mode"] for name, one in listed.items()} == {
        "enforce": "TP_MODE_ENFORCE",
        "monitor": "TP_MODE_MONITOR",
        "watch": "TP_MODE_MONITOR_ONLY",
    }
    counters = listed["enforce"]["stats"]["action_counters"]
    assert 0 < int(counters["signal"]) <= int(counters["post"])
    assert "does not know" in cluster.kubectl(*command[:-3], check=False)


def test_clients_outlive_the_api_server(cluster: Cluster, namespace: str) -> None:
    install(cluster, namespace, "one")
    cluster.stop_api()
    with pytest.raises(OSError):
        cluster.request("GET", "/readyz")
    cluster.start_api()
    install(cluster, namespace, "two")
    assert {
        name
        for pod in pods(cluster, namespace)
        for name in metrics.by_label(scrape(cluster, pod), "tracingpolicy_kernel_memory_bytes", "policy")
    } == {"two"}


def test_nodes_come_go_and_change_rings(cluster: Cluster, namespace: str) -> None:
    install(cluster, namespace, "one")
    new = cluster.nodes(2, {"canary": 1}, prefix="late", kernels=("4.19.0-27-amd64",), systems=("Debian GNU/Linux 10",))
    rolled(cluster, namespace, 3)
    cluster.label(new[1:], "canary")
    rolled(cluster, namespace, 4)
    info = cluster.request("GET", f"/api/v1/nodes/{new[0]}")["status"]["nodeInfo"]
    assert (info["kernelVersion"], info["osImage"]) == ("4.19.0-27-amd64", "Debian GNU/Linux 10")
    cluster.remove(new)
    rolled(cluster, namespace, 2)


def test_jobs_complete(cluster: Cluster, namespace: str) -> None:
    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "clean", "image": "x"}]}}
    cluster.apply(
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "clean", "namespace": namespace}, "spec": {"template": template}}
    )
    cluster.kubectl("wait", "--for=condition=Complete", "--timeout=30s", "-n", namespace, "job/clean")


def test_only_the_requests_of_the_admin_are_counted(cluster: Cluster, namespace: str) -> None:
    before = cluster.requests()
    for _unused in range(3):
        pods(cluster, namespace)
    environment = {**os.environ, "KUBECONFIG": str(cluster.directory / "nobody.kubeconfig")}
    refused = subprocess.run([str(cluster.bin / "kubectl"), "get", "pods"], env=environment, capture_output=True, text=True, check=False)
    assert "forbidden" in refused.stderr
    assert cluster.requests()["list", "pods"] - before["list", "pods"] == 3


@pytest.mark.parametrize("version", [3, 4])
def test_helm_is_there(cluster: Cluster, version: int) -> None:
    assert cluster.helm(version, "version", "--short").stdout.startswith(f"v{version}.")


def test_up_leaves_alone_what_runs(cluster: Cluster) -> None:
    before = [cluster.pid(name) for name in ("net", "etcd", "kube-apiserver", "kwok", "agents")]
    cluster.up()
    assert [cluster.pid(name) for name in ("net", "etcd", "kube-apiserver", "kwok", "agents")] == before


def test_clusters_run_side_by_side_and_leave_nothing(cluster: Cluster, namespace: str, new_cluster: Callable[[], Cluster]) -> None:
    other = new_cluster()
    other.nodes(3, {"canary": 2})
    other.request("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
    install(other, namespace, "there")
    install(cluster, namespace, "here")
    for one, policy in ((other, "there"), (cluster, "here")):
        for pod in pods(one, namespace):
            assert set(metrics.by_label(scrape(one, pod), "tracingpolicy_kernel_memory_bytes", "policy")) == {policy}
    processes = [other.pid(name) for name in other.usage()]
    other.down()
    assert not any(Path(f"/proc/{process}").exists() for process in processes)


def test_nodes_of_ones_own_are_left_to_their_owner(tmp_path: Path, cluster: Cluster) -> None:
    with type(cluster)(tmp_path / "own", cluster.bin, stand_ins=False) as own:
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "mine", "labels": {"apiary.dev/ring": "own"}}}
        own.apply(node, agents("default", "none", "own"))
        own.wait(lambda: pods(own, "default"), "the pod for it")
        assert not own.usage().keys() & {"kwok", "agents"}
        assert [pod["status"]["phase"] for pod in pods(own, "default")] == ["Pending"]
