# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""One cluster's part in a run: what the rollout's steps do to it and read of it.

Everything a step needs lies in the run's directory, the ledger and the cluster, so that a run that was killed anywhere is
continued by the next one.
"""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils import bundle as bundles
from ansible_collections.apiary.tetragon.plugins.plugin_utils import environment as environments
from ansible_collections.apiary.tetragon.plugins.plugin_utils import files
from ansible_collections.apiary.tetragon.plugins.plugin_utils.fleet import gates
from ansible_collections.apiary.tetragon.plugins.plugin_utils.fleet.run import Run
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube import change, lease, observe, prune, records, truth, values
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube import helm as helms
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.client import Api, ApiError, Place
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.rings import Node, check_overlap, cluster_of, is_node, rings_of
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Refused, few, refuse

MAX_NAMED = 3
# For how long what was seen of a node at the start of a run stands for what it was before its ring.
STANDS = datetime.timedelta(hours=6)
_RENEW = 30.0
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Cluster:
    """A cluster of the inventory: where it is, its groups, and what works on it. ``timeout``: seconds without a further node."""

    place: Place
    groups: tuple[str, ...]
    program: str = "helm"
    timeout: float = 600.0
    digests: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def api(self) -> Api:
        return Api(self.place)

    @cached_property
    def helm(self) -> helms.Helm:
        return helms.Helm(self.place, self.program)

    def rings(self, environment: environments.Environment) -> tuple[str, ...]:
        return rings_of(environment, self.place.name, self.groups)


def check_bundle(environment: environments.Environment, chosen: bundles.Bundle | None) -> None:
    """Refuse a bundle whose policies were checked for another agent than the environment gives the nodes."""
    if chosen is not None and chosen.manifest["agent_version"] != environment.agent_version:
        raise refuse(
            f"is {environment.agent_version!r}, and bundle {chosen.name} was checked for {chosen.manifest['agent_version']}, whose fields "
            "the other may not know: build the bundle again",
            file=environment.file,
            path="agent_version",
        )


def entry_of(
    cluster: Cluster, environment: environments.Environment, entry: Mapping[str, Any], chosen: bundles.Bundle | None
) -> dict[str, Any]:
    """A ring's values with what a bundle has for this cluster."""
    batch = next(ring.batch for ring in environment.rings if ring.name == entry["name"])
    return values.with_bundle(entry, chosen, cluster.groups, batch, cluster.digests)


def try_change(
    cluster: Cluster, environment: environments.Environment, release: helms.Release, chosen: bundles.Bundle | None
) -> list[dict[str, Any]]:
    """Every ring's values after a whole change, which is tried and not made. Raises Refused when it could not be, ring by ring."""
    helm = cluster.helm
    deployed = helm.manifest()
    wanted = dict(release.values)
    entries = [entry_of(cluster, environment, entry, chosen) for entry in release.values["rings"]]
    others = values.touched(helm.render(values.with_ring(wanted, entries[0])), deployed, entries[0]["name"])
    if others:
        raise change.other_chart(cluster.place.name, others)
    for entry in entries:
        wanted = values.with_ring(wanted, entry)
    helms.dry_run(cluster.api, helm.render(wanted), deployed)
    return entries


class Part:
    """A cluster in one run."""

    def __init__(self, cluster: Cluster, run: Run, tell: Tell, break_lock: str = "") -> None:
        self.cluster = cluster
        self.run = run
        self.name = cluster.place.name
        self.rings = cluster.rings(run.environment)
        self._tell = tell
        self._break = break_lock
        self._renewed = 0.0

    def tell(self, text: str) -> None:
        self._tell(f"    {self.name}: {text}")

    # --- steps ------------------------------------------------------------------------------------------------------

    def observe_fleet(self) -> int:
        """Take the lease, try the whole change on the API server, and record every node; returns how many there are."""
        cluster, api = self.cluster, self.cluster.api
        check_bundle(self.run.environment, self.run.bundle)
        cluster.helm.version()
        self._hold(now=True)
        release = change.installed(api, cluster.helm, self.rings)
        nodes = observe.nodes(api, self.rings)
        pods = observe.pods(api)
        check_overlap(self.name, {node: [pod.owner for pod in found if not pod.ending] for node, found in pods.items()})
        try_change(cluster, self.run.environment, release, self.run.bundle)
        strays = sorted(node.name for node in nodes.values() if node.named and node.named not in self.rings)
        if strays:
            self.tell(f"{few(strays, MAX_NAMED)}: labelled with a ring that the environment does not give it, so in ring {self.rings[-1]}")
        self._record(self.run.directory / "fleet", observe.survey(api, nodes.values(), pods, ask=observe.asker(api)))
        return len(nodes)

    def observe(self, ring: str, phase: str) -> int:
        """Record the ring's nodes and those it is compared with; returns how many."""
        api = self.cluster.api
        self._hold()
        control = {member.partition("/")[2] for member in self.run.ring(ring).control if cluster_of(member) == self.name}
        nodes = observe.nodes(api, self.rings)
        members = [node for node in nodes.values() if node.ring == ring or node.name in control]
        kept = self._seen(node for node in members if node.ring == ring) if phase == "before" else {}
        asked = [node for node in members if node.name not in kept]
        blocks = self.run.environment.gates.blocks if phase == "end" else None
        found = {**kept, **observe.survey(api, asked, observe.pods(api) if asked else {}, blocks, observe.asker(api))}
        known = self.run.nodes(ring, "start", self.name) if phase == "end" else None
        for name, record in found.items():
            if known is not None and record["ring"] == ring and name not in known:
                found[name] = {"ring": ring, "held": "joined during the bake, which therefore says nothing of it"}
        self._record(self.run.ring_directory(ring) / phase, found)
        return len(found)

    def change(self, ring: str) -> bool:
        """Bring a ring to the run's bundle and record its nodes; whether anything changed. Raises Refused when a node is not on it."""
        release = self._installed(ring)
        former = values.given_ring(release.values, ring)
        kept = self._former(ring)
        if not kept.exists():
            files.write(kept, json.dumps(former))
        changed, found = self._bring(release, self._entry(former, self.run.bundle))
        self._record(self.run.ring_directory(ring) / "start", found)
        self._publish(ring, self.run.facts["digest"], self.run.bundle, found, truth.PROGRESSING, "the ring bakes")
        self._refuse_failed(found)
        return changed

    def back(self, ring: str) -> bool:
        """Return every ring of this cluster that goes back when ``ring`` fails to the former bundle; whether anything changed."""
        changed, found = False, {}
        for one in self.run.rings_to_roll_back(ring, self.name):
            release = self._installed(one)
            entry = values.given_ring(release.values, one)
            kept = self._former(one)
            former = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else entry
            moved, seen = self._bring(release, self._entry(former, self.run.previous))
            changed = changed or moved
            found.update(seen)
            self._record(self.run.ring_directory(ring) / "back", found)
        self._refuse_failed(found)
        return changed

    def publish(self, ring: str) -> str:
        """Publish the truth of a ring that was judged; returns the verdict."""
        verdict = self.run.verdict(ring)
        reason = verdict.reasons[0] if verdict.reasons else ""
        went_back = verdict.status == gates.FAIL
        found = (self.run.nodes(ring, "back" if went_back else "end", self.name) or {}) if ring in self.rings else {}
        mine = {node: record for node, record in found.items() if record["ring"] == ring}
        digest, chosen = self.run.facts["digest"], self.run.bundle
        if went_back:
            digest, chosen, reason = self.run.facts["previous_digest"], self.run.previous, f"went back to the former bundle: {reason}"
        elif verdict.status == gates.INCONCLUSIVE:
            reason = f"halted: {reason}"
        state = truth.HEALTHY if verdict.status == gates.PASS else truth.DEGRADED
        return self._publish(ring, digest, chosen, mine, state, reason)

    def end(self) -> None:
        """Remove what no set needs any more, which may fail, and give the lease back."""
        try:
            removed = prune.prune(self.cluster.api, datetime.datetime.now(datetime.UTC))
            if removed:
                self.tell(f"{len(removed)} ConfigMaps that nothing uses any more are removed")
        except (ApiError, Refused) as error:
            self.tell(f"ConfigMaps that nothing uses any more may be left: {error}")
        lease.release(self.cluster.api, self.run.name)

    # --- their parts ------------------------------------------------------------------------------------------------

    def _former(self, ring: str) -> Path:
        return self.run.directory / "former" / f"{self.name}-{ring}.json"

    def _seen(self, members: Iterable[Node]) -> dict[str, dict[str, Any]]:
        """The records of these nodes from the start of the run that still stand, with the troubles that their nodes have now."""
        known = self.run.fleet_nodes(self.name) or {}
        oldest = (datetime.datetime.now(datetime.UTC) - STANDS).isoformat()
        found = {}
        for node in members:
            record = known.get(node.name, {})
            if node.ready and record.get("time", "") > oldest:
                found[node.name] = {**record, "health": {**record["health"], "failed_units": list(node.troubles)}}
        return found

    def _installed(self, ring: str) -> helms.Release:
        self._hold(now=True)
        if ring not in self.rings:
            raise refuse(f"has no ring {ring}: its rings are {', '.join(self.rings)}", path=f"cluster {self.name}")
        return change.installed(self.cluster.api, self.cluster.helm, self.rings)

    def _entry(self, entry: Mapping[str, Any], chosen: bundles.Bundle | None) -> dict[str, Any]:
        return entry_of(self.cluster, self.run.environment, entry, chosen)

    def _bring(self, release: helms.Release, entry: Mapping[str, Any]) -> tuple[bool, dict[str, dict[str, Any]]]:
        """Give a ring its values, count its nodes, and observe those that run the set."""
        ring, api = str(entry["name"]), self.cluster.api
        changed = change.apply(api, self.cluster.helm, release, entry)
        counted = change.await_ring(api, ring, self.rings, self.cluster.timeout, self.tell, self._hold)
        nodes = observe.nodes(api, self.rings, ring)
        chosen = {name: (nodes[name], pod) for name, pod in counted.new.items() if name in nodes}
        found = observe.sweep(api, chosen, {ring: str(entry["bundle"])}, ask=observe.asker(api))
        return changed, {**found, **change.outcome(counted, ring, self.cluster.timeout)}

    def _hold(self, now: bool = False) -> None:
        """Keep the lease: it lasts over the longest that a run is silent."""
        if not now and time.monotonic() - self._renewed < _RENEW:
            return
        longest = max(ring.bake for ring in self.run.environment.rings)
        lease.take(self.cluster.api, self.run.name, int(longest + self.cluster.timeout) + lease.MARGIN, (*self._ours(), self._break))
        self._renewed = time.monotonic()

    def _ours(self) -> Iterable[str]:
        """Former runs of this environment here: whoever holds its lock knows that they have ended."""
        for path in self.run.directory.parent.glob("*/run.json"):
            if json.loads(path.read_text(encoding="utf-8"))["environment"] == self.run.facts["environment"]:
                yield path.parent.name

    def _publish(
        self,
        ring: str,
        digest: str,
        chosen: bundles.Bundle | None,
        found: Mapping[str, records.Record],
        verdict: str,
        reason: str,
    ) -> str:
        expected = chosen.policies_for(self.cluster.groups, values.FORM) if chosen else []
        document = truth.of_ring(ring, digest, expected, found, verdict, reason)
        truth.publish(self.cluster.api, document)
        return str(document["verdict"])

    def _record(self, directory: Path, found: Mapping[str, records.Record]) -> None:
        records.write(records.path_of(directory, self.name), found)

    def _refuse_failed(self, found: Mapping[str, records.Record]) -> None:
        failed = {node: str(record["failed"]) for node, record in found.items() if "failed" in record}
        if failed:
            named = "; ".join(f"{node}: {why}" for node, why in sorted(failed.items())[:MAX_NAMED])
            raise refuse(f"{len(failed)} of {len(found)} nodes: {named}", path=f"cluster {self.name}")


def fail_nodes(run: Run, cluster: str, ring: str, phase: str, error: Refused) -> None:
    """Record why a ring's change could not be made at all, for every node of it."""
    path = records.path_of(run.ring_directory(ring) / phase, cluster)
    if path.exists():
        return
    planned = [member.partition("/")[2] for member in run.ring(ring).hosts if is_node(member) and cluster_of(member) == cluster]
    records.write(path, {node: {"ring": ring, "failed": str(error)} for node in planned})
