# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Recordings on the controller: what to record, and the directory that a replay reads afterwards."""

from __future__ import annotations

import base64
import fcntl
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils import canonical, documents
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.schema import tracing_policy
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Problem, Refused, refuse

OWN = Path(__file__).parents[2] / "policies" / "_recorders"
DESCRIPTION = "recording.yml"
PREFIX = "apiary-record-"
MAX_STEM = 40
USUAL = ("process", "network", "kernel")
_VERSION = (1, 7, 0)
_HARMLESS = frozenset(["Post"])


def recorders(wanted: Sequence[str]) -> list[dict[str, Any]]:
    """The policies to record with: names of the collection's own, or files. Raises Refused when one does not only observe.

    Each is named after its content: the same on every host, and told from all other policies.
    """
    known = {path.stem: path for path in sorted(OWN.glob("*.yaml"))}
    problems: list[Problem] = []
    chosen = []
    for one in wanted:
        path = known.get(one, Path(one))
        try:
            if not path.is_file():
                raise Refused([Problem(one, 0, "", f"is neither a file nor one of the recorders {', '.join(sorted(known))}")])
            document = documents.load(path)
            problems += _observes(document)
            named = re.sub("[^a-z0-9-]+", "-", path.stem.lower())[:MAX_STEM].strip("-") or "policy"
            chosen.append({"name": f"{PREFIX}{named}-{canonical.digest(document.data)[:8]}", "document": document.data})
        except Refused as error:
            problems += error.problems
    if problems:
        raise Refused(problems)
    return chosen


def _observes(document: documents.Document) -> list[Problem]:
    problems = documents.validate(document, tracing_policy(_VERSION))
    if problems:
        return problems
    found = []
    for section, hooks in document.data["spec"].items():
        for index, hook in enumerate(hooks) if isinstance(hooks, list) else ():
            for place, selector in enumerate(hook.get("selectors") or ()) if isinstance(hook, dict) else ():
                for key in ("matchActions", "matchReturnActions"):
                    found += [
                        document.problem(
                            ("spec", section, index, "selectors", place, key), f"holds {one['action']}: a recorder may only Post"
                        )
                        for one in selector.get(key, ())
                        if one["action"] not in _HARMLESS
                    ]
    return found


def no_destination() -> Refused:
    """There is something to bring home, and nobody says where."""
    return refuse("say where the recording is to go: destination (apiary_recording)")


class Home:
    """The directory of a recording on the controller. Several hosts are brought home at once, each by a process of its own."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)

    def begin(self, policies: Sequence[Mapping[str, Any]], described: Mapping[str, Any]) -> None:
        """Write the recording policies, under the names of one host, and what is known before events come."""
        (self.directory / "policies").mkdir(parents=True, exist_ok=True)
        for one in policies:
            document = {**one["document"], "metadata": {"name": one["name"]}}
            self._write(f"policies/{one['name']}.yaml", canonical.to_yaml(document).encode())
        self._describe(lambda known: {**known, **described})

    def part(self, host: str, content: str, offset: int) -> int:
        """Add a part of a host's events (base64) at its place; returns where the next one begins."""
        part = base64.b64decode(content)
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / f".{host}.part").open("r+b" if offset else "wb") as file:
            file.seek(offset)
            file.write(part)
        return offset + len(part)

    def finish(self, host: str, result: Mapping[str, Any]) -> None:
        """A host's events are complete: give them their name and note how they came about."""
        part = self.directory / f".{host}.part"
        if part.exists():
            part.replace(self.directory / f"{host}.jsonl.gz")
        self._describe(lambda known: {**known, "hosts": {**known.get("hosts", {}), host: dict(result)}})

    def _describe(self, change: Any) -> None:
        with (self.directory / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            path = self.directory / DESCRIPTION
            known = documents.load(path).data if path.exists() else {}
            self._write(DESCRIPTION, canonical.to_yaml(change(known)).encode())

    def _write(self, name: str, content: bytes) -> None:
        target = self.directory / name
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        temporary.write_bytes(content)
        temporary.replace(target)
