# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""One rollout at a time per release, whichever controller it comes from: a Lease in the cluster that names the run.

A lease is renewed while its run works and lapses when nobody renews it; a run takes its own up again at once.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.client import Api, ApiError
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import refuse

GROUP = "coordination.k8s.io/v1"
MARGIN = 300
_ATTEMPTS = 5


def name_of(api: Api) -> str:
    return f"{api.place.fullname}-rollout"


def take(api: Api, run: str, seconds: int, ours: Iterable[str] = ()) -> None:
    """Hold the lease for ``run``, for so many seconds from now. ``ours`` are runs of this controller that have ended.

    Raises Refused while another run holds it.
    """
    path = api.place.path(GROUP, "leases")
    for _attempt in range(_ATTEMPTS):
        now = datetime.datetime.now(datetime.UTC)
        known = api.find(f"{path}/{name_of(api)}")
        spec = (known or {}).get("spec") or {}
        holder = spec.get("holderIdentity") or ""
        if holder not in ("", run, *ours) and not _lapsed(spec, now):
            raise refuse(
                f"rollout {holder} is under way in it, last heard of at {spec.get('renewTime')}: wait for its end; when its controller is "
                f"gone, the lease lapses by itself, or take it over with -e apiary_break_lock={holder}",
                path=f"cluster {api.place.name}",
            )
        wanted = {
            "holderIdentity": run,
            "leaseDurationSeconds": seconds,
            "acquireTime": spec.get("acquireTime") if holder == run else _stamp(now),
            "renewTime": _stamp(now),
            "leaseTransitions": int(spec.get("leaseTransitions") or 0) + (holder not in ("", run)),
        }
        metadata = {"name": name_of(api), **({"resourceVersion": known["metadata"]["resourceVersion"]} if known else {})}
        document = {"apiVersion": GROUP, "kind": "Lease", "metadata": metadata, "spec": wanted}
        try:
            api.send("PUT" if known else "POST", f"{path}/{name_of(api)}" if known else path, None, document)
            return
        except ApiError as error:
            if error.status == 404 and not known:
                raise refuse(
                    f"has no namespace {api.place.namespace}, and so no release {api.place.release}: install it with the playbook "
                    "apiary.tetragon.install, or set apiary_kube_namespace",
                    path=f"cluster {api.place.name}",
                ) from None
            if error.status not in (404, 409):
                raise
    raise refuse(
        f"its lease {name_of(api)} changes faster than it can be taken: another rollout begins; run again", path=f"cluster {api.place.name}"
    )


def release(api: Api, run: str) -> None:
    """Give the lease back if the run holds it."""
    path = api.place.path(GROUP, "leases", name_of(api))
    known = api.find(path)
    if known and known["spec"].get("holderIdentity") == run:
        api.delete(path)


def _lapsed(spec: dict[str, Any], now: datetime.datetime) -> bool:
    try:
        renewed = datetime.datetime.fromisoformat(spec["renewTime"])
    except (KeyError, ValueError, TypeError):
        return True
    return (now - renewed).total_seconds() > int(spec.get("leaseDurationSeconds") or 0)


def _stamp(moment: datetime.datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
