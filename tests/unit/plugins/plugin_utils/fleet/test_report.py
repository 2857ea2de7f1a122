# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The report's page: from the report's data to one self-contained file."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from ansible_collections.apiary.tetragon.plugins.plugin_utils.fleet import plots
from ansible_collections.apiary.tetragon.plugins.plugin_utils.fleet.report import FORMAT, render_page

NEW, OLD = "ab" * 32, "cd" * 32
REASON = "web-1: events of config-reads-0badc0de: 1843 events; limit 20"
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7 * 7 }}"
_VOID = {"meta", "br", "rect", "line", "circle"}


class Balance(HTMLParser):
    """Holds every end tag against the start tag that is open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def point(host: str, value: float | None = None, status: str = "pass", detail: str = "", **more: Any) -> dict[str, Any]:
    return {"host": host, "value": value, "status": status, "detail": detail, **more}


def signal(name: str, points: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    order = ("fail", "inconclusive", "pass")
    worst = min((one["status"] for one in points), key=order.index)
    return {"signal": name, "subject": "", "status": worst, "unit": "", "limit": None, "baseline": None, "points": points, **more}


def ring(name: str, hosts: int, state: str = "waiting", **more: Any) -> dict[str, Any]:
    judged = state in ("passed", "halted", "rolled back")
    return {
        "name": name,
        "state": state,
        "hosts": hosts,
        "batches": 1,
        "bake_seconds": 600,
        "started": "2026-03-11T09:00:10+00:00" if state != "waiting" else None,
        "judged": "2026-03-11T09:11:00+00:00" if judged else None,
        "ended": "2026-03-11T09:12:00+00:00" if judged else None,
        "verdict": {"passed": "pass", "halted": "inconclusive", "rolled back": "fail"}.get(state),
        "reasons": [],
        "control": [],
        "stuck": [],
        "signals": [],
        **more,
    }


def policy(name: str = "file/config-reads", revision: str = "0badc0de", **more: Any) -> dict[str, Any]:
    counts = {"posted": 0, "enforced": 0, "would_enforce": 0}
    loaded = f"{name.rpartition('/')[2]}-{revision}"
    return {"policy": name, "loaded": loaded, "managed": True, "state": "enabled", "mode": "monitor", **counts, **more}


def host(name: str, where: str, bundle: str = OLD, policies: tuple[dict[str, Any], ...] = (), **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "ring": where,
        "observed": "2026-03-11T09:12:00+00:00",
        "cell": "kernel 6.1 x86_64 debian 12",
        "agent": "1.7.0",
        "bundle": bundle,
        "policies": list(policies or (policy(),)),
        "problems": [],
        **more,
    }


def report(outcome: str, rings: list[dict[str, Any]], hosts: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    halt = {"time": "2026-03-11T09:12:00+00:00", "kind": "rollout-halted", "ring": "canary", "verdict": "fail", "reason": REASON}
    halted = outcome in ("halted", "rolled back")
    return {
        "format": FORMAT,
        "environment": "production",
        "run": "20260311T090000Z-ab12",
        "bundle": NEW,
        "previous": OLD,
        "started": "2026-03-11T09:00:00+00:00",
        "ended": None if outcome == "interrupted" else "2026-03-11T09:12:00+00:00",
        "outcome": outcome,
        "reason": REASON if halted else "",
        "changes": [{"policy": "file/config-reads", "kind": "changed", "details": ["mode: monitor -> enforce"]}],
        "rings": rings,
        "left_out": {},
        "hosts": hosts,
        "timeline": [{"time": "2026-03-11T09:00:05+00:00", "kind": "rollout-started"}, *([halt] if halted else [])],
        **more,
    }


def halted(stuck: tuple[str, ...] = (), name: str = "web-1") -> dict[str, Any]:
    signals = [
        signal(
            "events",
            [point(name, 1843.0, "fail"), point("web-2", 3.0)],
            subject="config-reads-0badc0de",
            unit="events",
            limit=20.0,
        ),
        signal(
            "cpu",
            [point(name, 0.83, "fail"), point("web-2", 0.021)],
            unit="cores above the baseline",
            limit=0.1,
            baseline=0.02,
        ),
        signal("health", [point(name, None, "fail", "status 503"), point("web-2")], subject="http://127.0.0.1/ready"),
    ]
    canary = ring("canary", 2, "rolled back", reasons=[REASON], control=["db-1"], stuck=list(stuck), signals=signals)
    return report("rolled back", [canary, ring("fleet", 1)], [host(name, "canary"), host("web-2", "canary"), host("db-1", "fleet")])


def headline(page: str) -> str:
    """The text of the headline block."""
    block = page[page.index("<header") : page.index("</header>")]
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", block)))


def outcomes() -> dict[str, dict[str, Any]]:
    unseen: dict[str, Any] = {"name": "web-9", "ring": "canary", "observed": None, "policies": []}
    baked = [signal("bake", [point("web-1", 12.0, "inconclusive", "was watched for too short a time")], unit="s", limit=600.0)]
    return {
        "finished": report("finished", [ring("canary", 2, "passed")], [host("web-1", "canary", NEW), host("web-2", "canary", NEW)]),
        "rolled back": halted(),
        "not rolled back": halted(stuck=("web-2",)),
        "inconclusive": report("halted", [ring("canary", 1, "halted", signals=baked)], [host("web-1", "canary", NEW)]),
        "interrupted": report("interrupted", [ring("canary", 2, "under way"), ring("fleet", 0)], [host("web-1", "canary", NEW), unseen]),
        "the first": {**halted(), "previous": ""},
        "back to nothing": {**halted(), "bundle": "", "changes": []},
    }


@pytest.mark.parametrize("name", outcomes())
def test_every_outcome_is_a_whole_page_that_needs_nothing_else(name: str) -> None:
    page = render_page(outcomes()[name])
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert parser.tags.isdisjoint({"script", "img", "link", "iframe", "object", "embed", "base"})
    assert not re.search(r"\ssrc\s*=|\surl\s*\(|:\s*url\(|@import", page, re.IGNORECASE)
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', page))
    targets = set(re.findall(r'href="#([^"]*)"', page))
    assert targets <= set(re.findall(r' id="([^"]*)"', page))


def test_the_headline_says_what_failed_and_where() -> None:
    text = headline(render_page(halted()))
    assert "Halted at ring canary and rolled back" in text
    assert REASON in text
    assert NEW[:16] in text and OLD[:16] in text and "20260311T090000Z-ab12" in text and "12 min" in text
    assert "0.83 cores" in text and "0.12, the baseline + 0.1" in text
    assert "status 503" in text


def test_the_headline_names_hosts_that_are_not_back() -> None:
    text = headline(render_page(halted(stuck=("web-2", "web-1"))))
    assert "2 hosts are not rolled back" in text
    assert "Not back on the previous bundle: 2 hosts web-2 , web-1" in text
    assert "and rolled back" not in text


def test_every_stuck_host_is_named_however_many() -> None:
    names = tuple(f"host-{number}" for number in range(3000))
    page = render_page(halted(stuck=names))
    assert all(f">{name}<" in page for name in names)


def test_an_unfinished_run_claims_no_end() -> None:
    text = headline(render_page(outcomes()["interrupted"]))
    assert "Interrupted at ring canary" in text and "holds no end of this run" in text and "not recorded" in text
    failing = ring("canary", 1, "under way", judged="2026-03-11T09:11:00+00:00", verdict="fail", reasons=[REASON])
    text = headline(render_page(report("interrupted", [failing], [host("web-1", "canary", NEW)])))
    assert "its gate failed, and no roll back is recorded" in text and REASON in text


def test_text_from_elsewhere_stays_text() -> None:
    data = halted(stuck=(HOSTILE,), name=HOSTILE)
    data["left_out"] = {HOSTILE: HOSTILE}
    data["reason"] = data["rings"][0]["reasons"][0] = HOSTILE
    data["changes"][0]["details"].append(HOSTILE)
    data["hosts"][1]["problems"] = [HOSTILE]
    data["hosts"][1]["policies"] = [policy(HOSTILE, state=HOSTILE, mode=HOSTILE), policy(HOSTILE, managed=False)]
    data["timeline"].append({"time": HOSTILE, "kind": HOSTILE, "ring": HOSTILE})
    data["rings"][0]["signals"][0]["points"][0]["detail"] = HOSTILE
    page = render_page(data)
    assert "<script" not in page and "<img" not in page
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert html.escape(HOSTILE, quote=False).replace('"', "&#34;").replace("'", "&#39;") in page


def test_a_large_fleet_stays_small() -> None:
    sizes = {"canary": 42, "early": 418, "fleet": 3740}
    members = {name: [f"{name}-{number}.a-rather-long.example.net" for number in range(size)] for name, size in sizes.items()}
    policies = [f"file/policy-{number}" for number in range(8)]
    rings = []
    for name, hosts in members.items():
        failing = name == "fleet"
        signals = [
            signal(
                kind,
                [point(one, float(index % 977), "fail" if failing and index % 3 == 0 else "pass") for index, one in enumerate(hosts)],
                subject=f"{one.rpartition('/')[2]}-0badc0de",
                unit="events",
                limit=20.0,
            )
            for one in policies
            for kind in ("events", "blocks")
        ]
        signals.append(signal("health", [point(one, None, "fail", f"status {index}") for index, one in enumerate(hosts)], subject="ready"))
        state, reasons = ("rolled back", [f"{one}: {REASON}" for one in hosts]) if failing else ("passed", [])
        rings.append(ring(name, len(hosts), state, signals=signals, reasons=reasons, control=hosts[:50]))
    loaded = tuple(policy(one, posted=7) for one in policies)
    fleet = [host(one, name, OLD if index % 5 else NEW, loaded) for name, hosts in members.items() for index, one in enumerate(hosts)]
    page = render_page(report("rolled back", rings, fleet))
    assert len(page.encode()) < 1_500_000
    assert "1247 hosts" in page or "failed on 1247" in page


def test_cells_show_mode_state_events_and_the_bundle() -> None:
    data = halted(stuck=("web-1",))
    data["hosts"][0] = host("web-1", "canary", NEW, (policy(state="load_error", mode="enforce", posted=1843),))
    page = render_page(data)
    assert re.search(r'<span class="mode enforce broken"[^>]*>E!</span>\s*<span class="events">1.8k</span>', page)
    assert re.search(r'is-stuck"[^>]*>stuck</td>', page) and re.search(r'previous"[^>]*>prev</td>', page)


# --- scales -------------------------------------------------------------------------------------------------------------


def test_far_values_make_the_axis_logarithmic() -> None:
    near = plots.figure(signal("events", [point("a", 40.0, "fail")], unit="events", limit=20.0), ())
    far = plots.figure(signal("events", [point("a", 1843.0, "fail"), point("b", 3.0)], unit="events", limit=20.0), ())
    assert not near.logarithmic and far.logarithmic
    assert far.limit and far.quiet and far.quiet.columns[0][0] < far.limit.x < far.rows[0].x
    assert far.limit.x > 25


def test_a_relative_limit_stands_above_the_baseline() -> None:
    shape = {"unit": "cores above the baseline", "limit": 0.1, "baseline": 0.02}
    figure = plots.figure(signal("cpu", [point("a", 0.83, "fail")], **shape), ("x", "y"))
    assert figure.limit and figure.limit.label == "limit 0.12, the baseline + 0.1"
    assert figure.baseline and figure.baseline.label == "baseline 0.02, median of 2 control hosts"


def test_without_control_hosts_no_baseline_is_drawn_for_all() -> None:
    shape = {"unit": "cores above the baseline", "limit": 0.1, "baseline": 0.5}
    blind = plots.figure(signal("cpu", [point("a", 0.55), point("b", 0.3, "fail")], **shape), ())
    assert blind.limit is None and blind.baseline is None and "compared with itself" in blind.note
    own = plots.figure(signal("cpu", [point("a", 0.55, baseline=0.5), point("b", 0.3, "fail", baseline=0.1)], **shape), ())
    assert own.limit and own.quiet and own.quiet.columns[0][0] < own.limit.x < own.rows[0].x
    assert own.rows[0].value == "0.2"


def test_many_failed_hosts_are_drawn_together_and_named() -> None:
    points = [point(f"host-{number}", 21.0 + number, "fail") for number in range(500)]
    figure = plots.figure(signal("events", points, unit="events", limit=20.0), ())
    assert figure.rows[0].host == "host-499" and len(figure.rows) < plots.MAX_ROWS
    assert figure.crowd and figure.crowd.hosts == 500 - len(figure.rows) and len(figure.crowd.columns) <= 80
    assert len(figure.named) == plots.MAX_NAMED


def test_what_is_said_of_the_whole_ring_is_no_plot() -> None:
    figure = plots.figure(signal("unreachable", [point("", 3.0, "fail", "lost: a, b, c")], unit="hosts", limit=1.0), ())
    assert not figure.rows and figure.words[0].detail == "3 hosts; limit 1; lost: a, b, c" and figure.words[0].count == 0


def test_a_failed_change_has_no_bake_in_the_timeline() -> None:
    canary = ring("canary", 1, "rolled back", signals=[signal("change", [point("web-1", None, "fail", "no space left")])])
    lanes = plots.timeline(report("rolled back", [canary], [])).lanes
    assert [one.kind for one in lanes[0].segments] == ["change", "back"]
    passed = plots.timeline(report("finished", [ring("canary", 1, "passed")], [])).lanes
    assert [one.kind for one in passed[0].segments] == ["change", "bake"]


def test_hosts_unlike_their_ring_are_found_together() -> None:
    data = halted(stuck=("web-1",))
    data["hosts"][0] = host("web-1", "canary", NEW)
    data["hosts"][1] = host("web-2", "canary", OLD, (policy(), policy(revision="00000000")))
    data["hosts"] += [host(f"db-{number}", "fleet", OLD, (policy(mode="enforce"),)) for number in (2, 3)]
    data["hosts"] += [host(f"db-{number}", "fleet") for number in (4, 5)]
    found = plots.deviations(data)
    assert found[0].stuck and found[0].hosts == ("web-1",) and found[0].notes[1] == "runs the rollout's bundle"
    assert {one.hosts: one.notes for one in found[1:]} == {
        ("db-2", "db-3"): ("config-reads-0badc0de is in mode enforce, elsewhere in monitor",),
        ("web-2",): ("file/config-reads is loaded in 2 revisions",),
    }


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (42, "42 s"), (980, "16 min 20 s"), (3600, "1 h"), (3905, "1 h 5 min"), (90000, "1 d 1 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert plots.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (20.0, "20"), (1843.0, "1843"), (12345.6, "12,346"), (0.83, "0.83"), (-4.5, "\N{MINUS SIGN}4.5")]
)
def test_numbers(value: float, text: str) -> None:
    assert plots.number(value) == text
