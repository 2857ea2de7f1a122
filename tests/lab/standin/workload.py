# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""A believable load: harmless and doubtful acts at a fixed rate on any number of hosts, from one process.

STANDIN_COLLECTION=<checkout> PYTHONPATH=<checkout>/tests/lab python3 -m standin.workload --rate 5 ROOT...
"""

from __future__ import annotations

import argparse
import heapq
import resource
import signal
import time
from collections.abc import Sequence

from . import collection

collection.link()

from .kernel import Caller, Kernel  # noqa: E402 - the collection has to be importable first

_BINARIES = ("/usr/bin/cat", "/usr/sbin/sshd", "/usr/bin/python3.11", "/usr/sbin/cron", "/usr/bin/curl", "/usr/sbin/nginx")
_MIX: tuple[tuple[str, ...], ...] = (
    *(("read", path) for path in ("/etc/passwd", "/etc/hosts", "/etc/resolv.conf", "/etc/ssl/openssl.cnf", "/etc/ld.so.cache")),
    *(("open", f"/etc/app/{number}.conf") for number in range(10)),
    *(("write", f"/var/log/app/{number}.log") for number in range(3)),
    *(("exec", path) for path in ("/usr/bin/ls", "/usr/bin/date", "/usr/bin/sed", "/usr/bin/grep")),
    *(("connect", f"10.0.{number}.7", "443") for number in range(5)),
    ("write", "/tmp/scratch"),
    ("rename", "/var/lib/app/state.new", "/var/lib/app/state"),
    ("unlink", "/tmp/scratch"),
)


def run(roots: Sequence[str], rate: float, seconds: float = 0.0) -> int:
    """``rate`` acts per second on each root, for ``seconds`` (0: until SIGTERM). Returns the number of acts."""
    stopped = False

    def stop(number: int, frame: object) -> None:
        nonlocal stopped
        stopped = True

    if not seconds:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
    _unused, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # every kernel keeps its maps open
    kernels = [Kernel(root) for root in roots]
    pause, start = 1.0 / rate, time.monotonic()
    due = [(start + pause * index / len(kernels), index) for index in range(len(kernels))]
    done = 0
    while not stopped and not (seconds and time.monotonic() - start >= seconds):
        when, index = heapq.heappop(due)
        time.sleep(max(0.0, when - time.monotonic()))
        turn = done // len(kernels) + index  # every host sees the whole mix, each from another place on
        caller = Caller(binary=_BINARIES[turn % len(_BINARIES)], parent="/usr/lib/systemd/systemd", pid=1000 + done % 30000)
        kernels[index].act(*_MIX[turn % len(_MIX)], caller=caller)
        heapq.heappush(due, (when + pause, index))
        done += 1
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description="Attempt a mix of acts on hosts of the stand-in.")
    parser.add_argument("--rate", type=float, default=5.0, help="acts per second and host")
    parser.add_argument("--seconds", type=float, default=0.0, help="how long; until SIGTERM when not given")
    parser.add_argument("roots", nargs="+", metavar="ROOT")
    options = parser.parse_args()
    print(run(options.roots, options.rate, options.seconds))


if __name__ == "__main__":
    main()
