# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""A whole environment checked: every policy's problems, findings, cases and mutants, and the reports about them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils.build import Examined, examine, lint_together
from ansible_collections.apiary.tetragon.plugins.plugin_utils.environment import Environment, check_values
from ansible_collections.apiary.tetragon.plugins.plugin_utils.formats import Alert, Trial, markdown_table, shown_path, table
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.cache import Cache
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.catalogue import CATALOGUE
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.check import CaseResult
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.kernel import target
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.lint import Finding
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.load import Library
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.migrate import RULE, migrate
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.mutation import Mutation, mutate
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.schema import Version
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Problem, Refused

MAX_SHOWN = 10
RULES = {
    **{rule.id: rule.title for rule in CATALOGUE.values()},
    "case": "A recorded event is not judged as its case says",
    "policy": "A policy that cannot be rendered, does not fit the agent's schema, or has no cases",
    "mutant": "A planted bug that no case of the policy notices",
    RULE: "Agents of the version to come do otherwise",
}
_PLACE = re.compile(r"(?s)^(?P<file>.+?):(?P<line>[0-9]+): (?P<rest>.*)$")


@dataclass(frozen=True)
class PolicyReport:
    """One policy of the environment. ``needed`` is the share of mutants that its cases have to kill."""

    reference: str
    form: str
    directory: str
    cases: tuple[CaseResult, ...]
    findings: tuple[Finding, ...]
    problems: tuple[Problem, ...]
    mutation: Mutation | None = None
    needed: float = 0.0

    @property
    def weak(self) -> bool:
        """Whether the cases let too many mutants live."""
        return self.mutation is not None and self.mutation.score < self.needed

    @property
    def passed(self) -> bool:
        broken = any(not case.passed for case in self.cases) or any(one.severity == "error" for one in self.findings)
        return not (broken or self.problems or self.weak or not self.cases)


@dataclass(frozen=True)
class EnvironmentReport:
    """All policies of an environment. ``findings`` are those over the whole set."""

    environment: str
    file: str
    agent_version: str
    policies: tuple[PolicyReport, ...]
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        return all(one.passed for one in self.policies) and not any(one.severity == "error" for one in self.findings)


def check_environment(
    environment: Environment,
    library: Library,
    cache: Cache,
    needed: float | None = None,
    progress: Callable[[str], None] = lambda line: None,
    towards: Version | None = None,
) -> EnvironmentReport:
    """Check every policy of an environment; with ``needed`` its mutants too. ``progress`` is told each policy as it begins.

    ``towards`` is an agent version to come: what it changes for the policies is among their findings.

    Raises Refused when the environment's values do not fit its policies.
    """
    check_values(environment, library)
    examined, reports = [], []
    mutations: dict[str, Mutation] = {}
    for index, entry in enumerate(environment.entries, 1):
        progress(f"[{index}/{len(environment.entries)}] {entry.reference}")
        one = examine(entry, environment, library, cache)
        sound = not one.problems and one.cases and all(case.passed for case in one.cases)
        if needed is not None and sound and entry.reference not in mutations:
            mutations[entry.reference] = mutate(
                library.get(entry.reference), environment.protected, target(environment.version, environment.kernel)
            )
        if towards is not None:
            one = replace(one, findings=(*one.findings, *_changes(one, environment, towards)))
        examined.append(one)
        reports.append(_report(one, library, mutations.get(entry.reference), needed or 0.0))
    together = tuple(dict.fromkeys(lint_together(examined, environment)))
    return EnvironmentReport(environment.name, environment.file, environment.agent_version, tuple(reports), together)


def _changes(one: Examined, environment: Environment, towards: Version) -> Iterator[Finding]:
    return iter(migrate(one.document, environment.version, towards, environment.kernel) if one.document is not None else ())


def _report(one: Examined, library: Library, mutation: Mutation | None, needed: float) -> PolicyReport:
    try:
        directory = str(library.get(one.entry.reference).directory)
    except Refused:
        directory = str(library.references[one.entry.reference])
    return PolicyReport(one.entry.reference, one.entry.form, directory, one.cases, one.findings, one.problems, mutation, needed)


# --- what it says ---------------------------------------------------------------------------------------------------


def as_json(report: EnvironmentReport) -> dict[str, Any]:
    """The whole report; docs/schemas/check-report.json describes it."""
    return {
        "format": 1,
        "environment": report.environment,
        "file": shown_path(report.file),
        "agent_version": report.agent_version,
        "passed": report.passed,
        "findings": [_finding(one) for one in report.findings],
        "policies": [
            {
                "policy": one.reference,
                "form": one.form,
                "passed": one.passed,
                "problems": [str(problem) for problem in one.problems],
                "findings": [_finding(finding) for finding in one.findings],
                "cases": [
                    {
                        "name": case.name,
                        "origin": case.origin,
                        "must": "fire" if case.must_fire else "stay-quiet",
                        "passed": case.passed,
                        "fired": case.fired,
                        "quiet": case.quiet,
                        "undecided": case.undecided,
                        "failures": list(case.failures),
                    }
                    for case in one.cases
                ],
                "mutation": _mutation(one.mutation, one.needed),
            }
            for one in report.policies
        ],
    }


def _finding(one: Finding) -> dict[str, str]:
    return {"rule": one.rule, "severity": one.severity, "policy": one.policy, "path": one.path, "message": one.message}


def _mutation(mutation: Mutation | None, needed: float) -> dict[str, Any] | None:
    if mutation is None:
        return None
    return {
        "score": round(mutation.score, 4),
        "needed": needed,
        **{
            outcome: [
                {
                    "kind": fate.mutant.kind,
                    "where": fate.mutant.where,
                    "change": fate.mutant.change,
                    **({"by": fate.by} if fate.by else {}),
                }
                for fate in mutation.of(outcome)
            ]
            for outcome in ("killed", "survived", "equivalent")
        },
    }


def trials(report: EnvironmentReport) -> list[Trial]:
    """The report as trials: the checks of each policy, each case, and the share of killed mutants."""
    found = []
    for one in report.policies:
        wrong = [str(problem) for problem in one.problems] + [str(finding) for finding in one.findings if finding.severity == "error"]
        found.append(Trial(one.reference, f"renders, fits the agent, passes the lints ({one.form})", tuple(wrong)))
        found += [Trial(one.reference, f"{case.name} (must {case.must})", case.failures) for case in one.cases]
        if one.mutation is not None:
            living = tuple(str(fate.mutant) for fate in one.mutation.of("survived"))
            found.append(Trial(one.reference, "the cases kill the mutants", living if one.weak else ()))
    together = tuple(str(one) for one in report.findings if one.severity == "error")
    return [*found, Trial(report.environment, "the policies together", together)]


def alerts(report: EnvironmentReport) -> list[Alert]:
    """The report as marks in files: case failures at their events, all else at the policy's own files."""
    found = []
    for one in report.policies:
        template, cases = f"{one.directory}/policy.yaml.j2", f"{one.directory}/cases/cases.yml"
        for problem in one.problems:
            found.append(Alert("policy", "error", str(problem), problem.file.removesuffix(" (rendered)") or template, problem.line))
        for finding in one.findings:
            found.append(Alert(finding.rule, _level(finding), str(finding), finding.file or template, finding.line))
        for case in one.cases:
            for failure in case.failures:
                place = _PLACE.match(failure)
                message = f"{one.reference}: case {case.name!r} must {case.must}: {place['rest'] if place else failure}"
                file, line = (place["file"], int(place["line"])) if place else (cases, 0)
                found.append(Alert("case", "error", message, file, line))
        for fate in one.mutation.of("survived") if one.mutation else ():
            level = "error" if one.weak else "note"
            found.append(Alert("mutant", level, f"{one.reference}: no case notices {fate.mutant}", cases))
    return found + [Alert(one.rule, _level(one), str(one), report.file) for one in report.findings]


def _level(finding: Finding) -> str:
    return finding.severity if finding.severity in ("error", "warning") else "note"


_HEADER = ("policy", "form", "cases", "recorded", "events", "undecided", "warnings", "mutants", "result")


def _rows(report: EnvironmentReport) -> list[tuple[object, ...]]:
    return [
        (
            one.reference,
            one.form,
            len(one.cases),
            sum(case.origin == "recorded" for case in one.cases),
            sum(case.fired + case.quiet + case.undecided for case in one.cases),
            sum(case.undecided for case in one.cases),
            sum(finding.severity == "warning" for finding in one.findings),
            f"{one.mutation.score:.0%} killed" if one.mutation else "-",
            "passed" if one.passed else "FAILED",
        )
        for one in report.policies
    ]


def lines(report: EnvironmentReport) -> list[str]:
    """The report for a terminal."""
    said = [f"  {report.environment}: {len(report.policies)} policies for agent {report.agent_version}"]
    said += table(_HEADER, _rows(report), "    ")
    for one in report.policies:
        said += [f"    {line}" for line in _failed(one)]
    said += [f"    {line}" for one in report.policies for line in _remarks(one)]
    said += [f"    {finding}" for finding in report.findings]
    failed = sum(not one.passed for one in report.policies)
    return [*said, f"  {failed} of {len(report.policies)} policies failed" if failed else "  every policy passed"]


def _failed(one: PolicyReport) -> list[str]:
    said = [str(problem) for problem in one.problems] + [str(finding) for finding in one.findings if finding.severity == "error"]
    said += [f"case {case.name!r} must {case.must}: {failure}" for case in one.cases for failure in case.failures]
    if one.mutation is not None and one.mutation.of("survived"):
        living = one.mutation.of("survived")
        weak = f"; needed: {one.needed:.0%}" if one.weak else ""
        said.append(f"{one.reference}: the cases kill {one.mutation.score:.0%} of the mutants{weak}. No case notices:")
        said += [f"  {fate.mutant}" for fate in living[:MAX_SHOWN]]
        if len(living) > MAX_SHOWN:
            said.append(f"  and {len(living) - MAX_SHOWN} more, all in the report")
    return said


def _remarks(one: PolicyReport) -> list[str]:
    """What is no error, once for all places of the policy that it concerns."""
    places: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in one.findings:
        if finding.severity != "error":
            places.setdefault((finding.severity, finding.rule, finding.message), []).append(finding)
    return [f"{first}{f' and at {len(more)} more' if more else ''}" for first, *more in places.values()]


def markdown(report: EnvironmentReport) -> str:
    """The report for a pull request."""
    verdict = "passed" if report.passed else "FAILED"
    parts = [f"### Policies of {report.environment}: {verdict}\n", markdown_table(_HEADER, _rows(report))]
    for title, members in (
        ("Broken", [line for one in report.policies if not one.passed for line in _failed(one)] + _errors(report.findings)),
        ("Warnings", [line for one in report.policies for line in _remarks(one)]),
    ):
        if members:
            parts.append(f"#### {title}\n\n```\n" + "\n".join(members).replace("```", "'''") + "\n```\n")
    return "\n".join(parts)


def _errors(findings: Sequence[Finding]) -> list[str]:
    return [str(finding) for finding in findings if finding.severity == "error"]
