# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""What Argo CD is given: an ApplicationSet over the rings of all clusters, and the health check of a ring."""

from __future__ import annotations

from pathlib import Path

HEALTH = Path(__file__).with_name("health.lua")


def health_check(max_age: int) -> str:
    """The Lua script, for truth that counts as stale after so many seconds; 0: never."""
    return HEALTH.read_text("utf-8").replace("@max_age@", str(max_age))
