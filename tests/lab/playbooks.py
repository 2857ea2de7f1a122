# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""A controller's working directory: environment files, bundles, ledger, reports, and the playbooks that make them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml

from ansible_collections.apiary.tetragon.plugins.plugin_utils import bundle, environment
from ansible_collections.apiary.tetragon.plugins.plugin_utils.build import build
from ansible_collections.apiary.tetragon.plugins.plugin_utils.fleet.ledger import Ledger
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.load import Library

REPOSITORY = Path(__file__).parents[2]
RINGS = "apiary.tetragon.rings"


@dataclass(frozen=True)
class Played:
    """A finished ansible-playbook: exit code and everything it printed."""

    code: int
    output: str


class Playbooks:
    """``defaults`` are the keys of an environment file that a case does not name; ``seconds``: for one playbook."""

    defaults: ClassVar[Mapping[str, Any]]
    seconds: ClassVar[int] = 300

    def __init__(self, directory: Path, inventory: Path) -> None:
        self.directory = directory
        self.inventory = inventory
        self.ledger = Ledger(directory / "ledger")

    def environment(self, name: str = "lab.yml", **changes: Any) -> Path:
        content = {"name": "lab", "agent_version": "1.7.0", **self.defaults, **changes}
        path = self.directory / name
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return path

    def bundle(self, path: Path) -> Path:
        library = Library([REPOSITORY / "tests/lab/policies", REPOSITORY / "policies"])
        return bundle.write(build(environment.load(path), library).bundle, self.directory / "bundles")

    def command(self, playbook: str, path: Path, *flags: str, **variables: Any) -> list[str]:
        known = {
            "apiary_environment": str(path),
            "apiary_bundle_dir": str(self.directory / "bundles"),
            "apiary_ledger_dir": str(self.directory / "ledger"),
            "apiary_report_dir": str(self.directory / "reports"),
        }
        program = str(Path(sys.executable).with_name("ansible-playbook"))
        extra = json.dumps({**known, **variables}, default=str)
        return [program, f"apiary.tetragon.{playbook}", "-i", str(self.inventory), "-e", extra, *flags]

    @property
    def variables(self) -> dict[str, str]:
        return {
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(os.environ.get("ANSIBLE_COLLECTIONS_PATH") or REPOSITORY / ".build/collections"),
            "ANSIBLE_STDOUT_CALLBACK": RINGS,
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_HOME": str(self.directory / "ansible"),
        }

    def play(self, playbook: str, path: Path, *flags: str, callback: str = RINGS, **variables: Any) -> Played:
        done = subprocess.run(
            self.command(playbook, path, *flags, **variables),
            env={**self.variables, "ANSIBLE_STDOUT_CALLBACK": callback},
            cwd=self.directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=self.seconds,
        )
        return Played(done.returncode, done.stdout)

    def start(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start a playbook in a session of its own, to be killed with all its children; it writes to ``output``."""
        with (self.directory / "output").open("wb") as output:
            return subprocess.Popen(command, env=self.variables, cwd=self.directory, stdout=output, stderr=output, start_new_session=True)

    def rollout(self, path: Path, chosen: Path, *flags: str, **variables: Any) -> Played:
        return self.play("rollout", path, *flags, apiary_bundle=chosen, **variables)

    def kinds(self) -> list[str]:
        return [entry["kind"] for entry in self.ledger.read()]

    def runs(self) -> set[Path]:
        """The directories of all runs."""
        return set((self.directory / "ledger/runs").glob("*"))

    def milestones(self, former: Set[Path]) -> set[str]:
        """Everything durable that the newest run after ``former`` has left so far, named without run and host."""
        runs = sorted(self.runs() - former, key=lambda run: run.stat().st_mtime_ns)
        if not runs:
            return set()
        # What a run removes meanwhile is passed over, as os.walk does.
        files = {
            str(Path(place, name).relative_to(runs[-1]))
            for place, _folders, names in os.walk(runs[-1])
            for name in names
            if name.endswith((".json", ".yml"))
        }
        lines = [json.loads(line) for line in (self.directory / "ledger/ledger.jsonl").read_bytes().split(b"\n")[:-1]]
        entries = {f"{line['kind']} {line.get('ring', '')}" for line in lines if line["run"] == runs[-1].name}
        return {re.sub(r"host\d\d", "host", name) for name in files} | entries

    def report(self) -> dict[str, Any]:
        newest = max((self.directory / "reports").glob("rollout-*.json"), key=lambda path: path.stat().st_mtime_ns)
        content: dict[str, Any] = json.loads(newest.read_text(encoding="utf-8"))
        assert newest.with_suffix(".html").stat().st_size > 1000
        return content
