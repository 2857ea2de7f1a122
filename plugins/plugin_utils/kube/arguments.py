# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The options that every module about clusters has, and the cluster that they and the inventory name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.client import Place
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.session import Cluster

ARGUMENTS: Mapping[str, Mapping[str, Any]] = {
    "context": {"type": "str", "default": ""},
    "kubeconfig": {"type": "path", "default": ""},
    "namespace": {"type": "str", "default": "tetragon"},
    "release": {"type": "str", "default": "apiary"},
    "helm": {"type": "str", "default": "helm"},
    "stall": {"type": "int", "default": 600},
    "digests": {"type": "dict", "default": {}},
}


def cluster_from(arguments: Mapping[str, Any], task_vars: Mapping[str, Any]) -> Cluster:
    """The inventory host as a cluster."""
    place = Place(
        name=str(task_vars["inventory_hostname"]),
        context=arguments["context"],
        kubeconfig=arguments["kubeconfig"],
        namespace=arguments["namespace"],
        release=arguments["release"],
    )
    return Cluster(place, tuple(task_vars["group_names"]), arguments["helm"], arguments["stall"], arguments["digests"])
