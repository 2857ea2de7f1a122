# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""What changes for a policy between two versions of the agent."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.load import Library
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.migrate import CHANGES, Change, migrate
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.render import render
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.schema import Version
from ansible_collections.apiary.tetragon.tests.unit.plugins.plugin_utils.samples import (
    FORM_IDS,
    FORMS,
    LIBRARY_VALUES,
    PROTECTED,
    messages,
    refused,
)

V1_6, V1_7, V1_7_1, V1_8 = (1, 6, 1), (1, 7, 0), (1, 7, 1), (1, 8, 0)
BEFORE: dict[Version, Version] = {V1_7: V1_6, V1_7_1: V1_7, V1_8: V1_7_1}
LSM = """
lsmhooks:
  - hook: path_truncate
    args: [{index: 0, type: path}]
    selectors:
      - matchArgs: [{index: 0, operator: Prefix, values: [/srv/]}]
        matchActions: [{action: Sigkill}]
"""
FOLLOWED = """
kprobes:
  - call: security_path_truncate
    syscall: false
    selectors: [{matchActions: [{action: FollowFD, argFd: 0, argName: 1}]}]
"""
UPROBE = "{podSelector: {matchLabels: {app: cart}}, uprobes: [{path: /usr/bin/tool, symbols: [main]}]}"


def policy(spec: str) -> dict[str, Any]:
    """A policy with this spec."""
    return {"apiVersion": "cilium.io/v1alpha1", "kind": "TracingPolicy", "metadata": {"name": "it"}, "spec": yaml.safe_load(spec)}


@pytest.mark.parametrize(
    ("spec", "old", "new", "severity", "rule", "path", "message"),
    [
        pytest.param(
            FOLLOWED, V1_7, V1_8, "error", "migration", "spec.kprobes[0].selectors[0].matchActions[0].action",
            'agent 1.8.0 refuses it: is "FollowFD"; allowed:', id="an action that is gone",
        ),
        pytest.param(
            "{nodeSelector: {matchLabels: {a: b}}, kprobes: [{call: x, syscall: false}]}", V1_8, V1_7, "error", "migration",
            "spec.nodeSelector", "a cluster whose CRD is of that version drops the key without a word", id="a field that came later",
        ),
        pytest.param(
            "kprobes: [{call: x, syscall: false, return: true, returnArg: {index: 0, type: sock}, returnArgAction: Post}]", V1_6, V1_7,
            "error", "return-argument", "spec.kprobes[0].returnArgAction", "on 1.7.0: is 'Post'", id="Post of what is returned",
        ),
        pytest.param(
            UPROBE, V1_7, V1_7_1, "info", "uprobe-scope", "spec.uprobes[0]", "no longer on 1.7.1", id="pods of a uprobe, mended",
        ),
        pytest.param(UPROBE, V1_7_1, V1_7, "error", "uprobe-scope", "spec.uprobes[0]", "on 1.7.0: ", id="pods of a uprobe, back"),
        pytest.param(LSM, V1_7, V1_8, "info", "migration", "", "is pinned and outlives the agent", id="an LSM hook that stays"),
        pytest.param(LSM, V1_8, V1_7, "warning", "migration", "", "what it enforces ends when the agent stops", id="an LSM hook that goes"),
        pytest.param(
            "{hostSelector: {}, kprobes: [{call: x, syscall: false}]}", V1_7, V1_7_1, "info", "migration", "",
            "no longer needs the flag enable-policy-filter", id="a flag that is not needed",
        ),
        pytest.param(
            "{hostSelector: {}, kprobes: [{call: x, syscall: false}]}", V1_7_1, V1_7, "warning", "migration", "",
            "needs the flag enable-policy-filter", id="a flag that is needed",
        ),
    ],
)  # fmt: skip
def test_a_change_is_told(spec: str, old: Version, new: Version, severity: str, rule: str, path: str, message: str) -> None:
    found = [one for one in migrate(policy(spec), old, new) if (one.severity, one.rule, one.path) == (severity, rule, path)]
    assert any(message in one.message for one in found)


@pytest.mark.parametrize("change", [pytest.param(one, id=one.after[:40]) for one in CHANGES])
class TestAChange:
    def test_it_is_told_on_the_way_up_and_down(self, change: Change) -> None:
        old = BEFORE[change.since]
        assert change.after in "\n".join(one.message for one in migrate(policy(change.example), old, change.since))
        assert change.before in "\n".join(one.message for one in migrate(policy(change.example), change.since, old))

    @pytest.mark.parametrize(("old", "new"), [(V1_6, V1_7), (V1_7, V1_7_1), (V1_7_1, V1_8)], ids=str)
    def test_it_is_not_told_between_versions_of_one_side(self, change: Change, old: Version, new: Version) -> None:
        if new != change.since:
            assert change.after not in "\n".join(one.message for one in migrate(policy(change.example), old, new))


def test_nothing_changes_from_a_version_to_itself() -> None:
    assert migrate(policy(LSM), V1_7, V1_7) == []


def test_a_policy_that_the_old_agent_refuses_too_is_refused() -> None:
    assert "unknown key" in messages(refused(migrate, policy("{kprobs: []}"), V1_7, V1_8))


@pytest.mark.parametrize(("reference", "form"), FORMS, ids=FORM_IDS)
def test_a_library_policy_can_follow_its_agents(reference: str, form: str, library: Library) -> None:
    document = render(library.get(reference), LIBRARY_VALUES.get(reference, {}), form, PROTECTED).document("enforce")
    for old, new in ((V1_6, V1_7), (V1_7, V1_7_1), (V1_7_1, V1_8), (V1_8, V1_7)):
        assert [one for one in migrate(document, old, new) if one.severity == "error"] == []
