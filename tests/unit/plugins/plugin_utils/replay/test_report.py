# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""What a replay reports: every event that fires or is undecided, and all that was not looked at."""

from __future__ import annotations

import gzip
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest

from ansible_collections.apiary.tetragon.plugins.plugin_utils import formats
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.load import Library
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay import corpus, report
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.compile import CompiledPolicy, Outcome
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.policies import gather
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.results import Entry, Said
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.run import replay
from ansible_collections.apiary.tetragon.tests.unit.plugins.plugin_utils.samples import CORPUS, POLICIES, ROOT, jsonl, opened

SCHEMA = json.loads((ROOT / "docs" / "schemas" / "replay-report.json").read_text(encoding="utf-8"))

Run = Callable[..., report.Replayed]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Replays recordings through policies."""

    def replayed(policies: list[Path | str], recordings: list[Path], values: dict[str, Any] | None = None) -> report.Replayed:
        gathered = gather([str(one) for one in policies], Library([POLICIES]), (1, 7, 0), (), values or {})
        spool = tmp_path / "spool"
        spool.mkdir(exist_ok=True)
        entries = report.Entries(spool)
        summary = replay([CompiledPolicy(one.document) for one in gathered.policies], corpus.find(recordings), entry=entries.add)
        entries.close()
        return report.Replayed(gathered, summary, entries)

    return replayed


def valid(replayed: report.Replayed) -> dict[str, Any]:
    """The JSON form, held against its schema."""
    out = io.StringIO()
    report.write_json(replayed, out)
    content = json.loads(out.getvalue())
    jsonschema.Draft202012Validator(SCHEMA).validate(content)
    return content  # type: ignore[no-any-return]


def test_a_recording_of_the_real_agent(run: Run) -> None:
    content = valid(run([CORPUS / "narrow"], [CORPUS / "broad"]))
    assert content["passed"]
    assert set(content["policies"]) == {path.stem for path in (CORPUS / "narrow").glob("*.yaml")}
    for policy in content["policies"].values():
        assert len(policy["fired"]) == policy["counts"]["fired"]
        assert len(policy["undecided"]) == policy["counts"]["undecided"]
    fired = content["policies"]["n01-equal"]["fired"]
    with gzip.open(CORPUS / "narrow" / "n01-equal.expected.jsonl.gz", "rt", encoding="utf-8") as lines:
        emitted = {json.loads(line)["process_kprobe"]["process"]["exec_id"] for line in lines}
    assert {entry["exec_id"] for entry in fired} <= emitted
    first = fired[0]
    with gzip.open(first["file"], "rt", encoding="utf-8") as lines:
        event = json.loads(lines.readlines()[first["line"] - 1])
    assert (event["time"], event["process_kprobe"]["process"]["exec_id"]) == (first["time"], first["exec_id"])
    assert (first["kind"], first["hook"], first["selector"], first["action"]) == ("kprobe", "security_file_open", 0, "Post")


def test_the_summary_is_the_report_without_its_entries(run: Run) -> None:
    replayed = run([CORPUS / "narrow"], [CORPUS / "broad"])
    content = valid(replayed)
    for policy in content["policies"].values():
        del policy["fired"], policy["undecided"]
    assert json.loads(json.dumps(report.summary_json(replayed))) == content


def entry(fires: bool, *outcomes: Outcome, reasons: tuple[str, ...] = ()) -> dict[str, Any]:
    said = Said(0, "p", "kprobe security_file_open", fires, outcomes, reasons)
    return report.as_entry(Entry(said, "r.jsonl", 3, "id", "2026-11-22T09:00:00Z", "node", "/usr/bin/cat", "/usr/bin/bash", 99))


def test_an_entry_names_the_selector_and_the_last_action() -> None:
    shown = entry(True, Outcome(2, True, False, ("Override", "Sigkill")))
    assert (shown["selector"], shown["action"], shown["actions"]) == (2, "Sigkill", ["Override", "Sigkill"])
    assert not {"reason", "possible"} & set(shown)


def test_an_event_that_fires_by_either_of_two_selectors_names_neither() -> None:
    shown = entry(True, Outcome(0, True, False, ("Post",)), Outcome(1, True, True, ("Post",)))
    assert (shown["selector"], shown["action"], shown["rate_limited"]) == (None, "Post", True)
    assert [one["selector"] for one in shown["possible"]] == [0, 1]


def test_an_undecided_event_says_why_and_what_may_be() -> None:
    shown = entry(False, Outcome(0, True, False, ("Post",)), Outcome(None, False, False, ()), reasons=("a", "b"))
    assert shown["reason"] == "a; b"
    assert shown["possible"] == [
        {"selector": 0, "posts": True, "actions": ["Post"]},
        {"selector": None, "posts": False, "actions": []},
    ]


def small(tmp_path: Path, *more: str) -> Path:
    recording = tmp_path / "recording"
    shutil.copytree(CORPUS / "broad" / "policies", recording / "policies")
    events = [opened("/etc/shadow"), opened("/etc/passwd")]
    for number, event in enumerate(events):
        event["process_kprobe"]["policy_name"] = "b-sec-file-open"
        event["time"] = f"2026-11-22T09:00:0{number}Z"
    (recording / "r.jsonl").write_text(jsonl(*events) + "".join(more), encoding="utf-8")
    return recording


def policy(tmp_path: Path, name: str, call: str, path: str) -> Path:
    target = tmp_path / f"{name}.yaml"
    target.write_text(
        f"apiVersion: cilium.io/v1alpha1\nkind: TracingPolicy\nmetadata: {{name: {name}}}\nspec:\n  kprobes:\n    - call: {call}\n"
        f"      syscall: false\n      args: [{{index: 0, type: file}}]\n"
        f"      selectors: [{{matchArgs: [{{index: 0, operator: Equal, values: [{path}]}}]}}]\n",
        encoding="utf-8",
    )
    return target


def test_what_was_not_tried_skipped_or_shared_is_said(run: Run, tmp_path: Path) -> None:
    recording = small(tmp_path, "{torn\n", '{"process_exec": {}}\n')
    one, two = (policy(tmp_path, name, "security_file_open", "/etc/shadow") for name in ("one", "two"))
    idle = policy(tmp_path, "idle", "security_file_ioctl", "/etc/shadow")
    replayed = run([one, two, idle, tmp_path / "none.yaml"], [recording])
    content = valid(replayed)
    assert not content["passed"]
    assert [(one["reason"], one["count"], one["line"]) for one in content["skipped"]] == [("is not JSON", 1, 3)]
    assert content["overlap"] == [{"policies": ["one", "two"], "events": 1}]
    assert {name: shown["tried"] for name, shown in content["policies"].items()} == {"one": True, "two": True, "idle": False}
    assert content["policies"]["one"]["per_day"]["events"] == 86400.0
    said = "\n".join(report.lines(replayed))
    for text in (
        "3 policies over 2 events in 1 file(s), 1 s of 1 host(s)",
        "idle was not tried: no event of its hooks is recorded",
        "one and two: 1",
        "1 x is not JSON, first at ",
        "none.yaml: no such file, directory or policy of the library",
    ):
        assert text in said
        assert text in report.markdown(replayed)
    assert {alert.rule for alert in report.alerts(replayed)} == {"policy", "not-tried", "skipped"}
    xml = ElementTree.fromstring(formats.junit("replay", report.trials(replayed)))
    assert (xml.get("tests"), xml.get("failures"), xml.get("skipped")) == ("4", "1", "1")


def test_what_the_lints_find_in_a_plain_file_is_shown_and_fails_nothing(run: Run, tmp_path: Path) -> None:
    text = (CORPUS / "narrow" / "n01-equal.yaml").read_text(encoding="utf-8")
    policy = tmp_path / "mine.yaml"
    policy.write_text(text.replace("matchArgs", "matchActions: [{action: Sigkill}]\n          matchArgs"), encoding="utf-8")
    replayed = run([policy], [CORPUS / "broad"])
    content = valid(replayed)
    (found,) = [one for one in content["policies"]["n01-equal"]["findings"] if one["rule"] == "kill-after-effect"]
    assert (content["passed"], found["file"], found["line"] > 1) == (True, str(policy), True)
    assert "  Lints:" in report.lines(replayed)


def test_a_library_policy_over_its_budget_is_said(run: Run, tmp_path: Path) -> None:
    recording = small(tmp_path)
    mine = tmp_path / "own" / "file" / "reads"
    shutil.copytree(POLICIES / "file" / "credential-writes", mine, ignore=shutil.ignore_patterns("cases"))
    template = policy(tmp_path, "reads", "security_file_open", "/etc/shadow").read_text(encoding="utf-8")
    (mine / "policy.yaml.j2").write_text(template, encoding="utf-8")
    replayed = run([mine], [recording])
    valid(replayed)
    assert "reads would produce 86,400 events per host and day; its budget is" in "\n".join(report.lines(replayed))
    assert [alert.rule for alert in report.alerts(replayed)] == ["volume"]
