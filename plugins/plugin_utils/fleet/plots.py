# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Scales, shapes and tables of the report's page, from the report's data.

Every position is a percentage of a plot's width, so that the page fits any screen and prints.
"""

from __future__ import annotations

import datetime
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils.fleet.gates import ABOVE

MAX_ROWS = 12  # hosts with a row of their own in a plot
MAX_NAMED = 200  # hosts named in a list; the data beside the page names them all
MAX_COLUMNS = 60  # hosts with a column of their own in the table of policies
_BINS = 80
_STACK = 5
_EDGE = 1.5
_BOUND = {"bake": "needed"}
_REVISED = re.compile(r"^(?P<name>.+)-(?P<revision>[0-9a-f]{8})$")
_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)
Data = Mapping[str, Any]


# --- words --------------------------------------------------------------------------------------------------------------


def number(value: float) -> str:
    """A number for a person: four digits, and all digits of what is large."""
    text = f"{value:.4g}" if abs(value) < 9999.5 else f"{value:,.0f}"
    return f"\N{MINUS SIGN}{text[1:]}" if text.startswith("-") else text


def measured(value: float, unit: str) -> str:
    """A number with its unit; one host, two hosts."""
    return f"{number(value)} {unit[:-1] if number(value) == '1' and len(unit) > 1 and unit.endswith('s') else unit}".strip()


def short(value: int) -> str:
    """A count in as little room as can be: 1.8k."""
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if value >= size:
            return f"{value / size:.2g}{unit}" if value < 10 * size else f"{value // size}{unit}"
    return str(value)


def moment(text: str, pattern: str = "%Y-%m-%d %H:%M:%S UTC") -> str:
    """A point in time for a person; a text that is none stays as it is."""
    seconds = _seconds(text)
    return text if seconds is None else f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):{pattern}}"


def clock(text: str) -> str:
    return moment(text, "%H:%M:%S")


def duration(seconds: float) -> str:
    """Seconds in the two largest units."""
    left, parts = round(seconds), []
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        if left >= size:
            parts.append(f"{left // size} {unit}")
            left %= size
    return " ".join(parts[:2]) or "0 s"


def elapsed(start: str | None, end: str | None) -> str:
    """How long it was from one time to another; empty when one is missing."""
    first, last = _seconds(start), _seconds(end)
    return duration(last - first) if first is not None and last is not None else ""


def _seconds(text: str | None) -> float | None:
    try:
        parsed = datetime.datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=datetime.UTC)).timestamp()


# --- time ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mark:
    """A labelled place on an axis."""

    x: float
    label: str


@dataclass(frozen=True)
class Segment:
    """A part of a ring's lane: ``change``, ``bake``, roll ``back``, or ``open`` where no end is recorded."""

    kind: str
    x: float
    width: float


@dataclass(frozen=True)
class Lane:
    """One ring in time. ``judged`` is where its verdict fell."""

    ring: Data
    segments: tuple[Segment, ...]
    judged: float | None


@dataclass(frozen=True)
class Timeline:
    """All rings on one axis; ``last`` is the last sign of life, from the ledger or a host."""

    ticks: tuple[Mark, ...]
    lanes: tuple[Lane, ...]
    last: str


def timeline(report: Data) -> Timeline:
    """The lanes of all rings."""
    signs = [report["started"], report["ended"], *(one["time"] for one in report["timeline"])]
    observed = [one["observed"] for one in report["hosts"]]
    known = {seconds: text for text in (*signs, *observed) if text and (seconds := _seconds(text)) is not None}
    if not known:
        return Timeline((), tuple(Lane(ring, (), None) for ring in report["rings"]), "")
    last = max(known)
    start = _seconds(report["started"]) or min(known)
    rest = (last - start) * 0.08 if report["outcome"] == "interrupted" else 0
    end = max(last + rest, start + 1)

    def at(seconds: float) -> float:
        return round(min(max((seconds - start) / (end - start), 0), 1) * 100, 2)

    return Timeline(_time_ticks(start, end), tuple(_lane(ring, at, end) for ring in report["rings"]), known[last])


def _lane(ring: Data, at: Any, end: float) -> Lane:
    started, judged, ended = (_seconds(ring[name]) for name in ("started", "judged", "ended"))
    if started is None:
        return Lane(ring, (), None)
    spans: list[tuple[str, float, float]] = []
    if judged is not None:
        cut_short = any(one["signal"] == "change" for one in ring["signals"])
        baked = judged if cut_short else max(started, judged - ring["bake_seconds"])
        spans += [("change", started, baked), ("bake", baked, judged)]
    if ring["state"] == "under way":
        spans.append(("open", started if judged is None else judged, end))
    elif ring["state"] == "rolled back" and judged is not None and ended is not None:
        spans.append(("back", judged, ended))
    segments = tuple(Segment(kind, at(a), round(at(b) - at(a), 2)) for kind, a, b in spans if b > a)
    return Lane(ring, segments, None if judged is None else at(judged))


def _time_ticks(start: float, end: float) -> tuple[Mark, ...]:
    """Up to six round times; the date where the day changes."""
    step = next((step for step in _STEPS if (end - start) / step <= 6), 86400 * math.ceil((end - start) / 86400 / 6))
    marks, day = [], math.floor(start / 86400)
    for index in range(math.ceil(start / step), math.floor(end / step) + 1):
        seconds = index * step
        same, day = math.floor(seconds / 86400) == day, math.floor(seconds / 86400)
        pattern = ("%H:%M:%S" if step < 60 else "%H:%M") if same and step < 86400 else "%b %d"
        label = f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):{pattern}}"
        marks.append(Mark(round((seconds - start) / (end - start) * 100, 2), label))
    return tuple(marks)


# --- gate readings ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Axis:
    """Values from ``low`` to ``high``. A ``knee`` above 0 makes it logarithmic beyond that value, on both sides of 0."""

    low: float
    high: float
    knee: float = 0.0

    def at(self, value: float) -> float:
        """The place of a value."""
        low, high, here = self._bend(self.low), self._bend(self.high), self._bend(value)
        share = (here - low) / (high - low) if high > low else 0.0
        return round(_EDGE + share * (100 - 2 * _EDGE), 2)

    def ticks(self) -> tuple[Mark, ...]:
        """A few round values, far enough from each other for their labels."""
        marks: list[Mark] = []
        for value in self._powers() if self.knee else self._steps():
            mark = Mark(self.at(value), number(value))
            if self.low <= value <= self.high and (not marks or mark.x - marks[-1].x >= 12):
                marks.append(mark)
        return tuple(marks)

    def _bend(self, value: float) -> float:
        return math.copysign(math.log1p(abs(value) / self.knee), value) if self.knee else value

    def _steps(self) -> list[float]:
        rough = (self.high - self.low) / 5 or 1.0
        size = 10.0 ** math.floor(math.log10(rough))
        step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough * 0.999)
        return [index * step for index in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]

    def _powers(self) -> list[float]:
        first, last = (math.floor(math.log10(one)) for one in (self.knee, max(self.high, -self.low)))
        powers = [10.0**exponent for exponent in range(first, last + 1)]
        return [*(-one for one in reversed(powers)), 0.0, *powers]


@dataclass(frozen=True)
class Row:
    """One host that did not pass, at its value."""

    host: str
    status: str
    x: float
    value: str
    unit: str
    detail: str


@dataclass(frozen=True)
class Cloud:
    """Many hosts: columns of (place, hosts), drawn as dots, or as bars (``width`` wide) where they would pile up."""

    status: str
    hosts: int
    columns: tuple[tuple[float, int], ...]
    tallest: int
    width: float
    range: str

    @property
    def dots(self) -> bool:
        return self.tallest <= _STACK


@dataclass(frozen=True)
class Words:
    """Hosts of which the same is said; no hosts where it is said of the whole ring."""

    status: str
    detail: str
    hosts: tuple[str, ...]
    count: int


@dataclass(frozen=True)
class Figure:
    """One signal of a ring, ready to draw.

    ``rows`` are the worst hosts that did not pass, ``crowd`` those beyond them (``named`` lists them as host and
    value, worst first), ``quiet`` those that passed. ``words`` stands for what has no number, or is said of the whole
    ring. The limit is a ``ceiling`` unless it is a least value.
    """

    failed: int
    inconclusive: int
    passed: int
    unit: str
    logarithmic: bool
    ticks: tuple[Mark, ...]
    limit: Mark | None
    ceiling: bool
    baseline: Mark | None
    note: str
    rows: tuple[Row, ...]
    crowd: Cloud | None
    named: tuple[tuple[str, str], ...]
    quiet: Cloud | None
    words: tuple[Words, ...]


def figure(signal: Data, control: Sequence[str]) -> Figure:
    """Lay out one signal. ``control`` are the control hosts whose median is its baseline."""
    points = signal["points"]
    statuses = Counter(one["status"] for one in points)
    numeric = [one for one in points if one["host"] and _is_number(one["value"])]
    relative = signal["unit"].endswith(ABOVE)
    unit = signal["unit"].removesuffix(ABOVE)
    baseline, limit, note, said = signal["baseline"], signal["limit"], "", ""
    if relative and not control and signal["signal"] != "memory":
        numeric, limit, note = _own_baselines(numeric, limit)
        unit, baseline = unit + (ABOVE if limit is not None else ""), None
    elif relative and limit is not None and baseline is not None:
        said = f", the baseline + {number(limit)}" if limit else ", the baseline itself"
        limit += baseline
    group = f"median of {len(control)} control hosts" if len(control) > 1 else "the control host" if control else "no control hosts"
    axis = _axis([one["value"] for one in numeric], [one for one in (limit, baseline) if one is not None], limit)
    bad = sorted((one for one in numeric if one["status"] != "pass"), key=lambda one: (one["status"] != "fail", -one["value"]))
    rows, others = (bad, []) if len(bad) <= MAX_ROWS else (bad[: MAX_ROWS - 2], bad[MAX_ROWS - 2 :])
    return Figure(
        failed=statuses["fail"],
        inconclusive=statuses["inconclusive"],
        passed=statuses["pass"],
        unit=unit,
        logarithmic=bool(axis.knee),
        ticks=axis.ticks() if numeric else (),
        limit=None if limit is None else Mark(axis.at(limit), f"{_BOUND.get(signal['signal'], 'limit')} {number(limit)}{said}"),
        ceiling=signal["signal"] not in _BOUND,
        baseline=None if baseline is None else Mark(axis.at(baseline), f"baseline {number(baseline)}, {group}"),
        note=note,
        rows=tuple(_row(one, axis, unit) for one in rows),
        crowd=_cloud(others[0]["status"] if others else "", axis, others, unit),
        named=tuple((one["host"], number(one["value"])) for one in others[:MAX_NAMED]),
        quiet=_cloud("pass", axis, [one for one in numeric if one["status"] == "pass"], unit),
        words=_words(signal),
    )


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _row(point: Data, axis: Axis, unit: str) -> Row:
    value, _unused, shown = measured(point["value"], unit).partition(" ")
    return Row(point["host"], point["status"], axis.at(point["value"]), value, shown, point["detail"])


def _own_baselines(points: Sequence[Data], limit: float | None) -> tuple[list[Data], float | None, str]:
    """Without control hosts each host stands against its own baseline: draw what it is above that, where that is known."""
    if limit is None or any(one.get("baseline") is None for one in points):
        above = "" if limit is None else f": it may rise by {number(limit)}"
        return list(points), None, f"no control hosts; each host is compared with itself before the change{above}"
    shifted: list[Data] = [{**one, "value": one["value"] - one["baseline"]} for one in points]
    return shifted, limit, "no control hosts; each host is compared with itself before the change"


def _axis(values: Sequence[float], marks: Sequence[float], limit: float | None) -> Axis:
    everything = [0.0, *values, *marks]
    low, high = min(everything), max(everything)
    if high == low:
        return Axis(low, low + 1)
    crowded = limit is not None and limit > 0 and high > 12 * limit
    return Axis(low, high, limit / 4) if limit is not None and crowded else Axis(low, high + (high - low) * 0.04)


def _cloud(status: str, axis: Axis, points: Sequence[Data], unit: str) -> Cloud | None:
    if not points:
        return None
    values = [one["value"] for one in points]
    places = Counter(axis.at(value) for value in values)
    closest = min((b - a for a, b in pairwise(sorted(places))), default=100.0)
    width = 100 / _BINS
    if closest < width:
        places = Counter(round((min(int(axis.at(value) / width), _BINS - 1) + 0.5) * width, 2) for value in values)
    low, high = number(min(values)), measured(max(values), unit)
    spread = high if low == number(max(values)) else f"{low} to {high}"
    return Cloud(status, len(values), tuple(sorted(places.items())), max(places.values()), max(width, min(closest, 2.0)), spread)


def _words(signal: Data) -> tuple[Words, ...]:
    groups: dict[tuple[str, str], list[str]] = {}
    for one in signal["points"]:
        if not one["host"] and _is_number(one["value"]):
            bound = "" if signal["limit"] is None else f"limit {number(signal['limit'])}"
            said = "; ".join(part for part in (measured(one["value"], signal["unit"]), bound, one["detail"]) if part)
            groups.setdefault((one["status"], said), [])
        elif not _is_number(one["value"]):
            groups.setdefault((one["status"], one["detail"]), []).append(one["host"])
    order = ("fail", "inconclusive", "pass")
    ranked = sorted(groups.items(), key=lambda item: (order.index(item[0][0]), -len(item[1])))
    return tuple(Words(status, detail, tuple(hosts[:MAX_NAMED]), len(hosts)) for (status, detail), hosts in ranked)


# --- hosts and policies -------------------------------------------------------------------------------------------------


def place(report: Data, host: Data) -> str:
    """What a host runs: the rollout's ``bundle``, the ``previous`` one, ``none``, an ``other`` one, or ``unknown``."""
    if host["observed"] is None:
        return "unknown"
    if host["bundle"] == report["bundle"]:
        return "bundle"
    if host["bundle"] == report["previous"]:
        return "previous"
    return "other" if host["bundle"] else "none"


@dataclass(frozen=True)
class Standing:
    """The hosts of one ring by what they run; ``cells`` counts their kernels, architectures and systems."""

    ring: Data
    places: Mapping[str, int]
    cells: Mapping[str, int]


def standing(report: Data) -> list[Standing]:
    """Where each ring stands."""
    grouped = _by_ring(report)
    return [
        Standing(
            ring,
            Counter(place(report, host) for host in grouped[ring["name"]]),
            Counter(host["cell"] for host in grouped[ring["name"]] if host["observed"] is not None),
        )
        for ring in report["rings"]
    ]


def _by_ring(report: Data) -> dict[str, list[Data]]:
    grouped: dict[str, list[Data]] = {ring["name"]: [] for ring in report["rings"]}
    for host in report["hosts"]:
        grouped[host["ring"]].append(host)
    return grouped


def references(report: Data) -> dict[str, str]:
    """Names of policies to their references, as far as the report knows them; an environment has a name only once."""
    changed = (one["policy"].partition(" ")[0] for one in report["changes"])
    loaded = (one["policy"] for host in report["hosts"] for one in host["policies"] if one["managed"])
    return {one.rpartition("/")[2]: one for one in (*changed, *loaded) if "/" in one}


def revised(loaded: str, known: Mapping[str, str]) -> tuple[str, str]:
    """Reference and revision of a loaded policy; its name and nothing when it is not known."""
    match = _REVISED.match(loaded)
    return (known[match["name"]], match["revision"]) if match and match["name"] in known else (loaded, "")


@dataclass(frozen=True)
class PolicyRow:
    """One policy over all hosts. ``cells`` has its loaded revisions by host, ``rings`` how many hosts run it how."""

    policy: str
    revisions: tuple[tuple[str, int], ...]
    hosts: int
    events: int
    would_enforce: int
    enforced: int
    cells: Mapping[str, Sequence[Data]]
    rings: Mapping[str, Mapping[str, int]]


def policy_rows(report: Data, managed: bool = True) -> list[PolicyRow]:
    """The policies that hosts have loaded: the managed ones by reference, or the others by name."""
    known = references(report)
    found: dict[str, dict[str, list[Data]]] = {}
    rings: dict[str, dict[str, Counter[str]]] = {}
    for host in report["hosts"]:
        for one in host["policies"]:
            if one["managed"] is not managed:
                continue
            policy = revised(one["loaded"], known)[0] if managed else one["loaded"]
            found.setdefault(policy, {}).setdefault(host["name"], []).append(one)
            counts = rings.setdefault(policy, {}).setdefault(host["ring"], Counter())
            counts.update([one["mode"], *(["broken"] if one["state"] != "enabled" else [])])
            counts["events"] += one["posted"]
    return [
        PolicyRow(
            policy=policy,
            revisions=tuple(Counter(revised(one["loaded"], known)[1] for one in every).most_common()),
            hosts=len(found[policy]),
            events=sum(one["posted"] for one in every),
            would_enforce=sum(one["would_enforce"] for one in every),
            enforced=sum(one["enforced"] for one in every),
            cells=found[policy],
            rings=rings[policy],
        )
        for policy in sorted(found)
        for every in [[one for entries in found[policy].values() for one in entries]]
    ]


@dataclass(frozen=True)
class Deviation:
    """Hosts of one ring that are not as it is, all in the same way."""

    ring: str
    stuck: bool
    notes: tuple[str, ...]
    hosts: tuple[str, ...]


def stuck_hosts(report: Data) -> list[str]:
    """Hosts that are not back on the previous bundle."""
    return list(dict.fromkeys(host for ring in report["rings"] for host in ring["stuck"]))


def deviations(report: Data) -> list[Deviation]:
    """Hosts that are not back, not observed, not on their ring's bundle, not in its mode, or that state a problem."""
    stuck, known = set(stuck_hosts(report)), references(report)
    expected = {ring["name"]: _expected(report["outcome"], ring["state"]) for ring in report["rings"]}
    modes: dict[tuple[str, str], Counter[str]] = {}
    for host in report["hosts"]:
        for one in host["policies"]:
            modes.setdefault((one["loaded"], host["bundle"]), Counter())[one["mode"]] += 1
    usual = {key: counts.most_common(1)[0][0] for key, counts in modes.items()}
    found: dict[tuple[str, bool, tuple[str, ...]], list[str]] = {}
    for host in report["hosts"]:
        notes = ["is not back on the previous bundle"] if host["name"] in stuck else []
        notes += _notes(report, host, expected[host["ring"]], usual, known)
        if notes:
            found.setdefault((host["ring"], host["name"] in stuck, tuple(notes)), []).append(host["name"])
    return sorted((Deviation(*key, tuple(hosts)) for key, hosts in found.items()), key=lambda one: (not one.stuck, -len(one.hosts)))


def _expected(outcome: str, state: str) -> tuple[str, ...]:
    if state == "passed":
        return ("bundle", "previous") if outcome == "rolled back" else ("bundle",)
    return ("previous",) if state in ("waiting", "rolled back") else ("bundle", "previous")


def _notes(report: Data, host: Data, expected: Sequence[str], usual: Mapping[tuple[str, str], str], known: Mapping[str, str]) -> list[str]:
    here = place(report, host)
    if here == "unknown":
        return ["was not observed"]
    said = {"bundle": "the rollout's bundle", "previous": "the previous bundle", "none": "no bundle"}
    notes = [] if here in expected else [f"runs {said.get(here) or 'bundle ' + host['bundle'][:16]}"]
    for one in host["policies"]:
        if not one["managed"]:
            continue
        if one["state"] != "enabled":
            notes.append(f"{one['loaded']} is {one['state']}")
        if one["mode"] != (mode := usual[one["loaded"], host["bundle"]]):
            notes.append(f"{one['loaded']} is in mode {one['mode']}, elsewhere in {mode}")
    twice = Counter(revised(one["loaded"], known)[0] for one in host["policies"] if one["managed"])
    notes += [f"{policy} is loaded in {count} revisions" for policy, count in twice.items() if count > 1]
    return [*notes, *host["problems"]]
