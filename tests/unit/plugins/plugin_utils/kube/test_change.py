# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""How a ring's change is waited for, on a clock of its own."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube import change, observe
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.client import Place
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.rings import Node

TEMPLATE = {"spec": {"containers": [], "volumes": []}}


class Clock:
    """Sleeping is all that takes time."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Api:
    """A DaemonSet that never rolls, and how often it was looked at."""

    place = Place("eu", "lab")
    looks = 0

    def get(self, _path: str) -> dict[str, Any]:
        self.looks += 1
        return {"metadata": {"generation": 2}, "spec": {"template": TEMPLATE}, "status": {"observedGeneration": 1}}


def test_looks_become_rarer_and_a_ring_that_stands_still_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, api = Clock(), Api()
    monkeypatch.setattr(change, "time", clock)
    monkeypatch.setattr(observe, "nodes", lambda *_unused: {"a": Node("a", "fleet", "fleet", True, {}, ())})
    monkeypatch.setattr(observe, "pods", lambda *_unused: {})
    found = change.await_ring(api, "fleet", ("fleet",), 1600.0, lambda _text: None, lambda: None)  # type: ignore[arg-type]
    assert found.waiting == {"a": "no agent's pod runs on it"}
    assert 1600 < clock.now < 1600 * 1.06
    assert api.looks < 120
