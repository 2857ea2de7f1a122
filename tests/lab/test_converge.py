# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The collection's converger against the stand-in: revisions change without a moment in which a forbidden act is allowed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from ansible_collections.apiary.tetragon.plugins.module_utils.agent import bpf
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.converge import ConvergeError, Host, converge
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.observe import observe
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.plan import Wanted
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.process import agent_life
from enforcing import KILL, LSM, deny
from standin.host import LabHost
from standin.kernel import Caller, Kernel

LIBC = next(Path("/lib").glob("*/libc.so.6"))
ON_BPFFS = bool(os.environ.get("STANDIN_BPFFS"))


class Attacker:
    """One thread that keeps attempting the same acts, forbidden and not, and counts how they end.

    ``wrong``: denied by what an earlier act had left behind.
    """

    def __init__(self, host: LabHost) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self.wrong = 0
        self._kernel = Kernel(host.root)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Attacker:
        self._thread.start()
        return self

    def __exit__(self, *_unused: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        this = Caller(pid=os.getpid(), tid=threading.get_native_id())  # verdicts on threads that are gone get purged
        while not self._stop.is_set():
            for path in ("/secret", "/kill", "/lsm", "/harmless"):
                done = self._kernel.act("open", path, caller=this)
                self.counts[path, done.result] += 1
                self.wrong += done.stale

    def allowed(self) -> int:
        return sum(count for (path, result), count in self.counts.items() if result == "allowed" and path != "/harmless")


def test_a_revision_changes_without_a_gap(host: LabHost, target: Host) -> None:
    result = converge(target, [deny("1"), KILL, LSM], "bundle-1")
    assert result.changed
    assert host.kernel.pins.real == ON_BPFFS
    assert not result.warnings
    wanted = [deny("2", "/more"), KILL, LSM]
    with Attacker(host) as attacker:
        while sum(attacker.counts.values()) < 100:
            pass
        result = converge(target, wanted, "bundle-2")
        seen = sum(attacker.counts.values())
        while sum(attacker.counts.values()) < seen + 100:
            pass
    assert [one["action"] for one in result.actions] == ["add", "enforce", "monitor", "write", "remove"]
    assert bool(result.warnings) != ON_BPFFS  # only on a bpffs stale entries can be looked for
    assert attacker.allowed() == 0
    assert attacker.wrong <= 2 or not ON_BPFFS  # two calls of the client leave both copies enforcing for a while
    assert host.kernel.act("open", "/more").result == "denied"
    assert {name: one["mode"] for name, one in host.listed().items()} == dict.fromkeys(("deny-2", "kill-1", "lsm-1"), "TP_MODE_ENFORCE")
    assert not converge(target, wanted, "bundle-2").changed
    host.stop()
    host.start()
    assert host.listed().keys() == {"deny-2", "kill-1", "lsm-1"}
    assert not converge(target, wanted, "bundle-2").changed


def test_a_refused_revision_leaves_the_host_as_it_was(host: LabHost, target: Host) -> None:
    converge(target, [deny("1"), KILL], "bundle-1")
    host.faults(load_seconds=0, fail_load=[["deny-2", "the verifier says no"]])
    with Attacker(host) as attacker, pytest.raises(ConvergeError, match="the verifier says no; the host is as before") as failure:
        converge(target, [deny("2"), KILL, LSM], "bundle-2")
    assert failure.value.restored
    assert attacker.counts["/secret", "allowed"] == attacker.counts["/kill", "allowed"] == 0
    assert {name: one["state"] for name, one in host.listed().items() if name != "deny-2"} == dict.fromkeys(
        ("deny-1", "kill-1"), "TP_STATE_ENABLED"
    )


@contextmanager
def full(directory: Path) -> Iterator[None]:
    """A file system of 64 kB over a directory, filled to the last byte once what is there has been copied."""
    directory.mkdir(parents=True, exist_ok=True)
    kept = {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(directory)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        for name, content in kept.items():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_bytes(content)
        with contextlib.suppress(OSError), (directory / "full").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        yield
    finally:
        subprocess.run(["umount", str(directory)], check=True)


@pytest.mark.skipif(ON_BPFFS, reason="has nothing to do with maps")
@pytest.mark.parametrize("place", ["files", "state"])
def test_a_full_disk_leaves_the_host_as_it_was(host: LabHost, target: Host, place: str) -> None:
    converge(target, [deny("1"), KILL], "bundle-1")
    before = (host.listed(), target.files.read(), target.state.read())
    with full(Path(target.files.policy_dir if place == "files" else target.state.directory)):
        with pytest.raises(ConvergeError, match=r"No space left on device.*; the host is as before") as failure:
            converge(target, [deny("2"), KILL], "bundle-2")
        assert failure.value.restored
        assert (host.listed(), target.files.read(), target.state.read()) == before
    assert converge(target, [deny("2"), KILL], "bundle-2").changed


@pytest.mark.skipif(ON_BPFFS, reason="has nothing to do with maps")
@pytest.mark.parametrize("check", [False, True], ids=["for real", "in check mode"])
@pytest.mark.parametrize("spoil", ["stopped", "hangs", "no client", "no state"])
def test_a_host_that_cannot_be_read_is_refused_in_words(host: LabHost, target: Host, spoil: str, check: bool) -> None:
    if spoil == "stopped":
        host.stop()
    elif spoil == "hangs":
        host.faults(hang=True)
        target.tetra.timeout = 1
    elif spoil == "no client":
        target.tetra.program = "/no/such/tetra"
    else:
        Path(target.state.path).mkdir(parents=True)
    if spoil == "no client" and check:
        assert "no program '/no/such/tetra' here" in converge(target, [KILL], "bundle-1", check).warnings[0]
        return
    with pytest.raises(ConvergeError) as failure:
        converge(target, [KILL], "bundle-1", check)
    assert failure.value.restored
    host.faults(load_seconds=0)


def deny_threads_of_a_dead_process(host: LabHost, count: int) -> None:
    """What the second of two policies on one function denies leaves an entry each in the map of the first."""
    with subprocess.Popen(["true"]) as gone:
        pass
    for thread in range(count):
        assert host.kernel.act("open", "/secret", caller=Caller(pid=gone.pid, tid=thread + 1)).policies == ["deny-extra"]


@pytest.mark.skipif(not ON_BPFFS, reason="needs a BPF file system")
def test_stale_entries_are_cleared(host: LabHost, target: Host) -> None:
    """Threads that were denied while both copies enforced, and are gone, leave entries that only bpf(2) can clear."""
    converge(target, [deny("1")], "bundle-1")
    host.add(deny("extra").text)
    deny_threads_of_a_dead_process(host, 20)
    host.tetra("tp", "delete", "deny-extra")
    assert bpf.purge_stale(target.pins.override_tasks(("", "deny-1")), 0.05) == 20
    assert not host.kernel.act("open", "/harmless", caller=Caller(pid=5000, tid=1)).stale


@pytest.mark.skipif(not ON_BPFFS, reason="needs a BPF file system")
def test_a_map_that_fills_is_reported_and_cleared_by_a_run_with_nothing_else_to_do(host: LabHost, target: Host) -> None:
    """Two policies override one function, as a bundle may have it (lint ``overridden-twice``), until the first denies nothing."""
    host.faults(load_seconds=0, override_entries=20)
    converge(target, [deny("1")], "bundle-1")
    host.add(deny("extra").text)
    deny_threads_of_a_dead_process(host, 20)
    host.tetra("tp", "delete", "deny-extra")
    assert host.kernel.act("open", "/secret").result == "allowed"
    assert host.listed()["deny-1"]["mode"] == "TP_MODE_ENFORCE"
    seen = observe(target.tetra, target.pins, target.state, pid_file(host))
    assert [one["stale_overrides"] for one in seen["policies"]] == [20]
    assert seen["troubles"][0].startswith("deny-1: 20 verdicts on threads that are gone are in its map")
    predicted = converge(target, [deny("1")], "bundle-1", check=True)
    assert host.kernel.act("open", "/secret").result == "allowed"
    done = converge(target, [deny("1")], "bundle-1")
    for result in (predicted, done):
        assert (result.changed, result.actions) == (True, [{"action": "purge", "policy": "deny-1"}])
        assert result.before == {"deny-1": "enforce, its map fills"}
        assert result.warnings[0].startswith("deny-1: 20 verdicts on threads that are gone were in its map")
    assert host.kernel.act("open", "/secret").result == "denied"
    assert not converge(target, [deny("1")], "bundle-1").changed
    assert observe(target.tetra, target.pins, target.state, pid_file(host))["troubles"] == []


@pytest.mark.skipif(ON_BPFFS, reason="needs files in the place of maps")
def test_where_there_are_no_maps_nothing_is_said_of_them(host: LabHost, target: Host) -> None:
    converge(target, [deny("1")], "bundle-1")
    seen = observe(target.tetra, target.pins, target.state, pid_file(host))
    assert [one["stale_overrides"] for one in seen["policies"]] == [None]
    assert [one for one in seen["problems"] if "overrides" in one] == []


@pytest.mark.skipif(ON_BPFFS, reason="has nothing to do with maps")
def test_a_host_keeps_the_triggers_of_its_policies(host: LabHost, target: Host) -> None:
    converge(target, [deny("1"), replace(KILL, trigger=None)], "bundle-1")
    assert target.state.read().triggers == {("", "deny-1"): deny("1").trigger}
    assert not converge(target, [deny("1"), KILL], "bundle-1").changed  # a former version of the collection kept none
    assert target.state.read().triggers == {("", "deny-1"): deny("1").trigger, ("", "kill-1"): KILL.trigger}
    converge(target, [], "")
    assert target.state.read().triggers == {}


@pytest.mark.skipif(ON_BPFFS or os.geteuid() != 0, reason="needs root, once")
def test_the_same_on_a_real_bpffs(tmp_path: Path) -> None:
    """This file and test_kill.py again with real maps, programs and links, in a mount namespace that ends with it."""
    mount = ["unshare", "-m", "mount", "-t", "bpf", "bpf", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no BPF file system can be mounted here")
    command = [
        "unshare",
        "-m",
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        __file__,
        str(Path(__file__).with_name("test_kill.py")),
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "STANDIN_BPFFS": "1"},
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "10 passed" in done.stdout


def uprobe(binary: Path, symbol: str = "malloc", name: str = "up-1") -> Wanted:
    """Kills whoever calls a function of this file."""
    hook = {"path": str(binary), "symbols": [symbol], "selectors": [{"matchActions": [{"action": "Sigkill"}]}]}
    spec = {"uprobes": [hook], "options": [{"name": "policy-mode", "value": "enforce"}]}
    document = {"apiVersion": "cilium.io/v1alpha1", "kind": "TracingPolicy", "metadata": {"name": name}, "spec": spec}
    return Wanted(name, "enforce", json.dumps(document), binaries=(str(binary),))


def upgrade(binary: Path, content: Path = LIBC) -> None:
    """What a package upgrade does: another file under the same path."""
    shutil.copy(content, binary.with_name("upgraded"))
    binary.with_name("upgraded").rename(binary)


@pytest.fixture
def watched(host: LabHost, target: Host, tmp_path: Path) -> Path:
    """A program of its own whose calls of malloc are killed, by a host that knows its agent's runs."""
    binary = tmp_path / "program"
    shutil.copy(LIBC, binary)
    target.life = lambda: agent_life(pid_file(host))
    converge(target, [uprobe(binary), KILL], "bundle-1")
    assert host.kernel.act("call", str(binary), "malloc").result == "killed"
    return binary


def pid_file(host: LabHost) -> str:
    return str(host.inside("/var/run/tetragon/tetragon.pid"))


def look(host: LabHost, target: Host) -> tuple[list[str], list[str]]:
    """What an observation says of the files under uprobes: of the policy, and of the host."""
    seen = observe(target.tetra, target.pins, target.state, pid_file(host))
    return next(one["replaced"] for one in seen["policies"] if one["name"] == "up-1"), seen["troubles"]


def test_a_policy_is_loaded_again_when_its_binary_was_replaced(host: LabHost, target: Host, watched: Path) -> None:
    wanted = [uprobe(watched), KILL]
    assert not converge(target, wanted, "bundle-1").changed
    assert look(host, target) == ([], [])
    upgrade(watched)
    assert host.kernel.act("call", str(watched), "malloc").result == "allowed"
    assert host.listed()["up-1"]["state"] == "TP_STATE_ENABLED"
    assert look(host, target) == (
        [str(watched)],
        [f"up-1 watches and enforces nothing in {watched}, replaced since it was loaded: run this host's policies again"],
    )
    predicted = converge(target, wanted, "bundle-1", check=True)
    assert look(host, target)[0] == [str(watched)]
    with Attacker(host) as attacker:
        done = converge(target, wanted, "bundle-1")
    assert attacker.allowed() - attacker.counts["/secret", "allowed"] - attacker.counts["/lsm", "allowed"] == 0
    for result in (predicted, done):
        assert result.changed
        assert [(one["action"], one["policy"]) for one in result.actions] == [("clear", "up-1"), ("add", "up-1"), ("enforce", "up-1")]
        assert (result.before["up-1"], result.after["up-1"]) == ("binary replaced", "enforce")
        assert f"up-1 watched and enforced nothing in {watched}, replaced since it was loaded: it is loaded again" in result.warnings
    assert host.kernel.act("call", str(watched), "malloc").result == "killed"
    assert look(host, target) == ([], [])
    assert not converge(target, wanted, "bundle-1").changed


def test_a_restart_binds_a_policy_to_the_file_that_is_there(host: LabHost, target: Host, watched: Path) -> None:
    upgrade(watched)
    host.stop()
    time.sleep(0.02)  # the start of a process is known to a hundredth of a second
    host.start()
    assert host.kernel.act("call", str(watched), "malloc").result == "killed"
    assert look(host, target) == ([], [])
    assert not converge(target, [uprobe(watched), KILL], "bundle-1").changed
    watched.chmod(0o700)  # a change of the very file that was bound
    assert look(host, target) == ([], [])
    upgrade(watched)
    assert look(host, target)[0] == [str(watched)]


def test_a_failed_run_does_not_lose_what_it_loaded_again(host: LabHost, target: Host, watched: Path) -> None:
    upgrade(watched)
    host.faults(load_seconds=0, fail_load=[["zzz-1", "the verifier says no"]])
    with pytest.raises(ConvergeError, match="the verifier says no; the host is as before"):
        converge(target, [uprobe(watched), uprobe(watched, "free", "zzz-1"), KILL], "bundle-2")
    assert host.kernel.act("call", str(watched), "malloc").result == "killed"
    assert host.listed()["up-1"]["mode"] == host.listed()["kill-1"]["mode"] == "TP_MODE_ENFORCE"


def test_a_new_file_without_the_function_is_told(host: LabHost, target: Host, watched: Path) -> None:
    other = watched.with_name("other")
    other.write_bytes(b"\x7fELF")
    upgrade(watched, other)
    with pytest.raises(ConvergeError, match="symbol malloc: not found; and it could not be put back: policy up-1") as failure:
        converge(target, [uprobe(watched), KILL], "bundle-1")
    assert not failure.value.restored
    assert host.listed()["kill-1"]["mode"] == "TP_MODE_ENFORCE"
    upgrade(watched)
    assert converge(target, [uprobe(watched), KILL], "bundle-1").changed
    assert host.kernel.act("call", str(watched), "malloc").result == "killed"
    assert look(host, target) == ([], [])
