# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "shared"))
import charge


def test_our_agent_is_in_charge_with_the_same_policies(host):
    charge.check(host, "a", "1.7.101")


def test_nothing_forbidden_was_allowed(host):
    charge.never_allowed(host)


def test_the_other_unit_does_not_boot_any_more_and_its_configuration_is_kept(host):
    assert host.check_output("systemctl is-enabled tetragon.service || :") == "disabled"
    assert host.check_output("ls /var/lib/apiary/adopted").split() == ["tetragon.conf.d", "tetragon.tp.d"]
    assert len(host.check_output("ls /var/lib/apiary/adopted/tetragon.tp.d").split()) == 3
