# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Traits: what a rendered policy hooks, does, needs and reaches."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.schema import Version
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.traits import (
    Requirement,
    Traits,
    hook_entries,
    is_filtered,
    scope,
    traits,
)


def document(spec: dict[str, Any], namespace: str = "") -> dict[str, Any]:
    """A policy with this spec."""
    return {"metadata": {"name": "it", **({"namespace": namespace} if namespace else {})}, "spec": spec}


def traits_of(spec: dict[str, Any], version: Version = (1, 7, 0)) -> Traits:
    """The traits of a policy with this spec."""
    return traits(document(spec), version)


def acting(*actions: str, key: str = "matchActions", **filters: object) -> list[dict[str, Any]]:
    """Selectors with these actions."""
    return [{**filters, key: [{"action": action} for action in actions]}]


@pytest.mark.parametrize(
    ("section", "raw", "name"),
    [
        pytest.param("kprobes", {"call": "tcp_connect"}, "tcp_connect", id="a kprobe"),
        pytest.param("kprobes", {"call": "list:mine"}, "list:mine", id="a list"),
        pytest.param("fentries", {"call": "tcp_connect"}, "tcp_connect", id="a fentry"),
        pytest.param("tracepoints", {"subsystem": "sched", "event": "sched_switch"}, "sched/sched_switch", id="a tracepoint"),
        pytest.param("lsmhooks", {"hook": "file_open"}, "file_open", id="an LSM hook"),
        pytest.param("usdts", {"path": "/bin/x", "provider": "p", "name": "n"}, "/bin/x:p:n", id="a USDT"),
        pytest.param("uprobes", {"path": "/bin/x", "symbols": ["a", "b"]}, "/bin/x:a,b", id="a uprobe by symbols"),
        pytest.param("uprobes", {"path": "/bin/x", "offsets": [16]}, "/bin/x:16", id="a uprobe by offset"),
        pytest.param("uprobes", {"path": "/bin/x", "addrs": [32]}, "/bin/x:32", id="a uprobe by address"),
    ],
)
def test_a_hook_has_a_section_and_a_name(section: str, raw: dict[str, Any], name: str) -> None:
    (entry,) = hook_entries({section: [raw]})
    assert (entry.section, entry.name, entry.path) == (section, name, ("spec", section, 0))
    assert traits_of({section: [raw]}).hooks == (f"{section}:{name}",)


def test_hooks_come_in_the_order_of_the_document() -> None:
    spec = {"kprobes": [{"call": "b"}, {"call": "a"}], "lsmhooks": [{"hook": "c"}]}
    assert traits_of(spec).hooks == ("kprobes:b", "kprobes:a", "lsmhooks:c")


def test_actions_of_both_sides_are_named_once_and_sorted() -> None:
    selectors = [*acting("Sigkill", "Override"), *acting("Sigkill"), *acting("TrackSock", key="matchReturnActions")]
    assert traits_of({"kprobes": [{"call": "a", "selectors": selectors}]}).actions == ("Override", "Sigkill", "TrackSock")


def test_a_policy_without_actions_posts() -> None:
    derived = traits_of({"kprobes": [{"call": "a"}]})
    assert (derived.actions, derived.enforcing) == (("Post",), False)


@pytest.mark.parametrize("action", ["Sigkill", "Signal", "Override", "NotifyEnforcer", "Set"])
@pytest.mark.parametrize("key", ["matchActions", "matchReturnActions"])
def test_a_policy_enforces_with(action: str, key: str) -> None:
    assert traits_of({"kprobes": [{"call": "a", "selectors": acting(action, key=key)}]}).enforcing


@pytest.mark.parametrize("action", ["Post", "NoPost", "TrackSock", "GetUrl", "FollowFD", "CleanupEnforcerNotification"])
def test_a_policy_does_not_enforce_with(action: str) -> None:
    assert not traits_of({"kprobes": [{"call": "a", "selectors": acting(action)}]}).enforcing


def test_overrides_are_the_security_functions_whose_result_a_kprobe_replaces() -> None:
    spec = {
        "kprobes": [
            {"call": "security_b", "selectors": acting("Override")},
            {"call": "security_a", "selectors": [*acting("Post"), *acting("Override")]},
            {"call": "security_a", "selectors": acting("Override")},
            {"call": "security_c", "selectors": acting("Sigkill")},
            {"call": "sys_open", "selectors": acting("Override")},
        ],
        "lsmhooks": [{"hook": "file_open", "selectors": acting("Override")}],
    }
    assert traits_of(spec).overrides == ("security_a", "security_b")


def test_binaries_are_the_files_that_user_space_hooks_sit_in() -> None:
    spec = {
        "uprobes": [{"path": "/b", "symbols": ["x"]}, {"path": "/b", "symbols": ["y"]}, {"path": "/a", "offsets": [1]}],
        "usdts": [{"path": "/c", "provider": "p", "name": "n"}],
        "kprobes": [{"call": "a"}],
    }
    assert traits_of(spec).binaries == ("/a", "/b", "/c")


@pytest.mark.parametrize(
    ("spec", "version", "unpinned"),
    [
        pytest.param({"kprobes": [{"call": "a"}]}, (1, 7, 0), (), id="a kprobe"),
        pytest.param({"uprobes": [{"path": "/x", "symbols": ["a"]}]}, (1, 7, 0), (), id="a uprobe"),
        pytest.param({"tracepoints": [{"subsystem": "a", "event": "b"}]}, (1, 7, 0), (), id="a tracepoint"),
        pytest.param(
            {"tracepoints": [{"subsystem": "a", "event": "b", "raw": True}]}, (1, 7, 0), ("tracepoints:a/b",), id="a raw tracepoint"
        ),
        pytest.param(
            {"tracepoints": [{"subsystem": "a", "event": "b", "raw": True}]}, (1, 8, 0), ("tracepoints:a/b",), id="a raw one on 1.8"
        ),
        pytest.param({"lsmhooks": [{"hook": "a"}, {"hook": "a"}]}, (1, 7, 1), ("lsmhooks:a",), id="an LSM hook on 1.7"),
        pytest.param({"lsmhooks": [{"hook": "a"}]}, (1, 6, 0), ("lsmhooks:a",), id="an LSM hook on 1.6"),
        pytest.param({"lsmhooks": [{"hook": "a"}]}, (1, 8, 0), (), id="an LSM hook on 1.8"),
    ],
)
def test_links_that_do_not_outlive_the_agent_are_named(spec: dict[str, Any], version: Version, unpinned: tuple[str, ...]) -> None:
    assert traits_of(spec, version).unpinned == unpinned


@pytest.mark.parametrize(
    ("spec", "namespace", "shown"),
    [
        pytest.param({}, "", "everything on the host", id="nothing said"),
        pytest.param({"podSelector": {}}, "", "pods (all)", id="all pods"),
        pytest.param({"podSelector": {"matchLabels": {"b": "2", "a": "1"}}}, "", "pods a=1; b=2", id="labels"),
        pytest.param(
            {
                "podSelector": {
                    "matchExpressions": [{"key": "a", "operator": "In", "values": ["x", "y"]}, {"key": "b", "operator": "Exists"}]
                }
            },
            "",
            "pods a In (x, y); b Exists",
            id="expressions",
        ),
        pytest.param({"containerSelector": {"matchLabels": {"name": "main"}}}, "", "containers name=main", id="containers"),
        pytest.param({"hostSelector": {}}, "", "host processes", id="the host"),
        pytest.param({}, "shop", "namespace shop", id="a namespace"),
        pytest.param(
            {"podSelector": {"matchLabels": {"a": "1"}}, "hostSelector": {}},
            "shop",
            "namespace shop, pods a=1, host processes",
            id="all at once",
        ),
    ],
)
def test_the_scope_is_told_in_words(spec: dict[str, Any], namespace: str, shown: str) -> None:
    assert scope(document(spec, namespace)) == shown


@pytest.mark.parametrize(
    ("spec", "needed"),
    [
        pytest.param({"kprobes": [{"call": "a"}]}, [], id="nothing"),
        pytest.param({"lsmhooks": [{"hook": "a"}]}, [("probe", "lsm")], id="an LSM hook"),
        pytest.param({"fentries": [{"call": "a"}]}, [("probe", "fentry")], id="a fentry"),
        pytest.param(
            {"kprobes": [{"call": "security_a", "syscall": False, "selectors": acting("Override")}]}, [("probe", "fmodret")], id="Override"
        ),
        pytest.param(
            {"kprobes": [{"call": "sys_a", "selectors": acting("Override")}]},
            [("probe", "override_return", "fmodret_syscall")],
            id="Override of a system call",
        ),
        pytest.param(
            {"uprobes": [{"path": "/x", "symbols": ["a"], "selectors": acting("Override")}]},
            [("probe", "uprobe_regs_change")],
            id="Override in a program",
        ),
        pytest.param({"kprobes": [{"call": "a", "selectors": acting("Sigkill")}]}, [("probe", "signal")], id="Sigkill"),
        pytest.param({"kprobes": [{"call": "a", "selectors": acting("Signal")}]}, [("probe", "signal")], id="Signal"),
        pytest.param(
            {"kprobes": [{"call": "a", "selectors": acting("Sigkill", key="matchReturnActions")}]}, [("probe", "signal")], id="on return"
        ),
        pytest.param(
            {"kprobes": [{"call": "a", "selectors": [{"matchParentBinaries": [{"operator": "In", "values": ["/x"]}]}]}]},
            [("flag", "parents-map-enabled")],
            id="parents",
        ),
        pytest.param({"kprobes": [{"call": "a"}], "podSelector": {}}, [("flag", "enable-policy-filter")], id="pods"),
        pytest.param({"kprobes": [{"call": "a"}], "hostSelector": {}}, [("flag", "enable-policy-filter")], id="the host"),
    ],
)
def test_an_agent_must_have(spec: dict[str, Any], needed: list[tuple[str, ...]]) -> None:
    assert [(one.kind, *one.any_of) for one in traits_of(spec).requirements] == needed


def test_from_1_7_1_on_the_host_alone_is_selected_without_the_policy_filter() -> None:
    assert traits_of({"kprobes": [{"call": "a"}], "hostSelector": {}}, (1, 7, 1)).requirements == ()
    assert traits_of({"kprobes": [{"call": "a"}], "hostSelector": {}, "podSelector": {}}, (1, 7, 1)).requirements != ()


def test_a_namespaced_policy_needs_the_policy_filter() -> None:
    derived = traits(document({"kprobes": [{"call": "a"}]}, "shop"), (1, 7, 0))
    assert [one.any_of for one in derived.requirements] == [("enable-policy-filter",)]


def test_a_requirement_is_named_once() -> None:
    hook = {"call": "a", "selectors": acting("Sigkill")}
    assert traits_of({"kprobes": [hook, hook]}).requirements == (Requirement("probe", ("signal",), "Sigkill and Signal"),)


@pytest.mark.parametrize(
    "key",
    [
        "matchArgs", "matchData", "matchBinaries", "matchParentBinaries", "matchPIDs", "matchNamespaces", "matchNamespaceChanges",
        "matchCapabilities", "matchCapabilityChanges", "matchWorkloads", "macros",
    ],
)  # fmt: skip
def test_a_selector_filters_with(key: str) -> None:
    assert is_filtered({key: [{}]})


@pytest.mark.parametrize(
    "selector",
    [{}, {"matchArgs": []}, {"matchActions": [{"action": "Post"}]}, {"matchReturnArgs": [{}]}],
    ids=["empty", "no entries", "acts", "returns"],
)
def test_a_selector_filters_nothing(selector: dict[str, Any]) -> None:
    assert not is_filtered(selector)
