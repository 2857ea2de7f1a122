# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The records of one cluster's nodes in one phase of a run: one file, in which what nodes have in common stands once.

A record is an observation with the node's ``ring``, or ``{"ring", "failed"}`` with the reason why its change failed, or
``{"ring", "lost"}`` with the reason why nothing can be known of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils import files

FORMAT = "apiary.dev/nodes/1"
_SHARED = ("host", "policies")
Record = Mapping[str, Any]


def path_of(directory: Path, cluster: str) -> Path:
    """Where a phase keeps a cluster's nodes."""
    return directory / f"{cluster}.nodes.json"


def write(path: Path, nodes: Mapping[str, Record]) -> None:
    """Write all records in one rename. Raises Refused."""
    shared: dict[str, int] = {}

    def number(part: Any) -> int:
        return shared.setdefault(json.dumps(part, sort_keys=True, separators=(",", ":")), len(shared))

    packed = {}
    for name, record in nodes.items():
        packed[name] = {key: value for key, value in record.items() if key not in _SHARED}
        if "host" in record:
            packed[name]["host"] = number(record["host"])
            packed[name]["policies"] = None if record["policies"] is None else [number(one) for one in record["policies"]]
    text = json.dumps({"format": FORMAT, "nodes": packed}, separators=(",", ":"))
    files.write(path, f'{text[:-1]},"shared":[{",".join(shared)}]}}')


def read(path: Path) -> dict[str, dict[str, Any]] | None:
    """All records, their common parts shared in memory too; None when there is no such file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    shared = content["shared"]
    for record in content["nodes"].values():
        if "host" in record:
            record["host"] = shared[record["host"]]
            record["policies"] = None if record["policies"] is None else [shared[one] for one in record["policies"]]
    nodes: dict[str, dict[str, Any]] = content["nodes"]
    return nodes
