# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""One cluster of twenty nodes for the session, a namespace for each case, and more clusters for those that need their own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).parent))

if TYPE_CHECKING:
    from cluster import Cluster

RINGS = {"canary": 2, "early": 6}
NODES = 20


@pytest.fixture(scope="session")
def new_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Cluster]]:
    """Starts a cluster without nodes, with a network of its own; it lives as long as the session."""
    import cluster as lab

    if reason := lab.obstacle():
        pytest.skip(reason)
    programs = lab.programs()
    with ExitStack() as stack:
        yield lambda: stack.enter_context(lab.Cluster(tmp_path_factory.mktemp("cluster"), programs))


@pytest.fixture(scope="session")
def cluster(new_cluster: Callable[[], Cluster]) -> Cluster:
    """The shared cluster: nodes node-0000 to -0019, of which the first carry the labels of RINGS. Its faults are the case's own."""
    made = new_cluster()
    made.nodes(NODES, RINGS, kernels=("6.8.0-45-generic", "5.15.0-119-generic", "6.1.0-28-amd64"), architectures=("amd64", "arm64"))
    return made


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace that goes after the case, with all that is in it; faults and dead nodes go with it."""
    name = f"case-{os.urandom(4).hex()}"
    cluster.request("POST", "/api/v1/namespaces", {"metadata": {"name": name, "annotations": {"case": request.node.name}}})
    yield name
    cluster.faults()
    if dead := cluster.dead():
        cluster.revive_nodes(dead)
    cluster.request("DELETE", f"/api/v1/namespaces/{name}")
