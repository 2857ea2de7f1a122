# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The proof of one rendered policy: schema, lints, and a replay of its cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils import documents
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy import inputs
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.kernel import Kernel
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.lint import Finding, allow, lint
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.lint_base import Context
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.load import Case, Policy
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.render import MODES, Rendered, render
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.schema import SUPPORTED, Version, tracing_policy
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.traits import Traits, traits
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Refused, refuse, required
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.compile import CompiledPolicy
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.records import Invocation
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.target import DEFAULT, Target

MAX_SHOWN = 3


@dataclass(frozen=True)
class CaseResult:
    """How one case went: how many of its events fired, stayed quiet, could not be decided."""

    name: str
    origin: str
    must_fire: bool
    fired: int
    quiet: int
    undecided: int
    failures: tuple[str, ...]

    @property
    def must(self) -> str:
        return "fire" if self.must_fire else "stay quiet"

    @property
    def passed(self) -> bool:
        return not self.failures


def check(
    rendered: Rendered, mode: str, version: Version, protected: Sequence[str], kernel: Kernel | None = None
) -> tuple[Traits, list[Finding]]:
    """Schema and lints of a rendered policy. Raises Refused when its shape is not one that the agent takes, or it allows rules in vain."""
    kernel = kernel or Kernel()
    document = rendered.document(mode)
    source = documents.Document(f"{rendered.policy.template_file} (rendered)", document, {})
    problems = documents.validate(source, tracing_policy(version))
    if problems:
        raise Refused(replace(problem, line=0) for problem in problems)
    found = _findings(rendered, mode, version, protected, kernel)
    _check_allowed(rendered, version, protected, kernel)
    return traits(document, version), allow(found, rendered.policy.allowed)


def _findings(rendered: Rendered, mode: str, version: Version, protected: Sequence[str], kernel: Kernel) -> list[Finding]:
    document = rendered.document(mode)
    derived = traits(document, version)
    return lint(Context(rendered.policy.name, document["spec"], rendered.namespace, mode, version, tuple(protected), derived, kernel))


def _check_allowed(rendered: Rendered, version: Version, protected: Sequence[str], kernel: Kernel) -> None:
    """Hold what a policy allows against all that it can become: these values and those of its cases, every form, mode and version."""
    policy = rendered.policy
    idle = set(policy.allowed)
    for values in (rendered.values, *(case.values for case in policy.cases)):
        for form in policy.meta["forms"]:
            for agent in (version, *((major, minor, 0) for major, minor in SUPPORTED)):
                for mode in MODES:
                    if not idle:
                        return
                    one = render(policy, values, form, protected)
                    idle -= {finding.rule for finding in _findings(one, mode, agent, protected, kernel)}
    if idle:
        raise refuse(
            f"allows {', '.join(sorted(idle))}, which the policy never breaks: take the entry out",
            file=str(policy.directory / "meta.yml"),
            path="lint.allow",
        )


def run_cases(policy: Policy, protected: Sequence[str], target: Target = DEFAULT) -> list[CaseResult]:
    """Replay every case of a policy, each with the case's own values. Raises Refused when there are none."""
    if not policy.cases:
        raise refuse(
            "has no cases: add cases/cases.yml with events it must fire on and events it must stay quiet on", file=str(policy.directory)
        )
    if not any(case.must_fire for case in policy.cases) or all(case.must_fire for case in policy.cases):
        raise refuse(
            "needs at least one case that must fire and one that must stay quiet", file=str(policy.directory / "cases" / "cases.yml")
        )
    prepared = [prepare(policy, case, protected, target) for case in policy.cases]
    return [judge(one, one.document) for one in prepared]


def _recorder(path: Path) -> Mapping[str, Any]:
    """The TracingPolicy under which events were recorded, by an agent of any supported version."""
    document = documents.load(path)
    for number in reversed(SUPPORTED):
        spec = tracing_policy((*number, 0))["properties"]["spec"]
        problems = documents.validate(document, {"type": "object", "required": ["spec"], "properties": {"spec": spec}})
        if not problems:
            recorded_under: Mapping[str, Any] = document.data
            return recorded_under
    raise Refused(problems)


@dataclass(frozen=True)
class Prepared:
    """One case ready to be judged: the policy rendered with the case's values, the case's events, and what it is judged for."""

    case: Case
    document: Mapping[str, Any]
    invocations: tuple[Invocation, ...]
    target: Target = DEFAULT


def prepare(policy: Policy, case: Case, protected: Sequence[str], target: Target = DEFAULT) -> Prepared:
    """Render a policy for one of its cases and read the case's events. Raises Refused when either is not sound."""
    file = policy.directory / "cases" / "cases.yml"
    values_document = documents.Document(str(file), {case.name: case.values}, {})
    problems = documents.validate(values_document, inputs.values_schema(policy.inputs), (case.name,))
    if problems:
        raise Refused(problems)
    form = case.form or policy.meta["forms"][0]
    document = render(policy, {**case.values}, form, protected).document("monitor")
    recorded_under = _recorder(case.recorder) if case.recorder else document
    with required():  # reading recordings needs packages that nothing else needs
        from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay import corpus

    return Prepared(case, document, tuple(corpus.read(case.events, recorded_under, case.executables, case.at_hook)), target)


def judge(prepared: Prepared, document: Mapping[str, Any]) -> CaseResult:
    """How a case goes under ``document``, which may be the case's own rendering or one with a bug in it."""
    case, compiled = prepared.case, CompiledPolicy(document, prepared.target)
    counts = {True: 0, False: 0, None: 0}
    failures = []
    for invocation in prepared.invocations:
        verdicts = compiled.evaluate(invocation)
        answers = {verdict.fires.value for verdict in verdicts} or {False}
        answer = True if True in answers else None if None in answers else False
        counts[answer] += 1
        place = f"{invocation.source[0]}:{invocation.source[1]}: {invocation.hook} by {invocation.process.binary or '?'}"
        if answer is not case.must_fire:
            why = "; ".join(sorted({reason for verdict in verdicts for reason in verdict.fires.reasons}))
            said = {True: "fires", False: "stays quiet", None: f"cannot be decided: {why}"}[answer]
            failures.append(f"{place}: {said}")
        elif case.actions and answer:
            taken = {outcome.actions for verdict in verdicts if verdict.fires.value for outcome in verdict.outcomes}
            if taken != {case.actions}:
                shown = " or ".join(sorted(", ".join(actions) for actions in taken))
                failures.append(f"{place}: fires with {shown}; needed: {', '.join(case.actions)}")
    if not prepared.invocations:
        failures.append(f"{case.events}: holds no event of a hook")
    if len(failures) > MAX_SHOWN:
        failures = [*failures[:MAX_SHOWN], f"and {len(failures) - MAX_SHOWN} more"]
    return CaseResult(case.name, case.origin, case.must_fire, counts[True], counts[False], counts[None], tuple(failures))
