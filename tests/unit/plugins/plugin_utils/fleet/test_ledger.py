# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import os
import resource
import signal

import pytest

from ansible_collections.apiary.tetragon.plugins.plugin_utils.fleet.ledger import Ledger, Lock, Progress, process_start, progress
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Refused


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path / "ledger")
    for number in range(4):
        ledger.append("note", number=number)
    return ledger


def test_entries_come_back_in_order(ledger):
    assert [(entry["sequence"], entry["number"]) for entry in ledger.read()] == [(1, 0), (2, 1), (3, 2), (4, 3)]


def test_an_empty_ledger_has_no_entries(tmp_path):
    assert Ledger(tmp_path / "none").read() == []


@pytest.mark.parametrize("line", range(4))
def test_an_altered_line_shows(ledger, line):
    lines = ledger.path.read_bytes().split(b"\n")
    lines[line] = lines[line].replace(b'"number":', b'"Number":')
    ledger.path.write_bytes(b"\n".join(lines))
    with pytest.raises(Refused, match=r"altered|lines are missing"):
        ledger.read()


@pytest.mark.parametrize("line", range(4))
def test_a_removed_line_shows(ledger, line):
    lines = ledger.path.read_bytes().split(b"\n")
    del lines[line]
    ledger.path.write_bytes(b"\n".join(lines))
    with pytest.raises(Refused, match=r"altered|lines are missing"):
        ledger.read()


def test_a_removed_head_shows(ledger):
    (ledger.directory / "ledger.head").unlink()
    with pytest.raises(Refused, match=r"ledger.head: is missing"):
        ledger.read()


@pytest.mark.parametrize("torn", [b"{", b'{"sequence":5,"chain":"', b"\xff\xfe"])
def test_a_line_torn_by_a_crash_is_passed_over_and_then_cut(ledger, torn):
    with ledger.path.open("ab") as file:
        file.write(torn)
    assert len(ledger.read()) == 4
    ledger.append("note", number=4)
    assert [entry["number"] for entry in ledger.read()] == [0, 1, 2, 3, 4]


def test_a_crash_between_line_and_head_loses_nothing(ledger):
    head = (ledger.directory / "ledger.head").read_text(encoding="utf-8")
    ledger.append("note", number=4)
    (ledger.directory / "ledger.head").write_text(head, encoding="utf-8")
    assert len(ledger.read()) == 5
    ledger.append("note", number=5)
    assert len(ledger.read()) == 6


@pytest.fixture
def no_room():
    """Writes of more than 4 kB into one file fail, as on a full disk."""
    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, former)


def test_a_disk_without_room_is_an_error_that_names_the_ledger_and_loses_nothing(ledger, no_room):
    with pytest.raises(
        Refused, match=r"ledger.jsonl: the ledger cannot be written: File too large; free some space or set apiary_ledger_dir"
    ):
        ledger.append("note", number="x" * 8192)
    assert len(ledger.read()) == 4
    ledger.append("note", number=4)
    assert len(ledger.read()) == 5


def test_a_full_disk_is_an_error_and_leaves_no_half_written_file(full_disk):
    with pytest.raises(Refused, match="cannot be written: No space left on device; free some space"):
        Ledger(full_disk).append("note")
    with pytest.raises(Refused, match=r"lab.lock: cannot be written: No space left on device; free some space"):
        Lock(full_disk, "lab").take(holder())
    assert Ledger(full_disk).read() == []
    assert Lock(full_disk, "lab").holder() is None
    assert {path.name for path in full_disk.iterdir()} <= {"filler", ".guard"}


def test_a_ledger_directory_that_is_none_is_an_error(tmp_path):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    for call in (
        Ledger(tmp_path / "file").read,
        lambda: Ledger(tmp_path / "file").append("note"),
        lambda: Lock(tmp_path / "file", "lab").take(holder()),
    ):
        with pytest.raises(Refused, match="file"):
            call()


def test_text_that_is_not_unicode_can_be_recorded(ledger):
    ledger.append("note", reason="a file named \udcff")
    assert ledger.read()[-1]["reason"] == "a file named \udcff"


def holder(run="r1", pid=None):
    pid = os.getpid() if pid is None else pid
    return {"run": run, "host": "here", "pid": pid, "pid_start": process_start(pid), "user": "amy", "since": "2026-11-22T09:00:00+00:00"}


def test_a_second_rollout_is_refused_and_the_first_named(tmp_path):
    Lock(tmp_path, "lab").take(holder())
    with pytest.raises(Refused, match=r"rollout r1 is under way: started 2026-11-22T09:00:00\+00:00 by amy on here"):
        Lock(tmp_path, "lab").take({**holder("r2", os.getppid())})


def test_environments_do_not_lock_each_other_out(tmp_path):
    Lock(tmp_path, "lab").take(holder())
    Lock(tmp_path, "other").take(holder("r2", os.getppid()))


def test_the_lock_of_a_process_that_is_gone_is_taken_over(tmp_path):
    Lock(tmp_path, "lab").take({**holder(), "pid_start": "0"})
    Lock(tmp_path, "lab").take(holder("r2"))
    assert Lock(tmp_path, "lab").holder()["run"] == "r2"


def test_a_lock_held_on_another_machine_can_only_be_broken_by_name(tmp_path):
    Lock(tmp_path, "lab").take({**holder(), "host": "elsewhere", "pid_start": "0"})
    with pytest.raises(Refused, match="apiary_break_lock=r1"):
        Lock(tmp_path, "lab").take(holder("r2"))
    with pytest.raises(Refused):
        Lock(tmp_path, "lab").take(holder("r2"), break_run="r3")
    Lock(tmp_path, "lab").take(holder("r2"), break_run="r1")


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "{}", '{"run": "r1"}'])
def test_a_damaged_lock_is_refused_and_not_taken_for_none(tmp_path, text):
    (tmp_path / "lab.lock").write_text(text, encoding="utf-8")
    with pytest.raises(Refused, match=r"lab.lock: is damaged: remove it if no rollout is under way"):
        Lock(tmp_path, "lab").take(holder())


def test_only_the_holder_gives_the_lock_back(tmp_path):
    lock = Lock(tmp_path, "lab")
    lock.take(holder())
    lock.release("r2")
    assert lock.holder() is not None
    lock.release("r1")
    assert lock.holder() is None


def entries(*kinds):
    return [{"kind": kind, "environment": "lab", "run": "r1", "bundle": "b2", "plan": "p", **fields} for kind, fields in kinds]


FINISHED_B1 = ("rollout-finished", {"bundle": "b1", "run": "r0"})
STARTED = ("rollout-started", {})


@pytest.mark.parametrize(
    ("steps", "wanted"),
    [
        pytest.param([], Progress(), id="nothing yet"),
        pytest.param([FINISHED_B1], Progress("b1"), id="one finished"),
        pytest.param([FINISHED_B1, STARTED], Progress("b1", "", "r1", "b2", "p"), id="second under way"),
        pytest.param(
            [FINISHED_B1, STARTED, ("ring-passed", {"ring": "canary"})], Progress("b1", "", "r1", "b2", "p", ("canary",)), id="ring passed"
        ),
        pytest.param([FINISHED_B1, STARTED, ("rollout-finished", {})], Progress("b2", "b1"), id="two finished"),
        pytest.param([FINISHED_B1, FINISHED_B1], Progress("b1"), id="the same again"),
        pytest.param(
            [FINISHED_B1, STARTED, ("gate", {"ring": "canary", "verdict": "fail"})],
            Progress("b1", "", "r1", "b2", "p", failing="canary"),
            id="failed and not rolled back yet",
        ),
        pytest.param(
            [FINISHED_B1, STARTED, ("rollout-halted", {"verdict": "fail", "reason": "why", "ring": "canary"})],
            Progress("b1", "", "r1", "b2", "p", halted="fail", reason="why"),
            id="halted",
        ),
        pytest.param(
            [FINISHED_B1, STARTED, ("rollout-halted", {"verdict": "inconclusive", "reason": "why"}), ("rollout-resumed", {})],
            Progress("b1", "", "r1", "b2", "p"),
            id="taken up again",
        ),
    ],
)
def test_the_ledger_tells_where_an_environment_stands(steps, wanted):
    assert progress(entries(*steps), "lab") == wanted
    assert progress(entries(*steps), "other") == Progress()


def test_every_line_is_plain_json(ledger):
    for line in ledger.path.read_text(encoding="utf-8").splitlines():
        assert json.loads(line)["kind"] == "note"
