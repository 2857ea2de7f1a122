# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""helm as a program: which ones do, what is told when it fails, and what the API server is asked first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube import helm
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.client import Place
from ansible_collections.apiary.tetragon.tests.unit.plugins.plugin_utils.samples import messages, refused

from .conftest import Answer, Server

PLACE = Place("eu", "lab", "/kube/config")
MAP = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "policies"}, "data": {"a": "b"}}
KINDS = {"resources": [{"name": "configmaps", "kind": "ConfigMap", "namespaced": True}]}


def program(directory: Path, script: str) -> helm.Helm:
    path = directory / "helm"
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return helm.Helm(PLACE, str(path))


def test_helm_3_and_4_do_and_others_are_refused(tmp_path: Path) -> None:
    assert program(tmp_path, "echo v3.22.0").version() == "3.22.0"
    assert program(tmp_path, "echo v4.3").version() == "4.3"
    for other in ("v2.17.0", "v3.12.3", "v5.0.0"):
        assert f"is helm {other}; needed: helm 3.13 or newer, or 4" in messages(refused(program(tmp_path, f"echo {other}").version))
    assert "is not there: install helm 3 or 4" in messages(refused(helm.Helm(PLACE, "/no/helm").version))


def test_a_failure_is_told_in_helms_own_words(tmp_path: Path) -> None:
    failing = program(tmp_path, "echo 'WARNING: x' >&2; echo 'Error: UPGRADE FAILED: the chart says no' >&2; exit 1")
    assert messages(refused(failing.upgrade, {})) == "cluster eu: helm upgrade: UPGRADE FAILED: the chart says no"


def test_a_release_that_is_not_there_is_none_and_calls_name_the_place(tmp_path: Path) -> None:
    assert program(tmp_path, "echo 'Error: release: not found' >&2; exit 1").release() is None
    log = tmp_path / "log"
    told = '{"status": "pending-upgrade", "revision": 3}'
    script = f"echo \"$@\" >>{log}; case $2 in metadata) echo '{told}';; values) echo null;; esac"
    assert program(tmp_path, script).release() == helm.Release("pending-upgrade", 3, {})
    first = log.read_text(encoding="utf-8").splitlines()[0]
    assert first == "get metadata apiary -o json --namespace tetragon --kube-context lab --kubeconfig /kube/config"


def test_an_upgrade_that_was_cut_off_is_forgotten(server: Server, tmp_path: Path) -> None:
    told = '{"status": "STATUS", "revision": 3}'
    script = "case $2 in metadata) echo '" + told + "';; values) echo null;; esac"
    server.answers = [(200, {})]
    assert program(tmp_path, script.replace("STATUS", "pending-upgrade")).recover(server.api()) == "revision 3 (pending-upgrade)"
    assert server.asked == [("DELETE", "/api/v1/namespaces/tetragon/secrets/sh.helm.release.v1.apiary.v3?propagationPolicy=Background")]
    assert program(tmp_path, script.replace("STATUS", "deployed")).recover(server.api()) == ""


def conflict(*managers: str) -> Answer:
    causes = [{"field": ".data.a", "message": f'conflict with "{manager}"', "reason": "FieldManagerConflict"} for manager in managers]
    return 409, {"message": "conflicts", "details": {"causes": causes}}


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        pytest.param([(200, {})], "", id="fine"),
        pytest.param([conflict("helm"), (200, {})], "", id="an older helm"),
        pytest.param([conflict("helm", "gitops")], 'field .data.a: conflict with "gitops": somebody else manages it', id="field manager"),
        pytest.param([(422, {"message": "Too long: may not be more than 1048576 bytes"})], "Too long: may not be", id="too large"),
        pytest.param([(500, {"message": "field not declared in schema"})], "field not declared in schema", id="unknown field"),
    ],
)
def test_what_differs_is_tried_on_the_api_server(server: Server, answers: list[Answer], told: str) -> None:
    server.answers = [(200, KINDS), *answers]
    api = server.api()
    if told:
        text = messages(refused(helm.dry_run, api, [MAP], []))
        assert text.startswith("cluster eu: ConfigMap policies: ")
        assert told in text
    else:
        helm.dry_run(api, [MAP], [])
    assert server.asked[1] == (
        "PATCH",
        "/api/v1/namespaces/tetragon/configmaps/policies?fieldManager=helm&force=false&dryRun=All",
    )


def test_what_is_deployed_as_it_is_to_be_is_not_tried(server: Server) -> None:
    helm.dry_run(server.api(), [MAP], [dict(MAP)])
    assert server.asked == []
    changed: dict[str, Any] = {**MAP, "data": {}}
    assert helm.same([MAP, changed], [MAP]) is False
    assert helm.same([MAP], [dict(MAP)]) is True


def test_a_kind_that_the_api_server_does_not_know_is_refused(server: Server) -> None:
    policy = {"apiVersion": "cilium.io/v1alpha1", "kind": "TracingPolicy", "metadata": {"name": "watch"}}
    server.answers = [(404, {"message": "the server could not find the requested resource"})]
    text = messages(refused(helm.dry_run, server.api(), [policy], []))
    assert "the API server has no TracingPolicy of cilium.io/v1alpha1: install what defines it (for cilium.io its CRDs)" in text
