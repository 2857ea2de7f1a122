# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Nothing of an agent is left, also where several died."""

from __future__ import annotations

import shutil
import signal

import pytest

from ansible_collections.apiary.tetragon.plugins.module_utils.agent.handover import Agent, Handover
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.remove import present, remove
from enforcing import KILL, LSM, deny
from slothost import SlotHost
from standin.kernel import Caller


def test_everything_goes_with_pins_that_nobody_holds_any_more(slot_host: SlotHost) -> None:
    slot_host.place("a", "1.6.1", [deny("1"), KILL, LSM])
    Handover(slot_host.layout, slot_host.services, timeout=10).execute(Agent("1.7.0"))
    shutil.copytree(slot_host.inside("/sys/fs/bpf/apiary-b"), slot_host.inside("/sys/fs/bpf/apiary-a_old"))
    slot_host.services.stop(slot_host.layout.unit("b"), signal.SIGKILL)
    slot_host.inside("/etc/systemd/system/apiary-drill.service").touch()  # of a drill whose controller died
    assert remove(slot_host.layout, slot_host.services)
    assert present(slot_host.layout, keep_logs=False) == []
    assert list(slot_host.inside("/sys/fs/bpf").iterdir()) == []
    assert slot_host.kernel.act("open", "/secret", caller=Caller(pid=4000)).result == "allowed"
    assert remove(slot_host.layout, slot_host.services) == []


def test_no_failed_unit_is_remembered(slot_host: SlotHost) -> None:
    """The alarm of an agent that was given up is raised once more while its program goes, and fails."""
    slot_host.place("a", "1.6.1", [KILL])
    failed: set[str] = set()
    reload = slot_host.services.reload

    def raise_the_alarm() -> None:
        reload()
        failed.add("apiary-tetragon-alarm@a.service")

    slot_host.services.reload = raise_the_alarm  # type: ignore[method-assign]
    slot_host.services.forget = failed.discard  # type: ignore[method-assign]
    remove(slot_host.layout, slot_host.services)
    assert not failed


def test_logs_stay_when_they_are_asked_for(slot_host: SlotHost) -> None:
    slot_host.place("a", "1.6.1", [KILL])
    remove(slot_host.layout, slot_host.services, keep_logs=True)
    assert slot_host.inside("/var/log/tetragon/a/tetragon.log").exists()


def test_what_cannot_be_removed_is_named(slot_host: SlotHost, monkeypatch: pytest.MonkeyPatch) -> None:
    slot_host.place("a", "1.6.1", [KILL])
    monkeypatch.setattr(shutil, "rmtree", lambda path, **_unused: None)
    with pytest.raises(OSError, match=r"still there after the removal: .*/sys/fs/bpf/apiary-a"):
        remove(slot_host.layout, slot_host.services)
