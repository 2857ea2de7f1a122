# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Reports in the forms of other tools: what they hold, and that no text breaks out of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO
from xml.etree import ElementTree

import pytest

from ansible_collections.apiary.tetragon.plugins.plugin_utils import formats
from ansible_collections.apiary.tetragon.plugins.plugin_utils.formats import Alert, Trial
from ansible_collections.apiary.tetragon.tests.unit.plugins.plugin_utils.samples import messages, refused


def test_junit_counts_and_keeps_suites_together() -> None:
    tests = [
        Trial("a", "holds"),
        Trial("b", "breaks", ("first", "second")),
        Trial("a", "cannot be tried", skipped="no events"),
    ]
    root = ElementTree.fromstring(formats.junit("all", tests))
    assert (root.get("tests"), root.get("failures"), root.get("skipped")) == ("3", "1", "1")
    assert [(suite.get("name"), suite.get("tests"), suite.get("failures")) for suite in root] == [("a", "2", "0"), ("b", "1", "1")]
    failure = root.find("testsuite/testcase/failure")
    assert failure is not None
    assert (failure.get("message"), failure.text) == ("first", "first\nsecond")
    skipped = root.find("testsuite/testcase/skipped")
    assert skipped is not None
    assert skipped.get("message") == "no events"


@pytest.mark.parametrize("text", ["</failure><x/>", '"quoted" & <so>', "bell\x07", "zero\x00", "half\ud800", "\ufffe"])
def test_junit_holds_any_text(text: str) -> None:
    xml = formats.junit(text, [Trial(text, text, (text,))])
    case = ElementTree.fromstring(xml.encode()).find("testsuite/testcase")
    assert case is not None
    assert [child.tag for child in case] == ["failure"]


def test_sarif_names_rules_and_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    alerts = [Alert("case", "error", "fires", str(tmp_path / "cases/a.jsonl"), 3), Alert("hot", "warning", "slow", "/elsewhere/p.yaml")]
    log = json.loads(formats.sarif({"case": "A case is broken"}, alerts))
    (run,) = log["runs"]
    assert log["version"] == "2.1.0"
    assert run["tool"]["driver"]["rules"] == [
        {"id": "case", "shortDescription": {"text": "A case is broken"}},
        {"id": "hot", "shortDescription": {"text": "hot"}},
    ]
    assert [(one["ruleId"], one["ruleIndex"], one["level"]) for one in run["results"]] == [("case", 0, "error"), ("hot", 1, "warning")]
    places = [one["locations"][0]["physicalLocation"] for one in run["results"]]
    assert places == [
        {"artifactLocation": {"uri": "cases/a.jsonl"}, "region": {"startLine": 3}},
        {"artifactLocation": {"uri": "/elsewhere/p.yaml"}},
    ]


def test_a_table_aligns_its_columns() -> None:
    assert formats.table(("name", "events"), [("a", 5), ("longer", 120)], "") == ["name    events", "a            5", "longer     120"]
    assert formats.table(("name", "events"), [], "") == ["name  events"]


@pytest.mark.parametrize(
    ("cell", "shown"), [("a|b", "a\\|b"), ("two\nlines", "two lines"), ("<b>", "\\<b\\>"), ("**x**", "\\*\\*x\\*\\*"), ("`x`", "\\`x\\`")]
)
def test_a_markdown_cell_keeps_its_text(cell: str, shown: str) -> None:
    assert formats.markdown_table(("h",), [(cell,)]) == f"| h |\n|---|\n| {shown} |\n"


def test_only_reports_that_are_wanted_are_made(tmp_path: Path) -> None:
    def never(out: IO[str]) -> None:
        raise AssertionError("was not wanted")

    target = tmp_path / "new" / "r.json"
    assert formats.write_reports({"report": str(target), "junit": None}, report=lambda out: out.write("{}"), junit=never) == [str(target)]
    assert target.read_text(encoding="utf-8") == "{}"
    assert [path.name for path in target.parent.iterdir()] == ["r.json"]


def test_a_report_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    target = str(tmp_path / "file" / "r.json")
    problems = refused(lambda: formats.write_reports({"report": target}, report=lambda out: out.write("{}")))
    assert messages(problems).startswith(f"{target}: cannot be written: ")


def test_a_report_that_breaks_off_leaves_the_former_one(tmp_path: Path) -> None:
    def breaks(out: IO[str]) -> None:
        out.write("half")
        raise ValueError

    target = tmp_path / "r.json"
    target.write_text("former", encoding="utf-8")
    with pytest.raises(ValueError):
        formats.write_file(target, breaks)
    assert {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()} == {"r.json": "former"}
