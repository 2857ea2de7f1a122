# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Release tarballs of the agent: their names, what one must hold, and how one becomes a version on a host.

Facts of the release's build files: ``tetragon-v<version>-<amd64|arm64>.tar.gz`` holds one directory of the same name, with
``usr/local/{bin/{tetragon,tetra},lib/tetragon/{bpf/*.o,...}}``; no links. Its installer and its unit stay behind.
"""

from __future__ import annotations

import errno
import gzip
import json
import os
import re
import shutil
import stat
import struct
import tarfile
import zlib
from typing import Any, BinaryIO, Dict, Iterator, Optional, Tuple

from ansible_collections.apiary.tetragon.plugins.module_utils.agent.policyset import sync_directory

ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
PROGRAMS = ("bin/tetragon", "bin/tetra")
MANIFEST = "release.json"
_ELF_MACHINES = {62: "amd64", 183: "arm64"}
_BELOW = ("usr", "local")
_MOST_BYTES = 4 << 30
_MARGIN = 16 << 20


class ReleaseError(ValueError):
    """A version, an architecture or a tarball that cannot be used."""


def exact_version(text: str) -> str:
    """``1.7.0`` for ``1.7.0`` or ``v1.7.0``. Raises ReleaseError for anything that does not name one release."""
    found = re.match(r"^v?(\d+\.\d+\.\d+(?:-(?:rc|pre)\.\d+)?)$", text.strip())
    if not found:
        raise ReleaseError("version {0!r} does not name one release: give it whole, such as 1.7.0".format(text))
    return found.group(1)


def architecture(machine: str) -> str:
    """The release's word for a machine. Raises ReleaseError for one without releases."""
    try:
        return ARCHITECTURES[machine]
    except KeyError:
        raise ReleaseError("there is no release for machine {0!r}; there are releases for x86_64 and aarch64".format(machine)) from None


def release_name(version: str, arch: str) -> str:
    return "tetragon-v{0}-{1}".format(version, arch)


def members(tar: tarfile.TarFile, version: str, arch: str) -> Iterator[Tuple[str, tarfile.TarInfo]]:
    """What of a release belongs on a host, as (path below ``usr/local``, member). Raises ReleaseError at what none holds."""
    top, total, seen = release_name(version, arch), 0, set()
    for member in tar:
        parts = [part for part in member.name.split("/") if part not in ("", ".")]
        if member.name.startswith("/") or ".." in parts:
            raise ReleaseError("holds {0!r}, which lies outside its own directory".format(member.name))
        if not parts:
            continue
        if parts[0] != top:
            other = re.match(r"^tetragon-v([^/]+)-(amd64|arm64)$", parts[0])
            what = "is release {0} for {1}".format(*other.groups()) if other else "is no release (it holds {0!r})".format(member.name)
            raise ReleaseError("{0}, not release {1} for {2}".format(what, version, arch))
        if not (member.isreg() or member.isdir()):
            raise ReleaseError("holds {0!r}, which is neither a file nor a directory".format(member.name))
        total += member.size
        if total > _MOST_BYTES:
            raise ReleaseError("unpacks to more than {0} bytes".format(_MOST_BYTES))
        path = "/".join(parts[3:])
        if tuple(parts[1:3]) != _BELOW or not path:
            continue
        if member.isreg():
            if path in seen:
                raise ReleaseError("holds {0!r} twice".format(member.name))
            seen.add(path)
        yield path, member
    missing = [program for program in PROGRAMS if program not in seen]
    if missing or not any(path.startswith("lib/tetragon/bpf/") for path in seen):
        raise ReleaseError("is no whole release: it lacks {0}".format(missing[0] if missing else "the BPF objects in lib/tetragon/bpf"))


def _walk(path: str, version: str, arch: str) -> Iterator[Tuple[str, tarfile.TarInfo, Optional[BinaryIO]]]:
    """Every member with its open content (None for a directory). Raises ReleaseError with the tarball's name."""
    try:
        with gzip.open(path) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            for name, member in members(tar, version, arch):
                content = tar.extractfile(member) if member.isreg() else None
                if name in PROGRAMS and content is not None:
                    _check_machine(name, content, arch)
                yield name, member, content  # type: ignore[misc]
            while stream.read(1 << 20):  # to the very end, where the check sum stands
                pass
    except ReleaseError as error:
        raise ReleaseError("{0}: {1}".format(path, error)) from None
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise ReleaseError("{0}: cannot be unpacked ({1}): it is cut short or damaged".format(path, error)) from None
    except OSError as error:
        if error.errno is None:  # gzip's own
            raise ReleaseError("{0}: cannot be unpacked ({1}): it is cut short or damaged".format(path, error)) from None
        raise


def _check_machine(name: str, content: Any, arch: str) -> None:
    head = content.read(20)
    content.seek(0)
    machine = struct.unpack_from("<H", head, 18)[0] if head.startswith(b"\x7fELF") and len(head) == 20 else None
    if machine is not None and _ELF_MACHINES.get(machine) != arch:
        raise ReleaseError("its {0} is built for {1}, not for {2}".format(name, _ELF_MACHINES.get(machine, "another machine"), arch))


def unpacked_bytes(path: str, version: str, arch: str) -> int:
    """Read a whole tarball and return how much it takes on a host. Raises ReleaseError for one that must not get there."""
    return sum(member.size for _name, member, _content in _walk(path, version, arch))


class Versions:
    """The versions side by side on a host: ``<directory>/<version>/{bin,lib}``, each written once and never changed."""

    def __init__(self, directory: str) -> None:
        self.directory = directory.rstrip("/")

    def path(self, version: str) -> str:
        return os.path.join(self.directory, version)

    def manifest(self, version: str) -> Optional[Dict[str, Any]]:
        """What was unpacked: version, architecture, sha256 and the size of every file; None when it is not here, or not whole."""
        try:
            with open(os.path.join(self.path(version), MANIFEST), encoding="utf-8") as file:
                found: Dict[str, Any] = json.load(file)
            whole = all(os.path.getsize(os.path.join(self.path(version), name)) == size for name, size in found["files"].items())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return found if whole else None

    def installed(self) -> Dict[str, Dict[str, Any]]:
        """Manifests of all versions that are here whole."""
        try:
            names = sorted(os.listdir(self.directory))
        except OSError:
            return {}
        found = {name: self.manifest(name) for name in names if not name.startswith(".")}
        return {name: manifest for name, manifest in found.items() if manifest is not None}

    def require_space(self, needed: int) -> None:
        """Raises ReleaseError when ``needed`` bytes do not fit."""
        place = self.directory
        while not os.path.isdir(place):
            place = os.path.dirname(place)
        free = shutil.disk_usage(place).free
        if free < needed + _MARGIN:
            raise ReleaseError("{0} has {1} bytes free; the release takes {2}: make room".format(place, free, needed + _MARGIN))

    def unpack(self, tarball: str, version: str, arch: str, sha256: str) -> Dict[str, Any]:
        """Make a version of a tarball, in one rename: on any failure nothing of it is left. Returns its manifest."""
        staging = os.path.join(self.directory, ".{0}.new".format(version))
        shutil.rmtree(staging, ignore_errors=True)
        try:
            os.makedirs(staging, mode=0o755)
            files = {}
            for name, member, content in _walk(tarball, version, arch):
                target = os.path.join(staging, name)
                if content is None:
                    os.makedirs(target, mode=0o755, exist_ok=True)
                    continue
                os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
                with open(target, "wb") as file:
                    shutil.copyfileobj(content, file, 1 << 20)
                    os.fchmod(file.fileno(), 0o755 if member.mode & stat.S_IXUSR else 0o644)
                files[name] = member.size
            manifest = {"version": version, "architecture": arch, "sha256": sha256, "files": files}
            with open(os.path.join(staging, MANIFEST), "w", encoding="utf-8") as file:
                json.dump(manifest, file, indent=1, sort_keys=True)
            os.chmod(staging, 0o755)
            os.sync()
            shutil.rmtree(self.path(version), ignore_errors=True)  # what is there is not whole
            os.rename(staging, self.path(version))
            sync_directory(self.directory)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise ReleaseError("{0}: no space left while unpacking release {1}: make room".format(self.directory, version)) from None
            raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return manifest
