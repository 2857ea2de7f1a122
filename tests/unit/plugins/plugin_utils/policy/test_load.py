# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The library: where policies are found, and what a policy directory must hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.load import Library
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Problem
from ansible_collections.apiary.tetragon.tests.unit.plugins.plugin_utils.samples import (
    CASES,
    EVENTS,
    META,
    REFERENCES,
    TEMPLATE,
    PolicyTree,
    messages,
    refused,
)


@pytest.mark.parametrize("reference", REFERENCES)
def test_a_library_policy_loads(reference: str, library: Library) -> None:
    policy = library.get(reference)
    assert policy.reference == reference
    assert policy.cases


def test_the_library_holds_eight_policies(library: Library) -> None:
    assert list(library.references) == list(REFERENCES)
    assert len(REFERENCES) == 8


# --- search path ----------------------------------------------------------------------------------------------------


@pytest.fixture
def mine(tmp_path: Path) -> PolicyTree:
    """A user's own directory, to stand before another."""
    return PolicyTree(tmp_path / "mine")


def both(mine: PolicyTree, tree: PolicyTree) -> Library:
    """A library on two directories, the user's first."""
    return Library([mine.directory, tree.directory])


def test_the_first_directory_that_has_a_policy_wins(mine: PolicyTree, tree: PolicyTree) -> None:
    mine.add(meta=META.replace("owner: tests", "owner: me"))
    tree.add()
    assert both(mine, tree).get("files/watch").meta["owner"] == "me"


def test_a_policy_of_a_later_directory_is_found(mine: PolicyTree, tree: PolicyTree) -> None:
    mine.add("files/other")
    target = tree.add()
    assert both(mine, tree).get("files/watch").directory == target


def test_policies_of_one_name_in_two_categories_are_two(tree: PolicyTree) -> None:
    tree.add("files/watch")
    tree.add("network/watch")
    assert list(tree.library().references) == ["files/watch", "network/watch"]


def test_the_first_directory_that_has_a_macro_file_wins(mine: PolicyTree, tree: PolicyTree) -> None:
    mine.add_macros("scope.j2", "mine")
    tree.add_macros("scope.j2", "theirs")
    tree.add_macros("network.j2", "only theirs")
    assert both(mine, tree).macros == {"scope.j2": "mine", "network.j2": "only theirs"}


def test_a_library_goes_through_all_its_policies_in_order(mine: PolicyTree, tree: PolicyTree) -> None:
    mine.add("zz/last")
    tree.add("aa/first")
    assert [policy.reference for policy in both(mine, tree)] == ["aa/first", "zz/last"]


def test_a_directory_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    (problem,) = refused(Library, [tmp_path / "none"])
    assert problem.file == str(tmp_path / "none")
    assert "no such policy directory" in problem.message


def test_a_policy_is_read_once(tree: PolicyTree) -> None:
    tree.add()
    library = tree.library()
    assert library.get("files/watch") is library.get("files/watch")


@pytest.mark.parametrize(
    ("asked", "hint"),
    [("files/wacth", "did you mean 'files/watch'? "), ("watch", "did you mean 'files/watch'? "), ("zoo/zebra", "")],
    ids=["a letter swapped", "no category", "nothing like it"],
)
def test_an_unknown_policy_is_refused_with_where_and_what(asked: str, hint: str, tree: PolicyTree) -> None:
    tree.add()
    assert refused(tree.library().get, asked) == (
        Problem("", 0, "", f"no policy {asked!r}; {hint}searched: {tree.directory}; known: files/watch"),
    )


def test_an_empty_directory_says_that_it_knows_none(tree: PolicyTree) -> None:
    assert "known: none" in messages(refused(tree.library().get, "files/watch"))


# --- meta.yml -------------------------------------------------------------------------------------------------------

META_KEYS = ["title", "description", "severity", "owner", "maturity", "attack", "forms", "event_budget", "inputs"]


@pytest.mark.parametrize("key", META_KEYS)
def test_meta_needs(key: str, tree: PolicyTree) -> None:
    kept = (
        META.partition("inputs:\n")[0]
        if key == "inputs"
        else "".join(one for one in META.splitlines(True) if not one.startswith(f"{key}:"))
    )
    target = tree.add(meta=kept)
    assert refused(tree.policy) == (Problem(str(target / "meta.yml"), 1, "", f"key {key!r} is missing"),)


def allowing(*rules: str, reason: str = "for the test") -> str:
    """The key ``lint`` that allows these rules, before the key ``inputs``."""
    return "lint:\n  allow:\n" + "".join(f"    - {{rule: {rule}, reason: {reason}}}\n" for rule in rules) + "inputs:"


@pytest.mark.parametrize(
    ("old", "new", "line", "path", "message"),
    [
        pytest.param("title: A watched file is opened", 'title: ""', 1, "title", "needs at least 1 characters", id="an empty title"),
        pytest.param("title: A watched file is opened", f"title: {'x' * 101}", 1, "title", "at most 100 characters", id="a long title"),
        pytest.param(
            "severity: low", "severity: mild", 3, "severity", 'is "mild"; allowed: "critical", "high", "medium", "low"', id="severity"
        ),
        pytest.param("owner: tests", "owner: 7", 4, "owner", "is 7; needed: text", id="owner"),
        pytest.param("maturity: sandbox", "maturity: beta", 5, "maturity", 'is "beta"; allowed: "stable"', id="maturity"),
        pytest.param("[T1003]", "[TA0001]", 6, "attack[0]", 'is "TA0001"; needed: an ATT&CK technique id', id="a tactic for a technique"),
        pytest.param("[T1003]", "T1003", 6, "attack", "needed: a list", id="a single technique"),
        pytest.param("[host, cluster]", "[]", 7, "forms", "needs at least 1 entries", id="no forms"),
        pytest.param("[host, cluster]", "[pod]", 7, "forms[0]", 'is "pod"; allowed: "host", "cluster"', id="an unknown form"),
        pytest.param("[host, cluster]", "[host, host]", 7, "forms", "no entry may stand twice", id="a form twice"),
        pytest.param("event_budget: 5", "event_budget: -5", 8, "event_budget", "must be at least 0", id="a negative budget"),
        pytest.param("event_budget: 5", "event_budget: few", 8, "event_budget", "needed: a whole number", id="a budget in words"),
        pytest.param(
            "event_budget: 5", "event_budget: 5\nevent_budgt: 5", 9, "event_budgt", "did you mean 'event_budget'?", id="unknown key"
        ),
        pytest.param("elements: path", "elements: file", 12, "inputs.paths.elements", 'is "file"; allowed:', id="an unknown type"),
        pytest.param(
            "[/etc/watched]", "[etc]", 15, "inputs.paths.default[0]", 'is "etc"; needed: an absolute path', id="a default of another type"
        ),
        pytest.param("[/etc/watched]", "[]", 15, "inputs.paths.default", "needs at least 1 entries", id="a default out of bounds"),
        pytest.param("inputs:", allowing("no-such-rule"), 11, "lint.allow[0].rule", "no rule 'no-such-rule'", id="an unknown rule"),
        pytest.param("inputs:", allowing("bind-mounts"), 11, "lint.allow[0].rule", "did you mean 'bind-mount'?", id="a misspelt rule"),
        pytest.param("inputs:", allowing("ceiling"), 11, "lint.allow[0].rule", "it cannot be allowed", id="what the agent refuses"),
        pytest.param("inputs:", allowing("memory", "memory"), 12, "lint.allow[1].rule", "allowed twice", id="a rule twice"),
        pytest.param(
            "inputs:", allowing("memory", reason="none"), 11, "lint.allow[0].reason", "needed: a reason, in words", id="no reason"
        ),
        pytest.param("inputs:", "lint: {allow: []}\ninputs:", 9, "lint.allow", "at least 1 entries", id="nothing allowed"),
        pytest.param(
            "inputs:", "lint: {allow: [{rule: memory}]}\ninputs:", 9, "lint.allow[0]", "key 'reason' is missing", id="no reason at all"
        ),
        pytest.param("[/etc/watched]", "null", 15, "inputs.paths.default", "is null; needed: a list", id="a default of nothing"),
    ],
)
def test_meta_that_is_not_sound_is_refused_at_the_line(old: str, new: str, line: int, path: str, message: str, tree: PolicyTree) -> None:
    assert META.count(old) == 1
    target = tree.add(meta=META.replace(old, new))
    (problem,) = refused(tree.policy)
    assert (problem.file, problem.line, problem.path) == (str(target / "meta.yml"), line, path)
    assert message in problem.message


def test_every_default_that_does_not_fit_is_reported(tree: PolicyTree) -> None:
    more = "  count:\n    type: integer\n    description: d\n    default: x\n"
    tree.add(meta=META.replace("[/etc/watched]", "[etc]") + more)
    assert [problem.path for problem in refused(tree.policy)] == ["inputs.paths.default[0]", "inputs.count.default"]


def test_a_key_that_stands_twice_in_meta_is_refused(tree: PolicyTree) -> None:
    tree.add(meta=META + "owner: me\n")
    assert "written twice, first on line 4" in messages(refused(tree.policy))


@pytest.mark.parametrize("name", ["a", "a1", "watch-files-2", "x" * 48])
def test_a_policy_may_be_named(name: str, tree: PolicyTree) -> None:
    tree.add(f"files/{name}")
    assert tree.policy(f"files/{name}").name == name


@pytest.mark.parametrize("name", ["Watch", "watch_files", "-watch", "watch-", "wätch", "a.b", "x" * 49])
def test_a_policy_may_not_be_named(name: str, tree: PolicyTree) -> None:
    target = tree.add(f"files/{name}")
    assert refused(tree.policy, f"files/{name}") == (
        Problem(str(target / "meta.yml"), 1, "", f"directory name {name!r}: needed: at most 48 lower-case letters, digits and dashes"),
    )


# --- template -------------------------------------------------------------------------------------------------------


def test_a_policy_without_a_template_is_refused(tree: PolicyTree) -> None:
    target = tree.add(template=None)
    (problem,) = refused(tree.policy)
    assert problem.file == str(target / "policy.yaml.j2")
    assert "cannot be read" in problem.message


def test_a_template_that_is_not_utf8_is_refused(tree: PolicyTree) -> None:
    target = tree.add()
    (target / "policy.yaml.j2").write_bytes(b"\xff\xfe")
    assert "cannot be read" in messages(refused(tree.policy))


# --- cases ----------------------------------------------------------------------------------------------------------


def test_cases_are_read(tree: PolicyTree) -> None:
    text = """\
- name: recorded under another policy
  origin: recorded
  events: watched.jsonl
  recorder: recorder.yaml
  form: cluster
  values: {paths: [/etc/x]}
  executables: {/bin/sh: /usr/bin/dash}
  at_hook: true
  must: fire
- name: all defaults
  origin: written
  events: other.jsonl
  must: stay-quiet
"""
    target = tree.add(cases=text, events={**EVENTS, "recorder.yaml": "{}\n"})
    first, second = tree.policy().cases
    assert (first.origin, first.must_fire, first.form, first.at_hook) == ("recorded", True, "cluster", True)
    assert (first.events, first.recorder) == (target / "cases" / "watched.jsonl", target / "cases" / "recorder.yaml")
    assert (first.values, first.executables) == ({"paths": ["/etc/x"]}, {"/bin/sh": "/usr/bin/dash"})
    assert (second.must_fire, second.recorder, second.form, second.at_hook) == (False, None, None, False)
    assert (second.values, second.executables) == ({}, None)


def test_a_policy_without_a_cases_file_has_no_cases(tree: PolicyTree) -> None:
    tree.add(cases=None)
    assert tree.policy().cases == ()


@pytest.mark.parametrize(
    ("old", "new", "line", "path", "message"),
    [
        pytest.param("- name: a watched file\n  origin", "- origin", 1, "[0]", "key 'name' is missing", id="no name"),
        pytest.param("  must: fire\n", "", 1, "[0]", "key 'must' is missing", id="nothing it must do"),
        pytest.param("  events: watched.jsonl\n", "", 1, "[0]", "key 'events' is missing", id="no events"),
        pytest.param("must: fire", "must: shout", 4, "[0].must", 'is "shout"; allowed: "fire", "stay-quiet"', id="must shout"),
        pytest.param("events: watched.jsonl", "events: no.jsonl", 3, "[0].events", "no such file: ", id="an events file that is missing"),
        pytest.param("events: watched.jsonl", "events: ../x.jsonl", 3, "[0].events", "file in cases/", id="an events file elsewhere"),
        pytest.param("events: watched.jsonl", "events: watched.txt", 3, "[0].events", "a .jsonl or .jsonl.gz file", id="another ending"),
        pytest.param("must: fire", "must: fire\n  recorder: no.yaml", 5, "[0].recorder", "no such file: ", id="a recorder that is missing"),
        pytest.param("must: fire", "must: fire\n  form: pod", 5, "[0].form", 'allowed: "host", "cluster"', id="an unknown form"),
        pytest.param("must: fire", "must: fire\n  value: {}", 5, "[0].value", "did you mean 'values'?", id="an unknown key"),
        pytest.param("must: fire", "must: fire\n  at_hook: 1", 5, "[0].at_hook", "needed: true or false", id="at_hook"),
        pytest.param(
            "must: fire", "must: fire\n  executables: {sh: dash}", 5, "[0].executables.sh", "an absolute path", id="a relative executable"
        ),
    ],
)
def test_a_cases_file_that_is_not_sound_is_refused(old: str, new: str, line: int, path: str, message: str, tree: PolicyTree) -> None:
    assert CASES.count(old) == 1
    target = tree.add(cases=CASES.replace(old, new))
    policy = tree.policy()
    (problem,) = refused(lambda: policy.cases)
    assert (problem.file, problem.line, problem.path) == (str(target / "cases" / "cases.yml"), line, path)
    assert message in problem.message


def test_an_unknown_origin_is_refused(tree: PolicyTree) -> None:
    tree.add(cases=CASES.replace("written", "guessed"))
    policy = tree.policy()
    assert 'allowed: "recorded", "written"' in messages(refused(lambda: policy.cases))


@pytest.mark.parametrize("text", ["", "[]\n", "name: x\n"], ids=["nothing", "no case", "a mapping"])
def test_a_cases_file_must_list_cases(text: str, tree: PolicyTree) -> None:
    tree.add(cases=text)
    policy = tree.policy()
    refused(lambda: policy.cases)


# --- digest ---------------------------------------------------------------------------------------------------------


def test_the_digest_does_not_depend_on_where_the_policy_lies(mine: PolicyTree, tree: PolicyTree) -> None:
    mine.add()
    tree.add()
    assert mine.policy().digest == tree.policy().digest


@pytest.mark.parametrize("file", ["meta.yml", "policy.yaml.j2", "cases/cases.yml", "cases/watched.jsonl", "cases/new.jsonl", "notes.txt"])
def test_the_digest_changes_with_any_file_of_the_policy(file: str, tree: PolicyTree) -> None:
    target = tree.add()
    before = tree.policy().digest
    with (target / file).open("a", encoding="utf-8") as stream:
        stream.write("# more\n")
    assert tree.policy().digest != before


def test_the_digest_changes_when_a_file_is_renamed(tree: PolicyTree) -> None:
    target = tree.add()
    before = tree.policy().digest
    (target / "cases" / "other.jsonl").rename(target / "cases" / "renamed.jsonl")
    assert tree.policy().digest != before


def test_the_digest_changes_with_the_macros(tree: PolicyTree) -> None:
    tree.add(template=TEMPLATE)
    before = tree.policy().digest
    tree.add_macros("scope.j2", "{# changed #}")
    assert tree.policy().digest != before


def test_actions_stand_only_where_a_case_must_fire(tree: PolicyTree) -> None:
    tree.add(cases=CASES.replace("must: stay-quiet", "must: stay-quiet\n  actions: [Post]"))
    (problem,) = refused(lambda: tree.policy().cases)
    assert (problem.line, problem.path) == (9, "[1].actions")
    assert "only where the case must fire" in problem.message
