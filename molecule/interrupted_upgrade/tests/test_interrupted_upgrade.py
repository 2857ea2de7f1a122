# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "shared"))
import charge


def test_the_last_version_asked_for_is_in_charge_and_nothing_is_left_of_eight_deaths(host):
    slot = host.check_output("readlink /etc/systemd/system/apiary-tetragon.service")[len("apiary-tetragon-")]
    charge.check(host, slot, "1.7.100")
