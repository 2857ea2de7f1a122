# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Environments and observations to plan and judge with."""

from __future__ import annotations

import datetime
from typing import Any

EPOCH = datetime.datetime(2026, 11, 22, 9, 0, tzinfo=datetime.UTC)


def observation(
    at: float = 0.0,
    *,
    policies: list[dict[str, Any]] | None = None,
    started: float = 100.0,
    boot: str = "boot-1",
    cpu: float = 10.0,
    memory: int = 70 << 20,
    missed: float = 0.0,
    exported: tuple[float, float] = (100.0, 50_000.0),
    counters: bool = True,
    answers: bool = True,
    failed_units: list[str] | None = None,
    commands: list[dict[str, Any]] | None = None,
    leftover: str = "",
    events: dict[str, float] | None = None,
) -> dict[str, Any]:
    """An observation made ``at`` seconds after a fixed moment, of an agent as healthy as the arguments leave it."""
    return {
        "format": "apiary.dev/observation/1",
        "time": (EPOCH + datetime.timedelta(seconds=at)).isoformat(),
        "host": {"kernel": "6.1.0-50-amd64", "architecture": "x86_64", "os": "debian", "os_version": "12", "boot_id": boot, "cpus": 2},
        "agent": {
            "answers": answers,
            "version": "1.7.0" if answers else None,
            "pid": 400 if answers else None,
            "started": started,
            "age_seconds": 1000.0 + at,
            "cpu_seconds": cpu,
            "memory_bytes": memory,
            "flags": {"export-filename": "/var/log/tetragon/tetragon.log", "metrics-server": "127.0.0.1:2112"} if answers else None,
            "probes": {"fmodret": True, "signal": True, "lsm": True} if answers else None,
        },
        "policies": (policies or []) if answers else None,
        "pins": {"directory": "/sys/fs/bpf/tetragon", "present": True, "leftover": leftover, "folders": []},
        "service": None,
        "alarm": None,
        "troubles": [],
        "counters": {
            "events_missed": missed,
            "events_lost_ringbuf": 0.0,
            "events_lost_queue": 0.0,
            "events_overflowed": 0.0,
            "probes_missed": 0.0,
            "events_exported": exported[0],
            "bytes_exported": exported[1],
            "policy_events": events or {},
        }
        if counters
        else None,
        "bundle": {"digest": "", "pending": False},
        "health": {"failed_units": failed_units or [], "commands": commands or [], "urls": []},
        "problems": [] if counters and answers else ["counters: http://127.0.0.1:2112/metrics: connection refused"],
    }


def loaded(name: str, mode: str = "monitor", **changes: Any) -> dict[str, Any]:
    """One policy in an observation."""
    base = {
        "name": name,
        "namespace": "",
        "managed": True,
        "state": "enabled",
        "mode": mode,
        "error": "",
        "replaced": [],
        "posted": 0,
        "enforced": 0,
        "would_enforce": 0,
        "kernel_memory_bytes": 0,
        "pinned_links": {},
    }
    return {**base, **changes}


def expected(name: str, mode: str = "monitor", budget: int = 10, hooks: list[str] | None = None) -> dict[str, Any]:
    """One policy as a bundle describes it."""
    return {"loaded": name, "mode": mode, "namespace": None, "event_budget": budget, "hooks": hooks or ["kprobes:tcp_connect"]}
