# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Nodes and their rings: which rings a cluster has, in which of them a node is, and what may not be. Pure.

A node is the member ``<cluster>/<node>`` of the fleet. Its label ``apiary.dev/ring`` fixes its ring; a node without it, or
with a ring that the cluster does not have, belongs to the last one, as the chart's selections have it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils.environment import Environment
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Problem, Refused

GROUP = "apiary_clusters"
LABEL = "apiary.dev/ring"
# What an object of the release is (policies, truth, ...), and the bundle that a DaemonSet was given.
KIND = "apiary.dev/kind"
BUNDLE = "apiary.dev/bundle"
MAX_NAMED = 5
_ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}
# Conditions of a Node that are good when they are true; all others name a trouble.
_GOOD = ("Ready",)


def is_node(member: str) -> bool:
    return "/" in member


def cluster_of(member: str) -> str:
    """The inventory host that a member is changed through: its cluster, or itself."""
    return member.partition("/")[0]


def rings_of(environment: Environment, cluster: str, groups: Iterable[str]) -> tuple[str, ...]:
    """The rings of one cluster, in order. Raises Refused.

    A ring with ``groups`` takes whole clusters; a cluster that none takes has every ring that takes a share.
    """
    member = frozenset(groups)
    whole = [ring.name for ring in environment.rings if not member.isdisjoint(ring.groups)]
    shared = tuple(ring.name for ring in environment.rings if not ring.groups)
    if len(whole) > 1:
        text = f"cluster {cluster} is in ring {whole[0]!r} and in ring {whole[1]!r} by its groups: rings may not overlap"
    elif not whole and not shared:
        text = f"cluster {cluster} is in no ring: put it into a group of one, or let the last ring take the rest"
    else:
        return tuple(whole) or shared
    raise Refused([environment.document.problem(("rings",), text)])


def ring_of(labels: Mapping[str, str], rings: Sequence[str]) -> str:
    """The ring of a node with these labels."""
    named = labels.get(LABEL, "")
    return named if named in rings else rings[-1]


@dataclass(frozen=True, slots=True)
class Node:
    """One node. ``host`` is what an observation says of it; ``named`` is the ring its label names, known or not."""

    name: str
    ring: str
    named: str
    ready: bool
    host: Mapping[str, Any]
    troubles: tuple[str, ...]


def read_node(raw: Mapping[str, Any], rings: Sequence[str]) -> Node:
    """A node from its document."""
    info = raw["status"].get("nodeInfo", {})
    conditions = {one["type"]: one["status"] for one in raw["status"].get("conditions", ())}
    labels = raw["metadata"].get("labels", {})
    name, version = read_os(info.get("osImage", ""))
    architecture = info.get("architecture", "unknown")
    return Node(
        name=raw["metadata"]["name"],
        ring=ring_of(labels, rings),
        named=labels.get(LABEL, ""),
        ready=conditions.get("Ready") == "True",
        host={
            "kernel": info.get("kernelVersion", "unknown"),
            "architecture": _ARCHITECTURES.get(architecture, architecture),
            "os": name,
            "os_version": version,
            "boot_id": info.get("bootID", ""),
            "cpus": _cores(raw["status"].get("capacity", {}).get("cpu", "1")),
        },
        troubles=tuple(sorted(kind for kind, status in conditions.items() if kind not in _GOOD and status == "True")),
    )


def read_os(image: str) -> tuple[str, str]:
    """``Debian GNU/Linux 12 (bookworm)`` as ``debian`` and ``12``, the way a host says it of itself."""
    found = re.search(r"\d+(?:\.\d+)?", image)
    name = re.sub(r"( GNU/Linux| Linux| OS)?[ (]*v?$", "", image[: found.start()] if found else image)
    return name.strip().lower().replace(" ", "-") or "unknown", found[0] if found else ""


def _cores(quantity: str) -> int:
    return max(1, int(quantity[:-1]) // 1000) if quantity.endswith("m") else int(float(quantity))


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose agent runs on a node: the release, as ``<namespace>/<release>``, and the ring of its pod."""

    release: str
    ring: str


def check_overlap(cluster: str, owners: Mapping[str, Iterable[Owner]]) -> None:
    """Refuse nodes on which agents of two rings or releases run: they would fight over what they pin and enforce."""
    problems = []
    for node, found in sorted(owners.items()):
        known = sorted({(one.release, one.ring) for one in found})
        if len(known) > 1:
            named = " and ".join(f"ring {ring!r} of release {release}" for release, ring in known)
            problems.append(
                Problem(
                    f"cluster {cluster}",
                    0,
                    f"node {node}",
                    f"is in two rings: agents of {named} run on it; uninstall one release, or wait until its pod has left",
                )
            )
    if problems:
        raise Refused(problems[:MAX_NAMED])
