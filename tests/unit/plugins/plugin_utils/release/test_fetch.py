# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Fetching from a server on loopback, from files, and from the cache: every way in which it can fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Refused
from ansible_collections.apiary.tetragon.plugins.plugin_utils.release.fetch import Release, expected_sum, fetch, known_sums, locate
from ansible_collections.apiary.tetragon.tests.unit.plugins.module_utils.agent.tarballs import content, link, pack, sha256

RELEASE = Release("1.7.0", "amd64")


class Site(BaseHTTPRequestHandler):
    """Serves what the test put in ``files``; ``short`` announces more bytes than it sends, ``broken`` none, and closes within a piece."""

    def do_GET(self):
        self.server.asked.append(self.path)
        body = self.server.files.get(self.path.rpartition("://")[2].partition("/")[2] if "://" in self.path else self.path.lstrip("/"))
        if isinstance(body, int) or body is None:
            self.send_error(body or 404)
            return
        if self.server.broken:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\n" + body[:100])
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body) + self.server.short))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        """Quiet."""


@pytest.fixture
def site():
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        server.files, server.asked, server.short, server.broken = {}, [], 0, False
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def tarball(tmp_path):
    return pack(tmp_path / RELEASE.file, content())


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def kept(cache):
    """What the cache holds, apart from its locks."""
    return sorted(path.name for path in cache.iterdir() if not path.name.endswith(".lock")) if cache.is_dir() else []


# --- sums


def test_the_table_holds_whole_sums_of_several_versions():
    sums = [one for archs in known_sums().values() for one in archs.values()]
    assert len(known_sums()) >= 2
    assert len(set(sums)) == len(sums)
    assert all(len(one) == 64 and int(one, 16) for one in sums)


def test_a_known_sum_needs_nothing_from_the_user():
    assert expected_sum(Release("1.7.1", "arm64"), {}) == known_sums()["1.7.1"]["arm64"]


def test_an_unknown_sum_is_the_users():
    assert expected_sum(Release("1.5.0", "amd64"), {"amd64": "AB" * 32, "arm64": "cd" * 32}) == "ab" * 32


@pytest.mark.parametrize(
    ("release", "given", "message"),
    [
        (
            Release("1.5.0", "arm64"),
            {},
            r"no SHA-256 is known for release 1.5.0 for arm64.*v1.5.0-arm64.tar.gz.sha256sum.*{arm64: <64 hex.*1.7.1 \(amd64, arm64\)",
        ),
        (Release("1.5.0", "amd64"), {"amd64": "abc"}, "'abc'; a SHA-256 has 64 hexadecimal digits"),
        (Release("1.5.0", "amd64"), {"x86_64": "ab" * 32}, "has the key 'x86_64'; its keys are amd64 and arm64"),
        (Release("1.7.1", "amd64"), {"amd64": "ab" * 32}, "but its known sum is .*: remove yours, or find out who is wrong"),
    ],
)
def test_a_sum_that_is_unknown_malformed_or_contradicted_is_an_error_that_says_how_to_give_it(release, given, message):
    with pytest.raises(Refused, match=message):
        expected_sum(release, given)


# --- ways


def test_a_release_is_fetched_once(site, tarball, cache):
    site.files[f"mirror/v1.7.0/{RELEASE.file}"] = tarball.read_bytes()
    source = site.url + "/mirror/v{version}/{file}"
    first = fetch(RELEASE, sha256(tarball), cache_dir=cache, source=source)
    again = fetch(RELEASE, sha256(tarball), cache_dir=cache, source=source)
    assert (first.fresh, again.fresh, first.path, first.unpacked) == (True, False, again.path, again.unpacked)
    assert first.path.read_bytes() == tarball.read_bytes()
    assert site.asked == [f"/mirror/v1.7.0/{RELEASE.file}"]
    assert kept(cache) == [RELEASE.file, RELEASE.file + ".json"]


def test_many_who_want_it_at_once_fetch_it_once(site, tarball, cache):
    site.files[RELEASE.file] = tarball.read_bytes()
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda _unused: fetch(RELEASE, sha256(tarball), cache_dir=cache, source=site.url + "/{file}"), range(8)))
    assert [one.fresh for one in done].count(True) == 1
    assert len(site.asked) == 1


def test_a_local_file_and_a_filled_cache_need_no_network(tarball, cache):
    assert fetch(RELEASE, sha256(tarball), cache_dir=cache, source=str(tarball.parent / "{file}")).fresh
    other = cache.with_name("filled")
    other.mkdir()
    shutil.copy(tarball, other / RELEASE.file)
    assert fetch(RELEASE, sha256(tarball), cache_dir=other, source="http://127.0.0.1:1/{file}").path == other / RELEASE.file


def test_the_proxy_is_asked_for_everything(site, tarball, cache):
    site.files[f"releases/{RELEASE.file}"] = tarball.read_bytes()
    fetch(RELEASE, sha256(tarball), cache_dir=cache, source="http://mirror.invalid/releases/{file}", proxy=site.url)
    assert site.asked == [f"http://mirror.invalid/releases/{RELEASE.file}"]


def test_a_cached_file_that_was_changed_is_fetched_again(site, tarball, cache):
    site.files[RELEASE.file] = tarball.read_bytes()
    first = fetch(RELEASE, sha256(tarball), cache_dir=cache, source=site.url + "/{file}")
    first.path.write_bytes(b"damaged")
    assert fetch(RELEASE, sha256(tarball), cache_dir=cache, source=site.url + "/{file}").fresh
    assert first.path.read_bytes() == tarball.read_bytes()


def test_the_release_site_is_the_default(tarball, cache):
    with pytest.raises(
        Refused, match=r"github.com/cilium/tetragon/releases/download/v1.7.0/tetragon-v1.7.0-amd64.tar.gz: cannot be reached"
    ):
        fetch(RELEASE, sha256(tarball), cache_dir=cache, proxy="http://127.0.0.1:1")


# --- failures: each says what and how to go on, and leaves the cache as it was


def refused(cache, message, **arguments):
    before = kept(cache)
    with pytest.raises(Refused, match=message):
        fetch(arguments.pop("release", RELEASE), arguments.pop("sha", "ab" * 32), cache_dir=cache, **arguments)
    assert kept(cache) == before


def test_a_version_that_is_not_there(site, cache):
    refused(cache, r"\(404\): there is no release 1.7.0 for amd64 at that source; check version and source", source=site.url + "/{file}")


def test_a_server_that_refuses(site, cache):
    site.files[RELEASE.file] = 503
    refused(cache, f"{RELEASE.file}: answered with status 503", source=site.url + "/{file}")


def test_a_server_that_cannot_be_reached(cache):
    message = "cannot be reached .*refused.*give a mirror or a local file as apiary_agent_source, or a proxy as apiary_agent_proxy"
    refused(cache, message, source="http://127.0.0.1:1/{file}")


def test_a_proxy_that_cannot_be_reached(cache):
    refused(
        cache, "cannot be reached through the proxy http://127.0.0.1:1 ", source="http://mirror.invalid/{file}", proxy="http://127.0.0.1:1"
    )


def test_a_transfer_that_is_cut_short(site, tarball, cache):
    site.files[RELEASE.file], site.short = tarball.read_bytes(), 100
    size = tarball.stat().st_size
    message = rf"ended after {size} of {size + 100} bytes|broke off \(IncompleteRead"
    refused(cache, message, sha=sha256(tarball), source=site.url + "/{file}")


def test_a_connection_that_breaks_off(site, tarball, cache):
    site.files[RELEASE.file], site.broken = tarball.read_bytes(), True
    message = rf"{RELEASE.file}: broke off \(IncompleteRead.*: try again, or look at what stands between"
    refused(cache, message, sha=sha256(tarball), source=site.url + "/{file}")


def test_a_sum_that_does_not_fit(site, tarball, cache):
    site.files[RELEASE.file] = tarball.read_bytes()
    message = f"its SHA-256 is {sha256(tarball)}, but release 1.7.0 for amd64 has {'ab' * 32}: .* nothing of it was kept"
    refused(cache, message, source=site.url + "/{file}")


def test_a_tarball_with_paths_outside_its_tree(tmp_path, cache):
    bad = pack(tmp_path / "bad.tar.gz", content(), link("tetragon-v1.7.0-amd64/usr/local/bin/x", "../../.."))
    refused(cache, f"{bad}: holds .*bin/x'", sha=sha256(bad), source=str(bad))
    bad = pack(tmp_path / "worse.tar.gz", {**content(), "tetragon-v1.7.0-amd64/../../x": b""})
    refused(cache, "which lies outside its own directory", sha=sha256(bad), source=str(bad))


def test_a_tarball_of_another_architecture(tmp_path, cache):
    bad = pack(tmp_path / "bad.tar.gz", content(arch="arm64"))
    refused(cache, "is release 1.7.0 for arm64, not release 1.7.0 for amd64", sha=sha256(bad), source=str(bad))


def test_a_file_that_is_not_there(tmp_path, cache):
    refused(
        cache, r"none/tetragon-v1.7.0-amd64.tar.gz: is no file that can be read on the controller", source=str(tmp_path / "none/{file}")
    )
    refused(cache, r"is no file that can be read on the controller \(Is a directory\)", source=str(tmp_path))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("https://mirror.invalid/{arch}", r"no placeholder 'arch'; there are {version}, {architecture} and {file}"),
        ("ftp://mirror.invalid/{file}", "give an address with https:// or http://, or a path on the controller"),
    ],
)
def test_a_source_that_cannot_be_one(source, message):
    with pytest.raises(Refused, match=message):
        locate(RELEASE, source)


def test_no_space(tarball, cache, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(0, 0, 1000))
    refused(cache, "cache: has no space for the release: make room, or give another directory as apiary_release_cache", source=str(tarball))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small file system")
def test_a_disk_that_fills_up(tarball, cache, monkeypatch):
    cache.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", cache], capture_output=True, check=False).returncode:
        pytest.skip("no tmpfs can be mounted here")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(0, 0, 1 << 40))
    big = tarball.with_name("big")
    big.write_bytes(os.urandom(1 << 20))
    try:
        refused(cache, "cache: has no space for the release", source=str(big))
    finally:
        subprocess.run(["umount", cache], check=True)


def test_a_cache_that_cannot_be_used(tarball):
    refused(Path("/proc/none"), "/proc/none: cannot be used as a cache: .*; give another as apiary_release_cache", source=str(tarball))
