# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Policies that nobody would write: schema and lints answer with findings or a refusal, never with a crash, never late."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy import kernel
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.catalogue import CATALOGUE
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.lint import Finding, lint_set
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.migrate import migrate
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.schema import Version, tracing_policy
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Refused
from ansible_collections.apiary.tetragon.tests.unit.plugins.plugin_utils.samples import lint_file

VERSIONS: list[Version] = [(1, 6, 1), (1, 7, 0), (1, 7, 1), (1, 8, 0)]
# Runs are the same each time; APIARY_FUZZ=5000 looks further.
bounded = settings(
    max_examples=int(os.environ.get("APIARY_FUZZ", "40")),
    deadline=30_000,
    derandomize="APIARY_FUZZ" not in os.environ,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
WORDS = st.sampled_from(
    [
        *(
            "0 -1 1:2 2:1 : 0x 0x1F 010 99999999999999999999 1.5 list:l list: m l host_ns /etc/shadow /bin/ls x . ::1 10.0.0.0/8 "
            "::ffff:0:0/96 0.0.0.0/0 ::/0 300.1.1.1 AF_INET IPPROTO_TCP dir CAP_SYS_ADMIN CAP_DAC_OVERRIDE CAP_CHOWN,CAP_KILL "
            "security_file_open sys_openat __x64_sys_read __ia32_sys_open fd_install file_open current_task pt_regs a.b TrackSock "
            "Post 1m 1x process policy-mode monitor enforce disable-kprobe-multi 1 true override-method fmod-ret"
        ).split(),
        *("", " ", "\0", "a\0", "ü" * 140, "/" * 256, "x" * 4097, "\u2028", "\ufffd", "'\"{}[]", "\t"),
    ]
)
NUMBERS = st.sampled_from([-(1 << 63), -(1 << 31), -4096, -1, 0, 1, 2, 3, 4, 5, 9, 15, 16, 255, (1 << 31) - 1, (1 << 63) - 1])


@functools.cache
def _version_schema(version: Version) -> Mapping[str, Any]:
    return tracing_policy(version)


def shaped(schema: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    """Values of the shape of a schema, as odd as it lets them be."""
    if "const" in schema or "enum" in schema:
        return st.sampled_from(schema.get("enum", [schema.get("const")]))
    if schema["type"] == "object":
        others = schema.get("additionalProperties")
        if isinstance(others, Mapping):
            return st.dictionaries(st.sampled_from(["m", "l", "app"]), shaped(others), max_size=2)
        fields = {key: shaped(value) for key, value in schema.get("properties", {}).items()}
        required = set(schema.get("required", ()))
        return st.fixed_dictionaries(
            {key: value for key, value in fields.items() if key in required},
            optional={key: value for key, value in fields.items() if key not in required},
        )
    if schema["type"] == "array":
        return st.lists(shaped(schema["items"]), max_size=min(3, schema.get("maxItems", 3)))
    if schema["type"] == "boolean":
        return st.booleans()
    if schema["type"] == "integer":
        return NUMBERS.filter(lambda number: schema["minimum"] <= number <= schema["maximum"])
    return st.sampled_from(["it", "cart"]) if "pattern" in schema else WORDS


def policies(version: Version) -> st.SearchStrategy[Any]:
    """Policies of sound shape with few hooks, so that their selectors get rich."""
    return shaped(_version_schema(version))


def as_yaml(value: Any) -> str:
    """Any document on one line."""
    return yaml.dump(value, Dumper=yaml.CSafeDumper, default_flow_style=True, width=1 << 30)


def findings(text: str, version: Version) -> list[Finding]:
    """What the lints say of a file with this text. Raises Refused."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "policy.yaml"
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        fits = kernel.Kernel((4, 19), {"override_return": False}, 64)
        return lint_file(path, version, fits, ("/usr/sbin/sshd",))


@pytest.mark.parametrize("version", VERSIONS, ids=str)
@bounded
@given(data=st.data())
def test_a_policy_of_sound_shape_gets_findings(version: Version, data: st.DataObject) -> None:
    policy = data.draw(policies(version))
    found = findings(as_yaml(policy), version)
    assert {one.rule for one in found} <= set(CATALOGUE)
    assert all(one.line == 1 and one.message for one in found)
    lint_set([policy] * 3, kernel.Kernel(cpus=64))
    migrate(policy, version, data.draw(st.sampled_from(VERSIONS)))


JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in a document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, one in inner for found in places(one, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A document with one value replaced."""
    if not path:
        return new
    if isinstance(value, dict):
        return {key: replaced(one, path[1:], new) if key == path[0] else one for key, one in value.items()}
    return [replaced(one, path[1:], new) if key == path[0] else one for key, one in enumerate(value)]


@bounded
@given(data=st.data())
def test_a_policy_with_a_value_of_another_shape_gets_findings_or_a_refusal(data: st.DataObject) -> None:
    policy = data.draw(policies((1, 7, 0)))
    spoilt = replaced(policy, data.draw(st.sampled_from(places(policy))), data.draw(JSON))
    try:
        findings(as_yaml(spoilt), (1, 7, 0))
    except Refused as refused:
        assert all(one.file.endswith("policy.yaml") and one.line == 1 for one in refused.problems)


@bounded
@given(text=st.text(alphabet=st.sampled_from("ab:-?!&*|>%@`'\"{}[],# \n\t0\0~<.é\u2028")) | st.text())
def test_any_text_gets_findings_or_a_refusal(text: str) -> None:
    with pytest.raises(Refused):
        findings(text, (1, 7, 0))
