# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest

from ansible_collections.apiary.tetragon.plugins.plugin_utils.environment import Gates
from ansible_collections.apiary.tetragon.plugins.plugin_utils.fleet.gates import HostEvidence, judge

from .conftest import expected, loaded, observation

BAKE = 600.0
POLICY = "c2-ranges-0a0b0c0d"


def host(name="h1", *, before=None, start=None, end=None, error="", wanted=None):
    policies = [loaded(POLICY)]
    return HostEvidence(
        name=name,
        before=observation(0, cpu=10.0) if before is None else before,
        start=observation(30, policies=policies, cpu=10.3) if start is None else start,
        end=observation(30 + BAKE, policies=policies, cpu=16.3, exported=(200, 90_000)) if end is None else end,
        error=error,
        expected=[expected(POLICY)] if wanted is None else wanted,
    )


def control(name="c1", cpu=6.3):
    return HostEvidence(name=name, before=observation(0), end=observation(30 + BAKE, cpu=10.0 + cpu, exported=(200, 90_000)))


def ended(**changes):
    changes.setdefault("policies", [loaded(POLICY)])
    changes.setdefault("exported", (200, 90_000))
    changes.setdefault("cpu", 16.3)
    return host(end=observation(30 + BAKE, **changes))


def verdict(*ring, others=None, gates=None):
    return judge(gates or Gates(), list(ring) or [host()], [control()] if others is None else others, BAKE)


def test_healthy_hosts_pass():
    assert verdict() == verdict()
    assert (verdict().status, verdict().reasons) == ("pass", ())


@pytest.mark.parametrize(
    ("evidence", "reason"),
    [
        pytest.param(host(error="the agent refused policy x"), "h1: change: the agent refused policy x", id="change failed"),
        pytest.param(ended(policies=[]), f"h1: policies of {POLICY}: is not loaded", id="policy missing"),
        pytest.param(
            ended(policies=[loaded(POLICY, state="load_error", error="no such function")]),
            f"h1: policies of {POLICY}: is load_error: no such function",
            id="policy in error",
        ),
        pytest.param(
            ended(policies=[loaded(POLICY, "enforce")]), f"h1: policies of {POLICY}: is in mode enforce, not monitor", id="wrong mode"
        ),
        pytest.param(
            ended(policies=[loaded(POLICY, replaced=["/usr/bin/app"])]),
            f"h1: policies of {POLICY}: watches and enforces nothing in /usr/bin/app, replaced since it was loaded",
            id="binary replaced",
        ),
        pytest.param(ended(answers=False), "h1: agent: counters: http://127.0.0.1:2112/metrics: connection refused", id="agent gone"),
        pytest.param(ended(started=700.0), "h1: agent_restarts: 1 restarts; limit 0", id="agent restarted"),
        pytest.param(ended(boot="boot-2"), "h1: agent_restarts: 1 restarts; limit 0", id="host rebooted"),
        pytest.param(
            ended(leftover="/sys/fs/bpf/tetragon_old"), "h1: pins: /sys/fs/bpf/tetragon_old is left over from a failed start", id="leftover"
        ),
        pytest.param(ended(missed=100.0), "h1: events_lost: 10 events/min; limit 0 above the baseline of 0", id="events lost"),
        pytest.param(ended(cpu=136.3), "h1: cpu: 0.21 cores; limit 0.1 above the baseline of 0.01", id="cpu"),
        pytest.param(ended(memory=170 << 20), "h1: memory: 100 MiB; limit 64 above the baseline of 0", id="memory"),
        pytest.param(
            ended(policies=[loaded(POLICY, posted=500)]), f"h1: events of {POLICY}: 500 events; limit 20.07", id="too many events"
        ),
        pytest.param(
            ended(events={POLICY: 500.0}), f"h1: events of {POLICY}: 500 events; limit 20.07", id="too many events by the metrics"
        ),
        pytest.param(ended(policies=[loaded(POLICY, enforced=1)]), f"h1: blocks of {POLICY}: 1 acts; limit 0", id="blocks"),
        pytest.param(
            ended(exported=(200, 50_000)),
            "h1: export: events are exported but no bytes are written: is the disk full?",
            id="export stalled",
        ),
        pytest.param(
            ended(failed_units=["nginx.service"]),
            "h1: failed_units: 1 units; limit 0; newly failed: nginx.service",
            id="failed unit",
        ),
    ],
)
def test_one_bad_sign_fails_the_ring_and_says_which(evidence, reason):
    result = verdict(evidence, host("h2"))
    assert result.status == "fail"
    assert result.reasons[0] == reason


@pytest.mark.parametrize(
    ("evidence", "reason"),
    [
        pytest.param(ended(counters=False), "h1: export: counters: http://127.0.0.1:2112/metrics: connection refused", id="no metrics"),
        pytest.param(
            HostEvidence("h1", observation(0), None, observation(630), expected=()),
            "h1: bake: there is no observation from the start of the bake",
            id="no start",
        ),
        pytest.param(
            host(end=observation(60, policies=[loaded(POLICY)], exported=(200, 90_000))),
            "h1: bake: 30 s; limit 600; was watched for too short a time",
            id="too short",
        ),
    ],
)
def test_missing_data_is_inconclusive_and_never_passes(evidence, reason):
    result = verdict(evidence)
    assert result.status == "inconclusive"
    assert reason in result.reasons


def test_failed_units_that_cannot_be_read_are_inconclusive():
    end = observation(630, policies=[loaded(POLICY)], cpu=16.3, exported=(200, 90_000))
    end["health"]["failed_units"] = None
    assert verdict(host(end=end)).status == "inconclusive"


def test_policies_that_could_not_be_listed_are_inconclusive():
    end = observation(630, policies=[loaded(POLICY)], cpu=16.3, exported=(200, 90_000))
    end["policies"] = None
    assert verdict(host(end=end)).status == "inconclusive"


def test_failure_outweighs_missing_data():
    assert verdict(ended(counters=False), host("h2", error="refused")).status == "fail"


def test_a_ring_without_any_observed_host_is_not_passed():
    nobody = HostEvidence("h1", observation(0))
    assert judge(Gates(unreachable="1"), [nobody], [], BAKE).status == "inconclusive"


def test_lost_hosts_count_against_the_budget():
    lost = HostEvidence("lost", observation(0), observation(30), None, expected=[expected(POLICY)])
    others = [host(f"h{n}") for n in range(9)]
    assert verdict(*others, lost, gates=Gates(unreachable="10%")).status == "pass"
    result = verdict(*others, lost, gates=Gates(unreachable="5%"))
    assert (result.status, result.reasons[0]) == ("fail", "unreachable: 1 hosts; limit 0; lost: lost")


def test_what_unchanged_hosts_show_too_is_not_held_against_the_ring():
    busy = host(end=observation(630, policies=[loaded(POLICY)], cpu=310.3, missed=1000.0, exported=(200, 90_000)))
    others = [HostEvidence("c1", observation(0), None, observation(630, cpu=315.0, missed=1050.0))]
    assert verdict(busy, others=others).status == "pass"
    assert verdict(busy).status == "fail"


def test_without_control_hosts_the_life_before_the_change_is_the_baseline():
    before = observation(0, cpu=500.0)
    start, end = (observation(at, policies=[loaded(POLICY)], cpu=cpu, exported=(200, 90_000)) for at, cpu in ((30, 515.0), (630, 815.0)))
    end["counters"]["bytes_exported"] += 1
    assert verdict(host(before=before, start=start, end=end), others=[]).status == "pass"


def test_a_policy_that_was_there_before_answers_only_for_what_is_new():
    before = observation(0, policies=[loaded(POLICY, posted=5000)])
    end = observation(630, policies=[loaded(POLICY, posted=5010)], cpu=16.3, exported=(200, 90_000))
    assert verdict(host(before=before, end=end)).status == "pass"


AFTER_RESTART = Gates(agent_restarts=None, events_lost=None, cpu_cores=None, memory_mib=None)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param({"policies": [loaded(POLICY, posted=4000)]}, f"h1: events of {POLICY}: 4000 events; limit", id="events"),
        pytest.param({"events": {POLICY: 4000}}, f"h1: events of {POLICY}: 4000 events; limit", id="events in the metrics"),
        pytest.param({"policies": [loaded(POLICY, enforced=7)]}, f"h1: blocks of {POLICY}: 7 acts; limit 0", id="blocks"),
        pytest.param({"exported": (30, 0)}, "h1: export: events are exported but no bytes are written", id="export"),
    ],
)
@pytest.mark.parametrize("started", [100.0, 400.0], ids=["of the policy", "of the agent"])
def test_counters_that_began_anew_hide_nothing(changes, reason, started):
    policies = [loaded(POLICY, posted=5000, enforced=90)]
    before, start = (observation(at, policies=policies, exported=(1000, 50_000), events={POLICY: 5000}) for at in (0, 30))
    changes = {"policies": [loaded(POLICY)], "exported": (1001, 50_001) if started == 100.0 else (1, 1), "events": {}, **changes}
    result = verdict(host(before=before, start=start, end=observation(630, started=started, **changes)), gates=AFTER_RESTART)
    assert result.status == "fail"
    assert reason in result.reasons[0]


def test_what_counters_say_after_a_restart_is_not_compared_with_what_was_before_it():
    before, start = (observation(at, policies=[loaded(POLICY, posted=5)], exported=(9, 900)) for at in (0, 30))
    end = observation(630, started=400.0, policies=[loaded(POLICY, posted=28)], exported=(28, 2800))
    result = verdict(host(before=before, start=start, end=end), gates=AFTER_RESTART)
    assert "28 events" in result.reasons[0]


def test_the_event_budget_grows_with_the_bake():
    noisy = [loaded(POLICY, posted=25)]
    day = 86_400.0
    evidence = host(end=observation(30 + day, policies=noisy, cpu=874.3, exported=(200, 90_000)))
    others = [HostEvidence("c1", observation(0), None, observation(30 + day, cpu=874.3))]
    assert judge(Gates(), [evidence], others, day).status == "pass"


def test_a_policy_with_lsm_hooks_needs_the_metrics():
    wanted = [expected(POLICY, hooks=["lsmhooks:file_open"])]
    end = observation(630, policies=[loaded(POLICY)], counters=False, cpu=16.3)
    result = verdict(host(end=end, wanted=wanted), gates=Gates(events_lost=None, export_stalled=False))
    assert result.status == "inconclusive"
    assert "LSM hooks" in result.reasons[0]


def test_monitor_only_is_monitor():
    assert verdict(ended(policies=[loaded(POLICY, "monitor_only")])).status == "pass"


def test_failed_units_from_before_are_not_held_against_the_change():
    before = observation(0, failed_units=["old.service"])
    assert (
        verdict(
            host(
                before=before,
                end=observation(630, policies=[loaded(POLICY)], cpu=16.3, exported=(200, 90_000), failed_units=["old.service"]),
            )
        ).status
        == "pass"
    )


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        pytest.param([{"check": "true", "ok": True, "detail": "exit code 0"}], "pass", id="ok"),
        pytest.param([{"check": "true", "ok": False, "detail": "exit code 1"}], "fail", id="fails"),
        pytest.param([], "inconclusive", id="not run"),
    ],
)
def test_the_users_own_check_is_a_signal(answer, status):
    assert verdict(ended(commands=answer), gates=Gates(commands=("true",))).status == status


@pytest.mark.parametrize("gate", ["event_burst", "events_lost", "blocks", "cpu_cores", "memory_mib", "agent_restarts"])
def test_a_limit_of_none_switches_its_check_off(gate):
    signal = {"event_burst": "events", "cpu_cores": "cpu", "memory_mib": "memory"}.get(gate, gate)
    assert signal in {reading.signal for reading in verdict().readings}
    assert signal not in {reading.signal for reading in verdict(gates=Gates(**{gate: None})).readings}


def test_a_new_node_is_held_against_its_own_start():
    grown = observation(30 + BAKE, policies=[loaded(POLICY)], cpu=16.3, exported=(200, 90_000), memory=200 << 20)
    new = HostEvidence("n1", start=host().start, end=host().end, expected=[expected(POLICY)], renewed=True)
    assert verdict(new).status == "pass"
    assert verdict(HostEvidence("n1", start=host().start, end=grown, expected=[expected(POLICY)], renewed=True)).status == "fail"
