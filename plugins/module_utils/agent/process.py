# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The agent's process, from /proc."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import List, Optional

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


def read_text(path: str) -> str:
    """A file's text; empty when it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def agent_pid(pid_file: str) -> Optional[int]:
    """The running agent's process id; None when its pid file is missing or stale."""
    text = read_text(pid_file).strip()
    return int(text) if text.isdigit() and os.path.isdir("/proc/{0}".format(text)) else None


def process_age(pid: int) -> Optional[float]:
    """Seconds since a process started."""
    fields, uptime = stat_fields(pid), read_text("/proc/uptime").split()
    return float(uptime[0]) - int(fields[19]) / CLOCK_TICKS if fields and uptime else None


@dataclass(frozen=True)
class Life:
    """One run of the agent. ``since``: its start by the wall clock. Both are empty when no process is known."""

    id: str = ""
    since: Optional[float] = None


def agent_life(pid_file: str) -> Life:
    """The run of the agent that goes on now."""
    pid = agent_pid(pid_file)
    fields, age = (stat_fields(pid), process_age(pid)) if pid else ([], None)
    if not fields or age is None:
        return Life()
    return Life("{0}/{1}".format(read_text("/proc/sys/kernel/random/boot_id").strip(), fields[19]), time.time() - age)


def stat_fields(pid: int) -> List[str]:
    """Fields of /proc/PID/stat after the program's name: [11] user time, [12] system time, [19] start time, in ticks."""
    return read_text("/proc/{0}/stat".format(pid)).rpartition(")")[2].split()
