# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Policies of every shape that the schema lets through are compiled and judged, whatever they leave out."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from ansible_collections.apiary.tetragon.plugins.plugin_utils import documents
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.schema import tracing_policy
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.compile import CompiledPolicy, recorder
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.records import Argument, Declared, Hook, Invocation, Process

IN_ONE = {"operator": "In", "values": ["/x"]}
SELECTOR: dict[str, Any] = {
    "matchArgs": [{"index": 0, "operator": "Equal", "values": ["1"]}, {"args": [0], "operator": "InMap", "values": ["1", "2:3"]}],
    "matchData": [{"index": 0, "operator": "Equal", "values": ["1"]}],
    "matchBinaries": [{**IN_ONE, "followChildren": True}],
    "matchParentBinaries": [IN_ONE],
    "matchPIDs": [{"operator": "In", "values": [1], "followForks": True, "isNamespacePID": True}],
    "matchCapabilities": [{"type": "Effective", "operator": "In", "values": ["CAP_CHOWN"]}],
    "matchNamespaces": [{"namespace": "Pid", "operator": "In", "values": ["host_ns"]}],
    "matchNamespaceChanges": [{"operator": "In", "values": ["Pid"]}],
    "matchCapabilityChanges": [{"type": "Effective", "operator": "In", "values": ["CAP_CHOWN"]}],
    "matchActions": [{"action": "Post", "rateLimit": "1m"}, {"action": "Sigkill"}],
    "matchReturnArgs": [{"index": 0, "operator": "Equal", "values": ["1"]}],
    "matchReturnActions": [{"action": "Post"}],
    "macros": ["m"],
}
ARGS = [{"index": 0, "type": "int", "label": "x"}, {"index": 1, "type": "char_buf", "sizeArgIndex": 1, "maxData": True}]
DATA = [{"index": 0, "type": "int", "source": "current_task", "resolve": "a"}]
HOOKS: dict[str, tuple[Hook, dict[str, Any]]] = {
    "kprobes": (
        Hook("kprobe", "f"),
        {"call": "f", "syscall": False, "return": True, "returnArg": {"index": 0, "type": "int"}, "data": DATA},
    ),
    "tracepoints": (Hook("tracepoint", "a/b"), {"subsystem": "a", "event": "b", "raw": True}),
    "lsmhooks": (Hook("lsm", "f"), {"hook": "f"}),
    "uprobes": (Hook("uprobe", "/x:f"), {"path": "/x", "symbols": ["f"], "offsets": [1], "addrs": [2]}),
    "usdts": (Hook("usdt", "/x:p:n"), {"path": "/x", "provider": "p", "name": "n"}),
}
SPEC: dict[str, Any] = {
    "podSelector": {"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]},
    "containerSelector": {},
    "hostSelector": {},
    "options": [{"name": "policy-mode", "value": "monitor"}],
    "lists": [{"name": "l", "type": "syscalls", "values": ["sys_x"], "pattern": ""}],
    "selectorsMacros": {"m": {"matchPIDs": [{"operator": "In", "values": [1]}]}},
}


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a document."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*place, key)
        yield from places(inner, (*place, key))


def changed(document: Any) -> Iterator[Any]:
    """The document with each of its parts left out, set to nothing and emptied, as far as the schema allows."""
    for place in places(document):
        for how in ("left out", "nothing", "emptied"):
            other = copy.deepcopy(document)
            parent = other
            for key in place[:-1]:
                parent = parent[key]
            if how == "left out":
                del parent[place[-1]]
            else:
                parent[place[-1]] = None if how == "nothing" else type(parent[place[-1]])()
            if not documents.validate(documents.Document("policy", other, {}), tracing_policy((1, 7, 0))):
                yield other


@pytest.mark.parametrize("section", list(HOOKS))
def test_what_a_policy_leaves_out_stops_nobody(section: str) -> None:
    hook, identity = HOOKS[section]
    entry = {**identity, "args": ARGS, "selectors": [SELECTOR]}
    document = {"apiVersion": "cilium.io/v1alpha1", "kind": "TracingPolicy", "metadata": {"name": "p"}, "spec": {**SPEC, section: [entry]}}
    call = Invocation(hook, Process("/x"), (Argument(Declared(0, "int"), 1),))
    shapes = 0
    for other in changed(document):
        policy = CompiledPolicy(other)
        recorder(other)
        assert len(policy.evaluate(call)) == len(policy.explain(call))
        shapes += 1
    assert shapes > 50
