# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
import subprocess

import pytest

from ansible_collections.apiary.tetragon.plugins.module_utils.agent import prober, proof
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.proof import HARMLESS, refused, resolve


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(proof, "_PAUSE_SECONDS", 0)


@pytest.mark.parametrize(
    ("results", "expected", "attempts"),
    [
        ([True], True, 1),
        ([False, True], True, 2),
        ([False, False, False], False, 3),
        ([None, None, None], None, 3),
        ([None, False, None], False, 3),
    ],
)
def test_an_act_is_allowed_when_no_attempt_of_three_is_refused(results, expected, attempts):
    left = list(results)
    assert refused({"kind": "open"}, lambda _step: left.pop(0)) is expected
    assert len(results) - len(left) == attempts


def test_what_is_attempted_without_consent_changes_nothing(tmp_path):
    file = tmp_path / "file"
    file.write_text("content", encoding="utf-8")
    os.utime(file, (1, 1))
    before = file.stat()
    steps = {kind: {"kind": kind, "path": str(file), "address": "192.0.2.1"} for kind in HARMLESS}
    assert {kind: prober.once(step) for kind, step in steps.items()} == dict.fromkeys(HARMLESS, False)
    after = file.stat()
    assert (after.st_mtime, after.st_size, after.st_mode) == (before.st_mtime, before.st_size, before.st_mode)


def test_an_act_that_came_through_and_one_that_could_not_be_attempted_are_told_apart(tmp_path):
    assert prober.once({"kind": "open", "path": str(tmp_path / "missing")}) is None
    assert prober.once({"kind": "links", "directory": str(tmp_path), "folder": "deny-1", "count": 1}) is False


def test_a_file_to_write_is_one_that_nobody_executes(tmp_path):
    program, plain = tmp_path / "a-program", tmp_path / "b-plain"
    for path, mode in ((program, 0o755), (plain, 0o644)):
        path.write_text("x", encoding="utf-8")
        path.chmod(mode)
    (tmp_path / "a-link").symlink_to(plain)
    assert resolve({"kind": "write", "below": [str(tmp_path)]}) == {"kind": "write", "path": str(plain)}
    assert resolve({"kind": "write", "files": [str(program)]}) is None


def test_a_file_that_nobody_may_write_proves_nothing(tmp_path):
    file = tmp_path / "kept"
    file.touch()
    if subprocess.run(["chattr", "+i", str(file)], capture_output=True, check=False).returncode:
        pytest.skip("this file system has no immutable files, or they are for root")
    try:
        assert resolve({"kind": "write", "files": [str(file)]}) is None
    finally:
        subprocess.run(["chattr", "-i", str(file)], check=True)


def test_the_first_file_that_is_there_is_opened(tmp_path):
    (tmp_path / "there").touch()
    trigger = {"kind": "open", "files": [str(tmp_path / "missing"), str(tmp_path / "there")]}
    assert resolve(trigger) == {"kind": "open", "path": str(tmp_path / "there")}
    assert resolve({"kind": "open", "files": [str(tmp_path / "missing")]}) is None
    assert resolve({"kind": "connect", "address": "192.0.2.1"}) == {"kind": "connect", "address": "192.0.2.1"}
