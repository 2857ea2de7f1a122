# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations


def test_no_host_has_anything_of_it(host):
    assert (
        host.run("ls -A /opt/apiary /etc/apiary /usr/local/bin/tetra /etc/cron.d/evil /etc/systemd/system/apiary-tetragon-a.service").stdout
        == ""
    )
