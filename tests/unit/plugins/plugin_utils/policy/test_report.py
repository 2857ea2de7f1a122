# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""A whole environment checked: nothing hides what is wrong elsewhere, and every report says it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest

from ansible_collections.apiary.tetragon.plugins.plugin_utils import environment, formats
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy import report as checks
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.cache import Cache
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.lint import Finding
from ansible_collections.apiary.tetragon.tests.unit.plugins.plugin_utils.samples import CASES, ROOT, TEMPLATE, PolicyTree

ENVIRONMENT = """\
name: test
agent_version: "1.7.0"
policies:
{entries}rings:
  - {{name: fleet, take: rest}}
"""
SCHEMA = json.loads((ROOT / "docs" / "schemas" / "check-report.json").read_text(encoding="utf-8"))
SWAPPED = CASES.replace("must: fire", "must: x").replace("must: stay-quiet", "must: fire").replace("must: x", "must: stay-quiet")

Check = Callable[..., checks.EnvironmentReport]


@pytest.fixture
def check(tmp_path: Path, tree: PolicyTree) -> Check:
    """Checks an environment with the named policies in monitor."""

    def run(*references: str, needed: float | None = None, **options: Any) -> checks.EnvironmentReport:
        entries = "".join(f"  - {{policy: {reference}, mode: monitor}}\n" for reference in references)
        file = tmp_path / "test.yml"
        file.write_text(ENVIRONMENT.format(entries=entries), encoding="utf-8")
        return checks.check_environment(environment.load(file), tree.library(), Cache(), needed, **options)

    return run


def valid(report: checks.EnvironmentReport) -> dict[str, Any]:
    """The JSON form, held against its schema."""
    content = json.loads(json.dumps(checks.as_json(report)))
    jsonschema.Draft202012Validator(SCHEMA).validate(content)
    return content  # type: ignore[no-any-return]


def test_an_environment_that_holds_passes(check: Check, tree: PolicyTree) -> None:
    tree.add()
    seen: list[str] = []
    report = check("files/watch", progress=seen.append)
    content = valid(report)
    assert report.passed and content["passed"]
    assert [(case["name"], case["fired"], case["quiet"]) for case in content["policies"][0]["cases"]] == [
        ("a watched file", 1, 0),
        ("another file", 0, 1),
    ]
    assert content["policies"][0]["mutation"] is None
    assert seen == ["[1/1] files/watch"]
    assert checks.lines(report)[-1] == "  every policy passed"
    assert checks.alerts(report) == []
    assert not any(test.failures for test in checks.trials(report))


def test_a_version_to_come_is_among_the_findings(check: Check, tree: PolicyTree) -> None:
    fd = (
        TEMPLATE.replace("type: file", "type: fd")
        .replace("call: security_file_open", "call: sys_fchdir")
        .replace("syscall: false", "syscall: true")
    )
    tree.add(template=TEMPLATE)
    tree.add("files/descriptor", template=fd)
    now, then = check("files/watch", "files/descriptor"), check("files/watch", "files/descriptor", towards=(1, 8, 0))
    told = [[one for one in policy.findings if one.rule == "migration"] for report in (now, then) for policy in report.policies]
    assert [len(some) for some in told] == [0, 0, 0, 1]
    assert (told[3][0].severity, told[3][0].message[:7]) == ("warning", "on 1.8.0"[:7])
    valid(then)
    assert any(alert.rule == "migration" for alert in checks.alerts(then))


def test_the_same_remark_on_several_places_is_said_once(check: Check, tree: PolicyTree) -> None:
    tree.add()
    (policy,) = check("files/watch").policies
    twice = tuple(Finding("syscall-default", "warning", "watch", f"spec.kprobes[{index}]", "is one") for index in range(2))
    said = checks.lines(checks.EnvironmentReport("e", "e.yml", "1.7.0", (replace(policy, findings=twice),), ()))
    assert [line for line in said if "is one" in line] == ["    warning: watch: spec.kprobes[0]: is one [syscall-default] and at 1 more"]


def test_one_broken_policy_does_not_hide_the_others(check: Check, tree: PolicyTree) -> None:
    tree.add("files/none", cases=None)
    broken = tree.add("files/broken", cases=SWAPPED)
    tree.add("files/shape", template=TEMPLATE.replace("syscall: false", "syscal: false"))
    tree.add("files/watch")
    report = check("files/none", "files/broken", "files/shape", "files/watch")
    content = valid(report)
    assert not report.passed
    assert {one["policy"]: one["passed"] for one in content["policies"]} == {
        "files/none": False,
        "files/broken": False,
        "files/shape": False,
        "files/watch": True,
    }
    said = "\n".join(checks.lines(report))
    assert "has no cases: add cases/cases.yml" in said
    assert "case 'another file' must fire: " in said
    assert "did you mean 'syscall'?" in said
    assert "3 of 4 policies failed" in said
    places = {(one.rule, one.file, one.line) for one in checks.alerts(report)}
    assert ("case", str(broken / "cases" / "other.jsonl"), 1) in places
    assert ("policy", str(tree.directory / "files/none"), 0) in places
    xml = ElementTree.fromstring(formats.junit("check", checks.trials(report)))
    assert xml.get("failures") == "4"  # no cases, two cases, the shape
    assert "FAILED" in checks.markdown(report)


def test_a_lint_of_the_whole_set_fails_the_environment(check: Check, tree: PolicyTree) -> None:
    override = TEMPLATE.replace("action: Post", "action: Override, argError: -1").replace(
        "        - matchArgs:", "        - matchBinaries: [{operator: In, values: [/usr/bin/x]}]\n          matchArgs:"
    )
    names = [f"files/watch{number}" for number in range(39)]
    for name in names:
        tree.add(name, template=override)
    report = check(*names)
    assert "ceiling" in {one.rule for one in report.findings if one.severity == "error"}
    assert not report.passed
    assert checks.trials(report)[-1].failures


def test_cases_that_let_bugs_live_fail_when_asked(check: Check, tree: PolicyTree) -> None:
    tree.add()
    weak = check("files/watch", needed=0.9)
    content = valid(weak)
    assert not weak.passed
    mutation = content["policies"][0]["mutation"]
    assert mutation["score"] < mutation["needed"] == 0.9
    assert {one["kind"] for one in mutation["survived"]} >= {"operator-swapped"}
    assert all(one["by"] for one in mutation["killed"])
    assert [one.level for one in checks.alerts(weak)] == ["error"] * len(mutation["survived"])
    assert "of the mutants; needed: 90%. No case notices:" in "\n".join(checks.lines(weak))
    lenient = check("files/watch", needed=0.1)
    assert lenient.passed
    assert {one.level for one in checks.alerts(lenient)} == {"note"}


def test_a_policy_that_is_broken_is_not_mutated(check: Check, tree: PolicyTree) -> None:
    tree.add(cases=SWAPPED)
    report = check("files/watch", needed=0.9)
    assert report.policies[0].mutation is None
    assert not report.passed
