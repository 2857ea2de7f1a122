# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import os
from pathlib import Path

REPORTS = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "reports"
ONCE = ["steady", "stop", "start", "after-stop"]
ALL = [*ONCE, "kill", "after-kill", "restart", "after-restart"]


def name(host):
    return host.check_output("hostname").strip()


def test_the_figures_are_those_of_the_kernel(host):
    of = name(host)
    found = json.loads((REPORTS / f"drill-{of}.json").read_text())
    phases = {"h-drl12": ALL, "h-drl13": [*ALL, "shutdown", "booting", "after-reboot"], "h-drw13": ONCE}[of]
    assert list(found["counts"]) == phases
    c2, shell = (one["loaded"] for one in found["policies"])
    rows = {phase: acts[c2] for phase, acts in found["counts"].items()}
    assert all(row["attempts"] > 0 for row in rows.values())
    came_through = {phase for phase, row in rows.items() if row["allowed"]}
    if of == "h-drw13":
        assert "stop" in came_through
        assert rows["stop"]["gap"] > 1
        assert rows["steady"]["allowed"] == rows["after-stop"]["allowed"] == 0
        assert found["counts"]["stop"][shell]["allowed"] > 0
    else:
        assert came_through <= {"booting"}
        assert found["lapses"] == []
    assert found["wrong"] == {}


def test_the_page_says_the_same_and_needs_nothing_else(host):
    page = (REPORTS / f"drill-{name(host)}.html").read_text()
    assert ('<div class="head fail">' in page) == (name(host) == "h-drw13")
    assert "src=" not in page
    assert "http" not in page


def test_the_prober_is_gone_and_the_agent_runs(host):
    assert not host.file("/etc/systemd/system/apiary-drill.service").exists
    assert not host.file("/var/lib/apiary/drill").exists
    assert host.run("pgrep -f prober.py").stdout == ""
    assert host.check_output("systemctl is-active apiary-tetragon.service") == "active"
