# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""What the prober counts, and what the run over a real agent makes of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import forbidden
import real

from ansible_collections.apiary.tetragon.plugins.module_utils.agent import prober
from ansible_collections.apiary.tetragon.plugins.plugin_utils import bundle


def at(directory: Path) -> str:
    """The directory with the acts that are counted in it."""
    (directory / "acts.json").write_text(json.dumps(forbidden.acts(str(directory))), encoding="utf-8")
    return str(directory)


def log(directory: Path, kind: str, *attempts: tuple[float, int]) -> None:
    (directory / f"{kind}.log").write_text("".join(f"{at:.3f} {result}\n" for at, result in attempts), encoding="utf-8")


def phases(directory: Path, *begun: tuple[float, str]) -> None:
    (directory / "phases").write_text("".join(f"{at:.3f} {phase}\n" for at, phase in begun), encoding="utf-8")


def test_attempts_count_in_the_phase_in_which_they_began(tmp_path: Path) -> None:
    phases(tmp_path, (10, "steady"), (20, "restart"), (30, "after"))
    log(tmp_path, "override", (9, 0), (10, 1), (19.9, 3), (20, 0), (21.5, 0), (22, 1), (25, 0), (31, 1))
    counts = prober.report(at(tmp_path))
    assert counts["steady"]["override"] == {"attempts": 2, "allowed": 0, "wrong": 1, "gap": 0.0}
    assert counts["restart"]["override"] == {"attempts": 4, "allowed": 3, "wrong": 0, "gap": 1.5}
    assert counts["after"]["override"] == {"attempts": 1, "allowed": 0, "wrong": 0, "gap": 0.0}


def test_a_gap_is_as_long_as_it_lasts_whatever_phases_it_spans(tmp_path: Path) -> None:
    phases(tmp_path, (10, "stop"), (20, "start"))
    log(tmp_path, "override", (18, 0), (19, 0), (21, 0), (22, 1))
    counts = prober.report(at(tmp_path))
    assert (counts["stop"]["override"]["gap"], counts["start"]["override"]["gap"]) == (1.0, 3.0)


def test_a_line_torn_by_a_power_cut_is_passed_over(tmp_path: Path) -> None:
    phases(tmp_path, (10, "steady"))
    (tmp_path / "lsm.log").write_text("11.000 1\n\0\0\0\0\n12.000 1\n13.0", encoding="utf-8")
    assert prober.report(at(tmp_path))["steady"]["lsm"]["attempts"] == 2


def test_whatever_happens_to_the_innocent_is_wrong(tmp_path: Path) -> None:
    phases(tmp_path, (10, "steady"))
    log(tmp_path, "innocent", (11, 0), (12, 1), (13, 2))
    assert prober.report(at(tmp_path))["steady"]["innocent"] == {"attempts": 3, "allowed": 0, "wrong": 2, "gap": 0.0}


def cell(**changes: float) -> dict[str, float]:
    return {"attempts": 9, "allowed": 0, "wrong": 0, "gap": 0.0, **changes}


@pytest.mark.parametrize(
    ("phase", "kind", "counted", "lapse"),
    [
        ("restart", "kprobe", cell(allowed=1), True),
        ("restart", "lsm", cell(allowed=5, gap=3.0), False),
        ("after-restart", "lsm", cell(allowed=1), False),
        ("after-restart", "lsm", cell(allowed=2, gap=0.3), True),
        ("after-restart", "override", cell(allowed=1), True),
        ("restart", "override", cell(wrong=2), False),
        ("revision", "override-long", cell(wrong=1), False),
        ("revision", "override-long", cell(wrong=2), True),
        ("after-restart", "innocent", cell(wrong=1), True),
        ("reboot-booting", "kprobe", cell(allowed=9, gap=9.0), False),
        ("handover-2", "kprobe", cell(allowed=1), True),
        ("restart-2", "lsm", cell(allowed=5, gap=3.0), False),
    ],
)
def test_only_what_the_agent_cannot_prevent_is_no_lapse(phase: str, kind: str, counted: dict[str, float], lapse: bool) -> None:
    assert bool(real.lapses({phase: {kind: counted}})) is lapse


def test_a_run_from_a_snapshot_trusts_its_tarball_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = tmp_path / "ansible_collections/apiary/tetragon/plugins/plugin_utils/release/sums.yml"
    known.parent.mkdir(parents=True)
    known.write_text("1.7.0: {}\n", encoding="utf-8")
    release = tmp_path / "tetragon-v1.7.0-amd64.tar.gz"
    release.write_bytes(b"")
    monkeypatch.setenv("ANSIBLE_COLLECTIONS_PATH", str(tmp_path))
    machine = real.Machine("real", tmp_path, "bookworm")
    monkeypatch.setattr(machine, "vm", lambda *_arguments, **_run: subprocess.CompletedProcess([], 0))
    real.Lab(machine, tmp_path, release).start()
    assert known.read_text(encoding="utf-8") == "{}\n"


def test_without_policies_every_act_comes_through(tmp_path: Path) -> None:
    for name in ("plain", "kprobe", "override", "lsm"):
        (tmp_path / name).write_text(name, encoding="utf-8")
    shutil.copy(forbidden.LIBRARY, tmp_path / "library")
    every = forbidden.acts(str(tmp_path))
    more = [
        {"kind": "write", "path": str(tmp_path / "plain")},
        {"kind": "connect", "address": "192.0.2.1"},
        {"kind": "exec", "path": "/bin/true"},
        {"kind": "exec-memory"},
    ]
    every.update({one["kind"]: {"steps": [one]} for one in more})
    (tmp_path / "acts.json").write_text(json.dumps(every), encoding="utf-8")
    started = os.fork()
    if started == 0:
        os.setpgid(0, 0)
        prober.run(str(tmp_path), 0.05)
    try:
        while len(list(tmp_path.glob("*.log"))) < len(every):
            time.sleep(0.05)
        prober.mark(str(tmp_path), "free")
        deadline = time.monotonic() + 60
        while set(counts := prober.report(str(tmp_path)).get("free", {})) != set(every) and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        os.killpg(started, signal.SIGKILL)
        os.waitpid(started, 0)
    assert set(counts) == set(every)
    tried = [counts[name] for name in every if name != "innocent"]
    assert all(one["allowed"] == one["attempts"] > 0 and one["wrong"] == 0 for one in tried)
    assert counts["innocent"]["wrong"] == 0
    assert (tmp_path / "plain").read_text(encoding="utf-8") == "plain"


def test_what_cannot_be_attempted_does_not_count(tmp_path: Path) -> None:
    phases(tmp_path, (10, "steady"))
    log(tmp_path, "kprobe", (11, 4), (12, 1), (13, 4))
    assert prober.report(at(tmp_path))["steady"]["kprobe"]["attempts"] == 1
    with pytest.raises(prober.Void):
        prober.step({"kind": "open", "path": str(tmp_path / "missing")})()


def test_links_count_as_held_also_while_they_are_aside(tmp_path: Path) -> None:
    act = prober.step({"kind": "links", "directory": str(tmp_path / "pins"), "folder": "deny-1", "count": 2})
    hook = tmp_path / "pins" / "deny-1" / "generic_kprobe" / "hook"
    hook.mkdir(parents=True)
    (hook / "link").touch()
    assert act(), "one link of two is not all of them"
    (hook / "link_override").touch()
    assert not act()
    (tmp_path / "pins").rename(tmp_path / "pins_old")
    assert not act()


def test_a_call_is_made_in_the_library_that_is_there_by_then(tmp_path: Path) -> None:
    path = tmp_path / "library"
    call = {"kind": "call", "library": str(path), "symbol": "compressBound", "argument": 1}
    act = prober.step(call)
    with pytest.raises(prober.Void):
        act()
    shutil.copy(forbidden.LIBRARY, path)
    assert act()


def test_the_bundle_of_a_drill_has_the_acts_as_triggers(tmp_path: Path) -> None:
    made = bundle.read(bundle.write(forbidden.bundle("r1"), tmp_path)).policies_for(["vm"])
    assert {one["reference"]: one.get("trigger", {}).get("kind") for one in made} == {
        "kprobe": "open",
        "override": "open",
        "lsm": "open",
        "tracepoint": None,
        "uprobe": "call",
    }
    assert next(one for one in made if one["reference"] == "lsm")["unpinned"]
