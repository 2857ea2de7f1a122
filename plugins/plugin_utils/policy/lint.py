# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Lints: what the agent would refuse, or accept and then not do, or do to the wrong process.

The rules stand in the catalogue, their checks in the modules ``lint_*``; each looks at one rendered policy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils import documents
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy import lint_refused, lint_safety, lint_silent
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.catalogue import CATALOGUE
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.kernel import Kernel
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.lint_base import Context
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.schema import Version
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.traits import traits
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Problem, Refused

CHECKS = {**lint_refused.CHECKS, **lint_silent.CHECKS, **lint_safety.CHECKS}


@dataclass(frozen=True)
class Finding:
    """``severity``: an error keeps a policy out of a bundle; a warning, and what the policy allows, is shown. Rendered: no file."""

    rule: str
    severity: str
    policy: str
    path: str
    message: str
    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: " if self.file else ""
        return f"{place}{self.severity}: {self.policy}: {self.path + ': ' if self.path else ''}{self.message} [{self.rule}]"


def lint(context: Context, document: documents.Document | None = None) -> list[Finding]:
    """All findings of all rules for one policy, in the order of the catalogue; with its document, each at its line."""
    return [
        Finding(
            rule.id,
            rule.severity,
            context.policy,
            documents.show_path(path),
            message,
            document.file if document else "",
            document.problem(path, "").line if document else 0,
        )
        for rule in CATALOGUE.values()
        if rule.id in CHECKS
        for path, message in CHECKS[rule.id](context)
    ]


def read(path: str | Path) -> documents.Document:
    """A plain policy file. Raises Refused, a second document in words of its own."""
    try:
        return documents.load(path)
    except Refused as error:
        raise Refused(map(_plainly, error.problems)) from None


def lint_document(
    document: documents.Document, version: Version, kernel: Kernel | None = None, protected: Sequence[str] = ()
) -> list[Finding]:
    """All findings of a TracingPolicy of sound shape, with file and line. Its mode is that of its options."""
    return lint(context_of(document.data, version, kernel, protected), document)


def context_of(document: Mapping[str, Any], version: Version, kernel: Kernel | None = None, protected: Sequence[str] = ()) -> Context:
    """A TracingPolicy of sound shape, ready for the lints, in the mode that its options say."""
    metadata, spec, derived = document["metadata"], document["spec"], traits(document, version)
    monitored = any(one["name"] == "policy-mode" and one.get("value") == "monitor" for one in spec.get("options", ()))
    mode = "enforce" if derived.enforcing and not monitored else "monitor"
    namespace = metadata.get("namespace", "default") if document["kind"] == "TracingPolicyNamespaced" else None
    return Context(metadata["name"], spec, namespace, mode, version, tuple(protected), derived, kernel or Kernel())


def _plainly(problem: Problem) -> Problem:
    """The rule second-document in words of its own: YAML's say neither what is wrong nor why."""
    if "but found another document" not in problem.message:
        return problem
    message = "a second document begins here: the agent loads the first alone and says nothing; one file per policy [second-document]"
    return replace(problem, message=message)


def lint_set(policies: Sequence[Mapping[str, Any]], kernel: Kernel | None = None) -> list[Finding]:
    """Ceilings that all policies of one host share; each policy as its rendered document."""
    found = lint_safety.shared(policies, kernel or Kernel())
    return [Finding(rule, CATALOGUE[rule].severity, "all policies", "", message) for rule, message in found]


def allow(findings: Sequence[Finding], reasons: Mapping[str, str]) -> list[Finding]:
    """The findings, those of an allowed rule with severity ``allowed`` and the reason."""
    return [
        replace(one, severity="allowed", message=f"{one.message}; allowed: {reasons[one.rule]}") if one.rule in reasons else one
        for one in findings
    ]
