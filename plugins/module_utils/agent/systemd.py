# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The service manager of a host, asked by its own programs."""

from __future__ import annotations

import subprocess
import time

_LINES = 15


class ServiceError(Exception):
    """A unit cannot be started or stopped; the text says why, in systemd's and the agent's words."""


def run(*words: str, timeout: float = 300) -> str:
    """Output of one call of a program. Raises ServiceError with its words."""
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=timeout, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        raise ServiceError("{0}: {1}".format(" ".join(words[:2]), error)) from None
    if done.returncode != 0:
        raise ServiceError("{0}: {1}".format(" ".join(words), done.stderr.decode("utf-8", "replace").strip()))
    return done.stdout.decode("utf-8", "replace").strip()


def attempt(*words: str) -> str:
    """Output of one call that may fail: what it was for goes on without it."""
    try:
        return run(*words)
    except ServiceError:
        return ""


def last_words(unit: str, since: float) -> str:
    """What a unit has said of its failure since then, to follow a message; empty when it said nothing."""
    command = ["journalctl", "--unit", unit, "--since", "@{0}".format(int(since)), "--output", "cat", "--no-pager"]
    lines = attempt(*command, "--lines", str(_LINES)).splitlines()
    telling = [line for line in lines if "level=error" in line or "Error:" in line or "not ready" in line] or lines[-3:]
    return ": " + " | ".join(telling[-3:]) if telling else ""


class Systemd:
    """Units of this host. ``start_timeout``: seconds within which one must be ready."""

    def __init__(self, start_timeout: int = 960) -> None:
        self.start_timeout = start_timeout

    def start(self, unit: str) -> None:
        """Start and wait until it is ready. Raises ServiceError."""
        self._up("start", unit)

    def restart(self, unit: str) -> None:
        """Stop and start in one step, and wait until it is ready. Raises ServiceError."""
        self._up("restart", unit)

    def _up(self, verb: str, unit: str) -> None:
        since = time.time()
        self.forget(unit)
        try:
            run("systemctl", verb, unit, timeout=self.start_timeout)
        except ServiceError as error:
            raise ServiceError("{0}{1}".format(error, last_words(unit, since))) from None

    def stop(self, unit: str) -> None:
        run("systemctl", "stop", unit, timeout=180)
        self.forget(unit)

    def kill(self, unit: str) -> None:
        """End the unit's main process as a crash would."""
        run("systemctl", "kill", "--signal=KILL", "--kill-who=main", unit)

    def running(self, unit: str) -> bool:
        """Whether the unit of exactly this name is anything but down; one that waits to be started again counts.

        The name of an adopted agent's unit becomes another name of our own unit, which this must not be taken for.
        """
        shown = run("systemctl", "show", "--property=Id,ActiveState", unit).splitlines()
        return "Id=" + unit in shown and not {"ActiveState=inactive", "ActiveState=failed"} & set(shown)

    def reload(self) -> None:
        run("systemctl", "daemon-reload")

    def forget(self, unit: str) -> None:
        """Drop what systemd remembers of a unit that failed, also one that is gone."""
        attempt("systemctl", "reset-failed", unit)
