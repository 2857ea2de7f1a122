# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Policies are taken out of enforcement without an agent, and stay out until a converge run is told to lift it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ansible_collections.apiary.tetragon.plugins.module_utils.agent import bpf, break_glass, observe, units
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.converge import Host, converge
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.pins import PinDirectory
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.policyset import PolicySet
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.state import StateFile
from enforcing import KILL, LSM, deny
from slothost import SlotHost
from standin.kernel import Caller

POLICIES = [deny("1"), KILL, LSM]
FREE = {"deny": "allowed", "kill": "killed", "lsm": "denied"}


@pytest.fixture(autouse=True)
def plain_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pins of a lab without a BPF file system are files; a real host's are maps (see the Molecule scenario)."""

    def write(changes: list[tuple[str, str]]) -> None:
        for path, mode in changes:
            Path(path).write_bytes(bytes([bpf.MODE_VALUES[mode]]))

    monkeypatch.setattr(bpf, "mode_of", lambda path: ("enforce", "monitor", "monitor_only")[Path(path).read_bytes()[0]])
    monkeypatch.setattr(bpf, "set_modes", write)


def outcome(host: SlotHost) -> dict[str, str]:
    paths = {"deny": "/secret", "kill": "/kill", "lsm": "/lsm"}
    return {name: host.kernel.act("open", path, caller=Caller(pid=4000)).result for name, path in paths.items()}


def converged(host: SlotHost, lift: bool = False) -> list[str]:
    """Bring the host to its policies; returns the warnings."""
    place = host.layout.slot("a")
    state = StateFile(host.layout.state)
    target = Host(place.client(10), PinDirectory(place.bpf_dir), PolicySet(place.policy_dir), state)
    return converge(target, POLICIES, "bundle-1", lift=lift).warnings


def test_one_policy_is_off_at_once_over_restart_reboot_and_converge_until_it_is_lifted(
    slot_host: SlotHost, capsys: pytest.CaptureFixture[str]
) -> None:
    slot_host.place("a", "1.7.0", POLICIES)
    converged(slot_host)
    unit = slot_host.layout.unit("a")
    slot_host.services.stop(unit)
    assert break_glass.main(["off", "deny"], slot_host.layout) == 0
    assert "deny-1: does not enforce any more" in capsys.readouterr().out
    assert {**outcome(slot_host), "lsm": "denied"} == FREE  # the agent is down, and 1.7 pins no LSM link
    slot_host.services.start(unit)
    assert outcome(slot_host) == FREE
    slot_host.power_off()
    slot_host.boot()
    assert outcome(slot_host) == FREE
    assert "BREAK-GLASS" in converged(slot_host)[0]
    assert outcome(slot_host) == FREE
    assert "NOT ENFORCING deny" in observe.held_back(slot_host.layout.state)[0]
    assert converged(slot_host, lift=True) == []
    assert outcome(slot_host)["deny"] == "denied"
    assert observe.held_back(slot_host.layout.state) == []


def test_all_policies_are_off(slot_host: SlotHost) -> None:
    slot_host.place("a", "1.7.0", POLICIES)
    assert break_glass.main(["off", "--all"], slot_host.layout) == 0
    assert outcome(slot_host) == dict.fromkeys(FREE, "allowed")
    assert break_glass.record(slot_host.layout.state)["policies"] == ["*"]


def test_a_file_without_a_mode_is_moved_aside(slot_host: SlotHost) -> None:
    slot_host.place("a", "1.7.0", [KILL])
    file = Path(slot_host.layout.slot("a").policy_dir, "apiary", LSM.file)
    file.write_text(LSM.text.replace("policy-mode", "override-method"), encoding="utf-8")
    break_glass.off(slot_host.layout, ["lsm-1"])
    assert not file.exists()
    assert (slot_host.inside("/var/lib/apiary/break-glass") / LSM.file).exists()


def test_a_policy_that_is_not_here_is_named_with_those_that_are(slot_host: SlotHost, capsys: pytest.CaptureFixture[str]) -> None:
    slot_host.place("a", "1.7.0", [KILL])
    assert break_glass.main(["off", "killl"], slot_host.layout) == 1
    assert "pinned: kill-1" in capsys.readouterr().err
    assert break_glass.record(slot_host.layout.state) is None


def test_a_damaged_record_holds_everything(tmp_path: Path) -> None:
    (tmp_path / "break-glass.json").write_text("{", encoding="utf-8")
    held = break_glass.record(str(tmp_path))
    assert held and held["policies"] == ["*"]


def test_its_copy_on_a_host_needs_python_alone(tmp_path: Path) -> None:
    for path, file in units.host_files(units.sources()).items():
        target = Path(f"{tmp_path}{path}")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(file.text, encoding="utf-8")
    program = f"{tmp_path}{units.BREAK_GLASS}"
    done = subprocess.run([sys.executable, "-I", "-S", program, "status"], capture_output=True, text=True, check=False, env={})
    assert (done.returncode, done.stdout, done.stderr) == (0, "nothing is held\n", "")
