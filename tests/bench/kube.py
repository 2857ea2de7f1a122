# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""A rollout of forty policies over the nodes of a large cluster, in four rings: what it asks of the API server, and costs.

``kube.py DIRECTORY [NODES]`` prints a table. Control plane and controller share this machine, so seconds are theirs
together; requests and memory are the controller's alone.
"""

from __future__ import annotations

import collections
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "kube")]

from bench import SOURCES, Result, forty  # noqa: E402
from cluster import Cluster  # noqa: E402
from controller import Site  # noqa: E402

from ansible_collections.apiary.tetragon.plugins.plugin_utils import bundle, environment  # noqa: E402
from ansible_collections.apiary.tetragon.plugins.plugin_utils.build import build  # noqa: E402
from ansible_collections.apiary.tetragon.plugins.plugin_utils.fleet.ledger import Entry  # noqa: E402
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.load import Library  # noqa: E402

NODES = 4200
SHARES = {"canary": 0.0125, "early": 0.05, "half": 0.225}
CLUSTER = [one for one in SOURCES if one.name != "function-call"]  # which has a form for hosts alone
VALUES = {"c2-ranges": {"ranges": ["198.51.100.0/24"]}, "egress-allowlist": {"allowed": ["10.0.0.0/8"]}}


class Memory(threading.Thread):
    """The most memory that a process and all it started held, shared pages once, in MB, looked at twice a second."""

    def __init__(self, root: int) -> None:
        super().__init__(daemon=True)
        self.root = root
        self.peak = 0.0
        self.start()

    def run(self) -> None:
        while True:
            total = 0
            family = {self.root}
            for path in sorted(Path("/proc").glob("[0-9]*"), key=lambda one: int(one.name)):
                try:
                    if int(path.name) in family or int((path / "stat").read_text().rpartition(")")[2].split()[1]) in family:
                        family.add(int(path.name))
                        found = re.search(r"^Pss:\s+(\d+)", (path / "smaps_rollup").read_text(), re.MULTILINE)
                        total += int(found[1]) if found else 0
                except OSError:
                    continue
            if not total:
                return
            self.peak = max(self.peak, total / 1024)
            time.sleep(0.5)


def measure(directory: Path, count: int) -> list[Result]:
    library = directory / "policies"
    with Cluster(directory / "cluster") as cluster:
        sizes = {ring: max(1, round(count * share)) for ring, share in SHARES.items()}
        cluster.nodes(count, sizes)
        site = Site(directory, cluster, "tetragon")
        entries = [
            {"policy": name, "mode": "monitor", "form": "cluster", "values": VALUES.get(source, {})}
            for name, source in forty(library, CLUSTER).items()
        ]
        rings = [{"name": name, "take": size, "batch": "100%"} for name, size in sizes.items()]
        path = site.environment(
            policies=entries,
            rings=[*rings, {"name": "fleet", "take": "rest", "batch": "10%"}],
            gates={"bake": "1s", "control": 20, "cpu_cores": False, "memory_mib": False},
        )
        chosen = bundle.write(build(environment.load(path), Library([library])).bundle, directory / "bundles")
        site.write_inventory(apiary_kube_stall=300)
        site.install(path)
        before = cluster.requests()
        began = time.monotonic()
        process = site.start(site.command("rollout", path, apiary_bundle=chosen))
        memory = Memory(process.pid)
        if process.wait():
            raise SystemExit(f"bench: the rollout failed:\n{(directory / 'output').read_text()[-3000:]}")
        seconds = time.monotonic() - began
        asked = cluster.requests() - before
        return _results(site.ledger.read(), asked, memory.peak, seconds, count, len(entries))


def _results(
    entries: list[Entry], asked: collections.Counter[tuple[str, str]], memory: float, seconds: float, nodes: int, policies: int
) -> list[Result]:
    sweeps = asked["get", "pods/proxy"]
    total = sum(asked.values())
    what = f"{policies} policies, {nodes} nodes, helm's requests and {sweeps / nodes:.2f} reads of metrics a node in it"
    ring = (total - nodes) / nodes
    times = {one["ring"]: one["time"] for one in entries if one["kind"] == "ring-started"}
    return [
        Result("rollout over a cluster, requests a node and ring", ring, "", "<= 3", ring <= 3, f"beside one at the start; {what}"),
        Result(
            "rollout over a cluster, memory of the controller", memory, "MB", "< 500", memory < 500, "all its processes, shared pages once"
        ),
        Result(
            "rollout over a cluster",
            seconds,
            "s",
            "",
            True,
            f"rings began at {', '.join(f'{ring} {at[11:19]}' for ring, at in times.items())}",
        ),
    ]


def main() -> None:
    """Command line."""
    directory = Path(sys.argv[1]).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    results = measure(directory, int(sys.argv[2]) if len(sys.argv) > 2 else NODES)
    for one in results:
        print(
            f"{'ok  ' if one.good else 'MISS'}  {one.name:<50} {one.value:>8.3g} {one.unit:<3} goal {one.goal:<7} {one.detail}", flush=True
        )
    sys.exit(not all(one.good for one in results))


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"bench: {error}")
