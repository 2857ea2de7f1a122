# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Release tarballs onto the controller: from wherever they lie, verified, each fetched once.

The release site, a mirror, a local file and the cache are one path: a stream is copied beside its final name, compared with
the sum, read through as a tarball, and only then renamed into the cache.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import yaml

from ansible_collections.apiary.tetragon.plugins.module_utils.agent.release import ReleaseError, release_name, unpacked_bytes
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import refuse

SITE = "https://github.com/cilium/tetragon/releases/download/v{version}/{file}"
SUMS = Path(__file__).with_name("sums.yml")
_SECONDS = 60
_MARGIN = 64 << 20


@dataclass(frozen=True)
class Release:
    """One tarball: an exact version for one architecture (amd64 or arm64)."""

    version: str
    architecture: str

    @property
    def file(self) -> str:
        return release_name(self.version, self.architecture) + ".tar.gz"

    def __str__(self) -> str:
        return f"release {self.version} for {self.architecture}"


@dataclass(frozen=True)
class Fetched:
    """A verified tarball on the controller; ``unpacked`` bytes on a host. ``fresh``: it was not in the cache."""

    path: Path
    sha256: str
    unpacked: int
    fresh: bool


@cache
def known_sums(path: Path = SUMS) -> Mapping[str, Mapping[str, str]]:
    """The table: version -> architecture -> SHA-256."""
    raw = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    return {version: {arch: entry["sha256"] for arch, entry in archs.items()} for version, archs in raw.items()}


def expected_sum(release: Release, given: Mapping[str, str]) -> str:
    """The sum that a tarball must have: the user's, or the table's. Raises Refused when nobody knows it or they differ."""
    unknown = sorted(set(given) - {"amd64", "arm64"})
    if unknown:
        raise refuse(f"apiary_agent_sha256 has the key {unknown[0]!r}; its keys are amd64 and arm64")
    own = str(given.get(release.architecture) or "").strip().lower()
    known = known_sums().get(release.version, {}).get(release.architecture, "")
    if own and not re.fullmatch(r"[0-9a-f]{64}", own):
        raise refuse(f"apiary_agent_sha256 for {release.architecture} is {own!r}; a SHA-256 has 64 hexadecimal digits")
    if own and known and own != known:
        raise refuse(f"apiary_agent_sha256 for {release} is {own}, but its known sum is {known}: remove yours, or find out who is wrong")
    if not own and not known:
        table = ", ".join(f"{version} ({', '.join(sums)})" for version, sums in known_sums().items())
        raise refuse(
            f"no SHA-256 is known for {release}. Take it from that release's {release.file}.sha256sum, by a way you trust, and set "
            f"apiary_agent_sha256: {{{release.architecture}: <64 hexadecimal digits>}}. Known without that: {table}"
        )
    return own or known


def locate(release: Release, source: str) -> str:
    """The address or path that ``source`` stands for. Raises Refused for a placeholder that is none."""
    try:
        place = source.format(version=release.version, architecture=release.architecture, file=release.file)
    except (KeyError, IndexError, ValueError) as error:
        raise refuse(f"source {source!r}: no placeholder {error}; there are {{version}}, {{architecture}} and {{file}}") from None
    if "://" in place and not place.startswith(("https://", "http://")):
        raise refuse(f"source {source!r}: give an address with https:// or http://, or a path on the controller")
    return place


def fetch(release: Release, sha256: str, *, cache_dir: str | Path, source: str = "", proxy: str = "") -> Fetched:
    """A verified tarball of ``release``. Raises Refused, and then the cache holds nothing that it did not hold before.

    A file of the release's own name in the cache, by whatever way it came there, is taken when it has the sum.
    ``source``: an address or path with {version}, {architecture} and {file}; the release site when empty. ``proxy`` is for this
    download alone; without it the controller's environment decides.
    """
    directory = Path(cache_dir).expanduser()
    place = locate(release, source or SITE)
    target = directory / release.file
    with _errors_of(directory):
        directory.mkdir(parents=True, exist_ok=True)
        with _locked(directory / f".{target.name}.lock"):
            noted = _note(target)
            if noted is not None and noted["sha256"] == sha256:
                return Fetched(target, sha256, noted["unpacked"], False)
            descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=directory)
            part = Path(name)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    actual = _copy(str(target), release, proxy, file, directory) if target.is_file() else ""
                    if actual != sha256:
                        file.seek(0)
                        file.truncate()
                        actual = _copy(place, release, proxy, file, directory)
                if actual != sha256:
                    raise refuse(
                        f"{place}: its SHA-256 is {actual}, but {release} has {sha256}: it was altered or damaged on its way, "
                        "or is another file; nothing of it was kept"
                    )
                try:
                    unpacked = unpacked_bytes(str(part), release.version, release.architecture)
                except ReleaseError as error:
                    raise refuse(str(error).replace(str(part), place)) from None
                part.rename(target)
            finally:
                part.unlink(missing_ok=True)
            _write_note(target, sha256, unpacked)
    return Fetched(target, sha256, unpacked, True)


def _copy(place: str, release: Release, proxy: str, file: BinaryIO, directory: Path) -> str:
    """Copy a tarball to ``file`` in ``directory`` and return its SHA-256."""
    digest, copied = hashlib.sha256(), 0
    with open_source(place, release, proxy) as (source, size):
        if size is not None and shutil.disk_usage(directory).free < size + _MARGIN:
            _no_space(directory)
        while chunk := _read(source, place):
            digest.update(chunk)
            file.write(chunk)
            copied += len(chunk)
    file.flush()
    if size is not None and copied != size:
        raise refuse(f"{place}: ended after {copied} of {size} bytes: try again, or look at what stands between")
    return digest.hexdigest()


def _read(source: BinaryIO, place: str) -> bytes:
    try:
        return source.read(1 << 20)
    except (OSError, HTTPException) as error:
        raise refuse(f"{place}: broke off ({error}): try again, or look at what stands between") from None


@contextmanager
def open_source(place: str, release: Release, proxy: str) -> Iterator[tuple[BinaryIO, int | None]]:
    """The source as a stream, and its size where that is known. Raises Refused in terms of what the user gave."""
    if "://" not in place:
        try:
            with Path(place).expanduser().open("rb") as file:
                yield file, os.fstat(file.fileno()).st_size
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
            raise refuse(f"{place}: is no file that can be read on the controller ({error.strerror})") from None
        return
    handlers = [urllib.request.ProxyHandler({"http": proxy, "https": proxy})] if proxy else []
    way = f" through the proxy {proxy}" if proxy else ""
    try:
        response = urllib.request.build_opener(*handlers).open(place, timeout=_SECONDS)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 404:
                raise refuse(f"{place}: is not there (404): there is no {release} at that source; check version and source") from None
            raise refuse(f"{place}: answered with status {error.code} {error.reason}{way}") from None
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise refuse(
            f"{place}: cannot be reached{way} ({reason}). Without a way there, give a mirror or a local file as apiary_agent_source, "
            "or a proxy as apiary_agent_proxy"
        ) from None
    with response:
        length = response.headers.get("Content-Length")
        yield response, int(length) if length else None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Wait for whoever else fetches the same file, in this run or another."""
    with path.open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _errors_of(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            _no_space(directory)
        raise refuse(f"{directory}: cannot be used as a cache: {error.strerror}; give another as apiary_release_cache") from None


def _no_space(directory: Path) -> NoReturn:
    raise refuse(f"{directory}: has no space for the release: make room, or give another directory as apiary_release_cache") from None


def _note(target: Path) -> dict[str, Any] | None:
    """What was verified about a cached file; None when it has changed since, so that it is verified again."""
    try:
        noted: dict[str, Any] = json.loads(_note_of(target).read_text(encoding="utf-8"))
        status = target.stat()
        return noted if noted["seen"] == [status.st_size, status.st_mtime_ns] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_note(target: Path, sha256: str, unpacked: int) -> None:
    status = target.stat()
    note = {"sha256": sha256, "unpacked": unpacked, "seen": [status.st_size, status.st_mtime_ns]}
    _note_of(target).write_text(json.dumps(note), encoding="utf-8")


def _note_of(target: Path) -> Path:
    return target.with_name(target.name + ".json")
