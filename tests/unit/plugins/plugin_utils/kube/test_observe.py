# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""A node's observation out of its pod and its agent's metrics, and what a gate makes of it."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.apiary.tetragon.plugins.module_utils.agent import metrics
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.tetra import LoadedPolicy
from ansible_collections.apiary.tetragon.plugins.plugin_utils.environment import Gates
from ansible_collections.apiary.tetragon.plugins.plugin_utils.fleet import gates
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube import change, observe, records, rings, truth

NOW = datetime.datetime(2026, 11, 22, 9, 0, tzinfo=datetime.UTC)
BAKE = 60
NODE = rings.Node(
    "n1",
    "canary",
    "canary",
    True,
    {"kernel": "6.8.0", "architecture": "x86_64", "os": "ubuntu", "os_version": "24.04", "boot_id": "b", "cpus": 4},
    (),
)
SET = (observe.Wanted("ranges-1", "", "enforce"), observe.Wanted("files-1", "", "monitor"))
EXPECTED = [{"loaded": one.name, "mode": one.mode, "namespace": None, "event_budget": 0, "hooks": ["kprobes:tcp_connect"]} for one in SET]
LIMITS = Gates(failed_units=True)


def pod(ready: bool = True, policies: str = "apiary-policies-1", **changes: Any) -> observe.Pod:
    raw: dict[str, Any] = {
        "metadata": {
            "name": changes.get("name", "apiary-canary-x"),
            "namespace": "tetragon",
            "uid": "u1",
            "creationTimestamp": changes.get("created", "2026-11-22T08:00:00Z"),
            "labels": {"app.kubernetes.io/instance": "apiary", rings.LABEL: "canary"},
        },
        "spec": {
            "nodeName": "n1",
            "containers": [{"name": "tetragon", "image": "tetragon:v1.7.0", "env": [{"name": "APIARY_EXPORT", "value": "/var/log"}]}],
            "volumes": [
                {"name": "policies", "configMap": {"name": policies}},
                {"name": "config", "configMap": {"name": "apiary-config-1"}},
                {"name": "tmp", "emptyDir": {}},
            ],
        },
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": str(ready)}],
            "containerStatuses": [{"name": "tetragon", "restartCount": changes.get("restarts", 0), "state": changes.get("state", {})}],
        },
    }
    if changes.get("ending"):
        raw["metadata"]["deletionTimestamp"] = "2026-11-22T08:00:00Z"
    return observe.read_pod(raw)


def page(names: tuple[str, ...] = ("ranges-1", "files-1"), at: float = 0.0, **changes: Any) -> str:
    events = changes.get("events", {})
    lines = [
        'tetragon_build_info{version="v1.7.0",commit="x"} 1',
        f"process_start_time_seconds {changes.get('started', NOW.timestamp() - 1000)}",
        f"process_cpu_seconds_total {10 + 0.01 * at}",
        "process_resident_memory_bytes 7e+07",
        f'tetragon_tracingpolicy_loaded{{state="enabled"}} {len(names)}',
        f'tetragon_tracingpolicy_loaded{{state="load_error"}} {changes.get("broken", 0)}',
        'tetragon_bpf_missed_events_total{msg_op="13",error="ENOSPC"} 2',
        "go_goroutines 12",
    ]
    lines += [f'tetragon_tracingpolicy_kernel_memory_bytes{{policy="{name}",policy_namespace=""}} 1000' for name in names]
    lines += [f'tetragon_policy_events_total{{policy="{name}",hook="h",binary="b"}} {count}' for name, count in events.items()]
    return "\n".join(lines)


def seen(text: str | None = None, at: float = 0.0, of: observe.Pod | None = None, listed: Any = None) -> dict[str, Any]:
    read: observe.Page | str = observe.read_page(text) if text is not None else "metrics of pod x: connection refused"
    return observe.document(
        NODE, of or pod(), SET, {"metrics-server": ":2112"}, read, listed, "d" * 64, NOW + datetime.timedelta(seconds=at)
    )


def judged(end: dict[str, Any], before: dict[str, Any] | None = None) -> gates.Verdict:
    start = seen(page(at=0))
    before = before or seen(page(started=1.0), of=pod(name="apiary-canary-old"))
    evidence = gates.HostEvidence("kube/n1", before, start, end, expected=EXPECTED, renewed=True)
    control = gates.HostEvidence("kube/n2", seen(page()), None, seen(page(at=BAKE), at=BAKE))
    return gates.judge(LIMITS, [evidence], [control], BAKE)


def test_a_page_tells_what_is_loaded_and_what_the_agent_costs() -> None:
    read = observe.read_page(page(events={"ranges-1": 3}))
    assert (read.version, read.memory, read.states) == ("1.7.0", 70_000_000, {"enabled": 2, "load_error": 0})
    assert read.loaded == {("", "ranges-1"): 1000, ("", "files-1"): 1000}
    assert (read.events, read.totals["events_missed"]) == ({"ranges-1": 3}, 2)
    with pytest.raises(metrics.MetricsError, match="no metrics of the agent"):
        observe.read_page("go_goroutines 12")


def test_a_healthy_node_passes_the_gate_although_its_agent_is_a_new_one() -> None:
    verdict = judged(seen(page(at=BAKE), at=BAKE))
    assert (verdict.status, verdict.reasons) == (gates.PASS, ())


@pytest.mark.parametrize(
    ("end", "status", "reason"),
    [
        pytest.param(seen(page(("files-1",), BAKE), BAKE), gates.FAIL, "policies of ranges-1: is not loaded", id="not loaded"),
        pytest.param(seen(page(at=BAKE), BAKE, pod(False)), gates.FAIL, "is in mode unknown, not enforce", id="not ready"),
        pytest.param(seen(page(at=BAKE, started=5.0), BAKE), gates.FAIL, "agent_restarts: 1 restarts", id="agent restarted"),
        pytest.param(seen(page(at=BAKE), BAKE, pod(restarts=1)), gates.FAIL, "agent_restarts: 1 restarts", id="container restarted"),
        pytest.param(seen(None, BAKE), gates.INCONCLUSIVE, "metrics of pod x: connection refused", id="metrics gone"),
        pytest.param(seen(None, BAKE, pod(False)), gates.FAIL, "is not ready", id="all gone"),
        pytest.param(seen(page(at=BAKE, events={"files-1": 100}), BAKE), gates.FAIL, "events of files-1: 100 events", id="noisy"),
        pytest.param(seen(page(at=BAKE, events={"ranges-1": 7}), BAKE), gates.FAIL, "blocks of ranges-1: 7 acts", id="may have blocked"),
    ],
)
def test_what_is_wrong_with_a_node_is_seen(end: dict[str, Any], status: str, reason: str) -> None:
    verdict = judged(end)
    assert verdict.status == status
    assert any(reason in one for one in verdict.reasons), verdict.reasons


def test_what_tetra_lists_goes_over_what_metrics_let_guess() -> None:
    listed = [
        LoadedPolicy("ranges-1", state="enabled", mode="enforce", counters={"post": 7}),
        LoadedPolicy("files-1", state="enabled", mode="monitor"),
    ]
    verdict = judged(seen(page(at=BAKE, events={"ranges-1": 7}), BAKE, listed=listed))
    assert (verdict.status, verdict.reasons) == (gates.PASS, ())


def test_tetra_is_asked_only_where_readiness_and_metrics_disagree_or_too_much_was_posted() -> None:
    read = observe.read_page(page())
    assert observe.agrees(pod(), SET, read)
    assert not observe.agrees(pod(False), SET, read)
    assert not observe.agrees(pod(), SET, observe.read_page(page(("files-1",))))
    assert not observe.agrees(pod(), SET, observe.read_page(page(broken=1)))
    noisy = observe.read_page(page(events={"ranges-1": 3, "files-1": 50}))
    assert [observe.exceeds(SET, noisy, limit) for limit in (2, 3, None)] == [True, False, False]


def test_a_policy_without_a_mode_of_its_own_enforces_and_unknown_ones_are_not_ours() -> None:
    text = "kind: TracingPolicy\nmetadata: {name: a}\nspec: {options: [{name: policy-mode, value: monitor}]}"
    assert observe._wanted(text).mode == "monitor"
    assert observe._wanted("kind: TracingPolicy\nmetadata: {name: a}\nspec: {}").mode == "enforce"
    policies = {one["name"]: one for one in seen(page(("ranges-1", "files-1", "own")))["policies"]}
    assert (policies["own"]["managed"], policies["ranges-1"]["managed"]) == (False, True)


@pytest.mark.parametrize(
    ("state", "trouble"),
    [
        ({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}, "CrashLoopBackOff: back-off"),
        ({"terminated": {"exitCode": 1, "message": "log\npolicy x: unknown field"}}, "ended with exit code 1: policy x: unknown field"),
        ({"waiting": {"reason": "ContainerCreating"}}, "Ready is False"),
    ],
)
def test_a_pod_that_is_not_ready_says_why(state: dict[str, Any], trouble: str) -> None:
    assert pod(False, state=state).trouble == trouble


def test_nodes_are_counted_by_what_their_pods_run() -> None:
    new, old = pod(policies="apiary-policies-2").signature, pod()
    fresh = pod(policies="apiary-policies-2", name="fresh")
    members = [rings.Node(name, "canary", "", name != "dead", {}, ()) for name in ("done", "both", "former", "bare", "bad", "dead")]
    found = change.tally(
        members,
        {
            "done": [fresh, pod(ending=True)],
            "both": [fresh, old],
            "former": [old],
            "bad": [pod(False, "apiary-policies-2", state={"waiting": {"reason": "CrashLoopBackOff"}}), old],
            "dead": [old],
            "another ring's": [old],
        },
        new,
    )
    assert (list(found.new), list(found.lost), list(found.failing)) == (["done"], ["dead"], ["bad"])
    assert found.waiting == {
        "both": "its former agent has not left",
        "former": "its agent has not been replaced",
        "bare": "no agent's pod runs on it",
    }
    assert str(found) == "1 of 6 nodes run it, 1 not ready, 1 lost"
    assert not found.done
    written = change.outcome(found, "canary", 5)
    assert {name: next(key for key in ("lost", "failed", "held") if key in record) for name, record in written.items()} == {
        "dead": "lost",
        "bad": "failed",
        "both": "held",
        "former": "held",
        "bare": "held",
    }
    stuck = change.outcome(change.Tally(waiting={"former": "its agent has not been replaced"}), "canary", 5)
    assert stuck["former"]["failed"] == "its agent has not been replaced within 5 s"


def test_records_come_back_as_they_were_and_share_what_is_equal(tmp_path: Path) -> None:
    written = {
        "n1": seen(page()),
        "n2": {**seen(page()), "ring": "fleet"},
        "n3": {"ring": "fleet", "lost": "the node is not ready"},
        "n4": seen(None, of=pod(False)),
    }
    path = records.path_of(tmp_path, "eu")
    records.write(path, written)
    read = records.read(path)
    assert read == written
    assert read["n1"]["policies"][0] is read["n2"]["policies"][0]
    assert records.read(records.path_of(tmp_path, "us")) is None


def test_the_truth_counts_nodes_and_names_those_that_are_off() -> None:
    nodes = {
        "n1": seen(page()),
        "n2": seen(page(("files-1",))),
        "n3": {"ring": "canary", "lost": "the node is not ready"},
    }
    told = truth.of_ring("canary", "d" * 64, EXPECTED, nodes, truth.HEALTHY, "")
    assert (told["nodes"], told["ready"], told["off_total"], told["verdict"]) == (3, 1, 2, "degraded")
    assert told["policies"] == {
        "ranges-1": {"mode": "enforce", "wanted": 3, "enabled": 1},
        "files-1": {"mode": "monitor", "wanted": 3, "enabled": 2},
    }
    assert told["off"] == [
        {"node": "n2", "reason": "ranges-1 is not enabled in its mode"},
        {"node": "n3", "reason": "the node is not ready"},
    ]
    assert told["reason"] == "2 of 3 nodes are off"
    assert truth.of_ring("canary", "", EXPECTED, {"n1": nodes["n1"]}, truth.HEALTHY, "")["verdict"] == "healthy"
    many = {f"n{number:02d}": {"ring": "canary", "lost": "x"} for number in range(30)}
    assert len(truth.of_ring("canary", "", [], many, truth.PROGRESSING, "")["off"]) == truth.MAX_OFF
