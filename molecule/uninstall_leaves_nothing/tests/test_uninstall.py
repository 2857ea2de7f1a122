# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations


def test_nothing_is_pinned(host):
    assert host.check_output("stat -f -c %T /sys/fs/bpf") == "bpf_fs"
    assert host.check_output("find /sys/fs/bpf -mindepth 1 | grep -ci -e apiary -e tetragon || :") == "0"


def test_nothing_forbids_any_more(host):
    host.check_output("mkdir -p /srv && echo x >/srv/secret")


def test_no_unit_file_link_or_mount_is_left(host):
    assert host.check_output("systemctl list-units --all --plain --no-legend '*tetragon*'") == ""
    assert host.check_output("systemctl list-unit-files --plain --no-legend '*tetragon*' || :") == ""
    places = "/etc /opt /usr /var/lib /var/log /run"
    left = host.check_output(f"find {places} -xdev \\( -iname '*apiary*' -o -iname '*tetragon*' -o -name tetra \\) || :")
    assert [path for path in left.splitlines() if "standin" not in path] == []
    assert host.check_output("cut -d' ' -f2 /proc/mounts | grep -c -e tetragon -e apiary || :") == "0"
    assert host.check_output("pgrep -fc [b]in/tetragon || :") == "0"
