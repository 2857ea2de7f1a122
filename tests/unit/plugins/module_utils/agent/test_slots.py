# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json

import pytest

from ansible_collections.apiary.tetragon.plugins.module_utils.agent.handover import STEPS, Record, reasons, recovery
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.proof import Proof
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.slots import Layout, policy_files, policy_key, said_mode, with_mode

OURS = """\
apiVersion: cilium.io/v1alpha1
kind: TracingPolicy
metadata:
  name: c2-ranges-62e47d41
spec:
  kprobes:
    - call: tcp_connect
      args:
        - name: not-this
  options:
    - name: policy-mode
      value: enforce
"""


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (OURS, ("", "c2-ranges-62e47d41")),
        ('metadata:\n  # who\n  namespace: shop\n  name: "watch"  # what\nspec: {}\n', ("shop", "watch")),
        ("kind: TracingPolicyNamespaced\nmetadata:\n  labels:\n    app: x\n  name: watch\n", ("", "watch")),
        ("metadata: {namespace: shop, name: 'watch'}\nspec: {}\n", ("shop", "watch")),
        ('{"metadata": {"name": "watch"}, "spec": {}}', ("", "watch")),
        ("spec:\n  kprobes:\n    - name: watch\n", None),
        ("not a policy", None),
        ("", None),
    ],
)
def test_a_policys_name_is_found_without_a_yaml_reader(text, key):
    assert policy_key(text) == key


def test_a_mode_is_read_and_changed_and_nothing_else():
    assert said_mode(OURS) == "enforce"
    eased = with_mode(OURS, "monitor")
    assert eased == OURS.replace("value: enforce", "value: monitor")
    assert said_mode(eased) == "monitor"
    as_json = '{"spec": {"options": [{"name": "policy-mode", "value": "enforce"}]}}'
    assert with_mode(as_json, "monitor") == as_json.replace("enforce", "monitor")


def test_a_policy_without_a_mode_says_none_and_cannot_be_changed():
    assert said_mode("metadata: {name: x}") == ""
    assert with_mode("metadata: {name: x}", "monitor") is None


def test_an_agent_takes_every_file_one_level_deep(tmp_path):
    for name in ("b.yaml", "a/README", "a/deeper/c.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name, encoding="utf-8")
    assert list(policy_files(str(tmp_path))) == ["a/README", "b.yaml"]
    assert policy_files(str(tmp_path / "none")) == {}


def test_one_rename_decides_which_slot_boots(tmp_path):
    layout = Layout(str(tmp_path))
    assert layout.active() is None
    for slot in ("a", "b"):
        layout.point(slot)
        assert layout.active() == slot
    assert (tmp_path / "etc/systemd/system/multi-user.target.wants/apiary-tetragon.service").is_symlink()
    layout.point(None)
    assert layout.active() is None


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("active", ["a", "b", None])
def test_a_hand_over_goes_on_only_when_the_pointer_has_moved(step, active):
    proofs = [Proof("deny-1", "deny-1", "trigger", {"kind": "connect", "address": "192.0.2.1"})]
    record = Record(step, Layout().slot("a", "1.7.0"), "b", "1.7.1", [("", "deny-1"), ("shop", "watch")], [("shop", "watch")], proofs)
    expected = "continue" if active == "b" and step in ("point", "retire", "prove") else "undo"
    assert recovery(record, active) == expected
    assert Record.parse(json.loads(json.dumps(record.dump()))) == record


def test_reasons_name_what_was_and_what_is_wanted():
    assert reasons({"version": "1.7.0", "rb-size": "1M", "unit": "x"}, {"version": "1.7.1", "gops-address": "", "unit": "y"}) == [
        "gops-address: not set -> ''",
        "rb-size: 1M -> not set",
        "the unit's text changes",
        "version: 1.7.0 -> 1.7.1",
    ]
