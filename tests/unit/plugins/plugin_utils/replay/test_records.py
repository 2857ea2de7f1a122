# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Names of hooks, and what policies declare."""

from __future__ import annotations

import pytest

from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.records import Declared, declared, hook_name


@pytest.mark.parametrize(
    ("call", "name"),
    [("sys_open", "sys_open"), ("__x64_sys_open", "sys_open"), ("__arm64_sys_open", "sys_open"), ("tcp_connect", "tcp_connect")],
)
def test_a_system_call_has_one_name_on_all_machines(call: str, name: str) -> None:
    assert hook_name(call) == name


def test_declarations_are_read_with_their_defaults() -> None:
    raw = [{"index": 1, "type": "int", "resolve": "a.b", "source": "current_task", "label": "x"}, {}]
    assert declared(raw) == (Declared(1, "int", "a.b", "current_task", "x"), Declared(0, "auto"))
