# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Policies against single calls, after the rules of the real agent. Rule ids such as R1.9 name what a table checks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay import truth
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.compile import (
    CompiledPolicy,
    Outcome,
    Verdict,
    addressed,
    addressed_data,
    identities,
    recorder,
)
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.events import Context, decode
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.records import (
    Argument,
    Declared,
    FilePath,
    Hook,
    Invocation,
    Pod,
    Process,
    Value,
    declared,
)
from ansible_collections.apiary.tetragon.tests.unit.plugins.plugin_utils.samples import show

YES, NO, UNKNOWN = True, False, None
Spec = dict[str, Any]


# --- policies and calls ---------------------------------------------------------------------------------------------

# A function with an int, and the selectors a test is about. ``is_one`` is true, ``is_two`` false, for a call with 1.
IS_ONE: Spec = {"matchArgs": [{"index": 0, "operator": "Equal", "values": ["1"]}]}
IS_TWO: Spec = {"matchArgs": [{"index": 0, "operator": "Equal", "values": ["2"]}]}
# Undecidable for every recording: it holds no capabilities at the moment of the call.
MAYBE: Spec = {"matchCapabilities": [{"operator": "In", "values": ["CAP_SYS_ADMIN"]}]}
MAY_ADMIN = "the recording holds the capabilities of the last exec, not those at the hook"


def acting(selector: Mapping[str, Any], *actions: str, key: str = "matchActions") -> Spec:
    """A selector with actions."""
    return {**selector, key: [{"action": action} for action in actions]}


def policy(
    *selectors: Mapping[str, Any], section: str = "kprobes", args: Sequence[Spec] = ({"index": 0, "type": "int"},), **more: Any
) -> Spec:
    """A policy of one hook ``f``; further keys go into the hook, those of ``spec`` into the spec."""
    spec = more.pop("spec", {})
    namespace = more.pop("namespace", None)
    identity = {"lsmhooks": {"hook": "f"}, "tracepoints": {"subsystem": "a", "event": "f"}}.get(section, {"call": "f"})
    hook = {**identity, "args": list(args), "selectors": list(selectors), **more}
    return {"metadata": {"name": "p", **({"namespace": namespace} if namespace else {})}, "spec": {section: [hook], **spec}}


def call(*values: Value, process: Process | None = None, hook: Hook | None = None, types: Sequence[str] = (), **more: Any) -> Invocation:
    """A recorded call with these arguments, each an int unless ``types`` says otherwise."""
    args = tuple(Argument(Declared(index, types[index] if types else "int"), value) for index, value in enumerate(values))
    return Invocation(hook or Hook("kprobe", "f"), process or Process("/usr/bin/cat"), args, **more)


def verdict(document: Mapping[str, Any], invocation: Invocation) -> Verdict:
    """The only verdict of a policy on a call."""
    (only,) = CompiledPolicy(document).evaluate(invocation)
    return only


def fires(document: Mapping[str, Any], invocation: Invocation) -> bool | None:
    """Whether a policy posts an event for a call."""
    return verdict(document, invocation).fires.value


def chosen(document: Mapping[str, Any], invocation: Invocation) -> int | None:
    """The selector that wins, where only one can."""
    (outcome,) = verdict(document, invocation).outcomes
    return outcome.selector


# --- which selector wins --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selectors", "winner"),
    [
        pytest.param([IS_ONE], 0, id="the only one"),
        pytest.param([IS_TWO], None, id="none"),
        pytest.param([IS_TWO, IS_ONE], 1, id="the second"),
        pytest.param([IS_ONE, IS_ONE], 0, id="the first of two"),
        pytest.param([{}, IS_ONE], 0, id="an empty one before another"),
        pytest.param([IS_TWO, {}], 1, id="an empty one after another"),
        pytest.param([IS_TWO, IS_TWO, IS_TWO, IS_TWO, IS_ONE], 4, id="the fifth"),
    ],
)
def test_the_first_selector_that_matches_wins(selectors: list[Spec], winner: int | None) -> None:  # R1.3
    assert chosen(policy(*selectors), call(1)) == winner
    assert fires(policy(*selectors), call(1)) is (winner is not None)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        pytest.param([("Equal", "1"), ("GT", "0")], YES, id="both true"),
        pytest.param([("Equal", "1"), ("GT", "1")], NO, id="the second false"),
        pytest.param([("Equal", "2"), ("GT", "0")], NO, id="the first false"),
    ],
)
def test_all_filters_of_a_selector_must_hold(filters: list[tuple[str, str]], expected: bool) -> None:  # R1.2
    entries = [{"index": 0, "operator": operator, "values": [value]} for operator, value in filters]
    assert fires(policy({"matchArgs": entries}), call(1)) is expected


@pytest.mark.parametrize(("first", "posts"), [("NoPost", NO), ("Post", YES)])
def test_the_winner_alone_decides_what_happens(first: str, posts: bool) -> None:  # R1.3, R3.4
    document = policy(acting(IS_ONE, first), acting({}, "Sigkill"))
    assert verdict(document, call(1)).outcomes == (Outcome(0, posts, False, (first,)),)


@pytest.mark.parametrize(
    ("actions", "posts", "enforces"),
    [
        pytest.param([], YES, NO, id="none"),
        pytest.param(["Post"], YES, NO, id="Post"),
        pytest.param(["NoPost"], NO, NO, id="NoPost"),
        pytest.param(["Sigkill"], YES, YES, id="Sigkill"),
        pytest.param(["Override"], YES, YES, id="Override"),
        pytest.param(["Signal"], YES, YES, id="Signal"),
        pytest.param(["NotifyEnforcer"], YES, YES, id="NotifyEnforcer"),
        pytest.param(["Set"], YES, YES, id="Set"),
        pytest.param(["TrackSock"], YES, NO, id="TrackSock"),
        pytest.param(["Sigkill", "Post"], YES, YES, id="Sigkill and Post"),
        pytest.param(["Sigkill", "NoPost", "Post"], NO, YES, id="NoPost among others"),
        pytest.param(["NoPost", "Override"], NO, YES, id="NoPost and Override"),
    ],
)
def test_every_action_but_nopost_posts(actions: list[str], posts: bool, enforces: bool) -> None:  # R1.8, R3.1
    one = verdict(policy(acting(IS_ONE, *actions)), call(1))
    assert (one.fires.value, one.enforces.value) == (posts, enforces)
    assert one.outcomes[0].actions == (tuple(actions) or ("Post",))


def test_a_rate_limit_is_marked_and_does_not_keep_a_policy_from_firing() -> None:  # R3.7
    document = policy({**IS_ONE, "matchActions": [{"action": "Post", "rateLimit": "1m"}]})
    assert verdict(document, call(1)).outcomes == (Outcome(0, True, True, ("Post",)),)
    assert fires(document, call(1)) is YES


@pytest.mark.parametrize("selectors", [{"selectors": []}, {"selectors": None}], ids=["empty", "nothing"])
@pytest.mark.parametrize(
    ("section", "hook", "expected"),
    [
        ("kprobes", Hook("kprobe", "f"), YES),
        ("fentries", Hook("kprobe", "f"), YES),
        ("tracepoints", Hook("tracepoint", "a/f"), YES),
        ("lsmhooks", Hook("lsm", "f"), NO),
    ],
    ids=show,
)
def test_without_selectors_all_hooks_post_but_those_of_lsm(section: str, hook: Hook, expected: bool, selectors: Spec) -> None:  # R1.5, R1.6
    one = verdict(policy(section=section, **selectors), call(1, hook=hook))
    assert one.fires.value is expected
    assert one.outcomes == (Outcome(None, expected, False, ("Post",) if expected else ()),)


@pytest.mark.parametrize("selector", [{}, {"matchActions": [{"action": "Post"}]}, {"matchArgs": []}], ids=["empty", "acting", "no filters"])
def test_an_empty_selector_makes_an_lsm_hook_post(selector: Spec) -> None:  # R1.7
    assert fires(policy(selector, section="lsmhooks"), call(1, hook=Hook("lsm", "f"))) is YES


def test_a_call_of_another_hook_has_no_verdict() -> None:
    compiled = CompiledPolicy(policy({}))
    assert compiled.evaluate(call(1, hook=Hook("kprobe", "g"))) == []
    assert compiled.evaluate(call(1, hook=Hook("lsm", "f"))) == []


def test_two_entries_of_one_hook_have_a_verdict_each() -> None:  # R1.15
    document = policy(IS_ONE)
    document["spec"]["kprobes"].append({"call": "f", "args": [{"index": 0, "type": "int"}], "selectors": [IS_TWO]})
    assert [one.fires.value for one in CompiledPolicy(document).evaluate(call(1))] == [YES, NO]


# --- what cannot be decided -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selectors", "posts", "enforces"),
    [
        pytest.param([MAYBE], UNKNOWN, NO, id="the only one"),
        pytest.param([MAYBE, {}], YES, NO, id="before one that posts as well"),
        pytest.param([MAYBE, IS_ONE], YES, NO, id="before one that matches"),
        pytest.param([MAYBE, IS_TWO], UNKNOWN, NO, id="before one that does not match"),
        pytest.param([IS_ONE, MAYBE], YES, NO, id="after one that matches"),
        pytest.param([IS_TWO, MAYBE], UNKNOWN, NO, id="after one that does not match"),
        pytest.param([MAYBE, MAYBE], UNKNOWN, NO, id="two of them"),
        pytest.param([acting(MAYBE, "NoPost"), IS_TWO], NO, NO, id="quiet, before one that does not match"),
        pytest.param([acting(MAYBE, "NoPost"), IS_ONE], UNKNOWN, NO, id="quiet, before one that posts"),
        pytest.param([acting(MAYBE, "NoPost"), acting({}, "NoPost")], NO, NO, id="quiet, before one that is quiet too"),
        pytest.param([acting(MAYBE, "Sigkill"), {}], YES, UNKNOWN, id="killing, before one that posts"),
        pytest.param([acting(MAYBE, "Sigkill"), acting({}, "Override")], YES, YES, id="killing, before one that overrides"),
        pytest.param([acting(MAYBE, "Sigkill", "NoPost"), acting({}, "Override")], UNKNOWN, YES, id="killing quietly"),
    ],
)
def test_a_call_is_decided_where_every_possible_outcome_agrees(selectors: list[Spec], posts: bool | None, enforces: bool | None) -> None:
    one = verdict(policy(*selectors), call(1))  # R1.9
    assert (one.fires.value, one.enforces.value) == (posts, enforces)


def test_every_outcome_that_is_possible_is_kept_once() -> None:
    outcomes = verdict(policy(MAYBE, acting(MAYBE, "Sigkill"), IS_TWO), call(1)).outcomes
    assert [outcome.selector for outcome in outcomes] == [0, 1, None]


def test_what_is_undecided_says_why() -> None:
    assert verdict(policy(MAYBE), call(1)).fires.reasons == {MAY_ADMIN}


def test_all_reasons_are_told() -> None:
    binaries = {"matchBinaries": [{"operator": "In", "values": ["/x"]}]}
    assert len(verdict(policy(MAYBE, binaries), call(1)).fires.reasons) == 2


def test_a_false_filter_decides_beside_an_unknown_one() -> None:
    assert fires(policy({**MAYBE, **IS_TWO}), call(1)) is NO


def test_a_true_filter_does_not_decide_beside_an_unknown_one() -> None:
    assert fires(policy({**MAYBE, **IS_ONE}), call(1)) is UNKNOWN


# --- return probes --------------------------------------------------------------------------------------------------

FAILED: Spec = {"matchReturnArgs": [{"index": 0, "operator": "LT", "values": ["0"]}]}


def returning(*selectors: Spec) -> Spec:
    """A policy of one function that returns an int."""
    return policy(*selectors, **{"return": True, "returnArg": {"index": 0, "type": "int"}})


@pytest.mark.parametrize(
    ("selector", "returned", "posts", "actions"),
    [
        pytest.param(IS_ONE, 0, YES, ("Post", "Post"), id="no word about the return"),
        pytest.param({**IS_ONE, **FAILED}, -1, YES, ("Post", "Post"), id="the return matches"),
        pytest.param({**IS_ONE, **FAILED}, 0, NO, ("Post",), id="the return does not match"),
        pytest.param({**IS_ONE, **FAILED}, None, UNKNOWN, None, id="the return was not recorded"),
        pytest.param(acting(IS_ONE, "NoPost"), 0, NO, ("NoPost", "Post"), id="quiet on entry"),
        pytest.param(acting(IS_ONE, "NoPost", key="matchReturnActions"), 0, NO, ("Post", "NoPost"), id="quiet on return"),
        pytest.param({**acting(IS_ONE, "Sigkill"), **FAILED}, 0, NO, ("Sigkill",), id="acting on entry though the return does not match"),
        pytest.param(
            acting({**IS_ONE, **FAILED}, "Sigkill", key="matchReturnActions"), -1, YES, ("Post", "Sigkill"), id="acting on return"
        ),
    ],
)
def test_an_event_needs_both_halves(
    selector: Spec, returned: int | None, posts: bool | None, actions: tuple[str, ...] | None
) -> None:  # R1.10
    one = verdict(returning(selector), call(1, returned=returned))
    assert one.fires.value is posts
    if actions is not None:
        assert [outcome.actions for outcome in one.outcomes] == [actions]


@pytest.mark.parametrize(
    ("entry", "back", "limited"),
    [("", "", NO), ("1m", "", YES), ("", "1m", YES), ("1m", "1m", YES)],
    ids=["neither", "on entry", "on return", "both"],
)
def test_a_rate_limit_of_either_half_is_marked(entry: str, back: str, limited: bool) -> None:  # R1.10, R3.7
    def post(limit: str) -> list[Spec]:
        return [{"action": "Post", **({"rateLimit": limit} if limit else {})}]

    (outcome,) = verdict(returning({**IS_ONE, "matchActions": post(entry), "matchReturnActions": post(back)}), call(1, returned=0)).outcomes
    assert outcome.rate_limited is limited


def test_a_returned_value_is_compared_in_its_own_type() -> None:
    returned = {"matchReturnArgs": [{"index": 0, "operator": "Prefix", "values": ["/etc"]}]}
    document = policy({**IS_ONE, **returned}, **{"return": True, "returnArg": {"index": 0, "type": "string"}})
    assert fires(document, call(1, returned="/etc/passwd")) is YES
    assert fires(document, call(1, returned="/var")) is NO


def test_a_returned_value_without_a_type_is_an_int() -> None:
    assert fires(policy({**IS_ONE, **FAILED}, **{"return": True}), call(1, returned=-1)) is YES


def test_a_filter_of_the_return_that_is_not_modelled_is_undecidable() -> None:
    returned = {"matchReturnArgs": [{"index": 0, "operator": "Equal", "values": ["one"]}]}
    assert fires(returning({**IS_ONE, **returned}), call(1, returned=1)) is UNKNOWN


def test_a_call_that_does_not_match_on_entry_has_no_return() -> None:  # R1.10
    assert verdict(returning({**IS_TWO, **FAILED}), call(1, returned=-1)).outcomes == (Outcome(None, False, False, ()),)


def test_an_entry_without_return_does_not_look_at_it() -> None:
    assert fires(policy({**IS_ONE, **FAILED}), call(1, returned=0)) is YES


def test_a_return_that_was_not_recorded_says_why() -> None:
    assert verdict(returning({**IS_ONE, **FAILED}), call(1)).fires.reasons == {"the recording lacks the return value"}


@pytest.mark.parametrize(
    ("selectors", "returned", "posts"),
    [
        pytest.param([{**IS_ONE, **FAILED}, {}], 0, YES, id="one without a word about the return"),
        pytest.param(
            [{**IS_ONE, **FAILED}, {"matchReturnArgs": [{"index": 0, "operator": "Equal", "values": ["0"]}]}], 0, YES, id="one that fits"
        ),
    ],
)
def test_the_return_may_match_a_later_selector(selectors: list[Spec], returned: int, posts: bool) -> None:
    assert fires(returning(*selectors), call(1, returned=returned)) is posts


# --- arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filter_", "position"),
    [
        pytest.param({"index": 3}, 0, id="by the function's number"),
        pytest.param({"index": 0}, 1, id="by the function's number, out of order"),
        pytest.param({}, 1, id="by no number, which is 0"),
        pytest.param({"index": 1}, None, id="a number that is not listed"),
        pytest.param({"args": [0]}, 0, id="by position"),
        pytest.param({"args": [1]}, 1, id="by the other position"),
        pytest.param({"args": [2]}, None, id="a position that is not listed"),
        pytest.param({"args": [1], "index": 3}, 1, id="by both: the position counts"),
    ],
)
@pytest.mark.parametrize("section", ["kprobes", "lsmhooks", "fentries", "uprobes", "usdts"])
def test_an_argument_is_addressed(section: str, filter_: Spec, position: int | None) -> None:  # R2.3.1
    args = declared([{"index": 3, "type": "int"}, {"index": 0, "type": "file"}])
    assert addressed(filter_, args, section) == (None if position is None else args[position])


def test_of_two_with_one_number_the_first_is_addressed() -> None:  # R2.3.1
    args = declared([{"index": 0, "type": "linux_binprm"}, {"index": 0, "type": "uint64", "resolve": "a.b"}])
    assert addressed({"index": 0}, args, "kprobes") == args[0]


@pytest.mark.parametrize(
    ("fields", "filter_", "position"),
    [
        pytest.param([4, 5], {"index": 4}, 0, id="a field"),
        pytest.param([4, 5], {"index": 5}, 1, id="another field"),
        pytest.param([4, 5], {"index": 0}, 0, id="no field, a position"),
        pytest.param([4, 5], {}, 0, id="nothing, the first position"),
        pytest.param([4, 5], {"index": 1}, 1, id="no field, another position"),
        pytest.param([4, 5], {"index": 7}, None, id="neither"),
        pytest.param([0, 1], {"index": 1}, 1, id="raw, in order"),
        pytest.param([1, 0], {"index": 1}, 1, id="raw, out of order: rewritten twice"),
        pytest.param([1, 0], {"index": 0}, 1, id="raw, out of order: rewritten once"),
        pytest.param([1, 0], {"args": [0]}, 0, id="by position"),
        pytest.param([1, 0], {"args": [1]}, 1, id="by the other position"),
    ],
)
def test_on_tracepoints_a_field_is_rewritten_to_its_position(fields: list[int], filter_: Spec, position: int | None) -> None:  # R2.3.2
    args = declared([{"index": field, "type": "uint64"} for field in fields])
    assert addressed(filter_, args, "tracepoints") == (None if position is None else args[position])


@pytest.mark.parametrize(("filter_", "position"), [({"index": 1}, 1), ({"args": [0]}, 0), ({}, 0), ({"index": 2}, None)], ids=str)
def test_data_is_addressed_by_position(filter_: Spec, position: int | None) -> None:  # R2.3.1
    data = declared([{"index": 7, "type": "int"}, {"index": 0, "type": "int"}])
    assert addressed_data(filter_, data) == (None if position is None else data[position])


def with_filter(operator: str = "Equal", *values: str, kind: str = "int", **argument: Any) -> Spec:
    """A policy that compares its first argument."""
    filters = [{"index": 0, "operator": operator, "values": list(values) or ["1"]}]
    return policy({"matchArgs": filters}, args=[{"index": 0, "type": kind, **argument}])


def recording(value: Value, kind: str = "int", **argument: Any) -> Invocation:
    """A call whose first argument was recorded as this type."""
    return Invocation(Hook("kprobe", "f"), Process("/x"), (Argument(Declared(0, kind, **argument), value),))


@pytest.mark.parametrize(
    ("recorded", "wanted", "expected"),
    [
        ("int", "int", YES),
        ("uint64", "int", YES),
        ("int64", "uint8", YES),
        ("size_t", "uint64", YES),
        ("size_t", "int", YES),
        ("int", "uint32", YES),
        ("uint32", "int16", YES),
        ("int", "uint64", UNKNOWN),
        ("int", "int64", UNKNOWN),
        ("uint8", "int", UNKNOWN),
        ("int16", "size_t", UNKNOWN),
        ("string", "int", UNKNOWN),
        ("int", "string", UNKNOWN),
    ],
)
def test_an_integer_decides_another_that_is_not_wider(recorded: str, wanted: str, expected: bool | None) -> None:  # R2.3.14, 5.7
    assert fires(with_filter(kind=wanted), recording(1, recorded)) is expected


@pytest.mark.parametrize(
    ("recorded", "wanted"),
    [("file", "path"), ("path", "file"), ("string", "file"), ("file", "string"), ("path", "dentry"), ("linux_binprm", "file")],
)
def test_a_path_decides_only_one_of_its_own_type(recorded: str, wanted: str) -> None:  # R2.3.22, 5.7
    value: Value = "/x" if recorded == "string" else FilePath("/x", "-rw-r--r--")
    assert fires(with_filter("Prefix", "/", kind=wanted), recording(value, recorded)) is UNKNOWN
    assert fires(with_filter("Prefix", "/", kind=recorded), recording(value, recorded)) is YES


@pytest.mark.parametrize(("recorded", "wanted"), [("sock", "socket"), ("skb", "sock"), ("sockaddr", "sock")])
def test_a_socket_decides_only_one_of_its_own_type(recorded: str, wanted: str) -> None:  # 5.7
    assert fires(with_filter("SPort", "0", kind=wanted), recording(0, recorded)) is UNKNOWN


@pytest.mark.parametrize(
    ("wanted", "recorded", "expected"),
    [
        pytest.param({"resolve": "a.b"}, {"resolve": "a.b"}, YES, id="the same"),
        pytest.param({"resolve": "a.b"}, {}, UNKNOWN, id="not recorded"),
        pytest.param({}, {"resolve": "a.b"}, UNKNOWN, id="not asked for"),
        pytest.param({"resolve": "a.b"}, {"resolve": "a.c"}, UNKNOWN, id="another"),
        pytest.param({"resolve": "a.b", "source": "current_task"}, {"resolve": "a.b"}, UNKNOWN, id="of another source"),
    ],
)
def test_a_resolved_attribute_decides_only_itself(wanted: Spec, recorded: Spec, expected: bool | None) -> None:  # 5.7
    assert fires(with_filter(**wanted), recording(1, **recorded)) is expected


@pytest.mark.parametrize("label", ["", "a0:int"])
def test_the_label_of_an_argument_does_not_matter(label: str) -> None:
    assert fires(with_filter(), recording(1, label=label)) is YES


def test_an_argument_that_was_not_recorded_says_which() -> None:
    document = policy(IS_ONE)
    invocation = Invocation(Hook("kprobe", "f"), Process("/x"))
    assert verdict(document, invocation).fires.reasons == {"the recording lacks argument 0 as int"}


def test_a_resolved_attribute_that_was_not_recorded_says_which() -> None:
    reasons = verdict(with_filter(resolve="a.b"), recording(1)).fires.reasons
    assert reasons == {"the recording lacks argument 0 resolved as a.b as int"}


def test_an_argument_addressed_by_position_is_compared() -> None:
    assert fires(policy({"matchArgs": [{"args": [0], "operator": "Equal", "values": ["1"]}]}), call(1)) is YES
    assert fires(policy({"matchArgs": [{"args": [0], "operator": "Equal", "values": ["2"]}]}), call(1)) is NO


def test_data_decides_filters_of_data() -> None:
    document = policy(
        {"matchData": [{"index": 0, "operator": "Equal", "values": ["7"]}]},
        data=[{"index": 0, "type": "uint32", "source": "current_task", "resolve": "cred.uid.val"}],
    )
    uid = Declared(0, "uint32", "cred.uid.val", "current_task")
    assert fires(document, call(1, data=(Argument(uid, 7),))) is YES
    assert fires(document, call(1, data=(Argument(uid, 8),))) is NO
    assert fires(document, call(7)) is UNKNOWN


@pytest.mark.parametrize(
    "filter_",
    [
        pytest.param({"index": 4, "operator": "Equal", "values": ["1"]}, id="an argument that is not listed"),
        pytest.param(
            {"args": [0, 1], "operator": "CelExpr", "values": ["arg0 == 1"]}, id="an expression over an argument that is not listed"
        ),
        pytest.param({"args": [0, 0], "operator": "Equal", "values": ["1"]}, id="two arguments at once"),
        pytest.param({"index": 0, "operator": "CelExpr", "values": ["arg0 == one"]}, id="an expression that cannot be read"),
        pytest.param({"index": 0, "operator": "SubString", "values": ["1", "2"]}, id="two parts of a text"),
        pytest.param({"index": 0, "operator": "InMap", "values": ["list:mine"]}, id="a list"),
        pytest.param({"index": 0, "operator": "Equal", "values": ["one"]}, id="a word for a number"),
    ],
)
def test_a_filter_that_is_not_modelled_is_undecidable(filter_: Spec) -> None:
    assert fires(policy({"matchArgs": [filter_]}), call(1)) is UNKNOWN


CHAR_BUF = {"index": 0, "operator": "Equal", "values": ["x"]}


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(
            policy({"matchArgs": [CHAR_BUF]}, args=[{"index": 0, "type": "char_buf", "sizeArgIndex": 2, "maxData": True}]), id="maxData"
        ),
        pytest.param(
            policy({"matchArgs": [CHAR_BUF]}, args=[{"index": 0, "type": "char_buf", "sizeArgIndex": 2, "returnCopy": True}]),
            id="returnCopy",
        ),
    ],
)
def test_bytes_that_the_agent_reads_elsewhere_are_undecidable(document: Spec) -> None:
    assert fires(document, call(b"x", types=["char_buf"])) is UNKNOWN


def test_an_argument_behind_a_long_one_is_undecidable() -> None:
    filters = {"matchArgs": [{"index": 1, "operator": "Equal", "values": ["1"]}]}
    document = policy(filters, args=[{"index": 0, "type": "string"}, {"index": 1, "type": "int"}])
    assert fires(document, call("x" * 3000, 1, types=["string", "int"])) is UNKNOWN


@pytest.mark.parametrize("recorded", [True, False])
def test_arguments_of_a_system_call_do_not_decide_those_of_its_entry_function(recorded: bool) -> None:
    recorded_under = policy(call="sys_open", syscall=recorded)
    event = {"process_kprobe": {"function_name": "__x64_sys_open", "args": [{"int_arg": 1}]}}
    invocation = decode(json.dumps(event).encode(), Context({"": recorder(recorded_under)}))
    assert invocation is not None
    assert fires(policy(IS_ONE, call="sys_open", syscall=not recorded), invocation) is UNKNOWN


def test_an_int_of_a_tracepoint_is_not_decided_by_what_was_recorded_as_another_type() -> None:
    invocation = call(1, types=["uint64"], hook=Hook("tracepoint", "a/f"))
    assert fires(policy(IS_ONE, section="tracepoints"), invocation) is not YES


def test_an_argument_before_a_long_one_is_decided() -> None:  # R2.3.5
    document = policy(IS_ONE, args=[{"index": 0, "type": "int"}, {"index": 1, "type": "string"}])
    assert fires(document, call(1, "x" * 3000, types=["int", "string"])) is YES


# --- macros ---------------------------------------------------------------------------------------------------------


def with_macros(selector: Spec, **macros: Spec) -> Spec:
    """A policy of one selector that uses macros."""
    return policy({**selector, "macros": list(macros)}, spec={"selectorsMacros": macros})


def test_the_filters_of_a_macro_are_added() -> None:  # R1.14
    assert fires(with_macros({}, one=IS_ONE), call(1)) is YES
    assert fires(with_macros({}, one=IS_TWO), call(1)) is NO
    assert fires(with_macros({"matchPIDs": [{"operator": "In", "values": [7]}]}, one=IS_ONE), call(1)) is NO


def test_the_actions_of_a_macro_are_added() -> None:  # R1.14
    assert verdict(with_macros(IS_ONE, one=acting({}, "NoPost")), call(1)).outcomes[0].actions == ("NoPost",)


def test_several_macros_are_added() -> None:
    pids = {"matchPIDs": [{"operator": "NotIn", "values": [0]}]}
    assert fires(with_macros({}, one=IS_TWO, two=pids), call(1)) is NO


def test_a_macro_changes_no_other_selector() -> None:
    document = policy({"macros": ["one"]}, {}, spec={"selectorsMacros": {"one": IS_TWO}})
    assert chosen(document, call(1)) == 1


def test_a_macro_that_does_not_exist_is_undecidable() -> None:
    assert fires(policy({"macros": ["none"]}), call(1)) is UNKNOWN


def test_a_filter_that_selector_and_macro_both_set_is_undecidable() -> None:
    assert fires(with_macros(IS_ONE, one={"matchArgs": [{"index": 0, "operator": "GT", "values": ["0"]}]}), call(1)) is UNKNOWN


# --- binaries -------------------------------------------------------------------------------------------------------


def binaries(operator: str, *values: str, **more: Any) -> Spec:
    """A policy that compares the executed file."""
    return policy({"matchBinaries": [{"operator": operator, "values": list(values), **more}]})


CAT, DASH = "/usr/bin/cat", "/usr/bin/dash"
LONG = "/" + "x" * 299


@pytest.mark.parametrize(
    ("operator", "values", "executable", "expected"),
    [
        ("In", [CAT], CAT, YES),
        ("In", [CAT], DASH, NO),
        ("In", [DASH, CAT], CAT, YES),
        ("In", ["/usr/bin/CAT"], CAT, NO),
        ("NotIn", [CAT], CAT, NO),
        ("NotIn", [CAT], DASH, YES),
        ("NotIn", [DASH, CAT], CAT, NO),
        ("In", [LONG[:255]], LONG, YES),
        ("In", [LONG], LONG, UNKNOWN),
        ("Prefix", ["/usr/bin/"], CAT, YES),
        ("Prefix", ["/usr/bin/ca"], CAT, YES),
        ("Prefix", ["/bin/"], CAT, NO),
        ("Prefix", [LONG[:255]], LONG, YES),
        ("Prefix", [LONG[:256]], LONG, NO),
        ("NotPrefix", ["/usr/"], CAT, NO),
        ("NotPrefix", ["/bin/", "/opt/"], CAT, YES),
        ("Postfix", ["/cat"], CAT, YES),
        ("Postfix", ["/dash", "at"], CAT, YES),
        ("NotPostfix", ["/cat"], CAT, NO),
        ("NotPostfix", ["/dash"], CAT, YES),
        ("Postfix", ["x" * 127], LONG, YES),
        ("Postfix", ["x" * 128], LONG, UNKNOWN),
        ("In", [], CAT, YES),
        ("NotIn", [], CAT, YES),
    ],
    ids=show,
)
def test_the_executed_file_is_compared(
    operator: str, values: list[str], executable: str, expected: bool | None
) -> None:  # R2.2.1, R2.2.4, R2.2.5
    process = Process("/bin/sh", executable=executable, parent_executable=executable)
    assert fires(binaries(operator, *values), call(1, process=process)) is expected
    assert fires(policy({"matchParentBinaries": [{"operator": operator, "values": values}]}), call(1, process=process)) is expected


@pytest.mark.parametrize("operator", ["In", "NotIn", "Prefix", "NotPrefix", "Postfix", "NotPostfix"])
@pytest.mark.parametrize("value", ["/bin/sh", "/opt/other"])
def test_an_unknown_executed_file_is_undecidable_whatever_its_name(operator: str, value: str) -> None:  # R2.2.2
    assert fires(binaries(operator, value), call(1, process=Process("/bin/sh"))) is UNKNOWN
    assert fires(policy({"matchParentBinaries": [{"operator": operator, "values": [value]}]}), call(1)) is UNKNOWN


@pytest.mark.parametrize("key", ["matchBinaries", "matchParentBinaries"])
def test_no_values_filter_nothing_even_of_an_unknown_file(key: str) -> None:  # R2.2.7
    assert fires(policy({key: [{"operator": "In", "values": []}]}), call(1)) is YES


@pytest.mark.parametrize(
    ("operator", "executable", "ancestors", "expected"),
    [
        pytest.param("In", DASH, None, YES, id="the process itself"),
        pytest.param("In", CAT, (DASH,), YES, id="an ancestor"),
        pytest.param("In", CAT, ("/bin/a", DASH, "/bin/b"), YES, id="a far ancestor"),
        pytest.param("In", CAT, ("/bin/a",), NO, id="none"),
        pytest.param("In", CAT, (), NO, id="no ancestors"),
        pytest.param("In", CAT, None, UNKNOWN, id="unknown ancestors"),
        pytest.param("In", None, (DASH,), YES, id="an ancestor of an unknown file"),
        pytest.param("In", None, (CAT,), UNKNOWN, id="an unknown file"),
        pytest.param("NotIn", DASH, None, NO, id="not the process itself"),
        pytest.param("NotIn", CAT, (DASH,), NO, id="not an ancestor"),
        pytest.param("NotIn", CAT, ("/bin/a",), YES, id="not any"),
        pytest.param("NotIn", CAT, None, UNKNOWN, id="not unknown ancestors"),
    ],
)
def test_children_are_followed(
    operator: str, executable: str | None, ancestors: tuple[str, ...] | None, expected: bool | None
) -> None:  # R2.2.8
    process = Process("/x", executable=executable, ancestors=ancestors)
    assert fires(binaries(operator, DASH, followChildren=True), call(1, process=process)) is expected


# --- processes ------------------------------------------------------------------------------------------------------


def pids(operator: str, *values: int, **more: Any) -> Spec:
    """A policy that compares the process's number."""
    return policy({"matchPIDs": [{"operator": operator, "values": list(values), **more}]})


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        pytest.param(pids("In", 7), YES, id="in"),
        pytest.param(pids("In", 8), NO, id="not listed"),
        pytest.param(pids("NotIn", 7), NO, id="not in"),
        pytest.param(pids("NotIn", 8, 9), YES, id="in none"),
        pytest.param(pids("In", 1, 2, 3, 7), YES, id="the fourth"),
        pytest.param(pids("In", 1, 2, 3, 4, 7), NO, id="the fifth, which is not looked at"),
        pytest.param(pids("In", 70, isNamespacePID=True), YES, id="inside its namespace"),
        pytest.param(pids("In", 7, isNamespacePID=True), NO, id="not inside its namespace"),
        pytest.param(pids("In", 7, followForks=True), YES, id="with its children"),
        pytest.param(pids("In", 8, followForks=True), UNKNOWN, id="with the children of another"),
        pytest.param(pids("NotIn", 1, followForks=True, isNamespacePID=True), UNKNOWN, id="with its children, inside"),
    ],
)
def test_a_process_is_known_by_its_number(document: Spec, expected: bool | None) -> None:  # R2.1.1 to R2.1.7
    assert fires(document, call(1, process=Process("/x", pid=7, namespace_pid=70))) is expected


def test_a_number_inside_a_namespace_that_was_not_recorded_is_undecidable() -> None:
    assert fires(pids("In", 1, isNamespacePID=True), call(1, process=Process("/x", pid=1))) is UNKNOWN


@pytest.mark.parametrize(
    ("key", "entry"),
    [
        ("matchPIDs", {"operator": "In", "values": [7]}),
        ("matchCapabilities", {"operator": "In", "values": ["CAP_CHOWN"]}),
    ],
    ids=show,
)
def test_of_several_entries_the_agent_misreads_all_but_the_first(key: str, entry: Spec) -> None:  # R2.1.6, R2.6.4
    one = verdict(policy({key: [entry, entry]}), call(1, process=Process("/x", pid=7, capabilities={"effective": 1}, current=True)))
    assert one.fires.value is UNKNOWN
    assert one.fires.reasons == {f"{key} has more than one entry: the agent misreads all but the first"}


def capabilities(operator: str, *values: str, **more: Any) -> Spec:
    """A policy that looks at capabilities."""
    return policy({"matchCapabilities": [{"operator": operator, "values": list(values), **more}]})


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        pytest.param(capabilities("In", "CAP_CHOWN"), YES, id="one that it has"),
        pytest.param(capabilities("In", "CAP_KILL"), NO, id="one that it lacks"),
        pytest.param(capabilities("In", "CAP_KILL", "CAP_CHOWN"), YES, id="one of two"),
        pytest.param(capabilities("NotIn", "CAP_CHOWN"), NO, id="not one that it has"),
        pytest.param(capabilities("NotIn", "CAP_KILL"), YES, id="not one that it lacks"),
        pytest.param(capabilities("NotIn", "CAP_KILL", "CAP_CHOWN"), NO, id="not one of two"),
        pytest.param(capabilities("In", "CAP_KILL", type="Permitted"), YES, id="of another set"),
        pytest.param(capabilities("In", "CAP_CHOWN", type="Inheritable"), NO, id="of an empty set"),
        pytest.param(capabilities("In", "DAC_OVERRIDE"), YES, id="by the agent's own spelling"),
        pytest.param(capabilities("In", "CAP_DAC_OVERRIDE"), UNKNOWN, id="by a name that the agent does not know"),
        pytest.param(capabilities("In", "CAP_CHOWN", isNamespaceCapability=True), UNKNOWN, id="inside a user namespace"),
        pytest.param(capabilities("In", "CAP_CHOWN", "CAP_CHOWN"), YES, id="one named twice"),
    ],
)
def test_capabilities_at_the_hook_are_compared(document: Spec, expected: bool | None) -> None:  # R2.6.1 to R2.6.3
    process = Process("/x", current=True, capabilities={"effective": 0b11, "permitted": 0b100011})
    assert fires(document, call(1, process=process)) is expected


@pytest.mark.parametrize(
    "process",
    [
        pytest.param(Process("/x", current=False, capabilities={"effective": 1}), id="those of the last exec"),
        pytest.param(Process("/x", current=True), id="none recorded"),
    ],
)
def test_capabilities_of_another_moment_are_undecidable(process: Process) -> None:  # R2.6.5
    one = verdict(capabilities("In", "CAP_CHOWN"), call(1, process=process))
    assert (one.fires.value, one.fires.reasons) == (UNKNOWN, {MAY_ADMIN})


def namespaces(kind: str, operator: str, *values: str) -> Spec:
    """A policy that looks at a namespace."""
    return policy({"matchNamespaces": [{"namespace": kind, "operator": operator, "values": list(values)}]})


IN_CONTAINER = {"pid": (4026532500, False), "mnt": (4026532501, False), "user": (4026531837, True), "pid_for_children": (4026532500, False)}


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        pytest.param(namespaces("Pid", "NotIn", "host_ns"), YES, id="not the host's"),
        pytest.param(namespaces("Pid", "In", "host_ns"), NO, id="the host's"),
        pytest.param(namespaces("User", "In", "host_ns"), YES, id="the host's, and it is"),
        pytest.param(namespaces("User", "In", "1"), NO, id="by number, and it is the host's"),
        pytest.param(namespaces("Mnt", "In", "4026532501"), YES, id="by number"),
        pytest.param(namespaces("Mnt", "In", "1", "4026532501"), YES, id="one of two numbers"),
        pytest.param(namespaces("Mnt", "NotIn", "4026532501"), NO, id="not by number"),
        pytest.param(namespaces("Mnt", "NotIn", "1", "2"), YES, id="none of two numbers"),
        pytest.param(namespaces("PidForChildren", "In", "4026532500"), YES, id="a name of two words"),
        pytest.param(namespaces("Net", "NotIn", "host_ns"), UNKNOWN, id="one that was not recorded"),
    ],
)
def test_namespaces_at_the_hook_are_compared(document: Spec, expected: bool | None) -> None:  # R2.5
    assert fires(document, call(1, process=Process("/x", namespaces=IN_CONTAINER, current=True))) is expected


def test_all_entries_of_namespaces_must_hold() -> None:  # R2.5
    both = [{"namespace": kind, "operator": "NotIn", "values": ["host_ns"]} for kind in ("Pid", "User")]
    assert fires(policy({"matchNamespaces": both}), call(1, process=Process("/x", namespaces=IN_CONTAINER, current=True))) is NO


@pytest.mark.parametrize(
    ("kind", "executed", "expected"),
    [
        pytest.param("Pid", True, YES, id="the pid namespace after fork and exec"),
        pytest.param("Pid", False, UNKNOWN, id="the pid namespace after a bare fork"),
        pytest.param("Mnt", True, UNKNOWN, id="the mount namespace"),
        pytest.param("PidForChildren", True, UNKNOWN, id="the pid namespace for children"),
    ],
)
def test_of_the_last_exec_only_the_pid_namespace_still_holds(kind: str, executed: bool, expected: bool | None) -> None:  # R2.5
    process = Process("/x", namespaces=IN_CONTAINER, executed=executed, current=False)
    assert fires(namespaces(kind, "NotIn", "host_ns"), call(1, process=process)) is expected


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("matchNamespaceChanges", [{"operator": "In", "values": ["Mnt"]}]),
        ("matchCapabilityChanges", [{"operator": "In", "values": ["CAP_CHOWN"]}]),
        ("matchWorkloads", {"podSelector": {"matchLabels": {"a": "b"}}}),
    ],
    ids=show,
)
def test_changes_and_workloads_of_a_selector_are_undecidable(key: str, value: object) -> None:  # 2.7, 2.9
    assert fires(policy({key: value}), call(1, process=Process("/x", current=True))) is UNKNOWN


# --- workloads ------------------------------------------------------------------------------------------------------

HOST = Process("/x", in_container=False)
STRANGE = Process("/x", in_container=None)
CART = Process("/x", in_container=True, pod=Pod("shop", {"app": "cart", "tier": "front"}, "main", "docker.io/library/cart"))
LABEL = "k8s:io.kubernetes.pod.namespace"


def labels(**wanted: str) -> Spec:
    """A selector of labels."""
    return {"matchLabels": wanted}


def expression(key: str, operator: str, *values: str) -> Spec:
    """A selector with one expression."""
    return {"matchExpressions": [{"key": key, "operator": operator, **({"values": list(values)} if values else {})}]}


@pytest.mark.parametrize(
    ("spec", "namespace", "host", "cart", "strange"),
    [
        pytest.param({}, None, YES, YES, YES, id="no selector"),
        pytest.param({"podSelector": {}, "containerSelector": {}, "hostSelector": {}}, None, YES, YES, YES, id="all three empty"),
        pytest.param({"podSelector": {}}, None, NO, YES, UNKNOWN, id="all pods"),
        pytest.param({"containerSelector": {}}, None, NO, YES, UNKNOWN, id="all containers"),
        pytest.param({"hostSelector": {}}, None, YES, NO, UNKNOWN, id="the host"),
        pytest.param({"podSelector": {}, "hostSelector": {}}, None, YES, YES, UNKNOWN, id="pods and the host"),
        pytest.param({"podSelector": labels(app="cart")}, None, NO, YES, UNKNOWN, id="pods with a label"),
        pytest.param({"podSelector": labels(app="search")}, None, NO, NO, UNKNOWN, id="pods with another label"),
        pytest.param({"podSelector": labels(app="search"), "hostSelector": {}}, None, YES, NO, UNKNOWN, id="other pods and the host"),
        pytest.param({"containerSelector": labels(name="main")}, None, NO, YES, UNKNOWN, id="a container"),
        pytest.param({"containerSelector": labels(name="sidecar")}, None, NO, NO, UNKNOWN, id="another container"),
        pytest.param(
            {"podSelector": labels(app="cart"), "containerSelector": labels(name="x")}, None, NO, NO, UNKNOWN, id="pod but not container"
        ),
        pytest.param(
            {"podSelector": labels(app="x"), "containerSelector": labels(name="main")}, None, NO, NO, UNKNOWN, id="container but not pod"
        ),
        pytest.param({}, "shop", NO, YES, UNKNOWN, id="a namespace"),
        pytest.param({}, "bank", NO, NO, UNKNOWN, id="another namespace"),
        pytest.param({"podSelector": labels(app="cart")}, "shop", NO, YES, UNKNOWN, id="a namespace and a label"),
        pytest.param({"podSelector": labels(app="cart")}, "bank", NO, NO, UNKNOWN, id="another namespace and a label"),
    ],
)
def test_a_policy_applies_to(
    spec: Spec, namespace: str | None, host: bool | None, cart: bool | None, strange: bool | None
) -> None:  # R4.1 to R4.5
    document = policy({}, spec=spec, namespace=namespace)
    assert [fires(document, call(1, process=process)) for process in (HOST, CART, STRANGE)] == [host, cart, strange]


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        pytest.param(labels(app="cart", tier="front"), YES, id="both labels"),
        pytest.param(labels(app="cart", tier="back"), NO, id="one label"),
        pytest.param(labels(App="cart"), NO, id="a key in capitals"),
        pytest.param(labels(app="Cart"), NO, id="a value in capitals"),
        pytest.param(expression("app", "In", "cart", "x"), YES, id="In"),
        pytest.param(expression("app", "In", "x"), NO, id="In others"),
        pytest.param(expression("none", "In", "x"), NO, id="In without the key"),
        pytest.param(expression("app", "NotIn", "x"), YES, id="NotIn"),
        pytest.param(expression("app", "NotIn", "cart"), NO, id="NotIn its own"),
        pytest.param(expression("none", "NotIn", "x"), YES, id="NotIn without the key"),
        pytest.param(expression("app", "Exists"), YES, id="Exists"),
        pytest.param(expression("none", "Exists"), NO, id="Exists without the key"),
        pytest.param(expression("app", "DoesNotExist"), NO, id="DoesNotExist"),
        pytest.param(expression("none", "DoesNotExist"), YES, id="DoesNotExist without the key"),
        pytest.param({**labels(app="cart"), **expression("tier", "In", "back")}, NO, id="labels and an expression"),
        pytest.param(labels(**{LABEL: "shop"}), YES, id="the pod's namespace as a label"),
        pytest.param(expression(LABEL, "In", "bank"), NO, id="another namespace as a label"),
    ],
)
def test_a_pod_is_selected(selector: Spec, expected: bool) -> None:  # R4.2, R4.3
    assert fires(policy({}, spec={"podSelector": selector}), call(1, process=CART)) is expected


def test_a_pod_that_sets_the_label_of_its_namespace_itself_keeps_it() -> None:  # R4.3
    process = Process("/x", in_container=True, pod=Pod("shop", {LABEL: "mine"}, "main", ""))
    assert fires(policy({}, spec={"podSelector": labels(**{LABEL: "mine"})}), call(1, process=process)) is YES


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        pytest.param(labels(name="main", repo="docker.io/library/cart"), YES, id="name and repository"),
        pytest.param(labels(repo="docker.io/library/other"), NO, id="another repository"),
        pytest.param(expression("name", "NotIn", "sidecar"), YES, id="not the sidecar"),
        pytest.param(expression("repo", "Exists"), YES, id="a repository always exists"),
        pytest.param(labels(app="cart"), NO, id="a label of the pod"),
    ],
)
def test_a_container_is_selected_by_name_and_repository(selector: Spec, expected: bool) -> None:  # R4.4
    assert fires(policy({}, spec={"containerSelector": selector}), call(1, process=CART)) is expected


def test_a_workload_that_does_not_apply_decides_beside_an_unknown_filter() -> None:
    assert fires(policy(MAYBE, spec={"podSelector": {}}), call(1, process=HOST)) is NO


def test_an_unknown_workload_is_decided_where_the_policy_would_be_quiet_anyway() -> None:
    assert fires(policy(IS_TWO, spec={"podSelector": {}}), call(1, process=STRANGE)) is NO


def test_an_unknown_workload_says_why() -> None:
    one = verdict(policy({}, spec={"podSelector": {}}), call(1, process=STRANGE))
    assert one.fires.reasons == {"the recording names a container but no pod"}


# --- hooks ----------------------------------------------------------------------------------------------------------

LISTS = {
    "calls": {"name": "calls", "type": "syscalls", "values": ["sys_open", "x64/sys_read", "__x64_sys_write"]},
    "functions": {"name": "functions", "values": ["tcp_connect", "vfs_read"]},
}


@pytest.mark.parametrize(
    ("kind", "raw", "names"),
    [
        pytest.param("kprobe", {"call": "tcp_connect"}, ["tcp_connect"], id="a function"),
        pytest.param("kprobe", {"call": "sys_open"}, ["sys_open"], id="a system call"),
        pytest.param("kprobe", {"call": "__x64_sys_open"}, ["sys_open"], id="a system call with its prefix"),
        pytest.param("kprobe", {"call": "__arm64_sys_open"}, ["sys_open"], id="a system call of arm64"),
        pytest.param("kprobe", {"call": "__ia32_sys_open"}, ["__ia32_sys_open"], id="a system call of i386"),
        pytest.param("kprobe", {"call": "list:functions"}, ["tcp_connect", "vfs_read"], id="a list of functions"),
        pytest.param("kprobe", {"call": "list:calls"}, ["sys_open", "sys_read", "sys_write"], id="a list of system calls"),
        pytest.param("tracepoint", {"subsystem": "a", "event": "b"}, ["a/b"], id="a tracepoint"),
        pytest.param("lsm", {"hook": "file_open"}, ["file_open"], id="an LSM hook"),
        pytest.param("usdt", {"path": "/x", "provider": "p", "name": "n"}, ["/x:p:n"], id="a USDT"),
        pytest.param("uprobe", {"path": "/x", "symbols": ["a", "b"]}, ["/x:a", "/x:b"], id="a uprobe by symbols"),
        pytest.param("uprobe", {"path": "/x", "offsets": [4096], "addrs": [32]}, ["/x:0x1000", "/x:0x20"], id="a uprobe by numbers"),
    ],
)
def test_a_hook_is_known_by(kind: str, raw: Spec, names: list[str]) -> None:  # R5.1, R5.2
    assert identities(kind, raw, LISTS) == [Hook(kind, name) for name in names]


@pytest.mark.parametrize("function", ["sys_open", "sys_read", "sys_write"])
def test_a_list_attaches_to_each_of_its_functions(function: str) -> None:
    document = policy({}, call="list:calls", spec={"lists": list(LISTS.values())})
    assert fires(document, call(1, hook=Hook("kprobe", function))) is YES


def test_a_system_call_of_i386_in_a_list_is_another_function() -> None:
    lists = {"old": {"name": "old", "type": "syscalls", "values": ["i386/sys_open"]}}
    assert identities("kprobe", {"call": "list:old"}, lists) == [Hook("kprobe", "__ia32_sys_open")]


@pytest.mark.parametrize("kind", ["generated_syscalls", "generated_ftrace"])
def test_a_generated_list_does_not_stay_quiet(kind: str) -> None:
    document = policy({}, call="list:all", spec={"lists": [{"name": "all", "type": kind, "pattern": "sys_*"}]})
    verdicts = CompiledPolicy(document).evaluate(call(1, hook=Hook("kprobe", "sys_open")))
    assert [one.fires.value for one in verdicts] in ([YES], [UNKNOWN])


def test_a_fentry_is_read_from_the_events_of_a_kprobe() -> None:  # 5.7
    assert fires(policy(IS_ONE, section="fentries"), call(1)) is YES


@pytest.mark.parametrize(
    ("section", "hook", "recorded"),
    [
        ("lsmhooks", "file_open", Hook("kprobe", "security_file_open")),
        ("kprobes", "security_file_open", Hook("lsm", "file_open")),
    ],
    ids=show,
)
def test_a_kprobe_does_not_stand_for_an_lsm_hook(section: str, hook: str, recorded: Hook) -> None:  # 5.7
    document = policy({}, section=section, **({"hook": hook} if section == "lsmhooks" else {"call": hook}))
    assert CompiledPolicy(document).evaluate(call(1, hook=recorded)) == []


def test_a_recorder_tells_what_each_hook_declares() -> None:
    document = policy({}, data=[{"index": 0, "type": "uint64", "resolve": "a"}], args=[{"index": 1, "type": "file"}], call="list:functions")
    document["spec"]["lists"] = [LISTS["functions"]]
    expected = ((Declared(1, "file"),), (Declared(0, "uint64", "a"),))
    assert recorder(document) == {Hook("kprobe", "tcp_connect"): expected, Hook("kprobe", "vfs_read"): expected}


# --- explanations ---------------------------------------------------------------------------------------------------


def test_an_explanation_tells_what_was_compared_with_what() -> None:
    cat = {"matchBinaries": [{"operator": "In", "values": [DASH]}]}
    document = policy({**IS_TWO, **cat}, acting({**IS_ONE, **MAYBE}, "Sigkill"), IS_ONE, {}, spec={"podSelector": {}})
    process = Process("/bin/sh", executable=DASH, pod=CART.pod, in_container=True)
    (told,) = CompiledPolicy(document).explain(call(1, process=process))
    assert (told.hook, told.recorded, told.section, told.index, told.mode) == ("kprobe f", "kprobe f", "kprobes", 0, "enforce")
    assert told.workload is not None
    assert told.workload.value is YES
    assert [(one.value, one.reached, one.actions) for one in told.selectors] == [
        (NO, True, ("Post",)),
        (UNKNOWN, True, ("Sigkill",)),
        (YES, True, ("Post",)),
        (YES, False, ("Post",)),
    ]
    binaries_, argument = told.selectors[0].filters
    assert (binaries_.kind, binaries_.operator, binaries_.values, binaries_.found, binaries_.value) == (
        "matchBinaries",
        "In",
        (DASH,),
        DASH,
        YES,
    )
    assert (argument.subject, argument.values, argument.found, argument.value) == ("argument 0 (int)", ("2",), "1", NO)
    unsure = told.selectors[1].filters[0]
    assert (unsure.found, unsure.value, unsure.reasons) == (None, UNKNOWN, (MAY_ADMIN,))
    assert [(one.selector, one.effects) for one in told.outcomes] == [(1, ("Sigkill",)), (2, ())]
    assert told.fires is YES


def test_an_explanation_names_the_equivalence_that_decides() -> None:
    recorded = Invocation(Hook("lsm", "file_open"), Process("/x"), (Argument(Declared(0, "file"), FilePath("/a", "-rw-r--r--")),))
    document = policy({}, call="security_file_open", syscall=False)
    (told,) = CompiledPolicy(document, recorded=[recorded.hook]).explain(recorded)
    assert (told.hook, told.recorded) == ("kprobe security_file_open", "lsm file_open")
    assert "security.c" in told.equivalence


def test_the_engine_needs_no_package_that_a_host_lacks() -> None:
    """The stand-in agent imports it on hosts that have neither of these."""
    modules = ("compile", "filters", "records", "truth", "explain", "history")
    names = [f"ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.{one}" for one in modules]
    script = f"import sys, importlib; sys.modules.update(msgspec=None, ansible=None); [importlib.import_module(one) for one in {names}]"
    home = str(Path(str(truth.__file__)).parents[6])  # where the collections lie, whoever runs the tests
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env={"PYTHONPATH": home})
    assert (done.returncode, done.stderr) == (0, "")
