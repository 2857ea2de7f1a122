# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "shared"))
import charge


def test_the_slot_that_was_in_charge_boots(host):
    charge.check(host, "b", "1.7.101")


def test_a_service_that_follows_starts_when_policies_are_enforced(host):
    assert "denied" in host.file("/root/at-start").content_string
