# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""One rollout on the controller: its directory, its place in the ledger, and the steps that a playbook calls.

Everything a step needs lies in the run's directory or in the ledger, so that a run that was killed anywhere is
continued by the next one.
"""

from __future__ import annotations

import datetime
import getpass
import heapq
import json
import platform
import secrets
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils import bundle as bundles
from ansible_collections.apiary.tetragon.plugins.plugin_utils import canonical, files
from ansible_collections.apiary.tetragon.plugins.plugin_utils import environment as environments
from ansible_collections.apiary.tetragon.plugins.plugin_utils.fleet import gates
from ansible_collections.apiary.tetragon.plugins.plugin_utils.fleet.ledger import Ledger, Lock, Progress, now, process_start, progress
from ansible_collections.apiary.tetragon.plugins.plugin_utils.fleet.rings import Member, Plan, RingPlan, budget, cell_of, plan_rings
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube import records
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.rings import GROUP, cluster_of, is_node, rings_of
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Problem, Refused, few, refuse

MAX_NAMED = 5
MAX_POINTS = 50


@dataclass(frozen=True)
class Request:
    """What a rollout is asked to do. ``bundle`` is a directory; with ``back`` it is found in the ledger instead."""

    environment: str
    bundle: str
    ledger_dir: str
    bundle_dir: str
    back: bool = False
    retry: bool = False
    break_lock: str = ""


@dataclass(frozen=True)
class Target:
    """Where a rollout leads. ``bundle`` and ``previous`` are directories; empty ones stand for no policies."""

    environment: environments.Environment
    stand: Progress
    bundle: str
    digest: str
    previous: str

    @property
    def run(self) -> str:
        """The run that did not finish and leads to the same bundle; empty when there is none to take up."""
        stand = self.stand
        return stand.run if stand.bundle == self.digest and stand.halted != gates.FAIL else ""


def find_target(request: Request) -> Target:
    """What a request comes to, from its files and the ledger; changes nothing. Raises Refused."""
    wanted = environments.load(request.environment)
    stand = progress(Ledger(request.ledger_dir).read(), wanted.name)
    path = request.bundle
    if request.back:
        if not stand.run and not stand.current:
            raise refuse(f"environment {wanted.name} was never rolled out: there is nothing to roll back", file=request.ledger_dir)
        path = _bundle_path(request, wanted.name, stand.current if stand.run else stand.former)
    chosen = bundles.read(path) if path else None
    digest = chosen.digest if chosen else ""
    if chosen is None and not request.back:
        raise refuse("no bundle is named: set apiary_bundle to the directory that the playbook apiary.tetragon.bundle wrote")
    if chosen and chosen.environment != wanted.name:
        raise refuse(f"is a bundle of environment {chosen.environment!r}, not of {wanted.name!r}", file=path)
    if stand.bundle == digest and stand.halted == gates.FAIL and not request.retry:
        raise refuse(
            f"bundle {bundles.label(digest)} failed its gate before ({stand.reason}): build a changed bundle, "
            "or run again with -e apiary_retry=true",
            file=path,
        )
    return Target(wanted, stand, str(Path(path).resolve()) if path else "", digest, _bundle_path(request, wanted.name, stand.current))


class Run:
    """One run, identified by its directory ``<ledger>/runs/<run>``."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.name = self.directory.name
        self.facts: dict[str, Any] = json.loads((self.directory / "run.json").read_text(encoding="utf-8"))
        self.ledger = Ledger(self.directory.parent.parent)
        self._kept: dict[Path, tuple[int, dict[str, dict[str, Any]] | None]] = {}
        self._expected: dict[tuple[str, str], list[dict[str, Any]]] = {}

    @cached_property
    def environment(self) -> environments.Environment:
        """The environment as it was when the run began."""
        return environments.load(self.directory / "environment.yml", shown_as=self.facts["environment_file"])

    @cached_property
    def bundle(self) -> bundles.Bundle | None:
        return bundles.read(self.facts["bundle"]) if self.facts["bundle"] else None

    @cached_property
    def previous(self) -> bundles.Bundle | None:
        """The bundle that a roll-back returns to."""
        return bundles.read(self.facts["previous"]) if self.facts["previous"] else None

    # --- steps ------------------------------------------------------------------------------------------------------

    @staticmethod
    def begin(request: Request, owner: int) -> Run:
        """Take the lock (for process ``owner``) and start a run, or take up the one that did not finish."""
        target = find_target(request)
        name, run = target.environment.name, target.run or _new_name()
        lock = Lock(request.ledger_dir, name)
        lock.take(_holder(run, owner), request.break_lock)
        try:
            # A rollout that ended between the look at the ledger and the lock has moved the target.
            now_target = find_target(request)
            if now_target.run != target.run:
                lock.release(run)
                run = now_target.run or _new_name()
                lock.take(_holder(run, owner), request.break_lock)
            return Run._prepared(request, now_target, run)
        except Refused:
            lock.release(run)
            raise

    @staticmethod
    def _prepared(request: Request, target: Target, run: str) -> Run:
        """The run's directory, new or taken up."""
        ledger, name = Ledger(request.ledger_dir), target.environment.name
        directory = Path(request.ledger_dir).resolve() / "runs" / run
        files.write(directory / "environment.yml", Path(request.environment).read_text(encoding="utf-8"))
        if target.run and (directory / "run.json").exists():
            ledger.append("rollout-resumed", run=run, environment=name, bundle=target.digest)
            return Run(directory)
        _write(
            directory / "run.json",
            {
                "run": run,
                "environment": name,
                "environment_file": str(Path(request.environment).resolve()),
                "bundle": target.bundle,
                "digest": target.digest,
                "previous": target.previous,
                "previous_digest": target.stand.current,
                "started": now(),
                "back": request.back,
            },
        )
        return Run(directory)

    def plan(self, hosts: Mapping[str, Iterable[str]]) -> Plan:
        """Divide ``hosts`` (name to inventory groups) into rings by what they showed; record the start of the run.

        A run that is taken up keeps its plan when the hosts are the same; otherwise it starts again from ring one.
        """
        groups = {name: frozenset(members) for name, members in hosts.items()}
        members = [member for name in sorted(groups) for member in self._members(name, groups[name])]
        plan = plan_rings(self.environment, members)
        self._check_capabilities(plan, groups)
        stand = self.stand()
        digest = canonical.digest([_lasting(plan).to_json(), sorted((name, sorted(member)) for name, member in groups.items())])
        if stand.run != self.name or stand.plan != digest:
            _write(
                self.directory / "plan.json",
                {
                    **plan.to_json(),
                    "groups": {name: sorted(member) for name, member in groups.items()},
                    "exposed": self._still_exposed(stand.passed if stand.run == self.name else ()),
                },
            )
            shutil.rmtree(self.directory / "rings", ignore_errors=True)
            self._note(
                "rollout-started",
                bundle=self.facts["digest"],
                previous=self.facts["previous_digest"],
                plan=digest,
            )
        return plan

    def ring_begins(self, ring: str) -> str:
        """Begin a ring, or take it up; returns ``passed``, ``failed`` (its roll-back is still to do) or ``open``."""
        stand = self.stand()
        if ring in stand.passed:
            return "passed"
        if stand.failing == ring:
            return "failed"
        for phase in ("start", "end", "back"):
            shutil.rmtree(self.ring_directory(ring) / phase, ignore_errors=True)
        self._note("ring-started", ring=ring)
        return "open"

    def batch_begins(self, ring: str, index: int) -> str:
        """Note that a batch is about to change; returns why it must not, or an empty string."""
        batches = self.ring(ring).batches
        reason = self.hindrance(ring, [host for batch in batches[:index] for host in batch])
        if not reason:
            _write(self.ring_directory(ring) / "batches" / f"{index}.json", list(batches[index]))
        return reason

    def hindrance(self, ring: str, hosts: Iterable[str]) -> str:
        """Why a ring need not go on: a change that failed, or more of these hosts lost than may be; empty when it may."""
        failed = self.errors(ring)
        if failed:
            return "; ".join(f"{host}: {error}" for host, error in sorted(failed.items())[:MAX_NAMED])
        begun = set(self.attempted(ring))
        lost = [host for host in hosts if host in begun and self.observation(ring, "start", host) is None]
        allowed = budget(self.environment.gates.unreachable, len(self.ring(ring).hosts))
        return f"{len(lost)} host(s) lost and {allowed} may be: {few(sorted(lost))}" if len(lost) > allowed else ""

    def judge(self, ring: str) -> gates.Verdict:
        """The gate's verdict over a ring, recorded with its readings; one that failed already stands."""
        if self.stand().failing == ring:
            return self.verdict(ring)
        plan = self.ring(ring)
        attempted, errors = self.attempted(ring), self.errors(ring)
        control = [self._control(ring, host) for host in plan.control]
        verdicts = []
        for kind in sorted({is_node(host) for host in attempted}):
            # Commands and URLs are tried on hosts; what a node can say of its health are its conditions.
            limits = replace(self.environment.gates, commands=(), urls=()) if kind else self.environment.gates
            evidence = [self._evidence(ring, host, errors.get(host, "")) for host in attempted if is_node(host) == kind]
            verdicts.append(gates.judge(limits, evidence, [host for host in control if is_node(host.name) == kind], plan.bake))
        verdict = gates.join(verdicts)
        _write(
            self.ring_directory(ring) / "gate.json",
            {
                "status": verdict.status,
                "reasons": list(verdict.reasons),
                "readings": [reading.to_json() for reading in _telling(verdict.readings)],
                "hosts": attempted,
                "control": [host.name for host in control if host.end is not None],
                "time": now(),
            },
        )
        self._note(
            "gate",
            ring=ring,
            verdict=verdict.status,
            reasons=list(verdict.reasons[:MAX_NAMED]),
            hosts=len(attempted),
            control=sum(host.end is not None for host in control),
        )
        return verdict

    def verdict(self, ring: str) -> gates.Verdict:
        """The verdict as it was recorded, without its readings."""
        known = json.loads((self.ring_directory(ring) / "gate.json").read_text(encoding="utf-8"))
        return gates.Verdict(known["status"], tuple(known["reasons"]), ())

    def to_roll_back(self, ring: str) -> list[str]:
        """The hosts that go back when this ring fails: its own, those that only a former plan changed, and those of earlier
        rings if the environment says so."""
        hosts = self.attempted(ring)
        hosts += [host for host in self._still_exposed(self.stand().passed) if host not in hosts]
        if self.environment.roll_back_all:
            for earlier in self.planned.rings:
                if earlier.name == ring:
                    break
                hosts += earlier.hosts
        return hosts

    def ring_passed(self, ring: str) -> None:
        self._note(
            "ring-passed",
            ring=ring,
            bundle=self.facts["digest"],
            hosts=self.attempted(ring),
        )

    def ring_failed(self, ring: str, verdict: str, reason: str) -> list[str]:
        """Record the halt, and what was rolled back; returns the hosts that are not back on the previous bundle."""
        stuck: list[str] = []
        if verdict == gates.FAIL:
            hosts = [host for host in self.to_roll_back(ring) if not self._has_left(ring, host)]
            stuck = [host for host in hosts if not self._is_back(ring, host)]
            self._note(
                "rolled-back",
                ring=ring,
                bundle=self.facts["previous_digest"],
                hosts=[host for host in hosts if host not in stuck],
                failed=stuck,
            )
        self._note("rollout-halted", ring=ring, verdict=verdict, reason=reason)
        return stuck

    def finish(self) -> None:
        self._note("rollout-finished", bundle=self.facts["digest"])

    def release(self) -> None:
        """Give the environment's lock back."""
        Lock(self.ledger.directory, self.facts["environment"]).release(self.name)

    def _note(self, kind: str, **fields: Any) -> None:
        self.ledger.append(kind, run=self.name, environment=self.facts["environment"], **fields)

    # --- what a run knows -------------------------------------------------------------------------------------------

    def stand(self) -> Progress:
        return progress(self.ledger.read(), self.facts["environment"])

    @property
    def has_begun(self) -> bool:
        """Whether the ledger knows this run: it was planned, and hosts may have been changed."""
        return any(entry.get("run") == self.name for entry in self.ledger.read())

    @cached_property
    def planned(self) -> Plan:
        """The rings of this run, once they are planned."""
        return Plan.from_json(self._plan_file)

    def ring(self, name: str) -> RingPlan:
        return next(ring for ring in self.planned.rings if ring.name == name)

    def attempted(self, ring: str) -> list[str]:
        """Hosts of a ring whose change was begun, batch by batch, and the nodes that were in it when it was last looked at."""
        begun = sorted((self.ring_directory(ring) / "batches").glob("*.json"), key=lambda path: int(path.stem))
        members = [host for path in begun for host in json.loads(path.read_text(encoding="utf-8"))]
        clusters = dict.fromkeys(cluster_of(member) for member in members if is_node(member))
        nodes = [node for cluster in clusters for node in self._ring_nodes(ring, cluster, members)]
        return [member for member in members if not is_node(member)] + nodes

    def _ring_nodes(self, ring: str, cluster: str, planned: Sequence[str]) -> list[str]:
        """A cluster's nodes of a ring: those that the newest record has, without those that were not reached; or as planned."""
        for phase in ("end", "start"):
            seen = self.nodes(ring, phase, cluster)
            if seen is not None:
                out = {node for node, record in seen.items() if "lost" in record and f"{cluster}/{node}" in self.planned.left_out}
                mine = (node for node, record in seen.items() if record["ring"] == ring and "held" not in record)
                return [f"{cluster}/{node}" for node in mine if node not in out]
        return [member for member in planned if cluster_of(member) == cluster]

    @property
    def exposed(self) -> list[str]:
        """Hosts whose change was begun under a former plan of this run, without a gate that they passed."""
        hosts: list[str] = self._plan_file.get("exposed", [])
        return hosts

    def _still_exposed(self, passed: Sequence[str]) -> list[str]:
        """Hosts whose change was begun, under the plan as it is on disk or one before it, outside the rings that passed."""
        former = _read(self.directory / "plan.json")
        if former is None:
            return []
        rings = Plan.from_json(former).rings
        begun = [*former.get("exposed", ()), *(host for ring in rings for host in self.attempted(ring.name))]
        safe = {host for ring in rings if ring.name in passed for host in self.attempted(ring.name)}
        return [host for host in dict.fromkeys(begun) if host not in safe]

    def expected(self, host: str, bundle: bundles.Bundle | None) -> list[dict[str, Any]]:
        """The policies of a bundle for one host or node."""
        if bundle is None:
            return []
        key = (bundle.digest, cluster_of(host))
        if key not in self._expected:
            form = "cluster" if is_node(host) else "host"
            self._expected[key] = bundle.policies_for(self._plan_file["groups"].get(cluster_of(host), ()), form)
        return self._expected[key]

    def ring_directory(self, ring: str) -> Path:
        """Where the records of one ring lie: ``before``, ``start``, ``end`` and ``back``, each with a file per host."""
        return self.directory / "rings" / ring

    @cached_property
    def _plan_file(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.directory / "plan.json").read_text(encoding="utf-8"))
        return content

    def observation(self, ring: str, phase: str, host: str) -> dict[str, Any] | None:
        """A recorded observation; None when there is none or the recorded task failed."""
        if is_node(host):
            return _sound((self.nodes(ring, phase, cluster_of(host)) or {}).get(host.partition("/")[2]))
        return _sound(_read(self.ring_directory(ring) / phase / f"{host}.json"))

    def fleet_observation(self, host: str) -> dict[str, Any] | None:
        """The observation from the start of the run."""
        if is_node(host):
            return _sound((self.fleet_nodes(cluster_of(host)) or {}).get(host.partition("/")[2]))
        return _sound(_read(self.directory / "fleet" / f"{host}.json"))

    def nodes(self, ring: str, phase: str, cluster: str) -> dict[str, dict[str, Any]] | None:
        """The records of a cluster's nodes from one phase of a ring; None when there are none."""
        return self._records(self.ring_directory(ring) / phase, cluster)

    def fleet_nodes(self, cluster: str) -> dict[str, dict[str, Any]] | None:
        """The records of a cluster's nodes from the start of the run."""
        return self._records(self.directory / "fleet", cluster)

    def _records(self, directory: Path, cluster: str) -> dict[str, dict[str, Any]] | None:
        path = records.path_of(directory, cluster)
        stamp = path.stat().st_mtime_ns if path.exists() else 0
        if self._kept.get(path, (-1, None))[0] != stamp:
            self._kept[path] = (stamp, records.read(path))
        return self._kept[path][1]

    def errors(self, ring: str) -> dict[str, str]:
        """Hosts of a ring on which the change failed, with the reason."""
        found = {}
        for path in (self.ring_directory(ring) / "start").glob("*.json"):
            raw = _read(path) or {}
            if "failed" in raw:
                found[path.stem] = str(raw["failed"])
        for cluster in self.clusters:
            for node, record in (self.nodes(ring, "start", cluster) or {}).items():
                if "failed" in record:
                    found[f"{cluster}/{node}"] = str(record["failed"])
        return found

    @property
    def clusters(self) -> list[str]:
        """The clusters of the play, once it is planned."""
        return [name for name, groups in self._plan_file["groups"].items() if GROUP in groups]

    def cluster_rings(self, cluster: str, groups: Iterable[str]) -> tuple[str, ...]:
        """The rings of one cluster, in order. Raises Refused."""
        return rings_of(self.environment, cluster, groups)

    def rings_to_roll_back(self, ring: str, cluster: str) -> list[str]:
        """The rings of a cluster that go back when this ring fails, by the nodes that do."""
        known = self.fleet_nodes(cluster) or {}
        back = [host.partition("/")[2] for host in self.to_roll_back(ring) if is_node(host) and cluster_of(host) == cluster]
        named = {known[node]["ring"] if node in known else ring for node in back}
        return [one.name for one in self.environment.rings if one.name in named]

    def _evidence(self, ring: str, host: str, error: str) -> gates.HostEvidence:
        return gates.HostEvidence(
            name=host,
            before=self.observation(ring, "before", host) or self.fleet_observation(host),
            start=self.observation(ring, "start", host),
            end=self.observation(ring, "end", host),
            error=error,
            expected=self.expected(host, self.bundle),
            renewed=is_node(host),
        )

    def _control(self, ring: str, host: str) -> gates.HostEvidence:
        before = self.observation(ring, "before", host) or self.fleet_observation(host)
        return gates.HostEvidence(name=host, before=before, end=self.observation(ring, "end", host))

    def _has_left(self, ring: str, host: str) -> bool:
        """Whether a node is not in its cluster any more."""
        back = self.nodes(ring, "back", cluster_of(host)) if is_node(host) else None
        return back is not None and host.partition("/")[2] not in back

    def _is_back(self, ring: str, host: str) -> bool:
        seen = self.observation(ring, "back", host)
        if seen is None or seen["policies"] is None:
            return False
        expected = self.expected(host, self.previous)
        running = {(one["name"], "monitor" if one["mode"] == "monitor_only" else one["mode"]) for one in seen["policies"] if one["managed"]}
        return running == {(one["loaded"], one["mode"]) for one in expected}

    def _members(self, name: str, groups: frozenset[str]) -> list[Member]:
        """A host, or the nodes of a cluster. Raises Refused when a cluster was not observed."""
        if GROUP not in groups:
            return [self._member(name, groups)]
        known = self.fleet_nodes(name)
        if known is None:
            raise refuse(
                "could not be observed; mend that, or leave it out with apiary_hosts", file=self.environment.file, path=f"cluster {name}"
            )
        return [_node(f"{name}/{node}", groups, record) for node, record in known.items()]

    def _member(self, name: str, groups: frozenset[str]) -> Member:
        seen = self.fleet_observation(name)
        if seen is None:
            failed = (_read(self.directory / "fleet" / f"{name}.json") or {}).get("failed", "unreachable")
            return Member(name, groups, None, str(failed))
        trouble = "" if seen["agent"]["answers"] else f"no agent answers: {'; '.join(seen['problems'])}"
        return Member(name, groups, cell_of(seen["host"]), trouble)

    def _check_capabilities(self, plan: Plan, groups: Mapping[str, frozenset[str]]) -> None:
        """Refuse before the first change what a host's agent or kernel cannot load."""
        if self.bundle is None:
            return
        series = [str(part) for part in self.environment.version[:2]]
        chosen = self.bundle
        kept: dict[str, list[dict[str, Any]]] = {}

        def by_groups(host: str) -> list[dict[str, Any]]:
            if not is_node(host):
                return chosen.policies_for(groups[host])
            cluster = cluster_of(host)
            if cluster not in kept:
                kept[cluster] = chosen.policies_for(groups[cluster], "cluster")
            return kept[cluster]

        problems: dict[tuple[str, str], list[str]] = {}
        for host in (host for ring in plan.rings for host in ring.hosts):
            agent = (self.fleet_observation(host) or {})["agent"]
            if not is_node(host) and agent["version"].split("-")[0].split(".")[:2] != series:
                key = (
                    "agent",
                    f"runs agent {agent['version']}; the environment's policies were checked for {self.environment.agent_version}",
                )
                problems.setdefault(key, []).append(host)
            for policy in by_groups(host):
                for need in policy["requirements"]:
                    offered = agent["probes"] if need["kind"] == "probe" else agent["flags"]
                    if offered is not None and not any(offered.get(name) for name in need["any_of"]):
                        lacks = f"lacks {' or '.join(need['any_of'])}, which {need['reason']} need"
                        problems.setdefault((policy["reference"], lacks), []).append(host)
        if problems:
            raise Refused(
                Problem(self.environment.file, 0, subject, f"{few(sorted(hosts))} {text}: change the policy, its where, or the hosts")
                for (subject, text), hosts in sorted(problems.items())
            )


def _node(name: str, groups: frozenset[str], record: Mapping[str, Any]) -> Member:
    if "lost" in record:
        return Member(name, groups, None, str(record["lost"]), record["ring"])
    trouble = "" if record["counters"] is not None else "; ".join(record["problems"])
    return Member(name, groups, cell_of(record["host"]), trouble, record["ring"])


def _lasting(plan: Plan) -> Plan:
    """A plan without what comes and goes: of a cluster, only which rings it is in."""

    def without(members: Iterable[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(cluster_of(member) for member in members))

    rings = [replace(ring, batches=tuple(map(without, ring.batches)), control=without(ring.control)) for ring in plan.rings]
    return Plan(tuple(rings), {host: why for host, why in plan.left_out.items() if not is_node(host)})


def _telling(readings: Iterable[gates.Reading]) -> list[gates.Reading]:
    """Readings worth keeping: all of hosts, all of nodes that did not pass, and of those that did the highest of each signal."""
    kept: list[gates.Reading] = []
    passed: dict[tuple[str, str], list[gates.Reading]] = {}
    for reading in readings:
        if is_node(reading.host) and reading.status == gates.PASS:
            passed.setdefault((reading.signal, reading.subject), []).append(reading)
        else:
            kept.append(reading)
    for group in passed.values():
        kept += heapq.nlargest(MAX_POINTS, group, key=lambda one: one.value or 0.0)
    return kept


def _bundle_path(request: Request, name: str, digest: str) -> str:
    """The directory of the bundle with this digest; Refused when it is gone."""
    if not digest:
        return ""
    for place in (request.bundle_dir, *([str(Path(request.bundle).parent)] if request.bundle else ())):
        path = Path(place) / bundles.directory_name(name, digest)
        if path.is_dir():
            return str(path.resolve())
    raise refuse(
        f"the bundle {bundles.directory_name(name, digest)} is not there, and it is what a roll-back would need: "
        "keep bundles in apiary_bundle_dir, or build it again from the former environment file",
        file=request.bundle_dir,
    )


def _holder(run: str, pid: int) -> dict[str, Any]:
    return {
        "run": run,
        "host": platform.node(),
        "pid": pid,
        "pid_start": process_start(pid),
        "user": getpass.getuser(),
        "since": now(),
    }


def _new_name() -> str:
    moment = datetime.datetime.now(datetime.UTC)
    return f"{moment:%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"


def _write(path: Path, content: Any) -> None:
    files.write(path, json.dumps(content, indent=1, sort_keys=True))


def _sound(raw: dict[str, Any] | None) -> dict[str, Any] | None:
    return raw if raw is not None and _UNSOUND.isdisjoint(raw) else None


_UNSOUND = frozenset({"failed", "lost", "held"})


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content
    except (FileNotFoundError, ValueError):
        return None
