# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Stands in for every agent of a cluster and for the kubelets' probes of them: ``agents.py DIRECTORY``.

An agent is a pod with a container ``tetragon``. Its policies are those of the ConfigMap that its volume ``policies`` names,
or, without that volume, the cluster's TracingPolicies. The pod is Ready when all of them are enabled, and its metrics
(``:2112/metrics`` of its own address) say what the real agent's would. ``DIRECTORY/faults.json`` is a list of rules by which
agents misbehave, read again whenever it changes.
"""

from __future__ import annotations

import calendar
import contextlib
import fnmatch
import hashlib
import http.client
import json
import queue
import re
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "lab"))

from standin import metrics

PORT = 2112
POLICY_BYTES = 1 << 20
_WRITERS = 8
# Beyond so many agents nobody runs anything in their pods: kwok wants an object for each.
_EXEC_AGENTS = 200
_ENFORCING = re.compile(r'"action": "(Sigkill|Signal|Override|NotifyEnforcer|Set)"')
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Rule:
    """A fault. Patterns are a shell's; a rule with ``policy`` is for agents that have been given such a policy.

    ``load_error``: the agent does not take these policies. ``events``: of each of these policies, a second; ``blocks``: how
    many of them block (or would, in mode monitor), which only ``tetra`` tells. ``missed``: events lost, a second. ``cpu``:
    cores, and ``memory``: bytes, above the usual. ``version``: the agent's. ``start_seconds``: until it is started. ``ready``:
    false for never. ``crash``: a crash loop. ``answer``: what its metrics are instead: ``reset``, ``hang`` or ``garbage``;
    ``slow``: seconds before the answer.
    """

    nodes: Sequence[str] = ("*",)
    namespaces: Sequence[str] = ("*",)
    policy: str = ""
    load_error: bool = False
    events: float = 0.0
    blocks: float = 0.0
    missed: float = 0.0
    cpu: float = 0.0
    memory: int = 0
    version: str = ""
    start_seconds: float = 0.0
    ready: bool = True
    crash: bool = False
    answer: str = ""
    slow: float = 0.0

    def concerns(self, agent: Agent, policies: Sequence[Policy]) -> bool:
        return (
            any(fnmatch.fnmatchcase(agent.node, pattern) for pattern in self.nodes)
            and any(fnmatch.fnmatchcase(agent.namespace, pattern) for pattern in self.namespaces)
            and (not self.policy or any(self.means(one) for one in policies))
        )

    def means(self, policy: Policy) -> bool:
        return fnmatch.fnmatchcase(policy.name, self.policy or "*")


@dataclass(frozen=True)
class Policy:
    """One TracingPolicy."""

    name: str
    namespace: str
    mode: str


@dataclass(frozen=True)
class Standing:
    """How an agent is, by its policies and the faults; ``policies`` is None while there is no such ConfigMap."""

    policies: Sequence[Policy] | None
    rules: Sequence[Rule]

    @property
    def refused(self) -> frozenset[Policy]:
        return frozenset(one for rule in self.rules if rule.load_error for one in self.policies or () if rule.means(one))

    @property
    def crashing(self) -> bool:
        return any(rule.crash for rule in self.rules)

    @property
    def start_seconds(self) -> float:
        return max((rule.start_seconds for rule in self.rules), default=0.0)

    @property
    def healthy(self) -> bool:
        return self.policies is not None and not self.crashing and not self.refused and all(rule.ready for rule in self.rules)

    def rate(self, what: str) -> float:
        return float(sum(getattr(rule, what) for rule in self.rules))


@dataclass
class Agent:
    """One agent's pod as the API server has it, and what its process has counted."""

    namespace: str
    name: str
    uid: str
    node: str
    address: str
    version: str
    config: str | None
    started: float
    ready: bool
    statuses: list[dict[str, Any]]
    counted: float = 0.0
    cpu: float = 0.0
    missed: float = 0.0
    exported: float = 0.0
    events: dict[str, float] = field(default_factory=dict)
    blocks: dict[str, float] = field(default_factory=dict)

    def restart(self, now: float) -> None:
        """Another process: it counts from nothing."""
        self.started = self.counted = now
        self.cpu = self.missed = self.exported = 0.0
        self.events, self.blocks = {}, {}

    def advance(self, standing: Standing, now: float) -> None:
        """Count on until now, at the rates of this standing."""
        passed, self.counted = now - self.counted, now
        self.cpu += passed * (0.01 + standing.rate("cpu"))
        self.missed += passed * standing.rate("missed")
        self.exported += passed
        for policy in standing.policies or ():
            if policy not in standing.refused:
                meant = [rule for rule in standing.rules if rule.means(policy)]
                rate = sum(rule.events for rule in meant)
                self.events[policy.name] = self.events.get(policy.name, 0.0) + passed * rate
                self.blocks[policy.name] = self.blocks.get(policy.name, 0.0) + passed * sum(rule.blocks for rule in meant)
                self.exported += passed * rate


def agent_of(pod: Mapping[str, Any]) -> Agent | None:
    """The agent in a pod; None where there is none, or where it does not run."""
    spec, status, meta = pod["spec"], pod.get("status", {}), pod["metadata"]
    container = next((one for one in spec["containers"] if one["name"] == "tetragon"), None)
    if container is None or status.get("phase") != "Running" or not status.get("podIP"):
        return None
    version = re.search(r":v?(\d+\.\d+\.\d+[^@]*)", container["image"])
    started = status.get("startTime") or meta["creationTimestamp"]
    return Agent(
        namespace=meta["namespace"],
        name=meta["name"],
        uid=meta["uid"],
        node=spec["nodeName"],
        address=status["podIP"],
        version=version.group(1) if version else "1.7.0",
        config=next((_config(volume) for volume in spec.get("volumes", ()) if volume["name"] == "policies"), None),
        started=calendar.timegm(time.strptime(started, "%Y-%m-%dT%H:%M:%SZ")),
        ready=any(one["type"] == "Ready" and one["status"] == "True" for one in status.get("conditions", ())),
        statuses=status.get("containerStatuses", []),
    )


def _config(volume: Mapping[str, Any]) -> str:
    sources = [volume, *volume.get("projected", {}).get("sources", ())]
    return next((one["configMap"]["name"] for one in sources if "configMap" in one and "name" in one["configMap"]), "")


def policies_of(config: Mapping[str, Any]) -> list[Policy]:
    """The policies among a ConfigMap's texts."""
    found = []
    for text in config.get("data", {}).values():
        if "TracingPolicy" in text:
            with contextlib.suppress(yaml.YAMLError):
                found += [_policy(one) for one in yaml.load_all(text, _LOADER) if isinstance(one, dict) and one.get("metadata")]
    return found


def _policy(one: Mapping[str, Any]) -> Policy:
    options = {str(option.get("name")): str(option.get("value")) for option in one.get("spec", {}).get("options") or ()}
    mode = options.get("policy-mode", "enforce") if _ENFORCING.search(json.dumps(one)) else "monitor_only"
    return Policy(one["metadata"]["name"], one["metadata"].get("namespace", "") if one.get("kind", "").endswith("Namespaced") else "", mode)


def page(agent: Agent, standing: Standing) -> str:
    """The metrics page of an agent: names and labels as v1.7.0's."""
    refused, policies = standing.refused, standing.policies or ()
    states = {"disabled": 0, "enabled": len(policies) - len(refused), "error": 0, "load_error": len(refused)}
    version = next((rule.version for rule in standing.rules if rule.version), agent.version)
    build = (("commit", ""), ("go_version", "go1.26.8"), ("modified", ""), ("time", ""), ("version", f"v{version}"))
    where = (("namespace", ""), ("node_name", agent.node), ("pod", ""))
    enabled = sorted((one.name, one.namespace) for one in policies if one not in refused)
    memory = [((("policy", name), ("policy_namespace", namespace)), POLICY_BYTES) for name, namespace in enabled]
    posted = [
        ((("binary", "/usr/bin/lab"), ("hook", "kprobe:lab"), *where, ("policy", name), ("workload", "")), int(agent.events.get(name, 0)))
        for name, _namespace in enabled
    ]
    missed = [((("error", "ENOSPC"), ("msg_op", "5")), int(agent.missed))] if agent.missed >= 1 else []
    one = metrics.one
    families: list[metrics.Family] = [
        ("process_cpu_seconds_total", "counter", one(round(agent.cpu, 2))),
        ("process_resident_memory_bytes", "gauge", one(150 << 20 | int(standing.rate("memory")))),
        ("process_start_time_seconds", "gauge", one(agent.started)),
        ("tetragon_bpf_missed_events_total", "counter", missed),
        ("tetragon_build_info", "gauge", [(build, 1)]),
        ("tetragon_events_exported_bytes_total", "counter", one(int(agent.exported) * 1000)),
        ("tetragon_events_exported_total", "counter", one(int(agent.exported))),
        ("tetragon_events_last_exported_timestamp", "gauge", one(int(agent.counted))),
        ("tetragon_missed_prog_probes_total", "counter", [((("attach", "acct_process"), ("policy", "__base__")), 0)]),
        ("tetragon_notify_overflowed_events_total", "counter", one(0)),
        ("tetragon_observer_ringbuf_events_lost_total", "counter", one(0)),
        ("tetragon_observer_ringbuf_events_received_total", "counter", one(int(agent.exported))),
        ("tetragon_observer_ringbuf_queue_events_lost_total", "counter", one(0)),
        ("tetragon_policy_events_total", "counter", [sample for sample in posted if sample[1]]),
        ("tetragon_tracingpolicy_kernel_memory_bytes", "gauge", memory),
        ("tetragon_tracingpolicy_loaded", "gauge", metrics.labelled("state", states)),
    ]
    return metrics.page(families)


def listing(agent: Agent, standing: Standing) -> dict[str, Any]:
    """What ``tetra tracingpolicy list -o json`` prints: what is zero or empty is left out."""
    shown = []
    for number, policy in enumerate(standing.policies or (), 1):
        one: dict[str, Any] = {"id": str(number), "name": policy.name, **({"namespace": policy.namespace} if policy.namespace else {})}
        if policy in standing.refused:
            shown.append({**one, "error": "refused by the laboratory", "state": "TP_STATE_LOAD_ERROR"})
            continue
        block = "signal" if policy.mode == "enforce" else "monitor_signal"
        counts = {"post": agent.events.get(policy.name, 0.0), block: agent.blocks.get(policy.name, 0.0)}
        counters = {name: str(int(count)) for name, count in counts.items() if count >= 1}
        loaded = {"sensors": ["generic_kprobe"], "enabled": True, "state": "TP_STATE_ENABLED", "kernel_memory_bytes": str(POLICY_BYTES)}
        shown.append({**one, **loaded, "mode": f"TP_MODE_{policy.mode.upper()}", "stats": {"action_counters": counters}})
    return {"policies": shown} if shown else {}


class Api:
    """The API server, as the user agents."""

    def __init__(self, directory: Path) -> None:
        config = json.loads((directory / "agents.kubeconfig").read_text(encoding="utf-8"))
        self._address = config["clusters"][0]["cluster"]["server"].removeprefix("https://")
        self._headers = {"Authorization": f"Bearer {config['users'][0]['user']['token']}"}
        self._context = ssl.create_default_context(cafile=str(directory / "apiserver.crt"))

    def connect(self, timeout: float) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(self._address, context=self._context, timeout=timeout)

    def write(self, connection: http.client.HTTPSConnection, method: str, path: str, body: Any) -> None:
        """What is refused is for the next event to put right."""
        kind = {"Content-Type": "application/strategic-merge-patch+json" if method == "PATCH" else "application/json"}
        connection.request(method, path, json.dumps(body), {**self._headers, **kind})
        connection.getresponse().read()

    def follow(self, path: str, take: Callable[[str, Mapping[str, Any]], None], replace: Callable[[Sequence[Any]], None]) -> None:
        """List and watch one resource for ever, over losses of the connection. A resource that is not served is looked for again."""
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
                listed = json.loads(self._get(path + "?resourceVersion=0").read())
                if "items" in listed:
                    replace(listed["items"])
                    version = listed["metadata"]["resourceVersion"]
                    for line in self._get(f"{path}?watch=1&resourceVersion={version}&timeoutSeconds=3600"):
                        event = json.loads(line)
                        if event["type"] == "ERROR":
                            break
                        take(event["type"], event["object"])
            time.sleep(0.5)

    def _get(self, path: str) -> http.client.HTTPResponse:
        connection = self.connect(4000)
        connection.request("GET", path, headers=self._headers)
        return connection.getresponse()


class Agents:
    """All agents of the cluster."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._api = Api(directory)
        self._lock = threading.RLock()
        self._agents: dict[str, Agent] = {}
        self._by_address: dict[str, str] = {}
        self._configs: dict[tuple[str, str], list[Policy]] = {}
        self._objects: dict[str, Policy] = {}
        self._rules: tuple[Rule, ...] = ()
        self._dead: frozenset[str] = frozenset()
        self._unsettled: set[str] = set()
        self._writes: queue.SimpleQueue[tuple[str, str, dict[str, Any]]] = queue.SimpleQueue()

    def run(self) -> None:
        """Follow the API server and the faults, for ever."""
        listed = threading.Event()

        def pods(items: Sequence[Any]) -> None:
            self._replace(items)
            listed.set()

        follow = [
            ("/api/v1/configmaps", self._config, lambda items: self._all(self._config, items)),
            ("/api/v1/pods", self._pod, pods),
            *(
                (f"/apis/cilium.io/v1alpha1/{plural}", self._object, lambda items: self._all(self._object, items))
                for plural in ("tracingpolicies", "tracingpoliciesnamespaced")
            ),
        ]
        for arguments in follow:
            threading.Thread(target=self._api.follow, args=arguments, daemon=True).start()
        for _unused in range(_WRITERS):
            threading.Thread(target=self._write, daemon=True).start()
        listed.wait()
        seen = None
        while True:
            texts = [self._read("faults.json"), self._read("dead.json")]
            if texts != seen:
                seen = texts
                self._change(json.loads(texts[0]), json.loads(texts[1]))
                new = self._directory / "faults.seen.new"
                new.write_text(hashlib.sha256(texts[0].encode()).hexdigest(), encoding="ascii")
                new.replace(self._directory / "faults.seen")
            self._settle()
            time.sleep(0.05)

    def at(self, address: str) -> tuple[Agent, Standing] | None:
        """The agent at an address."""
        return self.current(self._by_address.get(address, ""))

    def current(self, uid: str) -> tuple[Agent, Standing] | None:
        """A pod's agent, counted up to now, and its standing; None when it does not run."""
        with self._lock:
            agent = self._agents.get(uid)
            if agent is None or agent.node in self._dead:
                return None
            standing, now = self._standing(agent), time.time()
            if standing.policies is None or standing.crashing or now < agent.started + standing.start_seconds:
                return None
            agent.advance(standing, now)
            return agent, standing

    def _read(self, name: str) -> str:
        try:
            return (self._directory / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            return "[]"

    def _change(self, rules: Sequence[Mapping[str, Any]], dead: Sequence[str]) -> None:
        with self._lock:
            now = time.time()
            for agent in self._agents.values():
                agent.advance(self._standing(agent), now)
            self._rules, self._dead = tuple(Rule(**one) for one in rules), frozenset(dead)
            self._unsettled |= set(self._agents)

    def _standing(self, agent: Agent) -> Standing:
        if agent.config is None:
            policies: Sequence[Policy] | None = list(self._objects.values())
        else:
            policies = self._configs.get((agent.namespace, agent.config))
        return Standing(policies, [rule for rule in self._rules if rule.concerns(agent, policies or ())])

    def _replace(self, pods: Sequence[Any]) -> None:
        with self._lock:
            for uid in set(self._agents) - {pod["metadata"]["uid"] for pod in pods}:
                self._forget(uid)
            self._all(self._pod, pods)

    def _all(self, take: Callable[[str, Mapping[str, Any]], None], items: Sequence[Any]) -> None:
        for item in items:
            take("ADDED", item)

    def _pod(self, kind: str, pod: Mapping[str, Any]) -> None:
        agent = None if kind == "DELETED" else agent_of(pod)
        with self._lock:
            uid = pod["metadata"]["uid"]
            if agent is None:
                self._forget(uid)
                return
            known = self._agents.get(uid)
            if known:
                known.ready, known.statuses = agent.ready, agent.statuses
            else:
                agent.counted = agent.started
                self._agents[uid] = agent
                self._by_address[agent.address] = uid
                if len(self._agents) <= _EXEC_AGENTS:
                    self._writes.put(("POST", f"/apis/kwok.x-k8s.io/v1alpha1/namespaces/{agent.namespace}/execs", _exec(agent)))
            self._unsettled.add(uid)

    def _forget(self, uid: str) -> None:
        agent = self._agents.pop(uid, None)
        if agent and self._by_address.get(agent.address) == uid:
            del self._by_address[agent.address]

    def _config(self, kind: str, config: Mapping[str, Any]) -> None:
        key = config["metadata"]["namespace"], config["metadata"]["name"]
        policies = policies_of(config)
        with self._lock:
            if kind == "DELETED":
                self._configs.pop(key, None)
            elif self._configs.get(key) != policies:
                self._configs[key] = policies
                self._unsettled |= {uid for uid, agent in self._agents.items() if (agent.namespace, agent.config) == key}

    def _object(self, kind: str, one: Mapping[str, Any]) -> None:
        with self._lock:
            if kind == "DELETED":
                self._objects.pop(one["metadata"]["uid"], None)
            else:
                self._objects[one["metadata"]["uid"]] = _policy(one)
            self._unsettled |= {uid for uid, agent in self._agents.items() if agent.config is None}

    def _settle(self) -> None:
        """Let the API server know of every agent that became ready or ceased to be."""
        with self._lock:
            now, looked, self._unsettled = time.time(), self._unsettled, set()
            for uid in looked:
                agent = self._agents.get(uid)
                if agent is None or agent.node in self._dead:
                    continue
                standing = self._standing(agent)
                if standing.healthy and now < agent.started + standing.start_seconds:
                    self._unsettled.add(uid)
                    if not agent.ready:
                        continue
                wanted = standing.healthy and uid not in self._unsettled
                crashed = any("waiting" in one.get("state", {}) for one in agent.statuses)
                if crashed and not standing.crashing:
                    agent.restart(now)
                if agent.ready != wanted or crashed != standing.crashing:
                    path = f"/api/v1/namespaces/{agent.namespace}/pods/{agent.name}/status"
                    self._writes.put(("PATCH", path, {"metadata": {"uid": uid}, "status": _status(agent, wanted, standing.crashing, now)}))

    def _write(self) -> None:
        connection = self._api.connect(10)
        while True:
            method, path, body = self._writes.get()
            for _try in range(100):
                try:
                    self._api.write(connection, method, path, body)
                    break
                except (OSError, http.client.HTTPException):
                    connection.close()
                    time.sleep(0.1)


def _exec(agent: Agent) -> dict[str, Any]:
    """Lets kwok run commands for the pod on this machine: it finds the client in its PATH."""
    owner = {"apiVersion": "v1", "kind": "Pod", "name": agent.name, "uid": agent.uid}
    environment = [{"name": "LAB_AGENT", "value": agent.uid}]
    return {
        "apiVersion": "kwok.x-k8s.io/v1alpha1",
        "kind": "Exec",
        "metadata": {"name": agent.name, "ownerReferences": [owner]},
        "spec": {"execs": [{"local": {"envs": environment}}]},
    }


def _status(agent: Agent, ready: bool, crashing: bool, now: float) -> dict[str, Any]:
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
    conditions = [{"type": kind, "status": str(ready), "lastTransitionTime": at} for kind in ("Ready", "ContainersReady")]
    statuses = []
    for one in agent.statuses:
        if one["name"] != "tetragon":
            statuses.append({**one, "ready": True})
        elif crashing:
            waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting failed container=tetragon"}}
            statuses.append({**one, "ready": False, "started": False, "restartCount": one["restartCount"] + 1, "state": waiting})
        else:
            statuses.append({**one, "ready": ready, "started": True, "state": {"running": {"startedAt": at}}})
    return {"conditions": conditions, "containerStatuses": statuses}


class Server(ThreadingHTTPServer):
    """One of the two ways to ask agents."""

    request_queue_size = 1024
    daemon_threads = True

    def __init__(self, agents: Agents, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.agents = agents
        super().__init__(address, handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may hang up."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def reply(self, status: int, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8; escaping=underscores")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


class Metrics(Handler):
    """For every agent: the local address of a connection is the pod's."""

    def do_GET(self) -> None:
        found = self.server.agents.at(self.connection.getsockname()[0])
        kinds = {rule.answer for rule in found[1].rules} if found else set()
        if found is None or "reset" in kinds:
            self._reset()
            return
        if "hang" in kinds:
            time.sleep(3600)
        time.sleep(max((rule.slow for rule in found[1].rules), default=0.0))
        if self.path != "/metrics":
            self.reply(404, "404 page not found\n")
        elif "garbage" in kinds:
            self.reply(200, "<html>nothing of the agent's</html>")
        else:
            self.reply(200, page(*found))

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


class Client(Handler):
    """For ``bin/tetra``: a POST of its arguments to the pod's uid."""

    def do_POST(self) -> None:
        arguments = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        found = self.server.agents.current(self.path[1:])
        if found is None:
            self.reply(503, "the agent does not answer")
        elif [one for one in arguments if one in ("tracingpolicy", "tp", "list", "json")][-2:] == ["list", "json"]:
            self.reply(200, json.dumps(listing(*found)) + "\n")
        else:
            self.reply(400, f"the laboratory's tetra does not know: {' '.join(arguments)}")


def main() -> None:
    """Entry point."""
    agents = Agents(Path(sys.argv[1]))
    for address, handler in ((("0.0.0.0", PORT), Metrics), (("127.0.0.1", PORT + 1), Client)):
        threading.Thread(target=Server(agents, address, handler).serve_forever, daemon=True).start()
    agents.run()


if __name__ == "__main__":
    main()
