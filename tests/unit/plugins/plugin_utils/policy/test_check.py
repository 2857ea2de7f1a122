# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The proof of a policy: its shape, its lints, and a replay of its cases."""

from __future__ import annotations

import pytest

from ansible_collections.apiary.tetragon.plugins.plugin_utils.environment import DEFAULT_PROTECTED
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.check import CaseResult, check, run_cases
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.kernel import Kernel, target
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.load import Library
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.render import render
from ansible_collections.apiary.tetragon.tests.unit.plugins.plugin_utils.samples import (
    CASES,
    EVENTS,
    META,
    PROTECTED,
    REFERENCES,
    TEMPLATE,
    PolicyTree,
    jsonl,
    messages,
    opened,
    refused,
)

RECORDER = TEMPLATE.partition("{% if")[0] + "  kprobes:" + TEMPLATE.partition("  kprobes:")[2].partition("      selectors:")[0]


# What the lints say of a kill at security_file_open that goes by the file's path, beside the protected executables.
OF_A_KILL = ["kill-after-effect", "rename-or-link", "bind-mount"]


def results(tree: PolicyTree) -> list[CaseResult]:
    """How the cases of ``files/watch`` go."""
    return run_cases(tree.policy(), PROTECTED)


# --- the library ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", REFERENCES)
def test_the_cases_of_a_library_policy_pass(reference: str, library: Library) -> None:
    outcome = run_cases(library.get(reference), DEFAULT_PROTECTED)
    assert [one.failures for one in outcome] == [()] * len(outcome)
    assert [one.undecided for one in outcome] == [0] * len(outcome)


@pytest.mark.parametrize("reference", REFERENCES)
def test_a_library_policy_has_recorded_cases_both_ways(reference: str, library: Library) -> None:
    recorded = {case.must_fire for case in library.get(reference).cases if case.origin == "recorded"}
    assert recorded == {True, False}


# --- shape and lints ------------------------------------------------------------------------------------------------


def test_a_sound_policy_has_traits_and_no_findings(tree: PolicyTree) -> None:
    tree.add()
    derived, findings = check(render(tree.policy(), {}, "host", PROTECTED), "monitor", (1, 7, 0), PROTECTED)
    assert derived.hooks == ("kprobes:security_file_open",)
    assert findings == []


def test_a_policy_of_another_shape_is_refused_without_a_line(tree: PolicyTree) -> None:
    target = tree.add(template=TEMPLATE.replace("syscall: false", "syscal: false"))
    (problem,) = refused(check, render(tree.policy(), {}, "host", PROTECTED), "monitor", (1, 7, 0), PROTECTED)
    assert (problem.file, problem.line) == (f"{target / 'policy.yaml.j2'} (rendered)", 0)
    assert problem.path == "spec.kprobes[0].syscal"
    assert "did you mean 'syscall'?" in problem.message


def test_the_shape_is_that_of_the_agents_version(tree: PolicyTree) -> None:
    tree.add(template=TEMPLATE.replace("{index: 0, type: file}", "{index: 0, type: file, btfTypeModule: x}"))
    rendered = render(tree.policy(), {}, "host", PROTECTED)
    check(rendered, "monitor", (1, 8, 0), PROTECTED)
    assert "btfTypeModule" in messages(refused(check, rendered, "monitor", (1, 7, 0), PROTECTED))


def test_findings_depend_on_mode_and_protected(tree: PolicyTree) -> None:
    tree.add(template=TEMPLATE.replace("action: Post", "action: Sigkill"))
    rendered = render(tree.policy(), {}, "host", PROTECTED)
    assert [one.rule for one in check(rendered, "enforce", (1, 7, 0), PROTECTED)[1]] == ["kills-protected", *OF_A_KILL]
    assert [one.rule for one in check(rendered, "enforce", (1, 7, 0), ())[1]] == OF_A_KILL


def test_findings_depend_on_the_kernel(tree: PolicyTree) -> None:
    tree.add(template=TEMPLATE.replace("action: Post", "action: Override, argError: -1"))
    rendered = render(tree.policy(), {}, "host", PROTECTED)
    assert "override-kprobe-multi" in {one.rule for one in check(rendered, "monitor", (1, 7, 0), PROTECTED)[1]}
    without = Kernel(probes={"kprobe_multi": False})
    assert "override-kprobe-multi" not in {one.rule for one in check(rendered, "monitor", (1, 7, 0), PROTECTED, without)[1]}


# --- what a policy allows -------------------------------------------------------------------------------------------


def allowing(*rules: str) -> str:
    """A meta.yml that allows these rules."""
    entries = "".join(f"    - {{rule: {rule}, reason: Because of the test.}}\n" for rule in rules)
    return META.replace("inputs:\n", f"lint:\n  allow:\n{entries}inputs:\n", 1)


def test_what_is_allowed_is_shown_with_its_reason_and_is_no_error(tree: PolicyTree) -> None:
    tree.add(meta=allowing("kills-protected", *OF_A_KILL), template=TEMPLATE.replace("action: Post", "action: Sigkill"))
    found = check(render(tree.policy(), {}, "host", PROTECTED), "enforce", (1, 7, 0), PROTECTED)[1]
    assert {one.severity for one in found} == {"allowed"}
    assert all(one.message.endswith("; allowed: Because of the test.") for one in found)


def test_what_is_not_allowed_stays(tree: PolicyTree) -> None:
    tree.add(meta=allowing(*OF_A_KILL), template=TEMPLATE.replace("action: Post", "action: Sigkill"))
    found = check(render(tree.policy(), {}, "host", PROTECTED), "enforce", (1, 7, 0), PROTECTED)[1]
    assert [one.rule for one in found if one.severity == "error"] == ["kills-protected"]


def test_what_is_allowed_in_vain_is_refused(tree: PolicyTree) -> None:
    target = tree.add(meta=allowing("kills-protected"))
    (problem,) = refused(check, render(tree.policy(), {}, "host", PROTECTED), "monitor", (1, 7, 0), PROTECTED)
    assert (problem.file, problem.path) == (str(target / "meta.yml"), "lint.allow")
    assert "allows kills-protected, which the policy never breaks" in problem.message


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("action: Post", "action: {% if form == 'cluster' %}Sigkill{% else %}Post{% endif %}", id="another form"),
        pytest.param("action: Post", "action: {% if paths | length == 2 %}Sigkill{% else %}Post{% endif %}", id="the values of a case"),
    ],
)
def test_what_is_broken_elsewhere_may_be_allowed_here(old: str, new: str, tree: PolicyTree) -> None:
    cases = CASES.replace("must: fire", "must: fire\n  values: {paths: [/etc/watched, /etc/more]}")
    tree.add(meta=allowing("kill-after-effect"), template=TEMPLATE.replace(old, new), cases=cases)
    assert check(render(tree.policy(), {"paths": ["/etc/watched"]}, "host", PROTECTED), "monitor", (1, 7, 0), PROTECTED)[1] == []


def test_what_another_version_breaks_may_be_allowed_on_this_one(tree: PolicyTree) -> None:
    template = TEMPLATE.replace("args:", "ignore: {callNotFound: true}\n      args:")
    tree.add(meta=allowing("call-not-found"), template=template)
    assert check(render(tree.policy(), {}, "host", PROTECTED), "monitor", (1, 8, 0), PROTECTED)[1] == []


# --- cases ----------------------------------------------------------------------------------------------------------


def test_cases_that_hold_pass(tree: PolicyTree) -> None:
    tree.add()
    assert results(tree) == [
        CaseResult("a watched file", "written", True, 1, 0, 0, ()),
        CaseResult("another file", "written", False, 0, 1, 0, ()),
    ]
    assert [one.passed for one in results(tree)] == [True, True]
    assert [one.must for one in results(tree)] == ["fire", "stay quiet"]


def test_a_policy_without_cases_is_refused(tree: PolicyTree) -> None:
    target = tree.add(cases=None)
    (problem,) = refused(run_cases, tree.policy(), PROTECTED)
    assert problem.file == str(target)
    assert "has no cases: add cases/cases.yml" in problem.message


@pytest.mark.parametrize("must", ["fire", "stay-quiet"])
def test_cases_of_one_way_alone_are_refused(must: str, tree: PolicyTree) -> None:
    target = tree.add(cases=CASES.replace("must: stay-quiet", f"must: {must}").replace("must: fire", f"must: {must}"))
    (problem,) = refused(run_cases, tree.policy(), PROTECTED)
    assert problem.file == str(target / "cases" / "cases.yml")
    assert "at least one case that must fire and one that must stay quiet" in problem.message


def test_an_event_that_should_have_fired_is_named_with_file_and_line(tree: PolicyTree) -> None:
    events = {**EVENTS, "watched.jsonl": jsonl(opened("/etc/watched"), opened("/etc/shadow"))}
    target = tree.add(events=events)
    result = results(tree)[0]
    assert not result.passed
    assert (result.fired, result.quiet) == (1, 1)
    assert result.failures == (f"{target / 'cases' / 'watched.jsonl'}:2: kprobe security_file_open by /usr/bin/cat: stays quiet",)


def test_an_event_that_should_have_stayed_quiet_is_named_with_file_and_line(tree: PolicyTree) -> None:
    target = tree.add(events={**EVENTS, "other.jsonl": "\n\n" + jsonl(opened("/etc/watched"))})
    assert results(tree)[1].failures == (f"{target / 'cases' / 'other.jsonl'}:3: kprobe security_file_open by /usr/bin/cat: fires",)


def test_an_event_that_cannot_be_decided_fails_with_the_reason(tree: PolicyTree) -> None:
    binaries = "          matchBinaries:\n            - {operator: In, values: [/usr/bin/cat]}\n          matchActions:\n"
    target = tree.add(template=TEMPLATE.replace("          matchActions:\n", binaries))
    result = results(tree)[0]
    assert (result.fired, result.quiet, result.undecided) == (0, 0, 1)
    assert result.failures == (
        f"{target / 'cases' / 'watched.jsonl'}:1: kprobe security_file_open by /usr/bin/cat: "
        "cannot be decided: the recording lacks the executed file of the process",
    )


def test_an_undecidable_event_fails_a_case_that_must_stay_quiet_too(tree: PolicyTree) -> None:
    capabilities = "          matchCapabilities:\n            - {operator: In, values: [CAP_SYS_ADMIN]}\n          matchActions:\n"
    tree.add(
        template=TEMPLATE.replace("          matchActions:\n", capabilities), events={**EVENTS, "other.jsonl": EVENTS["watched.jsonl"]}
    )
    assert [one.undecided for one in results(tree)] == [1, 1]
    assert not any(one.passed for one in results(tree))


def test_a_case_is_judged_for_the_agent_and_kernels_of_the_environment(tree: PolicyTree) -> None:
    assert "operator: Equal" in TEMPLATE
    tree.add(template=TEMPLATE.replace("operator: Equal", "operator: SubString"))
    judged_for = target((1, 8, 0), Kernel((6, 17)))
    assert [one.passed for one in run_cases(tree.policy(), PROTECTED)] == [False, True]
    assert [one.passed for one in run_cases(tree.policy(), PROTECTED, judged_for)] == [True, True]


def test_executables_make_a_case_decidable(tree: PolicyTree) -> None:
    binaries = "          matchBinaries:\n            - {operator: In, values: [/bin/busybox]}\n          matchActions:\n"
    tree.add(
        template=TEMPLATE.replace("          matchActions:\n", binaries),
        cases=CASES.replace("  must: fire\n", "  must: fire\n  executables: {/usr/bin/cat: /bin/busybox}\n"),
    )
    assert results(tree)[0].passed


def test_only_three_failures_are_told_and_how_many_more_there_are(tree: PolicyTree) -> None:
    tree.add(events={**EVENTS, "watched.jsonl": jsonl(*[opened("/etc/shadow")] * 5)})
    failures = results(tree)[0].failures
    assert [text.partition("watched.jsonl:")[2].partition(":")[0] for text in failures[:3]] == ["1", "2", "3"]
    assert failures[3:] == ("and 2 more",)


@pytest.mark.parametrize(
    "text",
    ["", "\n\n", jsonl({"process_exec": {"process": {}}, "time": "x"}, {"process_exit": {}})],
    ids=["nothing", "blank lines", "exec and exit"],
)
def test_events_of_no_hook_prove_nothing(text: str, tree: PolicyTree) -> None:
    target = tree.add(events={**EVENTS, "other.jsonl": text})
    assert results(tree)[1].failures == (f"{target / 'cases' / 'other.jsonl'}: holds no event of a hook",)


def test_an_event_at_another_hook_stays_quiet(tree: PolicyTree) -> None:
    tree.add(events={**EVENTS, "other.jsonl": jsonl(opened("/etc/watched", "security_file_permission"))})
    assert results(tree)[1].passed


def test_a_case_runs_with_its_own_values(tree: PolicyTree) -> None:
    tree.add(cases=CASES.replace("  must: fire\n", "  must: fire\n  values: {paths: [/etc/shadow]}\n"))
    assert [one.passed for one in results(tree)] == [False, True]


def test_a_case_runs_in_its_own_form(tree: PolicyTree) -> None:
    tree.add(cases=CASES.replace("  must: fire\n", "  must: fire\n  form: cluster\n"))
    assert [one.quiet for one in results(tree)] == [1, 1]


def test_values_that_do_not_fit_are_refused_with_the_name_of_the_case(tree: PolicyTree) -> None:
    target = tree.add(cases=CASES.replace("  must: fire\n", "  must: fire\n  values: {path: [/etc/shadow]}\n"))
    (problem,) = refused(run_cases, tree.policy(), PROTECTED)
    assert problem.file == str(target / "cases" / "cases.yml")
    assert problem.path == "a watched file.path"
    assert "did you mean 'paths'?" in problem.message


def test_events_are_read_as_their_recorder_declared_them(tree: PolicyTree) -> None:
    two = opened("/etc/watched")
    two["process_kprobe"]["args"] = [{"int_arg": 7}, *two["process_kprobe"]["args"]]
    recorder = RECORDER.replace("        - {index: 0, type: file}\n", "        - {index: 1, type: int}\n        - {index: 0, type: file}\n")
    tree.add(
        cases=CASES.replace("  must: fire\n", "  must: fire\n  recorder: recorder.yaml\n"),
        events={**EVENTS, "watched.jsonl": jsonl(two), "recorder.yaml": recorder},
    )
    assert results(tree)[0].passed


def test_events_that_do_not_fit_what_the_recorder_declared_cannot_be_decided(tree: PolicyTree) -> None:
    recorder = RECORDER.replace("        - {index: 0, type: file}\n", "        - {index: 1, type: int}\n        - {index: 0, type: file}\n")
    tree.add(
        cases=CASES.replace("  must: fire\n", "  must: fire\n  recorder: recorder.yaml\n"), events={**EVENTS, "recorder.yaml": recorder}
    )
    assert results(tree)[0].undecided == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [("not JSON\n", "is not JSON"), ("[1]\n", "is not a JSON object"), ("7\n", "is not a JSON object")],
    ids=["words", "a list", "a number"],
)
def test_events_that_are_no_json_objects_are_refused_at_their_line(text: str, message: str, tree: PolicyTree) -> None:
    target = tree.add(events={**EVENTS, "other.jsonl": EVENTS["other.jsonl"] + text})
    (problem,) = refused(run_cases, tree.policy(), PROTECTED)
    assert (problem.file, problem.line) == (str(target / "cases" / "other.jsonl"), 2)
    assert message in problem.message


def test_a_recorder_without_hooks_leaves_the_functions_prototype(tree: PolicyTree) -> None:
    tree.add(
        cases=CASES.replace("  must: fire\n", "  must: fire\n  recorder: recorder.yaml\n"), events={**EVENTS, "recorder.yaml": "spec: {}\n"}
    )
    assert results(tree)[0].passed


@pytest.mark.parametrize("text", ["", "- a\n", "kind: Pod\n", "spec: []\n"], ids=["nothing", "a list", "no spec", "a spec that is a list"])
def test_a_recorder_that_is_no_policy_is_refused(text: str, tree: PolicyTree) -> None:
    tree.add(cases=CASES.replace("  must: fire\n", "  must: fire\n  recorder: recorder.yaml\n"), events={**EVENTS, "recorder.yaml": text})
    assert "recorder.yaml" in messages(refused(run_cases, tree.policy(), PROTECTED))
