# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""What of the chart's kept ConfigMaps may go."""

from __future__ import annotations

import datetime
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube import prune

NOW = datetime.datetime(2026, 11, 26, tzinfo=datetime.UTC)


def kept(name: str, made: str = "2026-11-24T23:59:59Z") -> dict[str, Any]:
    return {"metadata": {"name": name, "creationTimestamp": made}}


def template(*names: str) -> dict[str, Any]:
    return {"spec": {"volumes": [{"name": "run", "emptyDir": {}}, *({"name": "x", "configMap": {"name": name}} for name in names)]}}


def test_what_no_template_names_goes_once_it_is_a_day_old() -> None:
    there = [kept("b-left"), kept("a-left"), kept("new", "2026-11-25T00:00:01Z"), kept("used"), kept("former")]
    assert prune.unused(there, [template("used"), template("former", "used"), {"spec": {}}], NOW) == ["a-left", "b-left"]


def test_nothing_goes_where_all_is_used() -> None:
    assert prune.unused([kept("used")], [template("used")], NOW) == []
