# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The example policies of the agent's own project, where they are at hand: all compile, and most can be decided.

APIARY_UPSTREAM names a directory with them (``v1.7.0/examples``); without it nothing here runs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay import filters
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.compile import CompiledPolicy, recorder
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.records import (
    Argument,
    Declared,
    FilePath,
    Hook,
    Invocation,
    Opaque,
    Pod,
    Process,
    Socket,
    Value,
)

EXAMPLES = Path(os.environ.get("APIARY_UPSTREAM", "")) / "v1.7.0" / "examples"
pytestmark = pytest.mark.skipif(
    not os.environ.get("APIARY_UPSTREAM") or not EXAMPLES.is_dir(), reason="APIARY_UPSTREAM names no directory with v1.7.0/examples"
)

# Why a policy cannot be decided even by a recording that holds all that it can hold.
UNDECIDABLE = {
    "fd_install_cap_changes.yaml": "once capabilities changed, whether an event of the agent has told it",
    "list-generated-ftrace.yaml": "which functions the agent's list holds is decided on the machine",
    "list-syscalls-tracepoint.yaml": "the agent refuses it: a list as value needs a syscall64",
    "sys_clock_settime.yaml": "the agent misreads the second entry of matchPIDs",
    "sys_pivot_root.yaml": "the agent misreads the second entry of matchPIDs",
    "write.yaml": "the pids of ancestors inside their namespace, which no event holds",
}
HOST = Process(
    "/usr/bin/x",
    executable="/usr/bin/x",
    parent_executable="/usr/bin/bash",
    ancestors=("/usr/bin/bash", "/usr/lib/systemd/systemd"),
    pid=700,
    namespace_pid=0,
    namespaces={
        key: (number, True) for number, key in enumerate(("uts", "ipc", "mnt", "pid", "net", "time", "cgroup", "user"), 4026531830)
    },
    capabilities={"effective": 1 << 21, "permitted": 1 << 21, "inheritable": 0},
    current=True,
    in_container=False,
    ancestor_pids=(600, 1),
)
INSIDE = Process(
    "/usr/bin/x",
    executable="/usr/bin/bash",
    parent_executable="/usr/bin/runc",
    ancestors=("/usr/bin/runc",),
    pid=900,
    namespace_pid=70,
    namespaces={key: (number + 500, False) for key, (number, _unused) in HOST.namespaces.items()},
    capabilities={"effective": 0, "permitted": 0, "inheritable": 0},
    current=True,
    in_container=True,
    pod=Pod("shop", {"app": "cart"}, "main", "docker.io/library/cart"),
    ancestor_pids=(800, 1),
)
PACKETS = [
    Socket("AF_INET", "SOCK_STREAM", "IPPROTO_TCP", "TCP_LISTEN", "127.0.0.1", "8.8.8.8", 80, 53),
    Socket("AF_INET6", "SOCK_DGRAM", "IPPROTO_UDP", "TCP_CLOSE", "::1", "2001:db8::1", 40000, 443),
]


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every example by its file's name."""
    for file in sorted(EXAMPLES.rglob("*.y*ml")):
        text = file.read_text(encoding="utf-8").replace("${PODCIDR}", "10.0.0.0/16").replace("${SERVICECIDR}", "10.96.0.0/12")
        for document in yaml.safe_load_all(text):
            if isinstance(document, dict) and str(document.get("kind", "")).startswith("TracingPolicy"):
                yield file.name, document


def values(type_: str) -> list[Value]:
    """What a complete recording may hold of a type."""
    if type_ in filters.INTEGERS or type_ in filters.CAPABILITY_TYPES:
        return [0, 1, 5, 33, (1 << 21) - 1]
    if type_ in filters.PATH_TYPES:
        return [FilePath("/etc/passwd", "-rw-r--r--"), FilePath("/tmp/x.so", "-rwxr-xr-x"), FilePath("", "drwxr-xr-x")]
    if type_ in filters.STRING_TYPES:
        return ["/etc/passwd", "eth0", ""]
    return [*PACKETS] if type_ in filters.SOCKET_TYPES else [Opaque(type_)]


def calls(document: dict[str, Any]) -> Iterator[Invocation]:
    """Calls of every hook as a recording under the policy's own declarations holds them."""
    compiled = CompiledPolicy(document)
    declared = recorder(document)
    lists = document["spec"].get("lists") or ()
    selectors = [one for raw in document["spec"].get("kprobes") or () for one in raw.get("selectors") or ()]
    listed = sorted({file for one in selectors for raw in one.get("matchBinaries") or () for file in raw["values"]})[:1]
    generated = {"generated_syscalls": "sys_dup", "generated_ftrace": "ksys_read"}
    functions = [Hook("kprobe", generated[one["type"]]) for one in lists if one.get("type") in generated]
    for hook in (*compiled.hooks, *functions):
        args, data = declared.get(hook, ((), ()))
        for row in zip_longest(*(values(one.type) for one in (*args, *data))) if args or data else [()]:
            held = [_held(one, value) for one, value in zip((*args, *data), row, strict=True)]
            for process in (HOST, INSIDE, *(replace(HOST, executable=one) for one in listed)):
                for returned in (0, -1):
                    yield Invocation(hook, process, held[: len(args)], held[len(args) :], returned=returned)


def _held(one: Declared, value: Value | None) -> Argument:
    return Argument(one, values(one.type)[0] if value is None else value)


def test_every_example_compiles() -> None:
    assert sum(1 for _unused in documents()) >= 80
    for name, document in documents():
        assert CompiledPolicy(document).name, name


def test_the_right_recording_decides_all_but_those_that_are_known() -> None:
    lines, undecided, total, empty = [], set(), 0, 0
    for name, document in documents():
        total += 1
        compiled = CompiledPolicy(document)
        verdicts = [one for call in calls(document) for one in compiled.evaluate(call)]
        empty += not verdicts
        reasons = sorted({reason for one in verdicts for reason in one.fires.reasons})
        if reasons:
            undecided.add(name)
            lines.append(f"{name}: {UNDECIDABLE.get(name, '?')} ({'; '.join(reasons)})")
    share = (total - len(undecided)) / total
    print(f"{total} examples, {total - len(undecided)} decided by the right recording ({share:.0%}), {empty} of them without hooks")
    print("\n".join(lines))
    assert undecided == set(UNDECIDABLE)
