# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Makes the stand-in importable and gives tests a host of their own.

With $STANDIN_BPFFS set, every host gets a real BPF file system; that needs root and a mount namespace of one's own:
``STANDIN_BPFFS=1 unshare -m pytest tests/lab``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).parent))

if TYPE_CHECKING:
    from ansible_collections.apiary.tetragon.plugins.module_utils.agent.converge import Host
    from ansible_collections.apiary.tetragon.plugins.module_utils.agent.tetra import Key, Tetra
    from slothost import SlotHost
    from standin.host import LabHost


@pytest.fixture
def slot_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlotHost]:
    """A host with versions side by side and free slots."""
    from slothost import SlotHost, adopt_orphans

    adopt_orphans()
    monkeypatch.delenv("STANDIN_ROOT", raising=False)
    with SlotHost(tmp_path / "host") as made:
        yield made


@pytest.fixture
def host(tmp_path: Path) -> Iterator[LabHost]:
    """A host whose policies load at once; its agent is not started yet and does not survive the test."""
    from standin.host import LabHost

    with LabHost(tmp_path / "host") as made:
        made.faults(load_seconds=0)
        if os.environ.get("STANDIN_BPFFS"):
            made.pins.parent.mkdir(parents=True)
            subprocess.run(["mount", "-t", "bpf", "bpf", str(made.pins.parent)], check=True)
        yield made


@pytest.fixture
def target(host: LabHost, monkeypatch: pytest.MonkeyPatch) -> Host:
    """The running host as the converger sees it. On a real bpffs modes may only be set by bpf(2)."""
    from ansible_collections.apiary.tetragon.plugins.module_utils.agent.converge import Host
    from ansible_collections.apiary.tetragon.plugins.module_utils.agent.pins import PinDirectory
    from ansible_collections.apiary.tetragon.plugins.module_utils.agent.policyset import PolicySet
    from ansible_collections.apiary.tetragon.plugins.module_utils.agent.state import StateFile
    from ansible_collections.apiary.tetragon.plugins.module_utils.agent.tetra import Tetra
    from standin.host import BIN

    monkeypatch.setenv("STANDIN_ROOT", str(host.path))

    def refuse(self: Tetra, key: Key, mode: str) -> None:
        raise AssertionError("the client was asked to set a mode")

    if os.environ.get("STANDIN_BPFFS"):
        monkeypatch.setattr(Tetra, "set_mode", refuse)
    host.start()
    return Host(
        tetra=Tetra(str(BIN / "tetra"), timeout=10),
        pins=PinDirectory(str(host.pins)),
        files=PolicySet(str(host.policies)),
        state=StateFile(str(host.path / "var/lib/apiary")),
    )
