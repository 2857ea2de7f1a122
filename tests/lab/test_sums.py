# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The generator of the table of sums, fed with files in the shape of a release's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
KNOWN = ROOT / "plugins/plugin_utils/release/sums.yml"


@pytest.fixture
def run(tmp_path):
    """Calls the generator on a copy of the table, with a release that is published in ``tmp_path``."""
    table = tmp_path / "sums.yml"
    table.write_text(KNOWN.read_text(encoding="utf-8"), encoding="utf-8")

    def call(version: str, amd64: str, arm64: str, prefix: str = "") -> tuple[subprocess.CompletedProcess[str], dict]:
        for arch, digits in (("amd64", amd64), ("arm64", arm64)):
            name = f"tetragon-v{version}-{arch}.tar.gz"
            (tmp_path / f"{name}.sha256sum").write_text(f"{digits * 32}  {prefix}{name}\n", encoding="utf-8")
        command = [sys.executable, str(ROOT / "tools/sums.py"), "--table", str(table), "--from", str(tmp_path / "{file}"), version]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done, yaml.safe_load(table.read_text(encoding="utf-8"))

    return call


def test_a_release_is_added_in_its_place_and_nothing_else_changes(run):
    before = yaml.safe_load(KNOWN.read_text(encoding="utf-8"))
    done, table = run("1.6.9", "ab", "cd", "release/")
    assert done.returncode == 0, done.stderr
    assert next(iter(table)) == "1.6.9"
    assert table.pop("1.6.9")["arm64"] == {"sha256": "cd" * 32, "learned": "the release's own .sha256sum"}
    assert table == before


def test_a_sum_that_differs_from_a_known_one_is_an_error(run):
    done, table = run("1.7.1", "ab", "cd")
    assert done.returncode == 1
    assert "release 1.7.1 for amd64" in done.stderr
    assert "the table says 2f36a7bb" in done.stderr
    assert table == yaml.safe_load(KNOWN.read_text(encoding="utf-8"))


def test_a_file_that_holds_no_sum_of_the_release_is_an_error(run):
    done, _table = run("1.6.9", "xy", "cd")
    assert done.returncode == 1
    assert "holds no SHA-256 of tetragon-v1.6.9-amd64.tar.gz" in done.stderr
