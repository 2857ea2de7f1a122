# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""What the built collection holds, and what it must not: ``artefact.py DIRECTORY`` builds it there and fails on either."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

NEEDED = set(
    "README.md LICENSE requirements.txt meta/runtime.yml meta/execution-environment.yml playbooks/rollout.yml charts/apiary/Chart.yaml"
    " charts/apiary/values.schema.json charts/apiary/files/agent.sh charts/apiary/platforms/eks.yaml".split()
)
KEPT_OUT = ("tests/", "tools/", "molecule/", ".", "Makefile", "pyproject.toml", "changelogs/fragments/")


def main() -> None:
    directory = Path(sys.argv[1])
    subprocess.run(["ansible-galaxy", "collection", "build", "--force", "--output-path", directory], check=True, stdout=subprocess.DEVNULL)
    (archive,) = directory.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = set(opened.getnames())
    strays, missing = sorted(name for name in names if name.startswith(KEPT_OUT)), sorted(NEEDED - names)
    if strays or missing:
        sys.exit(f"{archive}: must not hold {strays}, lacks {missing}: see build_ignore in galaxy.yml")


if __name__ == "__main__":
    main()
