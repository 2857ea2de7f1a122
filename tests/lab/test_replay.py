# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The playbooks check and replay as a person runs them: paths as they stand, no inventory, and what comes out."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
CORPUS = REPOSITORY / "tests" / "corpus"
ENVIRONMENT = """\
name: lab
agent_version: "1.7.0"
policies:
  - {policy: process/fileless-execution, mode: monitor}
  - {policy: file/mine, mode: monitor}
rings:
  - {name: fleet, take: rest}
"""


@dataclass(frozen=True)
class Played:
    """A finished ansible-playbook: exit code and everything it printed."""

    code: int
    output: str


def play(directory: Path, playbook: str, **variables: Any) -> Played:
    program = str(Path(sys.executable).with_name("ansible-playbook"))
    done = subprocess.run(
        [program, f"apiary.tetragon.{playbook}", "-e", json.dumps(variables)], cwd=directory, capture_output=True, text=True, check=False
    )
    return Played(done.returncode, done.stdout + done.stderr)


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A working directory with policies and a recording in it."""
    shutil.copytree(CORPUS / "broad", tmp_path / "recording")
    shutil.copytree(CORPUS / "narrow", tmp_path / "dir", ignore=shutil.ignore_patterns("*.gz"))
    (tmp_path / "dir" / "n01-equal.yaml").rename(tmp_path / "x.yaml")
    return tmp_path


def test_replay(desk: Path) -> None:
    done = play(
        desk,
        "replay",
        apiary_policies=["x.yaml", "dir/"],
        apiary_corpus=["recording/"],
        apiary_report="out.json",
        apiary_junit="new/out.xml",
        apiary_sarif="out.sarif",
        apiary_markdown="out.md",
    )
    assert done.code == 0, done.output
    content = json.loads((desk / "out.json").read_text(encoding="utf-8"))
    assert set(content["policies"]) == {path.stem for path in (CORPUS / "narrow").glob("*.yaml")}
    assert {"exec_id", "time", "hook", "file", "line", "selector", "action"} <= set(content["policies"]["n01-equal"]["fired"][0])
    assert content["policies"]["n01-equal"]["fired"][0]["file"].startswith("recording/broad-sec-file-open")
    assert all((desk / name).stat().st_size for name in ("new/out.xml", "out.sarif", "out.md"))
    assert "events/host/day" in done.output
    alone = play(
        desk,
        "replay",
        apiary_policies="x.yaml",
        apiary_corpus="recording",
        apiary_report="one.json",
        apiary_workers=1,
        apiary_kernel={"release": "6.1"},
    )
    assert alone.code == 0, alone.output
    one = json.loads((desk / "one.json").read_text(encoding="utf-8"))
    assert one["policies"]["n01-equal"]["fired"] == content["policies"]["n01-equal"]["fired"]


@pytest.mark.parametrize(
    ("policies", "recordings", "message"),
    [
        (["x.yaml"], ["new/empty.jsonl"], "new/empty.jsonl: holds no event of a hook: that policies stay quiet on it proves nothing"),
        (["x.yaml"], ["none/"], "none: no such file or directory"),
        (["none.yaml"], ["recording/"], "none.yaml: no such file, directory or policy of the library"),
        (["torn.yaml"], ["recording/"], "torn.yaml:2: not valid YAML"),
        ([], ["recording/"], "names no policy"),
    ],
)
def test_replay_refuses_in_words(policies: list[str], recordings: list[str], message: str, desk: Path) -> None:
    (desk / "new").mkdir()
    (desk / "new" / "empty.jsonl").write_text("", encoding="utf-8")
    (desk / "torn.yaml").write_text("kind: [", encoding="utf-8")
    done = play(desk, "replay", apiary_policies=policies, apiary_corpus=recordings, apiary_report="out.json")
    assert done.code != 0
    assert message in done.output
    assert "Traceback" not in done.output
    assert not (desk / "out.json").exists()


def test_a_kernel_that_is_none_is_refused(desk: Path) -> None:
    done = play(desk, "replay", apiary_policies="x.yaml", apiary_corpus="recording", apiary_kernel={"release": 6.12})
    assert done.code != 0
    assert "apiary_kernel: release: is 6.12; needed: text" in done.output


def test_a_broken_policy_beside_a_sound_one_fails_after_the_report(desk: Path) -> None:
    (desk / "broken.yaml").write_text("kind: TracingPolicy\nmetadata: {name: broken}\n", encoding="utf-8")
    done = play(desk, "replay", apiary_policies=["x.yaml", "broken.yaml"], apiary_corpus=["recording"], apiary_report="out.json")
    assert done.code != 0
    content = json.loads((desk / "out.json").read_text(encoding="utf-8"))
    assert (content["passed"], list(content["policies"])) == (False, ["n01-equal"])


def test_check(desk: Path) -> None:
    """A policy without cases fails its environment, by name, and the other one is checked all the same."""
    mine = desk / "policies" / "file" / "mine"
    shutil.copytree(REPOSITORY / "policies" / "file" / "credential-writes", mine)
    template = (mine / "policy.yaml.j2").read_text(encoding="utf-8").replace("name: credential-writes", "name: mine")
    (mine / "policy.yaml.j2").write_text(template, encoding="utf-8")
    (desk / "lab.yml").write_text(ENVIRONMENT, encoding="utf-8")
    asked = {"apiary_environment": "lab.yml", "apiary_policy_path": ["policies"], "apiary_report": "out.json"}
    shutil.copytree(REPOSITORY / "policies" / "_macros", desk / "policies" / "_macros")
    good = play(desk, "check", **asked, apiary_junit="out.xml", apiary_sarif="out.sarif", apiary_markdown="out.md")
    assert good.code == 0, good.output
    assert "every policy passed" in good.output
    assert all((desk / name).stat().st_size for name in ("out.json", "out.xml", "out.sarif", "out.md"))
    shutil.rmtree(mine / "cases")
    bad = play(desk, "check", **asked)
    assert bad.code != 0
    assert "policies/file/mine: has no cases" in bad.output
    passed = {one["policy"]: one["passed"] for one in json.loads((desk / "out.json").read_text(encoding="utf-8"))["policies"]}
    assert passed == {"process/fileless-execution": True, "file/mine": False}
