# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""How Helm is called, and what is said when it cannot be or fails; a script stands for it."""

from __future__ import annotations

import json
from pathlib import Path

from ansible_collections.apiary.tetragon.plugins.plugin_utils.gitops import helm
from ansible_collections.apiary.tetragon.plugins.plugin_utils.gitops.layout import Cluster
from ansible_collections.apiary.tetragon.tests.unit.plugins.plugin_utils.samples import messages, refused


def cluster(directory: Path, script: str) -> Cluster:
    program = directory / "helm"
    program.write_text(f"#!/bin/sh\n{script}\n", "utf-8")
    program.chmod(0o755)
    return Cluster("us-1", (), namespace="sec", values=("a.yml", "b.yml"), kube_version="1.31", helm=str(program))


def test_our_values_come_last_and_documents_are_read(tmp_path: Path) -> None:
    script = "printf 'words: %s\\n---\\n# nothing\\n---\\nvalues: ' \"$(echo \"$@\" | tr ' ' ,)\"; cat"
    first, second = helm.template(cluster(tmp_path, script), Path("/chart"), {"rings": [1]})
    wanted = "template,apiary,/chart,--namespace,sec,--kube-version,1.31,--no-hooks,--values,a.yml,--values,b.yml,--values,-"
    assert first == {"words": wanted} and second == {"values": json.loads('{"rings": [1]}')}


def test_what_helm_refuses_is_said_in_its_words(tmp_path: Path) -> None:
    broken = cluster(tmp_path, "echo 'Error: values do not meet the schema' >&2; exit 1")
    said = messages(refused(lambda: helm.template(broken, Path("/chart"), {})))
    assert said == "/chart: the chart cannot be rendered for cluster us-1: Error: values do not meet the schema"


def test_a_helm_that_is_not_there_is_named(tmp_path: Path) -> None:
    absent = Cluster("us-1", (), helm=str(tmp_path / "helm"))
    said = messages(refused(lambda: helm.template(absent, Path("/chart"), {})))
    assert str(tmp_path / "helm") in said and "set apiary_helm" in said
