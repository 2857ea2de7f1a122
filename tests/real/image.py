# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The agent's image out of a release tarball, as the chart finds upstream's: image.py TARBALL TARGET NAME... writes an archive.

Upstream's image is Alpine's bash and busybox with agent, client, BPF objects and bpftool. Here bash, busybox, bpftool, and what
Alpine's busybox has and Debian's lacks, come from this machine with the libraries they are linked to; no registry is asked.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

# Program -> Debian's package of it.
PROGRAMS = {"bash": "bash", "bpftool": "bpftool", "busybox": "busybox", "comm": "coreutils", "flock": "util-linux"}
LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64", "var/run": "../run"}
DIRECTORIES = ("etc", "proc", "procRoot", "run", "sys", "tmp", "usr/bin", "usr/lib", "usr/lib64", "usr/sbin", "var/lib/tetragon")


def write(release: Path, target: Path, names: Sequence[str]) -> None:
    """One image under these names, an archive that ``docker load`` and ``ctr images import`` take.

    Raises LookupError when a program is missing here, or the tarball has no agent in it.
    """
    with tempfile.TemporaryDirectory(dir=target.parent) as directory:
        layer = Path(directory, "layer.tar")
        with tarfile.open(layer, "w") as archive:
            _system(archive)
            _agent(archive, release)
        with layer.open("rb") as file:
            digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        configuration = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["/bin/bash", "-c", "exec sleep 2147483647"], "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [digest]},
        }
        manifest = [{"Config": "config.json", "RepoTags": list(names), "Layers": ["layer.tar"]}]
        with tarfile.open(target, "w") as archive:
            archive.add(layer, "layer.tar")
            _file(archive, "config.json", json.dumps(configuration).encode())
            _file(archive, "manifest.json", json.dumps(manifest).encode())


def _file(archive: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), mode
    archive.addfile(member, io.BytesIO(data))


def _link(archive: tarfile.TarFile, name: str, target: str) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, target
    archive.addfile(member)


def _system(archive: tarfile.TarFile) -> None:
    """Directories, this machine's programs with their libraries, and busybox under all its names."""
    for name in DIRECTORIES:
        member = tarfile.TarInfo(name)
        member.type, member.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(member)
    for name, place in LINKS.items():
        _link(archive, name, place)
    found = {name: shutil.which(name) for name in PROGRAMS}
    for name, path in found.items():
        if path is None:
            raise LookupError(f"{name} is missing here: Debian's package {PROGRAMS[name]}")
        _file(archive, f"usr/bin/{name}", Path(path).read_bytes(), 0o755)
    for path in sorted({library for program in found.values() for library in _libraries(str(program))}):
        _file(archive, f"usr{path.removeprefix('/usr')}", Path(path).read_bytes(), 0o755)
    listed = subprocess.run(["busybox", "--list"], capture_output=True, text=True, check=True).stdout
    for name in sorted(set(listed.split()) - set(PROGRAMS)):
        _link(archive, f"usr/bin/{name}", "busybox")


def _libraries(program: str) -> Iterable[str]:
    """Paths of what a program is linked to, its loader among them; none for a static one."""
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
    return (word for line in listed.splitlines() for word in line.split() if word.startswith("/"))


def _agent(archive: tarfile.TarFile, release: Path) -> None:
    """Agent, client and BPF objects of the release, where upstream's image has them."""
    places = {"usr/local/bin/": ("usr/bin", 0o755), "usr/local/lib/tetragon/bpf/": ("var/lib/tetragon", 0o644)}
    taken = set()
    with tarfile.open(release) as packed:
        for member in packed:
            inside = member.name.partition("/")[2]
            for place, (target, mode) in places.items():
                data = packed.extractfile(member) if member.isfile() and inside.startswith(place) else None
                if data:
                    taken.add(name := inside.removeprefix(place))
                    _file(archive, f"{target}/{name}", data.read(), mode)
    if missing := {"tetragon", "tetra"} - taken:
        raise LookupError(f"{release} has no {' and no '.join(sorted(missing))}")


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
