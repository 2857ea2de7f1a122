# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""What kwok does with nodes and pods, as its Stages: pods run at once, a Job's complete, deleted ones go.

An agent's pod (one with a container ``tetragon``) runs but is not Ready: that is up to the agents' stand-in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_ALIVE = {"key": ".metadata.deletionTimestamp", "operator": "DoesNotExist"}
_RUN = """
{{ $now := Now }}
{{ $ready := true }}{{ $status := "True" }}
{{ range .spec.containers }}{{ if eq .name "tetragon" }}{{ $ready = false }}{{ $status = "False" }}{{ end }}{{ end }}
phase: Running
startTime: {{ $now | Quote }}
conditions:
- {type: Initialized, status: "True", lastTransitionTime: {{ $now | Quote }}}
- {type: Ready, status: {{ $status | Quote }}, lastTransitionTime: {{ $now | Quote }}}
- {type: ContainersReady, status: {{ $status | Quote }}, lastTransitionTime: {{ $now | Quote }}}
containerStatuses:
{{ range .spec.containers }}
- {name: {{ .name | Quote }}, image: {{ .image | Quote }}, imageID: "", ready: {{ $ready }}, started: true, restartCount: 0,
   state: {running: {startedAt: {{ $now | Quote }}}}}
{{ end }}
{{ with .spec.initContainers }}
initContainerStatuses:
{{ range . }}
- {name: {{ .name | Quote }}, image: {{ .image | Quote }}, imageID: "", ready: true, restartCount: 0,
   state: {terminated: {exitCode: 0, reason: Completed, startedAt: {{ $now | Quote }}, finishedAt: {{ $now | Quote }}}}}
{{ end }}
{{ end }}
{{ range NodeIPsWith .spec.nodeName }}
hostIP: {{ . | Quote }}
hostIPs: [{ip: {{ . | Quote }}}]
{{ end }}
{{ range PodIPsWith .spec.nodeName ( or .spec.hostNetwork false ) .metadata.uid .metadata.name .metadata.namespace }}
podIP: {{ . | Quote }}
podIPs: [{ip: {{ . | Quote }}}]
{{ end }}
"""
_COMPLETE = """
{{ $now := Now }}
phase: Succeeded
conditions:
- {type: Ready, status: "False", reason: PodCompleted, lastTransitionTime: {{ $now | Quote }}}
containerStatuses:
{{ range .spec.containers }}
- {name: {{ .name | Quote }}, image: {{ .image | Quote }}, imageID: "", ready: false, started: false, restartCount: 0,
   state: {terminated: {exitCode: 0, reason: Completed, startedAt: {{ $now | Quote }}, finishedAt: {{ $now | Quote }}}}}
{{ end }}
"""


def stages(dead: Sequence[str]) -> list[dict[str, Any]]:
    """The Stages while these nodes are dead: nothing happens to pods there."""
    here = [{"key": ".spec.nodeName", "operator": "NotIn", "values": list(dead)}] if dead else []
    pending = {"key": ".status.phase", "operator": "In", "values": ["Pending"]}
    running = {"key": ".status.phase", "operator": "In", "values": ["Running"]}
    of_job = {"key": ".metadata.ownerReferences.[].kind", "operator": "In", "values": ["Job"]}
    deleted = {"key": ".metadata.deletionTimestamp", "operator": "Exists"}
    never_ready = {"key": '.status.conditions.[] | select( .type == "Ready" ) | .status', "operator": "DoesNotExist"}
    return [
        _stage("pod-run", "Pod", [_ALIVE, pending, *here], {"statusTemplate": _RUN}),
        _stage("pod-complete", "Pod", [_ALIVE, running, of_job, *here], {"statusTemplate": _COMPLETE}),
        _stage("pod-delete", "Pod", [deleted, *here], {"delete": True}),
        # Nodes are made Ready; kwok runs pods only of nodes that it has a Stage for.
        _stage("node-ready", "Node", [never_ready], {"statusTemplate": 'conditions: [{type: Ready, status: "True"}]'}),
    ]


def _stage(name: str, kind: str, expressions: list[dict[str, Any]], following: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "kwok.x-k8s.io/v1alpha1",
        "kind": "Stage",
        "metadata": {"name": name},
        "spec": {
            "resourceRef": {"apiGroup": "v1", "kind": kind},
            "selector": {"matchExpressions": expressions},
            "next": following,
        },
    }
