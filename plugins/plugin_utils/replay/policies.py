# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Which policies to replay: TracingPolicy files, directories of them, and policies of the library, in one list."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils import documents
from ansible_collections.apiary.tetragon.plugins.plugin_utils.documents import Document
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy import inputs
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.kernel import Kernel
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.lint import Finding, lint_document, read
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.load import FORMS, Library
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.render import render
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.schema import Version, tracing_policy
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Problem, Refused, refuse
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.corpus import Recording

KINDS = ("TracingPolicy", "TracingPolicyNamespaced")
SUFFIXES = (".yaml", ".yml")
TEMPLATE = "policy.yaml.j2"


@dataclass(frozen=True)
class Candidate:
    """One policy to replay. ``budget`` is what a library policy allows itself, in events per host and day.

    ``findings`` are those of a plain file; a library policy's are for ``check``, which knows its environment.
    """

    name: str
    file: str
    document: Mapping[str, Any]
    budget: int | None = None
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Gathered:
    """The policies that can be replayed, what is wrong with the others, and the YAML files that hold no policy."""

    policies: tuple[Candidate, ...]
    problems: tuple[Problem, ...]
    foreign: tuple[str, ...]


def gather(
    wanted: Sequence[str],
    library: Library,
    version: Version,
    protected: Sequence[str],
    values: Mapping[str, Mapping[str, Any]],
    form: str = FORMS[0],
    kernel: Kernel | None = None,
) -> Gathered:
    """Every policy at these files, directories and library references, in order, each once.

    ``values`` are the inputs of library policies, by reference. A file that is named itself must hold a policy; in a
    directory, YAML of other kinds is passed over. Policies are known by ``metadata.name``: two that differ need two names.
    """
    problems: list[Problem] = []
    foreign: list[str] = []
    found: dict[str, Candidate] = {}
    seen: set[Path] = set()

    def take(candidate: Candidate) -> None:
        known = found.setdefault(candidate.name, candidate)
        if known.document != candidate.document:
            problems.append(
                Problem(candidate.file, 0, "metadata.name", f"is {candidate.name!r}, as that of {known.file}: rename one of the two")
            )

    for one in wanted:
        try:
            for file in _files(one, library):
                if file.resolve() in seen:
                    continue
                seen.add(file.resolve())
                try:
                    if file.name == TEMPLATE:
                        take(_from_library(file.parent, library, version, protected, values, form))
                        continue
                    document = read(file)
                    if Path(one).is_dir() and not _is_policy(document):
                        foreign.append(str(file))
                        continue
                    name, place = _sound(document, version)
                    take(Candidate(name, place, document.data, findings=tuple(lint_document(document, version, kernel, protected))))
                except Refused as error:
                    problems += error.problems
        except Refused as error:
            problems += error.problems
    return Gathered(tuple(found.values()), tuple(problems), tuple(foreign))


def _files(wanted: str, library: Library) -> Iterator[Path]:
    """The policy files that one entry of the list stands for; a template stands for its library policy."""
    path = Path(wanted)
    if path.is_file():
        yield path
    elif path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES or file.name == TEMPLATE)
        homes = {file.parent for file in files if file.name == TEMPLATE}
        chosen = [file for file in files if file.name == TEMPLATE or not homes.intersection(file.parents)]
        if not chosen:
            raise refuse(f"holds no policy: needed are files that end in {' or '.join(SUFFIXES)}", file=wanted)
        yield from chosen
    elif wanted in library.references:
        yield library.references[wanted] / TEMPLATE
    else:
        raise refuse("no such file, directory or policy of the library (<category>/<name>)", file=wanted)


def _is_policy(document: Document) -> bool:
    return isinstance(document.data, dict) and document.data.get("kind") in KINDS


def _sound(document: Document, version: Version) -> tuple[str, str]:
    """The name and the file of a policy. Raises Refused when the agent would not take it."""
    if not _is_policy(document):
        raise Refused([document.problem((), f"holds no policy; needed: a YAML document of kind {' or '.join(KINDS)}")])
    problems = documents.validate(document, tracing_policy(version))
    if problems:
        raise Refused(problems)
    return document.data["metadata"]["name"], document.file


def _from_library(
    directory: Path,
    library: Library,
    version: Version,
    protected: Sequence[str],
    values: Mapping[str, Mapping[str, Any]],
    form: str,
) -> Candidate:
    reference = f"{directory.parent.name}/{directory.name}"
    if library.references.get(reference) != directory:
        library = Library([directory.parent.parent, *library.search_path])
    policy = library.get(reference)
    given = {**values.get(reference, {})}
    asked = Document(f"apiary_values of {reference}", given, {})
    problems = documents.validate(asked, inputs.values_schema(policy.inputs))
    if problems:
        raise Refused(replace(problem, line=0) for problem in problems)
    chosen = form if form in policy.meta["forms"] else policy.meta["forms"][0]
    rendered = render(policy, given, chosen, protected)
    document = Document(f"{policy.template_file} (rendered)", rendered.document("monitor"), {})
    problems = documents.validate(document, tracing_policy(version))
    if problems:
        raise Refused(replace(problem, line=0) for problem in problems)
    document.data["metadata"]["name"] = policy.name
    return Candidate(policy.name, policy.template_file, document.data, int(policy.meta["event_budget"]))


def recorder_files(named: Sequence[str], recordings: Sequence[str]) -> list[Path]:
    """The files of the policies under which recordings were made: those that are named, and those in a directory
    ``policies`` beside a recording. What a recording's own directory holds is found with the recording."""
    beside = [Path(one).resolve().parent / "policies" for one in recordings]
    found: list[Path] = []
    for path in (*(Path(one) for one in named), *(one for one in dict.fromkeys(beside) if one.is_dir())):
        found += sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES) if path.is_dir() else [path]
    return found


def told_more(recordings: Sequence[Recording], recorders: Sequence[Document]) -> list[Recording]:
    """The same recordings, which know of policies beyond their directories' own that recorded them."""
    more = tuple(one.data for one in recorders if _is_policy(one))
    contexts = {one.context: replace(one.context, policies=(*one.context.policies, *more)) for one in recordings}
    return [replace(one, context=contexts[one.context]) for one in recordings]
