# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""What the action plugins about clusters share: their options, the cluster that these and the inventory name, its errors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils.controller import failure
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.client import ApiError, Place
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.session import Cluster
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Refused, refuse

ARGUMENTS: Mapping[str, Mapping[str, Any]] = {
    "context": {"type": "str", "default": ""},
    "kubeconfig": {"type": "path", "default": ""},
    "namespace": {"type": "str", "default": "tetragon"},
    "release": {"type": "str", "default": "apiary"},
    "helm": {"type": "str", "default": "helm"},
    "stall": {"type": "int", "default": 600},
    "digests": {"type": "dict", "default": {}},
}


@contextlib.contextmanager
def the_cluster(arguments: Mapping[str, Any], task_vars: Mapping[str, Any]) -> Iterator[Cluster]:
    """The inventory host as a cluster. What is refused, here or by its API server, is the failure of the task."""
    place = Place(
        name=str(task_vars["inventory_hostname"]),
        context=arguments["context"],
        kubeconfig=arguments["kubeconfig"],
        namespace=arguments["namespace"],
        release=arguments["release"],
    )
    try:
        yield Cluster(place, tuple(task_vars["group_names"]), arguments["helm"], arguments["stall"], arguments["digests"])
    except Refused as error:
        raise failure(error) from None
    except ApiError as error:
        raise failure(refuse(error.message, path=f"cluster {place.name}")) from None
