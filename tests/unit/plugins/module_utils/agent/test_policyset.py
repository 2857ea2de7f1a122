# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import resource
import signal
from pathlib import Path

import pytest

from ansible_collections.apiary.tetragon.plugins.module_utils.agent.policyset import PolicySet

ONE, TWO = {"1-a.yaml": "one"}, {"1-a.yaml": "two", "1-b.yaml": "more"}


@pytest.fixture
def files(tmp_path):
    return PolicySet(str(tmp_path / "tetragon.tp.d"))


def agent_sees(files):
    """The files that an agent would load: its walk goes one level deep and does not follow links to directories."""
    root = Path(files.policy_dir)
    seen = {}
    for path in sorted(root.rglob("*")):
        if path.is_file() and len(path.relative_to(root).parts) <= 2:
            seen[path.name] = path.read_text(encoding="utf-8")
    return seen


def test_there_is_nothing_at_first(files):
    assert files.read() == {}


def test_a_staged_set_is_not_seen_until_it_is_swapped_in(files):
    files.stage(ONE)
    assert (files.read(), agent_sees(files)) == ({}, {})
    files.swap()
    assert (files.read(), agent_sees(files)) == (ONE, ONE)


def test_the_former_set_stays_staged_after_the_swap_and_comes_back(files):
    files.stage(ONE)
    files.swap()
    files.stage(TWO)
    assert agent_sees(files) == ONE
    files.swap()
    assert agent_sees(files) == TWO
    files.swap()
    assert agent_sees(files) == ONE


def test_a_first_swap_can_be_undone(files):
    files.stage(ONE)
    files.swap()
    files.swap()
    assert (files.read(), agent_sees(files)) == ({}, {})


def test_nothing_is_left_after_discard(files):
    files.stage(ONE)
    files.swap()
    files.discard()
    assert [path.name for path in Path(files.policy_dir).iterdir()] == ["apiary"]


def test_the_users_own_files_stay(files):
    own = Path(files.policy_dir) / "own.yaml"
    own.parent.mkdir()
    own.write_text("mine", encoding="utf-8")
    files.stage(ONE)
    files.swap()
    files.discard()
    assert agent_sees(files) == {"own.yaml": "mine", **ONE}


def test_files_can_be_read_by_root_alone(files):
    files.stage(ONE)
    files.swap()
    assert oct(Path(files.live, "1-a.yaml").stat().st_mode & 0o777) == "0o600"
    assert oct(Path(files.live).stat().st_mode & 0o777) == "0o700"


def test_a_disk_without_room_leaves_no_trace(files):
    files.stage(ONE)
    files.swap()
    files.discard()
    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            files.stage({"1-a.yaml": "x", "1-b.yaml": "x" * 10_000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, former)
    assert agent_sees(files) == ONE
    assert [path.name for path in Path(files.policy_dir).iterdir()] == ["apiary"]
