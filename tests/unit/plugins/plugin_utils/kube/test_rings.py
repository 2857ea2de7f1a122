# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Nodes and their rings: read from documents, placed into the fleet's plan, refused where they cannot be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ansible_collections.apiary.tetragon.plugins.plugin_utils.environment import Environment
from ansible_collections.apiary.tetragon.plugins.plugin_utils.fleet.rings import Member, plan_rings
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube import rings
from ansible_collections.apiary.tetragon.tests.unit.plugins.plugin_utils.samples import messages, refused

TAKING = "  - {name: canary, take: 1}\n  - {name: early, take: 25%}\n  - {name: fleet, take: rest, batch: 2}\n"
BY_GROUPS = "  - {name: canary, groups: [us_clusters]}\n  - {name: fleet, take: rest}\n"
CELL = ("6.8", "x86_64", "ubuntu 24.04")
Make = Callable[..., Environment]


def document(**changes: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "node-1", "labels": changes.get("labels", {})},
        "status": {
            "capacity": {"cpu": changes.get("cpu", "32")},
            "conditions": [{"type": kind, "status": status} for kind, status in changes.get("conditions", {"Ready": "True"}).items()],
            "nodeInfo": {
                "kernelVersion": "6.8.0-45-generic",
                "architecture": "arm64",
                "osImage": "Ubuntu 24.04.1 LTS",
                "bootID": "boot",
            },
        },
    }


def test_a_node_says_of_itself_what_a_host_does() -> None:
    node = rings.read_node(document(cpu="1500m", conditions={"Ready": "True", "DiskPressure": "True", "PIDPressure": "False"}), ("all",))
    assert (node.ready, node.troubles) == (True, ("DiskPressure",))
    assert node.host == {
        "kernel": "6.8.0-45-generic",
        "architecture": "aarch64",
        "os": "ubuntu",
        "os_version": "24.04",
        "boot_id": "boot",
        "cpus": 1,
    }
    assert not rings.read_node(document(conditions={"Ready": "Unknown"}), ("all",)).ready


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("Ubuntu 24.04.1 LTS", ("ubuntu", "24.04")),
        ("Debian GNU/Linux 12 (bookworm)", ("debian", "12")),
        ("Bottlerocket OS 1.20.3 (aws-k8s-1.30)", ("bottlerocket", "1.20")),
        ("Talos (v1.7.5)", ("talos", "1.7")),
        ("Amazon Linux 2023.5.20240624", ("amazon", "2023.5")),
        ("Container-Optimized OS from Google", ("container-optimized-os-from-google", "")),
        ("Red Hat Enterprise Linux CoreOS 416.94.202406251923-0", ("red-hat-enterprise-linux-coreos", "416.94")),
        ("", ("unknown", "")),
    ],
)
def test_systems_are_told_apart_by_name_and_version(image: str, name: tuple[str, str]) -> None:
    assert rings.read_os(image) == name


def test_the_last_ring_takes_nodes_without_a_known_label() -> None:
    known = ("canary", "early", "fleet")
    assert rings.ring_of({rings.LABEL: "early"}, known) == "early"
    assert rings.ring_of({}, known) == "fleet"
    assert rings.ring_of({rings.LABEL: "erly"}, known) == "fleet"


def test_a_cluster_has_the_rings_that_take_a_share_or_the_one_that_its_groups_are_in(make_environment: Make) -> None:
    taking, grouped = make_environment(TAKING), make_environment(BY_GROUPS)
    assert rings.rings_of(taking, "eu", ["apiary_clusters"]) == ("canary", "early", "fleet")
    assert rings.rings_of(grouped, "us", ["us_clusters"]) == ("canary",)
    assert rings.rings_of(grouped, "eu", ["eu_clusters"]) == ("fleet",)
    twice = make_environment("  - {name: a, groups: [us_clusters]}\n  - {name: b, groups: [large]}\n")
    assert "cluster us is in ring 'a' and in ring 'b'" in messages(refused(lambda: rings.rings_of(twice, "us", ["us_clusters", "large"])))
    assert "cluster eu is in no ring" in messages(refused(lambda: rings.rings_of(twice, "eu", [])))


def member(name: str, ring: str = "", trouble: str = "", cell: tuple[str, str, str] = CELL) -> Member:
    return Member(name, frozenset(), cell, trouble, ring)


def test_hosts_and_nodes_are_planned_together(make_environment: Make) -> None:
    nodes = [member(f"kube/n{number}", ring) for number, ring in enumerate(["canary", "early", "fleet", "fleet", "fleet"])]
    hosts = [member(f"host{number}") for number in range(4)]
    plan = plan_rings(make_environment(TAKING), [*nodes, *hosts])
    canary, early, fleet = plan.rings
    assert (len(canary.hosts), len(early.hosts), len(fleet.hosts)) == (2, 2, 5)
    assert canary.batches[-1] == ("kube/n0",)
    assert [len(batch) for batch in fleet.batches] == [2, 3]
    assert {name.partition("/")[0] for name in fleet.batches[1]} == {"kube"}
    assert {rings.is_node(name) for name in canary.control} == {False, True}
    assert all(not rings.is_node(name) for name in plan_rings(make_environment(TAKING), hosts).rings[0].control)


def test_a_ring_that_selects_no_node_is_refused(make_environment: Make) -> None:
    nodes = [member(f"kube/n{number}", "fleet") for number in range(3)]
    text = messages(refused(lambda: plan_rings(make_environment(TAKING), nodes)))
    assert "ring 'canary' is empty: it selects no node; label nodes with apiary.dev/ring=canary" in text
    assert "ring 'early' is empty" in text


def test_a_kind_of_node_that_the_first_ring_lacks_is_refused(make_environment: Make) -> None:
    nodes = [member("kube/a", "canary"), member("kube/b", "early"), member("kube/c", "fleet", cell=("5.15", "x86_64", "debian 12"))]
    text = messages(refused(lambda: plan_rings(make_environment(TAKING), nodes)))
    assert "no host with kernel 5.15 x86_64 debian 12 (such as kube/c)" in text
    assert "label one of these nodes with apiary.dev/ring=canary" in text


def test_nodes_that_cannot_take_part_count_against_the_budget(make_environment: Make) -> None:
    nodes = [
        member("kube/a", "canary"),
        member("kube/b", "early"),
        member("kube/c", "fleet"),
        member("kube/d", "fleet", "the node is not ready"),
    ]
    assert "1 of 4 hosts cannot take part and 0 may be missing: kube/d: the node is not ready" in messages(
        refused(lambda: plan_rings(make_environment(TAKING), nodes))
    )
    plan = plan_rings(make_environment(TAKING, "gates: {unreachable: 25%}\n"), nodes)
    assert dict(plan.left_out) == {"kube/d": "the node is not ready"}


def test_a_node_with_agents_of_two_rings_or_releases_is_refused() -> None:
    ours, other = rings.Owner("tetragon/apiary", "canary"), rings.Owner("tetragon/apiary", "fleet")
    rings.check_overlap("eu", {"n1": [ours, ours], "n2": [other], "n3": []})
    text = messages(refused(lambda: rings.check_overlap("eu", {"n1": [ours, other]})))
    assert "cluster eu: node n1: is in two rings: agents of ring 'canary' of release tetragon/apiary and ring 'fleet' of" in text
    assert "n2" in messages(refused(lambda: rings.check_overlap("eu", {"n2": [ours, rings.Owner("kube-system/apiary", "canary")]})))
