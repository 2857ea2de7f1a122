# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Lints have policies that trip them, and near twins that do not. The catalogue's own examples are in test_catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.kernel import Kernel
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.lint import Finding, lint, lint_set
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.lint_base import Context
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.schema import Version
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.traits import traits

Spec = dict[str, Any]
SSHD, CAT = "/usr/sbin/sshd", "/usr/bin/cat"


def findings(
    spec: Spec,
    mode: str = "monitor",
    version: Version = (1, 7, 0),
    namespace: str | None = None,
    protected: tuple[str, ...] = (SSHD, "/usr/lib/systemd/systemd"),
    kernel: Kernel | None = None,
) -> list[Finding]:
    """All that the lints find in one policy."""
    metadata = {"name": "it", **({"namespace": namespace} if namespace else {})}
    derived = traits({"metadata": metadata, "spec": spec}, version)
    return lint(Context("it", spec, namespace, mode, version, protected, derived, kernel or Kernel()))


NUMBERS: dict[str, dict[str, int]] = {"Override": {"argError": -1}, "Signal": {"argSig": 15}, "NotifyEnforcer": {"argError": -1}}


def selector(*actions: str, **filters: object) -> Spec:
    """A selector on one path, with these actions; further filters may be added or, with None, taken away."""
    chosen: Spec = {"matchArgs": [{"index": 0, "operator": "Equal", "values": ["/etc/shadow"]}], **filters}
    if actions:
        chosen["matchActions"] = [{"action": action, **NUMBERS.get(action, {})} for action in actions]
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


RETURNS: Spec = {"return": True, "returnArg": {"index": 0, "type": "int"}}
TASK_PID: Spec = {"index": 0, "type": "int", "source": "current_task", "resolve": "pid"}
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
        "a section of its own": (
            kprobes(kprobe(selector()), tracepoints=[{"subsystem": "oom", "event": "x"}]),
            kprobes(kprobe(selector()), tracepoints=[]),
        ),
    },
    "no-hooks": {
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
            (kprobes(kprobe({"matchActions": [{"action": "Override", "argError": -1}]}, call=QUIET)), "enforce"),
            (kprobes(kprobe(selector("Override"), call=QUIET)), "enforce"),
        ),
        "the same, scoped to pods": (
            (kprobes(kprobe({"matchActions": [{"action": "Override", "argError": -1}]}, call=QUIET)), "enforce"),
            (kprobes(kprobe({"matchActions": [{"action": "Override", "argError": -1}]}, call=QUIET), **PODS), "enforce"),
        ),
        "the same, in monitor mode": (
            kprobes(kprobe({"matchActions": [{"action": "Override", "argError": -1}]}, call=QUIET)),
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
        "on the return side": (
            {"uprobes": [uprobe({"matchReturnActions": [{"action": "FollowFD"}]})]},
            kprobes(kprobe(selector(matchReturnActions=[{"action": "TrackSock"}]))),
        ),
    },
    "enforcers": {
        "NotifyEnforcer without an enforcer": (
            kprobes(kprobe(selector("NotifyEnforcer"))),
            kprobes(kprobe(selector("NotifyEnforcer")), enforcers=[{"calls": ["sys_open"]}]),
        ),
        "two enforcers": (
            kprobes(kprobe(selector()), enforcers=[{"calls": ["sys_open"]}, {"calls": ["sys_close"]}]),
            kprobes(kprobe(selector()), enforcers=[{"calls": ["sys_open", "sys_close"]}]),
        ),
        "a function of the kernel": (
            kprobes(kprobe(selector()), enforcers=[{"calls": ["vfs_open"]}]),
            kprobes(kprobe(selector()), enforcers=[{"calls": ["security_file_open", "list:calls"]}], lists=[{"name": "calls"}]),
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
            kprobes(kprobe(selector(matchReturnActions=[{"action": "Signal", "argSig": 15}], **ONLY_CAT))),
            kprobes(kprobe(selector(matchReturnActions=[{"action": "Post"}], **ONLY_CAT))),
        ),
    },
    "enforce-without-action": {
        "nothing that enforces": ((kprobes(kprobe(selector("Post"))), "enforce"), (kprobes(kprobe(selector("Override"))), "enforce")),
        "monitor only": ((kprobes(kprobe(selector())), "enforce"), (kprobes(kprobe(selector())), "monitor")),
        "in a macro alone": (
            (
                kprobes(kprobe(selector(macros=["m"])), selectorsMacros={"m": {"matchActions": [{"action": "Override", "argError": -1}]}}),
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
        "an address on a path": (numbers("DAddr", "10.0.0.0/8", kind="path"), numbers("DAddr", "10.0.0.0/8", kind="sock")),
        "a peer on a sockaddr": (numbers("DAddr", "10.0.0.0/8", kind="sockaddr"), numbers("SAddr", "10.0.0.0/8", kind="sockaddr")),
        "a word for a number": (numbers("Equal", "one"), numbers("Equal", "0x1")),
        "half a range": (numbers("InRange", "1"), numbers("InRange", "1:2")),
        "an address that is none": (numbers("SAddr", "10.0.0.0/40", kind="sock"), numbers("SAddr", "10.0.0.0/24", kind="sock")),
        "a port that is none": (numbers("DPort", "http", kind="sock"), numbers("DPort", "80", "8000:9000", kind="sock")),
        "an unknown family": (numbers("Family", "INET", kind="sock"), numbers("Family", "AF_INET", "10", kind="sock")),
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
        "a type of file": (numbers("FileType", "folder", kind="file"), numbers("FileType", "dir", kind="file")),
        "a file's type of a text": (numbers("FileType", "dir", kind="string"), numbers("FileType", "dir", kind="path")),
        "a filter on a type that has none": (numbers("Equal", "x", kind="filename"), numbers("Equal", "x", kind="string")),
        "a capability by its usual name": (
            numbers("Equal", "CAP_DAC_OVERRIDE", kind="cap_effective"),
            numbers("Equal", "DAC_OVERRIDE", kind="cap_effective"),
        ),
    },
    "filter-constant": {
        "a prefix on a number": (numbers("Prefix", 1), numbers("GT", 1)),
        "a prefix on a socket": (numbers("NotPrefix", "10.0.0.0", kind="sock"), numbers("NotDAddr", "10.0.0.0/8", kind="sock")),
        "no values": (
            kprobes(kprobe(selector(matchArgs=[{"index": 0, "operator": "Equal"}]))),
            kprobes(kprobe(selector(matchArgs=[{"index": 0, "operator": "SPortPriv"}]), args=[{"index": 0, "type": "sock"}])),
        ),
        "a returned number": (
            kprobes(kprobe(selector(matchReturnArgs=[{"index": 0, "operator": "Prefix", "values": ["1"]}]), **RETURNS)),
            kprobes(kprobe(selector(matchReturnArgs=[{"index": 0, "operator": "Equal", "values": ["-1"]}]), **RETURNS)),
        ),
        "an end of a file name": (numbers("NotPostfix", "x", kind="filename"), numbers("NotPostfix", "x", kind="string")),
        "no bits": (numbers("Mask", 0), numbers("Mask", 0, 1)),
        "a range the wrong way round": (numbers("InRange", "2:1"), numbers("InRange", "2:1", "1:2")),
        "an empty prefix": (numbers("Prefix", "", kind="path"), numbers("Prefix", "/", kind="path")),
        "a prefix of 256 bytes": (numbers("Prefix", "/" * 256, kind="path"), numbers("Prefix", "/" * 255, kind="path")),
        "a substring of a path": (
            (numbers("SubString", "x", kind="path"), "monitor", (1, 7, 0), None, (), Kernel((6, 17))),
            (numbers("SubString", "x", kind="path"), "monitor", (1, 8, 0), None, (), Kernel((6, 17))),
        ),
        "a substring on an older kernel": (
            (numbers("SubStringIgnCase", "x", kind="string"), "monitor", (1, 7, 0), None, (), Kernel((6, 18))),
            (numbers("SubStringIgnCase", "x", kind="string"), "monitor", (1, 7, 0), None, (), Kernel((6, 19))),
        ),
        "the state of a packet": (numbers("State", "TCP_LISTEN", kind="skb"), numbers("State", "TCP_LISTEN", kind="sock")),
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
            kprobes(kprobe(selector(), args=[{"index": 0, "type": "file"}] * 3, data=[TASK_PID] * 3)),
            kprobes(kprobe(selector(), args=[{"index": 0, "type": "file"}] * 3, data=[TASK_PID] * 2)),
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
        "a long prefix": (numbers("Prefix", "/" * 257, kind="path"), numbers("Prefix", "/" * 255, kind="path")),
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
    },
    "silently-cut": {
        "a long message": (kprobes(kprobe(selector(), message="a" * 257)), kprobes(kprobe(selector(), message="a" * 256))),
        "a long tag": (kprobes(kprobe(selector(), tags=["a" * 129])), kprobes(kprobe(selector(), tags=["a" * 128]))),
    },
}  # fmt: skip


def of(arguments: object) -> list[Finding]:
    """The findings of an entry of TWINS."""
    return findings(*arguments) if isinstance(arguments, tuple) else findings(arguments)  # type: ignore[arg-type]


def pairs(side: int) -> list[Any]:
    """One side of every pair of twins."""
    return [pytest.param(rule, twins[side], id=f"{rule}: {name}") for rule, several in TWINS.items() for name, twins in several.items()]


@pytest.mark.parametrize(("rule", "arguments"), pairs(0))
def test_a_policy_trips_its_rule(rule: str, arguments: object) -> None:
    found = of(arguments)
    assert rule in {finding.rule for finding in found}
    assert {finding.rule for finding in found if finding.severity == "error"} <= {rule}


@pytest.mark.parametrize(("rule", "arguments"), pairs(1))
def test_a_near_twin_does_not(rule: str, arguments: object) -> None:
    found = of(arguments)
    assert [finding.rule for finding in found if finding.rule == rule or finding.severity == "error"] == []


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
    assert path in [finding.path for finding in findings(spec)]


def test_all_findings_of_a_policy_are_told() -> None:
    spec = kprobes(kprobe(selector("Sigkill"), syscall=True, tags=["a"]), uprobes=[uprobe(*[{}] * 6)], options=[{"name": "x"}])
    assert sorted(finding.rule for finding in findings(spec) if finding.severity == "error") == [
        "ceiling",
        "ceiling",
        "kills-protected",
        "one-section",
        "syscall-default",
        "unknown-option",
    ]


def test_the_protected_that_may_be_hit_are_named() -> None:
    spec = kprobes(kprobe(selector("Sigkill", matchBinaries=[{"operator": "NotIn", "values": [CAT]}])))
    (finding,) = [finding for finding in findings(spec) if finding.rule == "kills-protected"]
    assert f"Sigkill can hit {SSHD}, /usr/lib/systemd/systemd: " in finding.message


# --- what is easily overlooked --------------------------------------------------------------------------------------


def found(spec: Spec, rule: str, name: str, *more: object) -> Any:
    """A case that a lint finds."""
    return pytest.param((spec, *more), rule, id=name)


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        found(
            kprobes(kprobe(selector(macros=["m"], **ONLY_CAT)), selectorsMacros={"m": {"matchReturnActions": [{"action": "Sigkill"}]}}),
            "return-enforcement",
            "a kill on return that a macro brings",
        ),
        found(
            kprobes(kprobe(selector("Sigkill", matchBinaries=[{"operator": "In", "values": ["/usr/bin/bash"], "followChildren": True}]))),
            "kills-protected",
            "the children of a listed program",
        ),
        found(
            kprobes(kprobe(selector("Sigkill")), hostSelector={}, **PODS),
            "kills-protected",
            "pods and the host",
        ),
        found(
            kprobes(kprobe({"matchActions": [{"action": "Override", "argError": -1}]}, call=QUIET), hostSelector={}, **PODS),
            "enforce-unscoped",
            "every process of pods and of the host",
        ),
        found(
            kprobes(
                kprobe({**selector(), "matchActions": [{"action": "NotifyEnforcer", "argError": -1, "argSig": 9}]}),
                enforcers=[{"calls": ["sys_open"]}],
            ),
            "kills-protected",
            "a kill by an enforcer",
        ),
        found(
            {"uprobes": [uprobe({"matchActions": [{"action": "Sigkill"}]}, path="/lib/libc.so.6")], **PODS},
            "kills-protected",
            "a uprobe in a library, scoped to pods",
        ),
        found(
            kprobes(kprobe(call="__x64_sys_read", syscall=True)),
            "hot-hook-unfiltered",
            "a system call with its prefix",
        ),
        found(
            kprobes(kprobe(call="list:mine", syscall=True), lists=[{"name": "mine", "type": "syscalls", "values": ["sys_read"]}]),
            "hot-hook-unfiltered",
            "a system call in a list",
        ),
        found(
            numbers("Equal", "/etc", kind="dentry"),
            "operator-not-for-type",
            "Equal on a dentry",
        ),
        found(
            numbers("Equal", "1", kind="sock"),
            "operator-not-for-type",
            "Equal on a socket",
        ),
        found(
            numbers("Equal", 1 << 32),
            "operator-not-for-type",
            "a number beyond 32 bits",
        ),
        found(
            numbers("Equal", -1, kind="uint32"),
            "operator-not-for-type",
            "a negative number for an unsigned argument",
        ),
        found(
            kprobes(
                kprobe(
                    selector(matchArgs=[{"args": [1], "operator": "Equal", "values": MANY}]),
                    args=[{"index": 0, "type": "file"}, {"index": 1, "type": "int"}],
                )
            ),
            "ceiling",
            "five numbers for a position",
        ),
        found(
            kprobes(kprobe(selector(matchReturnArgs=[{"index": 0, "operator": "Equal", "values": MANY}]), **{"return": True})),
            "ceiling",
            "five returned numbers",
        ),
        found(
            kprobes(
                kprobe(
                    selector(matchData=[{"index": 0, "operator": "Equal", "values": MANY}]),
                    data=[{"index": 0, "type": "int", "source": "current_task", "resolve": "pid"}],
                )
            ),
            "ceiling",
            "five numbers in data",
        ),
        found(
            kprobes(kprobe(selector(matchPIDs=[{"operator": "In", "values": list(range(10, 15))}]))),
            "pid-values",
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
            (kprobes(kprobe({"matchActions": [{"action": "Override", "argError": -1}]}, call=QUIET), podSelector={}),),
            id="podSelector {}, which is all pods and no host",
        ),
        pytest.param(
            (kprobes(kprobe(selector()), options=[{"name": "sleepable-preload-size", "value": "1"}]), "monitor", (1, 8, 0)),
            id="an option that came with 1.8",
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
        ),
    ],
)
def test_a_lint_leaves_alone(arguments: Sequence[Any]) -> None:
    assert [finding for finding in findings(*arguments) if finding.severity == "error"] == []


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


def overriding(name: str, mode: str = "enforce", call: str = "security_file_open", action: str = "Override") -> Spec:
    options = [{"name": "policy-mode", "value": mode}]
    return {"metadata": {"name": name}, "spec": kprobes(kprobe(selector(action), call=call), options=options)}


def test_policies_that_override_the_same_function_are_named() -> None:
    (found,) = lint_set([overriding("one"), overriding("two"), overriding("three", call="security_file_permission")])
    assert (found.rule, found.severity) == ("overridden-twice", "warning")
    assert found.message.startswith("one and two enforce by Override on security_file_open")


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(overriding("two", mode="monitor"), id="one only monitors"),
        pytest.param(overriding("two", call="security_file_permission"), id="another function"),
        pytest.param(overriding("two", action="Sigkill"), id="another action"),
    ],
)
def test_policies_that_leave_each_other_alone_are_not_named(other: Spec) -> None:
    assert lint_set([overriding("one"), other]) == []
