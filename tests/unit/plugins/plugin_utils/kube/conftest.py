# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Environments to place nodes with."""

from __future__ import annotations

from ansible_collections.apiary.tetragon.tests.unit.plugins.plugin_utils.fleet.conftest import make_environment as make_environment
