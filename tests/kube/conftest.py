# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""One cluster of twenty nodes for the session, and a namespace for each case."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).parent))

if TYPE_CHECKING:
    from cluster import Cluster

RINGS = {"canary": 2, "early": 6}
NODES = 20


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The shared cluster: nodes node-0000 to -0019, of which the first carry the labels of RINGS. Its faults are the case's own."""
    import cluster as lab

    if reason := lab.obstacle():
        pytest.skip(reason)
    with lab.Cluster(tmp_path_factory.mktemp("cluster")) as made:
        made.nodes(NODES, RINGS, kernels=("6.8.0-45-generic", "5.15.0-119-generic", "6.1.0-28-amd64"), architectures=("amd64", "arm64"))
        yield made


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
