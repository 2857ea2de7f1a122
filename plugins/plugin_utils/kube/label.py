# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Which nodes of a cluster are given which ring: the environment's ``take``, drawn once. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ansible_collections.apiary.tetragon.plugins.plugin_utils.environment import Environment
from ansible_collections.apiary.tetragon.plugins.plugin_utils.fleet.rings import cell_of, count, order
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.rings import Node


def draw(environment: Environment, cluster: str, rings: Sequence[str], nodes: Iterable[Node]) -> dict[str, str]:
    """The nodes that are still to be labelled, with their rings. A node that has a label keeps it, whatever it names.

    The first ring gets a node of every cell; every other as many as it takes of all nodes; the last one the rest.
    """
    everyone = sorted(nodes, key=lambda node: order(environment.name, f"{cluster}/{node.name}"))
    free = [node for node in everyone if not node.named]
    drawn: dict[str, str] = {}
    for index, name in enumerate(rings[:-1]):
        ring = next(one for one in environment.rings if one.name == name)
        members = [node for node in everyone if node.named == name]
        picked: list[Node] = []
        if index == 0:
            known = {cell_of(node.host) for node in members}
            for node in free:
                if cell_of(node.host) not in known:
                    known.add(cell_of(node.host))
                    picked.append(node)
        wanted = 0 if ring.take in ("cells", "rest", "") else count(ring.take, len(everyone))
        others = [node for node in free if node not in picked]
        picked += others[: max(0, wanted - len(members) - len(picked))]
        drawn.update({node.name: name for node in picked})
        free = [node for node in free if node.name not in drawn]
    return {**drawn, **{node.name: rings[-1] for node in free}}
