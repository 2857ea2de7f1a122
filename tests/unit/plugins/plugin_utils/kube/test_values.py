# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Chart values out of bundles."""

from __future__ import annotations

from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils import bundle as bundles
from ansible_collections.apiary.tetragon.plugins.plugin_utils.bundle import Bundle
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube import values
from ansible_collections.apiary.tetragon.tests.unit.plugins.plugin_utils.samples import messages, refused


def made(size: int = 10, where: tuple[str, ...] = ()) -> Bundle:
    """A bundle of one policy with a cluster form of so many bytes, and a host form."""
    policies = [
        {"loaded": "watch-1", "form": form, "file": f"{form}-watch-1.yaml", "mode": "monitor", "unpinned": [], "reference": "file/watch"}
        for form in ("cluster", "host")
    ]
    manifest = {
        "format": bundles.FORMAT,
        "environment": "lab",
        "agent_version": "1.7.1",
        "policies": policies,
        "assignments": [
            {"policy": "file/watch", "form": form, "where": list(where), "choices": [{"where": [], "loaded": "watch-1"}]}
            for form in ("cluster", "host")
        ],
    }
    return Bundle(manifest, {"cluster-watch-1.yaml": "c" * size, "host-watch-1.yaml": "h"})


ENTRY = {
    "name": "canary",
    "agentVersion": "1.7.0",
    "policies": {"old.yaml": "x"},
    "bundle": "a",
    "options": {"rb-size": "1M"},
    "maxSurge": 1,
}


def test_a_ring_is_given_a_bundle_and_keeps_what_is_its_own() -> None:
    chosen = made()
    assert values.with_bundle(ENTRY, chosen, ["eu"], "25%") == {
        **ENTRY,
        "agentVersion": "1.7.1",
        "policies": {"cluster-watch-1.yaml": "c" * 10},
        "bundle": chosen.digest,
        "maxSurge": "25%",
    }
    assert values.with_bundle(ENTRY, made(where=("us",)), ["eu"], "2")["policies"] == {}
    none = values.with_bundle(ENTRY, None, ["eu"], "2")
    assert (none["agentVersion"], none["policies"], none["bundle"], none["maxSurge"]) == ("1.7.0", {}, "", 2)


def test_an_image_that_is_pinned_changes_with_its_agent() -> None:
    pinned = {**ENTRY, "imageDigest": "sha256:old"}
    assert "name the digest of that image in apiary_kube_digests" in messages(refused(values.with_bundle, pinned, made(), [], "1"))
    assert values.with_bundle(pinned, made(), [], "1", {"1.7.1": "sha256:new"})["imageDigest"] == "sha256:new"
    assert values.with_bundle(pinned, None, [], "1")["imageDigest"] == "sha256:old"


def test_a_bundle_that_no_config_map_holds_is_refused() -> None:
    text = messages(refused(values.with_bundle, ENTRY, made(values.MAX_DATA), [], "1"))
    assert text.startswith("ring canary: its 1 policies are 1,048,")
    assert "a ConfigMap holds 1,048,576" in text
    assert "the largest is cluster-watch-1.yaml" in text


def test_one_ring_changes_and_the_others_stay() -> None:
    other: dict[str, Any] = {"name": "fleet", "agentVersion": "1.6.0"}
    release = {"image": {"digest": "x"}, "rings": [ENTRY, other]}
    new = values.with_ring(release, {**ENTRY, "bundle": "b"})
    assert new["rings"] == [{**ENTRY, "bundle": "b"}, other]
    assert (new["image"], release["rings"][0]["bundle"]) == ({"digest": "x"}, "a")


def test_an_installation_takes_the_rings_of_the_environment_and_keeps_what_they_run() -> None:
    base = {"resources": {}, "library": {"enabled": True}, "rings": [{"name": "canary", "options": {"rb-size": "2M"}, "bundle": "no"}]}
    new = values.for_install(base, {"rings": [ENTRY], "resources": {"old": 1}}, {"canary": "100%", "fleet": "3"}, "1.7.0")
    assert new == {
        "resources": {},
        "library": {"enabled": False},
        "rings": [
            {
                "name": "canary",
                "agentVersion": "1.7.0",
                "policies": {"old.yaml": "x"},
                "bundle": "a",
                "options": {"rb-size": "2M"},
                "maxSurge": "100%",
            },
            {"name": "fleet", "agentVersion": "1.7.0", "policies": {}, "bundle": "", "maxSurge": 3},
        ],
    }


def test_a_manifest_that_would_restart_another_ring_is_found() -> None:
    def manifest(**specs: Any) -> list[dict[str, Any]]:
        return [
            {"kind": "DaemonSet", "metadata": {"name": f"apiary-{ring}", "labels": {"apiary.dev/ring": ring}}, "spec": spec}
            for ring, spec in specs.items()
        ]

    deployed = manifest(canary=1, early=1, fleet=1)
    assert values.touched(manifest(canary=2, early=1, fleet=1), deployed, "canary") == []
    assert values.touched(manifest(canary=2, early=2), deployed, "canary") == ["apiary-early", "apiary-fleet"]


def test_an_installation_without_agents_is_refused() -> None:
    found = refused(values.for_install, {"agents": {"enabled": False}}, {}, {"fleet": "1"}, "1.7.0")
    assert "values agents.enabled: is false, and bundles are read by agents of the chart" in messages(found)
    assert values.for_install({"agents": {"enabled": True}}, {}, {"fleet": "1"}, "1.7.0")["agents"] == {"enabled": True}
