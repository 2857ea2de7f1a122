# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Chart values out of bundles: what a ring is given, and what of a release one ring's change may touch. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils.bundle import Bundle
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.rings import LABEL
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import refuse

FORM = "cluster"
MAX_DATA = 1 << 20
# What the chart adds to a set for each policy: a line of its list.
_LINE = 300
Values = Mapping[str, Any]


def policy_files(bundle: Bundle | None, groups: Iterable[str]) -> dict[str, str]:
    """The policy files of a cluster in these inventory groups, by file name."""
    return {one["file"]: one["text"] for one in bundle.policies_for(groups, FORM)} if bundle else {}


def with_bundle(
    entry: Values, bundle: Bundle | None, groups: Iterable[str], batch: str, digests: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """A ring's values with a bundle's policies, for the agent that it was checked for. Raises Refused when they are too large.

    Without a bundle the ring has no policies, and the agent it had. ``digests`` are those of images, by agent version.
    """
    files = policy_files(bundle, groups)
    size = sum(len(name.encode()) + len(text.encode()) + _LINE for name, text in files.items())
    if size > MAX_DATA:
        largest = max(files, key=lambda name: len(files[name]))
        raise refuse(
            f"its {len(files)} policies are {size:,} bytes and a ConfigMap holds {MAX_DATA:,}: give lists in fewer, larger ranges, or "
            f"divide the policies with where; the largest is {largest} with {len(files[largest].encode()):,} bytes",
            path=f"ring {entry['name']}",
        )
    version = str(bundle.manifest["agent_version"]) if bundle else str(entry["agentVersion"])
    digest = (digests or {}).get(version, "")
    if not digest and entry.get("imageDigest") and version != entry["agentVersion"]:
        raise refuse(
            f"pins the image of agent {entry['agentVersion']} by its digest, and the bundle was checked for {version}: name the digest of "
            "that image in apiary_kube_digests",
            path=f"ring {entry['name']}",
        )
    return {
        **entry,
        **({"imageDigest": digest} if digest else {}),
        "agentVersion": version,
        "policies": files,
        "bundle": bundle.digest if bundle else "",
        "maxSurge": _surge(batch),
    }


def _surge(batch: str) -> int | str:
    """A ring's batch as Kubernetes takes it: a number, or a share such as ``25%``."""
    return int(batch) if batch.isdigit() else batch


def ring_entry(values: Values, ring: str) -> dict[str, Any] | None:
    """A ring's part of a release's values."""
    return next((dict(one) for one in values.get("rings", ()) if one["name"] == ring), None)


def given_ring(values: Values, ring: str) -> dict[str, Any]:
    """The same of a release that has the ring."""
    return next(dict(one) for one in values["rings"] if one["name"] == ring)


def with_ring(values: Values, entry: Values) -> dict[str, Any]:
    """A release's values with one ring changed and every other as it was."""
    return {**values, "rings": [dict(entry) if one["name"] == entry["name"] else one for one in values["rings"]]}


def for_install(base: Values, former: Values, rings: Mapping[str, str], agent_version: str) -> dict[str, Any]:
    """Values of an installation: ``base`` (from the user's files) with these rings (name to batch), which keep what they have.

    The project's own library stays out: policies come in bundles only. Raises Refused for values without agents.
    """
    if not base.get("agents", {}).get("enabled", True):
        raise refuse(
            "is false, and bundles are read by agents of the chart: leave it out, or bring custom resources to other agents by helm",
            path="values agents.enabled",
        )
    common = {key: value for key, value in base.items() if key != "rings"}
    entries = []
    for name, batch in rings.items():
        had: Values = ring_entry(former, name) or {"agentVersion": agent_version, "policies": {}, "bundle": ""}
        given: Values = ring_entry(base, name) or {}
        kept = {key: had[key] for key in ("agentVersion", "policies", "bundle") if key in had}
        entries.append({"name": name, **given, **kept, "maxSurge": _surge(batch)})
    return {**common, "library": {**common.get("library", {}), "enabled": False}, "rings": entries}


def shown(entry: Values) -> list[str]:
    """What a ring is given, a line each, for a diff."""
    return [f"agent {entry.get('agentVersion', '')}", *sorted(entry.get("policies") or {})]


def touched(new: Sequence[Mapping[str, Any]], old: Sequence[Mapping[str, Any]], ring: str) -> list[str]:
    """DaemonSets of other rings that a new manifest would restart or remove, against the one that is deployed."""
    wanted = {one["metadata"]["name"]: one for one in new if one["kind"] == "DaemonSet"}
    names = []
    for one in old:
        if one["kind"] != "DaemonSet" or (one["metadata"].get("labels") or {}).get(LABEL) == ring:
            continue
        after = wanted.get(one["metadata"]["name"])
        if after is None or after["spec"] != one["spec"]:
            names.append(one["metadata"]["name"])
    return names
