# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Hostile recordings: whatever a file holds, a replay ends, counts every line once, and takes nothing for what it is not."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible_collections.apiary.tetragon.plugins.plugin_utils import documents
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Refused
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay import corpus, events, results, run
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.compile import CompiledPolicy
from ansible_collections.apiary.tetragon.tests.unit.plugins.plugin_utils.samples import CORPUS

BOUNDED = settings(max_examples=150, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
EXECUTABLES = {"/bin/sh": "/usr/bin/dash"}
MEMBERS = [*events._READERS, "label", "bpf_map_arg"]
EVENTS = ["process_kprobe", "process_lsm", "process_tracepoint", "process_uprobe", "process_usdt", "process_exec", "other"]

scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=12) | st.just("AP8=")
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3), max_leaves=8
)


def objects(**known: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with some of these members, each of its own kind or of any."""
    return st.fixed_dictionaries({}, optional={name: one | anything for name, one in known.items()})


numbers = st.integers(-(2**31), 2**64) | st.integers(-(2**63), 2**64).map(str)
paths = objects(path=st.text(max_size=9), permission=st.sampled_from(["-rw-r--r--", "d", ""]))
socks = objects(family=st.sampled_from(["AF_INET", "AF_UNIX", "77"]), saddr=st.just("10.0.0.1"), daddr=st.just("::1"), dport=numbers)
arguments = st.dictionaries(st.sampled_from(MEMBERS), numbers | paths | socks | anything, min_size=1, max_size=2)
processes = objects(
    exec_id=st.text(max_size=9),
    pid=numbers,
    binary=st.sampled_from(["/bin/sh", "/usr/bin/cat", ""]),
    flags=st.sampled_from(["execve clone", "", "procFS"]),
    ns=st.dictionaries(st.sampled_from(["pid", "mnt"]), objects(inum=numbers, is_host=st.booleans()), max_size=2),
    pod=objects(namespace=st.just("x"), pod_labels=st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2)),
    docker=st.text(max_size=3),
)
bodies = objects(
    process=processes,
    parent=objects(binary=st.just("/bin/sh")),
    function_name=st.sampled_from(["security_file_open", "security_file_permission", "fd_install", "tcp_connect", "__x64_sys_execve"]),
    policy_name=st.sampled_from(["b-sec-file-open", "b-sec-file-permission", "b-tcp-connect", "x"]),
    subsys=st.text(max_size=3),
    event=st.text(max_size=3),
    offset=numbers,
    args=st.lists(arguments, max_size=3),
    data=st.lists(arguments, max_size=2),
    **{"return": arguments},
)
records = st.dictionaries(st.sampled_from(EVENTS), bodies, max_size=1).flatmap(
    lambda one: objects(
        time=st.sampled_from(["2026-11-21T22:30:36.864314633Z", "2026-11-21T22:30:36Z", "", "x"]), node_name=st.text(max_size=3)
    ).map(lambda more: {**one, **more})
)
lines = records.map(lambda one: json.dumps(one).encode()) | st.binary(max_size=40) | anything.map(lambda one: json.dumps(one).encode())


@pytest.fixture(scope="module")
def policies() -> list[CompiledPolicy]:
    """The narrow policies of the corpus."""
    return [CompiledPolicy(documents.load(file).data) for file in sorted((CORPUS / "narrow").glob("*.yaml"))]


@pytest.fixture(scope="module")
def recorders() -> dict[str, events.Declarations]:
    """The recording policies of the corpus."""
    return corpus.recorders_of([documents.load(file) for file in sorted((CORPUS / "broad" / "policies").glob("*.yaml"))])


@pytest.fixture(scope="module")
def recorded() -> list[bytes]:
    """Some lines of a real agent."""
    with gzip.open(CORPUS / "broad" / "broad-sec-file-open.jsonl.gz") as file:
        return [line for _unused, line in zip(range(8), file, strict=False)]


def replayed(
    content: bytes, name: str, place: Path, policies: list[CompiledPolicy], recorders: dict[str, events.Declarations]
) -> results.FileTotals | None:
    """A replay of one file; None when it is refused, which only a file without an event may be."""
    (place / name).write_bytes(content)
    recordings = corpus.find([place / name], recorders, EXECUTABLES)
    try:
        summary = run.replay(policies, recordings, entry=lambda one: None)
    except Refused:
        return None
    for one in summary.policies:
        assert one.total == sum(one.by_file.values(), results.Counts())
    return summary.files[0]


@BOUNDED
@given(content=st.lists(lines, max_size=6))
def test_every_line_is_counted_once(
    content: list[bytes], tmp_path: Path, policies: list[CompiledPolicy], recorders: dict[str, events.Declarations], recorded: list[bytes]
) -> None:
    whole = b"\n".join([*(line.replace(b"\n", b" ") for line in content), recorded[0]])
    totals = replayed(whole, "a.jsonl", tmp_path, policies, recorders)
    assert totals is not None
    blank = sum(not line.strip() for line in content)
    assert totals.lines == len(content) + 1
    assert totals.events + totals.others + totals.skipped + blank == totals.lines


@BOUNDED
@given(place=st.integers(0, 4000), cut=st.integers(0, 300), byte=st.binary(max_size=3))
def test_a_recorded_line_that_was_changed_is_read_or_counted(
    place: int,
    cut: int,
    byte: bytes,
    tmp_path: Path,
    policies: list[CompiledPolicy],
    recorders: dict[str, events.Declarations],
    recorded: list[bytes],
) -> None:
    changed = recorded[1][:place] + byte + recorded[1][place + cut :]
    totals = replayed(recorded[0] + changed + b"\n" + recorded[2], "a.jsonl", tmp_path, policies, recorders)
    assert totals is not None
    assert totals.events >= 2
    extra = sum(bool(line.strip()) for line in (changed + b"\n").splitlines())
    assert totals.events + totals.others + totals.skipped <= 2 + extra


@BOUNDED
@given(place=st.integers(0, 10_000), byte=st.binary(min_size=1, max_size=4), packed=st.sampled_from([".gz", ".zst"]))
def test_a_packed_file_that_was_changed_is_read_or_refused(
    place: int,
    byte: bytes,
    packed: str,
    tmp_path: Path,
    policies: list[CompiledPolicy],
    recorders: dict[str, events.Declarations],
    recorded: list[bytes],
) -> None:
    pack = gzip.compress if packed == ".gz" else corpus.zstd.compress
    content = pack(b"".join(recorded))
    place %= len(content)
    totals = replayed(content[:place] + byte + content[place + len(byte) :], f"a.jsonl{packed}", tmp_path, policies, recorders)
    assert totals is None or totals.events <= len(recorded)


@BOUNDED
@given(content=st.lists(lines, min_size=1, max_size=3))
def test_a_case_is_read_or_refused_at_its_line(content: list[bytes], tmp_path: Path) -> None:
    text = b"\n".join(line.replace(b"\n", b" ") for line in content)
    (tmp_path / "a.jsonl").write_bytes(text)
    recorder = documents.load(CORPUS / "broad" / "policies" / "b-sec-file-open.yaml").data

    def read() -> Iterator[int]:
        for invocation in corpus.read(tmp_path / "a.jsonl", recorder, EXECUTABLES):
            yield invocation.source[1]

    try:
        numbers = list(read())
    except Refused as error:
        (problem,) = error.problems
        assert 1 <= problem.line <= len(content)
    else:
        assert numbers == sorted(set(numbers))
