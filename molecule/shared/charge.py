# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""What must be true of a host whose agent was handed over, read by other means than the role's."""

from __future__ import annotations

import json

MODES = {"fileless-execution": "monitor", "credential-writes": "enforce", "c2-ranges": "enforce"}
OTHER = {"a": "b", "b": "a"}


def policies(host):
    listed = json.loads(host.check_output("tetra tracingpolicy list -o json"))["policies"]
    assert {policy["state"] for policy in listed} == {"TP_STATE_ENABLED"}
    return {policy["name"].rpartition("-")[0]: policy["mode"].removeprefix("TP_MODE_").lower() for policy in listed}


def check(host, slot, version, modes=None):
    """One agent, of this version, in this slot, booting and enforcing; nothing left of the other."""
    unit = f"apiary-tetragon-{slot}.service"
    assert host.check_output("readlink /etc/systemd/system/apiary-tetragon.service") == unit
    running = host.check_output("systemctl list-units --plain --no-legend --state=active '*tetragon*.service'").splitlines()
    assert [line.split()[0] for line in running] == [unit]
    assert len(host.check_output("pgrep -f [b]in/tetragon").splitlines()) == 1
    assert host.check_output("systemctl list-units --failed --plain --no-legend") == ""
    assert host.check_output("systemctl show -P Id apiary-tetragon.service") == unit
    assert json.loads(host.check_output("tetra info"))["Version"] == f"v{version}"
    assert policies(host) == (modes or MODES)
    act = f"/opt/apiary/tetragon/{version}/bin/act"
    assert "denied" in host.run(f"{act} write /srv/secret").stdout
    assert "denied" in host.run(f"{act} connect 192.0.2.7 443").stdout
    assert host.run(f"{act} open /srv/secret").stdout.strip().endswith("allowed")
    assert host.check_output("ls -d /sys/fs/bpf/*apiary* /sys/fs/bpf/*tetragon* 2>/dev/null || :") == f"/sys/fs/bpf/apiary-{slot}"
    assert not host.file(f"/etc/apiary/slots/{OTHER[slot]}").exists
    assert not host.file(f"/etc/systemd/system/apiary-tetragon-{OTHER[slot]}.service").exists
    assert not host.file("/var/lib/apiary/handover.json").exists
    assert not host.file(f"/etc/apiary/slots/{slot}/policies.new").exists


def never_allowed(host):
    """What the prober saw while all this went on."""
    lines = host.check_output("cat /root/probed").splitlines()
    assert len(lines) > 5
    assert [line for line in lines if "denied" not in line] == []
