# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Every trigger of the library is an act that its policy forbids when it enforces, by the measured semantics of the agent."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.load import Library
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.render import render
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.trigger import act
from standin.host import LabHost
from standin.kernel import Caller

LIBRARY = Library([Path(__file__).parents[2] / "policies"])
VALUES: Mapping[str, Mapping[str, Any]] = {
    "network/c2-ranges": {"ranges": ["192.0.2.0/24"]},
    "network/egress-allowlist": {"allowed": ["192.0.0.0/8", "198.51.100.0/24"]},
}
WITH_TRIGGER = [one.reference for one in LIBRARY if "trigger" in one.meta]


def words(trigger: Mapping[str, Any]) -> tuple[str, ...]:
    """The trigger as an act of the lab; of a directory, a file in it."""
    if trigger["kind"] == "write":
        return "write", trigger["files"][0] if "files" in trigger else f"{trigger['below'][0]}/plain"
    return (trigger["kind"], trigger["address"], "9") if trigger["kind"] == "connect" else (trigger["kind"],)


@pytest.mark.parametrize("mode", ["enforce", "monitor"])
@pytest.mark.parametrize("reference", WITH_TRIGGER)
def test_a_trigger_is_refused_by_its_policy_and_by_nothing_else(host: LabHost, reference: str, mode: str) -> None:
    rendered = render(LIBRARY.get(reference), VALUES.get(reference, {}), "host", ["/usr/sbin/sshd"])
    (host.policies / "policy.yaml").write_text(rendered.text(mode), encoding="utf-8")
    host.start()
    trigger = act(rendered)
    assert trigger is not None
    result = host.kernel.act(*words(trigger), caller=Caller(binary="/usr/bin/python3.11"))
    assert (result.result, result.undecided) == ("denied" if mode == "enforce" else "allowed", [])
