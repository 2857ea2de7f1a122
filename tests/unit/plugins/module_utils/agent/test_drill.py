# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ansible_collections.apiary.tetragon.plugins.module_utils.agent.drill import Drill, DrillError, lapses
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.proof import Proof
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.slots import Layout, link

DENY = Proof("deny-1", "file/deny", "trigger", {"kind": "open", "path": "/srv/a"})


def row(attempts=9, allowed=0, gap=0.0):
    return {"attempts": attempts, "allowed": allowed, "wrong": 0, "gap": gap}


def test_held_everywhere_is_no_lapse():
    assert lapses([DENY], {"steady": {"deny-1": row()}, "stop": {"deny-1": row()}}) == []


def test_a_single_act_that_came_through_is_a_lapse_and_told_with_its_figures():
    (told,) = lapses([DENY], {"steady": {"deny-1": row()}, "stop": {"deny-1": row(9, 2, 1.5)}})
    assert told == "stop: file/deny: 2 of 9 came through, longest 1.5 s"


@pytest.mark.parametrize("acts", [{}, {"deny-1": row(0)}])
def test_what_was_not_attempted_is_not_proved(acts):
    (told,) = lapses([DENY], {"kill": acts})
    assert "nothing was attempted" in told


def test_a_host_may_be_down_before_anything_was_attempted_and_is_not_open_until_then():
    assert lapses([DENY], {"shutdown": {}}) == []
    (told,) = lapses([DENY], {"shutdown": {"deny-1": row(4, 1, 0.0)}})
    assert told.startswith("shutdown: file/deny: 1 of 4 came through")


def test_a_boot_is_open_until_the_agent_has_loaded():
    assert lapses([DENY], {"booting": {"deny-1": row(9, 9, 4.0)}, "after-reboot": {"deny-1": row()}}) == []


def test_what_the_agent_does_not_pin_is_a_lapse_with_its_reason():
    (told,) = lapses([DENY], {"stop": {"deny-1": row(9, 9, 2.0)}}, ["deny-1"])
    assert "pins no link" in told


class Services:
    """Units that do as they are told."""

    def __init__(self):
        self.calls = []

    def start(self, unit):
        self.calls.append(("start", unit))

    def stop(self, unit):
        self.calls.append(("stop", unit))

    def restart(self, unit):
        self.calls.append(("restart", unit))

    def running(self, unit):
        return ("start", unit) in self.calls

    def reload(self):
        self.calls.append(("reload", ""))


def test_a_host_that_did_not_reboot_fails_the_drill_and_keeps_nothing_of_it(tmp_path):
    layout = Layout(str(tmp_path))
    link("apiary-tetragon-a.service", layout.pointer)
    drill = Drill(layout, Services())
    Path(drill.directory).mkdir(parents=True)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    Path(drill.directory, "drill.json").write_text(json.dumps({"boot_id": boot, "proofs": []}), encoding="utf-8")
    Path(drill.unit_file).write_text("[Unit]\n", encoding="utf-8")
    assert drill.under_way()
    with pytest.raises(DrillError, match="was to reboot and did not"):
        drill.finish(reboot=True)
    assert not Path(drill.directory).exists()
    assert not Path(drill.unit_file).exists()
    assert ("start", "apiary-tetragon-a.service") in drill.services.calls, "an agent that was left stopped is started"


def test_without_an_agent_there_is_nothing_to_prove(tmp_path):
    with pytest.raises(DrillError, match="no agent runs here: install one first"):
        Drill(Layout(str(tmp_path)), Services()).proofs([])


def test_no_drill_is_held_over_a_hand_over_that_was_interrupted(tmp_path):
    drill = Drill(Layout(str(tmp_path)), Services())
    Path(drill.layout.state).mkdir(parents=True)
    Path(drill.layout.state, "handover.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DrillError, match="run the role's upgrade first"):
        drill.begin([], [], 0.1, 1)
    assert drill.services.calls == []


class Killed(Services):
    """A host on which a policy ends the prober at once."""

    def running(self, unit):
        return unit != "apiary-drill.service"


def test_a_prober_that_a_policy_ends_is_not_waited_for(tmp_path, monkeypatch):
    drill = Drill(Layout(str(tmp_path)), Killed(), timeout=600)
    link("apiary-tetragon-a.service", drill.layout.pointer)
    link("../apiary-tetragon.service", drill.layout.wanted)
    monkeypatch.setattr(drill, "proofs", lambda _policies: [DENY])
    with pytest.raises(DrillError, match="the prober does not run: a policy refuses python3"):
        drill.begin([], [], 0.1, 1)
    assert not Path(drill.directory).exists()


def test_a_restart_is_one_step(tmp_path, monkeypatch):
    drill = Drill(Layout(str(tmp_path)), Services())
    link("apiary-tetragon-a.service", drill.layout.pointer)
    link("../apiary-tetragon.service", drill.layout.wanted)
    monkeypatch.setattr(drill, "proofs", lambda _policies: [])
    monkeypatch.setattr(drill, "_ready", lambda _place, _proofs: [])
    drill.begin([], ["restart"], 0.02, 0.05, reboot=True)
    assert [what for what, unit in drill.services.calls if unit == "apiary-tetragon-a.service"] == ["restart"]
    assert Path(drill.directory, "phases").read_text(encoding="utf-8").split()[1::2] == ["steady", "restart", "after-restart", "shutdown"]
