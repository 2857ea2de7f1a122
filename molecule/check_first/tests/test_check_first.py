# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations


def test_a_check_run_leaves_nothing(host):
    assert host.check_output("find /opt /etc /var/lib /usr/local -name '*apiary*' -newer /etc/tmpfiles.d/standin.conf") == ""
    assert host.run("ls /opt/apiary").rc == 2
    assert host.run("systemctl cat apiary-tetragon-a.service").rc != 0
