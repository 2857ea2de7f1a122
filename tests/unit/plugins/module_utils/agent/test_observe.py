# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest

from ansible_collections.apiary.tetragon.plugins.module_utils.agent.observe import idle, troubles


def service(state="active", substate="running", result="success", restarts=0):
    return {"unit": "apiary-tetragon-a.service", "state": state, "substate": substate, "result": result, "restarts": restarts}


@pytest.mark.parametrize(
    ("answers", "kept", "unit", "alarm", "expected"),
    [
        (True, ["a"], service(restarts=7), None, []),
        (False, [], None, None, []),
        (False, ["a", "b"], None, None, ["enforcing but blind: no agent answers, and the kernel goes on with a, b"]),
        (
            False,
            ["a"],
            service("failed", "failed", "start-limit-hit", 9),
            {"time": "2026-11-25T20:00:00Z"},
            [
                "enforcing but blind: no agent answers, and the kernel goes on with a",
                "systemd has given the agent up after 9 restarts (start-limit-hit)",
                "an alarm stands since 2026-11-25T20:00:00Z: the agent did not start",
            ],
        ),
        (
            False,
            [],
            service("activating", "auto-restart", "exit-code", 3),
            None,
            ["the agent is in a crash loop: systemd has started it again 3 times"],
        ),
    ],
)
def test_what_is_wrong_with_the_service_is_said(answers, kept, unit, alarm, expected):
    assert troubles(answers, kept, unit, alarm) == expected


def test_a_policy_whose_binary_was_replaced_is_named():
    policies = [{"name": "a", "replaced": [], "stale_overrides": 0}, {"name": "b", "replaced": ["/x", "/y"], "stale_overrides": None}]
    assert idle(policies) == ["b watches and enforces nothing in /x, /y, replaced since it was loaded: run this host's policies again"]


def test_a_policy_whose_map_fills_is_named():
    (told,) = idle([{"name": "a", "replaced": [], "stale_overrides": 31000}, {"name": "b", "replaced": [], "stale_overrides": 0}])
    assert told.startswith("a: 31000 verdicts on threads that are gone are in its map, and full it denies nothing")
