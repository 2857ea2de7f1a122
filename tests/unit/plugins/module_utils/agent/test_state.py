# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import multiprocessing

import pytest

from ansible_collections.apiary.tetragon.plugins.module_utils.agent.binaries import Binary
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.state import Busy, State, StateFile

STATE = State(
    "digest",
    True,
    frozenset([("", "a-00000001"), ("shop", "b-00000002")]),
    {("shop", "b-00000002"): (Binary("/usr/bin/app", 7, 42, "c0ffee"), Binary("/usr/bin/gone"))},
    "boot-1/4711",
    {("", "a-00000001"): {"kind": "connect", "address": "192.0.2.1"}},
)


ODD = '{"bundle": "", "pending": false, "policies": [{"namespace": "", "name": "a", "binaries": [{}]}]}'


def test_a_state_comes_back_as_it_was_written(tmp_path):
    file = StateFile(str(tmp_path / "state"))
    file.write(STATE)
    assert file.read() == STATE


def test_a_state_from_before_binaries_were_recorded_is_read(tmp_path):
    (tmp_path / "policies.json").write_text(
        '{"bundle": "digest", "pending": false, "policies": [{"namespace": "", "name": "a"}]}', encoding="utf-8"
    )
    assert StateFile(str(tmp_path)).read() == State("digest", False, frozenset([("", "a")]))


def test_no_file_is_an_empty_state(tmp_path):
    assert StateFile(str(tmp_path)).read() == State()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"bundle": ""}', '{"bundle": "", "pending": false, "policies": [{}]}', ODD])
def test_a_damaged_file_is_named(tmp_path, text):
    file = StateFile(str(tmp_path))
    (tmp_path / "policies.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"policies.json is damaged .*: remove it and run again"):
        file.read()


def hold(directory, taken, done):
    with StateFile(directory).lock():
        taken.set()
        done.wait(30)


def test_a_second_run_on_the_host_is_refused_while_the_first_lasts(tmp_path):
    context = multiprocessing.get_context("fork")
    taken, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(str(tmp_path), taken, done))
    other.start()
    try:
        assert taken.wait(30)
        with pytest.raises(Busy, match="another run is changing the policies of this host"), StateFile(str(tmp_path)).lock():
            pass
    finally:
        done.set()
        other.join()
    with StateFile(str(tmp_path)).lock():
        pass
