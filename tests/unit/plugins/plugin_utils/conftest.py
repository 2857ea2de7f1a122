# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Fixtures of the controller's tests."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ansible_collections.apiary.tetragon.plugins.plugin_utils import environment
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.load import Library
from ansible_collections.apiary.tetragon.tests.unit.plugins.plugin_utils.samples import HEAD, POLICIES, PolicyTree


@pytest.fixture(scope="session")
def library() -> Library:
    """The policies that the collection ships."""
    return Library([POLICIES])


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory on a file system of its own without a free byte."""
    place = tmp_path / "full"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        with contextlib.suppress(OSError), (place / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def tree(tmp_path: Path) -> PolicyTree:
    """An empty policy directory."""
    return PolicyTree(tmp_path / "policies")


@pytest.fixture
def make_environment(tmp_path: Path) -> Callable[..., environment.Environment]:
    """An environment with these rings (YAML lines) and gates."""

    def make(rings: str, tail: str = "") -> environment.Environment:
        path = tmp_path / "lab.yml"
        path.write_text(f"{HEAD}rings:\n{rings}{tail}", encoding="utf-8")
        return environment.load(path)

    return make
