# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "shared"))
import charge


def test_the_new_version_is_in_charge_and_nothing_is_left_of_the_old(host):
    charge.check(host, "b", "1.7.101")


def test_nothing_forbidden_was_allowed(host):
    charge.never_allowed(host)


def test_the_old_version_is_still_there_to_go_back_to(host):
    assert host.file("/opt/apiary/tetragon/1.7.100/bin/tetragon").exists
