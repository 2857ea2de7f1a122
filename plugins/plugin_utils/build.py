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
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.lint import Finding, lint_set
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.load import Library, Policy
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.render import Rendered, render
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.traits import Traits
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Problem, Refused


@dataclass(frozen=True)
class Build:
    """A bundle, what the checks found, and how each policy's cases went (by reference)."""

    bundle: Bundle
    findings: tuple[Finding, ...]
    cases: Mapping[str, Sequence[CaseResult]]


def build(environment: Environment, library: Library, cache: Cache | None = None) -> Build:
    """Render and check every policy of the environment. Raises Refused when anything keeps it from being a bundle."""
    check_values(environment, library)
    cache = cache or Cache()
    problems: list[Problem] = []
    findings: list[Finding] = []
    cases: dict[str, Sequence[CaseResult]] = {}
    policies: dict[tuple[str, str], dict[str, Any]] = {}
    files: dict[str, str] = {}
    assignments = []
    documents: dict[str, list[Mapping[str, Any]]] = {}
    for entry in environment.entries:
        policy = library.get(entry.reference)
        try:
            results = cases[entry.reference] = _proved(policy, environment, cache)
            problems += [
                Problem(str(policy.directory / "cases" / "cases.yml"), 0, result.name, f"must {result.must}: {text}")
                for result in results
                for text in result.failures
            ]
            choices = []
            for variant in entry.variants:
                checked = _checked(policy, entry, variant, environment, cache)
                findings += [Finding(**one) for one in checked["findings"]]
                record = checked["record"]
                policies[record["loaded"], entry.form] = record
                files[record["file"]] = checked["text"]
                choices.append({"where": list(variant.where), "loaded": record["loaded"]})
            documents.setdefault(entry.form, []).append(checked["document"])
        except Refused as error:
            problems += error.problems
            continue
        assignments.append({"policy": entry.reference, "form": entry.form, "where": list(entry.where), "choices": choices})
    for members in documents.values():
        findings += lint_set(members)
    findings = list(dict.fromkeys(findings))
    problems += [
        Problem(environment.file, 0, f"policy {one.policy}", ": ".join(part for part in (one.path, f"{one.message} [{one.rule}]") if part))
        for one in findings
        if one.severity == "error"
    ]
    if problems:
        raise Refused(problems)
    manifest = {
        "format": FORMAT,
        "environment": environment.name,
        "agent_version": environment.agent_version,
        "policies": [policies[key] for key in sorted(policies)],
        "assignments": sorted(assignments, key=lambda one: (str(one["policy"]), str(one["form"]))),
    }
    return Build(Bundle(manifest, dict(sorted(files.items()))), tuple(findings), cases)


def _proved(policy: Policy, environment: Environment, cache: Cache) -> list[CaseResult]:
    parts = ["cases", policy.digest, str(policy.directory), environment.protected]
    kept = cache.get(parts, lambda: [asdict(result) for result in run_cases(policy, environment.protected)])
    return [CaseResult(**{**one, "failures": tuple(one["failures"])}) for one in kept]


def _checked(policy: Policy, entry: Entry, variant: Variant, environment: Environment, cache: Cache) -> dict[str, Any]:
    """One rendering, checked: its manifest record, text, document and findings."""

    def compute() -> dict[str, Any]:
        rendered = render(policy, variant.values, entry.form, environment.protected, entry.namespace)
        derived, found = check(rendered, entry.mode, environment.version, environment.protected)
        text = rendered.text(entry.mode)
        return {
            "record": _record(rendered, entry.mode, derived, text),
            "text": text,
            "document": rendered.document(entry.mode),
            "findings": [asdict(one) for one in found],
        }

    fixed = [policy.reference, policy.digest, environment.protected, environment.version]
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
        **json.loads(json.dumps(asdict(derived))),
        "file": f"{rendered.form}-{rendered.loaded_name}.yaml",
        "sha256": canonical.digest(text.encode()),
    }
