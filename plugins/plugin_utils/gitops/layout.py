# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The tree for a git repository from which clusters are kept: what stands in which file.

``policies/<digest>/<category>/<severity>/<policy>.yaml``
    a set of policies, made a ConfigMap by the kustomization beside them; likewise ``script/<digest>/``
``clusters/<cluster>/bundles/<bundle>-<digest>/<ring>/``
    all objects of a ring as the chart renders them for a bundle; like the sets above never changed once written
``clusters/<cluster>/rings/<ring>/``
    what runs: one line of its kustomization names a bundle, and which nodes belong to the ring stands beside it
``common/<cluster>/``
    objects that the rings of a cluster share
``argocd/``
    what Argo CD is given

A promotion writes the bundle of one ring into the line of the next.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils import canonical
from ansible_collections.apiary.tetragon.plugins.plugin_utils.bundle import Bundle
from ansible_collections.apiary.tetragon.plugins.plugin_utils.environment import Environment, Ring
from ansible_collections.apiary.tetragon.plugins.plugin_utils.gitops import argocd
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube import rings as kube_rings
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube import values as kube_values
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.rings import BUNDLE, KIND
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.rings import LABEL as RING
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import refuse

# The first line of every file of ours that says what it is; policies and scripts are to the byte what agents get.
OWN = "# Written by apiary.tetragon.gitops: "
KUSTOMIZATION = "kustomization.yaml"
_HEAD = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
_LINE = re.compile(r"""^ *- (["']?)\.\./\.\./bundles/(?P<bundle>[^/\s]+)/(?P<ring>[-a-z0-9]+)\1 *(#.*)?$""", re.MULTILINE)
_CLUSTER = re.compile(r"[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?")
_SHORT = 8

Document = Mapping[str, Any]
Files = dict[str, str]


@dataclass(frozen=True)
class Cluster:
    """A cluster of the inventory. ``values`` are files for the chart, under ours; ``digests`` those of images, by agent version.

    ``kube_version`` is the Kubernetes to render for. It is always named: the one that a Helm has built in differs.
    """

    name: str
    groups: tuple[str, ...]
    namespace: str = "tetragon"
    release: str = "apiary"
    values: tuple[str, ...] = ()
    kube_version: str = "1.30"
    helm: str = "helm"
    digests: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not _CLUSTER.fullmatch(self.name):
            raise refuse(f"cluster {self.name!r} cannot be the name of a directory and of an Application: use a-z, 0-9, '.' and '-'")

    def bundles(self) -> str:
        return f"clusters/{self.name}/bundles"

    def ring(self, ring: str) -> str:
        return f"clusters/{self.name}/rings/{ring}/{KUSTOMIZATION}"


@dataclass(frozen=True)
class Rendered:
    """A cluster's files: in a bundle (``inside``, from there), sets of policies, and those that follow the inventory.

    The kustomizations of the rings are in none: which bundle each names is another question.
    """

    inside: Files
    sets: Files
    current: Files


def rings_of(cluster: Cluster, environment: Environment) -> list[Ring]:
    """The rings that have nodes of this cluster, in order. Raises Refused."""
    names = kube_rings.rings_of(environment, cluster.name, cluster.groups)
    return [ring for ring in environment.rings if ring.name in names]


def values(cluster: Cluster, rings: Sequence[Ring], bundle: Bundle) -> dict[str, Any]:
    """Values for the chart: every ring of the cluster with the policies that the bundle has for the cluster. Raises Refused."""
    entries = [kube_values.with_bundle({"name": ring.name}, bundle, cluster.groups, ring.batch, cluster.digests) for ring in rings]
    return {"library": {"enabled": False}, "rings": entries}


def render(cluster: Cluster, rings: Sequence[Ring], bundle: Bundle, objects: Iterable[Document]) -> Rendered:
    """Put the objects that the chart makes of ``values`` where they belong. Raises Refused for a chart that has no such rings."""
    objects = list(objects)
    configmaps = {one["metadata"]["name"]: one for one in objects if one["kind"] == "ConfigMap"}
    daemonsets = {one["metadata"]["labels"][RING]: one for one in objects if one["kind"] == "DaemonSet" and RING in _labels(one)}
    missing = [ring.name for ring in rings if ring.name not in daemonsets]
    if missing:
        raise refuse(f"the chart has no DaemonSet for ring {', '.join(missing)} of cluster {cluster.name}: it is not charts/apiary")
    taken: set[str] = set()
    inside: Files = {}
    sets: Files = {}
    current: Files = {}
    for ring in rings:
        daemonset = daemonsets[ring.name]
        used = sorted(configmaps.keys() & set(_texts(daemonset["spec"]["template"]["spec"])))
        taken.update(used)
        own = [one for one in objects if _labels(one).get(RING) == ring.name]
        files, needed = _ring(cluster, ring, bundle, own, [configmaps[name] for name in used])
        inside |= {f"{ring.name}/{name}": text for name, text in files.items()}
        sets |= needed
        current[f"clusters/{cluster.name}/rings/{ring.name}/nodes.yaml"] = _nodes(daemonset)
    shared = [one for one in objects if RING not in _labels(one) and not (one["kind"] == "ConfigMap" and one["metadata"]["name"] in taken)]
    current |= {f"common/{cluster.name}/{path}": text for path, text in _common(cluster, shared).items()}
    return Rendered(inside, sets, current)


def directory_of(bundle: Bundle, rendered: Mapping[Cluster, Rendered]) -> str:
    """The name of a bundle's directory: of one name in all clusters, so that a promotion is the same line in each of them."""
    return f"{bundle.name}-{canonical.digest({cluster.name: one.inside for cluster, one in rendered.items()})[:_SHORT]}"


def ring_kustomization(cluster: Cluster, ring: str, bundle: str) -> str:
    """What runs in a ring: the bundle that its line names."""
    return _own(
        "a promotion changes the bundle below to that of the ring before",
        {
            **_HEAD,
            "metadata": argocd.identity(cluster.name, cluster.namespace, ring),
            "resources": [f"../../bundles/{bundle}/{ring}"],
            "patches": [{"path": "nodes.yaml", "target": {"kind": "DaemonSet"}}],
        },
    )


def bundle_named(text: str, ring: str, file: str) -> str:
    """The bundle that a ring's kustomization names. Raises Refused unless it is exactly one, for that ring."""
    found = [(match["bundle"], match["ring"]) for match in _LINE.finditer(text)]
    if len(found) != 1 or found[0][1] != ring:
        raise refuse(f"must name the ring's bundle in exactly one line such as: - ../../bundles/<bundle>/{ring}", file=file)
    return found[0][0]


def referenced(text: str) -> list[str]:
    """Names of the bundles that a kustomization names, for any ring."""
    return [match["bundle"] for match in _LINE.finditer(text)]


def argocd_files(settings: argocd.Settings, rings: Iterable[Ring]) -> Files:
    """The directory ``argocd``."""
    return {
        "argocd/applicationset.yaml": _own(
            "one Application for each ring of each cluster", argocd.application_set(settings, [ring.name for ring in rings])
        ),
        "argocd/argocd-cm.yaml": f"{OWN}kubectl apply --server-side adds it to Argo CD's settings\n{argocd.settings_patch(settings)}",
    }


def code_owners(bundle: Bundle, path: str, handles: Mapping[str, str], promoters: Sequence[str]) -> str:
    """Lines for CODEOWNERS: each policy to its owner, what decides where it runs to the promoters. The last line that fits counts."""
    prefix = f"/{path}/" if path else "/"
    owners = {
        f"{prefix}policies/*/{_place(one)}/{one['form']}-{one['name']}-*.yaml": handles.get(one["owner"], f"@{one['owner']}")
        for one in bundle.manifest["policies"]
        if one["form"] == "cluster"
    }
    lines = [f"{prefix}{part}/ {' '.join(promoters)}" for part in ("argocd", "clusters", "common") if promoters]
    return "\n".join([*lines, *(f"{pattern} {owner}" for pattern, owner in sorted(owners.items()))])


_BEGIN, _END = f"{OWN}begin", f"{OWN}end"
_BLOCK = re.compile(rf"^{re.escape(_BEGIN)}$.*?^{re.escape(_END)}$\n?", re.MULTILINE | re.DOTALL)


def with_block(text: str, block: str) -> str:
    """A file of somebody else with our block put in, in the place of a former one or at the end."""
    whole = f"{_BEGIN}\n{block}\n{_END}\n"
    if _BLOCK.search(text):
        return _BLOCK.sub(lambda _match: whole, text, count=1)
    return text + ("" if not text or text.endswith("\n") else "\n") + whole


def _labels(document: Document) -> Mapping[str, str]:
    return document["metadata"].get("labels") or {}


def _annotations(document: Document) -> Mapping[str, str]:
    return document["metadata"].get("annotations") or {}


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, str):
        yield value


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _renamed(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_renamed(item, names) for item in value]
    return names.get(value, value) if isinstance(value, str) else value


def _own(purpose: str, document: Document) -> str:
    return f"{OWN}{purpose}\n{canonical.to_yaml(document)}"


def _file(document: Document, cluster: Cluster) -> str:
    namespace, name = document["metadata"].get("namespace", cluster.namespace), document["metadata"]["name"]
    return (
        f"{document['kind'].lower()}-{name}.yaml"
        if namespace == cluster.namespace
        else f"{document['kind'].lower()}-{namespace}.{name}.yaml"
    )


def _place(policy: Document) -> str:
    return f"{policy['reference'].partition('/')[0]}/{policy['severity']}"


def _ring(cluster: Cluster, ring: Ring, bundle: Bundle, own: Sequence[Document], configmaps: Sequence[Document]) -> tuple[Files, Files]:
    """The files of a ring in a bundle, and the sets they refer to.

    Rings that want the same ConfigMap get one each, as an object belongs to one Application: its name ends with the ring's.
    """
    names = {one["metadata"]["name"]: f"{one['metadata']['name']}-{ring.name}" for one in configmaps}
    documents = [{**one, "spec": _renamed(one["spec"], names)} if one["kind"] == "DaemonSet" else one for one in own]
    documents.append(_truth(ring, bundle, next(one for one in own if one["kind"] == "DaemonSet")))
    resources, patches = [], []
    sets: Files = {}
    for one in configmaps:
        name = one["metadata"]["name"]
        kept = {**one, "metadata": {**one["metadata"], "annotations": {**_annotations(one), **argocd.KEPT}}}
        if any("\n" in text for text in one["data"].values()):
            place, files = _set(kept, bundle)
            sets |= files
            resources.append(f"../../../../../{place}")
            patches.append(
                {
                    "target": {"kind": "ConfigMap", "name": name},
                    "patch": canonical.to_json(
                        [
                            {"op": "replace", "path": "/metadata/name", "value": names[name]},
                            {"op": "add", "path": "/metadata/namespace", "value": one["metadata"]["namespace"]},
                        ]
                    ),
                    "options": {"allowNameChange": True},
                }
            )
        else:
            documents.append({**kept, "metadata": {**kept["metadata"], "name": names[name]}})
    files = {_file(one, cluster): _own("never changed", one) for one in documents}
    kustomization = {**_HEAD, "resources": [*resources, *sorted(files)], **({"patches": patches} if patches else {})}
    files[KUSTOMIZATION] = _own("never changed; another bundle is another directory", kustomization)
    return files, sets


def _set(configmap: Document, bundle: Bundle) -> tuple[str, Files]:
    """A ConfigMap whose values are texts of several lines, as a directory with a file for each; policies lie by category and severity.

    The namespace is left to the ring, so that clusters share a set.
    """
    places = {one["file"]: _place(one) for one in bundle.manifest["policies"]}
    files = {f"{places[key]}/{key}" if key in places else key: text for key, text in configmap["data"].items()}
    metadata = configmap["metadata"]
    generator = {
        "name": metadata["name"],
        "files": sorted(files),
        "options": {
            "disableNameSuffixHash": True,
            "immutable": bool(configmap.get("immutable")),
            "labels": metadata.get("labels", {}),
            "annotations": metadata["annotations"],
        },
    }
    files[KUSTOMIZATION] = _own("never changed; another set is another directory", {**_HEAD, "configMapGenerator": [generator]})
    place = f"{_labels(configmap).get(KIND, 'files')}/{canonical.digest(files)[:16]}"
    return place, {f"{place}/{name}": text for name, text in files.items()}


def _truth(ring: Ring, bundle: Bundle, daemonset: Document) -> Document:
    """The object that the truth of a ring is published in, without it: Argo CD sees the health of what it manages only."""
    labels = {name: text for name, text in _labels(daemonset).items() if name != "app.kubernetes.io/component"}
    stem = daemonset["metadata"]["name"].removesuffix(f"-{ring.name}")
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": f"{stem}-truth-{ring.name}",
            "namespace": daemonset["metadata"]["namespace"],
            "labels": {**labels, RING: ring.name, KIND: "truth"},
            "annotations": {BUNDLE: bundle.digest},
        },
    }


def _nodes(daemonset: Document) -> str:
    """The ring's nodes, over what the bundle says: when rings come or go, all rings of a cluster learn it at once."""
    affinity = daemonset["spec"]["template"]["spec"]["affinity"]
    return f"{OWN}the nodes of the ring\n{canonical.to_yaml([{'op': 'add', 'path': '/spec/template/spec/affinity', 'value': affinity}])}"


def _common(cluster: Cluster, documents: Sequence[Document]) -> Files:
    files = {_file(one, cluster): _own("what the rings of the cluster share", one) for one in documents}
    kustomization = {
        **_HEAD,
        "metadata": argocd.identity(cluster.name, cluster.namespace),
        "resources": sorted(files),
    }
    return {**files, KUSTOMIZATION: _own("what the rings of the cluster share", kustomization)}
