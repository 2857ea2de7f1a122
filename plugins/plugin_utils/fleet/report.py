# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The report of one rollout: what changed, where it is, why it halted, as data and as a page of HTML.

The data is made for machines too (``apiary.dev/report/1``); the page needs nothing but itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from ansible_collections.apiary.tetragon.plugins.plugin_utils import bundle as bundles
from ansible_collections.apiary.tetragon.plugins.plugin_utils import files
from ansible_collections.apiary.tetragon.plugins.plugin_utils.fleet import plots
from ansible_collections.apiary.tetragon.plugins.plugin_utils.fleet.ledger import Entry
from ansible_collections.apiary.tetragon.plugins.plugin_utils.fleet.rings import RingPlan, cell_of, show_cell
from ansible_collections.apiary.tetragon.plugins.plugin_utils.fleet.run import Run

FORMAT = "apiary.dev/report/1"
TEMPLATE = Path(__file__).with_name("report.html.j2")
_PHASES = ("back", "end", "start", "before")
_SHARED: Mapping[str, Any] = {"unit": "", "limit": None, "baseline": None}
_POINT: Mapping[str, Any] = {"host": "", "value": None, "baseline": None, "status": "", "detail": ""}


def assemble(run: Run) -> dict[str, Any]:
    """Everything that is known of a run that has begun, from its directory and the ledger."""
    entries = [entry for entry in run.ledger.read() if entry.get("run") == run.name]
    outcome, reason = _outcome(entries)
    plan = run.planned
    rows: dict[str, dict[str, Any]] = {}
    return {
        "format": FORMAT,
        "environment": run.facts["environment"],
        "run": run.name,
        "bundle": run.facts["digest"],
        "previous": run.facts["previous_digest"],
        "started": run.facts["started"],
        "ended": entries[-1]["time"] if entries and outcome != "interrupted" else None,
        "outcome": outcome,
        "reason": reason,
        "changes": [
            {"policy": one.policy, "kind": one.kind, "details": list(one.details)} for one in bundles.diff(run.previous, run.bundle)
        ],
        "rings": [_ring(run, ring, entries) for ring in plan.rings],
        "left_out": dict(plan.left_out),
        "hosts": [_host(run, ring, host, rows) for ring in plan.rings for host in _members(run, ring)],
        "timeline": [{key: entry[key] for key in ("time", "kind", "ring", "verdict", "reason") if key in entry} for entry in entries],
    }


def _outcome(entries: Sequence[Entry]) -> tuple[str, str]:
    for entry in reversed(entries):
        if entry["kind"] == "rollout-finished":
            return "finished", ""
        if entry["kind"] == "rollout-halted":
            return ("rolled back" if entry["verdict"] == "fail" else "halted"), entry["reason"]
        if entry["kind"] == "rollout-resumed":
            break
    return "interrupted", ""


def _state(ring: RingPlan, entries: Sequence[Entry]) -> str:
    """Where a ring stands after all entries of its run; a later ring's failure may have rolled it back."""
    state = "waiting"
    for entry in entries:
        if entry["kind"] == "rolled-back" and not set(ring.hosts).isdisjoint((*entry["hosts"], *entry["failed"])):
            state = "rolled back"
        elif entry.get("ring") == ring.name:
            known = {"ring-started": "under way", "ring-passed": "passed", "rollout-halted": state if state == "rolled back" else "halted"}
            state = known.get(entry["kind"], state)
    return state


def _ring(run: Run, ring: RingPlan, entries: Sequence[Entry]) -> dict[str, Any]:
    mine = [entry for entry in entries if entry.get("ring") == ring.name]
    kinds = {entry["kind"]: entry for entry in mine}
    gate = json.loads((run.ring_directory(ring.name) / "gate.json").read_text(encoding="utf-8")) if "gate" in kinds else None
    state = _state(ring, entries)
    return {
        "name": ring.name,
        "state": state,
        "hosts": len(ring.hosts),
        "batches": len(ring.batches),
        "bake_seconds": ring.bake,
        "started": next((entry["time"] for entry in mine if entry["kind"] == "ring-started"), None),
        "judged": gate["time"] if gate else None,
        "ended": mine[-1]["time"] if mine and state not in ("waiting", "under way") else None,
        "verdict": gate["status"] if gate else None,
        "reasons": gate["reasons"] if gate else [],
        "control": gate["control"] if gate else [],
        "stuck": kinds["rolled-back"]["failed"] if "rolled-back" in kinds else [],
        "signals": _signals(gate["readings"]) if gate else [],
    }


def _signals(readings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Readings grouped by signal and subject, worst status first; each point is one host."""
    grouped: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for reading in readings:
        grouped.setdefault((reading["signal"], reading.get("subject", "")), []).append(reading)
    order = {"fail": 0, "inconclusive": 1, "pass": 2}
    signals = [
        {
            "signal": signal,
            "subject": subject,
            "status": min((one["status"] for one in group), key=order.__getitem__),
            **{key: next((one[key] for one in group if one.get(key) is not None), empty) for key, empty in _SHARED.items()},
            "points": [{key: one.get(key, empty) for key, empty in _POINT.items()} for one in group],
        }
        for (signal, subject), group in grouped.items()
    ]
    return sorted(signals, key=lambda one: (order[one["status"]], one["signal"], one["subject"]))


def _members(run: Run, ring: RingPlan) -> list[str]:
    """The hosts of a ring as planned, and the nodes that were found in it since."""
    return list(dict.fromkeys((*ring.hosts, *run.attempted(ring.name))))


def _host(run: Run, ring: RingPlan, name: str, rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """One host; ``rows`` holds policies' rows that were made before, so that equal ones of many hosts are one object."""
    seen = _latest(run, ring, name)
    if seen is None:
        return {"name": name, "ring": ring.name, "observed": None, "policies": []}
    by_digest = {run.facts["digest"]: run.bundle, run.facts["previous_digest"]: run.previous}
    running = (seen["bundle"] or {}).get("digest", "")
    known = {one["loaded"]: one for one in run.expected(name, by_digest.get(running))}
    return {
        "name": name,
        "ring": ring.name,
        "observed": seen["time"],
        "cell": show_cell(cell_of(seen["host"])),
        "agent": seen["agent"]["version"],
        "bundle": running,
        "policies": [rows.setdefault(json.dumps(row, sort_keys=True), row) for row in _rows(seen, known)],
        "problems": seen["problems"],
    }


def _rows(seen: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "policy": known.get(one["name"], {}).get("reference", one["name"]),
            "loaded": one["name"],
            "managed": one["managed"],
            "state": one["state"],
            "mode": "monitor" if one["mode"] == "monitor_only" else one["mode"],
            "posted": max(one["posted"], int((seen["counters"] or {}).get("policy_events", {}).get(one["name"], 0))),
            "enforced": one["enforced"],
            "would_enforce": one["would_enforce"],
        }
        for one in seen["policies"] or ()
    ]


def _latest(run: Run, ring: RingPlan, name: str) -> dict[str, Any] | None:
    """The newest observation of a host: it may have gone back with a later ring."""
    returned = (run.observation(one.name, "back", name) for one in reversed(run.planned.rings))
    known = (run.observation(ring.name, phase, name) for phase in _PHASES)
    return next((one for one in (*returned, *known) if one), None) or run.fleet_observation(name)


def write(run: Run, directory: str | Path) -> tuple[Path, dict[str, Any]]:
    """Write ``rollout-<run>.html`` and ``.json``; returns the page's path and the data."""
    data = assemble(run)
    page = Path(directory) / f"rollout-{run.name}.html"
    files.write(page.with_suffix(".json"), json.dumps(data, indent=1, sort_keys=True))
    files.write(page, render_page(data))
    return page, data


def render_page(data: Mapping[str, Any]) -> str:
    """The report as one self-contained page."""
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page.globals["plots"] = plots
    return page.from_string(TEMPLATE.read_text(encoding="utf-8")).render(report=data)
