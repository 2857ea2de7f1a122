# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest

from ansible_collections.apiary.tetragon.plugins.module_utils.agent.flags import (
    DEFAULTS,
    OF_THE_SLOT,
    differences,
    flags_of,
    problems,
    text_of,
)


def test_options_come_and_go_with_versions():
    assert "enable-process-ancestors" in flags_of("1.5.0")
    assert "enable-process-ancestors" not in flags_of("1.6.1")
    assert "retprobes-cache-size" not in flags_of("1.6.1")
    assert flags_of("1.7.0")["retprobes-cache-size"] == "int"
    assert "server-tls-cert-file" in flags_of("1.8.0") and "server-tls-cert-file" not in flags_of("1.7.1")
    assert flags_of("1.9.0") == flags_of("1.8.0")


@pytest.mark.parametrize("version", ["1.6.0", "1.7.0", "1.8.0"])
def test_what_we_set_exists_in_every_version(version):
    assert set(flags_of(version)) > {*DEFAULTS, *OF_THE_SLOT}
    assert problems(version, DEFAULTS) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep-sensor-on-exit": True}, "version 1.6.1 has no option 'keep-sensor-on-exit'; did you mean keep-sensors-on-exit?"),
        ({"persist-grpc-policies": True}, "version 1.6.1 has no option 'persist-grpc-policies'"),
        ({"disable-uprobe-multi": True}, "version 1.6.1 has no option 'disable-uprobe-multi'; did you mean disable-kprobe-multi?"),
        ({"bpf-dir": "mine"}, "option bpf-dir is not for the user: each slot has its own"),
        ({"debug": "maybe"}, "option debug is true or false, not 'maybe'"),
        ({"event-queue-size": "many"}, "option event-queue-size is a whole number, not 'many'"),
        ({"export-file-rotation-interval": "1 day"}, "option export-file-rotation-interval is a duration such as 30s or 5m, not '1 day'"),
    ],
)
def test_an_option_that_the_version_cannot_take_is_named(options, message):
    assert problems("1.6.1", options) == [message]


def test_a_version_that_would_enforce_what_is_to_monitor_is_refused():
    assert "older than 1.4" in problems("1.3.0", {})[0]


def test_values_are_written_as_the_agent_reads_them():
    assert [text_of(one) for one in (True, False, 5, ["base", "kprobe"], " x\n")] == ["true", "false", "5", "base,kprobe", "x"]


def test_the_effective_options_are_compared_by_meaning():
    wanted = {"debug": "false", "event-queue-size": "10000", "enable-ancestors": "base,kprobe", "health-server-address": ""}
    effective = {"debug": False, "event-queue-size": 10000, "enable-ancestors": ["base", "kprobe"], "health-server-address": ""}
    assert differences("1.7.0", wanted, effective) == []
    assert differences("1.7.0", wanted, {**effective, "debug": "1", "health-server-address": ":6789"}) == [
        "option debug is '1' in the agent, not 'false'",
        "option health-server-address is ':6789' in the agent, not ''",
    ]
    del effective["debug"]
    assert differences("1.7.0", wanted, effective) == ["the agent does not list its option debug"]
