# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Every lint has policies that trip it, and near twins that trip nothing at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.lint import RULES, Context, Finding, lint, lint_set
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.load import Library
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.render import render
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.schema import Version
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.traits import traits
from ansible_collections.apiary.tetragon.tests.unit.plugins.plugin_utils.samples import FORM_IDS, FORMS, LIBRARY_VALUES, PROTECTED

Spec = dict[str, Any]
SSHD, CAT = "/usr/sbin/sshd", "/usr/bin/cat"


def findings(
    spec: Spec,
    mode: str = "monitor",
    version: Version = (1, 7, 0),
    namespace: str | None = None,
    protected: tuple[str, ...] = (SSHD, "/usr/lib/systemd/systemd"),
) -> list[Finding]:
    """All that the lints find in one policy."""
    metadata = {"name": "it", **({"namespace": namespace} if namespace else {})}
    derived = traits({"metadata": metadata, "spec": spec}, version)
    return lint(Context("it", spec, namespace, mode, version, protected, derived))


def selector(*actions: str, **filters: object) -> Spec:
    """A selector on one path, with these actions; further filters may be added or, with None, taken away."""
    chosen: Spec = {"matchArgs": [{"index": 0, "operator": "Equal", "values": ["/etc/shadow"]}], **filters}
    if actions:
        chosen["matchActions"] = [{"action": action} for action in actions]
    return {key: value for key, value in chosen.items() if value is not None}


def kprobe(*selectors: Spec, call: str = "security_file_open", **more: object) -> Spec:
    """A kprobe with a file as its argument."""
    return {"call": call, "syscall": False, "args": [{"index": 0, "type": "file"}], "selectors": list(selectors), **more}


def lsm(*selectors: Spec, hook: str = "file_open") -> Spec:
    """An LSM hook with a file as its argument."""
    return {"hook": hook, "args": [{"index": 0, "type": "file"}], "selectors": list(selectors)}


def uprobe(*selectors: Spec, path: str = "/usr/bin/tool") -> Spec:
    """A uprobe with an int as its argument."""
    return {"path": path, "symbols": ["main"], "args": [{"index": 0, "type": "int"}], "selectors": list(selectors)}


def kprobes(*hooks: Spec, **more: object) -> Spec:
    """The spec of a policy of kprobes, kprobe-multi switched off."""
    return {"kprobes": list(hooks), "options": [{"name": "disable-kprobe-multi", "value": "1"}], **more}


def numbers(operator: str, *values: object, kind: str = "int") -> Spec:
    """A spec that compares a number; hot functions need a filter, so the function is a quiet one."""
    filters = {"matchArgs": [{"index": 0, "operator": operator, "values": [str(value) for value in values]}]}
    return kprobes(kprobe(filters, call="security_path_chmod", args=[{"index": 0, "type": kind}]))


NOT_PROTECTED: Spec = {"matchBinaries": [{"operator": "NotIn", "values": [SSHD, "/usr/lib/systemd/systemd"]}]}
ONLY_CAT: Spec = {"matchBinaries": [{"operator": "In", "values": [CAT]}]}
IN_CONTAINER: Spec = {"matchNamespaces": [{"namespace": "Pid", "operator": "NotIn", "values": ["host_ns"]}]}
ONE: Spec = {"matchArgs": [{"index": 0, "operator": "Equal", "values": ["1"]}]}
PODS: Spec = {"podSelector": {"matchLabels": {"app": "cart"}}}


def tracepoint(action: str, **more: object) -> Spec:
    """The spec of a policy with a tracepoint that acts on one program."""
    return {"tracepoints": [{"subsystem": "oom", "event": "x", "selectors": [selector(action, matchArgs=None, **ONLY_CAT)], **more}]}


MANY = [str(number) for number in range(5)]
QUIET = "security_path_truncate"

# rule -> name -> (what trips it, its near twin); each a spec, or a spec with further arguments of findings()
TWINS: dict[str, dict[str, tuple[Any, Any]]] = {
    "one-section": {
        "two sections": (
            kprobes(kprobe(selector()), uprobes=[uprobe({})]),
            kprobes(kprobe(selector()), enforcers=[{"calls": ["sys_open"]}]),
        ),
        "no section": ({}, {"loader": True}),
        "an empty section": ({"kprobes": []}, kprobes(kprobe(selector()), lsmhooks=[])),
    },
    "hot-hook-unfiltered": {
        "a kprobe without selectors": (kprobes(kprobe()), kprobes(kprobe(call=QUIET))),
        "a kprobe with an empty selector": (kprobes(kprobe({})), kprobes(kprobe(selector()))),
        "a second selector that filters nothing": (
            kprobes(kprobe(selector(), {})),
            kprobes(kprobe(selector(), {"matchActions": [{"action": "NoPost"}]})),
        ),
        "an LSM hook": ({"lsmhooks": [lsm({})]}, {"lsmhooks": [lsm(selector())]}),
        "a tracepoint": (
            {"tracepoints": [{"subsystem": "raw_syscalls", "event": "sys_enter"}]},
            {"tracepoints": [{"subsystem": "oom", "event": "mark_victim"}]},
        ),
        "a system call": (
            kprobes(kprobe(call="sys_read", syscall=True, args=[])),
            kprobes(kprobe(call="sys_swapon", syscall=True, args=[])),
        ),
    },
    "enforce-unscoped": {
        "an override of every call": (
            (kprobes(kprobe({"matchActions": [{"action": "Override"}]}, call=QUIET)), "enforce"),
            (kprobes(kprobe(selector("Override"), call=QUIET)), "enforce"),
        ),
        "the same, scoped to pods": (
            (kprobes(kprobe({"matchActions": [{"action": "Override"}]}, call=QUIET)), "enforce"),
            (kprobes(kprobe({"matchActions": [{"action": "Override"}]}, call=QUIET), **PODS), "enforce"),
        ),
        "the same, in monitor mode": (
            kprobes(kprobe({"matchActions": [{"action": "Override"}]}, call=QUIET)),
            kprobes(kprobe({"matchActions": [{"action": "Post"}]}, call=QUIET)),
        ),
    },
    "kills-protected": {
        "no word about the process": (kprobes(kprobe(selector("Sigkill"))), kprobes(kprobe(selector("Sigkill", **NOT_PROTECTED)))),
        "a signal": (kprobes(kprobe(selector("Signal"))), kprobes(kprobe(selector("Signal", **IN_CONTAINER)))),
        "only one of the protected spared": (
            kprobes(kprobe(selector("Sigkill", matchBinaries=[{"operator": "NotIn", "values": [SSHD]}]))),
            kprobes(kprobe(selector("Sigkill", **NOT_PROTECTED))),
        ),
        "a protected one listed": (
            kprobes(kprobe(selector("Sigkill", matchBinaries=[{"operator": "In", "values": [CAT, SSHD]}]))),
            kprobes(kprobe(selector("Sigkill", **ONLY_CAT))),
        ),
        "a prefix above a protected one": (
            kprobes(kprobe(selector("Sigkill", matchBinaries=[{"operator": "Prefix", "values": ["/usr/sbin/"]}]))),
            kprobes(kprobe(selector("Sigkill", matchBinaries=[{"operator": "Prefix", "values": ["/opt/"]}]))),
        ),
        "a prefix that spares but one": (
            kprobes(kprobe(selector("Sigkill", matchBinaries=[{"operator": "NotPrefix", "values": ["/usr/sbin/"]}]))),
            kprobes(kprobe(selector("Sigkill", matchBinaries=[{"operator": "NotPrefix", "values": ["/usr/sbin/", "/usr/lib/"]}]))),
        ),
        "a postfix of a protected one": (
            kprobes(kprobe(selector("Sigkill", matchBinaries=[{"operator": "Postfix", "values": ["/sshd"]}]))),
            kprobes(kprobe(selector("Sigkill", matchBinaries=[{"operator": "Postfix", "values": ["/cat"]}]))),
        ),
        "a postfix that spares but one": (
            kprobes(kprobe(selector("Sigkill", matchBinaries=[{"operator": "NotPostfix", "values": ["/sshd"]}]))),
            kprobes(kprobe(selector("Sigkill", matchBinaries=[{"operator": "NotPostfix", "values": ["/sshd", "/systemd"]}]))),
        ),
        "in the namespaces of the host": (
            kprobes(
                kprobe(selector("Sigkill", matchNamespaces=[{"namespace": "Pid", "operator": "In", "values": ["host_ns"]}]))
            ),
            kprobes(kprobe(selector("Sigkill", matchNamespaces=[{"namespace": "Mnt", "operator": "NotIn", "values": ["host_ns"]}]))),
        ),
        "outside another namespace that says nothing of containers": (
            kprobes(
                kprobe(selector("Sigkill", matchNamespaces=[{"namespace": "Net", "operator": "NotIn", "values": ["host_ns"]}]))
            ),
            kprobes(kprobe(selector("Sigkill", **IN_CONTAINER))),
        ),
        "a uprobe in a protected program": (
            {"uprobes": [uprobe({**ONE, "matchActions": [{"action": "Sigkill"}]}, path=SSHD)]},
            {"uprobes": [uprobe({**ONE, "matchActions": [{"action": "Sigkill"}]})]},
        ),
        "a uprobe in a library": (
            {"uprobes": [uprobe({**ONE, "matchActions": [{"action": "Sigkill"}]}, path="/lib/libc.so.6")]},
            {"uprobes": [uprobe({**ONLY_CAT, "matchActions": [{"action": "Sigkill"}]}, path="/lib/libc.so.6")]},
        ),
        "all of the host": (kprobes(kprobe(selector("Sigkill"))), kprobes(kprobe(selector("Sigkill")), **PODS)),
        "without a namespace": (kprobes(kprobe(selector("Sigkill"))), (kprobes(kprobe(selector("Sigkill"))), "monitor", (1, 7, 0), "shop")),
        "with something to protect": (
            kprobes(kprobe(selector("Sigkill"))),
            (kprobes(kprobe(selector("Sigkill"))), "monitor", (1, 7, 0), None, ()),
        ),
    },
    "action-not-for-hook": {
        "an override in a tracepoint": (
            tracepoint("Override"),
            tracepoint("Sigkill"),
        ),
        "a kill in a fentry": (
            {"fentries": [kprobe(selector("Sigkill", **ONLY_CAT))]},
            {"fentries": [kprobe(selector("Post", **ONLY_CAT))]},
        ),
        "GetUrl in an LSM hook": ({"lsmhooks": [lsm(selector("GetUrl"))]}, {"lsmhooks": [lsm(selector("Post"))]}),
        "TrackSock in an LSM hook": ({"lsmhooks": [lsm(selector("TrackSock"))]}, kprobes(kprobe(selector("TrackSock")))),
        "Set in a kprobe": (
            kprobes(kprobe(selector("Set"))),
            {"usdts": [{"path": "/bin/x", "provider": "p", "name": "n", "selectors": [selector("Set", matchArgs=None, **ONLY_CAT)]}]},
        ),
        "FollowFD in a uprobe": (
            {"uprobes": [uprobe({"matchActions": [{"action": "FollowFD"}]})]},
            kprobes(kprobe(selector("FollowFD"))),
        ),
        "NotifyEnforcer without an enforcer": (
            kprobes(kprobe(selector("NotifyEnforcer"))),
            kprobes(kprobe(selector("NotifyEnforcer")), enforcers=[{"calls": ["sys_open"]}]),
        ),
        "on the return side": (
            {"lsmhooks": [lsm(selector(matchReturnActions=[{"action": "TrackSock"}]))]},
            kprobes(kprobe(selector(matchReturnActions=[{"action": "TrackSock"}]))),
        ),
    },
    "override-target": {
        "a function of the kernel": (
            kprobes(kprobe(selector("Override"), call="vfs_truncate")),
            kprobes(kprobe(selector("Override"), call=QUIET)),
        ),
        "not declared as a system call": (
            kprobes(kprobe(selector("Override"), call="sys_chmod")),
            kprobes(kprobe(selector("Override"), call="sys_chmod", syscall=True)),
        ),
    },
    "override-kprobe-multi": {
        "no option": ({"kprobes": [kprobe(selector("Override"))]}, kprobes(kprobe(selector("Override")))),
        "the option switched back on": (
            kprobes(kprobe(selector("Override")), options=[{"name": "disable-kprobe-multi", "value": "0"}]),
            kprobes(kprobe(selector("Override")), options=[{"name": "disable-kprobe-multi", "value": "true"}]),
        ),
        "a function, not a system call": (
            {"kprobes": [kprobe(selector("Override"))]},
            {"kprobes": [kprobe(selector("Override"), call="sys_chmod", syscall=True)]},
        ),
    },
    "lsm-override-leaks": {
        "an LSM hook": ({"lsmhooks": [lsm(selector("Override"))]}, kprobes(kprobe(selector("Override")))),
    },
    "return-enforcement": {
        "a kill on return": (
            kprobes(kprobe(selector(matchReturnActions=[{"action": "Sigkill"}], **ONLY_CAT))),
            kprobes(kprobe(selector("Sigkill", **ONLY_CAT))),
        ),
        "a signal on return": (
            kprobes(kprobe(selector(matchReturnActions=[{"action": "Signal"}], **ONLY_CAT))),
            kprobes(kprobe(selector(matchReturnActions=[{"action": "Post"}], **ONLY_CAT))),
        ),
    },
    "enforce-without-action": {
        "nothing that enforces": ((kprobes(kprobe(selector("Post"))), "enforce"), (kprobes(kprobe(selector("Override"))), "enforce")),
        "monitor only": ((kprobes(kprobe(selector())), "enforce"), (kprobes(kprobe(selector())), "monitor")),
        "in a macro alone": (
            (
                kprobes(kprobe(selector(macros=["m"])), selectorsMacros={"m": {"matchActions": [{"action": "Override"}]}}),
                "enforce",
            ),
            (kprobes(kprobe(selector("Override", macros=["m"])), selectorsMacros={"m": dict(IN_CONTAINER)}), "enforce"),
        ),
    },
    "not-persistent": {
        "a raw tracepoint": (
            (tracepoint("Sigkill", raw=True), "enforce"),
            (tracepoint("Sigkill", raw=False), "enforce"),
        ),
        "an LSM hook before 1.8": (
            ({"lsmhooks": [lsm(selector("Sigkill", **ONLY_CAT))]}, "enforce", (1, 7, 0)),
            ({"lsmhooks": [lsm(selector("Sigkill", **ONLY_CAT))]}, "enforce", (1, 8, 0)),
        ),
        "enforcing": (
            ({"lsmhooks": [lsm(selector("Sigkill", **ONLY_CAT))]}, "enforce", (1, 7, 0)),
            ({"lsmhooks": [lsm(selector("Sigkill", **ONLY_CAT))]}, "monitor", (1, 7, 0)),
        ),
    },
    "syscall-default": {
        "nothing said": (
            kprobes({"call": QUIET, "args": [{"index": 0, "type": "path"}], "selectors": [selector()]}),
            kprobes({"call": "sys_chmod", "args": [{"index": 0, "type": "string"}], "selectors": [selector()]}),
        ),
        "said to be one": (kprobes(kprobe(selector(), syscall=True)), kprobes(kprobe(selector(), call="__x64_sys_chmod", syscall=True))),
        "a fentry": ({"fentries": [kprobe(selector(), syscall=True)]}, {"fentries": [kprobe(selector())]}),
        "a list": (
            kprobes(kprobe(selector(), call="lists", syscall=True)),
            kprobes(kprobe(selector(), call="list:mine", syscall=True), lists=[{"name": "mine", "values": ["sys_chmod"]}]),
        ),
    },
    "lsm-without-selector": {
        "no selectors": ({"lsmhooks": [lsm(hook="task_kill")]}, {"lsmhooks": [lsm({}, hook="task_kill")]}),
        "no such key": ({"lsmhooks": [{"hook": "task_kill"}]}, kprobes(kprobe(call="security_task_setnice"))),
    },
    "unknown-option": {
        "a misspelt mode": (
            kprobes(kprobe(selector()), options=[{"name": "policy_mode", "value": "monitor"}]),
            kprobes(kprobe(selector()), options=[{"name": "policy-mode", "value": "monitor"}]),
        ),
    },
    "operator-not-for-type": {
        "a range on a path": (
            kprobes(kprobe(selector(matchArgs=[{"index": 0, "operator": "InRange", "values": ["1:2"]}]))),
            kprobes(kprobe(selector(matchArgs=[{"index": 0, "operator": "Prefix", "values": ["/etc"]}]))),
        ),
        "a prefix on a number": (numbers("Prefix", 1), numbers("GT", 1)),
        "a prefix on a socket": (numbers("NotPrefix", "10.0.0.0", kind="sock"), numbers("NotDAddr", "10.0.0.0/8", kind="sock")),
        "an address on a path": (numbers("DAddr", "10.0.0.0/8", kind="path"), numbers("DAddr", "10.0.0.0/8", kind="sock")),
        "a peer on a sockaddr": (numbers("DAddr", "10.0.0.0/8", kind="sockaddr"), numbers("SAddr", "10.0.0.0/8", kind="sockaddr")),
        "a word for a number": (numbers("Equal", "one"), numbers("Equal", "0x1")),
        "half a range": (numbers("InRange", "1"), numbers("InRange", "1:2")),
        "an address that is none": (numbers("SAddr", "10.0.0.0/40", kind="sock"), numbers("SAddr", "10.0.0.0/24", kind="sock")),
        "a port that is none": (numbers("DPort", "http", kind="sock"), numbers("DPort", "80", "8000:9000", kind="sock")),
        "an unknown family": (numbers("Family", "INET", kind="sock"), numbers("Family", "AF_INET", "10", kind="sock")),
        "no values": (
            kprobes(kprobe(selector(matchArgs=[{"index": 0, "operator": "Equal"}]))),
            kprobes(kprobe(selector(matchArgs=[{"index": 0, "operator": "SPortPriv"}]), args=[{"index": 0, "type": "sock"}])),
        ),
        "an argument that is not listed": (
            kprobes(kprobe(selector(matchArgs=[{"index": 1, "operator": "Equal", "values": ["/x"]}]))),
            kprobes(kprobe(selector(matchArgs=[{"index": 0, "operator": "Equal", "values": ["/x"]}]))),
        ),
        "a position that is not listed": (
            kprobes(kprobe(selector(matchArgs=[{"args": [1], "operator": "Equal", "values": ["/x"]}]))),
            kprobes(kprobe(selector(matchArgs=[{"args": [0], "operator": "Equal", "values": ["/x"]}]))),
        ),
        "data that is not listed": (
            kprobes(kprobe(selector(matchData=[{"index": 0, "operator": "Equal", "values": ["1"]}]))),
            kprobes(
                kprobe(
                    selector(matchData=[{"index": 0, "operator": "Equal", "values": ["1"]}]),
                    data=[{"index": 0, "type": "int", "source": "current_task", "resolve": "pid"}],
                )
            ),
        ),
        "a returned number": (
            kprobes(kprobe(selector(matchReturnArgs=[{"index": 0, "operator": "Prefix", "values": ["1"]}]), **{"return": True})),
            kprobes(kprobe(selector(matchReturnArgs=[{"index": 0, "operator": "Equal", "values": ["-1"]}]), **{"return": True})),
        ),
        "a type of file": (numbers("FileType", "folder", kind="file"), numbers("FileType", "dir", kind="file")),
        "a file's type of a text": (numbers("FileType", "dir", kind="string"), numbers("FileType", "dir", kind="path")),
        "a filter on a type that has none": (numbers("Equal", "x", kind="filename"), numbers("Equal", "x", kind="string")),
        "a capability by its usual name": (
            numbers("Equal", "CAP_DAC_OVERRIDE", kind="cap_effective"),
            numbers("Equal", "DAC_OVERRIDE", kind="cap_effective"),
        ),
    },
    "multiple-entries": {
        key: (
            kprobes(kprobe(selector(**{key: [entry, entry]}))),
            kprobes(kprobe(selector(**{key: [entry]}))),
        )
        for key, entry in {
            "matchPIDs": {"operator": "In", "values": [1]},
            "matchCapabilities": {"operator": "In", "values": ["CAP_SYS_ADMIN"]},
            "matchCapabilityChanges": {"operator": "In", "values": ["CAP_SYS_ADMIN"]},
        }.items()
    },
    "ceiling": {
        "six selectors": (kprobes(kprobe(*[selector()] * 6)), kprobes(kprobe(*[selector()] * 5))),
        "four actions": (kprobes(kprobe(selector(*["Post"] * 4))), kprobes(kprobe(selector(*["Post"] * 3)))),
        "four actions on return": (
            kprobes(kprobe(selector(matchReturnActions=[{"action": "Post"}] * 4))),
            kprobes(kprobe(selector(matchReturnActions=[{"action": "Post"}] * 3))),
        ),
        "six filters": (
            kprobes(kprobe(selector(matchArgs=selector()["matchArgs"] * 6))),
            kprobes(kprobe(selector(matchArgs=selector()["matchArgs"] * 5))),
        ),
        "six arguments": (
            kprobes(kprobe(selector(), args=[{"index": 0, "type": "file"}] * 6)),
            kprobes(kprobe(selector(), args=[{"index": 0, "type": "file"}] * 5)),
        ),
        "arguments and data": (
            kprobes(kprobe(selector(), args=[{"index": 0, "type": "file"}] * 3, data=[{"index": 0, "type": "int"}] * 3)),
            kprobes(kprobe(selector(), args=[{"index": 0, "type": "file"}] * 3, data=[{"index": 0, "type": "int"}] * 2)),
        ),
        "the sixth argument of a function": (
            kprobes(kprobe(selector(), args=[{"index": 0, "type": "file"}, {"index": 5, "type": "int"}])),
            kprobes(kprobe(selector(), args=[{"index": 0, "type": "file"}, {"index": 4, "type": "int"}])),
        ),
        "a field of a tracepoint": (
            kprobes(kprobe(selector(), args=[{"index": 0, "type": "file"}, {"index": 9, "type": "int"}])),
            {"tracepoints": [{"subsystem": "oom", "event": "x", "args": [{"index": 9, "type": "uint32"}]}]},
        ),
        "five numbers": (numbers("Equal", *MANY), numbers("Equal", *MANY[:4])),
        "five numbers without a map": (numbers("NotEqual", *MANY), numbers("NotInMap", *MANY)),
        "five ranges": (numbers("InRange", *["1:2"] * 5), numbers("InRange", *["1:2"] * 4)),
        "five paths are not numbers": (numbers("Mask", *MANY), numbers("Equal", *MANY, kind="string")),
        "five namespaces": (
            kprobes(kprobe(selector(matchNamespaces=[{"namespace": "Pid", "operator": "In", "values": MANY}]))),
            kprobes(kprobe(selector(matchNamespaces=[{"namespace": "Pid", "operator": "In", "values": MANY[:4]}]))),
        ),
        "a long prefix": (numbers("Prefix", "/" * 256, kind="path"), numbers("Prefix", "/" * 255, kind="path")),
        "a long postfix": (numbers("NotPostfix", "x" * 128, kind="path"), numbers("NotPostfix", "x" * 127, kind="path")),
        "a long postfix in bytes": (numbers("Postfix", "ü" * 64, kind="path"), numbers("Postfix", "u" * 127, kind="path")),
        "a long text": (numbers("Equal", "x" * 4097, kind="string"), numbers("Equal", "x" * 4096, kind="string")),
        "a long binary": (
            kprobes(kprobe(selector(matchBinaries=[{"operator": "In", "values": ["/" * 256]}]))),
            kprobes(kprobe(selector(matchBinaries=[{"operator": "In", "values": ["/" * 255]}]))),
        ),
        "a long end of a parent": (
            kprobes(kprobe(selector(matchParentBinaries=[{"operator": "Postfix", "values": ["/" * 128]}]))),
            kprobes(kprobe(selector(matchParentBinaries=[{"operator": "Postfix", "values": ["/" * 127]}]))),
        ),
        "a short tag": (kprobes(kprobe(selector(), tags=["a"])), kprobes(kprobe(selector(), tags=["ab"]))),
        "a short message": (kprobes(kprobe(selector(), message="a")), kprobes(kprobe(selector(), message="ab"))),
        "a long message": (kprobes(kprobe(selector(), message="a" * 257)), kprobes(kprobe(selector(), message="a" * 256))),
    },
}  # fmt: skip


def of(arguments: object) -> list[Finding]:
    """The findings of an entry of TWINS."""
    return findings(*arguments) if isinstance(arguments, tuple) else findings(arguments)  # type: ignore[arg-type]


def pairs(side: int) -> list[Any]:
    """One side of every pair of twins."""
    return [pytest.param(rule, twins[side], id=f"{rule}: {name}") for rule, several in TWINS.items() for name, twins in several.items()]


def test_every_rule_has_twins() -> None:
    assert set(TWINS) == set(RULES)


@pytest.mark.parametrize(("rule", "arguments"), pairs(0))
def test_a_policy_trips_its_rule_and_no_other(rule: str, arguments: object) -> None:
    assert {finding.rule for finding in of(arguments)} == {rule}


@pytest.mark.parametrize(("rule", "arguments"), pairs(1))
def test_a_near_twin_trips_nothing(rule: str, arguments: object) -> None:
    assert of(arguments) == []


@pytest.mark.parametrize("rule", list(RULES))
def test_only_what_does_not_outlive_the_agent_is_a_warning(rule: str) -> None:
    assert RULES[rule][0] == ("warning" if rule == "not-persistent" else "error")


def test_a_finding_names_policy_place_and_rule() -> None:
    (finding,) = findings(kprobes(kprobe(selector()), kprobe(selector(), call=QUIET, syscall=True)))
    assert (finding.rule, finding.severity, finding.policy, finding.path) == ("syscall-default", "error", "it", "spec.kprobes[1]")
    assert str(finding) == f"error: it: spec.kprobes[1]: {finding.message} [syscall-default]"


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        pytest.param(kprobes(kprobe(selector(), selector("Sigkill"))), "spec.kprobes[0].selectors[1].matchActions[0]", id="an action"),
        pytest.param(kprobes(kprobe(selector(), {})), "spec.kprobes[0].selectors[1]", id="a selector"),
        pytest.param(numbers("Equal", *MANY), "spec.kprobes[0].selectors[0].matchArgs[0]", id="a filter"),
        pytest.param(kprobes(kprobe(selector()), options=[{"name": "x"}]), "spec.options[0]", id="an option"),
        pytest.param({}, "spec", id="the spec"),
    ],
)
def test_a_finding_points_to(spec: Spec, path: str) -> None:
    assert [finding.path for finding in findings(spec)] == [path]


def test_all_findings_of_a_policy_are_told() -> None:
    spec = kprobes(kprobe(selector("Sigkill"), syscall=True, tags=["a"]), uprobes=[uprobe(*[{}] * 6)], options=[{"name": "x"}])
    assert sorted(finding.rule for finding in findings(spec)) == [
        "ceiling",
        "ceiling",
        "kills-protected",
        "one-section",
        "syscall-default",
        "unknown-option",
    ]


def test_the_protected_that_may_be_hit_are_named() -> None:
    (finding,) = findings(kprobes(kprobe(selector("Sigkill", matchBinaries=[{"operator": "NotIn", "values": [CAT]}]))))
    assert f"Sigkill can hit {SSHD}, /usr/lib/systemd/systemd: " in finding.message


@pytest.mark.parametrize(("reference", "form"), FORMS, ids=FORM_IDS)
@pytest.mark.parametrize("mode", ["monitor", "enforce"])
def test_a_library_policy_has_no_findings(reference: str, form: str, mode: str, library: Library) -> None:
    rendered = render(library.get(reference), LIBRARY_VALUES.get(reference, {}), form, PROTECTED)
    document = rendered.document(mode)
    derived = traits(document, (1, 7, 0))
    context = Context(rendered.policy.name, document["spec"], None, mode, (1, 7, 0), PROTECTED, derived)
    expected = ["enforce-without-action"] if mode == "enforce" and not derived.enforcing else []
    assert [finding.rule for finding in lint(context)] == expected


# --- what the lints should see and do not ---------------------------------------------------------------------------


def known(reason: str, spec: Spec, rule: str, name: str, *more: object) -> Any:
    """A case that a lint ought to find; it does not yet."""
    return pytest.param((spec, *more), rule, id=name, marks=pytest.mark.xfail(strict=True, reason=reason))


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        known(
            "lint._return_enforcement: macros are appended before loading, so their return side kills in monitor mode too (R1.14, R3.10)",
            kprobes(kprobe(selector(macros=["m"], **ONLY_CAT)), selectorsMacros={"m": {"matchReturnActions": [{"action": "Sigkill"}]}}),
            "return-enforcement",
            "a kill on return that a macro brings",
        ),
        known(
            "lint._may_hit_protected: followChildren reaches every descendant, whatever its executable (R2.2.8)",
            kprobes(kprobe(selector("Sigkill", matchBinaries=[{"operator": "In", "values": ["/usr/bin/bash"], "followChildren": True}]))),
            "kills-protected",
            "the children of a listed program",
        ),
        known(
            "lint.Context.has_workload_scope: hostSelector {} beside podSelector brings the host back in (R4.5)",
            kprobes(kprobe(selector("Sigkill")), hostSelector={}, **PODS),
            "kills-protected",
            "pods and the host",
        ),
        known(
            "lint.Context.has_workload_scope: the same for Override without a filter (R4.5)",
            kprobes(kprobe({"matchActions": [{"action": "Override"}]}, call=QUIET), hostSelector={}, **PODS),
            "enforce-unscoped",
            "every process of pods and of the host",
        ),
        known(
            "lint._kills_protected: NotifyEnforcer with a signal kills as Sigkill does",
            kprobes(
                kprobe({**selector(), "matchActions": [{"action": "NotifyEnforcer", "argError": -1, "argSig": 9}]}),
                enforcers=[{"calls": ["sys_open"]}],
            ),
            "kills-protected",
            "a kill by an enforcer",
        ),
        known(
            "lint._may_hit_protected: agents of 1.7.0 do not honour podSelector in uprobes, so the whole host is hit",
            {"uprobes": [uprobe({"matchActions": [{"action": "Sigkill"}]}, path="/lib/libc.so.6")], **PODS},
            "kills-protected",
            "a uprobe in a library, scoped to pods",
        ),
        known(
            "lint._is_hot: the name is compared as written; the agent takes the prefixed one as well (R5.1)",
            kprobes(kprobe(call="__x64_sys_read", syscall=True)),
            "hot-hook-unfiltered",
            "a system call with its prefix",
        ),
        known(
            "lint._is_hot: the functions of a list are not looked at",
            kprobes(kprobe(call="list:mine", syscall=True), lists=[{"name": "mine", "type": "syscalls", "values": ["sys_read"]}]),
            "hot-hook-unfiltered",
            "a system call in a list",
        ),
        pytest.param((numbers("Equal", "/etc", kind="dentry"),), "operator-not-for-type", id="Equal on a dentry"),
        pytest.param((numbers("Equal", "1", kind="sock"),), "operator-not-for-type", id="Equal on a socket"),
        pytest.param((numbers("Equal", 1 << 32),), "operator-not-for-type", id="a number beyond 32 bits"),
        pytest.param((numbers("Equal", -1, kind="uint32"),), "operator-not-for-type", id="a negative number for an unsigned argument"),
        known(
            "lint._selector_ceilings: the argument is looked up by index 0, not by its position",
            kprobes(
                kprobe(
                    selector(matchArgs=[{"args": [1], "operator": "Equal", "values": MANY}]),
                    args=[{"index": 0, "type": "file"}, {"index": 1, "type": "int"}],
                )
            ),
            "ceiling",
            "five numbers for a position",
        ),
        known(
            "lint._selector_ceilings: matchReturnArgs is not looked at",
            kprobes(kprobe(selector(matchReturnArgs=[{"index": 0, "operator": "Equal", "values": MANY}]), **{"return": True})),
            "ceiling",
            "five returned numbers",
        ),
        known(
            "lint._selector_ceilings: matchData is not looked at",
            kprobes(
                kprobe(
                    selector(matchData=[{"index": 0, "operator": "Equal", "values": MANY}]),
                    data=[{"index": 0, "type": "int", "source": "current_task", "resolve": "pid"}],
                )
            ),
            "ceiling",
            "five numbers in data",
        ),
        known(
            "lint._ceilings: matchPIDs compares four values only, and more than seven disturb what follows (R2.1.7)",
            kprobes(kprobe(selector(matchPIDs=[{"operator": "In", "values": list(range(10, 15))}]))),
            "ceiling",
            "five PIDs",
        ),
    ],
)
def test_a_lint_finds(arguments: Sequence[Any], rule: str) -> None:
    assert rule in {finding.rule for finding in findings(*arguments)}


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(
            (kprobes(kprobe({"matchActions": [{"action": "Override"}]}, call=QUIET), podSelector={}),),
            id="podSelector {}, which is all pods and no host",
            marks=pytest.mark.xfail(
                strict=True, reason="lint.Context.has_workload_scope: {} is false in Python; for the agent it selects pods (R4.1)"
            ),
        ),
        pytest.param(
            (kprobes(kprobe(selector()), options=[{"name": "sleepable-preload-size", "value": "1"}]), "monitor", (1, 8, 0)),
            id="an option that came with 1.8",
            marks=pytest.mark.xfail(strict=True, reason="lint.OPTIONS: the same for all versions"),
        ),
        pytest.param(
            (
                kprobes(
                    kprobe(
                        selector(matchArgs=[{"args": [1], "operator": "Equal", "values": MANY}]),
                        args=[{"index": 0, "type": "int"}, {"index": 1, "type": "file"}],
                    )
                ),
            ),
            id="five texts for a position beside a number",
            marks=pytest.mark.xfail(
                strict=True, reason="lint._selector_ceilings: the argument is looked up by index 0, not by its position"
            ),
        ),
    ],
)
def test_a_lint_leaves_alone(arguments: Sequence[Any]) -> None:
    assert findings(*arguments) == []


# --- all policies of a host together --------------------------------------------------------------------------------


def documents_of(spec: Spec, count: int, **metadata: str) -> list[Spec]:
    """A number of policies that all have one spec."""
    return [{"metadata": {"name": f"p{number}", **metadata}, "spec": spec} for number in range(count)]


FOLLOWING = kprobes(kprobe({"matchBinaries": [{"operator": "In", "values": [CAT], "followChildren": True}]}))


@pytest.mark.parametrize(
    ("policies", "message"),
    [
        pytest.param(documents_of({"lsmhooks": [lsm({})]}, 39), "39 programs on bpf_lsm_file_open; the kernel takes 38", id="LSM hooks"),
        pytest.param(
            documents_of({"fentries": [kprobe(call="tcp_connect")]}, 39), "39 programs on tcp_connect; the kernel takes 38", id="fentries"
        ),
        pytest.param(
            documents_of(kprobes(kprobe(selector("Override"))), 39),
            "39 programs on security_file_open; the kernel takes 38",
            id="overriding kprobes",
        ),
        pytest.param(
            [*documents_of(kprobes(kprobe(selector("Override"))), 20), *documents_of({"fentries": [kprobe()]}, 19)],
            "39 programs on security_file_open; the kernel takes 38",
            id="kprobes and fentries together",
        ),
        pytest.param(
            documents_of({"lsmhooks": [lsm({}), lsm({})]}, 20),
            "40 programs on bpf_lsm_file_open; the kernel takes 38",
            id="two in a policy",
        ),
        pytest.param(
            documents_of(kprobes(kprobe(), podSelector={}), 129), "129 policies select workloads; the agent takes 128", id="pod selectors"
        ),
        pytest.param(
            documents_of(kprobes(kprobe()), 129, namespace="shop"), "129 policies select workloads; the agent takes 128", id="namespaces"
        ),
        pytest.param(documents_of(FOLLOWING, 65), "65 selectors use followChildren; the agent takes 64", id="children"),
    ],
)
def test_together_policies_may_be_too_many(policies: Sequence[Spec], message: str) -> None:
    assert lint_set(policies) == [Finding("ceiling", "error", "all policies", "", message)]


@pytest.mark.parametrize(
    "policies",
    [
        pytest.param([], id="no policies"),
        pytest.param(documents_of({"lsmhooks": [lsm({})]}, 38), id="38 on an LSM hook"),
        pytest.param(
            [*documents_of({"lsmhooks": [lsm({})]}, 38), *documents_of({"fentries": [kprobe()]}, 38)], id="38 on each of two functions"
        ),
        pytest.param(documents_of(kprobes(kprobe(selector("Post"))), 200), id="kprobes that do not override"),
        pytest.param(
            documents_of(kprobes(kprobe(selector("Override"), call="sys_chmod", syscall=True)), 200), id="overridden system calls"
        ),
        pytest.param(documents_of(kprobes(kprobe(), podSelector={}), 128), id="128 pod selectors"),
        pytest.param(documents_of(FOLLOWING, 64), id="64 that follow children"),
    ],
)
def test_together_policies_may_be_as_many(policies: Sequence[Spec]) -> None:
    assert lint_set(policies) == []
