# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""What may be recorded with, and the directory that a recording becomes."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
import yaml

from ansible_collections.apiary.tetragon.plugins.module_utils.agent.recorder import PREFIX, observing
from ansible_collections.apiary.tetragon.plugins.plugin_utils import documents, recording
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.lint_safety import HOT_FUNCTIONS
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.schema import tracing_policy
from ansible_collections.apiary.tetragon.plugins.plugin_utils.recording import OWN, Home, recorders
from ansible_collections.apiary.tetragon.tests.unit.plugins.plugin_utils.samples import messages, refused

RECORDERS = sorted(path.stem for path in OWN.glob("*.yaml"))
POLICY = """\
apiVersion: cilium.io/v1alpha1
kind: TracingPolicy
metadata: {name: mine}
spec:
  kprobes:
    - call: sys_mount
      selectors:
        - matchActions: [{action: Post}]
"""


@pytest.mark.parametrize("name", RECORDERS)
@pytest.mark.parametrize("version", [(1, 6, 0), (1, 7, 0), (1, 8, 0)])
def test_every_own_recorder_fits_the_agent(name: str, version: tuple[int, int, int]) -> None:
    (one,) = recorders([name])
    document = observing(one["document"], one["name"], ["/usr/bin/tetragon"])
    assert documents.validate(documents.Document(name, document, {}), tracing_policy(version)) == []
    assert len(document["metadata"]["name"]) <= 63


def test_recorders_are_named_after_their_content() -> None:
    first, again = recorders(["process", "network"]), recorders(["process", "network"])
    assert [one["name"] for one in first] == [one["name"] for one in again]
    assert all(one["name"].startswith(PREFIX) for one in first)
    assert PREFIX == recording.PREFIX
    assert len({one["name"] for one in first}) == 2


def test_only_the_costly_recorder_watches_hot_hooks_beside_executions() -> None:
    hot = {
        name
        for name in RECORDERS
        for one in recorders([name])
        for hook in one["document"]["spec"]["kprobes"]
        if hook["call"] in HOT_FUNCTIONS
    }
    assert hot - {"process"} == {"file"}
    assert "file" not in recording.USUAL


def test_a_recorder_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "My Policy.yaml"
    path.write_text(POLICY, encoding="utf-8")
    (one,) = recorders([str(path)])
    assert one["name"].startswith(f"{PREFIX}my-policy-")


@pytest.mark.parametrize("action", ["Sigkill", "Override", "NoPost", "Signal"])
def test_a_recorder_that_does_more_than_observe_is_refused(action: str, tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(POLICY.replace("action: Post", f"action: {action}"), encoding="utf-8")
    (problem,) = refused(recorders, [str(path)])
    assert (problem.line, problem.path) == (8, "spec.kprobes[0].selectors[0].matchActions")
    assert f"holds {action}: a recorder may only Post" in problem.message


def test_an_unknown_recorder_is_refused_with_those_there_are() -> None:
    assert "file, file-changes, kernel, network, process" in messages(refused(recorders, ["files"]))


def test_programs_are_left_out_of_every_selector() -> None:
    document = {
        "spec": {"kprobes": [{"call": "a"}, {"call": "b", "selectors": [{"matchArgs": []}, {"matchBinaries": [{"values": ["/x"]}]}]}]}
    }
    observed = observing(document, "n", ["/agent"])["spec"]["kprobes"]
    left_out = [{"operator": "NotIn", "values": ["/agent"]}]
    assert observed[0]["selectors"] == [{"matchBinaries": left_out}]
    assert observed[1]["selectors"] == [{"matchArgs": [], "matchBinaries": left_out}, {"matchBinaries": [{"values": ["/x"]}]}]
    assert "selectors" not in document["spec"]["kprobes"][0]


def test_a_home_takes_several_hosts_in_parts(tmp_path: Path) -> None:
    home = Home(tmp_path / "recording")
    home.begin(recorders(["network"]), {"agent_version": "1.7.0", "label": "night"})
    at = home.part("a", base64.b64encode(b"one").decode(), 0)
    home.part("a", base64.b64encode(b"two").decode(), at)
    assert not (home.directory / "a.jsonl.gz").exists()
    home.finish("a", {"events": 2, "ended": "its time is over"})
    home.finish("b", {"events": 0, "ended": "it was told to end"})
    assert (home.directory / "a.jsonl.gz").read_bytes() == b"onetwo"
    described = yaml.safe_load((home.directory / "recording.yml").read_text(encoding="utf-8"))
    assert described["label"] == "night"
    assert {host: one["events"] for host, one in described["hosts"].items()} == {"a": 2, "b": 0}
    (policy,) = (home.directory / "policies").iterdir()
    assert yaml.safe_load(policy.read_text(encoding="utf-8"))["metadata"]["name"] == policy.stem
