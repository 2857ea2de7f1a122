# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""What a cluster's nodes truthfully run, each as the same observation that a host gives of itself.

One request a node: its agent's metrics, through the API server's pod proxy. Metrics tell which policies are loaded and how
many are in which state, what they posted, and what the agent costs. They tell neither mode nor blocks (facts 7.1): the mode
follows from the pod's readiness, which is given only when every policy of its set is enabled in its mode, and blocks are no
more than what an enforcing policy posted. ``tetra`` in the pod is asked only where these disagree, or where more was posted
than may be blocked.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import yaml

from ansible_collections.apiary.tetragon.plugins.module_utils.agent import metrics, observe, tetra
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.client import THREADS, Api, ApiError
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.rings import BUNDLE, LABEL, Node, Owner, read_node
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.render import MODE_OPTION

CONTAINER, PORT = "tetragon", 2112
AGENTS = "app.kubernetes.io/name=apiary,app.kubernetes.io/component=agent"
MAX_ASKED = 20
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_WAITING = ("ContainerCreating", "PodInitializing")
Signature = tuple[tuple[str, ...], tuple[str, ...]]
Asker = Callable[[str], list[tetra.LoadedPolicy]]


@dataclass(frozen=True, slots=True)
class Pod:
    """One agent's pod. ``signature`` is what makes it run what it runs: its images, and its ConfigMaps, named by digest.

    ``trouble`` says why it is not ready; ``exports`` is the file that it exports events to, or empty.
    """

    name: str
    node: str
    owner: Owner
    created: str
    ready: bool
    ending: bool
    restarts: int
    signature: Signature
    trouble: str
    exports: str

    def config_map(self, fullname: str, kind: str) -> str:
        """The name of its ConfigMap of a kind, ``policies`` or ``config``; empty when it has none."""
        return config_map(self.signature, fullname, kind)


def config_map(signature: Signature, fullname: str, kind: str) -> str:
    """The name of the ConfigMap of a kind that makes part of a signature; empty when none does."""
    return next((name for name in signature[1] if name.startswith(f"{fullname}-{kind}-")), "")


def signature_of(spec: Mapping[str, Any]) -> Signature:
    """What a pod of this specification runs."""
    images = tuple(f"{one['name']}={one['image']}" for one in spec["containers"])
    maps = tuple(sorted(one["configMap"]["name"] for one in spec.get("volumes", ()) if "configMap" in one))
    return _SIGNATURES.setdefault((images, maps), (images, maps))


_SIGNATURES: dict[Signature, Signature] = {}


def read_pod(raw: Mapping[str, Any]) -> Pod:
    """A pod from its document."""
    metadata, spec, status = raw["metadata"], raw["spec"], raw.get("status", {})
    labels = metadata.get("labels", {})
    conditions = {one["type"]: one for one in status.get("conditions", ())}
    states = [one for one in status.get("containerStatuses", ()) if one["name"] == CONTAINER]
    exports = any(one["name"] == "APIARY_EXPORT" for container in spec["containers"] for one in container.get("env", ()))
    ready = conditions.get("Ready", {}).get("status") == "True"
    return Pod(
        name=metadata["name"],
        node=spec.get("nodeName", ""),
        owner=Owner(f"{metadata['namespace']}/{labels.get('app.kubernetes.io/instance', '')}", labels.get(LABEL, "")),
        created=metadata["creationTimestamp"],
        ready=ready,
        ending="deletionTimestamp" in metadata,
        restarts=sum(one.get("restartCount", 0) for one in states),
        signature=signature_of(spec),
        trouble="" if ready else _trouble(status, states, conditions),
        exports=f"/var/log/tetragon/{metadata['uid']}.log" if exports else "",
    )


def _trouble(status: Mapping[str, Any], states: Sequence[Mapping[str, Any]], conditions: Mapping[str, Mapping[str, Any]]) -> str:
    for one in states:
        waiting = one.get("state", {}).get("waiting", {})
        ended = one.get("state", {}).get("terminated") or one.get("lastState", {}).get("terminated") or {}
        reason = waiting.get("reason", "")
        last = (ended.get("message") or "").strip().splitlines()
        if reason and reason not in _WAITING:
            return ": ".join(part for part in (reason, last[-1] if last else waiting.get("message", "")) if part)
        if ended:
            return ": ".join(part for part in (f"ended with exit code {ended.get('exitCode')}", last[-1] if last else "") if part)
    for kind in ("PodScheduled", "ContainersReady", "Ready"):
        one = conditions.get(kind, {})
        if one.get("status") == "False":
            return one.get("message") or one.get("reason") or f"{kind} is False"
    return str(status.get("reason") or status.get("phase") or "has no status yet")


@dataclass(frozen=True)
class Wanted:
    """One policy of a set, as its file has it."""

    name: str
    namespace: str
    mode: str


@dataclass
class Sets:
    """The ConfigMaps of policies and configuration, each read once."""

    api: Api
    known: dict[str, Any] = field(default_factory=dict)

    def policies(self, name: str) -> tuple[Wanted, ...]:
        """The policies of a set. A policy whose text names no mode enforces."""
        if name not in self.known:
            self.known[name] = tuple(_wanted(text) for file, text in sorted(self._data(name).items()) if file.endswith((".yaml", ".yml")))
        known: tuple[Wanted, ...] = self.known[name]
        return known

    def options(self, name: str) -> dict[str, Any]:
        """The agent's options of a configuration."""
        if name not in self.known:
            self.known[name] = {key: {"true": True, "false": False}.get(value, value) for key, value in self._data(name).items()}
        known: dict[str, Any] = self.known[name]
        return known

    def _data(self, name: str) -> dict[str, str]:
        found = self.api.find(self.api.place.path("v1", "configmaps", name)) if name else None
        return (found or {}).get("data") or {}


def _wanted(text: str) -> Wanted:
    document = yaml.load(text, _LOADER)
    options = {one["name"]: one["value"] for one in document["spec"].get("options") or ()}
    metadata = document["metadata"]
    return Wanted(metadata["name"], metadata.get("namespace", ""), options.get(MODE_OPTION, "enforce"))


@dataclass(frozen=True)
class Page:
    """What a metrics page tells, as far as an observation wants it."""

    version: str
    started: float
    cpu: float
    memory: int
    states: Mapping[str, int]
    loaded: Mapping[tuple[str, str], int]
    events: Mapping[str, float]
    totals: Mapping[str, float]


def read_page(text: str) -> Page:
    """Raises MetricsError for a page that is not an agent's."""
    totals = dict.fromkeys(metrics.COUNTERS.values(), 0.0)
    states: dict[str, int] = {}
    loaded: dict[tuple[str, str], int] = {}
    events: dict[str, float] = {}
    process: dict[str, float] = {}
    version = ""
    for name, labels, value in metrics.every(text, metrics.PREFIX, "process_"):
        own = name.removeprefix(metrics.PREFIX)
        if own in metrics.COUNTERS:
            totals[metrics.COUNTERS[own]] += value
        elif own == "policy_events_total":
            events[labels.get("policy", "")] = events.get(labels.get("policy", ""), 0.0) + value
        elif own == "tracingpolicy_loaded":
            states[labels.get("state", "")] = int(value)
        elif own == "tracingpolicy_kernel_memory_bytes":
            loaded[labels.get("policy_namespace", ""), labels.get("policy", "")] = int(value)
        elif own == "build_info":
            version = labels.get("version", "").lstrip("v")
        elif name.startswith("process_"):
            process[name] = value
    if not version:
        raise metrics.MetricsError("holds no metrics of the agent: does something else listen there?")
    return Page(
        version=version,
        started=process.get("process_start_time_seconds", 0.0),
        cpu=process.get("process_cpu_seconds_total", 0.0),
        memory=int(process.get("process_resident_memory_bytes", 0)),
        states=states,
        loaded=loaded,
        events=events,
        totals=totals,
    )


def agrees(pod: Pod, wanted: Sequence[Wanted], page: Page) -> bool:
    """Whether readiness and metrics say the same: every policy of the set is enabled, and nothing failed."""
    bad = sum(count for state, count in page.states.items() if state != "enabled")
    present = all((one.namespace, one.name) in page.loaded for one in wanted)
    return pod.ready and present and not bad and page.states.get("enabled", 0) >= len(wanted)


def exceeds(wanted: Sequence[Wanted], page: Page, blocks: float | None) -> bool:
    """Whether an enforcing policy posted more than may be blocked, so that only ``tetra`` can tell the blocks."""
    return blocks is not None and any(one.mode == "enforce" and page.events.get(one.name, 0.0) > blocks for one in wanted)


def document(
    node: Node,
    pod: Pod,
    wanted: Sequence[Wanted],
    options: Mapping[str, Any],
    page: Page | str,
    listed: Sequence[tetra.LoadedPolicy] | str | None,
    digest: str,
    now: datetime.datetime,
) -> dict[str, Any]:
    """One node's observation. ``page`` and ``listed`` are texts where they could not be had, which say why."""
    problems = []
    if isinstance(page, str):
        problems.append(f"counters: {page}")
    if isinstance(listed, str):
        problems.append(f"policies: {listed}")
    if not pod.ready:
        problems.append(f"its pod {pod.name} is not ready: {pod.trouble}")
    read = None if isinstance(page, str) else page
    answers = pod.ready or read is not None
    flags = {**options, **({"export-filename": pod.exports} if pod.exports else {})}
    return {
        "format": observe.FORMAT,
        "ring": node.ring,
        "time": now.isoformat(),
        "host": node.host,
        "agent": {
            "answers": answers,
            "version": read.version if read else None,
            "pid": None,
            "started": f"{pod.name} {read.started:.2f} {pod.restarts}" if read else None,
            "age_seconds": max(0.0, now.timestamp() - read.started) if read and read.started else None,
            "cpu_seconds": read.cpu if read else None,
            "memory_bytes": read.memory if read else None,
            "flags": {name: flags[name] for name in observe.FLAGS if name in flags},
            "probes": None,
        },
        "policies": _policies(pod, wanted, read, listed) if answers else None,
        "pins": {"directory": "", "present": True, "leftover": "", "folders": []},
        "service": None,
        "alarm": None,
        "troubles": [],
        "counters": {**read.totals, "policy_events": {name: value for name, value in read.events.items() if name and value}}
        if read
        else None,
        "bundle": {"digest": digest, "pending": False},
        "health": {"failed_units": list(node.troubles), "commands": [], "urls": []},
        "problems": problems,
    }


def _policies(
    pod: Pod, wanted: Sequence[Wanted], page: Page | None, listed: Sequence[tetra.LoadedPolicy] | str | None
) -> list[dict[str, Any]]:
    modes = {(one.namespace, one.name): one.mode for one in wanted}
    if listed is not None and not isinstance(listed, str):
        return [
            _policy(
                one.key,
                one.key in modes,
                one.state,
                one.mode,
                one.error,
                one.counters.get("post", 0),
                sum(one.counters.get(name, 0) for name in observe.ENFORCED),
                sum(one.counters.get("monitor_" + name, 0) for name in observe.ENFORCED),
                one.kernel_memory_bytes,
            )
            for one in listed
        ]
    keys = [*modes, *(key for key in sorted(page.loaded) if key not in modes)] if page else list(modes)
    documents = []
    for key in keys:
        if page and key not in page.loaded:
            continue
        posted = int(page.events.get(key[1], 0)) if page else 0
        mode = modes.get(key, "unknown") if pod.ready else "unknown"
        enforced = posted if mode == "enforce" else 0
        memory = page.loaded.get(key, 0) if page else 0
        documents.append(_policy(key, key in modes, "enabled", mode, "", posted, enforced, posted - enforced, memory))
    return documents


def _policy(
    key: tuple[str, str], managed: bool, state: str, mode: str, error: str, posted: int, enforced: int, would: int, memory: int
) -> dict[str, Any]:
    """One policy of an observation; equal ones are one object, so that thousands of nodes are no thousands of copies."""
    parts = (key, managed, state, mode, error, posted, enforced, would, memory)
    if parts not in _POLICIES:
        _POLICIES[parts] = {
            "name": key[1],
            "namespace": key[0],
            "managed": managed,
            "state": state,
            "mode": mode,
            "error": error,
            "replaced": [],
            "stale_overrides": None,
            "posted": posted,
            "enforced": enforced,
            "would_enforce": would,
            "kernel_memory_bytes": memory,
            "pinned_links": {},
        }
    return _POLICIES[parts]


_POLICIES: dict[tuple[Any, ...], dict[str, Any]] = {}


# --- reading a cluster ----------------------------------------------------------------------------------------------


def nodes(api: Api, rings: Sequence[str], ring: str = "") -> dict[str, Node]:
    """Every Linux node, or those of one ring, by name."""
    selector = "kubernetes.io/os=linux"
    if ring and len(rings) > 1:
        others = [one for one in rings if one != ring]
        selector += f",{LABEL} notin ({','.join(others)})" if ring == rings[-1] else f",{LABEL}={ring}"
    found = (read_node(raw, rings) for raw in api.items("/api/v1/nodes", labelSelector=selector))
    return {node.name: node for node in found}


def pods(api: Api, ring: str = "") -> dict[str, list[Pod]]:
    """The agents' pods by node, newest first: of every release there is, or of one ring of ours."""
    if ring:
        selector = f"{AGENTS},app.kubernetes.io/instance={api.place.release},{LABEL}={ring}"
        path = api.place.path("v1", "pods")
    else:
        selector, path = AGENTS, "/api/v1/pods"
    found: dict[str, list[Pod]] = {}
    for raw in api.items(path, labelSelector=selector):
        pod = read_pod(raw)
        if pod.node:
            found.setdefault(pod.node, []).append(pod)
    for members in found.values():
        members.sort(key=lambda pod: pod.created, reverse=True)
    return found


def answering(members: Iterable[Pod]) -> Pod | None:
    """The pod that answers for a node: the newest that is ready, else the newest that is not ending."""
    staying = [pod for pod in members if not pod.ending]
    return next((pod for pod in staying if pod.ready), staying[0] if staying else None)


def digests(api: Api) -> dict[str, str]:
    """The bundle of each ring, as its DaemonSet is marked."""
    selector = f"{AGENTS},app.kubernetes.io/instance={api.place.release}"
    found = api.items(api.place.path("apps/v1", "daemonsets"), labelSelector=selector)
    return {one["metadata"]["labels"].get(LABEL, ""): bundle_of(one) for one in found}


def bundle_of(daemon_set: Mapping[str, Any]) -> str:
    """The digest of the bundle that a DaemonSet was given; empty for none."""
    return str((daemon_set["metadata"].get("annotations") or {}).get(BUNDLE, ""))


def survey(
    api: Api,
    members: Iterable[Node],
    found: Mapping[str, Sequence[Pod]],
    blocks: float | None = None,
    ask: Asker | None = None,
) -> dict[str, dict[str, Any]]:
    """The record of each of these nodes: an observation, or why nothing can be known of it."""
    release = f"{api.place.namespace}/{api.place.release}"
    records: dict[str, dict[str, Any]] = {}
    chosen: dict[str, tuple[Node, Pod]] = {}
    for node in members:
        pod = answering(pod for pod in found.get(node.name, ()) if pod.owner.release == release)
        if not node.ready:
            records[node.name] = {"ring": node.ring, "lost": "the node is not ready"}
        elif pod is None:
            records[node.name] = {"ring": node.ring, "lost": "no agent's pod runs on it"}
        else:
            chosen[node.name] = (node, pod)
    return {**records, **(sweep(api, chosen, digests(api), blocks, ask) if chosen else {})}


def sweep(
    api: Api, chosen: Mapping[str, tuple[Node, Pod]], digests: Mapping[str, str], blocks: float | None = None, ask: Asker | None = None
) -> dict[str, dict[str, Any]]:
    """The observation of each of these nodes; ``digests`` is the bundle of each ring's pods as they are to be.

    One request a node; ``ask`` (tetra's list out of a pod) for at most ``MAX_ASKED`` of those that need it.
    """
    sets = Sets(api)
    fullname = api.place.fullname
    for pod in {pod.signature: pod for _node, pod in chosen.values()}.values():
        sets.policies(pod.config_map(fullname, "policies"))
        sets.options(pod.config_map(fullname, "config"))

    def read(name: str) -> tuple[str, Page | str, datetime.datetime]:
        pod = chosen[name][1]
        try:
            page: Page | str = read_page(api.proxy(pod.name, PORT, "/metrics"))
        except (ApiError, metrics.MetricsError) as error:
            page = f"metrics of pod {pod.name}: {error}"
        return name, page, datetime.datetime.now(datetime.UTC)

    found: dict[str, dict[str, Any]] = {}
    asked = 0
    with ThreadPoolExecutor(THREADS) as threads:
        for name, page, now in threads.map(read, chosen):
            node, pod = chosen[name]
            wanted = sets.policies(pod.config_map(fullname, "policies"))
            listed: list[tetra.LoadedPolicy] | str | None = None
            if ask and asked < MAX_ASKED and not isinstance(page, str) and (not agrees(pod, wanted, page) or exceeds(wanted, page, blocks)):
                asked += 1
                try:
                    listed = ask(pod.name)
                except (tetra.TetraError, ApiError) as error:
                    listed = str(error)
            options = sets.options(pod.config_map(fullname, "config"))
            found[name] = document(node, pod, wanted, options, page, listed, digests.get(node.ring, ""), now)
    return found


def asker(api: Api, timeout: float = 30.0) -> Asker:
    """A function that runs ``tetra`` in an agent's pod."""
    import urllib3
    from kubernetes.client import CoreV1Api
    from kubernetes.client.exceptions import ApiException
    from kubernetes.stream import stream

    def ask(pod: str) -> list[tetra.LoadedPolicy]:
        core = CoreV1Api(api.client)
        command = ["tetra", "tracingpolicy", "list", "-o", "json"]
        try:
            session = stream(
                core.connect_get_namespaced_pod_exec,
                pod,
                api.place.namespace,
                container=CONTAINER,
                command=command,
                stdout=True,
                stderr=True,
                stdin=False,
                tty=False,
                _preload_content=False,
            )
            session.run_forever(timeout=timeout)
            text, errors, code = session.read_stdout(timeout=0), session.read_stderr(timeout=0), session.returncode
            session.close()
        except (ApiException, OSError, ValueError, urllib3.exceptions.HTTPError) as error:
            raise tetra.TetraError(f"tetra could not be run in pod {pod}: {error}") from None
        if not text and (code or errors):
            raise tetra.TetraError(f"tetra in pod {pod}: {tetra.clean_error(errors)}", code)
        return tetra.parse_policies(text)

    return ask
