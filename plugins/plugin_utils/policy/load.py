# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The policy library: directories ``<category>/<name>/`` on a search path, the user's first."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils import canonical, documents
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy import inputs
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.catalogue import CATALOGUE
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Problem, Refused, refuse

SEVERITIES = ("critical", "high", "medium", "low")
MATURITIES = ("stable", "incubating", "sandbox", "deprecated")
FORMS = ("host", "cluster")
MACROS = "_macros"
SHIPPED = Path(__file__).parents[3] / "policies"
# A loaded policy is named <name>-<8 hex digits>, and the agent takes names of at most 63 characters (DNS label).
NAME = re.compile(r"^[a-z0-9](?:[-a-z0-9]{0,46}[a-z0-9])?$")
TRIGGERS = ("open", "write", "connect", "exec", "exec-memory", "call")

META_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["title", "description", "severity", "owner", "maturity", "attack", "forms", "event_budget", "inputs"],
    "properties": {
        "title": {"type": "string", "minLength": 1, "maxLength": 100},
        "description": {"type": "string", "minLength": 1},
        "severity": {"enum": list(SEVERITIES)},
        "owner": {"type": "string", "minLength": 1},
        "maturity": {"enum": list(MATURITIES)},
        "attack": {
            "type": "array",
            "items": {"type": "string", "pattern": r"^T[0-9]{4}(\.[0-9]{3})?$", "description": "an ATT&CK technique id"},
        },
        "forms": {"type": "array", "items": {"enum": list(FORMS)}, "minItems": 1, "uniqueItems": True},
        "event_budget": {"type": "integer", "minimum": 0},
        "inputs": inputs.SCHEMA,
        "trigger": {
            "type": "object",
            "required": ["kind"],
            "properties": {"kind": {"enum": list(TRIGGERS)}},
            "additionalProperties": {"type": ["string", "integer"], "description": "a template"},
        },
        "lint": {
            "type": "object",
            "additionalProperties": False,
            "required": ["allow"],
            "properties": {
                "allow": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["rule", "reason"],
                        "properties": {
                            "rule": {"type": "string"},
                            "reason": {"type": "string", "pattern": r"\S\s+\S", "description": "a reason, in words"},
                        },
                    },
                },
            },
        },
    },
}

CASES_SCHEMA: Mapping[str, Any] = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "additionalProperties": False,
        "required": ["name", "origin", "events", "must"],
        "properties": {
            "name": {"type": "string", "minLength": 1},
            "origin": {"enum": ["recorded", "written"]},
            "events": {"type": "string", "pattern": r"^[^/]+\.jsonl(\.gz)?$", "description": "a .jsonl or .jsonl.gz file in cases/"},
            "must": {"enum": ["fire", "stay-quiet"]},
            "actions": {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
            "recorder": {"type": "string", "pattern": r"^[^/]+\.ya?ml$", "description": "a TracingPolicy file in cases/"},
            "form": {"enum": list(FORMS)},
            "values": {"type": "object"},
            "at_hook": {"type": "boolean"},
            "executables": {"type": "object", "additionalProperties": inputs.TYPES["path"]},
        },
    },
}


@dataclass(frozen=True)
class Case:
    """Events and what the policy must do with every one of them.

    ``origin`` says whether a real agent recorded the events or a person wrote them. ``recorder`` is the
    TracingPolicy under which they were recorded (None: the policy itself). ``executables`` maps a process's
    exec name to the file that was executed, where the two differ; None says that nobody knows. ``at_hook`` vouches
    that each process was in the namespaces that the event shows when it hit the hook. ``actions`` are those that every
    event must meet, in order; empty: any.
    """

    name: str
    origin: str
    events: Path
    must_fire: bool
    recorder: Path | None
    form: str | None
    values: Mapping[str, Any]
    executables: Mapping[str, str] | None
    at_hook: bool
    actions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Policy:
    """One policy directory, read and validated; its template not yet rendered."""

    category: str
    name: str
    directory: Path
    meta: Mapping[str, Any]
    inputs: Mapping[str, inputs.Input]
    template: str
    macros: Mapping[str, str]

    @property
    def reference(self) -> str:
        return f"{self.category}/{self.name}"

    @property
    def template_file(self) -> str:
        return str(self.directory / "policy.yaml.j2")

    @property
    def allowed(self) -> Mapping[str, str]:
        """The lint rules that this policy may break, each with the reason."""
        return {one["rule"]: one["reason"] for one in self.meta.get("lint", {}).get("allow", ())}

    @cached_property
    def cases(self) -> tuple[Case, ...]:
        """The policy's cases; empty when it has none (a bundle refuses such a policy)."""
        path = self.directory / "cases" / "cases.yml"
        if not path.exists():
            return ()
        document = documents.load(path)
        problems = documents.validate(document, CASES_SCHEMA)
        if problems:
            raise Refused(problems)
        here = path.parent
        cases = []
        for index, raw in enumerate(document.data):
            for key in ("events", "recorder"):
                if key in raw and not (here / raw[key]).is_file():
                    problems.append(document.problem((index, key), f"no such file: {here / raw[key]}"))
            if "actions" in raw and raw["must"] != "fire":
                problems.append(document.problem((index, "actions"), "is of use only where the case must fire: take it out"))
            cases.append(
                Case(
                    name=raw["name"],
                    origin=raw["origin"],
                    events=here / raw["events"],
                    must_fire=raw["must"] == "fire",
                    recorder=here / raw["recorder"] if "recorder" in raw else None,
                    form=raw.get("form"),
                    values=raw.get("values", {}),
                    executables=raw.get("executables"),
                    at_hook=raw.get("at_hook", False),
                    actions=tuple(raw.get("actions", ())),
                )
            )
        if problems:
            raise Refused(problems)
        return tuple(cases)

    @cached_property
    def digest(self) -> str:
        """Changes with any byte of the policy's directory or of the macros it can use."""
        files = sorted(path for path in self.directory.rglob("*") if path.is_file())
        return canonical.digest(
            [*((str(path.relative_to(self.directory)), canonical.digest(path.read_bytes())) for path in files), self.macros]
        )


class Library:
    """Policies by reference ``<category>/<name>``; the first directory of the search path that has one wins."""

    def __init__(self, search_path: Sequence[str | Path]) -> None:
        self.search_path = tuple(Path(entry) for entry in search_path)
        for entry in self.search_path:
            if not entry.is_dir():
                raise refuse("no such policy directory: create it or take it off apiary_policy_path", file=str(entry))
        self._loaded: dict[str, Policy] = {}

    @cached_property
    def references(self) -> Mapping[str, Path]:
        """Every policy on the path, by reference, in order of reference."""
        found: dict[str, Path] = {}
        for entry in self.search_path:
            for meta in sorted(entry.glob("*/*/meta.yml")):
                found.setdefault(f"{meta.parent.parent.name}/{meta.parent.name}", meta.parent)
        return dict(sorted(found.items()))

    @cached_property
    def macros(self) -> Mapping[str, str]:
        """Shared Jinja macros by file name, the first directory of the path that has one winning."""
        found: dict[str, str] = {}
        for entry in self.search_path:
            for path in sorted((entry / MACROS).glob("*.j2")):
                found.setdefault(path.name, path.read_text(encoding="utf-8"))
        return found

    def __iter__(self) -> Iterator[Policy]:
        return (self.get(reference) for reference in self.references)

    def get(self, reference: str) -> Policy:
        """Read one policy. Raises Refused when it does not exist or its files are not sound."""
        if reference not in self._loaded:
            self._loaded[reference] = self._read(reference)
        return self._loaded[reference]

    def _read(self, reference: str) -> Policy:
        directory = self.references.get(reference)
        if directory is None:
            near = difflib.get_close_matches(reference, self.references, 1, 0.5)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise refuse(
                f"no policy {reference!r}; {hint}searched: {', '.join(map(str, self.search_path))}; "
                f"known: {', '.join(self.references) or 'none'}"
            )
        document = documents.load(directory / "meta.yml")
        problems = documents.validate(document, META_SCHEMA)
        if not NAME.fullmatch(directory.name):
            problems.append(
                document.problem((), f"directory name {directory.name!r}: needed: at most 48 lower-case letters, digits and dashes")
            )
        if not problems:
            problems += _allowance_problems(document)
        if problems:
            raise Refused(problems)
        declared = {name: inputs.Input.from_meta(name, raw) for name, raw in document.data["inputs"].items()}
        for name, spec in declared.items():
            if not spec.required:
                problems += documents.validate(document, spec.schema(), ("inputs", name, "default"))
        if problems:
            raise Refused(problems)
        template = directory / "policy.yaml.j2"
        try:
            source = template.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise refuse(f"cannot be read: {error}", file=str(template)) from None
        return Policy(
            category=directory.parent.name,
            name=directory.name,
            directory=directory,
            meta=document.data,
            inputs=declared,
            template=source,
            macros=self.macros,
        )


def with_shipped(policy_path: Sequence[str | Path]) -> Library:
    """The policies in these directories, and after them those that the collection ships. Raises Refused."""
    return Library([*policy_path, SHIPPED])


def _allowance_problems(document: documents.Document) -> list[Problem]:
    """What is wrong with the lint rules that a meta.yml of sound shape allows."""
    problems = []
    seen: set[str] = set()
    for index, one in enumerate(document.data.get("lint", {}).get("allow", ())):
        path, rule = ("lint", "allow", index, "rule"), CATALOGUE.get(one["rule"])
        if rule is None:
            near = difflib.get_close_matches(one["rule"], CATALOGUE, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            problems.append(document.problem(path, f"no rule {one['rule']!r}; {hint}docs/lints.md lists them"))
        elif not rule.can_be_allowed:
            problems.append(
                document.problem(path, f"{rule.id} tells what the agent refuses to load: it cannot be allowed; mend the policy")
            )
        elif rule.id in seen:
            problems.append(document.problem(path, f"{rule.id} is allowed twice: keep one reason"))
        seen.add(one["rule"])
    return problems
