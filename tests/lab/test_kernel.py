# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The stand-in's kernel: what acts meet, with the measured quirks of Override, and what agents hear of it."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from ansible_collections.apiary.tetragon.plugins.module_utils.agent import metrics
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.observe import observe
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.pins import PinDirectory
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.state import StateFile
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.tetra import Tetra
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.load import Library
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.render import render
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.schema import tracing_policy
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay import events
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.compile import CompiledPolicy, recorder
from standin.client import pod
from standin.config import Options
from standin.events import Renderer
from standin.faults import FaultFile
from standin.host import BIN, LabHost
from standin.kernel import Caller, Result
from standin.manager import Manager
from standin.policy import Refused, read

LIBC = next(str(path) for path in Path("/lib").glob("*/libc.so.6"))
VALUES: dict[str, dict[str, Any]] = {
    "application/function-call": {"program": LIBC, "function": "malloc", "first_argument": [7]},
    "network/c2-ranges": {"ranges": ["203.0.113.0/24"]},
    "network/egress-allowlist": {"allowed": ["10.0.0.0/8"]},
}


def library(mode: str) -> dict[str, str]:
    """Text of every policy of the library, by name."""
    policies = Library([Path(__file__).parents[2] / "policies"])
    rendered = {one.name: render(one, VALUES.get(one.reference, {}), "host", ["/usr/sbin/sshd"]) for one in policies}
    return {name: one.text(mode) for name, one in rendered.items()}


def override(name: str, path: str = "/secret", **hook: Any) -> str:
    """A policy that denies to open one file."""
    selector = {
        "matchArgs": [{"index": 0, "operator": "Equal", "values": [path]}],
        "matchActions": [{"action": "Override", "argError": -1}],
    }
    call = {"call": "security_file_open", "syscall": False, "args": [{"index": 0, "type": "file"}], "selectors": [selector], **hook}
    return _document(name, {"kprobes": [call]})


def denied_by_lsm(name: str) -> str:
    selector = {
        "matchArgs": [{"index": 0, "operator": "Equal", "values": ["/secret"]}],
        "matchActions": [{"action": "Override", "argError": -13}],
    }
    return _document(name, {"lsmhooks": [{"hook": "file_open", "args": [{"index": 0, "type": "file"}], "selectors": [selector]}]})


def _document(name: str, spec: dict[str, Any]) -> str:
    return json.dumps({"apiVersion": "cilium.io/v1alpha1", "kind": "TracingPolicy", "metadata": {"name": name}, "spec": spec})


class Bench:
    """An agent's policies on a kernel, without its process."""

    def __init__(self, host: LabHost) -> None:
        self.host = host
        self.reader = host.kernel.new_ring(1 << 16)
        self.manager = Manager(
            host.kernel, host.pins, self.reader, Options(host.root, (), {}), FaultFile(host.root), lambda *_a, **_k: None
        )

    def act(self, *words: str, thread: int = 7, **caller: Any) -> Result:
        return self.host.kernel.act(*words, caller=Caller(pid=1000, tid=thread, **caller))

    def counters(self, name: str) -> dict[str, int]:
        found = next(one for one in self.manager.listing()["policies"] if one["name"] == name)
        return {counter: int(value) for counter, value in found["stats"]["action_counters"].items()}


@pytest.fixture
def bench(host: LabHost) -> Iterator[Bench]:
    yield Bench(host)


def test_two_enforcing_copies_deny_what_they_should_not(bench: Bench) -> None:
    """Measured: the newest fmod_ret runs first, and the older copy's entry denies the thread's next call, whatever it is."""
    for name in ("old", "new"):
        bench.manager.add(override(name))
    first = bench.act("open", "/secret")
    assert (first.result, first.policies, first.stale) == ("denied", ["new"], False)
    assert bench.act("open", "/other", thread=8).result == "allowed"
    wrong = bench.act("open", "/other")
    assert (wrong.result, wrong.policies, wrong.stale) == ("denied", ["old"], True)
    assert bench.act("open", "/other").result == "allowed"
    assert bench.counters("old") == bench.counters("new") == {"post": 1, "override": 1}


def test_a_monitoring_copy_stores_nothing(bench: Bench) -> None:
    for name in ("old", "new"):
        bench.manager.add(override(name), "monitor" if name == "new" else "")
    assert bench.act("open", "/secret").policies == ["old"]
    assert bench.act("open", "/other").result == "allowed"
    assert bench.counters("new") == {"post": 1, "monitor_override": 1}
    bench.manager.set_mode("new", "enforce")
    bench.manager.set_mode("old", "monitor")
    assert bench.act("open", "/secret").policies == ["new"]
    assert bench.act("open", "/other").result == "allowed"


def test_a_full_map_disarms_the_older_copy(bench: Bench) -> None:
    bench.host.faults(load_seconds=0, override_entries=3)
    for name in ("old", "new"):
        bench.manager.add(override(name))
    for thread in range(5):
        assert bench.act("open", "/secret", thread=100 + thread).policies == ["new"]
    bench.manager.delete("new")
    assert [bench.act("open", "/secret", thread=200).result for _unused in range(3)] == ["allowed"] * 3
    listed = bench.manager.listing()["policies"][0]
    assert (listed["state"], listed["mode"]) == ("TP_STATE_ENABLED", "TP_MODE_ENFORCE")
    assert bench.counters("old")["override"] == 8
    assert bench.act("open", "/other", thread=100).stale  # takes the entry that its thread had left
    assert bench.act("open", "/secret", thread=200).result == "denied"


def test_lsm_copies_do_not_disturb_each_other(bench: Bench) -> None:
    for name in ("old", "new"):
        bench.manager.add(denied_by_lsm(name))
    done = bench.act("open", "/secret")
    assert (done.policies, done.error) == (["old"], "EPERM")  # argError is not honoured there
    assert bench.act("open", "/other").result == "allowed"
    assert (bench.counters("old"), bench.counters("new")) == ({"override": 1}, {})  # posts are not counted for LSM


def test_a_kill_does_not_undo(bench: Bench) -> None:
    selector = {"matchActions": [{"action": "Sigkill"}]}
    bench.manager.add(_document("kill", {"kprobes": [{"call": "fd_install", "syscall": False, "selectors": [selector]}]}))
    done = bench.act("open", "/x")
    assert (done.result, done.happened) == ("killed", True)
    bench.manager.set_mode("kill", "monitor")
    assert bench.act("open", "/x").result == "allowed"
    assert bench.counters("kill") == {"post": 2, "signal": 1, "monitor_signal": 1}


def test_the_return_side_ignores_the_mode(bench: Bench) -> None:
    selector = {"matchReturnActions": [{"action": "Sigkill"}]}
    hook = {"call": "fd_install", "syscall": False, "return": True, "returnArg": {"index": 0, "type": "int"}, "selectors": [selector]}
    bench.manager.add(_document("back", {"kprobes": [hook]}))
    assert bench.manager.listing()["policies"][0]["mode"] == "TP_MODE_MONITOR_ONLY"
    assert bench.act("open", "/x").result == "killed"
    assert bench.counters("back") == {"post": 1}


def test_a_uprobe_stays_with_the_file_it_was_loaded_on(bench: Bench, tmp_path: Path) -> None:
    binary = tmp_path / "program"
    shutil.copy(LIBC, binary)
    selector = {"matchActions": [{"action": "Sigkill"}]}
    bench.manager.add(_document("up", {"uprobes": [{"path": str(binary), "symbols": ["malloc"], "selectors": [selector]}]}))
    assert bench.act("call", str(binary), "malloc").result == "killed"
    shutil.copy(LIBC, tmp_path / "upgraded")
    (tmp_path / "upgraded").rename(binary)
    assert bench.act("call", str(binary), "malloc").result == "allowed"
    bench.manager.disable("up")
    bench.manager.enable("up")
    assert bench.act("call", str(binary), "malloc").result == "killed"


def test_what_cannot_be_decided_counts_as_no_match(bench: Bench) -> None:
    selector = {"matchNamespaceChanges": [{"operator": "In", "values": ["Pid"]}], "matchActions": [{"action": "Override", "argError": -1}]}
    bench.manager.add(override("unsure", selectors=[selector]))
    done = bench.act("open", "/x")
    assert (done.result, len(done.undecided)) == ("allowed", 1)


@pytest.mark.parametrize("mode", ["enforce", "monitor"])
def test_the_library_does_what_it_says(bench: Bench, mode: str) -> None:
    for text in library(mode).values():
        bench.manager.add(text)
    container = {"container": True}
    cases: list[tuple[tuple[str, ...], dict[str, Any], str]] = [
        (("write", "/etc/shadow"), {}, "denied"),
        (("write", "/etc/shadow"), {"binary": "/usr/bin/passwd"}, "allowed"),
        (("mmap-write", "/root/.ssh/authorized_keys"), {}, "denied"),
        (("read", "/etc/shadow"), {}, "allowed"),
        (("truncate", "/etc/passwd"), {}, "denied"),
        (("rename", "/tmp/shadow", "/etc/shadow"), {}, "denied"),
        (("unlink", "/usr/bin/ls"), {}, "denied"),
        (("mkdir", "/usr/lib/x"), {}, "denied"),
        (("exec-memory",), {}, "denied"),
        (("exec", "/bin/bash"), {}, "allowed"),
        (("exec", "/bin/bash"), container, "denied"),
        (("load-module",), {}, "allowed"),
        (("load-module",), container, "killed"),
        (("request-module", "net-pf-29"), container, "killed"),
        (("connect", "10.1.2.3", "443"), {}, "allowed"),
        (("connect", "198.51.100.7", "443"), {}, "denied"),
        (("connect", "2001:db8::1", "443"), {}, "denied"),
        (("call", LIBC, "malloc", "7"), {}, "allowed"),
    ]
    for thread, (words, caller, wanted) in enumerate(cases):
        done = bench.act(*words, thread=thread, **caller)
        assert (done.result, done.undecided) == (wanted if mode == "enforce" else "allowed", []), words
    watched = next(one["name"] for one in bench.manager.listing()["policies"] if one["name"].startswith("function-call"))
    assert bench.counters(watched) == {"post": 1}


def test_policies_of_pods(bench: Bench) -> None:
    text = json.loads(override("pods", selectors=[{"matchActions": [{"action": "Override", "argError": -1}]}]))
    text["spec"]["podSelector"] = {"matchLabels": {"app": "cart"}}
    options = Options(bench.host.root, ["--enable-policy-filter"], {})
    manager = Manager(bench.host.kernel, bench.host.pins, bench.reader, options, FaultFile(bench.host.root), lambda *_a, **_k: None)
    manager.add(json.dumps(text))
    assert bench.act("open", "/x").result == "allowed"
    assert bench.act("open", "/x", container=True, pod=pod("shop/cart,app=cart")).result == "denied"
    assert bench.act("open", "/x", container=True, pod=pod("shop/web,app=web")).result == "allowed"


def test_the_decoder_agrees_with_the_schema() -> None:
    """The stand-in's own walk over the schema accepts and refuses what a validator does."""
    validator = jsonschema.Draft202012Validator(tracing_policy((1, 7, 0)))

    def spoiled(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
        def change(edit: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
            other = copy.deepcopy(document)
            edit(other)
            return other

        yield document
        yield change(lambda one: one.pop("spec"))
        yield change(lambda one: one["metadata"].pop("name"))
        yield change(lambda one: one["spec"].update(extra=1))
        yield change(lambda one: one["spec"].update(kprobes={}))
        yield change(lambda one: one["spec"].update(kprobes=[{}]))
        yield change(lambda one: one["spec"].update(lists=[{"name": "x", "type": "nothing"}]))
        yield change(lambda one: one["spec"].update(options=[{"name": "x", "value": 1}]))
        yield change(lambda one: one["metadata"].update(name="UPPER"))

    for text in library("enforce").values():
        for document in spoiled(read(text, "1.7.0").document):  # type: ignore[arg-type]
            try:
                read(json.dumps(document), "1.7.0")
                accepted = True
            except Refused:
                accepted = False
            assert accepted == validator.is_valid(document)


def test_events_can_be_replayed(bench: Bench) -> None:
    """What the agent exports of an act is what the replay engine reads, and it decides the same from it."""
    texts = library("enforce")
    for text in texts.values():
        bench.manager.add(text)
    bench.act("write", "/etc/shadow", thread=1)
    bench.act("connect", "198.51.100.7", "443", thread=2)
    bench.act("call", LIBC, "malloc", "7", thread=3)
    bench.act("load-module", thread=4, container=True)
    bench.act("exec-memory", thread=5)
    documents = {one.name: one.document for one in (read(text, "1.7.0") for text in texts.values())}
    seen: list[str] = []
    stream = bench.reader.records()
    while len(seen) < 5:
        event = Renderer("node1", True).render(next(stream))
        body = next(value for value in event.values() if isinstance(value, dict))
        if "policy_name" not in body:
            continue
        document = documents[body["policy_name"]]
        invocation = events.decode(json.dumps(event).encode(), events.Context({"": recorder(document)}, {}, True))
        assert invocation is not None
        (verdict,) = CompiledPolicy(document).evaluate(invocation)
        assert verdict.fires.value is True
        seen.append(body["policy_name"].rpartition("-")[0])
    assert seen == ["credential-writes", "egress-allowlist", "function-call", "module-load-from-container", "fileless-execution"]


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _metrics(host: LabHost) -> str:
    return metrics.fetch((host.path / "metrics-address").read_text(encoding="ascii"))


def _counts(host: LabHost) -> dict[str, Any]:
    return metrics.counts(_metrics(host))


@pytest.fixture
def measured(host: LabHost) -> Iterator[LabHost]:
    """A running host with a metrics page and a policy that posts every open of /watched."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    (host.path / "metrics-address").write_text(address, encoding="ascii")
    (host.policies / "watch.yaml").write_text(override("watch", "/watched"), encoding="utf-8")
    (host.inside("/etc/tetragon/tetragon.conf.d") / "metrics-server").write_text(address, encoding="ascii")
    yield host


def test_metrics_and_observation(measured: LabHost) -> None:
    measured.start("--enable-process-ns")
    measured.kernel.act("exec", "/bin/ls")
    measured.kernel.act("open", "/watched")
    _until(lambda: len(measured.events()) == 2)
    assert "bpf_missed_events_total" not in _metrics(measured)
    assert 'tetragon_tracingpolicy_loaded{state="load_error"} 0\n' in _metrics(measured)
    os.environ["STANDIN_ROOT"] = str(measured.path)
    try:
        seen = observe(
            Tetra(str(BIN / "tetra")),
            PinDirectory(str(measured.pins)),
            StateFile(str(measured.path / "state")),
            str(measured.inside("/var/run/tetragon/tetragon.pid")),
        )
    finally:
        del os.environ["STANDIN_ROOT"]
    assert seen["problems"] == []
    assert (seen["agent"]["version"], seen["agent"]["flags"]["keep-sensors-on-exit"]) == ("1.7.0", True)
    assert seen["counters"]["policy_events"] == {"watch": 1.0}
    assert seen["counters"]["events_exported"] == 2
    assert seen["counters"]["bytes_exported"] == measured.export.stat().st_size
    (watch,) = seen["policies"]
    assert (watch["mode"], watch["posted"], watch["enforced"]) == ("enforce", 1, 1)
    assert watch["pinned_links"] == {"generic_kprobe/security_file_open": 2}
    executed, posted = measured.events()
    assert (executed["process_exec"]["process"]["binary"], executed["process_exec"]["parent"]["binary"]) == ("/bin/ls", "/usr/bin/cat")
    assert posted["process_kprobe"]["process"]["ns"]["pid"] == {"inum": 4026531836, "is_host": True}


def test_a_reader_that_stands_still_misses_events_but_no_denial(measured: LabHost) -> None:
    measured.start("--rb-size-total=4096")
    assert measured.process is not None
    measured.process.send_signal(signal.SIGSTOP)
    assert {measured.kernel.act("open", "/watched").result for _unused in range(200)} == {"denied"}
    measured.process.send_signal(signal.SIGCONT)
    _until(lambda: _counts(measured)["events_missed"] > 0)
    page = _metrics(measured)
    assert 'tetragon_bpf_missed_events_total{error="EAGAIN",msg_op="13"}' in page
    missed = metrics.counts(page)["events_missed"]
    _until(lambda: _counts(measured)["events_exported"] == 200 - missed)
    assert metrics.counts(page)["events_lost_ringbuf"] == 0


def test_dropped_events(measured: LabHost) -> None:
    measured.faults(load_seconds=0, drop_events=0.25)
    measured.start()
    for _unused in range(40):
        measured.kernel.act("open", "/watched")
    _until(lambda: _counts(measured)["events_exported"] == 30)
    assert _counts(measured)["events_missed"] == 10


def test_a_full_disk_shows_only_in_the_bytes(measured: LabHost) -> None:
    measured.export.parent.mkdir(parents=True)
    measured.export.symlink_to("/dev/full")
    measured.start()
    assert measured.kernel.act("open", "/watched").result == "denied"
    _until(lambda: _counts(measured)["events_exported"] == 1)
    assert _counts(measured)["bytes_exported"] == 0
    assert "error" not in measured.log.read_text(encoding="utf-8").rpartition("Listening")[2]


def test_the_export_file_is_the_agents(measured: LabHost) -> None:
    measured.start("--export-file-max-size-mb=1", "--export-file-max-backups=2", "--export-file-compress")
    measured.kernel.act("open", "/watched")
    _until(lambda: len(measured.events()) == 1)
    measured.export.unlink()
    measured.kernel.act("open", "/watched")
    _until(lambda: _counts(measured)["events_exported"] == 2)
    assert not measured.export.exists()  # it goes on writing to the deleted file
    wanted = 0
    for _unused in range(4500):  # of about a thousand bytes each
        wanted += measured.kernel.act("open", "/watched").result == "denied"
    _until(lambda: _counts(measured)["events_exported"] + _counts(measured)["events_missed"] >= wanted)
    names = sorted(path.name for path in measured.export.parent.iterdir())
    assert len(names) == 3
    assert all(name.startswith("tetragon-") and name.endswith(".log.gz") for name in names[:2])
    assert measured.export.stat().st_size < 1 << 20


def test_the_rate_limit_of_the_export(measured: LabHost) -> None:
    measured.start("--export-rate-limit=5")
    for _unused in range(20):
        measured.kernel.act("open", "/watched")
    _until(lambda: metrics.by_label(_metrics(measured), "export_ratelimit_events_dropped_total", "") == {"": 15})
    assert len(measured.events()) == 5


def test_a_stream_of_events(measured: LabHost) -> None:
    measured.start()
    command = [str(BIN / "tetra"), "getevents", "-o", "json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=measured.environment) as stream:
        assert stream.stdout is not None
        time.sleep(0.2)
        measured.kernel.act("open", "/watched")
        assert json.loads(stream.stdout.readline())["process_kprobe"]["action"] == "KPROBE_ACTION_OVERRIDE"
        stream.terminate()


def test_workload(measured: LabHost) -> None:
    from standin.workload import run

    measured.start()
    assert 20 <= run([str(measured.path)] * 2, 50, 0.5) <= 55
