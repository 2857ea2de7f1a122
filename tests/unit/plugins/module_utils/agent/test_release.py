# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import resource
import shutil
import signal
from collections import namedtuple

import pytest

from ansible_collections.apiary.tetragon.plugins.module_utils.agent import release
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.release import (
    ReleaseError,
    Versions,
    architecture,
    exact_version,
    unpacked_bytes,
)
from ansible_collections.apiary.tetragon.tests.unit.plugins.module_utils.agent.tarballs import ARM64, content, link, pack

BIN = "tetragon-v1.7.0-amd64/usr/local/bin/"


@pytest.fixture
def versions(tmp_path):
    return Versions(str(tmp_path / "opt"))


@pytest.fixture
def tarball(tmp_path):
    return pack(tmp_path / "release.tar.gz", content())


@pytest.mark.parametrize("text", ["1.7.0", "v1.7.0", " 1.7.0\n", "1.8.0-rc.1"])
def test_an_exact_version_loses_its_v(text):
    assert exact_version(text) == text.strip().lstrip("v")


@pytest.mark.parametrize("text", ["latest", "1.7", "", "1.7.x", "main", "1.7.0 --help", "1.7.0/../.."])
def test_whatever_names_no_single_release_is_refused(text):
    with pytest.raises(ReleaseError, match=r"does not name one release: give it whole, such as 1.7.0"):
        exact_version(text)


def test_machines_have_the_releases_words():
    assert (architecture("x86_64"), architecture("aarch64")) == ("amd64", "arm64")
    with pytest.raises(ReleaseError, match="no release for machine 'riscv64'; there are releases for x86_64 and aarch64"):
        architecture("riscv64")


def test_a_release_is_unpacked_side_by_side(versions, tmp_path):
    for version in ("1.7.0", "1.7.1"):
        versions.unpack(str(pack(tmp_path / version, content(version))), version, "amd64", "ab" * 32)
    assert sorted(versions.installed()) == ["1.7.0", "1.7.1"]
    place = tmp_path / "opt/1.7.0"
    files = {str(path.relative_to(place)): oct(path.stat().st_mode & 0o777) for path in place.rglob("*") if path.is_file()}
    assert files == {
        "bin/tetragon": "0o755",
        "bin/tetra": "0o755",
        "lib/tetragon/bpf/bpf_execve_event.o": "0o644",
        "lib/tetragon/tetragon.conf.d/log-level": "0o644",
        "release.json": "0o644",
    }
    assert versions.manifest("1.7.0")["sha256"] == "ab" * 32
    assert sorted(path.name for path in (tmp_path / "opt").iterdir()) == ["1.7.0", "1.7.1"]


def test_a_version_that_is_not_whole_does_not_count_and_is_replaced(versions, tarball, tmp_path):
    versions.unpack(str(tarball), "1.7.0", "amd64", "")
    (tmp_path / "opt/1.7.0/lib/tetragon/bpf/bpf_execve_event.o").write_bytes(b"cut")
    assert versions.manifest("1.7.0") is None
    assert versions.installed() == {}
    versions.unpack(str(tarball), "1.7.0", "amd64", "")
    assert versions.manifest("1.7.0") is not None


BAD = {
    "outside": ({"../../etc/cron.d/evil": b"x"}, (), r"holds '../../etc/cron.d/evil', which lies outside its own directory"),
    "absolute": ({"/etc/cron.d/evil": b"x"}, (), r"holds '/etc/cron.d/evil', which lies outside its own directory"),
    "link": ({}, (link(BIN + "x", "/etc/shadow"),), r"bin/x', which is neither a file nor a directory"),
    "twice": ({BIN + "./tetra": b"x"}, (), r"bin/./tetra' twice"),
    "something else": ({"README": b"x"}, (), r"is no release \(it holds 'README'\), not release 1.7.0 for amd64"),
    "other release": (content("1.6.1", "arm64"), (), r"is release 1.6.1 for arm64, not release 1.7.0 for amd64"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_member_is_refused_and_nothing_is_written(case, versions, tmp_path):
    extra, members, message = BAD[case]
    path = pack(tmp_path / "bad.tar.gz", {**content(), **extra}, *members)
    with pytest.raises(ReleaseError, match=message):
        unpacked_bytes(str(path), "1.7.0", "amd64")
    with pytest.raises(ReleaseError, match=message):
        versions.unpack(str(path), "1.7.0", "amd64", "")
    assert list((tmp_path / "opt").iterdir()) == []
    assert not (tmp_path / "etc").exists()


def test_a_tarball_that_would_fill_the_disk_is_refused(versions, tarball, tmp_path, monkeypatch):
    monkeypatch.setattr(release, "_MOST_BYTES", 6100)
    with pytest.raises(ReleaseError, match="unpacks to more than 6100 bytes"):
        versions.unpack(str(tarball), "1.7.0", "amd64", "")
    assert list((tmp_path / "opt").iterdir()) == []


@pytest.mark.parametrize(
    "missing", [BIN + "tetragon", BIN + "tetra", "tetragon-v1.7.0-amd64/usr/local/lib/tetragon/bpf/bpf_execve_event.o"]
)
def test_a_release_that_lacks_a_part_is_refused(missing, tmp_path):
    files = content()
    del files[missing]
    with pytest.raises(ReleaseError, match=r"is no whole release: it lacks (bin/|the BPF objects)"):
        unpacked_bytes(str(pack(tmp_path / "bad.tar.gz", files)), "1.7.0", "amd64")


def test_a_program_for_another_machine_is_refused(tmp_path):
    path = pack(tmp_path / "bad.tar.gz", content(machine=ARM64))
    with pytest.raises(ReleaseError, match="its bin/tetragon is built for arm64, not for amd64"):
        unpacked_bytes(str(path), "1.7.0", "amd64")


def test_a_tarball_that_is_cut_short_is_refused_wherever_it_ends(tarball, tmp_path):
    whole = tarball.read_bytes()
    for length in (0, 1, 10, len(whole) // 2, len(whole) - 1):
        cut = tmp_path / "cut.tar.gz"
        cut.write_bytes(whole[:length])
        with pytest.raises(ReleaseError, match=r"cut.tar.gz: (cannot be unpacked .* it is cut short or damaged|is no whole release)"):
            unpacked_bytes(str(cut), "1.7.0", "amd64")


def test_a_damaged_tarball_is_refused(tarball, versions, tmp_path):
    whole = bytearray(tarball.read_bytes())
    whole[-1000] ^= 0xFF
    tarball.write_bytes(whole)
    with pytest.raises(ReleaseError, match="it is cut short or damaged"):
        versions.unpack(str(tarball), "1.7.0", "amd64", "")
    assert list((tmp_path / "opt").iterdir()) == []


def test_space_is_asked_for_before_anything_is_sent(versions, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(0, 0, 20 << 20))
    versions.require_space(1 << 20)
    with pytest.raises(ReleaseError, match=rf"{tmp_path} has 20971520 bytes free; the release takes 26777216: make room"):
        versions.require_space(10_000_000)


def test_a_disk_that_fills_up_leaves_nothing(versions, tarball, tmp_path):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        with pytest.raises(ReleaseError, match=r"no space left while unpacking release 1.7.0: make room"):
            versions.unpack(str(tarball), "1.7.0", "amd64", "")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    assert list((tmp_path / "opt").iterdir()) == []
