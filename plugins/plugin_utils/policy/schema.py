# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The shape of a TracingPolicy, per agent version: what the agent's strict decoder and its CRD schema accept.

Written from the facts of Tetragon v1.6.1, v1.7.0 and of its main branch of August 2026 (to be 1.8).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import refuse

Version = tuple[int, int, int]
SUPPORTED = ((1, 6), (1, 7), (1, 8))
HOOK_SECTIONS = ("kprobes", "fentries", "tracepoints", "lsmhooks", "uprobes", "usdts")

_TYPES_1_6 = (
    "auto int int8 uint8 int16 uint16 uint32 int32 uint64 size_t int64 char_buf char_iovec skb sock sockaddr socket "
    "string fd file filename path nop bpf_attr perf_event bpf_map user_namespace capability kiocb iov_iter cred "
    "load_info module syscall64 kernel_cap_t cap_inheritable cap_permitted cap_effective linux_binprm data_loc "
    "net_device bpf_cmd dentry bpf_prog"
).split()
_TYPES_1_7 = ["sint8", "sint16", "sint32", "ulong", "long", "sint64", "sockaddr_un", "const_buf"]
_OPERATORS_1_6 = (
    "Equal NotEqual Prefix NotPrefix Postfix NotPostfix GreaterThan LessThan GT LT Mask SPort NotSPort SPortPriv "
    "NotSportPriv DPort NotDPort DPortPriv NotDPortPriv SAddr NotSAddr DAddr NotDAddr Protocol Family State InMap "
    "NotInMap CapabilitiesGained InRange NotInRange"
).split()
_OPERATORS_1_7 = ["SubString", "SubStringIgnCase", "CelExpr", "FileType", "NotFileType"]
_ACTIONS = (
    "Post Sigkill Override GetUrl DnsLookup NoPost Signal TrackSock UntrackSock NotifyEnforcer CleanupEnforcerNotification Set"
).split()
_ACTIONS_UNTIL_1_7 = ["FollowFD", "UnfollowFD", "CopyFD"]
_NAMESPACES = ["Uts", "Ipc", "Mnt", "Pid", "PidForChildren", "Net", "Time", "TimeForChildren", "Cgroup", "User"]

_TEXT: Mapping[str, Any] = {"type": "string"}
_FLAG: Mapping[str, Any] = {"type": "boolean"}
_INT32: Mapping[str, Any] = {"type": "integer", "minimum": -(1 << 31), "maximum": (1 << 31) - 1}
_INDEX: Mapping[str, Any] = {"type": "integer", "minimum": 0, "maximum": (1 << 31) - 1}
_INT64: Mapping[str, Any] = {"type": "integer", "minimum": -(1 << 63), "maximum": (1 << 63) - 1}
_DNS_NAME = {
    "type": "string",
    "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\Z",
    "maxLength": 253,
    "description": "a DNS name: lower-case letters, digits, dashes and dots",
}


def _object(properties: Mapping[str, Any], required: Sequence[str] = ()) -> dict[str, Any]:
    return {"type": "object", "properties": dict(properties), "required": list(required), "additionalProperties": False}


def _list(items: Mapping[str, Any], maximum: int | None = None) -> dict[str, Any]:
    return {"type": "array", "items": items, **({"maxItems": maximum} if maximum is not None else {})}


def _enum(values: Sequence[str]) -> dict[str, Any]:
    return {"type": "string", "enum": list(values)}


def _label_selector() -> dict[str, Any]:
    label = {
        "type": "string",
        "maxLength": 63,
        "pattern": r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?\Z",
        "description": "a Kubernetes label value",
    }
    expression = _object(
        {"key": _TEXT, "operator": _enum(["In", "NotIn", "Exists", "DoesNotExist"]), "values": _list(_TEXT)}, ["key", "operator"]
    )
    return _object({"matchLabels": {"type": "object", "additionalProperties": label}, "matchExpressions": _list(expression)})


def parse_version(text: str) -> Version:
    """``1.7.0`` as numbers. Raises Refused for anything else and for minors this collection does not know."""
    match = re.fullmatch(r"v?(\d+)\.(\d+)\.(\d+)(?:[-+].*)?", text)
    if not match:
        raise refuse(f"agent version is {text!r}; needed: an exact version such as 1.7.0")
    version = (int(match[1]), int(match[2]), int(match[3]))
    if version[:2] not in SUPPORTED:
        known = ", ".join(f"{major}.{minor}" for major, minor in SUPPORTED)
        raise refuse(f"agent version is {text!r}; this collection knows the policy schema of: {known}")
    return version


@functools.cache
def tracing_policy(version: Version) -> dict[str, Any]:
    """JSON Schema of both kinds of TracingPolicy for an agent of this version."""
    v1_7, v1_8 = version >= (1, 7, 0), version >= (1, 8, 0)
    argument = _object(
        {
            "index": _INDEX,
            "type": _enum(_TYPES_1_6 + (_TYPES_1_7 if v1_7 else [])),
            "sizeArgIndex": _INDEX,
            "returnCopy": _FLAG,
            "maxData": _FLAG,
            "label": _TEXT,
            "resolve": _TEXT,
            "btfType": _TEXT,
            "source": _TEXT,
            **({"btfTypeModule": _TEXT} if version >= (1, 7, 1) else {}),
        },
        ["index", "type"],
    )
    values = _list(_TEXT)
    arg_filter = _object(
        {"index": _INDEX, "args": _list(_INDEX), "operator": _enum(_OPERATORS_1_6 + (_OPERATORS_1_7 if v1_7 else [])), "values": values},
        ["operator"],
    )
    binaries = _object(
        {"operator": _enum(["In", "NotIn", "Prefix", "NotPrefix", "Postfix", "NotPostfix"]), "values": values, "followChildren": _FLAG},
        ["operator", "values"],
    )
    in_or_not = _enum(["In", "NotIn"])
    capabilities = _object(
        {"type": _enum(["Effective", "Inheritable", "Permitted"]), "operator": in_or_not, "isNamespaceCapability": _FLAG, "values": values},
        ["operator", "values"],
    )
    action = _object(
        {
            "action": _enum(_ACTIONS + ([] if v1_8 else _ACTIONS_UNTIL_1_7)),
            **dict.fromkeys(("argError", "argSig", "argSock", "argIndex", "argValue"), _INT32),
            **({} if v1_8 else {"argFd": _INT32, "argName": _INT32}),
            **({"argNewSymbol": _TEXT, "argNewAddr": _INT64, "argNewOffset": _INT64} if v1_8 else {}),
            **dict.fromkeys(("argUrl", "argFqdn", "rateLimit", "rateLimitScope"), _TEXT),
            **dict.fromkeys(("kernelStackTrace", "userStackTrace", "imaHash"), _FLAG),
            "argRegs": _list(_TEXT),
        },
        ["action"],
    )
    label_selector = _label_selector()
    workloads = {"podSelector": label_selector, "containerSelector": label_selector, **({"hostSelector": _object({})} if v1_7 else {})}
    selector = _object(
        {
            "matchPIDs": _list(
                _object(
                    {"operator": in_or_not, "values": _list(_INT32), "isNamespacePID": _FLAG, "followForks": _FLAG}, ["operator", "values"]
                )
            ),
            "matchArgs": _list(arg_filter),
            "matchData": _list(arg_filter),
            "matchReturnArgs": _list(arg_filter),
            "matchActions": _list(action),
            "matchReturnActions": _list(action),
            "matchBinaries": _list(binaries, 1),
            "matchNamespaces": _list(
                _object({"namespace": _enum(_NAMESPACES), "operator": in_or_not, "values": values}, ["namespace", "operator", "values"])
            ),
            "matchNamespaceChanges": _list(_object({"operator": in_or_not, "values": values}, ["operator", "values"])),
            "matchCapabilities": _list(capabilities),
            "matchCapabilityChanges": _list(capabilities),
            **({"matchParentBinaries": _list(binaries, 1), "macros": _list(_TEXT)} if v1_7 else {}),
            **({"matchWorkloads": _object(workloads), "label": _TEXT} if v1_8 else {}),
        }
    )
    common = {"message": _TEXT, "tags": _list(_TEXT, 16), "args": _list(argument), "selectors": _list(selector)}
    returns = {"return": _FLAG, "returnArg": argument}
    kprobe = _object(
        {
            **common,
            **returns,
            "call": _TEXT,
            "syscall": _FLAG,
            "data": _list(argument),
            "returnArgAction": _TEXT,
            "ignore": _object({"callNotFound": _FLAG}),
        },
        ["call"],
    )
    tracepoint = _object({**common, "subsystem": _TEXT, "event": _TEXT, "raw": _FLAG}, ["subsystem", "event"])
    uprobe = _object(
        {
            **common,
            **({**returns, "data": _list(argument)} if v1_7 else {}),
            "path": _TEXT,
            "btfPath": _TEXT,
            "symbols": _list(_TEXT),
            "offsets": _list(_INT64),
            "addrs": _list(_INT64),
            "refCtrOffsets": _list(_INT64),
            **({"binaryDigests": _list(_TEXT), "ignore": _object({"digestVerificationFailure": _FLAG})} if v1_8 else {}),
        },
        ["path"],
    )
    usdt = _object({**common, "path": _TEXT, "btfPath": _TEXT, "provider": _TEXT, "name": _TEXT}, ["path", "provider", "name"])
    lsm = _object({**common, "hook": _TEXT}, ["hook"])
    listing = _object(
        {
            "name": _TEXT,
            "type": _enum(["syscalls", "generated_syscalls", "generated_ftrace"]),
            "values": values,
            "pattern": _TEXT,
            "validated": _FLAG,
        },
        ["name"],
    )
    spec = _object(
        {
            "kprobes": _list(kprobe),
            "tracepoints": _list(tracepoint),
            "lsmhooks": _list(lsm),
            "uprobes": _list(uprobe),
            "usdts": _list(usdt),
            "loader": _FLAG,
            "lists": _list(listing),
            "enforcers": _list(_object({"calls": _list(_TEXT)}, ["calls"])),
            "options": _list(_object({"name": _TEXT, "value": _TEXT}, ["name"])),
            **workloads,
            **({"fentries": _list(kprobe), "selectorsMacros": {"type": "object", "additionalProperties": selector}} if v1_7 else {}),
            **({"nodeSelector": label_selector} if v1_8 else {}),
        }
    )
    return _object(
        {
            "apiVersion": {"const": "cilium.io/v1alpha1"},
            "kind": _enum(["TracingPolicy", "TracingPolicyNamespaced"]),
            "metadata": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": _DNS_NAME, "namespace": _DNS_NAME},
            },
            "spec": spec,
        },
        ["apiVersion", "kind", "metadata", "spec"],
    )
