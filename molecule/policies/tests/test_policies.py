# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""What the hosts run after two converge runs, a kill, and a reboot, read by other means than the collection's."""

from __future__ import annotations

import json
import time

import pytest

DATABASES = ("deb12-1", "deb13-1")


@pytest.fixture
def policies(host):
    listed = json.loads(host.check_output("tetra tracingpolicy list -o json"))["policies"]
    return {policy["name"].rpartition("-")[0]: policy for policy in listed}


def test_the_set_is_enabled_in_its_modes_after_kill_and_reboot(policies):
    modes = {name: policy["mode"] for name, policy in policies.items()}
    assert modes == {
        "fileless-execution": "TP_MODE_MONITOR",
        "credential-writes": "TP_MODE_ENFORCE",
        "c2-ranges": "TP_MODE_ENFORCE",
    }


def test_the_policy_directory_holds_the_set_and_nothing_else(host, policies):
    files = host.check_output("find /etc/tetragon/tetragon.tp.d -type f -printf '%P %m\\n'").splitlines()
    assert sorted(files) == sorted(f"apiary/1-{policy['name']}.yaml 600" for policy in policies.values())


def test_each_group_has_its_values(host):
    text = host.check_output("cat /etc/tetragon/tetragon.tp.d/apiary/1-credential-writes-*")
    assert ("/srv/database.key" in text) == (host.backend.get_hostname() in DATABASES)


@pytest.mark.parametrize("act", ["write /srv/secret", "write /srv/keys/id", "connect 192.0.2.7 443"])
def test_a_forbidden_act_is_denied(host, act):
    assert "denied" in host.run(f"act {act}").stdout


@pytest.mark.parametrize("act", ["open /srv/secret", "write /srv/other", "connect 192.0.3.7 443", "exec-memory"])
def test_everything_else_is_allowed(host, act):
    assert host.run(f"act {act}").stdout.strip() == f"{act}: allowed"


def test_enforcement_holds_while_the_agent_is_gone(host):
    host.check_output("systemctl stop tetragon.service")
    try:
        assert "denied" in host.run("act write /srv/secret").stdout
    finally:
        host.check_output("systemctl start tetragon.service")
        deadline = time.monotonic() + 60
        while host.run("tetra tracingpolicy list -o json").stdout.count("TP_STATE_ENABLED") < 3 and time.monotonic() < deadline:
            time.sleep(0.5)


def test_the_pins_are_real_and_nothing_old_is_left(host):
    assert host.check_output("stat -f -c %T /sys/fs/bpf") == "bpf_fs"
    assert host.check_output("find /sys/fs/bpf -mindepth 1 -maxdepth 1 -type d") == "/sys/fs/bpf/tetragon"
    links = host.check_output("find /sys/fs/bpf/tetragon/ -path '*c2-ranges*' -name 'link*' | wc -l")
    assert int(links) >= 2
