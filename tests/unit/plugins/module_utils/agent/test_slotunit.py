# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ansible_collections.apiary.tetragon.plugins.module_utils.agent import slotunit, units
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.slotunit import NotReady, Slot, expected, heal, missing, raise_alarm
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.tetra import LoadedPolicy

DENY = "metadata:\n  name: deny-1\nspec:\n  options:\n    - name: policy-mode\n      value: enforce\n"
WATCH = "metadata:\n  name: 'watch-1'\n  namespace: web\nspec:\n  options:\n    - name: policy-mode\n      value: monitor\n"
OWN = "metadata: {name: own}\nspec: {}\n"


@pytest.fixture
def slot(tmp_path):
    return Slot("a", str(tmp_path))


def tree(slot, old=(), new=None):
    for suffix, names in (("_old", old), ("", new)):
        for name in names or ():
            Path(slot.pins.path + suffix, name).mkdir(parents=True)
    if new == []:
        Path(slot.pins.path).mkdir(parents=True)


@pytest.mark.parametrize("new", [None, [], ["part"]])
def test_good_pins_come_back_whatever_a_failed_start_left(slot, new):
    tree(slot, ["good"], new)
    assert "apiary-a_old put back to" in heal(slot)
    assert (slot.pins.policies(), slot.pins.leftover) == (["good"], "")
    assert heal(slot) == ""
    assert slot.pins.policies() == ["good"]


def test_an_alarm_that_comes_while_the_next_start_heals_takes_nothing_away(slot, monkeypatch):
    tree(slot, ["good"], ["part"])
    remove, alarms = shutil.rmtree, []

    def remove_late(path, ignore_errors):
        if not alarms:
            alarms.append(threading.Thread(target=raise_alarm, args=(slot,)))
            alarms[0].start()
            alarms[0].join(0.5)
        remove(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(slotunit.shutil, "rmtree", remove_late)
    heal(slot)
    alarms[0].join()
    assert slot.pins.policies() == slot.alarm()["kept"] == ["good"]


def test_nothing_is_healed_while_the_agent_runs(slot):
    tree(slot, ["good"], ["part"])
    Path(slot.pid_file).parent.mkdir(parents=True)
    agent = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "tetragon"])
    try:
        while b"tetragon" not in Path(f"/proc/{agent.pid}/cmdline").read_bytes():
            pass  # it is about to become what it is to be
        Path(slot.pid_file).write_text(str(agent.pid), encoding="utf-8")
        assert heal(slot) == ""
        assert slot.pins.policies() == ["part"]
    finally:
        agent.kill()
        agent.wait()


def test_a_number_that_is_another_programs_by_now_keeps_nobody_from_starting(slot):
    tree(slot, ["good"])
    Path(slot.pid_file).parent.mkdir(parents=True)
    Path(slot.pid_file).write_text("1", encoding="utf-8")
    heal(slot)
    assert not Path(slot.pid_file).exists()
    assert slot.pins.policies() == ["good"]


def test_the_set_is_read_from_its_files():
    files = {"apiary/1-deny-1.yaml": DENY, "apiary/1-web.watch-1.yaml": WATCH, "adopted/own.yaml": OWN, "odd": "x: y\n"}
    assert expected(files) == {("", "deny-1"): "enforce", ("web", "watch-1"): "monitor", ("", "own"): ""}


def test_a_slot_is_ready_only_with_every_policy_in_its_mode_and_nothing_old():
    wanted = {("", "a"): "enforce", ("", "b"): "monitor", ("", "c"): "monitor"}
    listed = [
        LoadedPolicy("a", "", "enabled", "enforce"),
        LoadedPolicy("b", "", "enabled", "monitor_only"),
        LoadedPolicy("d", "", "loading"),
    ]
    assert missing(wanted, listed, "") == ["c is not loaded"]
    listed[0] = LoadedPolicy("a", "", "enabled", "monitor")
    listed.append(LoadedPolicy("c", "", "loading"))
    assert missing(wanted, listed, "/x_old") == ["a is in mode monitor, not enforce", "c is loading", "/x_old is still there"]
    assert missing({}, [], "") == []
    assert missing({("", "a"): ""}, listed, "") == []


def test_a_slot_is_not_ready_without_the_policies_that_it_adopted(slot, tmp_path):
    files = {"etc/apiary/slots/a/policies/adopted/own.yaml": OWN, "etc/apiary/slots/a/version": "1.7.0\n"}
    files["opt/apiary/tetragon/1.7.0/bin/tetra"] = "#!/bin/sh\necho '{}'\n"
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "opt/apiary/tetragon/1.7.0/bin/tetra").chmod(0o755)
    with pytest.raises(NotReady, match="not ready after 0 seconds: own is not loaded"):
        slotunit.wait_ready(slot, 0, os.getpid())


def test_an_agent_that_ends_is_not_waited_for(slot):
    gone = subprocess.Popen(["true"])
    gone.wait()
    with pytest.raises(NotReady, match="the agent ended before it was ready"):
        slotunit.wait_ready(slot, 30, gone.pid)


def test_waiting_has_an_end(slot):
    with pytest.raises(NotReady, match=r"not ready after 0 seconds: no program"):
        slotunit.wait_ready(slot, 0, os.getpid())


def test_an_alarm_says_what_is_kept_and_stays(slot):
    assert slot.alarm() is None
    assert "NOTHING IS ENFORCED" in raise_alarm(slot)
    tree(slot, ["good", "fine"], ["good", "part"])
    assert "kept in the kernel without an agent: fine, good" in raise_alarm(slot)
    assert slot.alarm()["kept"] == slot.pins.policies() == ["fine", "good"]
    assert slot.pins.leftover == ""
    assert [path.name for path in Path(slot.alarm_file).parent.iterdir()] == ["alarm-a.json"]


def test_a_persons_client_is_led_to_the_slot_that_boots(slot, tmp_path):
    slotunit.lead_here(slot, str(tmp_path))
    assert not (tmp_path / "run/tetragon").exists()
    pointer = tmp_path / "etc/systemd/system/apiary-tetragon.service"
    pointer.parent.mkdir(parents=True)
    pointer.symlink_to("apiary-tetragon-b.service")
    slotunit.lead_here(slot, str(tmp_path))
    assert not (tmp_path / "run/tetragon").exists()
    slotunit.lead_here(Slot("b", str(tmp_path)), str(tmp_path))
    assert str((tmp_path / "run/tetragon/tetragon.sock").readlink()) == "/run/apiary/b/tetragon.sock"
    assert sorted(path.name for path in (tmp_path / "run/tetragon").iterdir()) == ["tetragon-info.json", "tetragon.sock"]


def test_the_programs_run_on_a_host_with_python_alone(tmp_path):
    """What is copied to hosts is all that the units' program imports."""
    for path, file in units.host_files(units.sources()).items():
        target = tmp_path / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(file.text, encoding="utf-8")
    program = tmp_path / units.PROGRAM.lstrip("/")
    done = subprocess.run([sys.executable, "-I", "-S", program, "nothing", "a"], capture_output=True, text=True, env={}, check=False)
    assert (done.returncode, done.stderr) == (2, "no such thing to do: nothing\n")
