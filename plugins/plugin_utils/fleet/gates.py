# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Gates: a verdict over what hosts showed before and after a change, against hosts that did not change.

Missing data is inconclusive, and inconclusive never passes. One failed reading outweighs everything else.
"""

from __future__ import annotations

import datetime
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils.environment import Gates
from ansible_collections.apiary.tetragon.plugins.plugin_utils.fleet.rings import budget

PASS, FAIL, INCONCLUSIVE = "pass", "fail", "inconclusive"
ABOVE = " above the baseline"
_DAY = 86400.0
_LOSSES = ("events_missed", "events_lost_ringbuf", "events_lost_queue", "events_overflowed")
Observation = Mapping[str, Any]


@dataclass(frozen=True)
class HostEvidence:
    """What is known of one host. ``start`` follows the change, ``end`` the bake; for control hosts ``start`` is None.

    ``error`` is the reason why the change failed on this host. ``expected`` are the policies it was given, as a bundle
    describes them. On a host that is ``renewed`` the change is a new agent: its restarts count from the change on.
    """

    name: str
    before: Observation | None = None
    start: Observation | None = None
    end: Observation | None = None
    error: str = ""
    expected: Sequence[Mapping[str, Any]] = ()
    renewed: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """One signal on one host: ``value`` against ``limit``, both in ``unit``; None where there is nothing to compare."""

    signal: str
    host: str
    status: str
    value: float | None = None
    baseline: float | None = None
    limit: float | None = None
    unit: str = ""
    detail: str = ""
    subject: str = ""

    def to_json(self) -> dict[str, Any]:
        return {one.name: value for one in fields(self) if (value := getattr(self, one.name)) not in (None, "")}


@dataclass(frozen=True)
class Verdict:
    """``reasons`` name what failed or was missing, worst first."""

    status: str
    reasons: tuple[str, ...]
    readings: tuple[Reading, ...]


def judge(gates: Gates, ring: Sequence[HostEvidence], control: Sequence[HostEvidence], bake: float) -> Verdict:
    """The verdict over one ring after its bake (seconds)."""
    readings = list(_reachability(gates, ring))
    present = [host for host in ring if host.end is not None and not host.error]
    for host in present:
        readings += _watched(host, bake)
        readings += _conformity(gates, host)
        readings += _health(gates, host)
        readings += _noise(gates, host, bake)
        readings += _export(gates, host)
    readings += _relative(gates, present, control)
    statuses = {reading.status for reading in readings}
    status = FAIL if FAIL in statuses else INCONCLUSIVE if INCONCLUSIVE in statuses or not present else PASS
    bad = [reading for wanted in (FAIL, INCONCLUSIVE) for reading in readings if reading.status == wanted]
    reasons = [_reason(reading) for reading in bad]
    if not present and not reasons:
        reasons = ["no host of the ring could be observed"]
    return Verdict(status, tuple(dict.fromkeys(reasons)), tuple(readings))


def join(verdicts: Sequence[Verdict]) -> Verdict:
    """Verdicts over parts of one ring as one: the worst of them."""
    ordered = sorted(verdicts, key=lambda one: (FAIL, INCONCLUSIVE, PASS).index(one.status))
    return Verdict(
        ordered[0].status if ordered else INCONCLUSIVE,
        tuple(reason for one in ordered for reason in one.reasons) if ordered else ("no host of the ring could be observed",),
        tuple(reading for one in ordered for reading in one.readings),
    )


def _reason(reading: Reading) -> str:
    what = reading.signal + (f" of {reading.subject}" if reading.subject else "")
    place = f"{reading.host}: " if reading.host else ""
    if reading.value is None or reading.limit is None:
        return f"{place}{what}: {reading.detail}"
    measured = f"{_number(reading.value)} {reading.unit.removesuffix(ABOVE)}".strip()
    above = "" if reading.baseline is None else f" above the baseline of {_number(reading.baseline)}"
    detail = f"; {reading.detail}" if reading.detail else ""
    return f"{place}{what}: {measured}; limit {_number(reading.limit)}{above}{detail}"


def _number(value: float) -> str:
    """Four digits, and all digits of what is large."""
    return f"{value:.4g}" if abs(value) < 9999.5 else f"{value:,.0f}"


def _reachability(gates: Gates, ring: Sequence[HostEvidence]) -> Iterator[Reading]:
    for host in ring:
        if host.error:
            yield Reading("change", host.name, FAIL, detail=host.error)
    lost = [host.name for host in ring if host.end is None and not host.error]
    allowed = budget(gates.unreachable, len(ring))
    if lost:
        status = PASS if len(lost) <= allowed else FAIL
        yield Reading("unreachable", "", status, float(len(lost)), None, float(allowed), "hosts", f"lost: {', '.join(lost[:5])}")


def _watched(host: HostEvidence, bake: float) -> Iterator[Reading]:
    """The bake must have passed between the two observations, by the host's own clock."""
    if host.start is None or host.end is None:
        yield Reading("bake", host.name, INCONCLUSIVE, detail="there is no observation from the start of the bake")
        return
    seconds = _elapsed(host.start, host.end)
    if seconds + 1 < bake:
        yield Reading("bake", host.name, INCONCLUSIVE, seconds, None, bake, "s", "was watched for too short a time")


def _conformity(gates: Gates, host: HostEvidence) -> Iterator[Reading]:
    end = host.end or {}
    agent = end["agent"]
    if not agent["answers"]:
        yield Reading("agent", host.name, FAIL, detail="; ".join(end["problems"]) or "does not answer")
        return
    if end["policies"] is None:
        yield Reading("policies", host.name, INCONCLUSIVE, detail="; ".join(end["problems"]) or "could not be listed")
        return
    loaded = {(one["namespace"], one["name"]): one for one in end["policies"]}
    for policy in host.expected:
        actual = loaded.get((policy.get("namespace") or "", policy["loaded"]))
        if actual is None:
            yield Reading("policies", host.name, FAIL, detail="is not loaded", subject=policy["loaded"])
        elif actual["state"] != "enabled":
            yield Reading("policies", host.name, FAIL, detail=f"is {actual['state']}: {actual['error']}", subject=policy["loaded"])
        elif actual["replaced"]:
            detail = f"watches and enforces nothing in {', '.join(actual['replaced'])}, replaced since it was loaded"
            yield Reading("policies", host.name, FAIL, detail=detail, subject=policy["loaded"])
        elif actual["mode"] != policy["mode"] and not (policy["mode"] == "monitor" and actual["mode"] == "monitor_only"):
            yield Reading(
                "policies", host.name, FAIL, detail=f"is in mode {actual['mode']}, not {policy['mode']}", subject=policy["loaded"]
            )
    if end["pins"]["leftover"]:
        yield Reading("pins", host.name, FAIL, detail=f"{end['pins']['leftover']} is left over from a failed start")
    if gates.agent_restarts is not None:
        yield _restarts(gates.agent_restarts, host)


def _restarts(limit: float, host: HostEvidence) -> Reading:
    """Restarts are seen by the agent's start time (seconds after boot) and by the boot itself."""
    first = host.start if host.renewed else host.before or host.start
    if first is None or host.end is None or not first["agent"]["answers"]:
        return Reading("agent_restarts", host.name, INCONCLUSIVE, detail="there is no observation from before the change")
    seen = [one for one in (first, host.start, host.end) if one is not None]
    if host.renewed and any(one["agent"]["started"] is None for one in seen):
        return Reading("agent_restarts", host.name, INCONCLUSIVE, detail="; ".join(host.end["problems"]) or "is not known")
    starts = {(one["host"]["boot_id"], one["agent"]["started"]) for one in seen}
    restarts = float(len(starts) - 1)
    return Reading("agent_restarts", host.name, FAIL if restarts > limit else PASS, restarts, None, limit, "restarts")


def _health(gates: Gates, host: HostEvidence) -> Iterator[Reading]:
    end = (host.end or {})["health"]
    before = host.before["health"] if host.before else None
    if gates.failed_units:
        if end["failed_units"] is None:
            yield Reading(
                "failed_units",
                host.name,
                INCONCLUSIVE,
                detail="systemd could not be asked; set gates.failed_units to false where there is none",
            )
        else:
            known = set(before["failed_units"] or ()) if before else set()
            new = sorted(set(end["failed_units"]) - known)
            detail = f"newly failed: {', '.join(new)}" if new else ""
            yield Reading("failed_units", host.name, FAIL if new else PASS, float(len(new)), None, 0.0, "units", detail)
    for kind in ("commands", "urls"):
        answers = {one["check"]: one for one in end[kind]}
        for check in getattr(gates, kind):
            if check not in answers:
                yield Reading("health", host.name, INCONCLUSIVE, detail="was not run", subject=check)
            elif not answers[check]["ok"]:
                yield Reading("health", host.name, FAIL, detail=answers[check]["detail"], subject=check)
            else:
                yield Reading("health", host.name, PASS, subject=check)


def _noise(gates: Gates, host: HostEvidence, bake: float) -> Iterator[Reading]:
    """Events and blocks of every policy since it was loaded, or since the change where it was there before."""
    end = host.end or {}
    loaded = {one["name"]: one for one in end["policies"] or ()}
    before = _same_life(host.before, host.end)
    earlier = {one["name"]: one for one in (before.get("policies") or ())}
    metrics = (end["counters"] or {}).get("policy_events", {})
    metrics_before = (before.get("counters") or {}).get("policy_events", {})
    for policy in host.expected:
        actual, name = loaded.get(policy["loaded"]), policy["loaded"]
        if actual is None:
            continue
        former = earlier.get(name, {})
        if gates.event_burst is not None:
            posted = _growth(actual["posted"], former.get("posted", 0))
            exported = _growth(metrics.get(name, 0), metrics_before.get(name, 0))
            allowed = gates.event_burst + policy["event_budget"] * bake / _DAY
            if end["counters"] is None and any(hook.startswith("lsmhooks:") for hook in policy["hooks"]):
                yield Reading(
                    "events",
                    host.name,
                    INCONCLUSIVE,
                    detail="the agent counts events of LSM hooks in its metrics only, and they are missing",
                    subject=name,
                )
            else:
                seen = float(max(posted, exported))
                yield Reading("events", host.name, FAIL if seen > allowed else PASS, seen, None, allowed, "events", subject=name)
        if gates.blocks is not None:
            blocks = float(_growth(actual["enforced"], former.get("enforced", 0)))
            yield Reading("blocks", host.name, FAIL if blocks > gates.blocks else PASS, blocks, None, gates.blocks, "acts", subject=name)


def _same_life(first: Observation | None, last: Observation | None) -> Observation:
    """The first observation if it is of the very agent process that the last one saw, whose counters then went on; or nothing."""
    if first is None or last is None:
        return {}
    lives = {(one["host"]["boot_id"], one["agent"]["started"]) for one in (first, last)}
    return first if len(lives) == 1 else {}


def _growth(now: float, then: float) -> float:
    """How much a counter grew; one that went back began anew, with its policy."""
    return now - then if now >= then else now


def _export(gates: Gates, host: HostEvidence) -> Iterator[Reading]:
    """A full disk is silent: events are counted as exported while no byte is written."""
    if not gates.export_stalled or host.end is None or not (host.end["agent"]["flags"] or {}).get("export-filename"):
        return
    first, last = (host.start or host.before or {}).get("counters"), host.end["counters"]
    if first is None or last is None:
        yield Reading("export", host.name, INCONCLUSIVE, detail="; ".join(host.end["problems"]) or "counters are missing")
        return
    known = _same_life(host.start or host.before, host.end).get("counters") or {}
    events, size = (_growth(last[name], known.get(name, 0)) for name in ("events_exported", "bytes_exported"))
    stalled = events > 0 and size <= 0
    detail = "events are exported but no bytes are written: is the disk full?" if stalled else ""
    yield Reading("export", host.name, FAIL if stalled else PASS, detail=detail)


def _relative(gates: Gates, ring: Sequence[HostEvidence], control: Sequence[HostEvidence]) -> Iterator[Reading]:
    for signal, limit, unit, rate in (
        ("events_lost", gates.events_lost, "events/min", _loss_rate),
        ("cpu", gates.cpu_cores, "cores", _cpu_rate),
        ("memory", gates.memory_mib, "MiB", _memory_growth),
    ):
        if limit is None:
            continue
        others = [value for value in (rate(host.before, host.end) for host in control) if value is not None]
        baseline = statistics.median(others) if others else None
        for host in ring:
            yield _compare(signal, host, limit, unit, rate, baseline)


Rate = Callable[[Observation | None, Observation | None], float | None]


def _compare(signal: str, host: HostEvidence, limit: float, unit: str, rate: Rate, baseline: float | None) -> Reading:
    before = host.before or (host.start if host.renewed else None)
    first = before if signal == "memory" else host.start or host.before
    value = rate(first, host.end)
    if value is None:
        why = "; ".join((host.end or {}).get("problems", ())) or "there are no two observations of one agent run to compare"
        return Reading(signal, host.name, INCONCLUSIVE, detail=why)
    if baseline is None:
        baseline = 0.0 if signal == "memory" else rate(None, host.before)
    if baseline is None:
        return Reading(signal, host.name, INCONCLUSIVE, detail="there is nothing to compare with: no control host, nothing from before")
    return Reading(signal, host.name, FAIL if value - baseline > limit else PASS, value, baseline, limit, f"{unit}{ABOVE}")


def _elapsed(first: Observation, last: Observation) -> float:
    start, end = (datetime.datetime.fromisoformat(one["time"]) for one in (first, last))
    return (end - start).total_seconds()


def _loss_rate(first: Observation | None, last: Observation | None) -> float | None:
    """Events lost per minute between two observations; of one agent's whole life up to ``last`` when ``first`` is None."""
    if last is None or last["counters"] is None:
        return None
    lost = sum(last["counters"][name] for name in _LOSSES)
    return _per_second(first, last, lost, lambda one: sum(one["counters"][name] for name in _LOSSES) if one["counters"] else None, 60.0)


def _cpu_rate(first: Observation | None, last: Observation | None) -> float | None:
    if last is None or last["agent"]["cpu_seconds"] is None:
        return None
    return _per_second(first, last, last["agent"]["cpu_seconds"], lambda one: one["agent"]["cpu_seconds"], 1.0)


def _per_second(
    first: Observation | None, last: Observation, amount: float, read: Callable[[Observation], float | None], scale: float
) -> float | None:
    if first is None:
        age = last["agent"].get("age_seconds")
        return amount / age * scale if age else None
    earlier, seconds = read(first), _elapsed(first, last)
    if earlier is None or seconds <= 0 or first["agent"]["started"] != last["agent"]["started"]:
        return None
    return (amount - earlier) / seconds * scale


def _memory_growth(first: Observation | None, last: Observation | None) -> float | None:
    if first is None or last is None or first["agent"]["memory_bytes"] is None or last["agent"]["memory_bytes"] is None:
        return None
    return float(last["agent"]["memory_bytes"] - first["agent"]["memory_bytes"]) / (1 << 20)
