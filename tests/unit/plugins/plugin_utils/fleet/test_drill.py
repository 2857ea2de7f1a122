# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""What a drill shows and keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils.fleet import drill


def found(**changes: Any) -> dict[str, Any]:
    policy = {"loaded": "deny-1", "reference": "file/<deny>", "by": "trigger", "note": "", "enforced": 3}
    held = {"attempts": 20, "allowed": 0, "wrong": 0, "gap": 0.0}
    opened = {"attempts": 19, "allowed": 4, "wrong": 0, "gap": 0.6}
    return {
        "format": "apiary.dev/drill/1",
        "agent": "1.7.0",
        "policies": [{**policy, "step": {"kind": "open", "path": "/srv/a"}}],
        "counts": {"steady": {"deny-1": held}, "stop": {"deny-1": opened}, "kill": {}},
        "wrong": {},
        "lapses": ["stop: file/<deny>: 4 of 19 came through, longest 0.6 s"],
        **changes,
    }


def test_the_table_has_a_row_per_policy_and_a_column_per_phase() -> None:
    header, row, verdict = drill.lines(found())
    assert header.split() == ["attempts/allowed", "by", "steady", "stop", "kill"]
    assert row.split() == ["file/<deny>", "trigger", "20/0", "19/4", "0.6", "s", "-"]
    assert "came through" in verdict


def test_wrong_denials_are_told_beside_the_verdict() -> None:
    lines = drill.lines(found(wrong={"start": 2}, lapses=[]))
    assert lines[-2:] == ["  start: 2 unrelated acts were refused", "  nothing came through"]


def test_the_page_escapes_what_it_is_given_and_marks_what_came_through() -> None:
    page = drill.page("<host>", found())
    assert "<host>" not in page and "<deny>" not in page
    assert '<div class="head fail">' in page
    assert "4 came through<small>of 19; longest gap 0.6 s" in page
    assert '<td class="count fail">none<small>no attempt' in page
    assert '<div class="head pass">' in drill.page("host", found(lapses=[]))


def test_page_and_data_lie_side_by_side_also_for_a_name_with_dots(tmp_path: Path) -> None:
    page = drill.write("web.example.test", found(), tmp_path / "reports")
    assert page.name == "drill-web.example.test.html"
    data = json.loads((tmp_path / "reports" / "drill-web.example.test.json").read_text(encoding="utf-8"))
    assert (data["host"], data["agent"]) == ("web.example.test", "1.7.0")
