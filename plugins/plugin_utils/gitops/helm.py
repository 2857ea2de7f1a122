# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The chart rendered on the controller, without a cluster."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils.gitops.layout import Cluster
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.helm import Document, parse
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import refuse


def template(cluster: Cluster, chart: Path, values: Mapping[str, Any]) -> list[Document]:
    """The objects of a cluster's release: its own values files first, then ``values``. Raises Refused with what Helm says."""
    command = [cluster.helm, "template", cluster.release, str(chart), "--namespace", cluster.namespace]
    command += ["--kube-version", cluster.kube_version, "--no-hooks"]
    command += [part for file in (*cluster.values, "-") for part in ("--values", file)]
    try:
        run = subprocess.run(command, input=json.dumps(values), capture_output=True, text=True, check=False)
    except OSError as error:
        raise refuse(
            f"Helm cannot be run for cluster {cluster.name}: {cluster.helm}: {error.strerror}; install Helm 3 or 4 or set apiary_helm"
        ) from None
    if run.returncode:
        raise refuse(f"the chart cannot be rendered for cluster {cluster.name}: {run.stderr.strip()}", file=str(chart))
    return list(parse(run.stdout))
