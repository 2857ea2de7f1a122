# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
import struct

import pytest

from ansible_collections.apiary.tetragon.plugins.module_utils.agent.binaries import Binary, build_id, identify, last_change, survey
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.process import Life

KEY = ("", "up-00000001")
LIFE = Life("boot-1/4711", 0.0)


def elf(notes, wide=True, order="<"):
    """A file of one note segment, each note a (name, type, content)."""
    data = b""
    for name, kind, content in notes:
        data += struct.pack(order + "III", len(name), len(content), kind)
        data += b"".join(part + bytes(-len(part) % 4) for part in (name, content))
    header = 64 if wide else 52
    size = 56 if wide else 32
    at = header + size
    segment = (4, 4, at, 0, 0, len(data), len(data), 4) if wide else (4, at, 0, 0, len(data), len(data), 4, 4)
    return (
        b"\x7fELF"
        + bytes([2 if wide else 1, 1 if order == "<" else 2])
        + bytes(10)
        + struct.pack(order + ("HHIQQQIHHHHHH" if wide else "HHIIIIIHHHHHH"), 3, 62, 1, 0, header, 0, 0, header, size, 1, 0, 0, 0)
        + struct.pack(order + ("IIQQQQQQ" if wide else "IIIIIIII"), *segment)
        + data
    )


NOTES = [(b"GNU\0", 1, b"abi!"), (b"stapsdt\0", 3, b"odd"), (b"GNU\0", 3, bytes.fromhex("c0ffee"))]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("wide", [True, False])
def test_a_build_id_is_read_from_every_kind_of_elf(tmp_path, wide, order):
    (tmp_path / "app").write_bytes(elf(NOTES, wide, order))
    assert build_id(str(tmp_path / "app")) == "c0ffee"


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", b"\x7fELF", elf(NOTES)[:70], elf(NOTES[:2])])
def test_a_file_without_one_has_none(tmp_path, content):
    (tmp_path / "app").write_bytes(content)
    assert build_id(str(tmp_path / "app")) == ""


def test_a_path_without_a_file_is_identified_as_such(tmp_path):
    assert identify(str(tmp_path / "app")) == Binary(str(tmp_path / "app"))


def replace(path, content=b"new"):
    path.with_name("upgraded").write_bytes(content)
    path.with_name("upgraded").rename(path)


def replaced(path, recorded, life=LIFE, recorded_life=LIFE.id):
    found = survey({KEY: [str(path)]}, {KEY: recorded} if recorded else {}, recorded_life, life)
    assert found.current == {KEY: (identify(str(path)),)}
    return found.replaced.get(KEY, ())


def test_a_file_is_replaced_by_another_under_its_path_or_in_its_place(tmp_path):
    app = tmp_path / "app"
    app.write_bytes(elf(NOTES))
    recorded = (identify(str(app)),)
    assert replaced(app, recorded) == ()
    os.utime(app)
    app.chmod(0o755)
    assert replaced(app, recorded) == ()
    app.write_bytes(elf([(b"GNU\0", 3, b"else")]))
    assert replaced(app, recorded) == (str(app),)
    app.write_bytes(elf(NOTES))
    replace(app, elf(NOTES))
    assert replaced(app, recorded) == (str(app),)
    app.unlink()
    assert replaced(app, recorded) == ()


def test_an_agent_that_started_after_the_replacement_watches_the_new_file(tmp_path):
    app = tmp_path / "app"
    app.write_bytes(b"old")
    recorded = (identify(str(app)),)
    replace(app)
    changed = app.stat().st_ctime
    assert replaced(app, recorded, Life("boot-1/9999", changed + 1)) == ()
    assert replaced(app, recorded, Life("boot-1/9999", changed - 1)) == (str(app),)
    assert replaced(app, recorded, Life(LIFE.id, changed + 1)) == (str(app),)
    assert replaced(app, recorded, Life()) == (str(app),)


def test_a_policy_that_was_never_recorded_is_judged_by_the_agents_start(tmp_path):
    app = tmp_path / "app"
    app.write_bytes(b"old")
    changed = app.stat().st_ctime
    assert replaced(app, (), Life(LIFE.id, changed + 1)) == ()
    assert replaced(app, (), Life(LIFE.id, changed - 1)) == (str(app),)


@pytest.mark.parametrize("path", ["current/app", "app"])
def test_a_link_that_was_turned_counts_as_a_change(tmp_path, path):
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "app").write_bytes(b"")
    (tmp_path / "current").symlink_to("2")
    (tmp_path / "app").symlink_to(tmp_path / "current" / "app")
    assert last_change(str(tmp_path / "2" / "app")) == (tmp_path / "2" / "app").stat().st_ctime
    assert last_change(str(tmp_path / path)) == os.lstat(tmp_path / path.split("/")[0]).st_ctime


def test_what_watches_no_file_is_not_surveyed():
    found = survey({KEY: ()}, {}, "", LIFE)
    assert (found.current, found.replaced) == ({}, {})
