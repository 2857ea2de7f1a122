# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The release on a cluster outside rollouts: judged, installed, nodes labelled, removed to the last pin."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ansible_collections.apiary.tetragon.plugins.module_utils.agent.preflight import Verdict
from ansible_collections.apiary.tetragon.plugins.plugin_utils import bundle as bundles
from ansible_collections.apiary.tetragon.plugins.plugin_utils.environment import Environment
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube import change, observe, prune, values
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube import helm as helms
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.client import MERGE, THREADS, ApiError
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.label import draw
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.rings import KIND, LABEL, check_overlap
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.session import Cluster, Tell
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Refused, refuse

OLDEST = (1, 28)
SECURITY = "pod-security.kubernetes.io/enforce"
SCRIPT = "/etc/apiary/script/agent.sh"
MAX_NAMED = 5
# What a rollout asks of the API server itself; helm and its manifests need more, which a dry run shows.
NEEDED: tuple[tuple[str, str, str, bool], ...] = (
    ("list", "", "nodes", False),
    ("list", "", "pods", False),
    ("get", "", "pods/proxy", True),
    ("create", "", "pods/exec", True),
    ("get", "", "configmaps", True),
    ("list", "", "configmaps", True),
    ("patch", "", "configmaps", True),
    ("delete", "", "configmaps", True),
    ("list", "apps", "controllerrevisions", True),
    ("list", "apps", "daemonsets", True),
    ("get", "apps", "daemonsets", True),
    ("patch", "apps", "daemonsets", True),
    ("list", "", "secrets", True),
    ("create", "", "secrets", True),
    ("update", "", "secrets", True),
    ("delete", "", "secrets", True),
    ("get", "coordination.k8s.io", "leases", True),
    ("create", "coordination.k8s.io", "leases", True),
    ("update", "coordination.k8s.io", "leases", True),
    ("delete", "coordination.k8s.io", "leases", True),
)


def read_values(files: Sequence[str]) -> dict[str, Any]:
    """Values files, the later over the earlier, as helm merges them. Raises Refused."""
    merged: dict[str, Any] = {}
    for name in files:
        try:
            content = yaml.safe_load(Path(name).read_text(encoding="utf-8")) or {}
        except OSError as error:
            raise refuse(f"cannot be read: {error.strerror}; it is named in apiary_kube_values", file=name) from None
        except yaml.YAMLError as error:
            raise refuse(f"is not YAML: {error}", file=name) from None
        if not isinstance(content, dict):
            raise refuse("is not a mapping of values", file=name)
        merged = _merged(merged, content)
    return merged


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        known = result.get(key)
        result[key] = _merged(known, value) if isinstance(known, dict) and isinstance(value, dict) else value
    return result


@dataclass(frozen=True)
class Plan:
    """What an installation would come to."""

    values: Mapping[str, Any]
    changed: bool
    lines: tuple[Sequence[str], Sequence[str]]


class Operator:
    """One cluster, under one environment; ``base`` are the values that the user gives for it."""

    def __init__(self, cluster: Cluster, environment: Environment | None, base: Mapping[str, Any], tell: Tell) -> None:
        self.cluster = cluster
        self.environment = environment
        self.base = base
        self.tell = tell
        self.name = cluster.place.name

    # --- install ----------------------------------------------------------------------------------------------------

    def _rings(self) -> tuple[Environment, tuple[str, ...]]:
        if self.environment is None:
            raise ValueError("this step needs an environment file")
        return self.environment, self.cluster.rings(self.environment)

    def plan(self) -> Plan:
        """What an installation would do, tried on the API server. Changes nothing; raises Refused when it cannot be."""
        environment, rings = self._rings()
        helm, api = self.cluster.helm, self.cluster.api
        helm.version()
        release = helm.release()
        former = release.values if release else {}
        batches = {ring.name: ring.batch for ring in environment.rings if ring.name in rings}
        wanted = values.for_install(self.base, former, batches, environment.agent_version)
        check_overlap(self.name, {node: [pod.owner for pod in found if not pod.ending] for node, found in observe.pods(api).items()})
        new, old = helm.render(wanted), helm.manifest()
        if api.find(f"/api/v1/namespaces/{self.cluster.place.namespace}"):
            helms.dry_run(api, new, old)
        changed = release is None or release.status != "deployed" or former != wanted or not helms.same(new, old)
        return Plan(wanted, changed, (_lines(former), _lines(wanted)))

    def install(self) -> Plan:
        """Bring the release to the environment's rings and the user's values, and count its nodes. Raises Refused."""
        _environment, rings = self._rings()
        place, api, helm = self.cluster.place, self.cluster.api, self.cluster.helm
        helm.recover(api)
        plan = self.plan()
        if plan.changed:
            self._make_namespace()
            helm.upgrade(plan.values)
        failed = []
        for ring in rings:
            counted = change.await_ring(api, ring, rings, self.cluster.timeout, self._say, lambda: None)
            failed += [f"{node}: {why}" for node, why in {**counted.failing, **counted.waiting}.items()]
        if failed:
            raise refuse(
                f"{len(failed)} nodes do not run the agent: {'; '.join(sorted(failed)[:MAX_NAMED])}; see `kubectl -n {place.namespace} "
                "get pods -o wide`, mend that, and run again",
                path=f"cluster {self.name}",
            )
        return plan

    def _say(self, text: str) -> None:
        self.tell(f"    {self.name}: {text}")

    def _make_namespace(self) -> None:
        """The namespace, for privileged pods, where there is none."""
        api, namespace = self.cluster.api, self.cluster.place.namespace
        path = f"/api/v1/namespaces/{namespace}"
        if api.find(path) is None:
            metadata = {"name": namespace, "labels": {SECURITY: "privileged"}}
            api.apply(path, {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})

    # --- preflight --------------------------------------------------------------------------------------------------

    def preflight(self, chosen: bundles.Bundle | None) -> list[Verdict]:
        """A verdict on everything that an installation and a rollout need. Changes nothing."""
        checks: tuple[tuple[str, Callable[[], Iterator[Verdict]]], ...] = (
            ("API server", self._server),
            ("helm", self._helm),
            ("permissions", self._permissions),
            ("namespace", self._namespace),
            ("nodes", self._nodes),
            ("policies", lambda: self._policies(chosen)),
            ("release", self._release),
        )
        found = []
        for name, check in checks:
            try:
                found += list(check())
            except (Refused, ApiError) as error:
                found.append(Verdict(name, "fail", str(error)))
                if name == "API server":
                    break
        return found

    def _server(self) -> Iterator[Verdict]:
        version = self.cluster.api.get("/version")
        series = (int(version["major"]), int("".join(digit for digit in version["minor"] if digit.isdigit())))
        yield Verdict(
            "API server",
            "ok" if series >= OLDEST else "fail",
            version["gitVersion"],
            f"{OLDEST[0]}.{OLDEST[1]} or newer",
            "" if series >= OLDEST else "upgrade the cluster",
        )

    def _helm(self) -> Iterator[Verdict]:
        yield Verdict("helm", "ok", self.cluster.helm.version(), "3 or 4")

    def _permissions(self) -> Iterator[Verdict]:
        missing = [need for need in NEEDED if not self._may(*need)]
        for verb, group, resource, _inside in missing:
            name = f"{resource}.{group}" if group else resource
            yield Verdict("permissions", "fail", f"may not {verb} {name}", f"{verb} {name}", "grant it by a Role or ClusterRole")
        if not missing:
            yield Verdict("permissions", "ok", f"all {len(NEEDED)} that a rollout needs")

    def _may(self, verb: str, group: str, resource: str, inside: bool) -> bool:
        name, _slash, part = resource.partition("/")
        attributes = {"verb": verb, "group": group, "resource": name, "subresource": part}
        if inside:
            attributes["namespace"] = self.cluster.place.namespace
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }
        answer = self.cluster.api.send("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", None, review)
        return bool(answer["status"].get("allowed"))

    def _namespace(self) -> Iterator[Verdict]:
        name = self.cluster.place.namespace
        known = self.cluster.api.find(f"/api/v1/namespaces/{name}")
        level = ((known or {}).get("metadata", {}).get("labels") or {}).get(SECURITY, "privileged")
        fine = level == "privileged"
        yield Verdict(
            "namespace",
            "ok" if fine else "fail",
            f"{name} " + (f"admits {level} pods" if known else "will be created"),
            "" if fine else "privileged pods: the agent loads programs into the kernel",
            "" if fine else f"kubectl label --overwrite namespace {name} {SECURITY}=privileged",
        )

    def _nodes(self) -> Iterator[Verdict]:
        _environment, rings = self._rings()
        nodes = list(observe.nodes(self.cluster.api, rings).values())
        bare = sum(not node.named for node in nodes)
        for ring in rings:
            members = [node for node in nodes if node.ring == ring]
            yield Verdict(
                f"ring {ring}",
                "ok" if members else "fail",
                f"{len(members)} nodes" + (f", {bare} of them without a label" if ring == rings[-1] and bare else ""),
                "" if members else "one node at least",
                "" if members else f"label nodes with {LABEL}={ring}; the playbook apiary.tetragon.cluster_label does it",
            )
        down = [node.name for node in nodes if not node.ready]
        if down:
            yield Verdict("nodes", "warn", f"{len(down)} of {len(nodes)} are not ready: {', '.join(down[:MAX_NAMED])}")

    def _policies(self, chosen: bundles.Bundle | None) -> Iterator[Verdict]:
        if chosen is not None:
            files = values.with_bundle({"name": "any", "agentVersion": ""}, chosen, self.cluster.groups, "1")["policies"]
            size = sum(len(name) + len(text.encode()) for name, text in files.items())
            yield Verdict("policies", "ok", f"{len(files)} in {size:,} bytes", f"{values.MAX_DATA:,} bytes at most")

    def _release(self) -> Iterator[Verdict]:
        release = self.cluster.helm.release()
        plan = self.plan()
        state = f"{release.status}, revision {release.revision}" if release else "not installed"
        yield Verdict("release", "ok", f"{state}; the API server would take " + ("the change" if plan.changed else "it as it is"))

    # --- label ------------------------------------------------------------------------------------------------------

    def labels(self) -> dict[str, str]:
        """The nodes that are still to be labelled, with their rings."""
        environment, rings = self._rings()
        return draw(environment, self.name, rings, observe.nodes(self.cluster.api, rings).values())

    def label(self, drawn: Mapping[str, str]) -> None:
        """Label nodes; one that has been labelled meanwhile keeps what it has."""
        api = self.cluster.api

        def one(node: str) -> None:
            path = f"/api/v1/nodes/{node}"
            known = api.find(path)
            if known and LABEL not in known["metadata"].get("labels", {}):
                metadata = {"labels": {LABEL: drawn[node]}, "resourceVersion": known["metadata"]["resourceVersion"]}
                api.send("PATCH", path, None, {"metadata": metadata}, MERGE)

        with ThreadPoolExecutor(THREADS) as threads:
            list(threads.map(one, drawn))

    # --- remove -----------------------------------------------------------------------------------------------------

    def remove(self) -> bool:
        """Take the release off, and what it left on every node; whether there was anything. Raises Refused naming what is left.

        CRDs, their objects and the namespace stay.
        """
        api, place = self.cluster.api, self.cluster.place
        self.cluster.helm.recover(api)
        script = next(iter(sorted(self._kept("script"))), "")
        daemon_sets = list(api.items(place.path("apps/v1", "daemonsets"), labelSelector=place.selector))
        image, sources = _parts(daemon_sets)
        removed = self.cluster.helm.uninstall()
        if not removed and not script:
            return False
        self._await_gone()
        if image and script:
            kept = {"image": image, "script": script, "paths": sources}
            self._note(kept)
        else:
            kept = self._noted()
        self._clean(kept)
        for kind in (*prune.KINDS, "truth", "removal"):
            for name in self._kept(kind):
                api.delete(place.path("v1", "configmaps", name))
        return True

    def _kept(self, kind: str) -> list[str]:
        """Names of our ConfigMaps of a kind."""
        place = self.cluster.place
        found = self.cluster.api.items(place.path("v1", "configmaps"), labelSelector=f"{KIND}={kind}")
        names = (str(one["metadata"]["name"]) for one in found)
        return [name for name in names if name.startswith(f"{place.fullname}-")]

    def _removal(self) -> str:
        return f"{self.cluster.place.fullname}-removal"

    def _note(self, kept: Mapping[str, Any]) -> None:
        """Keep in the cluster what the cleaning needs once the release is gone, so that a removal can be taken up."""
        document = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": self._removal(), "labels": {KIND: "removal"}},
            "data": {"removal.json": json.dumps(kept)},
        }
        self.cluster.api.apply(self.cluster.place.path("v1", "configmaps", self._removal()), document)

    def _noted(self) -> dict[str, Any]:
        known = self.cluster.api.find(self.cluster.place.path("v1", "configmaps", self._removal()))
        if known is None:
            raise refuse(
                "was uninstalled by other means, so that the agent's image is not known: install it again and remove it then, or run the "
                "Job of docs/kubernetes.md by hand",
                path=f"cluster {self.name}",
            )
        kept: dict[str, Any] = json.loads(known["data"]["removal.json"])
        return kept

    def _await_gone(self) -> None:
        end, place = time.monotonic() + self.cluster.timeout, self.cluster.place
        path = place.path("v1", "pods")
        while left := list(self.cluster.api.items(path, labelSelector=f"{place.selector},app.kubernetes.io/component=agent")):
            if time.monotonic() > end:
                named = ", ".join(one["metadata"]["name"] for one in left[:MAX_NAMED])
                raise refuse(f"{len(left)} of its pods have not ended: {named}; see to them, and run again", path=f"cluster {self.name}")
            time.sleep(change.POLL)

    def _clean(self, kept: Mapping[str, Any]) -> None:
        """One Job a node with the script's verb ``clean``, which fails when anything of an agent is left."""
        api, place = self.cluster.api, self.cluster.place
        path = place.path("batch/v1", "jobs")
        nodes = [raw["metadata"]["name"] for raw in api.items("/api/v1/nodes", labelSelector="kubernetes.io/os=linux")]
        jobs = {node: _job(place.fullname, node, kept) for node in nodes}

        def start(node: str) -> None:
            try:
                api.send("POST", path, None, jobs[node])
            except ApiError as error:
                if error.status != 409:
                    raise

        with ThreadPoolExecutor(THREADS) as threads:
            list(threads.map(start, nodes))
        end = time.monotonic() + self.cluster.timeout
        known = {str(job["metadata"]["name"]): node for node, job in jobs.items()}
        while True:
            done = {one["metadata"]["name"]: one.get("status", {}) for one in api.items(path, labelSelector=f"{KIND}=clean")}
            failed = [node for name, node in known.items() if done.get(name, {}).get("failed")]
            waiting = [node for name, node in known.items() if not done.get(name, {}).get("succeeded") and node not in failed]
            self._say(f"{len(known) - len(waiting) - len(failed)} of {len(known)} nodes are clean")
            if failed or not waiting or time.monotonic() > end:
                break
            time.sleep(change.POLL)
        for name in known:
            api.delete(f"{path}/{name}")
        if failed or waiting:
            raise refuse(
                f"{len(failed) + len(waiting)} of {len(known)} nodes are not proved clean: "
                f"{', '.join((failed + waiting)[:MAX_NAMED])}; what is pinned there goes on enforcing; see to these nodes, or delete them, "
                "and run again",
                path=f"cluster {self.name}",
            )


def _parts(daemon_sets: Sequence[Mapping[str, Any]]) -> tuple[str, dict[str, str]]:
    """The agent's image and the directories of nodes, out of the DaemonSets."""
    for one in daemon_sets:
        spec = one["spec"]["template"]["spec"]
        image = next((container["image"] for container in spec["containers"] if container["name"] == observe.CONTAINER), "")
        if image:
            return image, {volume["name"]: volume["hostPath"]["path"] for volume in spec["volumes"] if "hostPath" in volume}
    return "", {}


def _job(fullname: str, node: str, kept: Mapping[str, Any]) -> dict[str, Any]:
    paths = {"bpffs": "/sys/fs/bpf", "procfs": "/proc", "run": "/run/apiary", **kept["paths"]}
    mounts = (("script", "/etc/apiary/script"), ("bpffs", "/sys/fs/bpf"), ("procfs", "/procRoot"), ("run", "/run/apiary"))
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": f"{fullname}-clean-{hashlib.sha256(node.encode()).hexdigest()[:12]}", "labels": {KIND: "clean"}},
        "spec": {
            "backoffLimit": 0,
            "template": {
                "metadata": {"labels": {KIND: "clean"}},
                "spec": {
                    "restartPolicy": "Never",
                    "nodeName": node,
                    "tolerations": [{"operator": "Exists"}],
                    "automountServiceAccountToken": False,
                    "containers": [
                        {
                            "name": "clean",
                            "image": kept["image"],
                            "command": ["/bin/bash", SCRIPT, "clean"],
                            "securityContext": {"privileged": True},
                            "volumeMounts": [
                                {"name": name, "mountPath": path, **({"mountPropagation": "Bidirectional"} if name == "bpffs" else {})}
                                for name, path in mounts
                            ],
                        }
                    ],
                    "volumes": [
                        {"name": "script", "configMap": {"name": kept["script"]}},
                        *({"name": name, "hostPath": {"path": paths[name]}} for name in ("bpffs", "procfs", "run")),
                    ],
                },
            },
        },
    }


def _lines(release: Mapping[str, Any]) -> list[str]:
    return [f"ring {one['name']}: {line}" for one in release.get("rings", ()) for line in values.shown(one)] + [
        f"{key}: {json.dumps(value, sort_keys=True)}" for key, value in sorted(release.items()) if key != "rings"
    ]
