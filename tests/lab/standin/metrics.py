# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The agent's metrics page, for the families that gates read: names, labels and zeroes as on v1.7.0's page.

A counter with labels is absent until it counts; bpf_missed_events_total in particular.
"""

from __future__ import annotations

import contextlib
import resource
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

Labels = tuple[tuple[str, str], ...]
Sample = tuple[Labels, float]
Family = tuple[str, str, Iterable[Sample]]


class Counts:
    """What the agent counts itself. Label sets of v1.7.0; binary alone is filled of those that it may fill."""

    def __init__(self) -> None:
        self.events: Counter[tuple[str, str]] = Counter()
        self.policy_events: Counter[tuple[str, str, str]] = Counter()
        self.operations: Counter[int] = Counter()
        self.received = 0
        self.dropped: Counter[int] = Counter()
        self.overflowed = 0


def one(value: float) -> list[Sample]:
    return [((), value)]


def labelled(name: str, values: Mapping[str, float]) -> list[Sample]:
    return [(((name, label),), value) for label, value in sorted(values.items())]


def events_by_binary(counts: Counts) -> Iterable[Sample]:
    for (binary, kind), value in sorted(counts.events.items()):
        yield (("binary", binary), ("namespace", ""), ("node_name", ""), ("pod", ""), ("type", kind), ("workload", "")), value


def events_by_policy(counts: Counts) -> Iterable[Sample]:
    for (binary, hook, policy), value in sorted(counts.policy_events.items()):
        where = (("binary", binary), ("hook", hook), ("namespace", ""), ("node_name", ""), ("pod", ""))
        yield (*where, ("policy", policy), ("workload", "")), value


def missed(counts: Mapping[int, int]) -> Iterable[Sample]:
    for operation, value in sorted(counts.items()):
        yield (("error", "EAGAIN"), ("msg_op", str(operation))), value


def process() -> Iterable[Family]:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    yield "process_cpu_seconds_total", "counter", one(round(usage.ru_utime + usage.ru_stime, 2))
    yield "process_resident_memory_bytes", "gauge", one(pages * resource.getpagesize())


def page(families: Iterable[Family]) -> str:
    lines = []
    for name, kind, samples in families:
        shown = [f"{name}{_labels(labels)} {value}" for labels, value in samples]
        if shown:
            lines += [f"# TYPE {name} {kind}", *shown]
    return "\n".join(lines) + "\n"


def _labels(labels: Labels) -> str:
    text = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels)
    return f"{{{text}}}" if text else ""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def serve(listener: socket.socket, make: Callable[[], str]) -> None:
    """Answer every request with the page, one after the other."""
    while True:
        connection, _unused = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.settimeout(5)
            request = b""
            while b"\r\n\r\n" not in request:
                chunk = connection.recv(4096)
                if not chunk:
                    break
                request += chunk
            body = make().encode()
            head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8; escaping=underscores\r\n"
            connection.sendall(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
