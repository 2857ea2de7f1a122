# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The demo: two rollouts over a lab of 24 hosts through the collection's own playbooks; the second one halts itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from fleet import Fleet

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
HOSTS, RATE = 24, 12.0
BAKE = "7s"
STARTED = time.monotonic()


def title(text: str) -> None:
    """A step of the demo, with the seconds since its start."""
    print(f"\n[{time.monotonic() - STARTED:3.0f} s] {text}", flush=True)


def lab_environment(source: Path, target: Path, extra: list[dict[str, Any]]) -> Path:
    """An example environment with bakes short enough for a demo, limits that fit them, and more policies."""
    content = yaml.safe_load(source.read_text(encoding="utf-8"))
    content["policies"] += extra
    content["rings"][0]["take"] = 2
    content["gates"] |= {"bake": BAKE, "control": 6, "event_burst": 5, "failed_units": False}
    target.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return target


class Demo:
    """One run of the demo in a directory of its own."""

    def __init__(self, directory: Path, collections: Path) -> None:
        self.directory = directory
        self.fleet = Fleet(directory / "lab", HOSTS, RATE)
        self.shared = {
            "apiary_bundle_dir": str(directory / "bundles"),
            "apiary_ledger_dir": str(directory / "ledger"),
            "apiary_report_dir": str(directory / "reports"),
            "apiary_cache_dir": str(directory / "cache"),
            "apiary_policy_path": [str(HERE / "policies")],
        }
        self.environment = {
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(collections),
            "ANSIBLE_STDOUT_CALLBACK": "apiary.tetragon.rings",
            "ANSIBLE_FORKS": "4",
            "ANSIBLE_INVENTORY_UNPARSED_WARNING": "false",
            "ANSIBLE_LOCALHOST_WARNING": "false",
            "ANSIBLE_NOCOWS": "1",
            "PYTHONUNBUFFERED": "1",
        }

    def play(self, playbook: str, **variables: object) -> int:
        """Run one of the collection's playbooks over the lab; returns its exit code."""
        command = [
            str(Path(sys.executable).with_name("ansible-playbook")),
            f"apiary.tetragon.{playbook}",
            "--inventory",
            str(self.fleet.inventory),
            "--extra-vars",
            json.dumps({**self.shared, **variables}),
        ]
        return subprocess.run(command, env=self.environment, cwd=self.directory, check=False).returncode

    def bundle(self, environment: Path, **variables: object) -> Path:
        """Build an environment's bundle; returns its directory."""
        before = set((self.directory / "bundles").glob("*-*"))
        if self.play("bundle", apiary_environment=str(environment), **variables) != 0:
            raise SystemExit("demo: a bundle could not be built")
        return next(iter(set((self.directory / "bundles").glob("*-*")) - before))

    def run(self) -> None:
        title("The example environments, rendered and checked")
        self.bundle(REPOSITORY / "environments/production.yml")
        good_environment = lab_environment(REPOSITORY / "environments/staging.yml", self.directory / "staging.yml", [])
        good = self.bundle(good_environment)
        title("The first rollout")
        if self.play("rollout", apiary_environment=str(good_environment), apiary_bundle=str(good)) != 0:
            raise SystemExit("demo: the first rollout was meant to finish")
        title("A second bundle: one policy more, right by every static check")
        extra = [{"policy": "file/config-reads", "mode": "monitor"}]
        bad_environment = lab_environment(REPOSITORY / "environments/staging.yml", self.directory / "staging-next.yml", extra)
        bad = self.bundle(bad_environment, apiary_against=str(good))
        title("The second rollout")
        if self.play("rollout", apiary_environment=str(bad_environment), apiary_bundle=str(bad)) == 0:
            raise SystemExit("demo: the second rollout was meant to halt")
        title("What runs where now")
        if self.play("status", apiary_environment=str(bad_environment)) != 0:
            raise SystemExit("demo: the status could not be told")
        self.summary()

    def summary(self) -> None:
        """The two rollouts in a few lines, from the data beside their reports."""
        title("Summary")
        for path in sorted((self.directory / "reports").glob("rollout-*.json")):
            data = json.loads(path.read_text(encoding="utf-8"))
            changed = sum(ring["hosts"] for ring in data["rings"] if ring["verdict"])
            print(f"  {data['run']}: {data['outcome']}; {changed} of {len(data['hosts'])} hosts were changed")
            for ring in data["rings"]:
                print(f"    {ring['name']:<8} {ring['hosts']:>3} hosts  {ring['state']}")
            if data["reason"]:
                print(f"    why: {data['reason']}")
            print(f"    report: {path.with_suffix('.html')}")


def main() -> None:
    """``demo.py DIRECTORY COLLECTIONS``."""
    demo = Demo(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
    title(f"A lab of {HOSTS} hosts on this machine: an agent on each, and {RATE:g} acts a second to watch")
    with demo.fleet:
        demo.run()


if __name__ == "__main__":
    main()
