# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Sets, options and scripts that nothing of a release names any more: the chart keeps them all, and etcd is not endless."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.client import Api
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.rings import KIND

KINDS = ("policies", "config", "script")
# Helm makes ConfigMaps before it changes what uses them.
AGE = datetime.timedelta(days=1)


def unused(kept: Iterable[Mapping[str, Any]], templates: Iterable[Mapping[str, Any]], now: datetime.datetime) -> list[str]:
    """Names of the ConfigMaps that are older than AGE and in no pod's template (``spec.template`` of what makes pods). Pure."""
    volumes = [volume for one in templates for volume in one["spec"].get("volumes") or ()]
    used = {volume["configMap"]["name"] for volume in volumes if "configMap" in volume}
    return sorted(
        one["metadata"]["name"]
        for one in kept
        if one["metadata"]["name"] not in used and now - datetime.datetime.fromisoformat(one["metadata"]["creationTimestamp"]) > AGE
    )


def prune(api: Api, now: datetime.datetime) -> list[str]:
    """Delete them; returns their names. What a DaemonSet may go back to by its ControllerRevisions stays. Raises ApiError, Refused."""
    place = api.place
    kept = list(api.items(place.path("v1", "configmaps"), labelSelector=f"{KIND} in ({','.join(KINDS)}),{place.selector}"))
    daemonsets = api.items(place.path("apps/v1", "daemonsets"), labelSelector=place.selector)
    revisions = api.items(place.path("apps/v1", "controllerrevisions"), labelSelector=place.selector)
    templates = [*(one["spec"]["template"] for one in daemonsets), *(one["data"]["spec"]["template"] for one in revisions)]
    names = unused(kept, templates, now)
    for name in names:
        api.delete(place.path("v1", "configmaps", name))
    return names
