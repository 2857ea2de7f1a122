# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The engine against the reference interpreter, over generated policies and calls."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay import filters
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.compile import CompiledPolicy
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.records import (
    Argument,
    Declared,
    FilePath,
    Hook,
    Invocation,
    Opaque,
    Pod,
    Process,
    ReadError,
    Socket,
)
from ansible_collections.apiary.tetragon.tests.unit.plugins.plugin_utils.replay import reference

Strategy = st.SearchStrategy[Any]
EXAMPLES = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
POLICIES = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))

# --- values of each type, and filters on it -------------------------------------------------------------------------

TEXT = st.text(alphabet="/abü.", max_size=6)
PATHS = st.sampled_from(["", "/etc", "/etc/shadow", "/etc/shadow2", "/a/b.pem", "/" + "x" * 300])
PERMISSIONS = st.sampled_from(["-rw-r--r--", "drwxr-xr-x", "lrwxrwxrwx", "srwxrwxrwx", "crw-rw-rw-", "brw-rw----", "prw-r--r--"])
V4, V6 = ["10.1.2.3", "10.2.0.1", "127.0.0.1", ""], ["fd00::1", "::1", "::ffff:10.1.2.3", ""]
PORTS = st.sampled_from([0, 22, 443, 1023, 1024, 8080, 65535])


def sockets(*families: str) -> Strategy:
    """Sockets of these families with addresses of their own kind."""
    return st.sampled_from(families).flatmap(
        lambda family: st.builds(
            Socket,
            family=st.just(family),
            protocol=st.sampled_from(["IPPROTO_TCP", "IPPROTO_UDP", "253", ""]),
            state=st.sampled_from(["TCP_LISTEN", "TCP_ESTABLISHED", ""]),
            saddr=st.sampled_from({"AF_INET": V4, "AF_INET6": V6}.get(family, [""])),
            daddr=st.sampled_from({"AF_INET": V4, "AF_INET6": V6}.get(family, [""])),
            sport=PORTS,
            dport=PORTS,
        )
    )


def numbers(type_: str) -> Strategy:
    """Numbers as the agent exports this type, near the edges and near those of filters."""
    low, high = filters.bounds(type_)
    edges = (low, low + 1, -200, -5, -1, 0, 1, 5, 7, 127, 128, 255, 65531, 1 << 31, (1 << 32) + 5, high - 1, high)
    return st.sampled_from([one for one in edges if low <= one <= high])


def value_of(type_: str) -> Strategy:
    """Values of a type, or a failed read."""
    made: Strategy
    if type_ in filters.INTEGERS:
        made = numbers(type_)
    elif type_ in filters.CAPABILITY_TYPES:
        made = st.sampled_from([0, 1, 3, 1 << 21, 1 << 21 | 1])
    elif type_ in filters.PATH_TYPES:
        made = st.builds(FilePath, PATHS, PERMISSIONS)
    elif type_ == "char_buf":
        made = TEXT.map(str.encode)
    elif type_ in filters.STRING_TYPES:
        made = st.one_of(TEXT, PATHS)
    elif type_ in filters.SOCKET_TYPES:
        made = sockets("AF_INET", "AF_INET6", "AF_UNIX", "")
    else:
        made = st.just(Opaque(type_))
    return st.one_of(made, made, made, made, st.just(ReadError("Bad address")))


def written(type_: str) -> Strategy:
    """Numbers as a policy may write them for this type."""
    wide = type_ in ("int64", "sint64", "long", "uint64", "ulong", "syscall64")
    top = 1 << (63 if wide else 31)
    several = [0, 1, 5, 7, 127, 128, 255, 65531, 65541, top - 1]
    several += [top, 2 * top - 1] if type_.startswith("u") else [-200, -10, -5, -1, -top]
    shapes = [str, hex, lambda one: ("-" if one < 0 else "") + "0" + oct(abs(one))[2:], bin]
    return st.builds(lambda one, shape: shape(one), st.sampled_from(several), st.sampled_from(shapes))


SET_ENTRIES = st.one_of(
    st.sampled_from([-5, -1, 0, 1, 5, 7, 22, 251, 443, 65531, 4294967291]).map(str),
    st.tuples(st.integers(-8, 300), st.integers(-8, 300)).map(lambda pair: f"{pair[0]}:{pair[1]}"),
)


def values_for(operator: str, type_: str) -> Strategy:
    """Values that the agent takes for an operator on a type."""
    some = {"min_size": 1, "max_size": 4}
    if operator in filters.SET_OPERATORS:
        return st.lists(SET_ENTRIES, **some)
    if type_ in filters.INTEGERS and operator in filters.RANGE_OPERATORS:
        return st.lists(st.tuples(written(type_), written(type_)).map(":".join), **some)
    if type_ in filters.INTEGERS and operator in filters.NUMBER_OPERATORS:
        return st.lists(written(type_), **some)
    if operator in filters.FILE_TYPE_OPERATORS:
        return st.lists(st.sampled_from(["reg", "dir", "link", "socket", "chr", "block", "pipe"]), **some)
    if operator in filters.PORT_OPERATORS:
        return st.lists(st.one_of(PORTS.map(str), st.sampled_from(["1:1024", "9000:8000", "443:443"])), **some)
    if operator in filters.PRIVILEGED_OPERATORS:
        return st.just([])
    if operator in filters.ADDRESS_OPERATORS:
        return st.lists(st.sampled_from(["10.0.0.0/8", "10.1.2.3", "0.0.0.0/0", "fd00::/8", "::1", "::/0", "::ffff:10.0.0.0/104"]), **some)
    if operator in filters.NAME_OPERATORS:
        names = {"Family": ["AF_INET", "AF_INET6", "1", "1:9"], "Protocol": ["IPPROTO_TCP", "17", "200:255"]}
        return st.lists(st.sampled_from(names.get(operator, ["TCP_LISTEN", "TCP_ESTABLISHED", "2:9"])), **some)
    if type_ in filters.CAPABILITY_TYPES:
        return st.lists(st.sampled_from(["0", "1", "0x3", "CAP_SYS_ADMIN", "CAP_CHOWN,DAC_OVERRIDE"]), **some)
    if operator in filters.SUBSTRING_OPERATORS:
        return st.sampled_from([["a"], ["shadow"]])
    return st.lists(st.one_of(TEXT, PATHS, st.sampled_from(["shadow\0", "/etc/shadow\0", "x" * 120, "/" + "x" * 254])), **some).map(
        lambda texts: [one[: 127 if "Postfix" in operator else 256] for one in texts]
    )


def operators_of(type_: str) -> list[str]:
    """Every operator that an agent of 1.7 loads for a type."""
    ends = sorted(filters.END_OPERATORS)
    substrings = sorted(filters.SUBSTRING_OPERATORS)
    if type_ in filters.INTEGERS:
        return [*sorted(filters.NUMBER_OPERATORS), *ends, *substrings]
    if type_ in filters.CAPABILITY_TYPES:
        return ["Equal", "NotEqual"]
    if type_ in filters.SOCKET_TYPES:
        refused = ("D", "P", "NotD") if type_ == "sockaddr" else ()
        named = [one for one in sorted(filters.SOCKET_OPERATORS) if not one.startswith(refused or ("-",))]
        return [*(one for one in named if type_ != "sockaddr" or one != "State"), *ends, *substrings]
    if type_ in filters.UNCOMPARED_TYPES:
        return [*ends, *substrings]
    if type_ in ("file", "path"):
        return [*sorted(filters.TEXT_OPERATORS), *sorted(filters.FILE_TYPE_OPERATORS), *substrings]
    if type_ == "dentry":
        return ends
    return [*sorted(filters.TEXT_OPERATORS), *(substrings if type_ in ("string", "char_buf") else [])]


TYPES = [
    *sorted(filters.INTEGERS),
    *sorted(filters.CAPABILITY_TYPES),
    *sorted(filters.PATH_TYPES),
    *sorted(filters.STRING_TYPES),
    "char_buf",
    *sorted(filters.SOCKET_TYPES),
    *sorted(filters.UNCOMPARED_TYPES),
]


def test_every_operator_is_generated() -> None:
    known = (
        filters.NUMBER_OPERATORS
        | filters.TEXT_OPERATORS
        | filters.FILE_TYPE_OPERATORS
        | filters.SUBSTRING_OPERATORS
        | filters.SOCKET_OPERATORS
    )
    assert {operator for type_ in TYPES for operator in operators_of(type_)} == known


@pytest.mark.parametrize("type_", TYPES)
@EXAMPLES
@given(data=st.data())
def test_a_filter_answers_as_the_reference_does(type_: str, data: Any) -> None:
    operator = data.draw(st.sampled_from(operators_of(type_)))
    values, value = data.draw(values_for(operator, type_)), data.draw(value_of(type_))
    assert filters.compile_filter(operator, values, type_)(value).value is reference.compare(operator, values, type_, value)


# --- whole policies -------------------------------------------------------------------------------------------------

FILES = ["/usr/bin/cat", "/usr/bin/dash", "/usr/bin/head"]
HOOK_TYPES = ["int", "uint64", "string", "file", "sock", "int16"]


def filter_on(index: int, type_: str) -> Strategy:
    return st.sampled_from(operators_of(type_)).flatmap(
        lambda operator: values_for(operator, type_).map(lambda values: {"index": index, "operator": operator, "values": values})
    )


def named_files(operators: list[str]) -> Strategy:
    return st.builds(
        lambda operator, values, follow: {
            "operator": operator,
            "values": values,
            **({"followChildren": True} if follow and operator in ("In", "NotIn") else {}),
        },
        st.sampled_from(operators),
        st.lists(st.sampled_from([*FILES, "/usr/bin/", "cat"]), max_size=2),
        st.booleans(),
    )


BINARIES = named_files(["In", "NotIn", "Prefix", "NotPrefix", "Postfix", "NotPostfix"])
PARENTS = BINARIES.map(lambda one: {key: value for key, value in one.items() if key != "followChildren"})
PIDS = st.builds(
    lambda operator, values, inside: {"operator": operator, "values": values, "isNamespacePID": inside},
    st.sampled_from(["In", "NotIn"]),
    st.lists(st.sampled_from([1, 7, 70]), min_size=1, max_size=6),
    st.booleans(),
)
CAPABILITIES = st.builds(
    lambda operator, values, kind: {"operator": operator, "values": values, "type": kind},
    st.sampled_from(["In", "NotIn"]),
    st.lists(st.sampled_from(["CAP_CHOWN", "CAP_SYS_ADMIN", "DAC_OVERRIDE"]), min_size=1, max_size=3),
    st.sampled_from(["Effective", "Permitted", "Inheritable"]),
)
NAMESPACES = st.builds(
    lambda kind, operator, values: {"namespace": kind, "operator": operator, "values": values},
    st.sampled_from(["Pid", "Mnt", "User", "Net"]),
    st.sampled_from(["In", "NotIn"]),
    st.lists(st.sampled_from(["host_ns", "4026531836", "4026532500"]), min_size=1, max_size=2),
)
LABELS = st.one_of(
    st.just({}),
    st.sampled_from(["cart", "search"]).map(lambda app: {"matchLabels": {"app": app}}),
    st.builds(
        lambda operator, key: {"matchExpressions": [{"key": key, "operator": operator, "values": ["cart"]}]},
        st.sampled_from(["In", "NotIn", "Exists", "DoesNotExist"]),
        st.sampled_from(["app", "tier", "k8s:io.kubernetes.pod.namespace"]),
    ),
)
CONTAINERS = st.sampled_from([{}, {"matchLabels": {"name": "main"}}, {"matchLabels": {"repo": "docker.io/library/cart"}}])
ACTIONS = st.lists(st.sampled_from(["Post", "NoPost", "Sigkill", "Override"]), max_size=3).map(
    lambda names: [{"action": name} for name in names]
)
PROCESSES = st.builds(
    Process,
    binary=st.just("/bin/sh"),
    executable=st.sampled_from([None, *FILES]),
    parent_executable=st.sampled_from([None, *FILES]),
    bare_fork=st.booleans(),
    ancestors=st.sampled_from([None, (), ("/usr/bin/dash",), ("/usr/bin/head", ""), ("/usr/bin/head", "/usr/bin/cat")]),
    pid=st.sampled_from([1, 7]),
    namespace_pid=st.sampled_from([None, 1, 70]),
    executed=st.booleans(),
    namespaces=st.sampled_from([{}, {"pid": (4026531836, True), "mnt": (4026532500, False), "user": (4026531837, True)}]),
    capabilities=st.sampled_from([None, {"effective": 1, "permitted": 1 << 21 | 3}]),
    current=st.booleans(),
    pod=st.sampled_from([None, Pod("shop", {"app": "cart"}, "main", "docker.io/library/cart"), Pod("bank", {}, "side", "")]),
    in_container=st.sampled_from([True, False, None]),
)


@st.composite
def policies(draw: Any) -> tuple[dict[str, Any], str, Invocation]:
    """A policy of one hook, its section, and a call of that hook."""
    section = draw(st.sampled_from(["kprobes", "kprobes", "lsmhooks", "fentries"]))
    types = draw(st.lists(st.sampled_from(HOOK_TYPES), min_size=1, max_size=2))
    selectors = []
    for _unused in range(draw(st.integers(0, 3))):
        selector: dict[str, Any] = {"matchActions": draw(ACTIONS)}
        entries = [draw(filter_on(index, types[index])) for index in draw(st.lists(st.integers(0, len(types) - 1), max_size=2))]
        if entries:
            selector["matchArgs"] = entries
        process: dict[str, Strategy] = {
            "matchBinaries": BINARIES,
            "matchParentBinaries": PARENTS,
            "matchPIDs": PIDS,
            "matchCapabilities": CAPABILITIES,
            "matchNamespaces": NAMESPACES,
        }
        for key in draw(st.lists(st.sampled_from(sorted(process)), max_size=2, unique=True)):
            selector[key] = [draw(process[key])]
        selectors.append(selector)
    hook: dict[str, Any] = {"args": [{"index": index, "type": one} for index, one in enumerate(types)], "selectors": selectors}
    hook |= {"hook": "f"} if section == "lsmhooks" else {"call": "f", "syscall": False}
    if section == "fentries":
        for selector in selectors:
            selector["matchActions"] = [one for one in selector["matchActions"] if "Post" in one["action"]]
    if section == "kprobes" and draw(st.booleans()):
        hook |= {"return": True, "returnArg": {"index": 0, "type": "int"}}
        for selector in selectors:
            if draw(st.booleans()):
                selector["matchReturnArgs"] = [draw(filter_on(0, "int"))]
            if draw(st.booleans()):
                selector["matchReturnActions"] = draw(st.sampled_from([[{"action": "Post"}], [{"action": "NoPost"}]]))
    spec: dict[str, Any] = {section: [hook]}
    for key, labels in (("podSelector", LABELS), ("containerSelector", CONTAINERS)):
        if draw(st.integers(0, 3)) == 0:
            spec[key] = draw(labels)
    namespace = draw(st.sampled_from([None, None, None, "shop"]))
    if namespace is None and draw(st.integers(0, 3)) == 0:
        spec["hostSelector"] = {}
    document = {"metadata": {"name": "p", **({"namespace": namespace} if namespace else {})}, "spec": spec}
    kept = [index for index in range(len(types)) if draw(st.integers(0, 5))]
    args = tuple(Argument(Declared(index, types[index]), draw(value_of(types[index]))) for index in kept)
    returned = draw(st.sampled_from([None, 0, -1, 5])) if hook.get("return") else None
    name = Hook("lsm" if section == "lsmhooks" else "kprobe", "f")
    return document, section, Invocation(name, draw(PROCESSES), args, returned=returned)


@POLICIES
@given(made=policies())
def test_a_policy_answers_as_the_reference_does(made: tuple[dict[str, Any], str, Invocation]) -> None:
    document, section, call = made
    (verdict,) = CompiledPolicy(document).evaluate(call)
    fires, winners = reference.fires(document, section, call)
    assert verdict.fires.value is fires
    assert {outcome.selector for outcome in verdict.outcomes} == winners
    assert bool(verdict.fires.reasons) is (fires is None)


@POLICIES
@given(made=policies())
def test_an_explanation_says_what_the_verdict_says(made: tuple[dict[str, Any], str, Invocation]) -> None:
    document, _unused, call = made
    policy = CompiledPolicy(document)
    (verdict,) = policy.evaluate(call)
    (told,) = policy.explain(call)
    assert (told.fires, set(told.reasons)) == (verdict.fires.value, set(verdict.fires.reasons))
    for selector in told.selectors:
        values = [one.value for one in selector.filters]
        assert selector.value is (False if False in values else None if None in values else True)
        assert all(bool(one.reasons) is (one.value is None) for one in selector.filters)
    assert asdict(told)["outcomes"][0]["posts"] is told.outcomes[0].posts
