# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""What must be true of a host whose agent runs as it is to, read by other means than the role's."""

from __future__ import annotations

import json


def check(host):
    unit = host.check_output("systemctl show -p ActiveState,Result apiary-tetragon-a.service").splitlines()
    assert sorted(unit) == ["ActiveState=active", "Result=success"]
    assert host.check_output("systemctl list-units --failed --plain --no-legend") == ""
    assert not host.file("/var/lib/apiary/alarm-a.json").exists
    assert host.check_output("ls -d /sys/fs/bpf/*apiary*") == "/sys/fs/bpf/apiary-a"
    listed = json.loads(host.check_output("tetra tracingpolicy list -o json"))["policies"]
    assert {(policy["name"].rpartition("-")[0], policy["state"]) for policy in listed} == {
        ("fileless-execution", "TP_STATE_ENABLED"),
        ("credential-writes", "TP_STATE_ENABLED"),
        ("c2-ranges", "TP_STATE_ENABLED"),
    }
    assert "denied" in host.run("/opt/apiary/tetragon/1.7.100/bin/act write /srv/secret").stdout
