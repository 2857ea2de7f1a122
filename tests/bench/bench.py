# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The measurements that performance is judged by: ratios of two things measured in one run, and a few absolute costs.

Of policies here; of the agent on hosts in ``hosts.py``.

``bench.py DIRECTORY COLLECTIONS`` prints a table and writes ``bench.json``. Hosts are stand-in agents on this machine,
so what is compared is the cost on the controller and on the hosts together.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
sys.path.insert(0, str(HERE.parent / "lab"))

from fleet import Fleet  # noqa: E402
from measure import Plays, Result, report  # noqa: E402

POLICIES, ENVIRONMENTS = 40, 20
MANY_HOSTS, FEW_HOSTS, PLANNED_HOSTS = 100, 5, 10_000
RECORDED_EVENTS, RECORDED_FILES = 1_000_000, 20
REPEATS = 3
SOURCES = sorted(path.parent for path in (REPOSITORY / "policies").glob("*/*/meta.yml"))


def forty(library: Path, sources: Sequence[Path]) -> dict[str, str]:
    """Fill a library with copies of these policies under names of their own; returns category/name -> name of the source."""
    made = {}
    for number in range(POLICIES):
        source = sources[number % len(sources)]
        name = f"p{number:02d}"
        target = library / source.parent.name / name
        shutil.copytree(source, target)
        template = target / "policy.yaml.j2"
        text = template.read_text(encoding="utf-8")
        template.write_text(text.replace(f"\n  name: {source.name}\n", f"\n  name: {name}\n"), encoding="utf-8")
        made[f"{source.parent.name}/{name}"] = source.name
    shutil.copytree(REPOSITORY / "policies/_macros", library / "_macros")
    return made


class Bench:
    """One run of all measurements in a directory of its own."""

    def __init__(self, directory: Path, collections: Path) -> None:
        self.directory = directory
        self.plays = Plays(directory, collections, ANSIBLE_STDOUT_CALLBACK="ansible.builtin.minimal")
        self.environment = self.plays.environment
        self.library = directory / "policies"
        self.policies = forty(self.library, SOURCES)

    def run(self) -> bool:
        measures = (self.render_and_check, self.plan_rings, self.replay, self.converge_nothing, self.converge_change)
        return report(measures, self.directory / "bench.json")

    def _environment(self, name: str, octet: int) -> Path:
        """An environment with all forty policies; ``octet`` makes its values its own."""
        values = {
            "c2-ranges": {"ranges": [f"198.51.{octet}.0/24"]},
            "egress-allowlist": {"allowed": [f"10.{octet}.0.0/16"]},
            "function-call": {"program": "/usr/bin/bash", "function": "change_flag", "first_argument": [octet]},
            "credential-writes": {"directories": [f"/srv/keys{octet}"]},
            "immutable-paths": {"directories": [f"/srv/image{octet}"]},
            "shell-in-container": {"allowed_starters": [f"/opt/app{octet}"]},
            "fileless-execution": {"exempt": [f"/opt/runtime{octet}"]},
        }
        entries = [{"policy": name, "mode": "monitor", "values": values.get(source, {})} for name, source in self.policies.items()]
        content = {
            "name": name,
            "agent_version": "1.7.0",
            "policies": entries,
            "rings": [{"name": "all", "take": "rest"}],
        }
        path = self.directory / f"{name}.yml"
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return path

    def _play(self, playbook: Path | str, inventory: Path | None, **variables: object) -> float:
        """CPU seconds of a playbook's run."""
        return self.plays.play(playbook, inventory, **variables).cpu

    def _bundle(self, environment: Path) -> Path:
        target = self.directory / "bundles"
        before = set(target.glob("*"))
        self._play("apiary.tetragon.bundle", None, apiary_environment=str(environment), apiary_policy_path=[str(self.library)],
                   apiary_bundle_dir=str(target), apiary_cache_dir=str(self.directory / "cache"))  # fmt: skip
        return next(iter(set(target.glob("*")) - before))

    def render_and_check(self) -> list[Result]:
        files = [self._environment(f"env{number:02d}", number) for number in range(ENVIRONMENTS)]
        script = (
            "import sys, time\n"
            "from ansible_collections.apiary.tetragon.plugins.plugin_utils import environment, build\n"
            "from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy import cache, load\n"
            "library, kept = load.Library([sys.argv[1]]), cache.Cache(sys.argv[2])\n"
            "start = time.perf_counter()\n"
            "for path in sys.argv[3:]:\n"
            "    build.build(environment.load(path), library, kept)\n"
            "print(time.perf_counter() - start)\n"
        )
        kept = self.directory / "render-cache"
        command = [sys.executable, "-c", script, str(self.library), str(kept), *map(str, files)]

        def seconds() -> float:
            return float(subprocess.run(command, env=self.environment, capture_output=True, text=True, check=True).stdout)

        cold = seconds()
        warm = min(seconds() for _unused in range(REPEATS))
        what = f"{POLICIES} policies x {ENVIRONMENTS} environments, all values different"
        return [
            Result("render and check, cold", cold, "s", "<= 10", cold <= 10, what),
            Result("render and check, nothing changed", warm, "s", "<= 2", warm <= 2, what),
        ]

    def plan_rings(self) -> list[Result]:
        script = (
            "import resource, sys, time\n"
            "from ansible_collections.apiary.tetragon.plugins.plugin_utils import environment\n"
            "from ansible_collections.apiary.tetragon.plugins.plugin_utils.fleet.rings import Member, plan_rings\n"
            "lab = environment.load(sys.argv[1])\n"
            "cells = [(f'6.{n}', arch, os) for n in range(8) for arch in ('x86_64', 'aarch64') for os in ('debian 12', 'rhel 9.4')]\n"
            f"members = [Member(f'node{{n:05d}}', frozenset([f'rack{{n % 40}}']), cells[n % len(cells)]) for n in range({PLANNED_HOSTS})]\n"
            "start = time.perf_counter()\n"
            "plan = plan_rings(lab, members)\n"
            "print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)\n"
        )
        lab = REPOSITORY / "environments/production.yml"
        done = subprocess.run([sys.executable, "-c", script, str(lab)], env=self.environment, capture_output=True, text=True, check=True)
        seconds, memory = map(float, done.stdout.split())
        return [
            Result("plan rings", seconds, "s", "<= 5", seconds <= 5, f"{PLANNED_HOSTS} hosts in 32 cells"),
            Result("plan rings, memory", memory, "MB", "<= 500", memory <= 500, "whole process"),
        ]

    def _replay_part(self, *arguments: object) -> dict[str, float]:
        command = [sys.executable, str(HERE / "replay.py"), *map(str, arguments)]
        done = subprocess.run(command, env=self.environment, stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout) if done.stdout else {}

    def replay(self) -> list[Result]:
        """CPU seconds throughout: ratios of the same events in one process, then whole processes.

        Two busy processes cost each other time by what they share of the machine (caches, hyperthreads): what a second process
        gains is held against two separate replays of half the files each.
        """
        place = self.directory / "recording"
        self._replay_part("make", place, RECORDED_FILES, RECORDED_EVENTS // RECORDED_FILES)
        files = sorted(place.iterdir())
        small = self.directory / "small"
        self._replay_part("make", small, 1, 5000)
        cold = min(self._replay_part("run", 1, *small.iterdir())["cpu"] for _unused in range(REPEATS))
        rates = self._replay_part("compare", place)
        few, one, two = (
            self._replay_part("run", workers, *some) for workers, some in ((1, files[: len(files) // 4]), (1, files), (2, files))
        )
        with ThreadPoolExecutor(2) as pool:
            apart = sum(half["replay"] for half in pool.map(lambda half: self._replay_part("run", 1, *half), (files[::2], files[1::2])))
        shutil.rmtree(place)
        of_msgspec, of_orjson = rates["msgspec"] / rates["replay"], rates["orjson"] / rates["replay"]
        growth, speedup = one["memory"] / few["memory"], 2 * apart / two["replay"]
        shared = f"against two that share nothing, at the same time; {2 * one['replay'] / two['replay']:.2f} against one at a time"
        used = f"{one['memory']:.1f} : {few['memory']:.1f} MB"
        what = f"{POLICIES} policies x {RECORDED_EVENTS} events, {rates['replay'] / RECORDED_EVENTS * 1e6:.1f} us an event"
        return [
            Result("replay : decoding alone with msgspec", of_msgspec, "x", ">= 0.6", of_msgspec >= 0.6, f"throughput; {what}"),
            Result("replay : decoding alone with orjson", of_orjson, "x", "> 2", of_orjson > 2, "throughput"),
            Result("replay, memory of all files : of a quarter", growth, "x", "<= 1.1", growth <= 1.1, used),
            Result("replay, two processes : one", speedup, "x", ">= 1.8", speedup >= 1.8, shared),
            Result("replay, cold start", cold, "s", "<= 2", cold <= 2, "whole process, 5000 events"),
        ]

    def converge_nothing(self) -> list[Result]:
        """The same hosts, in turn: a play with one ping, a play with one converge that has nothing to change."""
        bundle = self._bundle(self._environment("many", 200))
        with Fleet(self.directory / "many", MANY_HOSTS) as fleet:
            self._play(HERE / "converge.yml", fleet.inventory, apiary_bundle=str(bundle))
            ratios = []
            for _unused in range(REPEATS):
                ours = self._play(HERE / "converge.yml", fleet.inventory, apiary_bundle=str(bundle))
                ping = self._play(HERE / "ping.yml", fleet.inventory)
                ratios.append(ours / ping)
        ratio = statistics.median(ratios)
        detail = f"{POLICIES} policies, {MANY_HOSTS} hosts, CPU seconds; runs: {', '.join(f'{one:.2f}' for one in ratios)}"
        return [Result("converge with nothing to change : ping", ratio, "x", "<= 1.5", ratio <= 1.5, detail)]

    def converge_change(self) -> list[Result]:
        """A new set on the same hosts: the usual playbook (template loop, tetra loop) against one converge task."""
        first, second = (self._bundle(self._environment(f"few{octet}", octet)) for octet in (201, 202))
        with Fleet(self.directory / "few", FEW_HOSTS) as fleet:
            self._play(HERE / "converge.yml", fleet.inventory, apiary_bundle=str(first))
            ours = self._play(HERE / "converge.yml", fleet.inventory, apiary_bundle=str(second))
            self._play(HERE / "converge.yml", fleet.inventory, apiary_bundle="")
            self._play(HERE / "usual.yml", fleet.inventory, bundle=str(first), former="")
            usual = self._play(HERE / "usual.yml", fleet.inventory, bundle=str(second), former=str(first))
        ratio = usual / ours
        detail = f"{POLICIES} policies, {FEW_HOSTS} hosts, CPU seconds {usual:.0f} : {ours:.1f}"
        return [Result("usual playbook : converge, one change", ratio, "x", ">= 15", ratio >= 15, detail)]


def main() -> None:
    """Command line."""
    directory, collections = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    sys.exit(not Bench(directory, collections).run())


if __name__ == "__main__":
    main()
