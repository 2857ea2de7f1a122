# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Bugs planted into policies: which there are, which the cases catch, and which make no difference."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.apiary.tetragon.plugins.plugin_utils.environment import DEFAULT_PROTECTED
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.check import prepare
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.load import Library
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.mutation import NEEDED_SCORE, mutants, mutate, normal, plant
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.compile import CompiledPolicy
from ansible_collections.apiary.tetragon.tests.unit.plugins.plugin_utils.samples import (
    PROTECTED,
    REFERENCES,
    TEMPLATE,
    PolicyTree,
    messages,
    refused,
)


def document(*selectors: dict[str, Any], section: str = "kprobes", **hook: Any) -> dict[str, Any]:
    """A policy with one hook and these selectors."""
    name = {"kprobes": "call", "lsmhooks": "hook"}[section]
    args = [{"index": 0, "type": "file"}, {"index": 1, "type": "int"}]
    return {
        "metadata": {"name": "p"},
        "spec": {section: [{name: "security_file_permission", "args": args, "selectors": list(selectors), **hook}]},
    }


def match(operator: str, *values: str, index: int = 0, action: str = "") -> dict[str, Any]:
    """A selector with one filter."""
    actions = {"matchActions": [{"action": action}]} if action else {}
    return {"matchArgs": [{"index": index, "operator": operator, "values": list(values)}], **actions}


def in_namespace(value: str) -> dict[str, Any]:
    """A selector for processes outside a pid namespace."""
    return {"matchNamespaces": [{"namespace": "Pid", "operator": "NotIn", "values": [value]}]}


def changes(policy: dict[str, Any], kind: str) -> list[str]:
    return [mutant.change for mutant, _edit in mutants(policy) if mutant.kind == kind]


# --- the library ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", REFERENCES)
def test_the_cases_of_a_library_policy_kill_its_mutants(reference: str, library: Library) -> None:
    outcome = mutate(library.get(reference), DEFAULT_PROTECTED)
    assert len(outcome.of("killed")) >= 10
    assert outcome.score >= NEEDED_SCORE, "\n".join(str(fate.mutant) for fate in outcome.of("survived"))


@pytest.mark.parametrize("reference", REFERENCES)
def test_an_equivalent_mutant_never_judges_an_event_differently(reference: str, library: Library) -> None:
    policy = library.get(reference)
    for case in (prepare(policy, one, DEFAULT_PROTECTED) for one in policy.cases):
        compiled = CompiledPolicy(case.document)
        for mutant, edit in mutants(case.document):
            changed = plant(case.document, edit)
            if normal(changed) == normal(case.document):
                other = CompiledPolicy(changed)
                for invocation in case.invocations:
                    before = [(one.fires.value, [outcome.actions for outcome in one.outcomes]) for one in compiled.evaluate(invocation)]
                    after = [(one.fires.value, [outcome.actions for outcome in one.outcomes]) for one in other.evaluate(invocation)]
                    assert before == after, str(mutant)


# --- the bugs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "kind", "expected"),
    [
        (document(match("Equal", "/a/b")), "negated", ["Equal -> NotEqual"]),
        (document(match("NotPrefix", "/a/")), "negation-lost", ["NotPrefix -> Prefix"]),
        (document(match("Equal", "/a/b")), "operator-swapped", ["Equal -> Prefix"]),
        (document(match("Equal", "5", index=1)), "operator-swapped", ["Equal -> GT"]),
        (document(match("Equal", "/a/b", "/c")), "path-truncated", ["'/a/b' -> '/a/'"]),
        (document(match("Postfix", "/b.pem")), "path-truncated", ["'/b.pem' -> 'b.pem'"]),
        (document(match("Equal", "5", index=1)), "number-off-by-one", ["5 -> 6"]),
        (document(match("Mask", "2", index=1)), "bit-off-by-one", ["2 -> 4"]),
        (document(match("DPort", "22", "80:90"), args=[{"index": 0, "type": "sock"}]), "port-off-by-one", ["22 -> 23"]),
        (document(match("DAddr", "10.0.0.0/8"), args=[{"index": 0, "type": "sock"}]), "range-widened", ["10.0.0.0/8 -> 10.0.0.0/7"]),
        (document(match("SAddr", "::1"), args=[{"index": 0, "type": "sock"}]), "range-widened", ["::1 -> ::/127"]),
        (document(match("DAddr", "10.0.0.0/8"), args=[{"index": 0, "type": "sock"}]), "range-narrowed", ["10.0.0.0/8 -> 10.0.0.0/9"]),
        (document(match("Equal", "/a")), "wrong-index", ["index 0 -> 1"]),
        (document(match("Equal", "/a"), args=[{"index": 0, "type": "file"}]), "wrong-index", ["index 0 -> 1"]),
        (document({"matchArgs": [{"args": [0], "operator": "Equal", "values": ["/a"]}]}), "wrong-index", ["args 0 -> 1"]),
        (document(match("Equal", "/a", "/b", "/c")), "value-lost", ["the first value, '/a', left out", "the last value, '/c', left out"]),
        (document(match("Equal", "/a")), "value-lost", []),
        (document(match("Equal", "/a")), "wrong-hook", ["security_file_permission -> security_file_open"]),
        (document(match("Equal", "/a")), "hook-lost", ["the hook left out"]),
        (document(match("Equal", "/a"), match("Equal", "/b")), "selector-lost", ["the selector left out"] * 2),
        (document(match("Equal", "/a"), match("Equal", "/b")), "selectors-swapped", ["evaluated after the next one"]),
        (document(match("Equal", "/a", action="Override")), "action-lost", ["Override left out"]),
        (document(match("Equal", "/a", action="Override")), "action-softened", ["Override -> Post"]),
        (document(match("Equal", "/a", action="Post")), "action-softened", []),
        (document(in_namespace("host_ns")), "namespace-missing", ["the NotIn filter left out"]),
        (document(in_namespace("host_ns")), "wrong-namespace", ["Pid -> Mnt"]),
        (document({"matchBinaries": [{"operator": "NotIn", "values": ["/usr/bin/a"]}]}), "filter-lost", ["the NotIn filter left out"]),
    ],
)  # fmt: skip
def test_known_bugs_are_planted(policy: dict[str, Any], kind: str, expected: list[str]) -> None:
    assert changes(policy, kind) == expected


def test_a_workload_selector_can_get_lost() -> None:
    policy = document(match("Equal", "/a"))
    policy["spec"]["podSelector"] = {"matchLabels": {"app": "cart"}}
    assert changes(policy, "workload-lost") == ["podSelector left out", "label 'app' left out"]


def test_a_mutant_leaves_the_policy_it_came_from_alone() -> None:
    policy = document(match("Equal", "/a", action="Override"))
    before = repr(policy)
    planted = {repr(plant(policy, edit)) for _mutant, edit in mutants(policy)}
    assert repr(policy) == before
    assert before not in planted


# --- what makes no difference ---------------------------------------------------------------------------------------

OVERRIDE, POST = {"action": "Override", "argError": -1}, {"action": "Post"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (document(match("Equal", "/a", "/b")), document(match("Equal", "/b", "/a", "/a"))),
        (document(match("Prefix", "/a/", "/b/")), document(match("Prefix", "/b/", "/a/x", "/a/"))),
        (document(match("Postfix", ".pem")), document(match("Postfix", "x.pem", ".pem"))),
        (document(match("Mask", "2", index=1)), document(match("Mask", "0x2", index=1))),
        (document(match("Equal", "/a", action="Post")), document(match("Equal", "/a"))),
        (document(match("Equal", "/a"), match("Equal", "/b")), document(match("Equal", "/b"), match("Equal", "/a"))),
        (document({}, match("Equal", "/b")), document({})),
        (document({**match("Equal", "/a"), "matchBinaries": [{"operator": "NotIn", "values": []}]}), document(match("Equal", "/a"))),
        (document(section="lsmhooks"), {"metadata": {"name": "p"}, "spec": {}}),
    ],
)
def test_policies_that_do_the_same_have_one_form(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert normal(one) == normal(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (document(match("Equal", "/a")), document(match("NotEqual", "/a"))),
        (document(match("Equal", "/a")), document(match("Equal", "/a", index=1))),
        (document(match("Equal", "/a", "/a/b")), document(match("Equal", "/a"))),
        (document(match("Equal", "/a", action="Override")), document(match("Equal", "/a"))),
        (document(match("Equal", "/a", action="NoPost")), document(match("Equal", "/a"))),
        (document(match("Equal", "/a", action="NoPost"), {}), document({}, match("Equal", "/a", action="NoPost"))),
        (document(), document({})),  # without selectors and with an empty one: an LSM hook tells them apart
        (document(section="lsmhooks"), document({}, section="lsmhooks")),
        (document({"matchActions": [OVERRIDE, POST]}), document({"matchActions": [OVERRIDE]})),
        (document({"matchActions": [{"action": "Post", "rateLimit": "1m"}]}), document({"matchActions": [POST]})),
    ],
)
def test_policies_that_differ_have_different_forms(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert normal(one) != normal(other)


@pytest.mark.parametrize(("families", "same"), [(["AF_INET", "AF_INET6"], True), (["AF_INET"], False)])
def test_an_address_filter_implies_its_families(families: list[str], same: bool) -> None:
    args = [{"index": 1, "type": "sockaddr"}]
    address = {"index": 1, "operator": "NotSAddr", "values": ["10.0.0.0/8"]}
    family = {"index": 1, "operator": "Family", "values": families}
    assert (normal(document({"matchArgs": [family, address]}, args=args)) == normal(document({"matchArgs": [address]}, args=args))) is same


# --- fates ----------------------------------------------------------------------------------------------------------


def test_a_mutant_that_no_case_notices_survives(tree: PolicyTree) -> None:
    tree.add()
    outcome = mutate(tree.policy(), PROTECTED)
    fates = {fate.mutant.kind: fate for fate in outcome.fates}
    assert (fates["negated"].outcome, fates["operator-swapped"].outcome) == ("killed", "survived")
    assert fates["action-lost"].outcome == "equivalent"
    assert "a watched file: " in fates["negated"].by
    assert "watched.jsonl:1: kprobe security_file_open by /usr/bin/cat: stays quiet" in fates["negated"].by
    judged = len(outcome.of("killed")) + len(outcome.of("survived"))
    assert outcome.score == len(outcome.of("killed")) / judged < 1


def test_actions_are_part_of_a_case(tree: PolicyTree) -> None:
    template = TEMPLATE.replace("{action: Post}", "{action: Override, argError: -1}")
    tree.add(template=template)
    assert {fate.outcome for fate in mutate(tree.policy(), PROTECTED).fates if fate.mutant.kind == "action-softened"} == {"survived"}
    cases = (tree.directory / "files/watch/cases/cases.yml").read_text(encoding="utf-8")
    tree.add(template=template, cases=cases.replace("  must: fire\n", "  must: fire\n  actions: [Override]\n"))
    (fate,) = (fate for fate in mutate(tree.policy(), PROTECTED).fates if fate.mutant.kind == "action-softened")
    assert fate.outcome == "killed"
    assert fate.by.endswith("fires with Post; needed: Override")


def test_a_policy_whose_cases_fail_is_not_mutated(tree: PolicyTree) -> None:
    tree.add(template=TEMPLATE.replace("operator: Equal", "operator: NotEqual"))
    assert "case 'a watched file' fails already" in messages(refused(mutate, tree.policy(), PROTECTED))
