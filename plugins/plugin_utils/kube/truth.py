# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The truth of a ring, published in its cluster: one small ConfigMap a ring, for ``kubectl get`` and health checks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils.fleet.ledger import now
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.client import Api
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.records import Record
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.rings import KIND, LABEL

FORMAT = "apiary.dev/truth/1"
HEALTHY, PROGRESSING, DEGRADED = "healthy", "progressing", "degraded"
MAX_OFF = 20


def of_ring(
    ring: str, digest: str, expected: Sequence[Mapping[str, Any]], nodes: Mapping[str, Record], verdict: str, reason: str
) -> dict[str, Any]:
    """The truth over the records of a ring's nodes. A node is off when it is lost, failed, or runs a policy otherwise."""
    off = {name: why for name, record in sorted(nodes.items()) if (why := _off(record, expected))}
    policies = {
        one["loaded"]: {
            "mode": one["mode"],
            "wanted": len(nodes),
            "enabled": sum(_enabled(record, one) for record in nodes.values()),
        }
        for one in expected
    }
    return {
        "format": FORMAT,
        "ring": ring,
        "bundle": digest,
        "nodes": len(nodes),
        "ready": len(nodes) - len(off),
        "policies": policies,
        "off": [{"node": name, "reason": why} for name, why in list(off.items())[:MAX_OFF]],
        "off_total": len(off),
        "verdict": DEGRADED if verdict == HEALTHY and off else verdict,
        "reason": reason or (f"{len(off)} of {len(nodes)} nodes are off" if off else ""),
        "time": now(),
    }


def _enabled(record: Record, policy: Mapping[str, Any]) -> bool:
    return any(
        one["name"] == policy["loaded"] and one["state"] == "enabled" and _mode(one) == policy["mode"]
        for one in record.get("policies") or ()
    )


def _mode(policy: Mapping[str, Any]) -> str:
    return "monitor" if policy["mode"] == "monitor_only" else str(policy["mode"])


def _off(record: Record, expected: Iterable[Mapping[str, Any]]) -> str:
    for key in ("lost", "failed", "held"):
        if key in record:
            return str(record[key])
    missing = [one["loaded"] for one in expected if not _enabled(record, one)]
    if missing:
        return f"{missing[0]} is not enabled in its mode" + (f", and {len(missing) - 1} more" if len(missing) > 1 else "")
    return ""


def name_of(api: Api, ring: str) -> str:
    return f"{api.place.fullname}-truth-{ring}"


def publish(api: Api, truth: Mapping[str, Any]) -> None:
    """Write a ring's truth into its cluster."""
    ring = truth["ring"]
    document = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": name_of(api, ring),
            "labels": {LABEL: ring, KIND: "truth"},
            "annotations": {"apiary.dev/verdict": truth["verdict"]},
        },
        "data": {"truth.json": json.dumps(truth, sort_keys=True)},
    }
    api.apply(api.place.path("v1", "configmaps", name_of(api, ring)), document)
