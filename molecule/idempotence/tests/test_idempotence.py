# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations


def test_the_agents_process_is_the_same(host):
    assert host.check_output("systemctl show -P MainPID apiary-tetragon-a.service") == host.check_output("cat /root/main-pid")
    assert host.check_output("systemctl show -P NRestarts apiary-tetragon-a.service") == "0"


def test_no_file_was_written_again(host):
    now = host.check_output("find /opt/apiary /etc/apiary /etc/systemd/system -printf '%p %i %T@\\n' | sort")
    assert now == host.check_output("cat /root/files")
