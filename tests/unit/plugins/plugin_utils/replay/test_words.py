# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""One event explained: found by its place, and told filter by filter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ansible_collections.apiary.tetragon.plugins.plugin_utils import documents
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay import corpus, words
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.compile import CompiledPolicy
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.records import Hook
from ansible_collections.apiary.tetragon.tests.unit.plugins.plugin_utils.samples import CORPUS, jsonl, messages, opened, refused

RECORDING = CORPUS / "broad" / "broad-sec-file-open.jsonl.gz"


def policy(name: str) -> CompiledPolicy:
    return CompiledPolicy(documents.load(CORPUS / "narrow" / f"{name}.yaml").data)


def told(line: int, *names: str) -> str:
    event = words.find(f"{RECORDING}:{line}", corpus.surveyed(corpus.find([CORPUS / "broad"])))
    return "\n".join(words.lines(event, words.explain(event, [policy(name) for name in names])))


def test_an_event_is_told_selector_by_selector() -> None:
    said = told(300, "n16-multi-sel", "n06-daddr")
    assert "broad-sec-file-open.jsonl.gz:300: kprobe security_file_open by /usr/bin/cat" in said
    assert "n16-multi-sel stays quiet: no selector matches (kprobes[0], kprobe security_file_open" in said
    assert [line.strip() for line in said.splitlines() if line.strip().startswith("selector ")] == [
        "selector 0 does not match",
        "selector 1 does not match",
        "selector 2 does not match",
    ]
    assert "no      matchBinaries, executed file of the process: In /usr/bin/tail: it is /usr/bin/cat" in said
    assert "n06-daddr stays quiet: it watches kprobe tcp_connect, not this" in said


def test_the_name_of_the_file_will_do() -> None:
    event = words.find(f"{RECORDING.name}:300", corpus.surveyed(corpus.find([CORPUS / "broad"])))
    assert event.process.binary == "/usr/bin/cat"


def test_every_verdict_of_a_recording_is_told_as_it_is() -> None:
    """Each of the three verdicts, wherever the recording has it."""
    recordings = corpus.surveyed(corpus.find([CORPUS / "broad"]))
    one = policy("n11-bin-follow")
    seen = set()
    for line in range(1, 400, 9):
        event = words.find(f"{RECORDING}:{line}", recordings)
        (verdict,) = one.evaluate(event)
        said = "\n".join(words.lines(event, words.explain(event, [one])))
        expected = {True: "FIRES", False: "stays quiet", None: "CANNOT BE DECIDED"}[verdict.fires.value]
        assert f"n11-bin-follow {expected}: " in said
        assert all(f"undecided, as {reason}" in said for reason in verdict.fires.reasons)
        seen.add(verdict.fires.value)
    assert seen >= {False, None}


def test_the_same_as_data() -> None:
    event = words.find(f"{RECORDING}:300", corpus.surveyed(corpus.find([CORPUS / "broad"])))
    content = json.loads(json.dumps(words.as_json(event, words.explain(event, [policy("n16-multi-sel"), policy("n06-daddr")]))))
    assert (content["event"]["line"], content["event"]["hook"]) == (300, "kprobe security_file_open")
    assert content["policies"]["n06-daddr"] == []
    (hook,) = content["policies"]["n16-multi-sel"]
    assert [selector["value"] for selector in hook["selectors"]] == [False, False, False]


def test_an_equivalent_hook_names_its_source() -> None:
    hook = CompiledPolicy(documents.load(CORPUS / "narrow" / "n01-equal.yaml").data, recorded=[Hook("lsm", "file_open")])
    recordings = corpus.surveyed(corpus.find([CORPUS / "broad"]))
    (file,) = [one.path for one in recordings if one.path.name == "broad-lsm-file-open.jsonl.gz"]
    event = words.find(f"{file}:1", recordings)
    said = "\n".join(words.lines(event, words.explain(event, [hook])))
    assert "recorded at lsm file_open: Linux security/security.c" in said


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("r.jsonl", "is 'r.jsonl'; needed: <file>:<line>"),
        ("r.jsonl:0", "needed: <file>:<line>"),
        ("other.jsonl:1", "is no recording of apiary_corpus; there are: r.jsonl"),
        ("r.jsonl:9", "has only 3 lines"),
        ("r.jsonl:2", "is no event"),
        ("r.jsonl:3", "is an event of no hook"),
    ],
)
def test_a_place_without_an_event_is_refused(place: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.jsonl").write_text(jsonl(opened("/etc/x")) + "{torn\n" + '{"process_exec": {}}\n', encoding="utf-8")
    assert message in messages(refused(words.find, place, corpus.find([Path("r.jsonl")])))
