# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "shared"))
import charge


def test_after_it_was_lifted_everything_is_as_before(host):
    charge.check(host, "a", "1.7.100")


def test_nothing_is_held_any_more(host):
    assert host.check_output("/opt/apiary/lib/break-glass status") == "nothing is held"
