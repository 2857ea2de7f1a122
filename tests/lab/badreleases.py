# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Tarballs that must not get to a host: badreleases.py RELEASES BAD VERSION writes BAD/<what is wrong>/<tarball> and BAD/sums.json."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import struct
import sys
import tarfile
from pathlib import Path

from release import ARCHITECTURE, pack

OTHER_MACHINE = {"amd64": 183, "arm64": 62}[ARCHITECTURE]


def repack(source: Path, target: Path, changed: dict[str, bytes]) -> None:
    """Copy a tarball with members replaced (by the end of their name) or added."""
    with tarfile.open(source, "r:gz") as before, tarfile.open(target, "w:gz") as after:
        for member in before:
            content = before.extractfile(member)
            data = content.read() if content else b""
            name = next((one for one in changed if member.name.endswith(one)), None)
            if name is not None:
                data = changed.pop(name)
            member.size = len(data)
            after.addfile(member, io.BytesIO(data))
        for name, data in changed.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            after.addfile(member, io.BytesIO(data))


def main() -> None:
    releases, bad, version = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    good = next(releases.glob(f"tetragon-v{version}-*.tar.gz"))
    whole = good.read_bytes()
    made = {what: bad / what / good.name for what in ("truncated", "altered", "outside", "machine", "version")}
    for path in made.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    made["truncated"].write_bytes(whole[: len(whole) // 2])
    made["altered"].write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    repack(good, made["outside"], {"../../../etc/cron.d/evil": b"* * * * * root true\n"})
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack("<HH", 2, OTHER_MACHINE)
    repack(good, made["machine"], {"/bin/tetragon": head})
    shutil.copy(pack(made["version"].parent, "1.0.0"), made["version"])
    sums = {what: {ARCHITECTURE: hashlib.sha256(path.read_bytes()).hexdigest()} for what, path in made.items()}
    (bad / "sums.json").write_text(json.dumps(sums), encoding="utf-8")


if __name__ == "__main__":
    main()
