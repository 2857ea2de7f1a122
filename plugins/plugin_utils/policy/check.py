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
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.lint import Context, Finding, lint
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.load import Case, Policy
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.render import Rendered, render
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.schema import SUPPORTED, Version, tracing_policy
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.traits import Traits, traits
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Refused, refuse
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay import corpus
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.compile import CompiledPolicy

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


def check(rendered: Rendered, mode: str, version: Version, protected: Sequence[str]) -> tuple[Traits, list[Finding]]:
    """Schema and lints of a rendered policy. Raises Refused when its shape is not one that the agent takes."""
    document = rendered.document(mode)
    source = documents.Document(f"{rendered.policy.template_file} (rendered)", document, {})
    problems = documents.validate(source, tracing_policy(version))
    if problems:
        raise Refused(replace(problem, line=0) for problem in problems)
    derived = traits(document, version)
    context = Context(rendered.policy.name, document["spec"], rendered.namespace, mode, version, tuple(protected), derived)
    return derived, lint(context)


def run_cases(policy: Policy, protected: Sequence[str]) -> list[CaseResult]:
    """Replay every case of a policy, each with the case's own values. Raises Refused when there are none."""
    if not policy.cases:
        raise refuse(
            "has no cases: add cases/cases.yml with events it must fire on and events it must stay quiet on", file=str(policy.directory)
        )
    if not any(case.must_fire for case in policy.cases) or all(case.must_fire for case in policy.cases):
        raise refuse(
            "needs at least one case that must fire and one that must stay quiet", file=str(policy.directory / "cases" / "cases.yml")
        )
    return [_run_case(policy, case, protected) for case in policy.cases]


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


def _run_case(policy: Policy, case: Case, protected: Sequence[str]) -> CaseResult:
    file = policy.directory / "cases" / "cases.yml"
    values_document = documents.Document(str(file), {case.name: case.values}, {})
    problems = documents.validate(values_document, inputs.values_schema(policy.inputs), (case.name,))
    if problems:
        raise Refused(problems)
    form = case.form or policy.meta["forms"][0]
    document = render(policy, {**case.values}, form, protected).document("monitor")
    recorded_under = _recorder(case.recorder) if case.recorder else document
    compiled = CompiledPolicy(document)
    counts = {True: 0, False: 0, None: 0}
    failures = []
    for invocation in corpus.read(case.events, recorded_under, case.executables, case.at_hook):
        verdicts = compiled.evaluate(invocation)
        answers = {verdict.fires.value for verdict in verdicts} or {False}
        answer = True if True in answers else None if None in answers else False
        counts[answer] += 1
        if answer is not case.must_fire:
            why = "; ".join(sorted({reason for verdict in verdicts for reason in verdict.fires.reasons}))
            said = {True: "fires", False: "stays quiet", None: f"cannot be decided: {why}"}[answer]
            place = f"{invocation.source[0]}:{invocation.source[1]}"
            failures.append(f"{place}: {invocation.hook} by {invocation.process.binary or '?'}: {said}")
    if not sum(counts.values()):
        failures.append(f"{case.events}: holds no event of a hook")
    if len(failures) > MAX_SHOWN:
        failures = [*failures[:MAX_SHOWN], f"and {len(failures) - MAX_SHOWN} more"]
    return CaseResult(case.name, case.origin, case.must_fire, counts[True], counts[False], counts[None], tuple(failures))
