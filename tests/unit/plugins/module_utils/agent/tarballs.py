# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Tarballs in the shape of a release, whole and otherwise."""

from __future__ import annotations

import hashlib
import io
import random
import struct
import tarfile
from pathlib import Path

AMD64, ARM64 = 62, 183


def elf(machine: int) -> bytes:
    """The head of a program for one machine."""
    return b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack("<HH", 2, machine) + bytes(100)


def content(version: str = "1.7.0", arch: str = "amd64", machine: int = AMD64) -> dict[str, bytes]:
    """Path -> bytes of a whole release."""
    local = f"tetragon-v{version}-{arch}/usr/local"
    return {
        f"tetragon-v{version}-{arch}/install.sh": b"#!/bin/sh\n",
        f"{local}/bin/tetragon": elf(machine),
        f"{local}/bin/tetra": elf(machine),
        f"{local}/lib/tetragon/bpf/bpf_execve_event.o": random.Random(version).randbytes(6000),
        f"{local}/lib/tetragon/tetragon.conf.d/log-level": b"info\n",
        f"tetragon-v{version}-{arch}/usr/lib/systemd/system/tetragon.service": b"[Unit]\n",
    }


def pack(path: Path, files: dict[str, bytes], *members: tarfile.TarInfo) -> Path:
    """A tarball of these files, and of members without content."""
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o755 if "/bin/" in name else 0o644
            tar.addfile(member, io.BytesIO(data))
        for member in members:
            tar.addfile(member)
    return path


def link(name: str, target: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, target
    return member


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
