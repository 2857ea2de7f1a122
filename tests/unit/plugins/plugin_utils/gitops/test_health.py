# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The health check in a Lua of Argo CD's version, with what its sandbox offers and withholds."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Mapping
from typing import Any

import pytest
from lupa.lua51 import LuaRuntime

from ansible_collections.apiary.tetragon.plugins.plugin_utils.gitops.argocd import health_check

DIGEST = "0123456789abcdef" * 4
WITHHELD = ("io", "debug", "dofile", "loadfile", "load", "loadstring")


def ago(seconds: float) -> str:
    return (datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=seconds)).isoformat()


def truth(**more: Any) -> dict[str, Any]:
    return {
        "format": "apiary.dev/truth/1",
        "ring": "canary",
        "bundle": DIGEST,
        "nodes": 3,
        "ready": 3,
        "policies": {"c2-ranges-aaaa": {"mode": "enforce", "wanted": 3, "enabled": 3}},
        "off": [],
        "off_total": 0,
        "verdict": "healthy",
        "reason": "",
        "time": ago(60),
        **more,
    }


def published(document: Any, wanted: str | None = DIGEST, **labels: str) -> dict[str, Any]:
    """A ConfigMap as the API server shows it."""
    metadata: dict[str, Any] = {
        "name": "apiary-truth-canary",
        "labels": {"apiary.dev/kind": "truth", "apiary.dev/ring": "canary", **labels},
    }
    if wanted is not None:
        metadata["annotations"] = {"apiary.dev/bundle": wanted}
    text = document if isinstance(document, str) else json.dumps(document)
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"truth.json": text}}


def check(configmap: Mapping[str, Any], max_age: int = 3600, libraries: bool = True) -> tuple[str, str] | None:
    """Status and message of a ConfigMap; None where the check has no opinion."""
    lua = LuaRuntime(register_eval=False, register_builtins=False)
    globals_ = lua.globals()
    for name in (*WITHHELD, *(() if libraries else ("string", "math", "os"))):
        globals_[name] = None
    if not libraries:  # methods of texts go with the library
        lua.execute('getmetatable("").__index = nil')
    globals_["obj"] = lua.table_from(configmap, recursive=True)
    result = lua.execute(health_check(max_age))
    return None if result is None else (result["status"], result["message"])


def status(configmap: Mapping[str, Any], **more: Any) -> str:
    result = check(configmap, **more)
    assert result is not None
    return result[0]


def message(configmap: Mapping[str, Any], **more: Any) -> str:
    result = check(configmap, **more)
    assert result is not None
    return result[1]


@pytest.mark.parametrize(("verdict", "expected"), [("healthy", "Healthy"), ("progressing", "Progressing"), ("degraded", "Degraded")])
def test_each_verdict_is_the_health_of_that_name(verdict: str, expected: str) -> None:
    assert status(published(truth(verdict=verdict))) == expected


def test_a_healthy_ring_says_how_many_nodes_it_has() -> None:
    assert check(published(truth())) == ("Healthy", "3 of 3 nodes ready")


def test_the_message_names_policies_and_nodes_that_are_off() -> None:
    policies = {
        "c2-ranges-aaaa": {"mode": "enforce", "wanted": 3, "enabled": 2},
        "shell-bbbb": {"mode": "monitor", "wanted": 3, "enabled": 3},
    }
    off = [{"node": "a/n1", "reason": "c2-ranges-aaaa: load_error"}]
    document = truth(verdict="degraded", reason="the gate failed", ready=2, policies=policies, off=off, off_total=1)
    assert check(published(document)) == (
        "Degraded",
        "the gate failed; 2 of 3 nodes ready; policies not everywhere: c2-ranges-aaaa (enforce) on 2 of 3; "
        "nodes off: a/n1 (c2-ranges-aaaa: load_error)",
    )


def test_long_lists_end_with_how_many_are_not_named() -> None:
    policies = {f"p{number}": {"mode": "monitor", "wanted": 2, "enabled": 1} for number in range(7)}
    off = [{"node": f"n{number}", "reason": "no answer"} for number in range(20)]
    text = message(published(truth(verdict="degraded", policies=policies, off=off, off_total=31)))
    assert "p4 (monitor) on 1 of 2 and 2 more" in text and "p5" not in text
    assert "n4 (no answer) and 26 more" in text and "n5" not in text


@pytest.mark.parametrize(
    "configmap",
    [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kube-root-ca.crt"}, "data": {"ca.crt": "x"}},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "bare", "labels": {"app": "x"}}},
        published("not for us", **{"apiary.dev/kind": "policies"}),
    ],
)
def test_there_is_no_opinion_on_other_configmaps(configmap: Mapping[str, Any]) -> None:
    assert check(configmap) is None
    assert check(configmap, libraries=False) is None


@pytest.mark.parametrize("data", [None, {}, {"truth.json": ""}])
def test_a_ring_without_truth_is_progressing(data: Mapping[str, str] | None) -> None:
    configmap = {**published(truth()), "data": data}
    if data is None:
        del configmap["data"]
    assert check(configmap) == ("Progressing", "no truth has been published for this ring yet")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "a key is missing at character 2"),
        ('{"a" 1}', "a colon is missing at character 6"),
        ('{"a": 1', "} is missing at character 8"),
        ('{"a": [1 2]}', "] is missing at character 10"),
        ('{"a": nope}', "a value is missing at character 7"),
        ('{"a": --1}', "a value is missing at character 7"),
        ('{"a": "b', "the end of a text is missing at character 8"),
        ('{"a": "\\x"}', "an escape is missing"),
        ("{} {}", "the end is missing at character 4"),
        ("   ", "a value is missing"),
        ("[" * 100_000, ""),
        ("[]", "not of the format apiary.dev/truth/1"),
        ("7", "not of the format"),
        ("null", "not of the format"),
        ('"text"', "not of the format"),
    ],
)
def test_truth_that_cannot_be_read_is_degraded(text: str, named: str) -> None:
    result = check(published(text))
    assert result is not None
    assert result[0] == "Degraded" and named in result[1]


def test_any_json_is_read_as_python_reads_it() -> None:
    reason = 'quoted "x" \\ / \u00fc \n tab\t'
    for spelled in (json.dumps(truth(reason=reason), indent=2), json.dumps(truth(reason=reason, more=[None, True, False, -1.5e3, {}, []]))):
        assert status(published(spelled)) == "Healthy"
    assert message(published(truth(reason='say "no"\\now'))).startswith('say "no"\\now; ')


@pytest.mark.parametrize(
    "broken",
    [
        {"format": "apiary.dev/truth/2"},
        {"verdict": "fine"},
        {"verdict": None},
        {"time": None},
        {"time": "yesterday"},
        {"time": "2026-11-25T23:48:00"},
        {"policies": {"p": {"mode": "enforce"}}},
        {"policies": {"p": 3}},
    ],
)
def test_truth_that_does_not_keep_its_format_is_degraded(broken: Mapping[str, Any]) -> None:
    assert status(published(truth(**broken))) == "Degraded"


@pytest.mark.parametrize("absent", ["policies", "off", "off_total", "reason", "nodes", "ready"])
def test_what_only_explains_may_be_absent(absent: str) -> None:
    document = truth()
    del document[absent]
    assert status(published(document)) == "Healthy"


def test_truth_of_another_bundle_than_the_wanted_is_progressing() -> None:
    former = "f" * 64
    assert check(published(truth(bundle=former))) == (
        "Progressing",
        f"the published truth is of bundle {former[:16]}; wanted is {DIGEST[:16]}",
    )
    assert status(published(truth(bundle=former), wanted=None)) == "Healthy"


def test_stale_truth_is_degraded_however_good_it_was() -> None:
    assert status(published(truth(time=ago(3500)))) == "Healthy"
    assert check(published(truth(time=ago(7260)))) == ("Degraded", "the truth is 121 minutes old, more than 60: publish it again")
    assert status(published(truth(time=ago(7260))), max_age=0) == "Healthy"


def test_truth_from_the_future_is_degraded() -> None:
    assert status(published(truth(time=ago(-200)))) == "Healthy"
    assert "a clock is wrong" in message(published(truth(time=ago(-400))))


@pytest.mark.parametrize(("zone", "offset"), [("Z", 0), ("+00:00", 0), (".123456+00:00", 0), ("+05:30", 19800), ("-11:00", -39600)])
def test_times_are_read_in_every_zone(zone: str, offset: int) -> None:
    local = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time.time() - 3500 + offset))
    assert status(published(truth(time=local + zone))) == "Healthy"
    local = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time.time() - 3700 + offset))
    assert status(published(truth(time=local + zone))) == "Degraded"


@pytest.mark.parametrize("day", ["1970-01-01", "1999-12-31", "2000-02-29", "2024-02-29", "2025-03-01", "2026-12-31", "2100-03-01"])
def test_days_are_counted_as_the_calendar_does(day: str) -> None:
    then = datetime.datetime.fromisoformat(f"{day}T12:34:56+00:00")
    age = time.time() - then.timestamp()
    text = message(published(truth(time=then.isoformat())), max_age=1)
    if age < 0:
        assert "a clock is wrong" in text
    else:
        assert abs(int(text.split()[3]) - age / 60) <= 1


def test_without_the_libraries_it_says_what_to_set() -> None:
    result = check(published(truth()), libraries=False)
    assert result is not None
    assert result[0] == "Degraded" and "resource.customizations.useOpenLibs.ConfigMap" in result[1]
