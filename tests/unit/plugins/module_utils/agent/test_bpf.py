# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Real maps in a real BPF file system, made and pinned by this test; they need root and a kernel that lets it."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import threading

import pytest

from ansible_collections.apiary.tetragon.plugins.module_utils.agent import bpf

_MAP_CREATE, _OBJ_PIN = 0, 6
ARRAY, HASH = 2, 1


@pytest.fixture
def bpffs(tmp_path):
    done = subprocess.run(["mount", "-t", "bpf", "bpf", str(tmp_path)], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip("mounting a BPF file system needs root")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def pin_map(path, kind, key_size, value_size, entries):
    try:
        fd = bpf._bpf(_MAP_CREATE, "=IIIII", kind, key_size, value_size, entries, 0)
    except bpf.BpfError as error:
        pytest.skip(f"the kernel makes no BPF map: {error}")
    name = ctypes.create_string_buffer(os.fsencode(path))
    bpf._bpf(_OBJ_PIN, "=QI", ctypes.addressof(name), fd)
    os.close(fd)
    return str(path)


def mode(path):
    with bpf.PinnedMap(path) as conf:
        return conf.read(struct.pack("=I", 0))[0]


def set_raw(path, value):
    with bpf.PinnedMap(path) as conf:
        conf.write(struct.pack("=I", 0), bytes([value]))


def add_entries(path, keys):
    with bpf.PinnedMap(path) as tasks:
        for key in keys:
            buffers = ctypes.create_string_buffer(struct.pack("=Q", key), 8), ctypes.create_string_buffer(4)
            bpf._bpf(2, "=IxxxxQQQ", tasks.fd, ctypes.addressof(buffers[0]), ctypes.addressof(buffers[1]), 0)


def count(path):
    with bpf.PinnedMap(path) as tasks:
        return len(list(tasks.keys()))


def test_modes_of_several_policies_change_in_one_call(bpffs):
    new, old = (pin_map(bpffs / name, ARRAY, 4, 1, 1) for name in ("new", "old"))
    set_raw(new, 1)
    bpf.set_modes([(new, "enforce"), (old, "monitor")])
    assert (mode(new), mode(old)) == (0, 1)


def test_nothing_changes_when_one_of_the_maps_is_missing(bpffs):
    there = pin_map(bpffs / "there", ARRAY, 4, 1, 1)
    with pytest.raises(bpf.BpfError, match="missing: No such file"):
        bpf.set_modes([(there, "monitor"), (str(bpffs / "missing"), "monitor")])
    assert mode(there) == 0


def test_a_policy_that_can_only_monitor_is_not_set_to_enforce(bpffs):
    one, only = (pin_map(bpffs / name, ARRAY, 4, 1, 1) for name in ("one", "only"))
    set_raw(one, 1)
    set_raw(only, 2)
    with pytest.raises(bpf.BpfError, match="can only monitor"):
        bpf.set_modes([(one, "enforce"), (only, "enforce")])
    assert (mode(one), mode(only)) == (1, 2)


def test_another_kind_of_map_is_not_written(bpffs):
    other = pin_map(bpffs / "other", ARRAY, 4, 80, 1)
    with pytest.raises(bpf.BpfError, match="is no policy_conf map"):
        bpf.set_modes([(other, "monitor")])


def test_stale_entries_are_cleared_and_counted(bpffs):
    tasks = pin_map(bpffs / "override_tasks", HASH, 8, 4, 64)
    add_entries(tasks, range(40))
    assert bpf.purge_stale([tasks], pause=0.01) == 40
    assert count(tasks) == 0
    assert bpf.purge_stale([tasks], pause=0.01) == 0


def test_entries_that_come_and_go_are_left_alone(bpffs, monkeypatch):
    tasks = pin_map(bpffs / "override_tasks", HASH, 8, 4, 64)
    add_entries(tasks, [1, 2])

    def meanwhile(_seconds):
        with bpf.PinnedMap(tasks) as opened:
            opened.delete(struct.pack("=Q", 1))
        add_entries(tasks, [3])

    monkeypatch.setattr(bpf.time, "sleep", meanwhile)
    assert bpf.purge_stale([tasks]) == 1
    assert count(tasks) == 1


def test_entries_of_threads_that_are_gone_are_told_from_those_of_threads_that_live(bpffs):
    tasks, other = (pin_map(bpffs / name, HASH, 8, 4, 64) for name in ("override_tasks", "other"))
    gone = subprocess.Popen(["true"])
    gone.wait()
    dead = [os.getpid() << 32 | gone.pid, gone.pid << 32 | gone.pid]
    add_entries(tasks, [*dead, os.getpid() << 32 | threading.get_native_id()])
    found = bpf.abandoned([tasks, other])
    assert found == {tasks: {struct.pack("=Q", key) for key in dead}}
    assert bpf.delete(found) == 2
    assert (count(tasks), bpf.abandoned([tasks]), bpf.delete(found)) == (1, {}, 0)


def test_an_entry_that_its_thread_consumed_at_the_end_is_not_taken_for_one_left_behind(bpffs, monkeypatch):
    tasks = pin_map(bpffs / "override_tasks", HASH, 8, 4, 64)
    add_entries(tasks, [1, 2])

    def lives(key):
        if struct.unpack("=Q", key) == (1,):
            with bpf.PinnedMap(tasks) as opened:
                opened.delete(key)
        return False

    monkeypatch.setattr(bpf, "_lives", lives)
    assert bpf.abandoned([tasks]) == {tasks: {struct.pack("=Q", 2)}}


def test_a_map_of_another_shape_has_no_verdicts(bpffs):
    with pytest.raises(bpf.BpfError, match="is no override_tasks map"):
        bpf.abandoned([pin_map(bpffs / "other", HASH, 4, 4, 8)])


def test_a_plain_file_is_no_map(tmp_path):
    path = tmp_path / "policy_conf"
    path.write_bytes(b"\0")
    with pytest.raises(bpf.BpfError, match="policy_conf: "):
        bpf.set_modes([(str(path), "monitor")])
