# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""What a drill found on one host, as a table for a terminal and as a page of HTML that needs nothing but itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from ansible_collections.apiary.tetragon.plugins.plugin_utils import files
from ansible_collections.apiary.tetragon.plugins.plugin_utils.formats import table

TEMPLATE = Path(__file__).with_name("drill.html.j2")


def lines(found: Mapping[str, Any]) -> list[str]:
    """Policies down, events across: attempts/allowed, and the longest gap where there is one. Then what came through."""
    phases = list(found["counts"])
    rows = [
        [policy["reference"], policy["by"], *(_cell(found["counts"][phase].get(policy["loaded"])) for phase in phases)]
        for policy in found["policies"]
    ]
    wrong = [f"  {phase}: {count} unrelated acts were refused" for phase, count in found["wrong"].items()]
    verdict = [f"  {one}" for one in found["lapses"]] or ["  nothing came through"]
    return [*table(["attempts/allowed", "by", *phases], rows), *wrong, *verdict]


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "-"
    gap = f" {row['gap']} s" if row["allowed"] else ""
    return f"{row['attempts']}/{row['allowed']}{gap}"


def page(host: str, found: Mapping[str, Any]) -> str:
    """The whole page; everything in it is text from elsewhere and escaped."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(host=host, drill=found)


def write(host: str, found: Mapping[str, Any], directory: Path) -> Path:
    """Write ``drill-<host>.json`` and ``.html``; returns the page's path. Raises Refused."""
    target = directory / f"drill-{host}.html"
    files.write(directory / f"drill-{host}.json", json.dumps({"host": host, **found}, indent=1))
    files.write(target, page(host, found))
    return target
