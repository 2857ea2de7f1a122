# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Every rule of the real agent's matching that was observed or can be decided from its code, as one test named after it.

The rules are those of docs/replay-semantics.md. The tables in test_filters.py and test_compile.py go further into some.
"""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay import equivalences, events, filters, history, syscalls
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.compile import CompiledPolicy, Outcome, Verdict, identities, recorder
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.records import (
    Argument,
    Declared,
    FilePath,
    Hook,
    Invocation,
    Pod,
    Process,
    ReadError,
    Socket,
    Value,
)
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.target import KPROBE_MULTI, STRCASESTR, STRNSTR, Target

Spec = dict[str, Any]
MAIN = Target(version=(1, 8))
ONE: Spec = {"matchArgs": [{"index": 0, "operator": "Equal", "values": ["1"]}]}
TWO: Spec = {"matchArgs": [{"index": 0, "operator": "Equal", "values": ["2"]}]}
UNSURE: Spec = {"matchCapabilities": [{"operator": "In", "values": ["CAP_SYS_ADMIN"]}]}
IDENTITY: dict[str, Spec] = {
    "kprobes": {"call": "f", "syscall": False},
    "fentries": {"call": "f", "syscall": False},
    "lsmhooks": {"hook": "f"},
    "tracepoints": {"subsystem": "a", "event": "f"},
    "uprobes": {"path": "/x", "symbols": ["f"]},
    "usdts": {"path": "/x", "provider": "p", "name": "f"},
}
HOOKS = {
    "kprobes": Hook("kprobe", "f"),
    "fentries": Hook("kprobe", "f"),
    "lsmhooks": Hook("lsm", "f"),
    "tracepoints": Hook("tracepoint", "a/f"),
    "uprobes": Hook("uprobe", "/x:f"),
    "usdts": Hook("usdt", "/x:p:f"),
}


def policy(*selectors: Spec, section: str = "kprobes", types: str | list[Spec] = "int", spec: Spec | None = None, **hook: Any) -> Spec:
    """A policy of one hook; ``types`` are those of its arguments, or the arguments themselves."""
    args = [{"index": place, "type": one} for place, one in enumerate(types.split())] if isinstance(types, str) else types
    entry = {**IDENTITY[section], "args": args, "selectors": list(selectors), **hook}
    return {"metadata": {"name": "p"}, "spec": {section: [entry], **(spec or {})}}


def call(*values: Value, section: str = "kprobes", types: str = "", process: Process | None = None, **more: Any) -> Invocation:
    """A recorded call with these arguments, of the types that are named, ints otherwise."""
    named = types.split() or ["int"] * len(values)
    args = tuple(Argument(Declared(place, one), value) for place, (one, value) in enumerate(zip(named, values, strict=True)))
    return Invocation(HOOKS[section], process or Process("/usr/bin/cat"), args, **more)


def verdict(document: Spec, invocation: Invocation, target: Target | None = None) -> Verdict:
    (only,) = CompiledPolicy(document, target or Target()).evaluate(invocation)
    return only


def fires(document: Spec, invocation: Invocation, target: Target | None = None) -> bool | None:
    return verdict(document, invocation, target).fires.value


def why(document: Spec, invocation: Invocation, target: Target | None = None) -> str:
    return "; ".join(sorted(verdict(document, invocation, target).fires.reasons))


def decoded(document: Spec, body: Spec) -> Invocation:
    """An event of a kprobe as it was recorded under a policy."""
    found = events.decode(json.dumps({"process_kprobe": body}).encode(), events.Context({"": recorder(document)}))
    assert found is not None
    return found


def comparing(operator: str, *values: str, index: int = 0) -> Spec:
    return {"matchArgs": [{"index": index, "operator": operator, "values": list(values)}]}


def compares(
    type_: str, operator: str, values: list[str], value: Value, target: Target | None = None, section: str = "kprobes"
) -> bool | None:
    """One filter on one value."""
    return filters.compile_filter(operator, values, type_, target or Target(), section)(value).value


def acting(selector: Spec, *actions: str, key: str = "matchActions") -> Spec:
    return {**selector, key: [{"action": one} for one in actions]}


def file(path: str, permission: str = "-rw-r--r--") -> FilePath:
    return FilePath(path, permission)


# --- 1. order and combination ---------------------------------------------------------------------------------------


def test_r1_1_a_workload_that_does_not_fit_ends_it() -> None:
    document = policy({}, spec={"podSelector": {}})
    assert verdict(document, call(1, process=Process("/x", in_container=False))).outcomes == (Outcome(None, False, False, ()),)


def test_r1_2_within_a_selector_everything_must_hold() -> None:
    cat = {"matchBinaries": [{"operator": "In", "values": ["/usr/bin/cat"]}]}
    process = Process("/x", executable="/usr/bin/cat")
    assert fires(policy({**ONE, **cat}), call(1, process=process)) is True
    assert fires(policy({**ONE, **cat}), call(2, process=process)) is False
    assert fires(policy({**ONE, **cat}), call(1, process=Process("/x", executable="/x"))) is False


def test_r1_3_the_first_selector_that_matches_wins_alone() -> None:
    one = verdict(policy(TWO, acting(ONE, "Sigkill"), acting({}, "Signal")), call(1))
    assert [(outcome.selector, outcome.actions) for outcome in one.outcomes] == [(1, ("Sigkill",))]


@pytest.mark.parametrize(("operator", "value", "expected"), [("Equal", 2, True), ("NotEqual", 2, False), ("NotEqual", 3, True)])
def test_r1_4_values_are_any_of_and_negated_ones_none_of(operator: str, value: int, expected: bool) -> None:
    assert compares("int", operator, ["1", "2"], value) is expected


@pytest.mark.parametrize("section", ["kprobes", "fentries", "tracepoints", "uprobes", "usdts"])
def test_r1_5_without_selectors_every_call_is_posted(section: str) -> None:
    assert fires(policy(section=section), call(1, section=section)) is True


def test_r1_6_an_lsm_hook_without_selectors_never_posts() -> None:
    assert fires(policy(section="lsmhooks"), call(1, section="lsmhooks")) is False


def test_r1_7_an_empty_selector_posts() -> None:
    assert fires(policy({}, section="lsmhooks"), call(1, section="lsmhooks")) is True


def test_r1_8_the_default_action_is_post() -> None:
    assert verdict(policy(ONE), call(1)).outcomes[0].action == "Post"


def test_r1_9_an_undecidable_selector_does_not_matter_where_all_outcomes_agree() -> None:
    assert fires(policy(UNSURE, ONE), call(1)) is True
    assert fires(policy(acting(UNSURE, "NoPost"), TWO), call(1)) is False
    assert fires(policy(UNSURE, TWO), call(1)) is None
    assert verdict(policy(acting(UNSURE, "Sigkill"), acting({}, "Override")), call(1)).enforces.value is True


FAILED = {"matchReturnArgs": [{"index": 0, "operator": "LT", "values": ["0"]}]}
RETURNS = {"return": True, "returnArg": {"index": 0, "type": "int"}}


def test_r1_10_an_event_needs_both_halves() -> None:
    assert fires(policy({**ONE, **FAILED}, **RETURNS), call(1, returned=-126)) is True
    assert fires(policy({**ONE, **FAILED}, **RETURNS), call(1, returned=0)) is False
    assert fires(policy({**ONE, **FAILED}, **RETURNS), call(1)) is None
    assert fires(policy(acting(ONE, "NoPost"), **RETURNS), call(1, returned=0)) is False


def test_r1_10_the_return_goes_on_to_later_selectors_whose_process_filters_hold() -> None:
    later = {**TWO, "matchPIDs": [{"operator": "In", "values": [7]}]}
    document = policy({**ONE, **FAILED}, acting(later, "NoPost", key="matchReturnActions"), {}, **RETURNS)
    assert fires(document, call(1, returned=0, process=Process("/x", pid=8))) is True
    assert fires(document, call(1, returned=0, process=Process("/x", pid=7))) is False
    assert verdict(document, call(1, returned=0)).caveats


def test_r1_11_beyond_its_limits_the_agent_takes_no_policy() -> None:
    assert "6 selectors" in why(policy(*[ONE] * 6), call(1))
    assert "4 actions" in why(policy(acting(ONE, *["Post"] * 4)), call(1))
    assert "6 filters" in why(policy({"matchArgs": ONE["matchArgs"] * 6}), call(1))
    assert "2 filters" in why(policy({"matchArgs": ONE["matchArgs"] * 2}), call(1), Target(tier="small"))
    assert "at most 4" in why(policy(comparing("Equal", *"12345")), call(1))
    both = {**policy(ONE)["spec"], **policy(ONE, section="lsmhooks")["spec"]}
    assert "one kind of hook" in why({"metadata": {"name": "p"}, "spec": both}, call(1))


def test_r1_12_selectors_beyond_1024_bytes_are_not_decided() -> None:
    wide = {"matchArgs": [{"index": 0, "operator": "Equal", "values": ["x"]}] * 5}
    fits, over = policy(*[wide] * 2, types="string"), policy(*[wide] * 3, types="string")
    assert fires(fits, call("x", types="string")) is True
    assert "1024" in why(over, call("x", types="string"))


def test_r1_13_under_kprobe_multi_hooks_overwrite_each_other() -> None:
    document = policy(comparing("InMap", "5"))
    document["spec"]["kprobes"].append(
        {**IDENTITY["kprobes"], "call": "g", "args": [{"index": 0, "type": "int"}], "selectors": [comparing("InMap", "77")]}
    )
    multi = Target(features=frozenset([KPROBE_MULTI]))
    assert fires(document, call(5)) is True
    assert "overwrite" in why(document, call(5), multi)
    document["spec"]["options"] = [{"name": "disable-kprobe-multi", "value": "1"}]
    assert fires(document, call(5), multi) is True


def test_r1_13_a_binary_of_one_hook_gates_the_same_selector_of_all() -> None:
    document = policy(ONE)
    gated = {**ONE, "matchBinaries": [{"operator": "In", "values": ["/x"]}]}
    document["spec"]["kprobes"].append({**IDENTITY["kprobes"], "call": "g", "args": [{"index": 0, "type": "int"}], "selectors": [gated]})
    assert "overwrite" in why(document, call(1), Target(features=frozenset([KPROBE_MULTI])))


def test_r1_14_macros_add_their_filters() -> None:
    macros = {"selectorsMacros": {"m": TWO}}
    assert fires(policy({"macros": ["m"]}, spec=macros), call(2)) is True
    assert fires(policy({"macros": ["m"]}, spec=macros), call(1)) is False
    assert "set twice" in why(policy({**ONE, "macros": ["m"]}, spec=macros), call(1))


def test_r1_15_hooks_and_policies_are_independent() -> None:
    document = policy(acting(ONE, "Sigkill"))
    document["spec"]["kprobes"].append({**document["spec"]["kprobes"][0], "selectors": [{}]})
    assert [one.fires.value for one in CompiledPolicy(document).evaluate(call(1))] == [True, True]


# --- 2.1 pids -------------------------------------------------------------------------------------------------------


def pids(operator: str, *values: int, **more: Any) -> Spec:
    return policy({"matchPIDs": [{"operator": operator, "values": list(values), **more}]})


def test_r2_1_1_inside_a_namespace_a_host_process_is_0() -> None:
    host = Process("/x", pid=7, namespaces={"pid": (4026531836, True)})
    assert fires(pids("In", 0, isNamespacePID=True), call(1, process=host)) is True
    assert fires(pids("In", 70, isNamespacePID=True), call(1, process=Process("/x", pid=7, namespace_pid=70))) is True
    assert fires(pids("In", 7), call(1, process=host)) is True


def test_r2_1_2_threads_do_not_count() -> None:
    assert fires(pids("In", 8), call(1, process=Process("/x", pid=7, thread=8))) is False


def test_r2_1_4_without_follow_forks_only_the_process_counts() -> None:
    assert fires(pids("In", 1), call(1, process=Process("/x", pid=7, ancestor_pids=(1,)))) is False


@pytest.mark.parametrize(
    ("values", "ancestors", "expected"),
    [
        ([7], None, True),
        ([3], (3, 2, 1), True),
        ([2], (3, 2, 1), None),  # only while the process between lived
        ([9], (3, 2, 1), False),
        ([9], None, None),
        ([12], tuple(range(20, 10, -1)), None),
        ([11], tuple(range(20, 10, -1)), False),  # the tenth above is out of reach
    ],
)
def test_r2_1_5_follow_forks_walks_nine_levels(values: list[int], ancestors: tuple[int, ...] | None, expected: bool | None) -> None:
    process = Process("/x", pid=7, ancestor_pids=ancestors)
    assert fires(pids("In", *values, followForks=True), call(1, process=process)) is expected


def test_r2_1_5_an_ancestor_is_reached_while_those_between_live() -> None:
    def known(second: int) -> bool | None:
        past = history.History()
        for exec_id, parent, pid in (("a", "a", 1), ("b", "a", 2), ("c", "b", 3)):
            past.add(executed(exec_id, parent, pid))
        past.add({"process_exit": {"process": {"exec_id": "b", "parent_exec_id": "a", "pid": 2}}, "time": "2026-01-01T00:00:05Z"})
        done = past.complete(call(1, process=Process("/x", pid=3, exec_id="c"), time=f"2026-01-01T00:00:{second:02}Z"))
        return fires(pids("In", 1, followForks=True), done)

    assert known(4) is True
    assert known(6) is None


def test_r2_1_5_inside_a_namespace_0_is_always_found() -> None:
    inside = Process("/x", pid=7, namespace_pid=70)
    host = Process("/x", pid=7, namespace_pid=0)
    both = {"followForks": True, "isNamespacePID": True}
    assert fires(pids("NotIn", 0, 1, **both), call(1, process=inside)) is False
    assert fires(pids("In", 0, **both), call(1, process=inside)) is True
    assert [fires(pids(operator, 5, **both), call(1, process=host)) for operator in ("In", "NotIn")] == [False, False]


def test_r2_1_6_a_second_entry_is_misread() -> None:
    entry = {"operator": "NotIn", "values": [0]}
    assert "misreads" in why(policy({"matchPIDs": [entry, entry]}), call(1))


def test_r2_1_7_four_values_are_compared_and_eight_are_misread() -> None:
    process = Process("/x", pid=7)
    assert fires(pids("In", 1, 2, 3, 4, 7), call(1, process=process)) is False
    assert "misreads" in why(pids("In", *range(8)), call(1, process=process))


def test_r2_1_8_a_pid_that_executed_again_is_one_level() -> None:
    past = history.History()
    for exec_id, parent, pid in (("a", "a", 1), ("b", "a", 2), ("c", "b", 2), ("d", "c", 3)):
        past.add(executed(exec_id, parent, pid))
    done = past.complete(call(1, process=Process("/x", pid=3, exec_id="d"), time="2026-01-01T00:00:09Z"))
    assert done.process.ancestor_pids == (2, 1)


# --- 2.2 executed files ---------------------------------------------------------------------------------------------


def binaries(operator: str, *values: str, **more: Any) -> Spec:
    return policy({"matchBinaries": [{"operator": operator, "values": list(values), **more}]})


def executed(
    exec_id: str, parent: str, pid: int, binary: str = "/bin/x", flags: str = "execve clone", second: int = 1, **more: Any
) -> Spec:
    """A process_exec event."""
    time = f"2026-01-01T00:00:{second:02}Z"
    process = {"exec_id": exec_id, "parent_exec_id": parent, "pid": pid, "binary": binary, "flags": flags, "start_time": time, **more}
    return {"process_exec": {"process": process}, "time": time}


def checked(exec_id: str, parent: str, pid: int, path: str, second: int) -> Spec:
    """A security_bprm_check event."""
    process = {"exec_id": exec_id, "parent_exec_id": parent, "pid": pid, "binary": "/bin/sh"}
    body = {"process": process, "function_name": "security_bprm_check", "args": [{"linux_binprm_arg": {"path": path}}]}
    return {"process_kprobe": body, "time": f"2026-01-01T00:00:{second:02}Z"}


CHECKS = {
    "metadata": {"name": "r"},
    "spec": {"kprobes": [{"call": "security_bprm_check", "syscall": False, "args": [{"type": "linux_binprm"}]}]},
}


def test_r2_2_1_the_executed_file_is_the_last_that_was_checked() -> None:
    past = history.History([CHECKS])
    past.add(executed("sh", "init", 5))
    past.add(checked("fork", "sh", 6, "/opt/script.py", 2))
    past.add(checked("fork", "sh", 6, "/usr/bin/python3.11", 3))
    past.add(executed("py", "sh", 6, "/opt/script.py", second=4))
    assert past.executable("py") == "/usr/bin/python3.11"
    assert past.executable("sh") is None


def test_r2_2_1_of_an_older_process_the_file_is_shown() -> None:
    past = history.History()
    past.add(executed("sh", "init", 5, "/usr/bin/dash", "procFS"))
    past.add(executed("kthread", "init", 6, "[kworker/0:1]", "procFS"))
    assert (past.executable("sh"), past.executable("kthread")) == ("/usr/bin/dash", None)


def test_r2_2_2_the_name_in_the_event_decides_nothing() -> None:
    assert fires(binaries("In", "/bin/sh"), call(1, process=Process("/bin/sh"))) is None
    assert fires(binaries("In", "/bin/sh"), call(1, process=Process("/bin/sh", executable="/usr/bin/dash"))) is False
    assert fires(binaries("In", "/usr/bin/dash"), call(1, process=Process("/bin/sh", executable="/usr/bin/dash"))) is True


def test_r2_2_2_a_side_channel_decides() -> None:
    exe = Argument(Declared(0, "file", "mm.exe_file", "current_task"), file("/usr/bin/dash"))
    assert fires(binaries("In", "/usr/bin/dash"), call(1, data=(exe,))) is True


def test_r2_2_3_a_fork_is_what_its_parent_is() -> None:
    past = history.History(executables={"/bin/sh": "/usr/bin/dash"})
    past.add(executed("sh", "init", 5, "/bin/sh"))
    past.add(checked("fork", "sh", 6, "/x", 2))
    assert past.executable("fork") == "/usr/bin/dash"


def test_r2_2_3_a_process_that_executed_what_its_parent_did_is_no_fork() -> None:
    past = history.History(executables={"/bin/sh": "/usr/bin/dash"})
    past.add(executed("sh", "init", 5, "/bin/sh"))
    process = {"exec_id": "lost", "parent_exec_id": "sh", "pid": 6, "binary": "/bin/sh", "flags": "execve clone"}
    past.add({"process_kprobe": {"process": process, "function_name": "f"}, "time": "2026-01-01T00:00:02Z"})
    assert past.executable("lost") is None


def test_r2_2_4_names_are_compared_byte_by_byte_up_to_255() -> None:
    long = "/" + "x" * 299
    assert fires(binaries("In", long[:255]), call(1, process=Process("/x", executable=long))) is True
    assert fires(binaries("In", "/A"), call(1, process=Process("/x", executable="/a"))) is False
    assert "255 bytes" in why(binaries("In", long), call(1, process=Process("/x", executable=long)))


def test_r2_2_5_beginnings_and_ends_know_no_directories() -> None:
    python = Process("/x", executable="/usr/bin/python3")
    assert fires(binaries("Prefix", "/usr/bin/py"), call(1, process=python)) is True
    assert fires(binaries("NotPostfix", "thon3"), call(1, process=python)) is False
    assert "5.3" in why(binaries("Prefix", "/usr"), call(1, process=python), Target(tier="small"))


def test_r2_2_7_no_values_filter_nothing() -> None:
    assert fires(binaries("In"), call(1)) is True
    assert "refuses" in why(policy({"matchBinaries": [{"operator": "In", "values": ["/x"]}] * 2}), call(1))


@pytest.mark.parametrize(
    ("ancestors", "expected"),
    [(("/usr/bin/dash",), True), (("/a", ""), None), (("/a",), False), (("", "/usr/bin/dash"), True), (None, None)],
)
def test_r2_2_8_children_are_followed(ancestors: tuple[str, ...] | None, expected: bool | None) -> None:
    process = Process("/x", executable="/usr/bin/cat", ancestors=ancestors)
    assert fires(binaries("In", "/usr/bin/dash", followChildren=True), call(1, process=process)) is expected
    opposite = None if expected is None else not expected
    assert fires(binaries("NotIn", "/usr/bin/dash", followChildren=True), call(1, process=process)) is opposite


def test_r2_2_8_of_older_processes_the_nearest_and_its_parent_count() -> None:
    past = history.History(executables={})
    for exec_id, parent, pid, flags in (
        ("a", "a", 1, "procFS"),
        ("b", "a", 2, "procFS"),
        ("c", "b", 3, "procFS"),
        ("d", "c", 4, "execve clone"),
    ):
        past.add(executed(exec_id, parent, pid, f"/{exec_id}", flags))
    assert past.ancestors("d") == ("/c", "/b")


def test_r2_2_9_the_parent_is_that_of_the_exec() -> None:
    past = history.History(executables={})
    past.add(executed("a", "a", 1, "/a"))
    past.add(executed("b", "a", 2, "/b"))
    past.add(executed("c", "b", 2, "/c", "execve", second=2))  # in place of b
    done = past.complete(call(1, process=Process("/c", pid=2, exec_id="c"), time="2026-01-01T00:00:09Z"))
    assert done.process.parent_executable == "/b"


@pytest.mark.parametrize("entry", [{"operator": "In"}, {"operator": "NotIn"}, {"operator": "NotIn", "followChildren": True}])
def test_r2_2_9_of_a_bare_fork_no_parent_is_compared(entry: Spec) -> None:
    document = policy({"matchParentBinaries": [{**entry, "values": ["/bin/sh"]}]})
    past = history.History(executables={})
    past.add(executed("sh", "init", 5, "/bin/sh"))
    for exec_id, pid, flags in (("fork", 6, "execve"), ("exec", 7, "execve clone"), ("again", 5, "execve")):
        process = {"exec_id": exec_id, "parent_exec_id": "sh", "pid": pid, "binary": "/bin/sh", "flags": flags}
        past.add({"process_kprobe": {"process": process, "function_name": "f"}, "time": "2026-01-01T00:00:02Z"})
    shells = {one: Process("/bin/sh", exec_id=one, ancestors=("/bin/sh",)) for one in ("fork", "exec", "again")}
    done = {one: fires(document, past.complete(call(1, process=process))) for one, process in shells.items()}
    assert done["fork"] is True
    assert True not in (done["exec"], done["again"])


# --- 2.3 arguments --------------------------------------------------------------------------------------------------


def test_r2_3_1_args_are_positions_and_index_the_functions_number() -> None:
    args = [{"index": 3, "type": "int"}, {"index": 0, "type": "int"}]
    recorded = Invocation(HOOKS["kprobes"], Process("/x"), (Argument(Declared(3, "int"), 1), Argument(Declared(0, "int"), 2)))
    assert fires(policy(comparing("Equal", "1", index=3), types=args), recorded) is True
    assert fires(policy({"matchArgs": [{"args": [1], "index": 3, "operator": "Equal", "values": ["2"]}]}, types=args), recorded) is True
    assert fires(policy(comparing("Equal", "1", index=7), types=args), recorded) is None


def test_r2_3_2_on_tracepoints_an_index_may_be_rewritten_twice() -> None:
    args = [{"index": 1, "type": "uint64"}, {"index": 0, "type": "uint64"}]
    values = (Argument(Declared(1, "uint64", context="raw"), 11), Argument(Declared(0, "uint64", context="raw"), 10))
    recorded = Invocation(HOOKS["tracepoints"], Process("/x"), values)
    document = policy(comparing("Equal", "10", index=1), section="tracepoints", types=args, raw=True)
    assert fires(document, recorded) is True


def test_r2_3_3_nop_arguments_are_absent_from_events() -> None:
    document = policy(types="nop int")
    found = decoded(document, {"function_name": "f", "args": [{"int_arg": 5}]})
    assert [(one.declared.index, one.value) for one in found.args] == [(1, 5)]


@pytest.mark.parametrize("operator", ["Equal", "NotEqual", "Prefix", "NotPrefix"])
def test_r2_3_4_what_could_not_be_read_matches_nothing(operator: str) -> None:
    assert compares("string", operator, ["x"], ReadError("Bad address")) is False


def test_r2_3_5_behind_2047_bytes_other_bytes_are_compared() -> None:
    document = policy(comparing("Equal", "1", index=1), types="string int")
    assert fires(document, call("x" * 2000, 1, types="string int")) is True
    assert "2047" in why(document, call("x" * 3000, 1, types="string int"))
    assert fires(document, call(ReadError("Bad address"), 1, types="string int")) is True
    assert "2047" in why(document, Invocation(HOOKS["kprobes"], Process("/x"), (Argument(Declared(1, "int"), 1),)))


@pytest.mark.parametrize(
    ("type_", "expected"), [("filename", True), ("char_iovec", True), ("cred", True), ("int", False), ("sock", False), ("size_t", False)]
)
@pytest.mark.parametrize("operator", ["Prefix", "NotPrefix", "Postfix", "NotPostfix"])
def test_r2_3_6_operators_without_a_comparator(type_: str, expected: bool, operator: str) -> None:
    assert compares(type_, operator, ["x"], Socket("AF_INET") if type_ == "sock" else 1) is expected


@pytest.mark.parametrize("type_", ["filename", "kiocb", "char_iovec", "cred", "capability", "dentry", "sock"])
def test_r2_3_6_equal_is_refused_on_most_types(type_: str) -> None:
    with pytest.raises(filters.Unsupported):
        filters.compile_filter("Equal", ["x"], type_)


def test_r2_3_7_one_operator_is_spelt_its_own_way() -> None:
    assert compares("sock", "NotSportPriv", [], Socket("AF_INET", sport=1024)) is True
    with pytest.raises(filters.Unsupported):
        filters.compile_filter("NotSPortPriv", [], "sock")


@pytest.mark.parametrize(("text", "number"), [("10", 10), ("0x10", 16), ("010", 8), ("0b10", 2), ("-1", -1)])
def test_r2_3_8_numbers_have_four_spellings(text: str, number: int) -> None:
    assert compares("int64", "Equal", [text], number) is True


@pytest.mark.parametrize(
    ("type_", "operator", "value"), [("int", "InMap", "0x5"), ("uint32", "Equal", "-1"), ("int", "Equal", "4294967296")]
)
def test_r2_3_8_other_numbers_are_refused(type_: str, operator: str, value: str) -> None:
    with pytest.raises(filters.Unsupported):
        filters.compile_filter(operator, [value], type_)


@pytest.mark.parametrize(("value", "expected"), [(4, True), (6, True), (1, False), (0, False)])
def test_r2_3_9_a_mask_needs_one_bit_not_all(value: int, expected: bool) -> None:
    assert compares("uint32", "Mask", ["6"], value) is expected
    assert compares("uint32", "Mask", ["0"], value) is False


@pytest.mark.parametrize(("type_", "expected"), [("int32", False), ("int16", False), ("int64", True), ("syscall64", True)])
def test_r2_3_10_a_negative_number_is_in_no_map_below_64_bits(type_: str, expected: bool) -> None:
    assert compares(type_, "InMap", ["-5"], -5) is expected
    assert compares(type_, "NotInMap", ["-5"], -5) is not expected


def test_r2_3_11_of_a_size_only_32_bits_are_compared() -> None:
    assert compares("size_t", "Equal", ["7"], 0x1_0000_0007) is True


def test_r2_3_12_small_signed_numbers_compare_as_unsigned() -> None:
    assert compares("int16", "Equal", ["-5"], -5) is False
    assert compares("int16", "LT", ["0"], -5) is False
    assert compares("int16", "InRange", ["-10:10"], 5) is False
    assert compares("int16", "InRange", ["-10:-1"], -5) is None  # how large the negative limits are is not known


def test_r2_3_13_ranges_include_their_ends_and_are_turned_round_in_maps_only() -> None:
    assert [compares("int", "InRange", ["2:4"], value) for value in (2, 4, 5)] == [True, True, False]
    assert compares("int", "InRange", ["4:2"], 3) is False
    assert compares("int", "InMap", ["4:2"], 3) is True


@pytest.mark.parametrize(
    ("recorded", "wanted", "expected"), [("uint64", "int", True), ("int", "uint64", None), ("uint64", "syscall64", None)]
)
def test_r2_3_14_a_narrow_recording_does_not_decide_a_wide_filter(recorded: str, wanted: str, expected: bool | None) -> None:
    assert fires(policy(ONE, types=wanted), call(1, types=recorded)) is expected


def test_r2_3_14_a_capability_is_recorded_as_an_int() -> None:
    recorded = decoded(
        policy(types="capability"), {"function_name": "f", "args": [{"capability_arg": {"value": 21, "name": "CAP_SYS_ADMIN"}}]}
    )
    assert fires(policy(comparing("Equal", "21")), recorded) is True
    assert fires(policy(comparing("Equal", "21"), types="uint64"), recorded) is None


def test_r2_3_15_an_int_of_a_tracepoint_is_0_before_1_8() -> None:
    zero = policy(comparing("Equal", "0"), section="tracepoints")
    assert fires(zero, call(5, section="tracepoints")) is True
    assert fires(zero, call(5, section="tracepoints"), MAIN) is False
    assert (
        fires(policy(comparing("Equal", "5"), section="tracepoints", types="uint64"), call(5, section="tracepoints", types="uint64"))
        is True
    )
    assert "does not read" in why(
        policy(comparing("Equal", "x"), section="tracepoints", types="file"), call(file("x"), section="tracepoints", types="file")
    )


@pytest.mark.parametrize("type_", ["string", "net_device", "data_loc", "char_buf", "file", "path", "linux_binprm"])
def test_r2_3_16_texts_and_paths(type_: str) -> None:
    value: Value = b"/a" if type_ == "char_buf" else file("/a") if type_ in filters.PATH_TYPES else "/a"
    assert compares(type_, "Equal", ["/a"], value) is True


@pytest.mark.parametrize(("tier", "length"), [("v61", 4096), ("v511", 4096), ("large", 510), ("small", 144)])
def test_r2_3_17_longer_texts_are_cut_before_they_are_compared(tier: str, length: int) -> None:
    assert compares("string", "Equal", ["x" * length], "x" * 5000, Target(tier=tier)) is True
    assert "at most" in why(policy(comparing("Equal", "x" * (length + 1)), types="string"), call("x", types="string"), Target(tier=tier))


def test_r2_3_18_nuls_at_the_end_are_dropped_for_strings_only() -> None:
    assert compares("string", "Equal", ["/etc/passwd\0"], "/etc/passwd") is True
    assert compares("file", "Equal", ["/etc/passwd\0"], file("/etc/passwd")) is False
    assert compares("file", "Postfix", ["passwd\0"], file("/etc/passwd")) is True
    assert compares("string", "Prefix", [""], "x") is True


def test_r2_3_19_ends_are_bytes_up_to_a_limit() -> None:
    long = "/" + "x" * 300
    assert compares("string", "Prefix", [long[:255]], long) is True
    assert compares("string", "Prefix", [long[:256]], long) is False
    assert compares("string", "Postfix", ["x" * 94], long, Target(tier="small")) is True
    assert "at most 94" in why(policy(comparing("Postfix", "x" * 95), types="string"), call("x", types="string"), Target(tier="small"))
    assert compares("path", "Prefix", ["/etc"], file("/etcetera")) is True


@pytest.mark.parametrize("operator", ["Equal", "NotEqual", "Prefix", "NotPrefix", "Postfix", "NotPostfix"])
def test_r2_3_20_an_empty_path_matches_no_path_operator(operator: str) -> None:
    assert compares("file", operator, ["/etc/passwd"], file("", "drwxr-xr-x")) is False
    assert compares("file", "FileType", ["dir"], file("", "drwxr-xr-x")) is True


def test_r2_3_21_a_deleted_file_says_so() -> None:
    assert compares("file", "Equal", ["/tmp/x (deleted)"], file("/tmp/x (deleted)")) is True
    assert compares("file", "Equal", ["/tmp/x"], file("/tmp/x (deleted)")) is False


def test_r2_3_22_a_path_decides_only_its_own_type_and_an_fd_only_from_1_8_on() -> None:
    assert fires(policy(comparing("Equal", "/a"), types="path"), call(file("/a"), types="file")) is None
    assert fires(policy(comparing("Equal", "/a"), types="fd"), call(file("/a"), types="fd")) is None
    assert fires(policy(comparing("Equal", "/a"), types="fd"), call(file("/a"), types="fd"), MAIN) is True


def test_r2_3_23_the_type_of_a_file_is_that_of_its_inode() -> None:
    assert compares("path", "FileType", ["socket", "fifo"], file("/x", "prw-r--r--")) is True
    assert compares("path", "NotFileType", ["reg"], file("/x", "-rw-r--r--")) is False


def test_r2_3_24_part_of_a_text_needs_the_kernels_help() -> None:
    able = Target(features=frozenset([STRNSTR, STRCASESTR]))
    assert compares("string", "SubString", ["etc"], "/etc/x") is False
    assert compares("string", "SubString", ["etc"], "/etc/x", able) is True
    assert compares("string", "SubStringIgnCase", ["ETC"], "/etc/x", able) is True
    assert compares("file", "SubString", ["etc"], file("/etc/x"), able) is False
    assert compares("file", "SubString", ["etc"], file("/etc/x"), Target((1, 8), features=able.features)) is True
    with pytest.raises(filters.Unsupported, match="one value"):
        filters.compile_filter("SubString", ["a", "b"], "string")
    with pytest.raises(filters.Unsupported):
        filters.compile_filter("SubString", ["a"], "string", section="uprobes")


@pytest.mark.parametrize("read", ["maxData", "returnCopy"])
def test_r2_3_25_buffers_that_are_read_elsewhere_are_not_decided(read: str) -> None:
    args: list[Spec] = [{"index": 0, "type": "char_buf", "sizeArgIndex": 2, read: True}]
    assert read in why(policy(comparing("Equal", "x"), types=args), call(b"x", types="char_buf"))


def test_r2_3_25_a_buffer_that_could_not_be_read_is_not_decided() -> None:
    assert compares("char_buf", "Equal", ["x"], b"CharBufErrorPageFault") is None


@pytest.mark.parametrize(
    ("operator", "value", "expected"),
    [
        ("Equal", "/a\ufffdb", None),
        ("Equal", "/z\ufffdb", False),
        ("Prefix", "/aa\ufffd", True),
        ("Prefix", "/z\ufffd", False),
        ("Prefix", "/\ufffd", None),
        ("Postfix", "\ufffd/aa", True),
        ("Postfix", "\ufffd/z", False),
        ("NotPrefix", "/aa\ufffd", False),
    ],
)
def test_r2_3_26_lost_bytes_leave_open_what_the_rest_does_not_decide(operator: str, value: str, expected: bool | None) -> None:
    assert compares("string", operator, ["/axxb" if operator == "Equal" else "/aa"], value) is expected


V4 = Socket("AF_INET", "SOCK_STREAM", "IPPROTO_TCP", "TCP_SYN_SENT", "0.0.0.0", "10.1.2.3", 40112, 443)


def test_r2_3_27_a_socket_has_a_local_and_a_peer_side() -> None:
    assert compares("sock", "DAddr", ["10.0.0.0/8"], V4) is True
    assert compares("sock", "SAddr", ["10.0.0.0/8"], V4) is False
    assert compares("sock", "DPort", ["443"], V4) is True
    assert compares("skb", "NotDPort", ["443"], Socket()) is None  # what an earlier event left behind


@pytest.mark.parametrize(
    ("type_", "operator"),
    [
        ("sockaddr", "DAddr"),
        ("sockaddr", "DPort"),
        ("sockaddr", "Protocol"),
        ("sockaddr", "State"),
        ("sockaddr_un", "SAddr"),
        ("int", "SPort"),
    ],
)
def test_r2_3_28_some_operators_are_refused(type_: str, operator: str) -> None:
    with pytest.raises(filters.Unsupported):
        filters.compile_filter(operator, ["1"], type_)


def test_r2_3_28_a_packet_has_no_state() -> None:
    assert compares("skb", "State", ["TCP_SYN_SENT"], V4) is False


@pytest.mark.parametrize(
    ("operator", "values", "value", "expected"),
    [
        ("DAddr", ["10.0.0.99/8"], V4, True),
        ("NotDAddr", ["fd00::/8"], V4, True),
        ("DAddr", ["fd00::/8"], V4, False),
        ("NotDAddr", ["10.0.0.0/8"], Socket("AF_INET6", daddr="::ffff:10.1.2.3"), True),
        ("NotDAddr", ["10.0.0.0/8"], Socket("AF_UNIX"), False),
        ("DAddr", ["10.0.0.0/8"], Socket("AF_UNIX"), False),
    ],
)
def test_r2_3_29_addresses_are_compared_within_their_family(operator: str, values: list[str], value: Socket, expected: bool) -> None:
    assert compares("sock", operator, values, value) is expected


@pytest.mark.parametrize(("operator", "values"), [("SPortPriv", []), ("DPortPriv", []), ("NotSPort", ["22"])])
def test_r2_3_30_a_unix_socket_has_port_0(operator: str, values: list[str]) -> None:
    assert compares("sock", operator, values, Socket("AF_UNIX")) is True


def test_r2_3_31_names_numbers_and_ranges() -> None:
    for values in (["IPPROTO_TCP"], ["6"], ["5:7"]):
        assert compares("sock", "Protocol", values, V4) is True
    assert compares("sock", "State", ["TCP_LISTEN"], V4) is False


@pytest.mark.parametrize(
    ("operator", "path", "expected"),
    [("Equal", "/run/x", True), ("NotEqual", "/run/x", False), ("Prefix", "/run", None), ("Equal", "@bus", None), ("Prefix", "", None)],
)
def test_r2_3_32_unix_names(operator: str, path: str, expected: bool | None) -> None:
    value = {"Prefix": "@"}.get(operator, path)
    assert compares("sockaddr_un", operator, [value], Socket("AF_UNIX", saddr="@x" if operator == "Prefix" and path else path)) is expected


def test_r2_3_32_an_abstract_name_is_found_by_its_beginning() -> None:
    assert compares("sockaddr_un", "Prefix", ["bus"], Socket("AF_UNIX", saddr="@bus-1")) is None
    assert compares("sockaddr_un", "Prefix", ["other"], Socket("AF_UNIX", saddr="@bus-1")) is False


def test_r2_3_33_unknown_numbers_are_printed_as_numbers() -> None:
    assert compares("sock", "Protocol", ["253"], Socket("AF_INET", protocol="253")) is True
    assert compares("sock", "Family", ["AF_INET"], Socket()) is None


@pytest.mark.parametrize(("old", "new", "expected"), [(1, 3, True), (3, 1, False), (3, 3, False), (1, 2, True)])
def test_r2_3_34_capabilities_gained(old: int, new: int, expected: bool) -> None:
    gained = {"matchArgs": [{"args": [0, 1], "operator": "CapabilitiesGained"}]}
    recorded = call(old, new, types="cap_effective cap_permitted")
    assert fires(policy(gained, types="cap_effective cap_permitted"), recorded) is expected
    assert fires(policy(gained, types="int int"), call(old, new)) is None


def test_r2_3_35_capabilities_are_compared_as_a_whole() -> None:
    assert compares("cap_effective", "Equal", ["CAP_CHOWN,DAC_OVERRIDE"], 3) is True
    assert compares("cap_effective", "Equal", ["CAP_CHOWN"], 3) is False
    with pytest.raises(filters.Unsupported, match="DAC_OVERRIDE"):
        filters.compile_filter("Equal", ["CAP_DAC_OVERRIDE"], "cap_effective")


@pytest.mark.parametrize(
    ("text", "values", "expected"),
    [
        ("arg0 == 1", (1, 0), True),
        ("arg0 == 1 && arg1 != 0", (1, 0), False),
        ("arg0 > 5 || !(arg1 < 0)", (1, 0), True),
        ("arg0 + arg1 == 3", (1, 2), True),
        ("arg0 - 2 == -1", (1, 2), True),
        ("arg0 + arg1 > 0", (2147483647, 1), None),
        ("arg0 + ", (1, 2), None),
        ("arg0", (1, 2), None),
        ("arg7 == 1", (1, 2), None),
        ("arg0 == true", (1, 2), None),
    ],
)
def test_r2_3_36_expressions(text: str, values: tuple[int, int], expected: bool | None) -> None:
    selector = {"matchArgs": [{"args": [0, 1], "operator": "CelExpr", "values": [text]}]}
    assert fires(policy(selector, types="int int"), call(*values)) is expected


def test_r2_3_36_expressions_are_false_on_other_hooks_and_of_what_could_not_be_read() -> None:
    selector = {"matchArgs": [{"args": [0], "operator": "CelExpr", "values": ["arg0 == 1"]}]}
    assert fires(policy(selector, section="lsmhooks"), call(1, section="lsmhooks")) is False
    assert fires(policy(selector), call(ReadError("Bad address"))) is False
    assert fires(policy(selector, types="uint32 int64"), call(1, 1, types="uint32 int64")) is True


def test_r2_3_37_the_kernel_decides_the_type_of_a_resolved_field() -> None:
    args = [{"index": 0, "type": "int", "resolve": "a.b"}]
    resolved = Declared(0, "int", "a.b")

    def recorded(value: Value) -> Invocation:
        return Invocation(HOOKS["kprobes"], Process("/x"), (Argument(resolved, value),))

    assert fires(policy(ONE, types=args), recorded(1)) is True
    assert fires(policy(comparing("InMap", "-1"), types=args), recorded(-1)) is None
    assert fires(policy(comparing("LT", "0"), types=args), recorded(1 << 31)) is False
    assert fires(policy(comparing("Equal", "7"), types=args), recorded(0x1_0000_0007)) is False
    assert fires(policy(ONE, types=args), recorded(ReadError("2"))) is False


def test_r2_4_data_is_compared_as_arguments_are() -> None:
    data = [{"index": 0, "type": "uint32", "source": "current_task", "resolve": "cred.uid.val"}]
    document = policy({"matchData": [{"index": 0, "operator": "Equal", "values": ["7"]}]}, data=data)
    uid = Declared(0, "uint32", "cred.uid.val", "current_task")
    assert [fires(document, call(1, data=(Argument(uid, value),))) for value in (7, 8)] == [True, False]


# --- 2.5 to 2.10 ----------------------------------------------------------------------------------------------------

NAMESPACES = {"pid": (4026531836, True), "mnt": (4026532500, False), "user": (4026531837, True)}


def namespaces(kind: str, operator: str, *values: str) -> Spec:
    return policy({"matchNamespaces": [{"namespace": kind, "operator": operator, "values": list(values)}]})


@pytest.mark.parametrize(
    ("document", "process", "expected"),
    [
        (namespaces("Mnt", "NotIn", "host_ns"), Process("/x", namespaces=NAMESPACES, current=True), True),
        (namespaces("Mnt", "NotIn", "host_ns"), Process("/x", namespaces=NAMESPACES), None),
        (namespaces("Mnt", "NotIn", "host_ns"), Process("/x", namespaces=NAMESPACES, current_namespaces=True), True),
        (namespaces("Pid", "In", "host_ns"), Process("/x", namespaces=NAMESPACES), True),
        (namespaces("Pid", "In", "host_ns"), Process("/x", namespaces=NAMESPACES, executed=False), None),
        (namespaces("User", "In", "host_ns"), Process("/x", namespaces=NAMESPACES, executed=False), True),
        (namespaces("Net", "In", "host_ns"), Process("/x", namespaces=NAMESPACES, current=True), None),
    ],
)
def test_r2_5_namespaces_are_those_at_the_hook(document: Spec, process: Process, expected: bool | None) -> None:
    assert fires(document, call(1, process=process)) is expected


def test_r2_5_a_side_channel_decides() -> None:
    mnt = Argument(Declared(0, "uint32", "nsproxy.mnt_ns.ns.inum", "current_task"), 4026532999)
    process = Process("/x", namespaces={"mnt": (4026531841, True)})
    assert fires(namespaces("Mnt", "NotIn", "host_ns"), call(1, process=process, data=(mnt,))) is True
    assert fires(namespaces("Mnt", "In", "4026532999"), call(1, process=process, data=(mnt,))) is True


def capabilities(operator: str, *values: str, **more: Any) -> Spec:
    return policy({"matchCapabilities": [{"operator": operator, "values": list(values), **more}]})


CHOWN = Process("/x", current=True, capabilities={"effective": 1, "permitted": 3})


def test_r2_6_1_capabilities_are_those_at_the_hook() -> None:
    assert fires(capabilities("In", "CAP_CHOWN"), call(1, process=CHOWN)) is True
    effective = Argument(Declared(0, "cap_effective", "cred.cap_effective", "current_task"), 0)
    assert fires(capabilities("In", "CAP_CHOWN"), call(1, data=(effective,))) is False


def test_r2_6_2_in_is_any_and_not_in_is_none() -> None:
    assert fires(capabilities("In", "CAP_CHOWN", "CAP_KILL"), call(1, process=CHOWN)) is True
    assert fires(capabilities("NotIn", "CAP_CHOWN", "CAP_KILL"), call(1, process=CHOWN)) is False


@pytest.mark.parametrize("operator", ["In", "NotIn"])
def test_r2_6_3_in_the_hosts_user_namespace_it_is_false(operator: str) -> None:
    host = Process("/x", current=True, capabilities={"effective": 1}, namespaces=NAMESPACES)
    inside = Process("/x", current=True, capabilities={"effective": 1}, namespaces={"user": (4026532999, False)})
    document = capabilities(operator, "CAP_CHOWN", isNamespaceCapability=True)
    assert fires(document, call(1, process=host)) is False
    assert fires(document, call(1, process=inside)) is (operator == "In")


def test_r2_6_4_a_second_entry_is_misread() -> None:
    entry = {"operator": "In", "values": ["CAP_CHOWN"]}
    assert "misreads" in why(policy({"matchCapabilities": [entry, entry]}), call(1, process=CHOWN))


CREDENTIALS = {
    "metadata": {"name": "r"},
    "spec": {"kprobes": [{"call": name, "syscall": False, "args": []} for name in ("commit_creds", "security_capable", "f")]},
}


def changed(function: str, second: int, **arg: Any) -> Spec:
    """An event of a hook by process c, thread 3."""
    process = {"exec_id": "c", "parent_exec_id": "a", "pid": 3, "tid": 3, "binary": "/c", "start_time": "2026-01-01T00:00:02Z"}
    return {
        "process_kprobe": {"process": process, "function_name": function, "args": [arg] if arg else []},
        "time": f"2026-01-01T00:00:{second:02}Z",
    }


def test_r2_6_5_only_a_record_of_every_change_says_more_than_the_last_exec() -> None:
    mine = Process("/c", pid=3, thread=3, exec_id="c", in_container=False)

    def known(recorders: list[Spec], second: int, process: Process = mine) -> bool | None:
        past = history.History(recorders)
        past.add(changed("f", 1))
        past.add(executed("c", "a", 3, "/c", second=2, cap={"effective": ["CAP_CHOWN"]}))
        past.add(changed("commit_creds", 5, process_credentials_arg={"caps": {"effective": []}}))
        done = past.complete(call(1, process=process, time=f"2026-01-01T00:00:{second:02}Z"))
        return fires(capabilities("In", "CAP_CHOWN"), done)

    assert known([CREDENTIALS], 4) is True
    assert known([CREDENTIALS], 6) is False
    assert known([], 4) is None
    assert known([CREDENTIALS], 6, Process("/c", pid=3, thread=4, exec_id="c", in_container=False)) is None
    assert known([CREDENTIALS], 4, Process("/c", pid=3, thread=3, exec_id="c", in_container=True)) is None


def test_r2_6_5_a_hook_without_any_event_may_lie_in_a_file_that_is_missing() -> None:
    mine = Process("/c", pid=3, thread=3, exec_id="c", in_container=False)
    past = history.History([CREDENTIALS])
    past.add(changed("f", 1))
    past.add(executed("c", "a", 3, "/c", second=2, cap={"effective": ["CAP_CHOWN"]}))
    done = past.complete(call(1, process=mine, time="2026-01-01T00:00:05Z"))
    assert fires(capabilities("In", "CAP_CHOWN"), done) is None
    assert not done.process.current_namespaces
    assert not done.process.kept


def test_r2_6_5_another_hosts_recording_began_at_a_time_of_its_own() -> None:
    mine = Process("/c", pid=3, thread=3, exec_id="c", in_container=False)
    past = history.History([CREDENTIALS])
    stranger = {"exec_id": "x", "parent_exec_id": "y", "pid": 3, "tid": 3, "binary": "/x"}
    past.add({"process_kprobe": {"process": stranger, "function_name": "f"}, "node_name": "other", "time": "2026-01-01T00:00:01Z"})
    past.add({**executed("c", "a", 3, "/c", second=2, cap={"effective": ["CAP_CHOWN"]}), "node_name": "mine"})
    past.add({**changed("f", 4), "node_name": "mine"})
    assert fires(capabilities("In", "CAP_CHOWN"), past.complete(call(1, process=mine, time="2026-01-01T00:00:05Z"))) is None


def test_r2_5_no_namespace_is_entered_without_a_check_for_sys_admin() -> None:
    process = Process("/c", pid=3, exec_id="c", namespaces=NAMESPACES)
    past = history.History([CREDENTIALS])
    past.add(changed("f", 1))
    past.add(executed("c", "a", 3, "/c", second=2))
    past.add(changed("security_capable", 5, capability_arg={"value": 21}))
    assert [
        past.complete(call(1, process=process, time=f"2026-01-01T00:00:0{second}Z")).process.current_namespaces for second in (4, 6)
    ] == [
        True,
        False,
    ]


@pytest.mark.parametrize("operator", ["In", "NotIn"])
@pytest.mark.parametrize(
    ("key", "value", "cause"),
    [("matchNamespaceChanges", "Mnt", "security_capable"), ("matchCapabilityChanges", "CAP_CHOWN", "commit_creds")],
)
def test_r2_7_nothing_that_never_changed_matches(key: str, value: str, cause: str, operator: str) -> None:
    document = policy({key: [{"operator": operator, "values": [value]}]})
    mine = Process("/c", pid=3, thread=3, exec_id="c", in_container=False)

    def known(second: int, flags: str = "execve clone", recorders: list[Spec] | None = None) -> bool | None:
        past = history.History([CREDENTIALS] if recorders is None else recorders)
        past.add(changed("f", 1))
        past.add(executed("c", "a", 3, "/c", flags, second=2))
        past.add(changed(cause, 5))
        return fires(document, past.complete(call(1, process=mine, time=f"2026-01-01T00:00:{second:02}Z")))

    assert known(4) is False
    assert known(6) is None
    assert known(4, flags="execve") is None, "at an exec that follows no fork the agent keeps what it had"
    assert known(4, recorders=[]) is None
    assert "5.3" in why(document, call(1, process=mine), Target(tier="small"))


CART = Process("/x", in_container=True, pod=Pod("shop", {"app": "cart"}, "main", "docker.io/library/cart"))
HOST = Process("/x", in_container=False)


def test_r2_9_a_selector_has_workloads_of_its_own_from_1_8_on() -> None:
    document = policy(acting({"matchWorkloads": {"podSelector": {"matchLabels": {"app": "cart"}}}}, "NoPost"), {})
    assert [fires(document, call(1, process=process), MAIN) for process in (CART, HOST)] == [False, True]
    assert fires(document, call(1, process=CART)) is None


@pytest.mark.parametrize(("operator", "expected"), [("GT", False), ("LT", True), ("InRange", True), ("Mask", True)])
def test_r2_10_every_operator_on_numbers_works_on_a_return_value(operator: str, expected: bool) -> None:
    returned = {
        "matchReturnArgs": [
            {"index": 0, "operator": operator, "values": ["-9:0" if operator == "InRange" else "1" if operator == "Mask" else "0"]}
        ]
    }
    assert fires(policy({**ONE, **returned}, **RETURNS), call(1, returned=-1)) is expected


# --- 3. actions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("actions", "posts"), [(["Sigkill"], True), (["TrackSock"], True), (["Override"], True), (["Sigkill", "NoPost", "Post"], False)]
)
def test_r3_1_everything_but_nopost_posts(actions: list[str], posts: bool) -> None:
    assert fires(policy(acting(ONE, *actions)), call(1)) is posts


@pytest.mark.parametrize(("actions", "shown"), [(["Sigkill", "Post"], "Post"), (["Post", "Sigkill"], "Sigkill")])
def test_r3_2_an_event_names_the_last_action(actions: list[str], shown: str) -> None:
    (outcome,) = verdict(policy(acting(ONE, *actions)), call(1)).outcomes
    assert (outcome.action, outcome.actions) == (shown, tuple(actions))
    (both,) = verdict(policy(acting(acting(ONE, *actions), "NoPost", key="matchReturnActions"), **RETURNS), call(1, returned=0)).outcomes
    assert both.action == shown


def test_r3_4_a_rate_limit_or_nopost_does_not_fall_through() -> None:
    limited = {**ONE, "matchActions": [{"action": "Post", "rateLimit": "1m"}]}
    assert [one.selector for one in verdict(policy(limited, {}), call(1)).outcomes] == [0]
    assert fires(policy(acting(ONE, "NoPost"), {}), call(1)) is False


@pytest.mark.parametrize("action", ["GetUrl", "DnsLookup", "TrackSock", "NotifyEnforcer"])
def test_r3_6_lsm_hooks_take_few_actions(action: str) -> None:
    assert "refused on LSM hooks" in why(policy(acting(ONE, action), section="lsmhooks"), call(1, section="lsmhooks"))


def test_r3_7_matches_and_posts_are_told_apart() -> None:
    one = verdict(policy({**ONE, "matchActions": [{"action": "Post", "rateLimit": "1m"}]}), call(1))
    assert (one.fires.value, one.posts.value) == (True, None)
    assert verdict(policy(ONE), call(1)).posts.value is True


def test_r3_8_below_5_11_an_action_behind_post_is_misread() -> None:
    document = policy(acting(ONE, "Post", "NoPost"))
    assert fires(document, call(1)) is False
    assert "misread" in why(document, call(1), Target(tier="large"))
    assert fires(policy(acting(ONE, "Sigkill", "Post")), call(1), Target(tier="large")) is True


@pytest.mark.parametrize(("mode", "effects"), [("monitor", ()), ("enforce", ("Sigkill",))])
def test_r3_9_monitor_mode_changes_nothing_but_the_effect(mode: str, effects: tuple[str, ...]) -> None:
    document = policy(acting(ONE, "Sigkill"), spec={"options": [{"name": "policy-mode", "value": mode}]})
    (outcome,) = verdict(document, call(1)).outcomes
    assert (outcome.posts, outcome.action, outcome.effects) == (True, "Sigkill", effects)
    assert CompiledPolicy(document, mode="monitor").evaluate(call(1))[0].outcomes[0].effects == ()


def test_r3_10_the_return_side_ignores_the_mode() -> None:
    document = policy(acting(ONE, "Sigkill", key="matchReturnActions"), **RETURNS)
    assert CompiledPolicy(document).mode == "monitor_only"
    one = verdict(document, call(1, returned=0))
    assert one.outcomes[0].effects == ("Sigkill",)
    assert any("monitor mode" in caveat for caveat in one.caveats)


def test_r3_10_enforcement_by_a_macro_alone_is_not_carried_out() -> None:
    document = policy({**ONE, "macros": ["m"]}, spec={"selectorsMacros": {"m": {"matchActions": [{"action": "Sigkill"}]}}})
    (outcome,) = verdict(document, call(1)).outcomes
    assert (CompiledPolicy(document).mode, outcome.action, outcome.effects) == ("monitor_only", "Sigkill", ())


def test_r3_10_enforcement_on_fentry_is_refused() -> None:
    assert "refused on fentry" in why(policy(acting(ONE, "Sigkill"), section="fentries"), call(1))


@pytest.mark.parametrize(("section", "effects"), [("kprobes", ("Override",)), ("lsmhooks", ("Override",)), ("tracepoints", ())])
def test_r3_6_an_override_has_no_effect_on_a_tracepoint(section: str, effects: tuple[str, ...]) -> None:
    document = policy(acting({}, "Override"), section=section)
    assert verdict(document, call(1, section=section)).outcomes[0].effects == effects


def test_r3_11_unknown_options_are_ignored() -> None:
    assert fires(policy(ONE, spec={"options": [{"name": "none", "value": "x"}]}), call(1)) is True


# --- 4. where a policy applies --------------------------------------------------------------------------------------


def where(spec: Spec, process: Process, namespace: str | None = None, **more: Any) -> bool | None:
    document = policy({}, spec=spec)
    if namespace:
        document["metadata"]["namespace"] = namespace
    return fires(document, call(1, process=process, **more))


def test_r4_1_a_missing_selector_is_filled_in() -> None:
    assert where({"podSelector": {}}, CART) is where({"containerSelector": {}}, CART) is where({}, CART, "shop") is True
    assert where({"podSelector": {}, "containerSelector": {}, "hostSelector": {}}, HOST) is True
    assert where({"hostSelector": {}}, HOST, "shop") is None


def test_r4_2_a_label_selector() -> None:
    for operator, values, expected in (
        ("In", ["cart"], True),
        ("NotIn", ["cart"], False),
        ("Exists", [], True),
        ("DoesNotExist", [], False),
    ):
        expression = {"key": "app", "operator": operator, "values": values}
        assert where({"podSelector": {"matchExpressions": [expression]}}, CART) is expected


def test_r4_3_a_pods_namespace_is_a_label_too() -> None:
    assert where({"podSelector": {"matchLabels": {"k8s:io.kubernetes.pod.namespace": "shop"}}}, CART) is True
    assert where({"podSelector": {}}, CART, "bank") is False


def test_r4_4_a_container_is_its_name_and_repository() -> None:
    assert where({"containerSelector": {"matchLabels": {"name": "main", "repo": "docker.io/library/cart"}}}, CART) is True
    assert where({"containerSelector": {"matchLabels": {"app": "cart"}}}, CART) is False


def test_r4_5_the_host_is_what_is_no_pod() -> None:
    assert [where({"hostSelector": {}}, process) for process in (HOST, CART)] == [True, False]
    assert where({"podSelector": {}}, HOST) is False


def test_r4_8_a_container_without_a_pod_is_not_decided() -> None:
    assert where({"podSelector": {}}, Process("/x", in_container=None)) is None


def test_r4_9_nodes_are_selected_from_1_8_on() -> None:
    document = policy({}, spec={"nodeSelector": {"matchLabels": {"zone": "a"}}})
    assert [fires(document, call(1, node_labels={"zone": zone}), MAIN) for zone in "ab"] == [True, False]
    assert fires(document, call(1), MAIN) is None
    assert fires(document, call(1)) is True


# --- 5. hooks -------------------------------------------------------------------------------------------------------


def test_r5_1_a_system_call_has_many_spellings() -> None:
    for name in ("sys_open", "__x64_sys_open", "__arm64_sys_open"):
        assert identities("kprobe", {"call": name}, {}) == [Hook("kprobe", "sys_open")]
    assert identities("kprobe", {"call": "__ia32_sys_open"}, {}) == [Hook("kprobe", "__ia32_sys_open")]


def test_r5_2_a_list_is_one_hook_per_value() -> None:
    lists = {"l": {"name": "l", "type": "syscalls", "values": ["sys_open", "i386/sys_open"]}}
    assert identities("kprobe", {"call": "list:l"}, lists) == [Hook("kprobe", "sys_open"), Hook("kprobe", "__ia32_sys_open")]


@pytest.mark.parametrize(
    ("kind", "pattern", "function", "expected"),
    [
        ("generated_syscalls", "", "sys_open", [True]),
        ("generated_syscalls", "", "tcp_connect", []),
        ("generated_ftrace", "tcp_*", "tcp_connect", [None]),
        ("generated_ftrace", "^tcp_co", "tcp_connect", [None]),
        ("generated_ftrace", "^udp_", "tcp_connect", []),
        ("generated_ftrace", "*connect", "tcp_connect", [None]),
    ],
)
def test_r5_2_generated_lists(kind: str, pattern: str, function: str, expected: list[bool | None]) -> None:
    document = policy({}, spec={"lists": [{"name": "l", "type": kind, "pattern": pattern}]}, call="list:l")
    found = CompiledPolicy(document).evaluate(Invocation(Hook("kprobe", function), Process("/x")))
    assert [one.fires.value for one in found] == expected


def test_r5_3_a_list_of_calls_is_a_set_of_numbers_on_tracepoints() -> None:
    spec = {"lists": [{"name": "l", "type": "syscalls", "values": ["sys_dup", "__ia32_sys_dup"]}]}
    selector = comparing("InMap", "list:l", index=4)
    document = policy(selector, section="tracepoints", types=[{"index": 4, "type": "syscall64"}], spec=spec)

    def recorded(number: int) -> Invocation:
        return Invocation(HOOKS["tracepoints"], Process("/x"), (Argument(Declared(4, "syscall64"), number),))

    assert [fires(document, recorded(number)) for number in (32, 33, 41 | 1 << 31, 41)] == [True, False, True, False]
    wide = policy(selector, section="tracepoints", types=[{"index": 4, "type": "uint64"}], spec=spec)
    assert "syscall64" in why(wide, recorded(32))
    assert syscalls.number("sys_none") is None


def test_r5_5_arguments_of_a_system_call_are_not_those_of_its_entry() -> None:
    def recorded(syscall: bool) -> Invocation:
        return decoded(policy({}, call="sys_open", syscall=syscall), {"function_name": "__x64_sys_open", "args": [{"int_arg": 1}]})

    document = policy(ONE, call="sys_open", syscall=True)
    assert [fires(document, recorded(syscall)) for syscall in (True, False)] == [True, None]


def test_r5_6_a_kprobe_is_of_a_system_call_unless_it_says_otherwise() -> None:
    entry = {"call": "sys_open", "args": [{"index": 0, "type": "int"}], "selectors": []}
    ((args, _unused),) = recorder({"metadata": {"name": "p"}, "spec": {"kprobes": [entry]}}).values()
    assert args[0].context == "syscall"


def twice(section: str) -> Spec:
    document = policy(ONE, section=section)
    document["spec"][section] *= 2
    return document


def test_r5_7_a_function_may_be_listed_twice_but_not_under_kprobe_multi() -> None:
    assert [one.fires.value for one in CompiledPolicy(twice("kprobes")).evaluate(call(1))] == [True, True]
    multi = CompiledPolicy(twice("kprobes"), Target(features=frozenset([KPROBE_MULTI])))
    assert {one.fires.value for one in multi.evaluate(call(1))} == {None}


@pytest.mark.parametrize(("target", "expected"), [(Target(), None), (MAIN, True)])
def test_r5_7_an_lsm_hook_may_be_listed_twice_from_1_8_on(target: Target, expected: bool | None) -> None:
    found = CompiledPolicy(twice("lsmhooks"), target).evaluate(call(1, section="lsmhooks"))
    assert [one.fires.value for one in found] == [expected] * 2


# --- 5.7 equivalences -----------------------------------------------------------------------------------------------

OPEN = Hook("kprobe", "security_file_open")
LSM_OPEN = Hook("lsm", "file_open")
ON_FILE = comparing("Equal", "/a")


def decided(document: Spec, recorded: Invocation) -> list[bool | None]:
    return [one.fires.value for one in CompiledPolicy(document, recorded=[recorded.hook]).evaluate(recorded)]


def opened(hook: Hook, path: str, **more: Any) -> Invocation:
    return Invocation(hook, Process("/x"), (Argument(Declared(0, "file"), file(path)),), **more)


def test_r5_7_an_lsm_recording_decides_its_function() -> None:
    document = policy(ON_FILE, call="security_file_open", types="file")
    assert [decided(document, opened(LSM_OPEN, path)) for path in ("/a", "/b")] == [[True], [False]]


def test_r5_7_a_function_decides_its_lsm_hook_only_where_it_is_reached() -> None:
    document = policy(ON_FILE, section="lsmhooks", hook="file_open", types="file")
    assert [decided(document, opened(OPEN, path)) for path in ("/a", "/b")] == [[None], [False]]
    assert decided(document, opened(OPEN, "/a", returned=0)) == [True]


def test_r5_7_nothing_stands_in_for_a_hook_that_was_recorded() -> None:
    document = policy(ON_FILE, call="security_file_open", types="file")
    both = CompiledPolicy(document, recorded=[OPEN, LSM_OPEN])
    assert both.evaluate(opened(LSM_OPEN, "/a")) == []
    assert CompiledPolicy(document).evaluate(opened(LSM_OPEN, "/a")) == []


def test_r5_7_the_numbers_of_a_system_call_carry_over_and_its_texts_do_not() -> None:
    args = [{"index": 0, "type": "int"}, {"index": 1, "type": "string"}]
    event = Invocation(
        Hook("tracepoint", "syscalls/sys_enter_openat"),
        Process("/x"),
        (Argument(Declared(5, "uint64"), 1), Argument(Declared(6, "string"), "/a")),
    )
    assert decided(policy(ONE, call="sys_openat", syscall=True, types=args), event) == [True]
    assert decided(policy(comparing("Equal", "/a", index=1), call="sys_openat", syscall=True, types=args), event) == [None]


def test_r5_7_a_system_call_decides_its_tracepoint() -> None:
    event = Invocation(Hook("kprobe", "sys_openat"), Process("/x"), (Argument(Declared(1, "uint64", context="syscall"), 7),))
    document = policy(
        comparing("Equal", "7", index=6),
        section="tracepoints",
        subsystem="syscalls",
        event="sys_enter_openat",
        types=[{"index": 6, "type": "uint64"}],
    )
    assert decided(document, event) == [True]


def test_r5_7_every_equivalence_names_its_source() -> None:
    for hook in (
        OPEN,
        LSM_OPEN,
        Hook("kprobe", "sys_openat"),
        Hook("tracepoint", "syscalls/sys_enter_openat"),
        Hook("lsm", "bprm_check_security"),
    ):
        found = equivalences.equivalents(hook)
        assert found
        assert all(one.source and one.wanted == hook and one.recorded != hook for one in found)


@pytest.mark.parametrize("name", ["mmap_file", "inode_follow_link", "path_unlink", "sk_alloc"])
def test_r5_7_hooks_whose_arguments_differ_are_left_out(name: str) -> None:
    assert equivalences.equivalents(Hook("lsm", name)) == ()
    assert equivalences.equivalents(Hook("kprobe", f"security_{name}")) == ()


# --- the list of rules ----------------------------------------------------------------------------------------------

# Rules about what no replay of events can see, each with why.
ELSEWHERE = {
    "R2.1.3": "the schema takes no other operators",
    "R2.1.9": "a lint: a literal pid means nothing on another machine",
    "R2.2.6": "an executed file that could not be read is in no event",
    "R3.3": "which entry of the agent's maps is missing is in no event",
    "R3.5": "events that are lost after they matched",
    "R3.12": "counters of a running agent",
    "R4.6": "when a label or a container becomes known to the agent",
    "R4.7": "which task an interrupt hit",
    "R5.4": "the tracepoint's own fields",
}
COUNTS = {"R1": 15, "R2.1": 9, "R2.2": 9, "R2.3": 37, "R2.6": 5, "R3": 12, "R4": 9, "R5": 7}


def test_every_rule_has_a_test() -> None:
    names = [name for name in globals() if name.startswith("test_r")]
    tested = {re.sub(r"\D+$", "", match[1]).replace("_", ".") for name in names if (match := re.match(r"test_r((?:\d+_)+)", name))}
    rules = {f"{group}.{number}" for group, count in COUNTS.items() for number in range(1, count + 1)}
    assert {rule for rule in rules if rule.removeprefix("R") not in tested} == set(ELSEWHERE)
