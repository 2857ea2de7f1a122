# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""What measurements share: results with goals, and playbooks run for their CPU seconds."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Result:
    """One measurement: what was reached, and the goal it is held against."""

    name: str
    value: float
    unit: str
    goal: str
    good: bool
    detail: str


@dataclass(frozen=True)
class Play:
    """One run of a playbook: CPU seconds of the controller's whole process tree, and what it printed."""

    cpu: float
    output: str


class Plays:
    """Runs playbooks in a directory, against a tree of collections."""

    def __init__(self, directory: Path, collections: Path, **environment: str) -> None:
        self.directory = directory
        self.environment = {
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(collections),
            "ANSIBLE_FORKS": "4",
            "ANSIBLE_LOCALHOST_WARNING": "false",
            "ANSIBLE_INVENTORY_UNPARSED_WARNING": "false",
            "ANSIBLE_NOCOLOR": "true",
            "PYTHONPATH": str(collections),
            **environment,
        }

    def play(self, playbook: Path | str, inventory: Path | None, **variables: object) -> Play:
        """Run a playbook. Ends the program when the play fails."""
        command = [str(Path(sys.executable).with_name("ansible-playbook")), str(playbook), "--extra-vars", json.dumps(variables)]
        if inventory:
            command += ["--inventory", str(inventory)]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, env=self.environment, cwd=self.directory, capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            raise SystemExit(f"bench: {playbook} failed:\n{done.stdout[-3000:]}{done.stderr[-1000:]}")
        return Play(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout)


def report(measures: Iterable[Callable[[], list[Result]]], file: Path) -> bool:
    """Take the measurements, print each with its goal, and write them all to a file. Returns whether all goals were reached."""
    results = []
    for measure in measures:
        for result in measure():
            verdict = "ok  " if result.good else "MISS"
            print(f"{verdict}  {result.name:<46} {result.value:>8.3g} {result.unit:<3} goal {result.goal:<7} {result.detail}", flush=True)
            results.append(result)
    file.write_text(json.dumps([asdict(result) for result in results], indent=1), encoding="utf-8")
    return all(result.good for result in results)
