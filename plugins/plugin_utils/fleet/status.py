# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The fleet against its ledger: what should run where, what does, and the difference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils.bundle import Bundle, label
from ansible_collections.apiary.tetragon.plugins.plugin_utils.fleet.ledger import Entry, Progress, progress
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.rings import cluster_of, is_node

FORMAT = "apiary.dev/status/1"


@dataclass(frozen=True)
class HostStatus:
    """One host. ``bundle`` is the digest it should run; ``drift`` says, in words, how it differs."""

    name: str
    bundle: str
    drift: tuple[str, ...]
    unmanaged: tuple[str, ...]


def intended(entries: Sequence[Entry], environment: str) -> dict[str, str]:
    """Host to the digest of the bundle it was last left on, by the ledger (empty: no policies)."""
    bundles: dict[str, str] = {}
    for entry in entries:
        if entry.get("environment") == environment and entry["kind"] in ("ring-passed", "rolled-back"):
            bundles.update(dict.fromkeys(entry["hosts"], entry["bundle"]))
    return bundles


def host_status(name: str, digest: str, expected: Sequence[Mapping[str, Any]], seen: Mapping[str, Any] | None) -> HostStatus:
    """Compare one host's observation with the policies it should run."""
    if seen is None:
        return HostStatus(name, digest, ("could not be observed",), ())
    if "lost" in seen:
        return HostStatus(name, digest, (str(seen["lost"]),), ())
    if not seen["agent"]["answers"] or seen["policies"] is None:
        return HostStatus(name, digest, (*seen["troubles"], "no agent answers: " + "; ".join(seen["problems"])), ())
    drift = [*seen["troubles"]]
    loaded = {one["name"]: one for one in seen["policies"]}
    for policy in expected:
        actual = loaded.get(policy["loaded"])
        if actual is None:
            drift.append(f"{policy['loaded']} is not loaded")
        elif actual["state"] != "enabled":
            drift.append(f"{policy['loaded']} is {actual['state']}" + (f": {actual['error']}" if actual["error"] else ""))
        elif actual["mode"] != policy["mode"] and not (policy["mode"] == "monitor" and actual["mode"] == "monitor_only"):
            drift.append(f"{policy['loaded']} is in mode {actual['mode']}, not {policy['mode']}")
    wanted = {policy["loaded"] for policy in expected}
    drift += [f"{one['name']} is loaded and should not be" for one in seen["policies"] if one["managed"] and one["name"] not in wanted]
    if (seen["bundle"] or {}).get("pending"):
        drift.append("a change of its policies did not finish")
    if seen["pins"]["leftover"]:
        drift.append(f"{seen['pins']['leftover']} is left over from a failed start of the agent")
    unmanaged = tuple(one["name"] for one in seen["policies"] if not one["managed"] and one["name"] not in wanted)
    return HostStatus(name, digest, tuple(drift), unmanaged)


def _ring_digest(name: str, should: Mapping[str, str], observations: Mapping[str, Mapping[str, Any] | None]) -> str | None:
    """What a node that came after the last rollout should run: what most nodes of its ring in its cluster should."""
    ring = (observations.get(name) or {}).get("ring")
    if not is_node(name) or ring is None:
        return None
    others = (other for other, seen in observations.items() if cluster_of(other) == cluster_of(name) and (seen or {}).get("ring") == ring)
    return next((digest for digest, _nodes in Counter(should[one] for one in others if one in should).most_common(1)), None)


def fleet_status(
    entries: Sequence[Entry],
    environment: str,
    bundles: Mapping[str, Bundle],
    groups: Mapping[str, Sequence[str]],
    observations: Mapping[str, Mapping[str, Any] | None],
) -> dict[str, Any]:
    """The whole fleet as data. ``bundles`` by digest; a digest without its bundle is reported, not guessed at."""
    should = intended(entries, environment)
    hosts, missing = [], set()
    for name in sorted(groups):
        digest = should.get(name, _ring_digest(name, should, observations))
        if digest is None:
            hosts.append(HostStatus(name, "", ("was never part of a rollout",), ()))
            continue
        if digest and digest not in bundles:
            missing.add(label(digest))
            hosts.append(
                HostStatus(name, digest, (f"its bundle {label(digest)} is not in apiary_bundle_dir, so it cannot be compared",), ())
            )
            continue
        expected = bundles[digest].policies_for(groups[name], "cluster" if is_node(name) else "host") if digest else []
        hosts.append(host_status(name, digest, expected, observations.get(name)))
    stand: Progress = progress(entries, environment)
    return {
        "format": FORMAT,
        "environment": environment,
        "current": stand.current,
        "unfinished": {"run": stand.run, "bundle": stand.bundle, "halted": stand.halted, "reason": stand.reason} if stand.run else None,
        "hosts": [vars(host) for host in hosts],
        "drifted": sum(bool(host.drift) for host in hosts),
    }
