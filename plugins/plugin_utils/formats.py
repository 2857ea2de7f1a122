# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Reports in the forms that other tools read: JUnit, SARIF, and tables for a terminal and for a pull request."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from xml.etree import ElementTree

from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import refuse

REPORTS = ("report", "junit", "sarif", "markdown")
_NOT_IN_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_HOME = "https://github.com/apiary-dev/apiary.tetragon"


@dataclass(frozen=True)
class Trial:
    """One thing that held or did not. ``skipped`` says why it could not be tried."""

    suite: str
    name: str
    failures: tuple[str, ...] = ()
    skipped: str = ""


@dataclass(frozen=True)
class Alert:
    """One thing to show at a place in a file. ``line`` 0 stands for the whole file."""

    rule: str
    level: str
    message: str
    file: str
    line: int = 0


def shown_path(path: str) -> str:
    """A path as a person at the terminal names it: relative where it lies below the working directory."""
    relative = os.path.relpath(path) if Path(path).is_absolute() else path
    return path if relative.startswith("..") else relative


def junit(name: str, trials: Sequence[Trial]) -> str:
    """JUnit's XML, one suite for each ``suite`` in order of appearance."""

    def clean(text: str) -> str:
        return _NOT_IN_XML.sub("\N{REPLACEMENT CHARACTER}", text)

    def counts(members: Sequence[Trial]) -> dict[str, str]:
        failed, skipped = sum(bool(one.failures) for one in members), sum(bool(one.skipped) for one in members)
        return {"tests": str(len(members)), "failures": str(failed), "errors": "0", "skipped": str(skipped)}

    root = ElementTree.Element("testsuites", {"name": clean(name), **counts(trials)})
    for suite in dict.fromkeys(one.suite for one in trials):
        members = [one for one in trials if one.suite == suite]
        parent = ElementTree.SubElement(root, "testsuite", {"name": clean(suite), **counts(members)})
        for one in members:
            element = ElementTree.SubElement(parent, "testcase", {"classname": clean(suite), "name": clean(one.name)})
            if one.failures:
                failure = ElementTree.SubElement(element, "failure", {"message": clean(one.failures[0])})
                failure.text = clean("\n".join(one.failures))
            elif one.skipped:
                ElementTree.SubElement(element, "skipped", {"message": clean(one.skipped)})
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def sarif(rules: Mapping[str, str], alerts: Sequence[Alert]) -> str:
    """SARIF 2.1.0 with the rules that are used; ``rules`` maps an id to its explanation."""

    def location(alert: Alert) -> dict[str, Any]:
        physical: dict[str, Any] = {"artifactLocation": {"uri": Path(shown_path(alert.file)).as_posix()}}
        if alert.line:
            physical["region"] = {"startLine": alert.line}
        return {"physicalLocation": physical}

    used = sorted({alert.rule for alert in alerts})
    run = {
        "tool": {
            "driver": {
                "name": "Apiary",
                "informationUri": _HOME,
                "rules": [{"id": rule, "shortDescription": {"text": rules.get(rule, rule)}} for rule in used],
            }
        },
        "results": [
            {
                "ruleId": alert.rule,
                "ruleIndex": used.index(alert.rule),
                "level": alert.level,
                "message": {"text": alert.message},
                "locations": [location(alert)],
            }
            for alert in alerts
        ],
    }
    log = {"$schema": "https://json.schemastore.org/sarif-2.1.0.json", "version": "2.1.0", "runs": [run]}
    return json.dumps(log, indent=1) + "\n"


def table(header: Sequence[str], rows: Sequence[Sequence[object]], indent: str = "  ") -> list[str]:
    """Aligned columns for a terminal; columns that hold numbers alone stand to the right."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(text) for text in column) for column in zip(header, *texts, strict=True)]
    right = [bool(rows) and all(isinstance(row[place], (int, float)) for row in rows) for place in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        shown = (cell.rjust(width) if flush else cell.ljust(width) for cell, width, flush in zip(cells, widths, right, strict=True))
        return (indent + "  ".join(shown)).rstrip()

    return [line(header), *(line(row) for row in texts)]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table for a pull request; cells keep their text whatever is in it."""

    def line(cells: Sequence[object]) -> str:
        return "| " + " | ".join(_cell(str(cell)) for cell in cells) + " |"

    return "\n".join([line(header), "|" + "---|" * len(header), *(line(row) for row in rows)]) + "\n"


def _cell(text: str) -> str:
    escaped = re.sub(r"([\\`*_<>\[\]|~])", r"\\\1", text)
    return " ".join(escaped.split())


def write_file(path: str | Path, compose: Callable[[IO[str]], object]) -> None:
    """Write a report in one rename, so that nobody reads half of it."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.new")
    try:
        with temporary.open("w", encoding="utf-8") as out:
            compose(out)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_reports(wanted: Mapping[str, str | None], **reports: Callable[[IO[str]], object]) -> list[str]:
    """Write the reports (see ``REPORTS``) that have a path in ``wanted``; returns the paths.

    Raises Refused when one cannot be written.
    """
    written = []
    for name, compose in reports.items():
        path = wanted.get(name)
        if path:
            try:
                write_file(path, compose)
            except OSError as error:
                raise refuse(f"cannot be written: {error}", file=path) from None
            written.append(path)
    return written
