# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""What a replay says, in the forms that people and tools read; docs/schemas/replay-report.json describes the JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils.formats import Alert, Trial, markdown_table, shown_path, table
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.catalogue import CATALOGUE
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Problem
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.policies import Candidate, Gathered
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.results import Entry, PolicyTotals, Summary

FORMAT = 1
MAX_SHOWN = 10
MAX_SOURCES = 5
RULES = {
    **{rule.id: rule.title for rule in CATALOGUE.values()},
    "policy": "A policy that cannot be replayed",
    "undecided": "Events that the recording does not decide",
    "not-tried": "A policy at whose hooks nothing was recorded",
    "volume": "A policy that would produce more events than its budget",
    "skipped": "Lines of a recording that could not be read",
}


class Entries:
    """What fires and what is undecided, kept on disk per policy, so that memory does not grow with the recording."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: dict[tuple[int, str], IO[str]] = {}

    def add(self, entry: Entry) -> None:
        kind = "fired" if entry.said.fires else "undecided"
        file = self._files.get((entry.said.number, kind))
        if file is None:
            file = self._files[entry.said.number, kind] = (self._directory / f"{entry.said.number}.{kind}").open("w", encoding="utf-8")
        file.write(json.dumps(as_entry(entry), ensure_ascii=False) + "\n")

    def read(self, number: int, kind: str) -> Iterator[str]:
        """The entries of one policy as JSON texts, in the order of the recording."""
        if (number, kind) in self._files:
            with (self._directory / f"{number}.{kind}").open(encoding="utf-8") as lines:
                yield from (line.rstrip("\n") for line in lines)

    def close(self) -> None:
        """No more entries come; only then they can be read."""
        for file in self._files.values():
            file.close()


def as_entry(entry: Entry) -> dict[str, Any]:
    """One event that fires or is undecided. ``selector`` and ``action`` are null where several are possible."""
    outcomes = entry.said.outcomes
    kind, _unused, hook = entry.said.hook.partition(" ")
    posting = [one for one in outcomes if one.posts]
    selectors = {one.selector for one in posting}
    actions = {one.actions for one in posting}
    certain = len(actions) == 1
    shown: dict[str, Any] = {
        "exec_id": entry.exec_id,
        "time": entry.time,
        "node": entry.node,
        "kind": kind,
        "hook": hook,
        "file": entry.file,
        "line": entry.line,
        "selector": next(iter(selectors)) if len(selectors) == 1 else None,
        "action": posting[0].actions[-1] if certain else None,
        "actions": list(posting[0].actions) if certain else [],
        "rate_limited": any(one.rate_limited for one in posting),
        "binary": entry.binary,
    }
    if not entry.said.fires:
        shown["reason"] = "; ".join(entry.said.reasons)
    if not certain or len(selectors) != 1 or not entry.said.fires:
        shown["possible"] = [{"selector": one.selector, "posts": one.posts, "actions": list(one.actions)} for one in outcomes]
    return shown


@dataclass(frozen=True)
class Replayed:
    """A finished replay: the policies in the order of their numbers, what it came to, and its entries."""

    gathered: Gathered
    summary: Summary
    entries: Entries

    @property
    def passed(self) -> bool:
        return not self.gathered.problems

    def rows(self) -> Iterator[tuple[Candidate, PolicyTotals]]:
        return zip(self.gathered.policies, self.summary.policies, strict=True)


# --- JSON -----------------------------------------------------------------------------------------------------------


def write_json(replayed: Replayed, out: IO[str]) -> None:
    """The whole report, written as it is read from disk."""
    head = {"format": FORMAT, "passed": replayed.passed, **_common(replayed)}
    out.write(json.dumps(head, indent=1, ensure_ascii=False).removesuffix("\n}") + ',\n "policies": {')
    for place, (candidate, totals) in enumerate(replayed.rows()):
        body = json.dumps(_policy(candidate, totals), indent=1, ensure_ascii=False).removesuffix("\n}")
        out.write(f"{',' if place else ''}\n {json.dumps(candidate.name)}: {body}")
        for kind in ("fired", "undecided"):
            out.write(f',\n "{kind}": [')
            for position, text in enumerate(replayed.entries.read(totals.number, kind)):
                out.write(f"{',' if position else ''}\n  {text}")
            out.write("]")
        out.write("}")
    out.write("}\n}\n")


def summary_json(replayed: Replayed) -> dict[str, Any]:
    """The report without its entries: small whatever was recorded."""
    policies = {candidate.name: _policy(candidate, totals) for candidate, totals in replayed.rows()}
    return {"format": FORMAT, "passed": replayed.passed, **_common(replayed), "policies": policies}


def _common(replayed: Replayed) -> dict[str, Any]:
    summary = replayed.summary
    names = [candidate.name for candidate in replayed.gathered.policies]
    return {
        "events": summary.events,
        "problems": [str(problem) for problem in replayed.gathered.problems],
        "recordings": [asdict(one) for one in summary.files],
        "span": [{**asdict(one), "seconds": one.seconds} for one in summary.spans],
        "skipped": [
            *(asdict(one) for one in summary.skipped),
            *(
                {"reason": "is YAML that holds no policy", "count": 1, "file": file, "line": 0, "detail": ""}
                for file in replayed.gathered.foreign
            ),
        ],
        "overlap": [{"policies": [names[number] for number in numbers], "events": events} for numbers, events in _overlap(summary)],
        "unknown_recorders": dict(summary.unknown_recorders),
        "notes": list(summary.notes),
    }


def _overlap(summary: Summary) -> list[tuple[tuple[int, ...], int]]:
    return sorted(summary.overlap.items(), key=lambda one: (-one[1], one[0]))


def _policy(candidate: Candidate, totals: PolicyTotals) -> dict[str, Any]:
    return {
        "file": candidate.file,
        "tried": totals.total.seen > 0,
        "counts": {
            "fired": totals.total.fired,
            "quiet": totals.total.quiet,
            "undecided": totals.total.undecided,
            "bytes": totals.total.size,
        },
        "per_day": {"events": round(totals.per_day[0], 1), "bytes": round(totals.per_day[1])} if totals.per_day else None,
        "budget": candidate.budget,
        "findings": [
            {"rule": one.rule, "severity": one.severity, "path": one.path, "message": one.message, "file": one.file, "line": one.line}
            for one in candidate.findings
        ],
        "hooks": {
            hook: {"fired": counts.fired, "quiet": counts.quiet, "undecided": counts.undecided} for hook, counts in totals.by_hook.items()
        },
        "reasons": dict(totals.reasons),
        "noise": {
            what: [{"value": value, "events": events} for value, events in ranked[:MAX_SOURCES]] for what, ranked in totals.noise.items()
        },
    }


# --- trials, marks, tables ------------------------------------------------------------------------------------------


def trials(replayed: Replayed) -> list[Trial]:
    """The replay as tests: a policy that cannot be replayed fails; one that was not tried, or not decided, is skipped."""
    found = [Trial("policies", problem.file, (str(problem),)) for problem in replayed.gathered.problems]
    for candidate, totals in replayed.rows():
        why = _not_tried(candidate, totals) or (f"{totals.total.undecided} events undecided" if totals.total.undecided else "")
        found.append(Trial("policies", candidate.name, skipped=why))
    return found


def _not_tried(candidate: Candidate, totals: PolicyTotals) -> str:
    return "" if totals.total.seen else f"{candidate.name} was not tried: no event of its hooks is recorded"


def alerts(replayed: Replayed) -> list[Alert]:
    """The replay as marks in files."""
    found = [Alert("policy", "error", str(problem), problem.file, problem.line) for problem in replayed.gathered.problems]
    for candidate, totals in replayed.rows():
        if not totals.total.seen:
            found.append(Alert("not-tried", "warning", _not_tried(candidate, totals), candidate.file))
        for reason, count in totals.reasons.items():
            found.append(Alert("undecided", "note", f"{candidate.name}: {count} events undecided: {reason}", candidate.file))
        for finding in candidate.findings:
            found.append(Alert(finding.rule, "warning", str(finding), finding.file or candidate.file, finding.line))
        if _over_budget(candidate, totals):
            found.append(Alert("volume", "warning", _over_budget(candidate, totals), candidate.file))
    for one in replayed.summary.skipped:
        found.append(Alert("skipped", "note", f"{one.count} lines: {one.reason} (first: {one.detail})", one.file, one.line))
    return found


def _over_budget(candidate: Candidate, totals: PolicyTotals) -> str:
    if candidate.budget is None or totals.per_day is None or totals.per_day[0] <= candidate.budget:
        return ""
    return f"{candidate.name} would produce {totals.per_day[0]:,.0f} events per host and day; its budget is {candidate.budget:,}"


_HEADER = ("policy", "fired", "quiet", "undecided", "events/host/day", "MiB/host/day", "most by")


def _rows(replayed: Replayed) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for candidate, totals in replayed.rows():
        per_day = totals.per_day
        source = next(iter(totals.noise.get("binary", ())), None)
        rows.append(
            (
                candidate.name,
                totals.total.fired,
                totals.total.quiet,
                totals.total.undecided,
                f"{per_day[0]:,.0f}" if per_day else "-",
                f"{per_day[1] / (1 << 20):,.1f}" if per_day else "-",
                f"{source[0]} ({source[1]})" if source else "-" if totals.total.seen else "not tried",
            )
        )
    return rows


def _remarks(replayed: Replayed) -> dict[str, list[str]]:
    """What is worth a sentence, by title, most important first."""
    summary = replayed.summary
    names = [candidate.name for candidate in replayed.gathered.policies]
    undecided = [
        f"{candidate.name}: {count} x {reason}" for candidate, totals in replayed.rows() for reason, count in totals.reasons.items()
    ]
    return {
        "Cannot be replayed": [str(problem) for problem in replayed.gathered.problems],
        "Lints": [str(finding) for candidate in replayed.gathered.policies for finding in candidate.findings],
        "Not tried": [text for candidate, totals in replayed.rows() if (text := _not_tried(candidate, totals))],
        "Over budget": [text for candidate, totals in replayed.rows() if (text := _over_budget(candidate, totals))],
        "Undecided, because": undecided,
        "The same events fire in": [
            f"{' and '.join(names[number] for number in numbers)}: {events}" for numbers, events in _overlap(summary)
        ],
        "Skipped": [
            *(f"{one.count} x {one.reason}, first at {shown_path(one.file)}:{one.line}: {one.detail}" for one in summary.skipped),
            *(f"{shown_path(file)}: holds no policy" for file in replayed.gathered.foreign),
        ],
        "Notes": list(summary.notes),
    }


def _extent(replayed: Replayed) -> str:
    summary = replayed.summary
    seconds = sum(one.seconds for one in summary.spans)
    hosts = len(summary.spans)
    policies = len(replayed.gathered.policies)
    return f"{policies} policies over {summary.events:,} events in {len(summary.files)} file(s), {seconds:,.0f} s of {hosts} host(s)"


def lines(replayed: Replayed) -> list[str]:
    """The report for a terminal."""
    said = [f"  {_extent(replayed)}", *table(_HEADER, _rows(replayed), "    ")]
    for title, members in _remarks(replayed).items():
        if members:
            said += [f"  {title}:", *(f"    {member}" for member in members[:MAX_SHOWN])]
            if len(members) > MAX_SHOWN:
                said.append(f"    and {len(members) - MAX_SHOWN} more, all in the report")
    return said


def markdown(replayed: Replayed) -> str:
    """The report for a pull request."""
    verdict = "" if replayed.passed else ": FAILED"
    parts = [f"### Replay{verdict}\n\n{_extent(replayed)}\n", markdown_table(_HEADER, _rows(replayed))]
    for title, members in _remarks(replayed).items():
        if members:
            shown = members[:MAX_SHOWN] + ([f"and {len(members) - MAX_SHOWN} more"] if len(members) > MAX_SHOWN else [])
            parts.append(f"#### {title}\n\n```\n" + "\n".join(shown).replace("```", "'''") + "\n```\n")
    return "\n".join(parts)


def nothing_to_replay(problems: Sequence[Problem]) -> list[Problem]:
    """The problems of a run in which no policy is left."""
    return list(problems) or [
        Problem("apiary_policies", 0, "", "names no policy: give TracingPolicy files, directories or library policies")
    ]
