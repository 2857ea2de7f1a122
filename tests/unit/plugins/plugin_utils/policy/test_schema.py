# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The shape of a TracingPolicy per agent version: what is accepted, what is refused, and that upstream agrees."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.apiary.tetragon.plugins.plugin_utils import documents
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.load import Library
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.render import render
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.schema import Version, parse_version, tracing_policy
from ansible_collections.apiary.tetragon.tests.unit.plugins.plugin_utils.samples import (
    FORM_IDS,
    FORMS,
    LIBRARY_VALUES,
    PROTECTED,
    messages,
    refused,
)

Path_ = tuple[str | int, ...]
V1_6, V1_7, V1_7_1, V1_8 = (1, 6, 0), (1, 7, 0), (1, 7, 1), (1, 8, 0)

RICH = yaml.safe_load("""
apiVersion: cilium.io/v1alpha1
kind: TracingPolicy
metadata: {name: rich-1234, namespace: shop}
spec:
  loader: false
  podSelector:
    matchLabels: {app: cart}
    matchExpressions: [{key: tier, operator: In, values: [front]}]
  containerSelector:
    matchLabels: {name: main}
  hostSelector: {}
  lists: [{name: calls, type: syscalls, values: [sys_open], pattern: "", validated: false}]
  enforcers: [{calls: [sys_open]}]
  options: [{name: policy-mode, value: monitor}]
  selectorsMacros:
    mine: {matchNamespaces: [{namespace: Pid, operator: NotIn, values: [host_ns]}]}
  kprobes:
    - call: security_file_open
      syscall: false
      return: true
      returnArg: {index: 0, type: int}
      returnArgAction: TrackSock
      message: A message
      tags: [one, two]
      ignore: {callNotFound: true}
      args:
        - {index: 0, type: file, label: f, maxData: false, returnCopy: false, resolve: a.b, btfType: c, sizeArgIndex: 2}
      data:
        - {index: 0, type: uint64, source: current_task, resolve: cred.uid}
      selectors:
        - macros: [mine]
          matchArgs: [{index: 0, operator: Equal, values: [/etc/shadow]}, {args: [0], operator: Prefix, values: [/etc]}]
          matchData: [{index: 0, operator: GT, values: ["1"]}]
          matchReturnArgs: [{index: 0, operator: Equal, values: ["0"]}]
          matchPIDs: [{operator: NotIn, values: [1], isNamespacePID: true, followForks: true}]
          matchBinaries: [{operator: In, values: [/usr/bin/cat], followChildren: true}]
          matchParentBinaries: [{operator: NotIn, values: [/usr/bin/bash]}]
          matchNamespaces: [{namespace: Pid, operator: NotIn, values: [host_ns]}]
          matchNamespaceChanges: [{operator: In, values: [Mnt]}]
          matchCapabilities: [{type: Effective, operator: In, isNamespaceCapability: false, values: [CAP_SYS_ADMIN]}]
          matchCapabilityChanges: [{type: Permitted, operator: NotIn, values: [CAP_CHOWN]}]
          matchActions:
            - {action: Post, rateLimit: 1m, rateLimitScope: process, kernelStackTrace: true, userStackTrace: true, imaHash: false}
            - {action: Override, argError: -1, argRegs: [rax=0]}
            - {action: Signal, argSig: 9}
          matchReturnActions: [{action: TrackSock, argSock: 0}, {action: GetUrl, argUrl: "http://x"}, {action: DnsLookup, argFqdn: x}]
  fentries: [{call: tcp_connect, syscall: false, selectors: [{}]}]
  tracepoints: [{subsystem: syscalls, event: sys_enter_open, raw: true, args: [{index: 4, type: uint64}], message: m, tags: [ab]}]
  lsmhooks: [{hook: file_open, args: [{index: 0, type: file}], selectors: [{matchActions: [{action: FollowFD, argFd: 0, argName: 1}]}]}]
  uprobes:
    - {path: /bin/x, symbols: [main], offsets: [1], addrs: [2], refCtrOffsets: [3], btfPath: /b, return: true,
       returnArg: {index: 0, type: int}, data: [{index: 0, type: int}]}
  usdts: [{path: /bin/x, provider: p, name: n, btfPath: /b, selectors: [{matchActions: [{action: Set, argIndex: 0, argValue: 1}]}]}]
""")
K: Path_ = ("spec", "kprobes", 0)
S: Path_ = (*K, "selectors", 0)
GONE = object()


def problems(policy: object, version: Version = V1_7) -> list[str]:
    """What the schema says against a policy, as paths and messages."""
    return [
        f"{problem.path}: {problem.message}" for problem in documents.validate(documents.Document("p", policy, {}), tracing_policy(version))
    ]


def changed(*changes: tuple[Path_, object]) -> dict[str, Any]:
    """The rich policy with values replaced, added or (GONE) taken away."""
    policy: dict[str, Any] = copy.deepcopy(RICH)
    for path, value in changes:
        holder: Any = policy
        for part in path[:-1]:
            holder = holder[part]
        if value is GONE:
            del holder[path[-1]]
        elif isinstance(holder, list) and path[-1] == len(holder):
            holder.append(value)
        else:
            holder[path[-1]] = value
    return policy


def for_version(version: Version) -> dict[str, Any]:
    """The rich policy without what an agent of this version does not know."""
    if version < V1_7:
        return changed(
            *[(("spec", key), GONE) for key in ("hostSelector", "selectorsMacros", "fentries")],
            *[((*S, key), GONE) for key in ("macros", "matchParentBinaries")],
            *[(("spec", "uprobes", 0, key), GONE) for key in ("return", "returnArg", "data")],
        )
    if version >= V1_8:
        return changed((("spec", "lsmhooks", 0, "selectors", 0, "matchActions", 0), {"action": "Post"}))
    return changed()


# --- accepted -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [V1_6, V1_7, V1_7_1, V1_8], ids=str)
def test_a_policy_with_everything_is_accepted(version: Version) -> None:
    assert problems(for_version(version), version) == []


@pytest.mark.parametrize(("reference", "form"), FORMS, ids=FORM_IDS)
def test_a_library_policy_is_accepted(reference: str, form: str, library: Library) -> None:
    rendered = render(library.get(reference), LIBRARY_VALUES.get(reference, {}), form, PROTECTED)
    assert [problems(rendered.document(mode)) for mode in ("monitor", "enforce")] == [[], []]


@pytest.mark.parametrize("reference", [reference for reference, form in FORMS if form == "cluster"])
def test_a_library_policy_is_accepted_in_a_namespace(reference: str, library: Library) -> None:
    rendered = render(library.get(reference), LIBRARY_VALUES.get(reference, {}), "cluster", PROTECTED, "shop")
    assert problems(rendered.document("monitor")) == []


# --- versions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "version"),
    [("1.7.0", (1, 7, 0)), ("v1.6.1", (1, 6, 1)), ("1.8.0-pre.0", (1, 8, 0)), ("1.7.12+build", (1, 7, 12))],
    ids=str,
)
def test_a_version_is_read(text: str, version: Version) -> None:
    assert parse_version(text) == version


@pytest.mark.parametrize("text", ["", "1.7", "1", "latest", "1.7.x", "1.7.0.1", "1.7.0 ", "1.7.0\n", "-1.7.0"])
def test_what_is_no_version_is_refused(text: str) -> None:
    assert "needed: an exact version such as 1.7.0" in messages(refused(parse_version, text))


@pytest.mark.parametrize("text", ["1.5.9", "1.9.0", "0.7.0", "2.7.0"])
def test_a_minor_that_is_not_known_is_refused(text: str) -> None:
    assert "this collection knows the policy schema of: 1.6, 1.7, 1.8" in messages(refused(parse_version, text))


# --- refused --------------------------------------------------------------------------------------------------------


def closed_mappings(value: object, path: Path_ = ()) -> Iterator[Path_]:
    """The path of every mapping of a policy whose keys are fixed."""
    if isinstance(value, Mapping):
        if path[-1:] not in (("metadata",), ("matchLabels",), ("selectorsMacros",)):
            yield path
        for key, item in value.items():
            yield from closed_mappings(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from closed_mappings(item, (*path, index))


@pytest.mark.parametrize("path", list(closed_mappings(RICH)), ids=lambda path: documents.show_path(path) or "top")
def test_an_unknown_field_is_refused_at_every_level(path: Path_) -> None:
    (problem,) = problems(changed(((*path, "bogus"), 1)))
    assert problem.startswith(f"{documents.show_path((*path, 'bogus'))}: unknown key")


MUTATIONS: list[tuple[str, Path_, object]] = [
    # required keys
    ("no apiVersion", ("apiVersion",), GONE),
    ("no kind", ("kind",), GONE),
    ("no metadata", ("metadata",), GONE),
    ("no name", ("metadata", "name"), GONE),
    ("no spec", ("spec",), GONE),
    ("a kprobe without a call", (*K, "call"), GONE),
    ("a fentry without a call", ("spec", "fentries", 0, "call"), GONE),
    ("a tracepoint without a subsystem", ("spec", "tracepoints", 0, "subsystem"), GONE),
    ("a tracepoint without an event", ("spec", "tracepoints", 0, "event"), GONE),
    ("an LSM hook without a hook", ("spec", "lsmhooks", 0, "hook"), GONE),
    ("a uprobe without a path", ("spec", "uprobes", 0, "path"), GONE),
    ("a USDT without a provider", ("spec", "usdts", 0, "provider"), GONE),
    ("a USDT without a name", ("spec", "usdts", 0, "name"), GONE),
    ("an argument without an index", (*K, "args", 0, "index"), GONE),
    ("an argument without a type", (*K, "args", 0, "type"), GONE),
    ("a filter without an operator", (*S, "matchArgs", 0, "operator"), GONE),
    ("binaries without values", (*S, "matchBinaries", 0, "values"), GONE),
    ("binaries without an operator", (*S, "matchBinaries", 0, "operator"), GONE),
    ("PIDs without values", (*S, "matchPIDs", 0, "values"), GONE),
    ("a namespace without its kind", (*S, "matchNamespaces", 0, "namespace"), GONE),
    ("capabilities without values", (*S, "matchCapabilities", 0, "values"), GONE),
    ("an action without its name", (*S, "matchActions", 0, "action"), GONE),
    ("a list without a name", ("spec", "lists", 0, "name"), GONE),
    ("an enforcer without calls", ("spec", "enforcers", 0, "calls"), GONE),
    ("an option without a name", ("spec", "options", 0, "name"), GONE),
    ("an expression without an operator", ("spec", "podSelector", "matchExpressions", 0, "operator"), GONE),
    # words
    ("another apiVersion", ("apiVersion",), "cilium.io/v1"),
    ("another kind", ("kind",), "TracingPolicyCluster"),
    ("an unknown argument type", (*K, "args", 0, "type"), "filee"),
    ("an argument type in capitals", (*K, "args", 0, "type"), "File"),
    ("an unknown operator", (*S, "matchArgs", 0, "operator"), "Equals"),
    ("the operator NotSPortPriv as one expects to write it", (*S, "matchArgs", 0, "operator"), "NotSPortPriv"),
    ("In as an operator of arguments", (*S, "matchArgs", 0, "operator"), "In"),
    ("Equal as an operator of binaries", (*S, "matchBinaries", 0, "operator"), "Equal"),
    ("Prefix as an operator of PIDs", (*S, "matchPIDs", 0, "operator"), "Prefix"),
    ("an unknown action", (*S, "matchActions", 0, "action"), "Kill"),
    ("an action in capitals", (*S, "matchActions", 0, "action"), "SIGKILL"),
    ("an unknown namespace", (*S, "matchNamespaces", 0, "namespace"), "Mount"),
    ("an unknown capability set", (*S, "matchCapabilities", 0, "type"), "Ambient"),
    ("Exists as an operator of namespaces", (*S, "matchNamespaces", 0, "operator"), "Exists"),
    ("an unknown operator of labels", ("spec", "podSelector", "matchExpressions", 0, "operator"), "Equals"),
    ("an unknown type of list", ("spec", "lists", 0, "type"), "functions"),
    # types
    ("kprobes that are a mapping", ("spec", "kprobes"), {"call": "x"}),
    ("selectors that are a mapping", (*K, "selectors"), {}),
    ("a call that is a list", (*K, "call"), ["x"]),
    ("syscall as text", (*K, "syscall"), "false"),
    ("syscall as a number", (*K, "syscall"), 0),
    ("an index as text", (*K, "args", 0, "index"), "0"),
    ("a fraction as an index", (*K, "args", 0, "index"), 0.5),
    ("a negative index", (*K, "args", 0, "index"), -1),
    ("an index beyond 32 bits", (*K, "args", 0, "index"), 1 << 31),
    ("a number as a value", (*S, "matchArgs", 0, "values", 0), 2),
    ("a single value", (*S, "matchArgs", 0, "values"), "/etc/shadow"),
    ("a PID as text", (*S, "matchPIDs", 0, "values", 0), "1"),
    ("a PID beyond 32 bits", (*S, "matchPIDs", 0, "values", 0), 1 << 31),
    ("an errno as text", (*S, "matchActions", 1, "argError"), "-1"),
    ("an errno beyond 32 bits", (*S, "matchActions", 1, "argError"), -(1 << 31) - 1),
    ("a rate limit as a number", (*S, "matchActions", 0, "rateLimit"), 1),
    ("an offset beyond 64 bits", ("spec", "uprobes", 0, "offsets", 0), 1 << 63),
    ("a label value as a number", ("spec", "podSelector", "matchLabels", "app"), 1),
    ("a label value that is none", ("spec", "podSelector", "matchLabels", "app"), "-cart"),
    ("a label value that is too long", ("spec", "podSelector", "matchLabels", "app"), "x" * 64),
    ("an option's value as a number", ("spec", "options", 0, "value"), 1),
    ("a spec of nothing", ("spec",), None),
    ("tags as text", (*K, "tags"), "one"),
    ("followChildren as text", (*S, "matchBinaries", 0, "followChildren"), "yes"),
    ("ignore as a flag", (*K, "ignore"), True),
    ("a macro of the wrong shape", ("spec", "selectorsMacros", "mine"), []),
    # names and numbers of entries
    ("a name in capitals", ("metadata", "name"), "Rich"),
    ("a name with an underscore", ("metadata", "name"), "rich_1"),
    ("a name with a dash at the end", ("metadata", "name"), "rich-"),
    ("an empty name", ("metadata", "name"), ""),
    ("a name that is too long", ("metadata", "name"), "x" * 254),
    ("a namespace in capitals", ("metadata", "namespace"), "Shop"),
    ("seventeen tags", (*K, "tags"), ["ab"] * 17),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value"), [pytest.param(path, value, id=name) for name, path, value in MUTATIONS])
def test_a_policy_is_refused_for(path: Path_, value: object) -> None:
    (problem,) = problems(changed((path, value)))
    assert problem.startswith(documents.show_path(path[:-1] if value is GONE else path))


@pytest.mark.parametrize("key", ["matchBinaries", "matchParentBinaries"])
def test_a_second_entry_of_binaries_is_refused(key: str) -> None:
    (problem,) = problems(changed(((*S, key, 1), {"operator": "In", "values": ["/bin/x"]})))
    assert problem.startswith(documents.show_path((*S, key)))
    assert problem.endswith("may have at most 1 entries")


@pytest.mark.parametrize("selector", [{"matchLabels": {"a": "b"}}, {"matchExpressions": []}], ids=["labels", "expressions"])
def test_a_host_selector_that_selects_is_refused(selector: object) -> None:
    assert problems(changed((("spec", "hostSelector"), selector)))


@pytest.mark.parametrize("key", ["name", "namespace"])
def test_a_newline_at_the_end_of_a_name_is_refused(key: str) -> None:
    assert problems(changed((("metadata", key), "shop\n")))


def test_a_newline_at_the_end_of_a_label_is_refused() -> None:
    assert problems(changed((("spec", "podSelector", "matchLabels", "app"), "cart\n")))


# what came or went: (name, path, value, versions that take it, versions that refuse it)
CHANGES: list[tuple[str, Path_, object, tuple[Version, ...], tuple[Version, ...]]] = [
    ("fentries", ("spec", "fentries"), [{"call": "x"}], (V1_7, V1_8), (V1_6,)),
    ("selectorsMacros", ("spec", "selectorsMacros"), {"m": {}}, (V1_7, V1_8), (V1_6,)),
    ("hostSelector", ("spec", "hostSelector"), {}, (V1_7, V1_8), (V1_6,)),
    ("nodeSelector", ("spec", "nodeSelector"), {"matchLabels": {"a": "b"}}, (V1_8,), (V1_6, V1_7, V1_7_1)),
    ("macros", (*S, "macros"), ["m"], (V1_7, V1_8), (V1_6,)),
    ("matchParentBinaries", (*S, "matchParentBinaries"), [], (V1_7, V1_8), (V1_6,)),
    ("matchWorkloads", (*S, "matchWorkloads"), {"podSelector": {}}, (V1_8,), (V1_6, V1_7, V1_7_1)),
    ("a label of a selector", (*S, "label"), "x", (V1_8,), (V1_6, V1_7, V1_7_1)),
    ("the return of a uprobe", ("spec", "uprobes", 0, "return"), True, (V1_7, V1_8), (V1_6,)),
    ("the data of a uprobe", ("spec", "uprobes", 0, "data"), [], (V1_7, V1_8), (V1_6,)),
    ("binaryDigests", ("spec", "uprobes", 0, "binaryDigests"), ["x"], (V1_8,), (V1_6, V1_7)),
    ("btfTypeModule", (*K, "args", 0, "btfTypeModule"), "x", (V1_7_1, V1_8), (V1_6, V1_7)),
    ("the type sockaddr_un", (*K, "args", 0, "type"), "sockaddr_un", (V1_7, V1_8), (V1_6,)),
    ("the type sint8", (*K, "args", 0, "type"), "sint8", (V1_7, V1_8), (V1_6,)),
    ("the operator SubString", (*S, "matchArgs", 0, "operator"), "SubString", (V1_7, V1_8), (V1_6,)),
    ("the operator FileType", (*S, "matchArgs", 0, "operator"), "FileType", (V1_7, V1_8), (V1_6,)),
    ("the operator CelExpr", (*S, "matchArgs", 0, "operator"), "CelExpr", (V1_7, V1_8), (V1_6,)),
    ("the action FollowFD", (*S, "matchActions", 1), {"action": "FollowFD"}, (V1_6, V1_7), (V1_8,)),
    ("the action UnfollowFD", (*S, "matchActions", 1), {"action": "UnfollowFD"}, (V1_6, V1_7), (V1_8,)),
    ("the action CopyFD", (*S, "matchActions", 1), {"action": "CopyFD"}, (V1_6, V1_7), (V1_8,)),
    ("argFd", (*S, "matchActions", 1, "argFd"), 1, (V1_6, V1_7), (V1_8,)),
    ("argNewSymbol", (*S, "matchActions", 1, "argNewSymbol"), "x", (V1_8,), (V1_6, V1_7)),
]  # fmt: skip


def with_change(path: Path_, value: object, version: Version) -> dict[str, Any]:
    """The rich policy for a version, with one value set."""
    policy = for_version(version)
    holder: Any = policy
    for part in path[:-1]:
        holder = holder[part]
    holder[path[-1]] = value
    return policy


@pytest.mark.parametrize(
    ("path", "value", "version"),
    [pytest.param(path, value, version, id=f"{name}-{version}") for name, path, value, takes, _unused in CHANGES for version in takes],
)
def test_a_version_takes_what_it_knows(path: Path_, value: object, version: Version) -> None:
    assert problems(with_change(path, value, version), version) == []


@pytest.mark.parametrize(
    ("path", "value", "version"),
    [pytest.param(path, value, version, id=f"{name}-{version}") for name, path, value, _unused, refuses in CHANGES for version in refuses],
)
def test_a_version_refuses_what_it_does_not_know(path: Path_, value: object, version: Version) -> None:
    (problem,) = problems(with_change(path, value, version), version)
    assert problem.startswith(documents.show_path(path))


# --- against upstream's own data, where it is at hand ---------------------------------------------------------------

UPSTREAM = os.environ.get("APIARY_UPSTREAM", "")
needs_upstream = pytest.mark.skipif(not UPSTREAM, reason="APIARY_UPSTREAM names no directory with upstream's CRDs and examples")
RELEASES = [pytest.param("v1.6.1", (1, 6, 1), id="1.6.1"), pytest.param("v1.7.0", V1_7, id="1.7.0"), pytest.param("main", V1_8, id="main")]
KINDS = ["cilium.io_tracingpolicies.yaml", "cilium.io_tracingpoliciesnamespaced.yaml"]


class Shape:
    """A schema taken apart: the paths of its properties, their types, enums, required keys and bounds."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self.paths: set[Path_] = set()
        self.types: dict[Path_, str] = {}
        self.enums: dict[Path_, frozenset[str]] = {}
        self.required: dict[Path_, frozenset[str]] = {}
        self.bounds: dict[tuple[Path_, str], object] = {}
        self._take(schema, ())

    def _take(self, schema: Mapping[str, Any], path: Path_) -> None:
        self.types[path] = schema["type"]
        if "enum" in schema:
            self.enums[path] = frozenset(schema["enum"])
        if schema.get("required"):
            self.required[path] = frozenset(schema["required"])
        self.bounds.update({(path, bound): schema[bound] for bound in ("minimum", "maxItems", "maxLength", "pattern") if bound in schema})
        for key, inner in schema.get("properties", {}).items():
            self.paths.add((*path, key))
            self._take(inner, (*path, key))
        for key, step in (("items", "[]"), ("additionalProperties", "*")):
            if isinstance(schema.get(key), Mapping):
                self._take(schema[key], (*path, step))


@functools.cache
def upstream(release: str, kind: str) -> Shape:
    """The spec of a CRD of upstream."""
    crd = yaml.safe_load((Path(UPSTREAM) / release / "crds" / kind).read_text(encoding="utf-8"))
    return Shape(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"])


def below_host_selector(path: Path_) -> bool:
    """The CRD allows labels in hostSelector; the agent refuses all but {}, and so does this schema."""
    return "hostSelector" in path[:-1]


@needs_upstream
@pytest.mark.parametrize("kind", KINDS, ids=["cluster", "namespaced"])
@pytest.mark.parametrize(("release", "version"), RELEASES)
class TestUpstreamsCrd:
    """The schema says what the CRD says, but for the differences named here."""

    def test_it_has_the_same_properties(self, release: str, version: Version, kind: str) -> None:
        ours, theirs = Shape(tracing_policy(version)["properties"]["spec"]).paths, upstream(release, kind).paths
        assert ours - theirs == set()
        assert {path for path in theirs - ours if not below_host_selector(path)} == set()

    def test_they_are_of_the_same_types(self, release: str, version: Version, kind: str) -> None:
        ours, theirs = Shape(tracing_policy(version)["properties"]["spec"]), upstream(release, kind)
        assert ours.types == {path: kind for path, kind in theirs.types.items() if not below_host_selector(path)}

    def test_they_take_the_same_words(self, release: str, version: Version, kind: str) -> None:
        ours, theirs = Shape(tracing_policy(version)["properties"]["spec"]), upstream(release, kind)
        assert ours.enums == {path: words for path, words in theirs.enums.items() if not below_host_selector(path)}

    def test_the_same_keys_are_required(self, release: str, version: Version, kind: str) -> None:
        ours, theirs = Shape(tracing_policy(version)["properties"]["spec"]), upstream(release, kind)
        assert ours.required == {path: keys for path, keys in theirs.required.items() if not below_host_selector(path)}

    def test_every_bound_holds_here_too(self, release: str, version: Version, kind: str) -> None:
        ours, theirs = Shape(tracing_policy(version)["properties"]["spec"]), upstream(release, kind)
        expected = {place: bound for place, bound in theirs.bounds.items() if not below_host_selector(place[0])}
        go = {place: bound.replace("\\Z", "$") if isinstance(bound, str) else bound for place, bound in ours.bounds.items()}
        assert {place: go.get(place) for place in expected} == expected


def example_policies() -> list[Any]:
    """Every policy among upstream's examples."""
    found = []
    root = Path(UPSTREAM) / "v1.7.0" / "examples"
    for file in sorted([*root.rglob("*.yaml"), *root.rglob("*.yml")]) if UPSTREAM else []:
        for number, document in enumerate(yaml.safe_load_all(file.read_text(encoding="utf-8"))):
            if isinstance(document, Mapping) and str(document.get("kind", "")).startswith("TracingPolicy"):
                found.append(pytest.param(document, id=f"{file.relative_to(root)}-{number}"))
    return found


@needs_upstream
@pytest.mark.parametrize("policy", example_policies())
def test_an_example_of_upstream_is_accepted(policy: Mapping[str, Any]) -> None:
    assert problems(policy) == []


@needs_upstream
def test_upstream_has_examples() -> None:
    assert len(example_policies()) > 80
