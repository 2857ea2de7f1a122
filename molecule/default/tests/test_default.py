# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""A host that got its agent from the role, after a reboot, read by other means than the role's."""

from __future__ import annotations

import json

ACT = "/opt/apiary/tetragon/1.7.100/bin/act"


def test_it_was_a_boot_of_its_own(host):
    assert host.file("/root/boot-id").content_string != host.file("/proc/sys/kernel/random/boot_id").content_string


def test_one_unit_boots_and_it_is_the_pointers(host):
    assert host.check_output("readlink /etc/systemd/system/apiary-tetragon.service") == "apiary-tetragon-a.service"
    units = host.check_output("systemctl list-units --plain --no-legend 'apiary-tetragon*'").splitlines()
    assert [unit.split()[:4] for unit in units] == [["apiary-tetragon-a.service", "loaded", "active", "running"]]
    assert host.check_output("systemctl list-units --failed --plain --no-legend") == ""


def test_the_start_job_ended_when_the_policies_were_enabled(host):
    main = int(host.check_output("systemctl show -P ExecMainStartTimestampMonotonic apiary-tetragon-a.service"))
    active = int(host.check_output("systemctl show -P ActiveEnterTimestampMonotonic apiary-tetragon-a.service"))
    log = host.check_output("journalctl -b -u apiary-tetragon-a.service -o short-monotonic --no-pager")
    assert active > main
    assert log.index("Listening for events...") < log.index("Started")


def test_a_service_that_is_ordered_after_the_pointers_name_starts_after_enforcement(host):
    active = int(host.check_output("systemctl show -P ActiveEnterTimestampMonotonic apiary-tetragon-a.service"))
    main = int(host.check_output("systemctl show -P ExecMainStartTimestampMonotonic apiary-tetragon-a.service"))
    guarded = int(host.check_output("systemctl show -P ExecMainStartTimestampMonotonic guarded.service"))
    assert main + 2_000_000 < active <= guarded


def test_the_policies_are_those_of_the_bundle(host):
    listed = json.loads(host.check_output("tetra tracingpolicy list -o json"))["policies"]
    modes = {policy["name"].rpartition("-")[0]: policy["mode"].removeprefix("TP_MODE_").lower() for policy in listed}
    assert modes == {"fileless-execution": "monitor", "credential-writes": "enforce", "c2-ranges": "enforce"}
    assert {policy["state"] for policy in listed} == {"TP_STATE_ENABLED"}


def test_forbidden_is_denied_and_the_rest_is_allowed(host):
    assert "denied" in host.run(f"{ACT} write /srv/secret").stdout
    assert "denied" in host.run(f"{ACT} connect 192.0.2.7 443").stdout
    assert host.run(f"{ACT} open /srv/secret").stdout.strip().endswith("allowed")


CONNECT = "python3 -c 'import socket; socket.create_connection((\"192.0.2.7\", 443), 1)' 2>&1"
ELSEWHERE = CONNECT.replace("192.0.2.7", "198.51.100.7")


def test_the_kernel_itself_denies_a_connection_also_without_the_agent(host):
    def refused():
        return "Operation not permitted" in host.run(CONNECT).stdout, "Operation not permitted" in host.run(ELSEWHERE).stdout

    assert refused() == (True, False)
    host.check_output("systemctl kill --signal=KILL apiary-tetragon-a.service")
    assert refused() == (True, False)
    host.check_output("systemctl restart apiary-tetragon-a.service")
    assert refused() == (True, False)


def test_enforcement_holds_while_the_agent_is_gone(host):
    host.check_output("systemctl stop apiary-tetragon-a.service")
    try:
        assert "denied" in host.run(f"{ACT} write /srv/secret").stdout
        assert host.check_output("stat -f -c %T /sys/fs/bpf") == "bpf_fs"
    finally:
        host.check_output("systemctl start apiary-tetragon-a.service")
    assert host.check_output("ls -d /sys/fs/bpf/*apiary* /sys/fs/bpf/*tetragon* 2>/dev/null || :") == "/sys/fs/bpf/apiary-a"


def test_the_effective_options_are_the_slots(host):
    conf = json.loads(host.check_output("tetra info"))["Conf"]
    assert conf["keep-sensors-on-exit"] == "true"
    assert conf["release-pinned-bpf"] == "false"
    assert (conf["bpf-dir"], conf["health-server-address"], conf["gops-address"]) == ("apiary-a", "", "")
    files = host.check_output("ls /etc/apiary/slots/a/conf.d").split()
    assert {name: conf[name] for name in files} == {
        name: host.file(f"/etc/apiary/slots/a/conf.d/{name}").content_string.strip() for name in files
    }


def test_nothing_of_the_agent_listens_beyond_the_host(host):
    listeners = host.check_output("ss -Hltn").splitlines()
    addresses = {line.split()[3] for line in listeners}
    assert {address for address in addresses if not address.endswith(":22")} == {"127.0.0.1:2112"}


def test_what_is_private_is_private(host):
    for path in ("/etc/apiary/slots/a/policies", "/var/log/tetragon", "/var/log/tetragon/a", "/run/apiary/a"):
        assert oct(host.file(path).mode) == "0o700", path
    assert oct(host.file("/var/log/tetragon/a/tetragon.log").mode) == "0o600"
    assert oct(host.file("/run/apiary/a/tetragon.sock").mode & 0o007) == "0o0"


def test_the_unit_is_limited_and_confined(host):
    shown = host.check_output(
        "systemctl show apiary-tetragon-a.service -p MemoryMax,LimitMEMLOCK,LimitNOFILE,OOMScoreAdjust,ProtectSystem,NoNewPrivileges,"
        "OnFailure,Restart,DefaultDependencies"
    )
    values = dict(line.split("=", 1) for line in shown.splitlines())
    assert values == {
        "MemoryMax": str(2 << 30),
        "LimitMEMLOCK": "infinity",
        "LimitNOFILE": "65536",
        "OOMScoreAdjust": "-900",
        "ProtectSystem": "strict",
        "NoNewPrivileges": "yes",
        "OnFailure": "apiary-tetragon-alarm@a.service",
        "Restart": "always",
        "DefaultDependencies": "no",
    }
