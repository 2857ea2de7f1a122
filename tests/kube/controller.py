# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""A controller's working directory over one cluster, and over hosts beside it: environment files, bundles, ledger, playbooks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from cluster import Cluster

from ansible_collections.apiary.tetragon.plugins.plugin_utils import bundle, environment
from ansible_collections.apiary.tetragon.plugins.plugin_utils.build import build
from ansible_collections.apiary.tetragon.plugins.plugin_utils.fleet.ledger import Ledger
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.load import Library

REPOSITORY = Path(__file__).parents[2]
RANGES = {"policy": "network/c2-ranges", "mode": "enforce", "form": "cluster", "values": {"ranges": ["192.0.2.0/24"]}}
FILELESS = {"policy": "process/fileless-execution", "mode": "monitor", "form": "cluster"}
RINGS = [{"name": "canary", "take": 2}, {"name": "early", "take": "30%"}, {"name": "fleet", "take": "rest", "batch": "50%"}]
GATES = {"bake": "1s", "control": 2}
# Nothing of an agent has to settle in the lab.
VALUES = {"minReadySeconds": 0}


@dataclass(frozen=True)
class Played:
    """A finished ansible-playbook: exit code and everything it printed."""

    code: int
    output: str


class Site:
    """``cluster`` as the inventory host kube1; ``hosts`` are inventory hosts beside it, with their variables."""

    def __init__(self, directory: Path, cluster: Cluster, namespace: str, helm: int = 4, hosts: Mapping[str, Any] | None = None) -> None:
        self.directory = directory
        self.cluster = cluster
        self.namespace = namespace
        self.ledger = Ledger(directory / "ledger")
        self.inventory = directory / "inventory.json"
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

    def environment(self, name: str = "lab.yml", **changes: Any) -> Path:
        content = {"name": "lab", "agent_version": "1.7.0", "policies": [RANGES, FILELESS], "rings": RINGS, "gates": GATES, **changes}
        path = self.directory / name
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return path

    def bundle(self, path: Path) -> Path:
        library = Library([REPOSITORY / "tests/lab/policies", REPOSITORY / "policies"])
        return bundle.write(build(environment.load(path), library).bundle, self.directory / "bundles")

    def command(self, playbook: str, path: Path, *flags: str, **variables: Any) -> list[str]:
        known = {
            "apiary_environment": str(path),
            "apiary_bundle_dir": str(self.directory / "bundles"),
            "apiary_ledger_dir": str(self.directory / "ledger"),
            "apiary_report_dir": str(self.directory / "reports"),
        }
        program = str(Path(sys.executable).with_name("ansible-playbook"))
        extra = json.dumps({**known, **variables}, default=str)
        return [program, f"apiary.tetragon.{playbook}", "-i", str(self.inventory), "-e", extra, *flags]

    @property
    def variables(self) -> dict[str, str]:
        return {
            **os.environ,
            **{f"HELM_{kind}_HOME": f"{self.cluster.directory}/helm" for kind in ("CACHE", "CONFIG", "DATA")},
            "ANSIBLE_COLLECTIONS_PATH": str(os.environ.get("ANSIBLE_COLLECTIONS_PATH") or REPOSITORY / ".build/collections"),
            "ANSIBLE_STDOUT_CALLBACK": "apiary.tetragon.rings",
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_HOME": str(self.directory / "ansible"),
        }

    def play(self, playbook: str, path: Path, *flags: str, callback: str = "apiary.tetragon.rings", **variables: Any) -> Played:
        done = subprocess.run(
            self.command(playbook, path, *flags, **variables),
            env={**self.variables, "ANSIBLE_STDOUT_CALLBACK": callback},
            cwd=self.directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=600,
        )
        return Played(done.returncode, done.stdout)

    def start(self, command: list[str]) -> subprocess.Popen[bytes]:
        """Start a playbook in a session of its own, to be killed with all its children; it writes to ``output``."""
        with (self.directory / "output").open("wb") as output:
            return subprocess.Popen(command, env=self.variables, cwd=self.directory, stdout=output, stderr=output, start_new_session=True)

    def install(self, path: Path) -> None:
        done = self.play("install", path)
        assert done.code == 0, done.output

    def rollout(self, path: Path, chosen: Path, *flags: str, **variables: Any) -> Played:
        return self.play("rollout", path, *flags, apiary_bundle=chosen, **variables)

    def kinds(self) -> list[str]:
        return [entry["kind"] for entry in self.ledger.read()]

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

    def report(self) -> dict[str, Any]:
        newest = max((self.directory / "reports").glob("rollout-*.json"), key=lambda path: path.stat().st_mtime_ns)
        content: dict[str, Any] = json.loads(newest.read_text(encoding="utf-8"))
        return content
