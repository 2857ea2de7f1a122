# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Triggers: what a drill attempts against a policy, from its values."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

import pytest

from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.load import Library
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.render import render
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.trigger import act
from ansible_collections.apiary.tetragon.tests.unit.plugins.plugin_utils.samples import (
    LIBRARY_VALUES,
    META,
    PROTECTED,
    PolicyTree,
    messages,
    refused,
)


def of_library(library: Library, reference: str, **values: Any) -> Mapping[str, Any] | None:
    return act(render(library.get(reference), {**LIBRARY_VALUES.get(reference, {}), **values}, "host", PROTECTED))


@pytest.mark.parametrize(
    ("reference", "values", "expected"),
    [
        ("file/credential-writes", {"files": ["/srv/a"]}, {"kind": "write", "files": ["/srv/a"]}),
        ("file/immutable-paths", {"directories": ["/srv"]}, {"kind": "write", "below": ["/srv"]}),
        ("network/c2-ranges", {"ranges": ["2001:db8::/32", "192.0.2.0/24"]}, {"kind": "connect", "address": "192.0.2.1"}),
        ("network/c2-ranges", {"ranges": ["192.0.2.7/32"]}, {"kind": "connect", "address": "192.0.2.7"}),
        ("network/egress-allowlist", {"allowed": ["192.0.0.0/8"]}, {"kind": "connect", "address": "198.51.100.1"}),
        ("network/egress-allowlist", {"allowed": ["0.0.0.0/0", "::/0"]}, None),
        ("process/fileless-execution", {}, {"kind": "exec-memory"}),
        ("process/shell-in-container", {}, None),
    ],
)
def test_the_library_has_harmless_acts_derived_from_values(
    library: Library, reference: str, values: Mapping[str, Any], expected: Mapping[str, Any] | None
) -> None:
    assert of_library(library, reference, **values) == expected


def test_an_address_outside_is_in_none_of_the_allowed_ranges(library: Library) -> None:
    allowed = ["192.0.2.0/24", "198.51.100.0/25"]
    found = of_library(library, "network/egress-allowlist", allowed=allowed)
    assert found is not None
    assert not any(ipaddress.ip_address(found["address"]) in ipaddress.ip_network(one) for one in allowed)


@pytest.mark.parametrize(
    ("trigger", "told"),
    [
        ("{kind: fly}", "trigger.kind"),
        ("{kind: open}", "files"),
        ("{kind: open, files: '{{ nothing }}'}", "nothing"),
        ("{kind: open, files: '{{ paths }}', below: '{{ paths }}'}", "below"),
        ("{kind: connect, inside: '{{ paths }}'}", "inside"),
        ("{kind: write}", "files"),
    ],
)
def test_a_trigger_that_is_no_act_is_refused_with_its_file(tree: PolicyTree, trigger: str, told: str) -> None:
    tree.add(meta=META.replace("inputs:\n", f"trigger: {trigger}\ninputs:\n"))
    problems = refused(lambda: act(render(tree.policy(), {}, "host", PROTECTED)))
    assert told in messages(problems)
    assert "meta.yml" in messages(problems)
