# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "shared"))
import charge


def test_the_older_version_is_in_charge_and_nothing_is_left_of_the_newer(host):
    charge.check(host, "b", "1.7.100")


def test_nothing_forbidden_was_allowed(host):
    charge.never_allowed(host)
