# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "shared"))
import charge


def test_the_changed_agent_is_in_charge_and_boots(host):
    charge.check(host, "b", "1.7.100")


def test_the_option_is_in_effect(host):
    assert json.loads(host.check_output("tetra info"))["Conf"]["enable-process-cred"] == "true"


def test_nothing_forbidden_was_allowed(host):
    charge.never_allowed(host)
