# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Pack the stand-in as a release: release.py DIRECTORY VERSION... writes tarballs in the shape of the real ones, and their sums.

``DIRECTORY/sums.json`` holds version -> architecture -> SHA-256, as the role's apiary_agent_sha256 takes one version's. The
programs find the stand-in's code beside themselves, so that versions live side by side and a host needs no more than the release.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
PLUGINS = HERE.parents[1] / "plugins"
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
_PROGRAM = """\
#!/usr/bin/python3 -I
import os, sys
sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.realpath(__file__))), "lib/tetragon/standin"))
"""
_MAIN = {
    "tetragon": _PROGRAM
    + "from standin import collection\ncollection.link()\nfrom standin.agent import main\n"
    + "code = main(sys.argv[1:])\nsys.stderr.flush()\nos._exit(code)\n",
    "tetra": _PROGRAM + "from standin.tetra import main\nmain(sys.argv[1:])\n",
    "act": _PROGRAM + "from standin import collection\ncollection.link()\nfrom standin.client import main\nsys.exit(main(sys.argv[1:]))\n",
}
_DROP_INS = {
    "bpf-lib": "/usr/local/lib/tetragon/bpf/",
    "export-filename": "/var/log/tetragon/tetragon.log",
    "server-address": "unix:///var/run/tetragon/tetragon.sock",
}
_UNIT = """\
[Unit]
Description=Stand-in for the Tetragon agent, as its own installer sets it up
After=network.target local-fs.target
DefaultDependencies=no
[Service]
ExecStart=/usr/local/bin/tetragon
Restart=on-failure
RestartSec=5
[Install]
WantedBy=multi-user.target
"""
_INSTALLER = """\
#!/bin/sh
set -eu
cd "$(dirname "$0")"
cp -r usr/local/. /usr/local/
install -D -m 644 usr/lib/systemd/system/tetragon.service /usr/lib/systemd/system/tetragon.service
mkdir -p /etc/tetragon/tetragon.conf.d /etc/tetragon/tetragon.tp.d
systemctl daemon-reload
systemctl enable --now tetragon.service
"""


def content(version: str) -> Iterator[tuple[str, bytes]]:
    """Path below the release's directory, and bytes."""
    yield "install.sh", _INSTALLER.encode()
    yield "usr/lib/systemd/system/tetragon.service", _UNIT.encode()
    for name, text in _MAIN.items():
        yield f"usr/local/bin/{name}", text.encode()
    for name, value in _DROP_INS.items():
        yield f"usr/local/lib/tetragon/tetragon.conf.d/{name}", f"{value}\n".encode()
    yield "usr/local/lib/tetragon/bpf/bpf_execve_event.o", f"stand-in {version}".encode()
    for source in sorted([*(HERE / "standin").rglob("*.py"), *PLUGINS.glob("*_utils/**/*.py")]):
        place = source.relative_to(HERE if HERE in source.parents else PLUGINS.parent)
        text = source.read_text(encoding="utf-8")
        if place.name == "wire.py":
            text = text.replace('"STANDIN_VERSION", "1.7.0"', f'"STANDIN_VERSION", "{version}"')
        yield f"usr/local/lib/tetragon/standin/{place}", text.encode()


def pack(directory: Path, version: str) -> Path:
    """Write one release and return its path; the same input gives the same bytes."""
    name = f"tetragon-v{version}-{ARCHITECTURE}"
    path = directory / f"{name}.tar.gz"
    with gzip.GzipFile(path, "wb", 1, mtime=0) as stream, tarfile.open(fileobj=stream, mode="w") as tar:
        for place, data in content(version):
            member = tarfile.TarInfo(f"{name}/{place}")
            member.size, member.mode = len(data), 0o755 if "/bin/" in place or place.endswith(".sh") else 0o644
            tar.addfile(member, io.BytesIO(data))
    return path


def main() -> None:
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    sums = {version: {ARCHITECTURE: hashlib.sha256(pack(directory, version).read_bytes()).hexdigest()} for version in sys.argv[2:]}
    (directory / "sums.json").write_text(json.dumps(sums), encoding="utf-8")


if __name__ == "__main__":
    main()
