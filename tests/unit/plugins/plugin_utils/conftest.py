# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Fixtures of the controller's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.load import Library
from ansible_collections.apiary.tetragon.tests.unit.plugins.plugin_utils.samples import POLICIES, PolicyTree


@pytest.fixture(scope="session")
def library() -> Library:
    """The policies that the collection ships."""
    return Library([POLICIES])


@pytest.fixture
def tree(tmp_path: Path) -> PolicyTree:
    """An empty policy directory."""
    return PolicyTree(tmp_path / "policies")
