# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The chart with the real agent on one real node: what of the forbidden acts comes through while pods take over from each other.

kubelet.py DIRECTORY RELEASE [EVENT...]: the node is a machine with a stock kernel, kubelet, containerd and runc; the control
plane runs here (tests/kube/cluster.py); helm installs the chart with one enforcing policy per kind of hook, the agent's image
is made of the release's tarball. Prints attempts, allowed and wrong per kind for every event; DIRECTORY gets
``real-k8s.json``. Exit code 1 when something came through that must not. Needs root only for the first image.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "kube")]

import cluster  # noqa: E402
import forbidden  # noqa: E402
import image  # noqa: E402
import real  # noqa: E402
import yaml  # noqa: E402

CHART = real.REPOSITORY / "charts/apiary"
NODE, NAMESPACE, RELEASE, REPOSITORY = "node", "tetragon", "apiary", "localhost/tetragon"
# The service of the API server, for pods as for the kubelet: an address of the machine, from where ssh leads here.
SERVICE = "10.96.0.1"
SHARE = "/srv/node"
# What one step may take: under emulation a whole set has taken half an hour to load, on a machine that others kept busy.
STEP_SECONDS = 5400
CONTAINERD = f"""\
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{REPOSITORY}:sandbox"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
"""
CNI = {
    "cniVersion": "0.4.0",
    "name": "lab",
    "plugins": [{"type": "ptp", "ipam": {"type": "host-local", "subnet": "10.128.0.0/24", "routes": [{"dst": "0.0.0.0/0"}]}}],
}
# What nothing here asks for is off, and all has the time that emulation takes.
KUBELET = {
    "apiVersion": "kubelet.config.k8s.io/v1beta1",
    "kind": "KubeletConfiguration",
    "authentication": {"anonymous": {"enabled": False}, "webhook": {"enabled": False}},
    "authorization": {"mode": "AlwaysAllow"},
    "cgroupDriver": "cgroupfs",
    "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
    "enableServer": False,
    "evictionHard": {"memory.available": "50Mi", "nodefs.available": "2%", "imagefs.available": "2%"},
    "imageGCHighThresholdPercent": 100,
    "makeIPTablesUtilChains": False,
    "nodeLeaseDurationSeconds": 600,
    "nodeStatusUpdateFrequency": "1m",
    "resolvConf": "",
    "runtimeRequestTimeout": "15m",
    "volumeStatsAggPeriod": "-1s",
}
ARGUMENTS = (
    f"--config=/etc/kubernetes/kubelet.json --kubeconfig=/etc/kubernetes/kubeconfig.json --hostname-override={NODE} --node-ip=10.0.2.15"
)
UNIT = f"""\
[Unit]
After=containerd.service
[Service]
ExecStart={SHARE}/kubelet {ARGUMENTS}
Restart=always
"""


class Node(real.Lab):
    """The machine with its kubelet and prober, and the cluster that it is the only node of."""

    pause = 2.0  # an emulated machine is busy enough with a kubelet's probes

    def __init__(self, machine: real.Machine, directory: Path, release: Path, control: cluster.Cluster) -> None:
        super().__init__(machine, directory, release)
        self.control = control
        version = self.variables()["apiary_agent_version"]
        major, minor, patch = re.split(r"\.|-", version)[:3]
        self.versions = (version, f"{major}.{minor}.{int(patch) + 1}")
        self.tunnel: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.machine.vm("rm", check=False)
        self.machine.environment.update(VM_DATA=str(self.disk()), VM_MEMORY="3072")
        self.machine.up()
        self.machine.ssh(
            f"mkdir -p {SHARE} && mount -o ro /dev/vdb {SHARE} && cp -r {SHARE}/root/. / && ip address add {SERVICE}/32 dev lo"
            " && systemctl daemon-reload && systemctl reload ssh && systemctl restart containerd"
            f" && ctr --namespace k8s.io images import {SHARE}/image.tar"
        )
        way = f"{SERVICE}:443:127.0.0.1:{self.control.port()}"
        self.tunnel = self.machine.begin("ssh", "-S", "none", "-o", "ExitOnForwardFailure=yes", "-N", "-R", way)
        self.probe()
        self.control.apply(*objects())
        self.machine.ssh("systemctl start kubelet")
        self.control.wait(self.registered, "the node to be Ready", STEP_SECONDS, pause=2)

    def end(self) -> None:
        if self.tunnel:
            os.killpg(self.tunnel.pid, signal.SIGTERM)
            self.tunnel.wait()
        self.machine.vm("kill")

    def disk(self) -> Path:
        """What the machine is given: image, kubelet, and files for its root directory."""
        share, disk = self.directory / "share", self.directory / "share.img"
        shutil.rmtree(share, ignore_errors=True)
        kubelet = (self.control.bin / "kube-apiserver").resolve().with_name("kubelet")
        if not kubelet.exists():
            raise SystemExit(f"kubelet: {kubelet} is missing: take the programs that tools/kubetools builds")
        identity = {"as": f"system:node:{NODE}", "as-groups": ["system:nodes", "system:authenticated"]}
        files = {
            "cni/net.d/lab.conflist": json.dumps(CNI),
            "containerd/config.toml": CONTAINERD,
            "kubernetes/kubeconfig.json": json.dumps(self.control.configuration(f"https://{SERVICE}", "admin", **identity)),
            "kubernetes/kubelet.json": json.dumps(KUBELET),
            "ssh/sshd_config.d/tunnel.conf": "GatewayPorts clientspecified\n",
            "systemd/system/kubelet.service": UNIT,
        }
        for name, text in files.items():
            path = share / "root/etc" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        shutil.copy(kubelet, share / "kubelet")
        tags = ("sandbox", *(f"v{version}" for version in self.versions))
        image.write(self.release, share / "image.tar", [f"{REPOSITORY}:{tag}" for tag in tags])
        disk.unlink(missing_ok=True)
        size = sum(path.stat().st_size for path in share.rglob("*") if path.is_file()) * 11 // 10 + (16 << 20)
        make = ["mkfs.ext4", "-q", "-O", "^has_journal", "-d", str(share), str(disk), f"{size >> 10}k"]
        subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
        shutil.rmtree(share)
        return disk

    def registered(self) -> bool:
        return any(map(ready, self.control.request("GET", "/api/v1/nodes")["items"]))

    def helm(self, command: str, revision: str, version: str, broken: bool = False) -> None:
        """Install or upgrade the release: a ring with one policy per kind."""
        policies = {f"{kind}.yaml": forbidden.policy(kind, revision)["text"] for kind in forbidden.HOOKS}
        # Uprobes open their file in the agent's container, where the node's files are below /procRoot/1/root.
        policies["uprobe.yaml"] = policies["uprobe.yaml"].replace(forbidden.FILES, f"/procRoot/1/root{forbidden.FILES}")
        if broken:
            policies["broken.yaml"] = forbidden.broken()["text"]
        values = {
            "image": {"repository": REPOSITORY},
            "library": {"enabled": False},
            "probes": {"startupSeconds": STEP_SECONDS, "timeoutSeconds": 300},
            "rings": [{"name": "fleet", "agentVersion": version, "policies": policies}],
            "terminationGracePeriodSeconds": 900,
        }
        file = self.directory / "values.json"
        file.write_text(json.dumps(values), encoding="utf-8")
        self.control.helm(4, command, RELEASE, str(CHART), "--namespace", NAMESPACE, "--values", str(file))

    def pods(self) -> list[Any]:
        path = f"/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=app.kubernetes.io/component=agent"
        return list(self.control.request("GET", path)["items"])

    def wait(self, condition: Callable[[], object], what: str) -> None:
        """As the cluster's, and with what the agents' pods say when it does not come true."""
        try:
            self.control.wait(condition, what, STEP_SECONDS, pause=2)
        except cluster.ClusterError:
            print(self.control.kubectl("--namespace", NAMESPACE, "describe", "pods", check=False), file=sys.stderr)
            logs = "tail -n 40 /var/log/pods/*/*/*.log; journalctl -u kubelet | tail -40"
            print(self.machine.ssh(logs, check=False), file=sys.stderr)
            raise

    def rolled(self) -> bool:
        """Whether the DaemonSet is where its template wants it, with nothing left of what was before."""
        found = self.control.request("GET", f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/{RELEASE}-fleet")
        status = found["status"]
        counts = [status.get(key) for key in ("updatedNumberScheduled", "numberAvailable", "desiredNumberScheduled")]
        pods = [ready(one) for one in self.pods()]
        return status.get("observedGeneration") == found["metadata"]["generation"] and counts == [1, 1, 1] and pods == [True]

    def restarts(self) -> dict[str, int]:
        """How often the agent's container has been started again, by the uid of its pod."""
        pods = {one["metadata"]["uid"]: one["status"].get("containerStatuses", []) for one in self.pods()}
        return {uid: sum(one["restartCount"] for one in containers) for uid, containers in pods.items()}

    def pins(self) -> list[str]:
        """Instances that have pins on the node."""
        return self.machine.ssh("cd /sys/fs/bpf; ls -d apiary-* 2>/dev/null", check=False).split()

    def ready(self) -> None:
        """Wait until one pod is left and in charge; no pins but its own are."""
        self.wait(self.rolled, "one pod, updated and available")
        uid = self.pods()[0]["metadata"]["uid"]
        self.wait(lambda: [one.startswith(f"apiary-{uid}-") for one in self.pins()] == [True], f"the pins of {uid} to be the only ones")


def ready(one: dict[str, Any]) -> bool:
    """Whether a pod or node says of itself that it is Ready."""
    return any(found["type"] == "Ready" and found["status"] == "True" for found in one["status"].get("conditions", ()))


def objects() -> list[dict[str, Any]]:
    """What the cluster has before the chart: its namespace, and what a kubelet may where no authorizer for nodes runs."""
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:node"}
    group = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:nodes"}
    binding = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "lab-nodes"}}
    labels = {"pod-security.kubernetes.io/enforce": "privileged"}
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}},
        {**binding, "roleRef": role, "subjects": [group]},
    ]


def clean_job(script: str, version: str) -> dict[str, Any]:
    """The Job of docs/kubernetes.md that ends what is left on a node."""
    text = (real.REPOSITORY / "docs/kubernetes.md").read_text(encoding="utf-8")
    block = re.search(r"(?m)^    apiVersion: batch/v1\n(?:    .*\n)+", text)
    if block is None:
        raise SystemExit("kubelet: docs/kubernetes.md has no Job any more")
    text = block.group()
    given = {"apiary-script-DIGEST": script, "NODE": NODE, "quay.io/cilium/tetragon:v1.7.0": f"{REPOSITORY}:v{version}"}
    for word, meant in given.items():
        text = text.replace(word, meant)
    return dict(yaml.safe_load(text))


def _install(node: Node) -> None:
    node.helm("install", "r0", node.versions[0])
    node.ready()


def _policies(node: Node) -> None:
    node.helm("upgrade", "r1", node.versions[0])
    node.ready()


def _upgrade(node: Node) -> None:
    node.helm("upgrade", "r1", node.versions[1])
    node.ready()


def _bad_set(node: Node) -> None:
    """A set with a policy that the agent refuses, in every start of its pod, and the way back."""
    before = node.restarts()
    node.helm("upgrade", "r2", node.versions[1], broken=True)
    node.wait(lambda: any(count for uid, count in node.restarts().items() if uid not in before), "a restart of the pod with the broken set")
    node.control.helm(4, "rollback", RELEASE, "--namespace", NAMESPACE)
    node.ready()
    if node.restarts() != before:
        raise SystemExit(f"kubelet: a broken set was to leave the pod from before alone, {before}; there is {node.restarts()}")


def _downgrade(node: Node) -> None:
    node.control.helm(4, "rollback", RELEASE, "1", "--namespace", NAMESPACE)
    node.ready()


def _crash(node: Node) -> None:
    before = node.restarts()
    node.machine.ssh("pkill -KILL -x tetragon")
    node.wait(lambda: node.restarts() != before, "the container's restart")
    node.ready()


def _delete(node: Node) -> None:
    before = node.pods()[0]["metadata"]
    node.control.kubectl("--namespace", NAMESPACE, "delete", "pod", before["name"], "--timeout", f"{STEP_SECONDS}s")
    node.ready()


def _uninstall(node: Node) -> None:
    pins = node.pins()
    node.control.helm(4, "uninstall", RELEASE, "--namespace", NAMESPACE)
    node.wait(lambda: not node.pods(), "the end of all pods")
    time.sleep(20)
    if node.pins() != pins:
        raise SystemExit(f"kubelet: an uninstalled release is to leave {pins}, and there are {node.pins()}")


def _clean(node: Node) -> None:
    script = node.control.kubectl("--namespace", NAMESPACE, "get", "configmap", "--selector", "apiary.dev/kind=script", "-o", "name")
    node.control.apply(clean_job(script.strip().removeprefix("configmap/"), node.versions[0]))
    path = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs/apiary-clean-{NODE}"
    node.wait(lambda: node.control.request("GET", path)["status"].get("succeeded"), "the Job that cleans the node")
    if found := node.pins():
        raise SystemExit(f"kubelet: a cleaned node is to have no pins, and there are {found}")


EVENTS = {
    "install": real.Event(_install, real.ALL),
    "policies": real.Event(_policies),
    "upgrade": real.Event(_upgrade),
    "bad-set": real.Event(_bad_set),
    "downgrade": real.Event(_downgrade),
    "crash": real.Event(_crash, real.UNPINNED),
    "delete": real.Event(_delete, real.UNPINNED),
    "uninstall": real.Event(_uninstall, real.UNPINNED),
    "clean": real.Event(_clean, real.ALL),
}
AFTER = {"after-uninstall": EVENTS["uninstall"], "after-clean": EVENTS["clean"]}


def main() -> int:
    """Entry point."""
    arguments = real.read_arguments(__doc__ or "", EVENTS)
    directory = arguments.directory
    machine = real.Machine(f"k8s-{arguments.suite}", arguments.state, f"{arguments.suite}+node")
    counts: dict[str, Any] = {}
    with cluster.Cluster(directory / "cluster", stand_ins=False) as control:
        node = Node(machine, directory, arguments.release.resolve(), control)
        try:
            node.start()
            for name in arguments.events or EVENTS:
                node.mark(name)
                EVENTS[name].act(node)
                node.mark(f"after-{name}")
                time.sleep(10)
                counts = node.report()
                (directory / "real-k8s.json").write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")
        finally:
            node.end()
    print("attempts/allowed/wrong\n" + real.table(counts))
    found = real.lapses(counts, {**EVENTS, **AFTER})
    print("\n".join(found) or "nothing came through that must not")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
