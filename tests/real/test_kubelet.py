# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""What the run on a real node is made of: the agent's image, the Job of the guide, and what a phase may let through."""

from __future__ import annotations

import io
import json
import shutil
import sys
import tarfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import image
import kubelet
import real


@pytest.mark.skipif(not all(map(shutil.which, image.PROGRAMS)), reason=f"missing programs of {', '.join(image.PROGRAMS)}")
def test_an_image_has_the_release_where_the_chart_looks_for_it(tmp_path: Path) -> None:
    release, target = tmp_path / "release.tar.gz", tmp_path / "image.tar"
    files = ("usr/local/bin/tetragon", "usr/local/bin/tetra", "usr/local/lib/tetragon/bpf/one.o", "usr/local/lib/tetragon/other")
    with tarfile.open(release, "w:gz") as packed:
        for name in files:
            member = tarfile.TarInfo(f"tetragon-v1.7.0-amd64/{name}")
            member.size = len(name)
            packed.addfile(member, io.BytesIO(name.encode()))
    image.write(release, target, ["localhost/tetragon:v1.7.0", "localhost/tetragon:v1.7.1"])
    with tarfile.open(target) as archive:
        said = json.load(archive.extractfile("manifest.json") or io.BytesIO())
        layer = archive.extractfile("layer.tar")
        with tarfile.open(fileobj=layer) as root:
            found = {member.name: member for member in root}
    assert said[0]["RepoTags"] == ["localhost/tetragon:v1.7.0", "localhost/tetragon:v1.7.1"]
    assert {"usr/bin/tetragon", "usr/bin/tetra", "usr/bin/bpftool", "usr/bin/flock", "var/lib/tetragon/one.o"} <= set(found)
    assert not [name for name in found if name.endswith("other")]
    assert (found["usr/bin/tetragon"].mode, found["usr/bin/sort"].linkname, found["bin"].linkname) == (0o755, "busybox", "usr/bin")


def test_a_tarball_without_an_agent_makes_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "_system", lambda archive: None)
    with tarfile.open(tmp_path / "release.tar.gz", "w:gz"):
        pass
    with pytest.raises(LookupError, match="has no tetra and no tetragon"):
        image.write(tmp_path / "release.tar.gz", tmp_path / "image.tar", ["localhost/tetragon:v1.7.0"])


def test_the_guide_has_the_job_that_cleans_a_node() -> None:
    job = kubelet.clean_job("apiary-script-0123456789", "1.7.0")
    pod = job["spec"]["template"]["spec"]
    assert (job["metadata"]["name"], pod["nodeName"], pod["containers"][0]["image"]) == (
        "apiary-clean-node",
        "node",
        "localhost/tetragon:v1.7.0",
    )
    assert pod["volumes"][0]["configMap"]["name"] == "apiary-script-0123456789"


@pytest.mark.parametrize(
    ("phase", "kind", "lapse"),
    [
        ("upgrade", "lsm", True),
        ("after-upgrade", "kprobe", True),
        ("crash", "lsm", False),
        ("crash", "override", True),
        ("after-uninstall", "lsm-long", False),
        ("after-uninstall", "tracepoint", True),
        ("clean", "kprobe", False),
    ],
)
def test_a_phase_lets_through_what_the_agent_cannot_keep_shut(phase: str, kind: str, lapse: bool) -> None:
    counts = {phase: {kind: {"attempts": 9, "allowed": 2, "wrong": 0, "gap": 1.0}}}
    assert bool(real.lapses(counts, kubelet.EVENTS | kubelet.AFTER)) is lapse
