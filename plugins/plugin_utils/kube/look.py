# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The truth of every ring of a cluster outside any rollout: what its nodes run against what its DaemonSet wants."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube import change, observe, truth
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.client import Api


def truths(api: Api, rings: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The truth of each ring that has a DaemonSet. One request a node, and a few for the cluster.

    Nodes that do not run what their ring wants are named; while pods change the verdict is progressing.
    """
    place = api.place
    release = f"{place.namespace}/{place.release}"
    nodes = observe.nodes(api, rings)
    pods = {node: [pod for pod in found if pod.owner.release == release] for node, found in observe.pods(api).items()}
    seen = observe.survey(api, nodes.values(), pods, ask=observe.asker(api))
    sets = observe.Sets(api)
    for ring in rings:
        daemonset = api.find(place.path("apps/v1", "daemonsets", f"{place.fullname}-{ring}"))
        if daemonset is None:
            continue
        wanted = observe.signature_of(daemonset["spec"]["template"]["spec"])
        members = [node for node in nodes.values() if node.ring == ring]
        counted = change.tally(members, pods, wanted)
        late = {**counted.waiting, **counted.failing}
        found = {node.name: {"ring": ring, "held": late[node.name]} if node.name in late else seen[node.name] for node in members}
        policies = sets.policies(observe.config_map(wanted, place.fullname, "policies"))
        expected = [{"loaded": one.name, "mode": one.mode} for one in policies]
        verdict, reason = (truth.HEALTHY, "") if counted.done else (truth.PROGRESSING, str(counted))
        yield truth.of_ring(ring, observe.bundle_of(daemonset), expected, found, verdict, reason)
