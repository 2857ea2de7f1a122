# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""What Argo CD is given: an ApplicationSet over the rings of all clusters, and the health check of a ring.

Field names as in Argo CD 3.5: docs/operator-manual/applicationset/{Generators-Git,Progressive-Syncs}.md, health.md there.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils import canonical

HEALTH = Path(__file__).with_name("health.lua")
CLUSTER = "apiary.dev/cluster"
STEP = "apiary.dev/step"
NAMESPACE = "apiary.dev/namespace"
# An object that outlives the revision it came with, as helm.sh/resource-policy: keep says to Helm.
KEPT = {"argocd.argoproj.io/sync-options": "Prune=false", "argocd.argoproj.io/compare-options": "IgnoreExtraneous"}
_COMMON = "common"


@dataclass(frozen=True)
class Settings:
    """Where Argo CD finds the tree, and what it makes of it. ``path`` is the tree's place in the repository, or empty.

    ``max_age`` is the age in seconds at which truth counts as stale; 0: never.
    """

    repo_url: str
    revision: str = "HEAD"
    path: str = ""
    namespace: str = "argocd"
    project: str = "default"
    max_age: int = 3600


def health_check(max_age: int) -> str:
    """The Lua script, for truth that counts as stale after so many seconds; 0: never."""
    return HEALTH.read_text("utf-8").replace("@max_age@", str(max_age))


def identity(cluster: str, namespace: str, ring: str = "") -> dict[str, Any]:
    """The ``metadata`` of a kustomization that is an Application of its own: a ring of a cluster, or what its rings share.

    Names differ whatever clusters and rings are called, as no ring has a dot. The namespace is told here and not as the
    kustomization's own, as kustomize would give one to kinds whose scope it does not know.
    """
    name, step = (f"apiary.{cluster}.{ring}", f"ring-{ring}") if ring else (f"apiary-{_COMMON}.{cluster}", _COMMON)
    return {"name": name, "labels": {CLUSTER: cluster, STEP: step}, "annotations": {NAMESPACE: namespace}}


def application_set(settings: Settings, rings: Iterable[str]) -> dict[str, Any]:
    """One Application per ring and cluster, synced ring by ring: the next ring waits until the former is healthy.

    Nothing is pruned and nothing deleted by it: an agent that goes leaves nodes without enforcement.
    """
    prefix = f"{settings.path}/" if settings.path else ""
    source = {"repoURL": settings.repo_url, "targetRevision": settings.revision}
    steps = [_COMMON, *(f"ring-{ring}" for ring in rings)]
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "ApplicationSet",
        "metadata": {"name": "apiary", "namespace": settings.namespace},
        "spec": {
            "goTemplate": True,
            "goTemplateOptions": ["missingkey=error"],
            "generators": [
                {
                    "git": {
                        "repoURL": settings.repo_url,
                        "revision": settings.revision,
                        "files": [
                            {"path": f"{prefix}{_COMMON}/*/kustomization.yaml"},
                            {"path": f"{prefix}clusters/*/rings/*/kustomization.yaml"},
                        ],
                    }
                }
            ],
            "strategy": {
                "type": "RollingSync",
                "rollingSync": {"steps": [{"matchExpressions": [{"key": STEP, "operator": "In", "values": [step]}]} for step in steps]},
            },
            "syncPolicy": {"preserveResourcesOnDeletion": True},
            "template": {
                "metadata": {
                    "name": "{{ .metadata.name }}",
                    "labels": {name: f'{{{{ index .metadata.labels "{name}" }}}}' for name in (CLUSTER, STEP)},
                },
                "spec": {
                    "project": settings.project,
                    "source": {**source, "path": "{{ .path.path }}"},
                    "destination": {
                        "name": f'{{{{ index .metadata.labels "{CLUSTER}" }}}}',
                        "namespace": f'{{{{ index .metadata.annotations "{NAMESPACE}" }}}}',
                    },
                    "syncPolicy": {
                        # A set of policies may be larger than what client-side apply can note in an annotation.
                        "syncOptions": ["CreateNamespace=true", "ServerSideApply=true"],
                        "managedNamespaceMetadata": {"labels": {"pod-security.kubernetes.io/enforce": "privileged"}},
                    },
                },
            },
        },
    }


def settings_patch(settings: Settings) -> str:
    """The part of ``argocd-cm`` that makes Argo CD read the published truth, for a server-side apply."""
    head = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": "argocd-cm",
            "namespace": settings.namespace,
            "labels": {"app.kubernetes.io/name": "argocd-cm", "app.kubernetes.io/part-of": "argocd"},
        },
    }
    script = textwrap.indent(health_check(settings.max_age), "    ")
    return (
        f"{canonical.to_yaml(head)}data:\n"
        '  resource.customizations.useOpenLibs.ConfigMap: "true"\n'
        f"  resource.customizations.health.ConfigMap: |\n{script}"
    )
