# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""A cluster on this machine: real etcd, API server, controller manager and scheduler; nodes and pods by kwok, agents by a stand-in.

with Cluster(directory) as cluster:
    cluster.nodes(20, {"canary": 2, "fleet": 18})
    subprocess.run(["helm", "--kubeconfig", cluster.kubeconfig, ...])

Everything but the way in to the API server is in a network namespace of its own (see net.py), made as root or, where user
namespaces are allowed, by anybody. ``cluster.py up|down|status DIRECTORY [NODES]`` does the same for a shell.
"""

from __future__ import annotations

import base64
import collections
import contextlib
import hashlib
import http.client
import json
import os
import queue
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import net
import stages
import yaml

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
RING = "apiary.dev/ring"
VERSION = "v1.35.4"
USERS = {"admin": "system:masters", "kwok": "system:masters", "agents": "system:masters", "nobody": ""}
COMPONENTS = {"kcm": "system:kube-controller-manager", "scheduler": "system:kube-scheduler"}
# What rollouts need; the rest costs processor time at thousands of nodes.
CONTROLLERS = (
    "daemonset serviceaccount serviceaccount-token namespace garbage-collector root-ca-certificate-publisher"
    " pod-garbage-collector node-lifecycle deployment replicaset job resourcequota validatingadmissionpolicy-status"
)
PROCESSES = ("etcd", "kube-apiserver", "kube-scheduler", "kube-controller-manager", "kwok", "agents", "net")
STAND_INS = ("kwok", "agents")
_THREADS = 8
_READY_SECONDS = 120.0


class ClusterError(Exception):
    """The cluster does not do what it was told."""


class ApiError(ClusterError):
    """The API server refused; ``status`` is its code."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


def programs() -> Path:
    """The directory of the programs, built first if need be (some ten minutes, once)."""
    done = subprocess.run([str(REPOSITORY / "tools" / "kubetools")], check=True, stdout=subprocess.PIPE, text=True)
    return Path(done.stdout.strip())


def obstacle() -> str:
    """Why no cluster can run here, or nothing."""
    missing = [name for name in ("ip", "nsenter", "openssl", "unshare") if shutil.which(name) is None]
    if missing:
        return f"missing programs: {', '.join(missing)}"
    done = subprocess.run([*_unshare(), "ip", "link", "set", "lo", "up"], capture_output=True, text=True, check=False)
    if done.returncode:
        return f"no network namespace can be made; be root or allow user namespaces: {done.stderr.strip()}"
    return ""


class Cluster:
    """One cluster in a directory. Starting and stopping are idempotent; leaving the context stops and removes it."""

    def __init__(self, directory: str | Path, bin: Path | None = None, owner: int = 0, stand_ins: bool = True) -> None:
        """``owner``: when this process ends, however it does, the cluster ends as well; 0 for none. Without ``stand_ins``
        nodes are the caller's: nothing plays their part nor their agents'."""
        self.directory = Path(directory).resolve()
        self.bin = bin or programs()
        self.owner = owner
        self.stand_ins = stand_ins
        self.kubeconfig = self.directory / "admin.kubeconfig"

    def __enter__(self) -> Cluster:
        self.owner = os.getpid()
        self.up()
        return self

    def __exit__(self, *_unused: object) -> None:
        self.down()

    # Control plane

    def up(self) -> None:
        """Start whatever does not run, and wait until all of it works."""
        self._prepare()
        self._start_net()
        loopback, own = "127.0.0.1", f"--kubeconfig={self.directory}"
        etcd, peers = f"http://{loopback}:2379", f"http://{loopback}:2380"
        self._start(
            "etcd",
            f"--name=lab --data-dir={self.directory}/etcd --unsafe-no-fsync --listen-client-urls={etcd} --advertise-client-urls={etcd}"
            f" --listen-peer-urls={peers} --initial-advertise-peer-urls={peers} --initial-cluster=lab={peers}"
            " --quota-backend-bytes=8589934592 --log-level=warn",
        )
        self.start_api()
        qps = "--leader-elect=false --kube-api-qps=2000 --kube-api-burst=2000"
        self._start("kube-scheduler", f"{own}/scheduler.kubeconfig --bind-address={loopback} --secure-port=10259 {qps}")
        self._start(
            "kube-controller-manager",
            f"{own}/kcm.kubeconfig --bind-address={loopback} --secure-port=10257 {qps} --use-service-account-credentials"
            f" --service-account-private-key-file={self.directory}/sa.key --root-ca-file={self.directory}/apiserver.crt"
            # kwok renews no leases: at thousands of nodes these alone would cost whole cores.
            f" --node-monitor-grace-period=24h --controllers={','.join(name + '-controller' for name in CONTROLLERS.split())}",
        )
        if self.stand_ins:
            self._start_kwok()
            self._start("agents", "", [sys.executable, str(HERE / "agents.py"), str(self.directory)])
        self.wait(self._works, "the control plane", _READY_SECONDS)

    def down(self) -> None:
        """Stop everything and remove what it wrote; logs stay."""
        for name in PROCESSES:
            self._kill(name, signal.SIGKILL)
        self.wait(lambda: not any(self.pid(name) for name in PROCESSES), "the end of all processes")
        for name in ("etcd", "audit.log", "made", "net.up", "faults.json", "faults.seen", "dead.json"):
            path = self.directory / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        for path in self.directory.glob("*.pid"):
            path.unlink()

    def start_api(self) -> None:
        """Start the API server alone, and wait until it is ready."""
        directory, service = self.directory, "https://kubernetes.default.svc"
        self._start(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:2379 --bind-address=127.0.0.1 --secure-port={net.API_SERVER[1]} --cert-dir={directory}"
            f" --token-auth-file={directory}/tokens.csv --authorization-mode=RBAC --anonymous-auth=false --allow-privileged"
            " --service-cluster-ip-range=10.96.0.0/16 --endpoint-reconciler-type=none --advertise-address=192.0.2.1"
            f" --kubelet-preferred-address-types=InternalIP --service-account-issuer={service}"
            f" --service-account-signing-key-file={directory}/sa.key --service-account-key-file={directory}/sa.key"
            f" --audit-policy-file={directory}/audit.yaml --audit-log-path={directory}/audit.log",
        )
        self.wait(self._answers, "the API server", _READY_SECONDS)

    def stop_api(self, signal_number: int = signal.SIGKILL) -> None:
        """Stop the API server alone; clients are hung up on."""
        self._kill("kube-apiserver", signal_number)
        self.wait(lambda: self.pid("kube-apiserver") is None, "the API server's end", 60)

    def pid(self, name: str) -> int | None:
        """The id of a running process of the cluster."""
        with contextlib.suppress(OSError, ValueError):
            process, begun = (int(word) for word in (self.directory / f"{name}.pid").read_text(encoding="ascii").split())
            state, started = _life(process)
            # A process whose first thread has ended may have others that have not: then it cannot be reaped yet.
            if started == begun and (state != "Z" or os.waitpid(process, os.WNOHANG) == (0, 0)):
                return process
        return None

    def usage(self) -> dict[str, dict[str, float]]:
        """Per process: CPU seconds, and peak memory in MB."""
        found = {}
        for name in PROCESSES:
            if process := self.pid(name):
                fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
                status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
                peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
                found[name] = {"cpu": (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), "peak": peak / 1024}
        return found

    # Nodes

    def nodes(
        self,
        count: int,
        rings: Mapping[str, int] | None = None,
        kernels: Sequence[str] = ("6.8.0-45-generic",),
        architectures: Sequence[str] = ("amd64",),
        systems: Sequence[str] = ("Ubuntu 24.04.1 LTS",),
        prefix: str = "node",
        labels: Mapping[str, str] | None = None,
    ) -> list[str]:
        """Make nodes and wait until they are Ready; returns their names.

        ``rings``: how many of them carry each ring's label, in order; the rest carry none. Kernels, architectures and systems
        are dealt out in turn.
        """
        dealt = [ring for ring, size in (rings or {}).items() for _unused in range(size)]
        if len(dealt) > count:
            raise ValueError(f"{len(dealt)} nodes in rings; there are {count}")
        made = self.directory / "made"
        first = int(made.read_text(encoding="ascii")) if made.exists() else 0
        _write(made, str(first + count))
        bodies = []
        for number in range(count):
            place = first + number
            given = {RING: dealt[number]} if number < len(dealt) else {}
            bodies.append(
                _node(
                    f"{prefix}-{number:04d}",
                    f"10.{64 + (place >> 16)}.{place >> 8 & 255}.{place & 255}",
                    {**given, **(labels or {})},
                    kernels[number % len(kernels)],
                    architectures[number % len(architectures)],
                    systems[number % len(systems)],
                )
            )
        self.each("POST", [("/api/v1/nodes", body) for body in bodies])
        names = {body["metadata"]["name"] for body in bodies}
        # The taint of a new node goes when the node controller has seen it.

        def ready() -> bool:
            return names <= {one["metadata"]["name"] for one in self._all_nodes() if not one["spec"].get("taints")}

        self.wait(ready, "ready nodes", 300, pause=0.05 + count / 2000)
        return [body["metadata"]["name"] for body in bodies]

    def label(self, names: Iterable[str], ring: str | None) -> None:
        """Move nodes to a ring; None takes the label away."""
        body = {"metadata": {"labels": {RING: ring}}}
        self.each("PATCH", [(f"/api/v1/nodes/{name}", body) for name in names])

    def remove(self, names: Iterable[str]) -> None:
        """Take nodes and their pods out of the cluster."""
        gone = set(names)
        self.each("DELETE", [(f"/api/v1/nodes/{name}", None) for name in gone])
        pods = self.request("GET", "/api/v1/pods")["items"]
        paths = [
            f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}?gracePeriodSeconds=0"
            for pod in pods
            if pod["spec"].get("nodeName") in gone
        ]
        self.each("DELETE", [(path, None) for path in paths], (404,))

    def kill_nodes(self, names: Iterable[str]) -> None:
        """Nodes that do not answer any more: not Ready, nor their pods; whatever is bound to them or deleted there stays as it is."""
        self._dead(lambda dead: dead | set(names))
        self._conditions(names, "Unknown")
        pods = self.request("GET", "/api/v1/pods")["items"]
        bodies = [
            (_path(pod) + "/status", {"status": {"conditions": [_condition("Ready", "False")]}})
            for pod in pods
            if pod["spec"].get("nodeName") in set(names)
        ]
        self.each("PATCH", bodies, (404,))

    def revive_nodes(self, names: Iterable[str]) -> None:
        """The reverse of kill_nodes."""
        names = set(names)
        self._dead(lambda dead: dead - names)
        self._conditions(names, "True")

        def settled() -> bool:
            """kwok looks at a pod only when something happens to it."""
            pods = [pod for pod in self.request("GET", "/api/v1/pods")["items"] if pod["spec"].get("nodeName") in names]
            waiting = [pod for pod in pods if pod["status"]["phase"] == "Pending" or "deletionTimestamp" in pod["metadata"]]
            body = {"metadata": {"annotations": {"lab/revived": str(time.monotonic())}}}
            self.each("PATCH", [(_path(pod), body) for pod in waiting], (404,))
            return not waiting

        self.wait(settled, "the pods of revived nodes", pause=0.5)

    def dead(self) -> list[str]:
        """The nodes that kill_nodes was told."""
        path = self.directory / "dead.json"
        return list(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else []

    def faults(self, *rules: Mapping[str, Any]) -> None:
        """How agents misbehave from now on, see ``agents.Rule``; no rules: they behave. Returns when the agents know."""
        text = json.dumps(rules)
        _write(self.directory / "faults.json", text)
        digest = hashlib.sha256(text.encode()).hexdigest()
        seen = self.directory / "faults.seen"
        self.wait(lambda: seen.exists() and seen.read_text(encoding="ascii") == digest, "the agents' faults", 30)

    # Clients

    def configuration(self, server: str, user: str, **more: Any) -> dict[str, Any]:
        """A kubeconfig for one of the users by the server's URL; ``more`` about the user, such as whom to impersonate."""
        certificate = base64.b64encode((self.directory / "apiserver.crt").read_bytes()).decode()
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "lab",
            "clusters": [{"name": "lab", "cluster": {"server": server, "certificate-authority-data": certificate}}],
            "users": [{"name": user, "user": {"token": self._token(user), **more}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": user}}],
        }

    def port(self) -> int:
        """The API server's port outside the network namespace."""
        return int((self.directory / "port").read_text(encoding="ascii"))

    def kubectl(self, *arguments: str, input: str | None = None, check: bool = True) -> str:
        """What kubectl prints. Raises ClusterError with its error."""
        command = [str(self.bin / "kubectl"), "--kubeconfig", str(self.kubeconfig), *arguments]
        done = subprocess.run(command, input=input, capture_output=True, text=True, check=False)
        if check and done.returncode:
            raise ClusterError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout + ("" if check else done.stderr)

    def helm(self, version: int, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """One run of helm 3 or 4, with a home of its own."""
        command = [str(self.bin / f"helm{version}"), "--kubeconfig", str(self.kubeconfig), *arguments]
        environment = {**os.environ, **{f"HELM_{kind}_HOME": f"{self.directory}/helm" for kind in ("CACHE", "CONFIG", "DATA")}}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if check and done.returncode:
            raise ClusterError(f"helm {' '.join(arguments)}: {done.stderr.strip()}")
        return done

    def apply(self, *objects: Mapping[str, Any]) -> None:
        """Apply objects, server-side."""
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", input=text)

    def crds(self, version: str = "v1.7.0") -> bool:
        """The CRDs of TracingPolicies: upstream's of that version where $APIARY_UPSTREAM has them, else ones that take anything.

        Returns whether they are upstream's.
        """
        upstream = os.environ.get("APIARY_UPSTREAM")
        files = sorted(Path(upstream, version, "crds").glob("*.yaml")) if upstream else []
        objects = [one for path in files for one in yaml.safe_load_all(path.read_text(encoding="utf-8")) if one]
        permissive = [
            _crd("cilium.io", "TracingPolicy", "tracingpolicies", "Cluster"),
            _crd("cilium.io", "TracingPolicyNamespaced", "tracingpoliciesnamespaced", "Namespaced"),
        ]
        self._crds(objects or permissive)
        return bool(objects)

    def request(self, method: str, path: str, body: Any = None, connection: http.client.HTTPConnection | None = None) -> Any:
        """One request as admin; a PATCH is a strategic merge, of a custom resource a merge. Raises ApiError."""
        connection = connection or self.connect()
        kind = "application/json"
        if method == "PATCH":
            kind = f"application/{'merge' if path.startswith('/apis/kwok') else 'strategic-merge'}-patch+json"
        headers = {"Authorization": f"Bearer {self._token('admin')}", "Content-Type": kind}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        data = answer.read()
        if answer.status >= 400:
            raise ApiError(answer.status, data.decode("utf-8", "replace")[:2000])
        return json.loads(data) if data.startswith(b"{") else data.decode()

    def connect(self, timeout: float = 60) -> http.client.HTTPSConnection:
        """A connection to the API server."""
        context = ssl.create_default_context(cafile=str(self.directory / "apiserver.crt"))
        return http.client.HTTPSConnection("127.0.0.1", self.port(), context=context, timeout=timeout)

    def each(self, method: str, requests: Sequence[tuple[str, Any]], tolerated: Sequence[int] = ()) -> None:
        """Many requests over a few connections. Raises the first ApiError that is not tolerated."""
        waiting: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        failed: list[Exception] = []
        for one in requests:
            waiting.put(one)

        def work() -> None:
            connection = self.connect()
            with contextlib.suppress(queue.Empty):
                while not failed:
                    path, body = waiting.get_nowait()
                    try:
                        self.request(method, path, body, connection)
                    except ApiError as error:
                        if error.status not in tolerated:
                            failed.append(error)
                    except Exception as error:
                        failed.append(error)
            connection.close()

        threads = [threading.Thread(target=work) for _unused in range(min(_THREADS, len(requests)))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failed:
            raise failed[0]

    def requests(self) -> collections.Counter[tuple[str, str]]:
        """What the user admin asked the API server so far, as (verb, resource or resource/subresource)."""
        counts: collections.Counter[tuple[str, str]] = collections.Counter()
        with (self.directory / "audit.log").open(encoding="utf-8") as lines:
            for line in lines:
                event = json.loads(line)
                if event["stage"] == "ResponseStarted":  # of a proxied or long request, which is told again when it is complete
                    continue
                what = event.get("objectRef") or {}
                name = what.get("resource", event["requestURI"].partition("?")[0])
                counts[event["verb"], f"{name}/{what['subresource']}" if "subresource" in what else name] += 1
        return counts

    def wait(self, condition: Callable[[], object], what: str, seconds: float = 60, pause: float = 0.05) -> None:
        """Until the condition holds, looked at with this pause. Raises ClusterError naming what was waited for."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise ClusterError(f"waited {seconds:g} s for {what}; logs: {self.directory}/*.log")
            time.sleep(pause)

    # Inside

    def _prepare(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o700)
        if not (self.directory / "tokens.csv").exists():
            subprocess.run(["openssl", "genrsa", "-out", str(self.directory / "sa.key"), "2048"], check=True, capture_output=True)
            users = {**USERS, **COMPONENTS}
            lines = [
                f"{secrets.token_hex(16)},{group if name in COMPONENTS else name},{number},{group if name in USERS else ''}"
                for number, (name, group) in enumerate(users.items())
            ]
            _write(self.directory / "tokens.csv", "\n".join(lines) + "\n")
        audit = {
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived"],
            "rules": [{"level": "Metadata", "users": ["admin"]}, {"level": "None"}],
        }
        _write(self.directory / "audit.yaml", json.dumps(audit))

    def _token(self, user: str) -> str:
        name = COMPONENTS.get(user, user)
        lines = (line.split(",") for line in (self.directory / "tokens.csv").read_text(encoding="ascii").splitlines())
        return next(token for token, who, *_rest in lines if who == name)

    def _write_kubeconfigs(self) -> None:
        for user in (*USERS, *COMPONENTS):
            outside = user in ("admin", "nobody")
            server = f"https://127.0.0.1:{self.port() if outside else net.API_SERVER[1]}"
            _write(self.directory / f"{user}.kubeconfig", json.dumps(self.configuration(server, user)))

    def _start_net(self) -> None:
        """The namespace and the relay into it, whose port outside stays the same for the life of the directory."""
        if self.pid("net"):
            return
        (self.directory / "net.up").unlink(missing_ok=True)
        port = self.directory / "port"
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", self.port() if port.exists() else 0))
            listener.listen(1024)
            _write(port, str(listener.getsockname()[1]))
            arguments = [str(listener.fileno()), str(self.owner), str(self.directory)]
            self._spawn("net", [*_unshare(), sys.executable, str(HERE / "net.py"), *arguments], pass_fds=[listener.fileno()])
        self.wait((self.directory / "net.up").exists, "the network namespace", 30)

    def _start_kwok(self) -> None:
        self._crds([_crd("kwok.x-k8s.io", "Stage", "stages", "Cluster"), _crd("kwok.x-k8s.io", "Exec", "execs", "Namespaced")])
        self._dead(lambda dead: dead)
        configuration = {
            "apiVersion": "config.kwok.x-k8s.io/v1alpha1",
            "kind": "KwokConfiguration",
            "metadata": {"name": "kwok"},
            "options": {
                "cidr": f"{net.PODS.rpartition('.')[0]}.1/9",
                "manageAllNodes": True,
                "nodeLeaseDurationSeconds": 0,
                "nodePlayStageParallelism": 4,
                "podPlayStageParallelism": 16,
                "podsOnNodeSyncParallelism": 16,
                "enableCRDs": ["Stage", "Exec"],
                "enableDebuggingHandlers": True,
            },
        }
        _write(self.directory / "kwok.yaml", json.dumps(configuration))
        arguments = (
            f"--kubeconfig={self.directory}/kwok.kubeconfig --config={self.directory}/kwok.yaml --server-address=0.0.0.0:10247"
            f" --tls-cert-file={self.directory}/apiserver.crt --tls-private-key-file={self.directory}/apiserver.key"
        )
        self._start("kwok", arguments, path=f"{HERE}/bin:{Path(sys.executable).parent}:/usr/bin:/bin")

    def _start(self, name: str, arguments: str, command: Sequence[str] = (), path: str = "") -> None:
        if not self.pid(name):
            self._spawn(name, [*self._enter(), *(command or [str(self.bin / name)]), *arguments.split()], path)

    def _spawn(self, name: str, command: Sequence[str], path: str = "", **options: Any) -> None:
        """Start a process of the cluster."""
        with (self.directory / f"{name}.log").open("ab") as log:
            started = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={"PATH": path or os.environ["PATH"], "HOME": str(self.directory)},
                **options,
            )
        _write(self.directory / f"{name}.pid", f"{started.pid} {_life(started.pid)[1]}")
        started.returncode = 0  # it outlives this object; `pid` reaps it

    def _enter(self) -> list[str]:
        namespaces = f"/proc/{self.pid('net')}/ns"
        user = [f"--user={namespaces}/user", "--preserve-credentials"] if os.geteuid() else []
        return ["nsenter", f"--net={namespaces}/net", *user, "--"]

    def _kill(self, name: str, signal_number: int) -> None:
        if process := self.pid(name):
            os.kill(process, signal_number)

    def _answers(self) -> bool:
        if not self.pid("kube-apiserver"):
            raise ClusterError(f"the API server has ended: see {self.directory}/kube-apiserver.log")
        with contextlib.suppress(OSError, http.client.HTTPException, ApiError):
            self._write_kubeconfigs()
            return bool(self.request("GET", "/readyz") == "ok")
        return False

    def _works(self) -> bool:
        """Service accounts exist, so the controllers work; the agents, if there are any, have read everything."""
        dead = [name for name in PROCESSES if not self.pid(name) and (self.stand_ins or name not in STAND_INS)]
        if dead:
            raise ClusterError(f"{', '.join(dead)} has ended: see {self.directory}/*.log")
        with contextlib.suppress(ApiError):
            self.request("GET", "/api/v1/namespaces/default/serviceaccounts/default")
            return not self.stand_ins or (self.directory / "faults.seen").exists()
        return False

    def _crds(self, objects: Sequence[Mapping[str, Any]]) -> None:
        self.apply(*objects)
        names = [f"crd/{one['metadata']['name']}" for one in objects]
        self.kubectl("wait", "--for=condition=Established", "--timeout=60s", *names)

    def _all_nodes(self) -> list[Any]:
        return list(self.request("GET", "/api/v1/nodes?resourceVersion=0")["items"])

    def _conditions(self, names: Iterable[str], ready: str) -> None:
        body = {"status": {"conditions": [_condition("Ready", ready)]}}
        self.each("PATCH", [(f"/api/v1/nodes/{name}/status", body) for name in names])

    def _dead(self, change: Callable[[set[str]], set[str]]) -> None:
        """Let kwok and the agents know which nodes are dead from now on."""
        dead = sorted(change(set(self.dead())))
        _write(self.directory / "dead.json", json.dumps(dead))
        self.apply(*stages.stages(dead))


def _unshare() -> list[str]:
    return ["unshare", "--net", *(["--user", "--map-root-user"] if os.geteuid() else []), "--"]


def _write(path: Path, text: str) -> None:
    new = path.with_name(path.name + ".new")
    new.write_text(text, encoding="utf-8")
    new.chmod(0o600)
    new.replace(path)


def _life(process: int) -> tuple[str, int]:
    """State of a process, and when it began. Raises OSError when there is none."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    return fields[0], int(fields[19])


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _path(pod: Mapping[str, Any]) -> str:
    return f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"


def _condition(kind: str, status: str) -> dict[str, str]:
    return {"type": kind, "status": status, "reason": "Lab", "lastTransitionTime": _now()}


def _node(name: str, address: str, labels: Mapping[str, str], kernel: str, architecture: str, system: str) -> dict[str, Any]:
    room = {"cpu": "32", "memory": "256Gi", "pods": "110"}
    unique = hashlib.sha256(name.encode()).hexdigest()
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": architecture, **labels},
        },
        "status": {
            "addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}],
            "allocatable": room,
            "capacity": room,
            "conditions": [_condition("Ready", "True")],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10247}},
            "nodeInfo": {
                "architecture": architecture,
                "bootID": unique[:32],
                "containerRuntimeVersion": "containerd://2.0.0",
                "kernelVersion": kernel,
                "kubeProxyVersion": "",
                "kubeletVersion": VERSION,
                "machineID": unique[32:],
                "operatingSystem": "linux",
                "osImage": system,
                "systemUUID": unique[:32],
            },
        },
    }


def _crd(group: str, kind: str, plural: str, scope: str) -> dict[str, Any]:
    """A CRD that takes anything."""
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "names": {"kind": kind, "plural": plural},
            "scope": scope,
            "versions": [{"name": "v1alpha1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}],
        },
    }


def main() -> None:
    """Entry point."""
    command, directory, *count = sys.argv[1:]
    cluster = Cluster(directory)
    if command == "up":
        cluster.up()
        if count:
            cluster.nodes(int(count[0]))
        print(f"export KUBECONFIG={cluster.kubeconfig}")
    elif command == "down":
        cluster.down()
    else:
        for name, used in cluster.usage().items():
            print(f"{name:<24} {used['cpu']:8.1f} CPU s {used['peak']:8.0f} MB at most")


if __name__ == "__main__":
    main()
