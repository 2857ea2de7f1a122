# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""After runs that were refused, or undone, a host shows no trace of an agent."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    "path",
    [
        "/etc/systemd/system/apiary-tetragon.service",
        "/etc/systemd/system/apiary-tetragon-a.service",
        "/etc/systemd/system/apiary-tetragon-alarm@.service",
        "/etc/systemd/system/multi-user.target.wants/apiary-tetragon.service",
        "/etc/apiary/slots/a",
        "/opt/apiary/lib",
        "/sys/fs/bpf/apiary-a",
        "/usr/local/bin/tetra",
    ],
)
def test_nothing_is_left_of_it(host, path):
    assert host.run(f"test -e {path} -o -L {path}").rc == 1


def test_no_unit_has_failed_or_runs(host):
    assert host.check_output("systemctl list-units --all --plain --no-legend 'apiary-tetragon*'") == ""
    assert host.check_output("systemctl list-units --failed --plain --no-legend") == ""


def test_no_agent_runs(host):
    assert host.run("pgrep -f bin/tetragon").rc == 1
