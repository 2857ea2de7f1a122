# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Rings: which host or node changes when. A pure function of the environment and of what they said of themselves."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils.environment import Environment, Ring
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.rings import LABEL, cluster_of, is_node
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Problem, Refused, few

MAX_NAMED = 5
Cell = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Member:
    """One host of the fleet, or one node of a cluster. ``cell`` is kernel, architecture and OS; None when it did not answer.

    ``trouble`` says why nothing can be rolled out to it (unreachable, no agent). A node has its ``ring``; a host is given one.
    """

    name: str
    groups: frozenset[str]
    cell: Cell | None
    trouble: str = ""
    ring: str = ""


@dataclass(frozen=True, slots=True)
class RingPlan:
    """One ring: its hosts in the order of change, in batches; the hosts it is compared with; its bake in seconds.

    The nodes of a cluster are one batch: how many of them change at once is up to their DaemonSet, which is told.
    """

    name: str
    batches: tuple[tuple[str, ...], ...]
    control: tuple[str, ...]
    bake: int

    @property
    def hosts(self) -> tuple[str, ...]:
        return tuple(host for batch in self.batches for host in batch)


@dataclass(frozen=True)
class Plan:
    """All rings in order, and the hosts left out because nothing can be rolled out to them, with the reason."""

    rings: tuple[RingPlan, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "rings": [
                {"name": ring.name, "batches": [list(batch) for batch in ring.batches], "control": list(ring.control), "bake": ring.bake}
                for ring in self.rings
            ],
            "left_out": dict(sorted(self.left_out.items())),
        }

    @staticmethod
    def from_json(raw: Mapping[str, Any]) -> Plan:
        return Plan(
            tuple(
                RingPlan(one["name"], tuple(tuple(batch) for batch in one["batches"]), tuple(one["control"]), one["bake"])
                for one in raw["rings"]
            ),
            raw["left_out"],
        )


def cell_of(host: Mapping[str, Any]) -> Cell:
    """The cell of an observed host: kernel series, architecture, operating system with version."""
    series = re.match(r"\d+\.\d+", host["kernel"])
    return (series[0] if series else host["kernel"], host["architecture"], f"{host['os']} {host['os_version']}".strip())


def show_cell(cell: Cell) -> str:
    return f"kernel {cell[0]} {cell[1]} {cell[2]}"


def count(share: str, total: int) -> int:
    """``25%`` of a total, rounded up and at least one, or a plain number."""
    if share.endswith("%"):
        return max(1, math.ceil(total * int(share[:-1]) / 100)) if total else 0
    return int(share)


def budget(share: str, total: int) -> int:
    """How many of ``total`` may be missing: a plain number, or a share rounded down."""
    return total * int(share[:-1]) // 100 if share.endswith("%") else int(share)


def order(environment: str, host: str) -> bytes:
    """A fixed, even shuffle: the same host stands at the same place in every rollout of an environment."""
    return hashlib.sha256(f"{environment}/{host}".encode()).digest()


def plan_rings(environment: Environment, members: Iterable[Member]) -> Plan:
    """Divide the fleet. Raises Refused when rings overlap, are empty, leave hosts out, or the first misses a cell."""
    everyone = list(members)
    left_out = {member.name: member.trouble for member in everyone if member.trouble}
    fleet = sorted((member for member in everyone if not member.trouble), key=lambda member: order(environment.name, member.name))
    allowed = budget(environment.gates.unreachable, len(everyone))
    if len(left_out) > allowed:
        named = few([f"{host}: {why}" for host, why in sorted(left_out.items())], separator="; ")
        raise Refused(
            [
                environment.document.problem(
                    ("gates", "unreachable"),
                    f"{len(left_out)} of {len(everyone)} hosts cannot take part and {allowed} may be missing: {named}",
                )
            ]
        )
    if not fleet:
        raise Refused([environment.document.problem(("rings",), "there are no hosts to roll out to: check the inventory and apiary_hosts")])
    chosen = _choose(environment, fleet)
    rings = []
    for index, ring in enumerate(environment.rings):
        names = [member.name for member in chosen[index]]
        later = [member.name for following in chosen[index + 1 :] for member in following]
        rings.append(
            RingPlan(ring.name, tuple(_batches(ring, names)), tuple(_control(names, later[::-1], environment.gates.control)), ring.bake)
        )
    return Plan(tuple(rings), left_out)


def _batches(ring: Ring, names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    hosts = [name for name in names if not is_node(name)]
    size = max(1, count(ring.batch, len(hosts)))
    for start in range(0, len(hosts), size):
        yield tuple(hosts[start : start + size])
    nodes = [name for name in names if is_node(name)]
    for cluster in sorted({cluster_of(name) for name in nodes}):
        yield tuple(name for name in nodes if cluster_of(name) == cluster)


def _control(names: Iterable[str], later: Sequence[str], limit: int) -> Iterator[str]:
    """Hosts are compared with hosts, and nodes with nodes."""
    for kind in sorted({is_node(name) for name in names}):
        yield from [name for name in later if is_node(name) == kind][:limit]


def _choose(environment: Environment, fleet: Sequence[Member]) -> list[list[Member]]:
    problems: list[Problem] = []
    taken: dict[str, str] = {}
    chosen: list[list[Member]] = [[] for _unused in environment.rings]
    for index, ring in enumerate(environment.rings):
        for member in fleet:
            if member.ring == ring.name if member.ring else not member.groups.isdisjoint(ring.groups):
                if member.name in taken:
                    problems.append(
                        environment.document.problem(
                            ("rings", index, "groups"),
                            f"host {member.name} is in ring {taken[member.name]!r} already: rings may not overlap",
                        )
                    )
                else:
                    taken[member.name] = ring.name
                    chosen[index].append(member)
    free = [member for member in fleet if member.name not in taken]
    cells = sorted({member.cell for member in fleet if member.cell})
    hosts = sum(not member.ring for member in fleet)
    for index, ring in enumerate(environment.rings):
        if not ring.groups:
            picked = _take(ring, free, hosts, cells if index == 0 else [])
            names = {member.name for member in picked}
            chosen[index] += picked
            free = [member for member in free if member.name not in names]
        if not chosen[index]:
            where = f"no host is in {', '.join(ring.groups)}" if ring.groups else "the rings before it took every host"
            if hosts < len(fleet):
                where = f"it selects no node; label nodes with {LABEL}={ring.name}, as the playbook apiary.tetragon.cluster_label does"
            problems.append(environment.document.problem(("rings", index), f"ring {ring.name!r} is empty: {where}"))
    if free:
        named = few([member.name for member in free])
        problems.append(
            environment.document.problem(("rings",), f"{len(free)} hosts are in no ring: {named}; let the last ring take the rest")
        )
    missed = [cell for cell in cells if cell not in {member.cell for member in chosen[0]}]
    if missed and chosen[0]:
        example = next(member.name for member in fleet if member.cell == missed[0])
        problems.append(
            environment.document.problem(
                ("rings", 0),
                f"ring {environment.rings[0].name!r} has no host with {'; '.join(map(show_cell, missed[:MAX_NAMED]))} (such as {example}): "
                + (
                    f"label one of these nodes with {LABEL}={environment.rings[0].name}"
                    if is_node(example)
                    else "the first ring must hold one of each kind, or take: cells"
                ),
            )
        )
    if problems:
        raise Refused(problems)
    return chosen


def _take(ring: Ring, free: Sequence[Member], total: int, cells: Sequence[Cell]) -> list[Member]:
    if ring.take == "rest":
        return list(free)
    first = [next((member for member in free if member.cell == cell), None) for cell in cells]
    picked = [member for member in first if member is not None]
    if ring.take == "cells":
        return picked
    names = {member.name for member in picked}
    others = [member for member in free if member.name not in names]
    return picked + others[: max(0, count(ring.take, total) - len(picked))]
