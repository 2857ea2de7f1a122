# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The chart's templates, without a cluster: what they render, what they refuse, and who may do what.

``APIARY_GOLDEN=write pytest tests/kube/test_chart.py -k golden`` writes the golden files anew; read the difference.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts/apiary"
GOLDEN = Path(__file__).parent / "golden"
OLDEST, NEWEST = "1.28", "1.37"
HELMS = ("helm3", "helm4")
KUBE = ("--kube-version", NEWEST)  # a helm that is built without release flags takes 1.20 for granted
CASES = sorted(path.name.removesuffix("-values.yaml") for path in (CHART / "ci").glob("*-values.yaml"))
PLATFORMS = sorted(path.stem for path in (CHART / "platforms").glob("*.yaml"))
# Kinds that others define; their schemas are not Kubernetes' own.
FOREIGN = {"PodMonitor", "PrometheusRule", "ServiceMonitor", "TracingPolicy"}
SINCE_1_30 = {"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}
POLICY = """
apiVersion: cilium.io/v1alpha1
kind: TracingPolicy
metadata: {name: %s}
spec:
  kprobes:
    - call: security_file_open
      syscall: false
      args: [{index: 0, type: file}]
      selectors:
        - matchArgs: [{index: 0, operator: Equal, values: [/secret]}]
          matchActions: [{action: %s}]
"""
WRONG_MODE = "  options: [{name: policy-mode, value: enfroce}]\n"
WATCH = {"a.yaml": POLICY % ("watch", "Post")}
Object = dict[str, Any]


@cache
def programs() -> Path:
    done = subprocess.run([str(ROOT / "tools/kubetools")], check=True, stdout=subprocess.PIPE, text=True)
    return Path(done.stdout.strip())


def helm(version: str, *arguments: str, values: Any = None) -> subprocess.CompletedProcess[str]:
    """One run; ``values`` are given on standard input."""
    command = [str(programs() / version), *arguments, *(["--values", "-"] if values is not None else [])]
    return subprocess.run(command, capture_output=True, text=True, check=False, input=json.dumps(values) if values is not None else None)


def template(values: Any = None, *files: str, version: str = "helm3", release: str = "apiary") -> str:
    """What the chart renders. Raises AssertionError with helm's words."""
    more = [word for file in files for word in ("--values", str(CHART / file))]
    done = helm(version, "template", release, str(CHART), "--namespace", "tetragon", *KUBE, *more, values=values)
    assert done.returncode == 0, done.stderr
    return done.stdout


def objects(text: str) -> list[Object]:
    return [one for one in yaml.safe_load_all(text) if one]


def refusal(values: Any) -> str:
    done = helm("helm3", "template", "apiary", str(CHART), *KUBE, values=values)
    assert done.returncode != 0, done.stdout
    return done.stderr


def of_kind(found: Sequence[Object], *kinds: str) -> list[Object]:
    return [one for one in found if one["kind"] in kinds]


def ring(name: str, version: str = "1.7.0", **more: Any) -> Object:
    return {"name": name, "agentVersion": version, **more}


def key(one: Object) -> str:
    return f"{one['kind']}/{one['metadata']['name']}"


def templates(found: Sequence[Object]) -> Iterator[tuple[str, Object]]:
    """Name and pod spec of everything that makes pods."""
    for one in of_kind(found, "DaemonSet", "Deployment"):
        yield one["metadata"]["name"], one["spec"]["template"]["spec"]


@pytest.fixture(scope="module")
def rendered() -> dict[str, list[Object]]:
    return {case: objects(template(None, f"ci/{case}-values.yaml")) for case in CASES}


# --- every values file


@pytest.mark.parametrize("version", HELMS)
def test_every_values_file_passes_lint_and_renders_alike(version: str) -> None:
    for file in [*(f"ci/{case}-values.yaml" for case in CASES), *(f"platforms/{name}.yaml" for name in PLATFORMS)]:
        done = helm(version, "lint", "--strict", str(CHART), "--values", str(CHART / file))
        assert done.returncode == 0, f"{file}: {done.stdout}{done.stderr}"
        assert objects(template(None, file, version=version)) == objects(template(None, file)), file


@pytest.mark.parametrize("version", (OLDEST, NEWEST))
def test_every_object_fits_the_schemas_of_kubernetes(rendered: dict[str, list[Object]], version: str) -> None:
    checked = 0
    for found in rendered.values():
        for one in found:
            if one["kind"] not in FOREIGN and not (version == OLDEST and one["kind"] in SINCE_1_30):
                kubernetes_validate.validate(one, version, strict=True)
                checked += 1
    assert checked > 40


def _short(one: Any, where: str = "") -> Any:
    """For people: digests in names without their digits, long texts by their first line."""
    if isinstance(one, dict):
        return {name: _short(value, name) for name, value in one.items()}
    if isinstance(one, list):
        return [_short(value) for value in one]
    if isinstance(one, str):
        one = re.sub(r"-(config|policies|script)-[0-9a-f]{10}\b", r"-\1-DIGEST", one)
        lines = one.splitlines()
        if where == "policies.tsv":
            return [" ".join(line.split("\t")) for line in lines]
        if len(lines) > 1:
            return f"{lines[0]} ..."
    return one


@pytest.mark.parametrize("case", CASES)
def test_what_a_values_file_renders_is_the_golden_file(rendered: dict[str, list[Object]], case: str) -> None:
    path = GOLDEN / f"{case}.yaml"
    shown = [_short(one) for one in sorted(rendered[case], key=lambda one: (one["kind"], str(_short(one["metadata"]["name"]))))]
    text = yaml.safe_dump_all(shown, sort_keys=False, width=140)
    if os.environ.get("APIARY_GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text, f"{path}: see the head of this file"


def test_platforms_name_the_source_of_each_setting() -> None:
    assert PLATFORMS == ["aks", "bottlerocket", "eks", "gke", "openshift", "rke2", "talos"]
    for name in PLATFORMS:
        text = (CHART / f"platforms/{name}.yaml").read_text(encoding="utf-8")
        assert yaml.safe_load(text), name
        sources = len(re.findall(r"^ *# .*https://", text, re.MULTILINE))
        assert sources >= len(yaml.safe_load(text)), f"{name}: a setting without a source"


# --- rings


def test_changing_one_rings_values_touches_that_rings_objects_only() -> None:
    policies = {"a.yaml": POLICY % ("deny-1", "Override")}
    before = [ring("canary", policies=policies), ring("early", policies=policies, options={"rb-size": "1M"}), ring("rest")]
    more = {"alerts": {"enabled": True}, "monitoring": {"enabled": True}, "operator": {"enabled": True}}
    changes: list[Object] = [
        {"agentVersion": "1.7.1"},
        {"options": {"rb-size": "2M"}},
        {"policies": {"a.yaml": POLICY % ("deny-2", "Sigkill")}},
        {"bundle": "0123456789abcdef"},
        {"maxSurge": "20%"},
        {"hold": True},
    ]
    first = {key(one): one for one in objects(template({"rings": before, **more}))}
    for change in changes:
        second = {key(one): one for one in objects(template({"rings": [before[0], {**before[1], **change}, before[2]], **more}))}
        touched = {name for name in first.keys() | second.keys() if first.get(name) != second.get(name)}
        named = {name for name in touched if not name.startswith("ConfigMap/")}
        assert {"DaemonSet/apiary-early"} <= named <= {"DaemonSet/apiary-early", "PrometheusRule/apiary-early"}, change
        used = json.dumps([first["DaemonSet/apiary-canary"], first["DaemonSet/apiary-rest"]])
        assert not [name for name in touched if name.partition("/")[2] in used and name.startswith("ConfigMap/")], change


def test_what_only_people_see_of_a_ring_does_not_change_its_pods() -> None:
    (first,) = of_kind(objects(template({"rings": [ring("fleet")]})), "DaemonSet")
    (second,) = of_kind(objects(template({"rings": [ring("fleet", bundle="0123456789abcdef", maxSurge=3)]})), "DaemonSet")
    assert second["metadata"]["annotations"] == {"apiary.dev/bundle": "0123456789abcdef"}
    assert first["spec"]["template"] == second["spec"]["template"]


def test_every_node_has_exactly_one_ring() -> None:
    names = ["canary", "early", "rest"]
    found = of_kind(objects(template({"rings": [ring(name) for name in names]})), "DaemonSet")

    def runs(daemonset: Object, label: str | None) -> bool:
        (term,) = daemonset["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
            "nodeSelectorTerms"
        ]
        labels = {"kubernetes.io/os": "linux", **({"apiary.dev/ring": label} if label is not None else {})}
        return all(
            (labels.get(one["key"]) in one["values"]) == (one["operator"] == "In")
            for one in term["matchExpressions"]
            if one["operator"] in ("In", "NotIn")
        )

    for label in (None, "", "unknown", "Canary", *names):
        wanted = label if label in names else "rest"
        assert [one["metadata"]["labels"]["apiary.dev/ring"] for one in found if runs(one, label)] == [wanted], label


def test_objects_that_pods_use_are_named_by_digest_never_change_and_stay(rendered: dict[str, list[Object]]) -> None:
    for found in rendered.values():
        maps = {one["metadata"]["name"]: one for one in of_kind(found, "ConfigMap")}
        for one in maps.values():
            assert one["immutable"] is True
            assert one["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
            assert one["metadata"]["labels"]["apiary.dev/kind"] in ("config", "policies", "script")
        for name, spec in templates(found):
            for volume in spec.get("volumes", ()):
                if "configMap" in volume:
                    assert volume["configMap"]["name"] in maps, name


def test_an_agent_loads_first_what_is_not_kept_in_the_kernel() -> None:
    policies = {
        "a.yaml": POLICY % ("deny", "Override"),
        "b.yaml": "apiVersion: cilium.io/v1alpha1\nkind: TracingPolicy\nmetadata: {name: lsm}\nspec:\n  lsmhooks:\n    - hook: file_open\n",
        "c.yaml": "apiVersion: cilium.io/v1alpha1\nkind: TracingPolicy\nmetadata: {name: raw}\n"
        "spec:\n  tracepoints:\n    - {subsystem: raw_syscalls, event: sys_enter, raw: true}\n",
    }

    def lines(version: str) -> list[list[str]]:
        found = objects(template({"rings": [ring("fleet", version, policies=policies)]}))
        (tsv,) = (one["data"]["policies.tsv"] for one in of_kind(found, "ConfigMap") if "policies.tsv" in one["data"])
        return [line.split("\t") for line in tsv.splitlines()]

    assert lines("1.7.0") == [
        ["b.yaml", "lsm", "-", "observe", "-"],
        ["c.yaml", "raw", "-", "observe", "-"],
        ["a.yaml", "deny", "-", "enforce", "overrides"],
    ]
    assert [line[1] for line in lines("1.8.0")] == ["raw", "deny", "lsm"]


def test_options_reach_the_agent_as_text() -> None:
    options = {
        "process-cache-size": 12345678,
        "enable-process-cred": True,
        "enable-process-ns": False,
        "cluster-name": "1e3",
        "rb-size": "1M",
    }
    found = objects(template({"options": {"rb-size": "2M", "data-cache-size": 7}, "rings": [ring("fleet", options=options)]}))
    (config,) = (one["data"] for one in of_kind(found, "ConfigMap") if "procfs" in one["data"])
    wanted = {
        "process-cache-size": "12345678",
        "enable-process-cred": "true",
        "enable-process-ns": "false",
        "cluster-name": "1e3",
        "rb-size": "1M",
        "data-cache-size": "7",
        "keep-sensors-on-exit": "true",
        "release-pinned-bpf": "false",
        "health-server-address": "",
    }
    assert {name: config[name] for name in wanted} == wanted
    assert "export-denylist" not in config


def test_an_agent_has_the_time_for_probes_that_it_is_given() -> None:
    (spec,) = (one["spec"]["template"]["spec"] for one in of_kind(objects(template({"probes": {"timeoutSeconds": 120}})), "DaemonSet"))
    probes = {name: spec["containers"][0][f"{name}Probe"]["timeoutSeconds"] for name in ("startup", "readiness", "liveness")}
    assert probes == {"startup": 120, "readiness": 120, "liveness": 240}


# --- the library


def test_the_chart_carries_the_library_as_it_is_in_monitor() -> None:
    sys.path.insert(0, str(ROOT / "tools"))
    import chart_policies

    there = {path.name: path.read_text(encoding="utf-8") for path in (CHART / "files/policies").glob("*")}
    assert there == chart_policies.files(), "run tools/chart_policies.py"
    assert len(there) >= 5


def test_a_plain_install_watches_with_the_library_and_enforces_nothing() -> None:
    (policies,) = (one["data"] for one in of_kind(objects(template()), "ConfigMap") if "policies.tsv" in one["data"])
    lines = [line.split("\t") for line in policies["policies.tsv"].splitlines()]
    assert len(lines) == len(policies) - 1 >= 5
    assert {line[3] for line in lines} == {"monitor"}
    own = {"rings": [ring("canary", policies={"a.yaml": POLICY % ("deny-1", "Override")}), ring("rest")]}
    both = [one["data"] for one in of_kind(objects(template(own)), "ConfigMap") if "policies.tsv" in one["data"]]
    assert sorted(len(data) for data in both) == [2, len(policies)]
    none = [
        one["data"] for one in of_kind(objects(template({"library": {"enabled": False}})), "ConfigMap") if "policies.tsv" in one["data"]
    ]
    assert none == [{"policies.tsv": ""}]


def test_policies_for_upstreams_agents_are_all_that_is_brought_without_agents(rendered: dict[str, list[Object]]) -> None:
    found = rendered["policies-only"]
    assert not list(templates(found))
    (policy,) = (one for one in found if not one["kind"].startswith("ValidatingAdmission"))
    assert (policy["kind"], policy["metadata"]) == ("TracingPolicy", {"name": "watch-mounts"})
    assert "nodeSelector" not in policy["spec"]  # one ring is the whole cluster, whatever the agents' version
    everything = {**yaml.safe_load((CHART / "ci/everything-values.yaml").read_text(encoding="utf-8")), "agents": {"enabled": False}}
    kinds = {one["kind"] for one in objects(template({**everything, "operator": {"enabled": False}, "runtimeHooks": {"enabled": False}}))}
    assert kinds == {"TracingPolicy", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}


# --- who may do what


def test_only_the_agent_is_privileged_and_nobody_shares_the_nodes_namespaces(rendered: dict[str, list[Object]]) -> None:
    for found in rendered.values():
        for name, spec in templates(found):
            assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), name
            for container in spec["containers"]:
                security = container["securityContext"]
                assert security["readOnlyRootFilesystem"] is True, name
                assert container["resources"]["requests"], name
                assert not any("hostPort" in port for port in container.get("ports", ())), name
                if container["name"] != "tetragon":
                    assert not security.get("privileged"), name
                    assert security["allowPrivilegeEscalation"] is False, name


def test_the_agent_sees_of_the_node_only_what_it_needs(rendered: dict[str, list[Object]]) -> None:
    paths = {"/sys/fs/bpf", "/proc", "/run/apiary", "/var/log/tetragon"}
    for case, found in rendered.items():
        for name, spec in templates(found):
            if "tetragon" in [one["name"] for one in spec["containers"]]:
                seen = {volume["hostPath"]["path"] for volume in spec["volumes"] if "hostPath" in volume}
                assert seen <= paths | ({"/sys/kernel/tracing"} if case == "everything" else set()), name


def test_every_right_is_granted_to_somebody_who_uses_it(rendered: dict[str, list[Object]]) -> None:
    for case, found in rendered.items():
        users = {spec["serviceAccountName"] for _name, spec in templates(found) if spec.get("automountServiceAccountToken")}
        roles = {key(one) for one in of_kind(found, "ClusterRole", "Role")}
        bound = {f"{one['roleRef']['kind']}/{one['roleRef']['name']}" for one in of_kind(found, "ClusterRoleBinding", "RoleBinding")}
        assert roles == bound, case
        accounts = {one["metadata"]["name"] for one in of_kind(found, "ServiceAccount")}
        for one in of_kind(found, "ClusterRoleBinding"):
            assert {subject["name"] for subject in one["subjects"]} <= users & accounts, case
        rules = [rule for one in of_kind(found, "ClusterRole") for rule in one["rules"]]
        assert all("*" not in json.dumps(rule) for rule in rules), case
        for one in of_kind(found, "ClusterRole"):
            if not one["metadata"]["name"].endswith("-operator"):
                assert all(set(rule["verbs"]) <= {"get", "list", "watch"} for rule in one["rules"]), case
    assert not of_kind(rendered["bare"], "ClusterRole", "ClusterRoleBinding")
    (only,) = of_kind(rendered["default"], "ClusterRole")
    assert [(rule["resources"], rule["verbs"]) for rule in only["rules"]] == [(["pods", "nodes"], ["get", "list", "watch"])]


# --- what is refused


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"ring": []}, "additional properties 'ring' not allowed"),
        ({"image": {"repository": "x", "tag": "y"}}, "'tag' not allowed"),
        ({"rings": []}, "minItems"),
        ({"rings": [ring("fleet", "v1.7.0")]}, "does not match pattern"),
        ({"rings": [ring("fleet", "1.7")]}, "does not match pattern"),
        ({"rings": [ring("Fleet")]}, "does not match pattern"),
        ({"rings": [ring("fleet", maxSurge=0)]}, "maxSurge"),
        ({"rings": [ring("fleet", maxSurge="0%")]}, "maxSurge"),
        ({"rings": [ring("fleet", policies={"readme.txt": "x"})]}, "readme.txt"),
        ({"options": {"bpf-dir": "tetragon"}}, "bpf-dir"),
        ({"rings": [ring("fleet", options={"tracing-policy-dir": "/x"})]}, "tracing-policy-dir"),
        ({"options": {"Rb-Size": "1M"}}, "Rb-Size"),
        ({"image": {"repository": "x", "digest": "sha256:123"}}, "does not match pattern"),
        ({"podLabels": {"apiary.dev/ring": "x"}}, "apiary.dev/ring"),
    ],
)
def test_the_schema_refuses(values: Object, words: str) -> None:
    assert words in refusal(values)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rings": [ring("fleet"), ring("fleet", "1.7.1")]}, "rings: fleet is there twice"),
        ({"rings": [ring("fleet", "1.5.0")]}, "this chart knows 1.6 and newer"),
        (
            {"image": {"repository": "x", "digest": "sha256:" + "0" * 64}, "rings": [ring("canary", "1.7.1"), ring("rest")]},
            "set rings[].imageDigest",
        ),
        ({"rings": [ring("fleet", policies={"a.yaml": "{"})]}, "policy a.yaml is not YAML"),
        ({"rings": [ring("fleet", policies={"a.yaml": "kind: Pod\napiVersion: v1"})]}, "policy a.yaml is no TracingPolicy"),
        ({"rings": [ring("fleet", policies={"a.yaml": POLICY % ("Deny_1", "Sigkill")})]}, "the agent wants a DNS name"),
        (
            {"rings": [ring("fleet", policies={"a.yaml": POLICY % ("deny", "Sigkill"), "b.yaml": POLICY % ("deny", "Override")})]},
            "policies a.yaml and b.yaml have the same name deny",
        ),
        (
            {"rings": [ring("fleet", policies={"a.yaml": POLICY % ("deny", "Sigkill") + "  nodeSelector: {}\n"})]},
            "spec.nodeSelector, which agent 1.7.0 does not know",
        ),
        (
            {
                "rings": [
                    ring("fleet", policies={"a.yaml": POLICY % ("deny", "Sigkill") + "  options: [{name: policy-mode, value: enfroce}]\n"})
                ]
            },
            'policy-mode "enfroce": the agent knows enforce and monitor',
        ),
        (
            {"rings": [ring("fleet", policies={f"{n}.yaml": POLICY % (f"deny-{n}", "Sigkill") + "#" * 300_000 for n in range(4)})]},
            "the API server takes at most 1048576",
        ),
        (
            {"customResources": {"enabled": True}, "rings": [ring("canary", customResources=WATCH), ring("fleet")]},
            "agent 1.7.0 knows no nodeSelector and would load it on every node",
        ),
        (
            {
                "customResources": {"enabled": True},
                "rings": [ring("canary", "1.8.0", customResources=WATCH), ring("fleet", "1.8.0")],
            },
            "no CRD tracingpolicies.cilium.io can be seen",
        ),
        (
            {
                "customResources": {"enabled": True, "assumeNodeSelector": True},
                "rings": [ring("fleet", "1.8.0", customResources={"a.yaml": POLICY % ("deny", "Sigkill")})],
            },
            "only cluster-wide policies that observe may be custom resources",
        ),
        ({"agents": {"enabled": False}}, "without customResources.enabled there is nothing to bring"),
        (
            {"agents": {"enabled": False}, "customResources": {"enabled": True}, "adopt": True},
            "adopt takes over with agents of this chart",
        ),
        (
            {
                "agents": {"enabled": False},
                "customResources": {"enabled": True},
                "rings": [ring("fleet", policies={"a.yaml": POLICY % ("deny", "Sigkill")})],
            },
            "ring fleet has policies as files, which agents of this chart read",
        ),
    ],
)
def test_the_templates_refuse_in_words(values: Object, words: str) -> None:
    assert words in refusal(values)


def test_a_release_is_named_once() -> None:
    assert "DaemonSet/apiary-fleet" in {key(one) for one in objects(template())}
    assert "DaemonSet/kube-apiary-fleet" in {key(one) for one in objects(template(release="kube"))}
    assert "DaemonSet/my-apiary-fleet" in {key(one) for one in objects(template(release="my-apiary"))}
