# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""A controller's working directory over one cluster, and over hosts beside it: environment files, bundles, ledger, playbooks."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import yaml
from cluster import Cluster

from ansible_collections.apiary.tetragon.plugins.plugin_utils import bundle

sys.path.insert(0, str(Path(__file__).parents[1] / "lab"))

from playbooks import Playbooks

RANGES = {"policy": "network/c2-ranges", "mode": "enforce", "form": "cluster", "values": {"ranges": ["192.0.2.0/24"]}}
FILELESS = {"policy": "process/fileless-execution", "mode": "monitor", "form": "cluster"}
RINGS = [{"name": "canary", "take": 2}, {"name": "early", "take": "30%"}, {"name": "fleet", "take": "rest", "batch": "50%"}]
GATES = {"bake": "1s", "control": 2}
# Nothing of an agent has to settle in the lab.
VALUES = {"minReadySeconds": 0}


class Site(Playbooks):
    """``cluster`` as the inventory host kube1; ``hosts`` are inventory hosts beside it, with their variables."""

    defaults: ClassVar[Mapping[str, Any]] = {"policies": [RANGES, FILELESS], "rings": RINGS, "gates": GATES}
    seconds = 600

    def __init__(self, directory: Path, cluster: Cluster, namespace: str, helm: int = 4, hosts: Mapping[str, Any] | None = None) -> None:
        super().__init__(directory, directory / "inventory.json")
        self.cluster = cluster
        self.namespace = namespace
        (directory / "values.yml").write_text(yaml.safe_dump(VALUES), encoding="utf-8")
        self.place: dict[str, Any] = {
            "ansible_connection": "ansible.builtin.local",
            "ansible_python_interpreter": sys.executable,
            "apiary_become": False,
            "apiary_kube_context": "lab",
            "apiary_kubeconfig": str(cluster.kubeconfig),
            "apiary_kube_namespace": namespace,
            "apiary_kube_values": [str(directory / "values.yml")],
            "apiary_kube_stall": 60,
            "apiary_helm": str(cluster.bin / f"helm{helm}"),
        }
        self.hosts = dict(hosts or {})
        self.write_inventory()

    def write_inventory(self, **changes: Any) -> None:
        """Write the inventory; ``changes`` are variables of the cluster that go over the usual ones."""
        content = {
            "all": {
                "hosts": self.hosts,
                "children": {"apiary_clusters": {"hosts": {"kube1": {**self.place, **changes}}}},
            }
        }
        self.inventory.write_text(json.dumps(content, indent=1), encoding="utf-8")

    @property
    def variables(self) -> dict[str, str]:
        helm = {f"HELM_{kind}_HOME": f"{self.cluster.directory}/helm" for kind in ("CACHE", "CONFIG", "DATA")}
        return {**super().variables, **helm}

    def install(self, path: Path) -> None:
        done = self.play("install", path)
        assert done.code == 0, done.output

    def get(self, kind: str, group: str = "/api/v1") -> list[dict[str, Any]]:
        return list(self.cluster.request("GET", f"{group}/namespaces/{self.namespace}/{kind}")["items"])

    def policies(self) -> dict[str, set[str]]:
        """Which policies each node's agent was given, by the ConfigMap that its pod mounts; pods that are ending aside."""
        given = {one["metadata"]["name"]: {key for key in one["data"] if key.endswith(".yaml")} for one in self.get("configmaps")}
        return {
            pod["spec"]["nodeName"]: next(
                given[volume["configMap"]["name"]] for volume in pod["spec"]["volumes"] if volume["name"] == "policies"
            )
            for pod in self.get("pods")
            if "deletionTimestamp" not in pod["metadata"] and "nodeName" in pod["spec"]
        }

    def ever(self, chosen: Path) -> set[str]:
        """The rings whose DaemonSet was ever given a policy of this bundle, by the revisions that the controller keeps."""
        names = {one["file"] for one in bundle.read(chosen).policies_for((), "cluster")}
        given = {one["metadata"]["name"] for one in self.get("configmaps") if names & set(one["data"])}
        return {
            one["metadata"]["labels"]["apiary.dev/ring"]
            for one in self.get("controllerrevisions", "/apis/apps/v1")
            if given & {volume.get("configMap", {}).get("name") for volume in one["data"]["spec"]["template"]["spec"]["volumes"]}
        }

    def truth(self, ring: str) -> dict[str, Any]:
        found = self.cluster.request("GET", f"/api/v1/namespaces/{self.namespace}/configmaps/apiary-truth-{ring}")
        content: dict[str, Any] = json.loads(found["data"]["truth.json"])
        assert found["metadata"]["annotations"]["apiary.dev/verdict"] == content["verdict"]
        return content
