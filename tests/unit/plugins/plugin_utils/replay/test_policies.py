# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Which policies a replay takes: files, directories, library policies, and what it says of all else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.load import Library
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.policies import Gathered, gather, recorder_files
from ansible_collections.apiary.tetragon.tests.unit.plugins.plugin_utils.samples import (
    CORPUS,
    LIBRARY_VALUES,
    META,
    POLICIES,
    PROTECTED,
    REFERENCES,
    PolicyTree,
    messages,
)

PLAIN = "apiVersion: cilium.io/v1alpha1\nkind: TracingPolicy\nmetadata: {name: mine}\nspec: {kprobes: [{call: sys_mount}]}\n"


def gathered(*wanted: object, library: Library | None = None, **options: Any) -> Gathered:
    return gather([str(one) for one in wanted], library or Library([POLICIES]), (1, 7, 0), PROTECTED, options.pop("values", {}), **options)


def written(path: Path, text: str = PLAIN) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_files_and_directories_in_order_each_once(tmp_path: Path) -> None:
    one = written(tmp_path / "b.yaml", PLAIN.replace("mine", "b"))
    written(tmp_path / "deep" / "a.yml", PLAIN.replace("mine", "a"))
    written(tmp_path / "notes.txt", "not looked at")
    found = gathered(one, tmp_path)
    assert [(policy.name, Path(policy.file).name) for policy in found.policies] == [("b", "b.yaml"), ("a", "a.yml")]
    assert (found.problems, found.foreign) == ((), ())


def test_yaml_of_another_kind_is_passed_over_in_a_directory_and_an_error_by_name(tmp_path: Path) -> None:
    other = written(tmp_path / "deployment.yaml", "kind: Deployment\n")
    written(tmp_path / "mine.yaml")
    assert gathered(tmp_path).foreign == (str(other),)
    found = gathered(other)
    assert found.policies == ()
    assert "holds no policy; needed: a YAML document of kind TracingPolicy or TracingPolicyNamespaced" in messages(found.problems)


def test_a_policy_that_the_agent_would_refuse_does_not_stop_the_others(tmp_path: Path) -> None:
    written(tmp_path / "mine.yaml")
    broken = written(tmp_path / "broken.yaml", PLAIN.replace("mine", "broken").replace("call:", "cal:"))
    torn = written(tmp_path / "torn.yaml", "kind: [\n")
    found = gathered(tmp_path)
    assert [policy.name for policy in found.policies] == ["mine"]
    assert {problem.file for problem in found.problems} == {str(broken), str(torn)}
    assert "did you mean 'call'?" in messages(found.problems)


def test_two_policies_of_one_name_must_be_the_same(tmp_path: Path) -> None:
    written(tmp_path / "a.yaml")
    written(tmp_path / "b.yaml")
    assert (len(gathered(tmp_path).policies), gathered(tmp_path).problems) == (1, ())
    written(tmp_path / "c.yaml", PLAIN.replace("sys_mount", "sys_umount"))
    (problem,) = gathered(tmp_path).problems
    assert (Path(problem.file).name, problem.path) == ("c.yaml", "metadata.name")
    assert f"as that of {tmp_path / 'a.yaml'}: rename one of the two" in problem.message


@pytest.mark.parametrize("how", ["reference", "directory"])
def test_a_library_policy(how: str) -> None:
    wanted = "network/c2-ranges" if how == "reference" else POLICIES / "network" / "c2-ranges"
    (policy,) = gathered(wanted, values=LIBRARY_VALUES).policies
    assert (policy.name, policy.budget) == ("c2-ranges", 5)
    assert policy.document["spec"]["kprobes"][0]["call"] == "security_socket_connect"


def test_the_whole_library_without_its_cases() -> None:
    found = gathered(POLICIES, values=LIBRARY_VALUES)
    assert found.problems == ()
    library = {policy.name for policy in found.policies if policy.file.endswith(".j2")}
    assert library == {reference.partition("/")[2] for reference in REFERENCES}
    assert not any("/cases/" in policy.file for policy in found.policies)


def test_values_that_are_missing_or_wrong_are_named() -> None:
    assert "'ranges' is missing" in messages(gathered("network/c2-ranges").problems)
    wrong = gathered("network/c2-ranges", values={"network/c2-ranges": {"ranges": ["10.0.0.300/8"]}})
    assert messages(wrong.problems).startswith("apiary_values of network/c2-ranges: ranges[0]: ")


def test_a_library_policy_of_ones_own(tree: PolicyTree) -> None:
    tree.add()
    (policy,) = gathered(tree.directory / "files" / "watch").policies
    assert policy.name == "watch"


def test_a_form_that_a_policy_does_not_have_is_its_first(tree: PolicyTree) -> None:
    tree.add(meta=META.replace("[host, cluster]", "[host]"))
    (policy,) = gathered(tree.directory, form="cluster").policies
    assert "podSelector" not in policy.document["spec"]


@pytest.mark.parametrize("wanted", ["no/such", "/no/such.yaml", ""])
def test_what_does_not_exist_is_named(wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (problem,) = gathered(wanted).problems
    assert "no such file, directory or policy of the library" in problem.message or "holds no policy" in problem.message


def test_an_empty_directory_is_no_policy(tmp_path: Path) -> None:
    assert "holds no policy: needed are files that end in .yaml or .yml" in messages(gathered(tmp_path).problems)


def test_recorders_beside_a_recording_are_found(tmp_path: Path) -> None:
    beside = written(tmp_path / "policies" / "r.yaml")
    named = written(tmp_path / "elsewhere" / "s.yaml")
    (tmp_path / "recording").mkdir()
    assert recorder_files([str(named)], [str(tmp_path / "recording")]) == [named, beside]
    assert recorder_files([], [str(CORPUS / "narrow")]) == []
