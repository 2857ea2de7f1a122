# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Builds bundles: every policy of an environment rendered, checked, and put into a manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils import canonical
from ansible_collections.apiary.tetragon.plugins.plugin_utils.bundle import FORMAT, Bundle
from ansible_collections.apiary.tetragon.plugins.plugin_utils.environment import Entry, Environment, Variant, check_values
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.cache import Cache
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.check import CaseResult, check, run_cases
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.kernel import target
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.lint import Finding, lint_set
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.load import Library, Policy
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.render import Rendered, render
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.traits import Traits
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.trigger import act
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Problem, Refused


@dataclass(frozen=True)
class Build:
    """A bundle, what the checks found, and how each policy's cases went (by reference)."""

    bundle: Bundle
    findings: tuple[Finding, ...]
    cases: Mapping[str, Sequence[CaseResult]]


@dataclass(frozen=True)
class Examined:
    """What the checks say of one entry of an environment, and what a bundle takes from it; all of it, whatever is wrong."""

    entry: Entry
    cases: tuple[CaseResult, ...]
    findings: tuple[Finding, ...]
    problems: tuple[Problem, ...]
    records: tuple[dict[str, Any], ...]
    texts: Mapping[str, str]
    choices: tuple[dict[str, Any], ...]
    document: Mapping[str, Any] | None


def examine(entry: Entry, environment: Environment, library: Library, cache: Cache) -> Examined:
    """Replay the cases of an entry's policy, and render and check each of its variants."""
    problems: list[Problem] = []
    findings: list[Finding] = []
    results: tuple[CaseResult, ...] = ()
    checked: list[dict[str, Any]] = []
    try:
        policy = library.get(entry.reference)
        try:
            results = tuple(_proved(policy, environment, cache))
        except Refused as error:
            problems += error.problems
        for variant in entry.variants:
            checked.append(_checked(policy, entry, variant, environment, cache))
            findings += [Finding(**one) for one in checked[-1]["findings"]]
    except Refused as error:
        problems += [one for one in error.problems if one not in problems]
    return Examined(
        entry=entry,
        cases=results,
        findings=tuple(dict.fromkeys(findings)),
        problems=tuple(problems),
        records=tuple(one["record"] for one in checked),
        texts={one["record"]["file"]: one["text"] for one in checked},
        choices=tuple(
            {"where": list(variant.where), "loaded": one["record"]["loaded"]} for variant, one in zip(entry.variants, checked, strict=False)
        ),
        document=checked[-1]["document"] if checked else None,
    )


def lint_together(examined: Sequence[Examined], environment: Environment) -> list[Finding]:
    """The lints over all policies that one host, or one cluster, of the environment runs."""
    documents: dict[str, list[Mapping[str, Any]]] = {}
    for one in examined:
        if one.document is not None:
            documents.setdefault(one.entry.form, []).append(one.document)
    return [finding for members in documents.values() for finding in lint_set(members, environment.kernel)]


def build(environment: Environment, library: Library, cache: Cache | None = None) -> Build:
    """Render and check every policy of the environment. Raises Refused when anything keeps it from being a bundle."""
    check_values(environment, library)
    cache = cache or Cache()
    examined = [examine(entry, environment, library, cache) for entry in environment.entries]
    findings = tuple(dict.fromkeys([finding for one in examined for finding in one.findings] + lint_together(examined, environment)))
    problems = [problem for one in examined for problem in one.problems]
    problems += [
        Problem(str(library.get(one.entry.reference).directory / "cases" / "cases.yml"), 0, result.name, f"must {result.must}: {text}")
        for one in examined
        for result in one.cases
        for text in result.failures
    ]
    problems += [
        Problem(environment.file, 0, f"policy {one.policy}", ": ".join(part for part in (one.path, f"{one.message} [{one.rule}]") if part))
        for one in findings
        if one.severity == "error"
    ]
    if problems:
        raise Refused(problems)
    policies = {(record["loaded"], one.entry.form): record for one in examined for record in one.records}
    assignments = [
        {"policy": one.entry.reference, "form": one.entry.form, "where": list(one.entry.where), "choices": list(one.choices)}
        for one in examined
    ]
    manifest = {
        "format": FORMAT,
        "environment": environment.name,
        "agent_version": environment.agent_version,
        "policies": [policies[key] for key in sorted(policies)],
        "assignments": sorted(assignments, key=lambda one: (str(one["policy"]), str(one["form"]))),
    }
    files = {file: text for one in examined for file, text in one.texts.items()}
    return Build(Bundle(manifest, dict(sorted(files.items()))), findings, {one.entry.reference: one.cases for one in examined})


def _proved(policy: Policy, environment: Environment, cache: Cache) -> list[CaseResult]:
    judged_for = target(environment.version, environment.kernel)
    parts = ["cases", policy.digest, str(policy.directory), environment.protected, environment.version, asdict(environment.kernel)]
    kept = cache.get(parts, lambda: [asdict(result) for result in run_cases(policy, environment.protected, judged_for)])
    return [CaseResult(**{**one, "failures": tuple(one["failures"])}) for one in kept]


def _checked(policy: Policy, entry: Entry, variant: Variant, environment: Environment, cache: Cache) -> dict[str, Any]:
    """One rendering, checked: its manifest record, text, document and findings."""

    def compute() -> dict[str, Any]:
        rendered = render(policy, variant.values, entry.form, environment.protected, entry.namespace)
        derived, found = check(rendered, entry.mode, environment.version, environment.protected, environment.kernel)
        text = rendered.text(entry.mode)
        return {
            "record": _record(rendered, entry.mode, derived, text),
            "text": text,
            "document": rendered.document(entry.mode),
            "findings": [asdict(one) for one in found],
        }

    fixed = [policy.reference, policy.digest, environment.protected, environment.version, asdict(environment.kernel)]
    parts = [*fixed, variant.values, entry.form, entry.namespace, entry.mode]
    result: dict[str, Any] = cache.get(["rendered", *parts], compute)
    return result


def _record(rendered: Rendered, mode: str, derived: Traits, text: str) -> dict[str, Any]:
    meta = rendered.policy.meta
    return {
        "name": rendered.policy.name,
        "reference": rendered.policy.reference,
        "revision": rendered.revision,
        "loaded": rendered.loaded_name,
        "mode": mode,
        "form": rendered.form,
        "namespace": rendered.namespace,
        "severity": meta["severity"],
        "owner": meta["owner"],
        "event_budget": meta["event_budget"],
        "trigger": act(rendered),
        **json.loads(json.dumps(asdict(derived))),
        "file": f"{rendered.form}-{rendered.loaded_name}.yaml",
        "sha256": canonical.digest(text.encode()),
    }
