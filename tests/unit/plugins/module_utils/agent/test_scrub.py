# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Secrets leave an event before it leaves the host; nothing that a filter compares becomes another value."""

from __future__ import annotations

import json

import pytest

from ansible_collections.apiary.tetragon.plugins.module_utils.agent.scrub import Scrubber, told


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("--password=hunter2x --verbose", "hunter2x"),
        ("--password hunter2x", "hunter2x"),
        ("-u root --db-passwd 'hunter2x'", "hunter2x"),
        ("MYSQL_PWD_TOKEN=hunter2x run", "hunter2x"),
        ("api_key: hunter2x", "hunter2x"),
        ('{"access_key": "hunter2x", "a": 1}', "hunter2x"),
        ("curl -H 'Authorization: Bearer abcdef0123456789'", "abcdef0123456789"),
        ("https://bob:hunter2x@example.test/x", "hunter2x"),
        ("https://example.test/?a=1&token=hunter2x&b=2", "hunter2x"),
        ("AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE"),
        ("ghp_0123456789abcdefghij0123", "ghp_0123456789abcdefghij0123"),
        ("eyJhbGciOiJI.eyJzdWIiOiIx.c2lnbmF0dXJl", "eyJhbGciOiJI"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIabc\n-----END RSA PRIVATE KEY-----", "MIIabc"),
        ("-----BEGIN PRIVATE KEY-----\nMIIabc", "MIIabc"),
    ],
)
def test_what_looks_like_a_secret_goes(text: str, secret: str) -> None:
    clean = Scrubber().text(text)
    assert secret not in clean
    assert "[scrubbed]" in clean
    assert Scrubber().text(clean) == clean


@pytest.mark.parametrize(
    "text",
    ["-la /etc/passwd", "/usr/bin/ls", "--port=22", "https://example.test/a:b", "-c 'echo hello'", "cat /run/secrets.d/a"],
)
def test_what_does_not_stays(text: str) -> None:
    assert Scrubber().text(text) == text


def event(*args: dict[str, object], arguments: str = "") -> dict[str, object]:
    process = {"binary": "/usr/bin/x", "arguments": arguments, "environment_variables": [{"key": "HOME", "value": "/root"}]}
    return {"process_kprobe": {"process": process, "parent": {"arguments": arguments}, "args": list(args)}, "node_name": "a"}


SOCK = {"sock_arg": {"family": "AF_INET", "daddr": "192.0.2.1"}, "label": "to"}


def test_command_lines_and_environment() -> None:
    scrubber = Scrubber()
    text = json.dumps(scrubber.event(event(arguments="--token=abc123 -v")))
    assert "abc123" not in text
    assert text.count("--token=[scrubbed] -v") == 2
    assert '"key": "HOME", "value": "[scrubbed]"' in text
    assert dict(scrubber.counts) == {"arguments": 2, "environment": 1}
    assert told(scrubber.counts) == ["2 command lines changed", "1 values of environment variables taken out"]


def test_all_command_lines_or_none() -> None:
    assert json.dumps(Scrubber("all").event(event(arguments="-v"))).count('"arguments": "[scrubbed]"') == 2
    assert json.dumps(Scrubber("keep").event(event(arguments="--token=abc"))).count("--token=abc") == 2


def test_what_a_filter_compares_becomes_unknown_and_not_another_value() -> None:
    scrubber = Scrubber(addresses=True)
    args = [{"string_arg": "--token=abc"}, {"string_arg": "harmless"}, {"bytes_arg": "c2VjcmV0"}, SOCK, {"string_arg": "to 192.0.2.1"}]
    body = scrubber.event(event(*args))["process_kprobe"]
    assert body["args"] == [
        {"scrubbed_arg": "strings"},
        {"string_arg": "harmless"},
        {"scrubbed_arg": "buffers"},
        {"scrubbed_arg": "addresses", "label": "to"},
        {"scrubbed_arg": "addresses"},
    ]


def test_addresses_stay_unless_they_are_asked_for() -> None:
    assert Scrubber().event(event(SOCK))["process_kprobe"]["args"] == [SOCK]


@pytest.mark.parametrize("text", ["ping 192.0.2.1", "ping 2001:db8::1", "ping ::1", "ssh [fe80::1]"])
def test_addresses_in_command_lines(text: str) -> None:
    scrubber = Scrubber(addresses=True)
    process = scrubber.event(event(arguments=text))["process_kprobe"]["process"]
    assert "[scrubbed]" in process["arguments"]
    assert not any(part in process["arguments"] for part in ("192.0.2.1", "db8", "::1"))
    assert scrubber.counts["addresses"] == 2


@pytest.mark.parametrize(
    "odd", [{}, {"process_kprobe": None}, {"process_kprobe": {"process": 5, "args": [None, 3], "data": 5, "return": []}}]
)
def test_events_of_another_shape_pass(odd: dict[str, object]) -> None:
    assert Scrubber("all", True).event(dict(odd)) == odd
