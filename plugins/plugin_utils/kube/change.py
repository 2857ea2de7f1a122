# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""One ring of one cluster brought to a set: tried on the API server, applied by helm, and counted node by node.

helm's own waiting is satisfied too early, so nodes are counted here: each by the pod that runs on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube import helm as helms
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube import observe, values
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.client import Api
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.observe import Pod, Signature
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.rings import Node
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Refused, refuse

# Seconds between two looks, or when that is more, this share of the time that has passed.
POLL, _LATE = 2.0, 0.05
# A count reads every node and pod of the ring: it takes at most this part of the time.
_SHARE = 10
_FATAL = ("CrashLoopBackOff", "ImagePullBackOff", "ErrImagePull", "InvalidImageName", "CreateContainerConfigError", "CreateContainerError")
# Seconds for an answer after which the API server counts as having been away.
_AWAY = 3.0
# A pod may fall once or twice before what it needs is there: seconds, or half of the patience that there is.
_FATAL_SECONDS = 30.0


@dataclass(frozen=True)
class Tally:
    """The nodes of a ring: ``new`` run the set and are ready; ``waiting``, ``lost`` and ``failing`` say why they do not.

    ``waiting`` still have the former set only, ``failing`` have the new one and it is not ready.
    """

    new: Mapping[str, Pod] = field(default_factory=dict)
    waiting: Mapping[str, str] = field(default_factory=dict)
    failing: Mapping[str, str] = field(default_factory=dict)
    lost: Mapping[str, str] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return len(self.new) + len(self.waiting) + len(self.failing) + len(self.lost)

    @property
    def done(self) -> bool:
        return not self.waiting and not self.failing

    def __str__(self) -> str:
        parts = [f"{len(self.new)} of {self.total} nodes run it"]
        parts += [f"{len(self.failing)} not ready"] if self.failing else []
        parts += [f"{len(self.lost)} lost"] if self.lost else []
        return ", ".join(parts)


def tally(members: Iterable[Node], pods: Mapping[str, Sequence[Pod]], wanted: Signature) -> Tally:
    """Hold the nodes of a ring against the set that their pods are to run. Pure."""
    new: dict[str, Pod] = {}
    waiting: dict[str, str] = {}
    failing: dict[str, str] = {}
    lost: dict[str, str] = {}
    for node in members:
        staying = [pod for pod in pods.get(node.name, ()) if not pod.ending]
        fresh = [pod for pod in staying if pod.signature == wanted]
        if not node.ready:
            lost[node.name] = "the node is not ready"
        elif not fresh:
            waiting[node.name] = "its agent has not been replaced" if staying else "no agent's pod runs on it"
        elif not fresh[0].ready:
            failing[node.name] = f"pod {fresh[0].name} is not ready: {fresh[0].trouble}"
        elif len(fresh) < len(staying):
            waiting[node.name] = "its former agent has not left"
        else:
            new[node.name] = fresh[0]
    return Tally(new, waiting, failing, lost)


def apply(api: Api, helm: helms.Helm, release: helms.Release, entry: Mapping[str, Any]) -> bool:
    """Give one ring of the release its new values; False when it has them. Raises Refused before anything changed."""
    ring = str(entry["name"])
    if values.ring_entry(release.values, ring) == entry and release.status == "deployed":
        return False
    wanted = values.with_ring(release.values, entry)
    new, old = helm.render(wanted), helm.manifest()
    others = values.touched(new, old, ring)
    if others:
        raise other_chart(api.place.name, others)
    helms.dry_run(api, new, old)
    helm.upgrade(wanted)
    return True


def other_chart(cluster: str, others: Sequence[str]) -> Refused:
    return refuse(
        f"the chart of this collection is another than the one installed and would restart {', '.join(others)} too: bring the release "
        "to it first with the playbook apiary.tetragon.install",
        path=f"cluster {cluster}",
    )


def installed(api: Api, helm: helms.Helm, rings: Sequence[str], recover: bool = True) -> helms.Release:
    """The release, with these rings; what was cut off in it is cleared away. Raises Refused."""
    if recover:
        helm.recover(api)
    release = helm.release()
    cluster = f"cluster {api.place.name}"
    if release is None:
        raise refuse(
            f"has no release {api.place.release} in namespace {api.place.namespace}: install it with the playbook "
            "apiary.tetragon.install, or set apiary_kube_release and apiary_kube_namespace",
            path=cluster,
        )
    known = [str(one["name"]) for one in release.values.get("rings", ())]
    if known != list(rings):
        raise refuse(
            f"its release {api.place.release} has the rings {', '.join(known) or '(none given)'}, and the environment gives it "
            f"{', '.join(rings)}: bring it to them with the playbook apiary.tetragon.install",
            path=cluster,
        )
    if (release.values.get("library") or {}).get("enabled", True):
        raise refuse(
            "its release loads the chart's own library where a ring has no policies, so that a ring can not go back to none: "
            "bring it under the environment with the playbook apiary.tetragon.install",
            path=cluster,
        )
    return release


def daemon_set(api: Api, ring: str) -> dict[str, Any]:
    return api.get(api.place.path("apps/v1", "daemonsets", f"{api.place.fullname}-{ring}"))


def await_ring(
    api: Api,
    ring: str,
    rings: Sequence[str],
    timeout: float,
    tell: Callable[[str], None],
    alive: Callable[[], None],
) -> Tally:
    """Count until every node of the ring that can runs what its DaemonSet wants, or no node came to it for ``timeout`` seconds.

    It ends early when pods of the new set end again and again. ``tell`` gets progress, ``alive`` is called now and then.
    """
    wanted = observe.signature_of(daemon_set(api, ring)["spec"]["template"]["spec"])
    began = time.monotonic()
    last, moved, counted, cost = -1, began, 0.0, 0.0
    known = Tally()
    fatal: dict[str, float] = {}
    while True:
        now = time.monotonic()
        settled = _settled(daemon_set(api, ring))
        if time.monotonic() - now > _AWAY:
            moved = time.monotonic()  # the API server was away, and its controllers begin anew
        if settled or now - counted >= max(3.0, cost * _SHARE) or now - moved > timeout:
            known = tally(observe.nodes(api, rings, ring).values(), observe.pods(api, ring), wanted)
            counted = time.monotonic()
            cost = counted - now
            if len(known.new) != last:
                last, moved = len(known.new), counted
                tell(f"{ring}: {known}")
            dying = {node for node, why in known.failing.items() if any(reason in why for reason in _FATAL)}
            fatal = {node: fatal.get(node, counted) for node in dying}
            hopeless = counted - min(fatal.values(), default=counted) >= min(_FATAL_SECONDS, timeout / 2)
            if known.done or (fatal and hopeless) or counted - moved > timeout:
                return known
            alive()
        time.sleep(max(POLL, (time.monotonic() - began) * _LATE))


def _settled(document: Mapping[str, Any]) -> bool:
    """Whether the DaemonSet itself says that it has rolled."""
    status: Mapping[str, int] = document.get("status", {})
    wanted = status.get("desiredNumberScheduled", 0)
    current: int = document["metadata"]["generation"]
    return (
        status.get("observedGeneration", 0) >= current
        and status.get("updatedNumberScheduled", 0) >= wanted
        and status.get("numberAvailable", 0) >= wanted
    )


def outcome(found: Tally, ring: str, timeout: float) -> dict[str, dict[str, Any]]:
    """The records of the nodes that a change did not bring to the set."""
    records: dict[str, dict[str, Any]] = {node: {"ring": ring, "lost": why} for node, why in found.lost.items()}
    records.update({node: {"ring": ring, "failed": why} for node, why in found.failing.items()})
    for node, why in found.waiting.items():
        if found.failing:
            records[node] = {"ring": ring, "held": f"not reached: {why}"}
        else:
            records[node] = {"ring": ring, "failed": f"{why} within {timeout:.0f} s"}
    return records
