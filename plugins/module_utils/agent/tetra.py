# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The agent's command line client: called with a time limit, its answers parsed, its result never trusted alone.

Facts of tetra v1.7: ``--timeout`` bounds the whole call, and an add that outlasts it goes on in the agent; 64-bit
numbers are JSON strings; members that are zero or empty are left out; the order of policies changes from call to call.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

Key = Tuple[str, str]
MODES = {"TP_MODE_ENFORCE": "enforce", "TP_MODE_MONITOR": "monitor", "TP_MODE_MONITOR_ONLY": "monitor_only"}
STATES = {
    "TP_STATE_ENABLED": "enabled",
    "TP_STATE_DISABLED": "disabled",
    "TP_STATE_LOAD_ERROR": "load_error",
    "TP_STATE_ERROR": "error",
    "TP_STATE_LOADING": "loading",
    "TP_STATE_UNLOADING": "unloading",
    "TP_STATE_SKIPPED": "skipped",
    "TP_STATE_PARTIALLY_ENABLED": "partially_enabled",
}
_GRACE = 5
_SEARCH = ("/usr/local/bin", "/usr/bin", "/usr/local/sbin", "/usr/sbin")


class TetraError(Exception):
    """The client failed. ``rc`` is its exit code, None when it could not be run or had to be killed."""

    def __init__(self, message: str, rc: Optional[int] = None) -> None:
        super().__init__(message)
        self.rc = rc


class TetraMissing(TetraError):
    """There is no client program to run."""


@dataclass(frozen=True)
class LoadedPolicy:
    """One policy as the running agent lists it."""

    name: str
    namespace: str = ""
    state: str = "unknown"
    mode: str = "unknown"
    error: str = ""
    sensors: Tuple[str, ...] = ()
    kernel_memory_bytes: int = 0
    counters: Mapping[str, int] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        return (self.namespace, self.name)

    @property
    def enforces(self) -> bool:
        return self.state == "enabled" and self.mode == "enforce"


class Tetra:
    """Calls of ``tetra`` against one agent. ``timeout`` is in seconds, per call."""

    def __init__(self, program: str, server_address: str = "", timeout: int = 120) -> None:
        self.program = program
        self.server_address = server_address
        self.timeout = timeout

    def call(self, *arguments: str) -> str:
        """Standard output of one call. Raises TetraError with the agent's own words."""
        command = self.command(self.timeout)
        try:
            done = subprocess.run(
                command + list(arguments),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                timeout=self.timeout + _GRACE,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise self._late(arguments[0]) from None
        except OSError as error:
            raise TetraMissing("tetra cannot be run ({0}): {1}".format(command[0], error.strerror)) from None
        if b"code = DeadlineExceeded" in done.stderr:
            raise self._late(arguments[0], done.returncode)
        if done.returncode != 0:
            raise TetraError(clean_error(done.stderr.decode("utf-8", "replace")), done.returncode)
        return done.stdout.decode("utf-8", "replace")

    def command(self, timeout: int) -> List[str]:
        """The client with the options that every call has. Raises TetraMissing."""
        address = ["--server-address", self.server_address] if self.server_address else []
        return [self._path(), "--timeout", "{0}s".format(timeout), *address]

    def _late(self, what: str, rc: Optional[int] = None) -> TetraError:
        return TetraError("tetra {0}: no answer within {1} seconds: the agent hangs or is overloaded".format(what, self.timeout), rc)

    def _path(self) -> str:
        if os.sep in self.program:
            found = [self.program] if os.access(self.program, os.X_OK) else []
        else:
            places = os.environ.get("PATH", "").split(os.pathsep) + list(_SEARCH)
            found = [path for path in (os.path.join(place, self.program) for place in places) if os.access(path, os.X_OK)]
        if not found:
            raise TetraMissing(
                "no program {0!r} here: install the Tetragon agent first, or say where its client is (option tetra)".format(self.program)
            )
        return found[0]

    def policies(self) -> List[LoadedPolicy]:
        """All policies the agent knows, sorted by name."""
        return parse_policies(self.call("tracingpolicy", "list", "-o", "json"))

    def info(self) -> Dict[str, Any]:
        """Version, probes and effective configuration of the running agent (v1.7 and later)."""
        return parse_info(self.call("info"))

    def add(self, file: str, mode: str) -> None:
        self.call("tracingpolicy", "add", file, "--mode", mode)

    def delete(self, key: Key) -> None:
        self.call("tracingpolicy", "delete", key[1], *_namespace(key))

    def set_mode(self, key: Key, mode: str) -> None:
        self.call("tracingpolicy", "set-mode", key[1], mode, *_namespace(key))


def _namespace(key: Key) -> Sequence[str]:
    return ("--namespace", key[0]) if key[0] else ()


def clean_error(stderr: str) -> str:
    """The agent's reason out of the client's error output, without the wrapping of transport and usage."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("Error:")] or lines[-1:] or ["no reason given"]
    text = re.sub(r"^Error:\s*", "", errors[0])
    return re.sub(r"rpc error: code = (?:Unknown|InvalidArgument) desc = ", "", text)


def parse_policies(text: str) -> List[LoadedPolicy]:
    """The output of ``tetra tracingpolicy list -o json``. Raises TetraError when it is not that."""
    try:
        raw = json.loads(text).get("policies", [])
        return sorted((_policy(one) for one in raw), key=lambda policy: policy.key)
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise TetraError("tetra's list of policies cannot be read: {0}".format(error)) from None


def _policy(raw: Mapping[str, Any]) -> LoadedPolicy:
    state = raw.get("state", "")
    mode = raw.get("mode", "")
    counters = raw.get("stats", {}).get("action_counters", {})
    return LoadedPolicy(
        name=raw["name"],
        namespace=raw.get("namespace", ""),
        state=STATES.get(state, state or "unknown"),
        mode=MODES.get(mode, mode or "unknown"),
        error=raw.get("error", ""),
        sensors=tuple(raw.get("sensors", ())),
        kernel_memory_bytes=int(raw.get("kernel_memory_bytes", 0)),
        counters={name: int(value) for name, value in counters.items()},
    )


def parse_info(text: str) -> Dict[str, Any]:
    """The output of ``tetra info``: a JSON line, possibly with log lines around it."""
    for line in text.splitlines():
        if line.startswith("{"):
            try:
                raw = json.loads(line)
            except ValueError:
                continue
            if isinstance(raw, dict) and "Version" in raw:
                return {"version": raw["Version"], "probes": raw.get("Probes") or {}, "flags": raw.get("Conf") or {}}
    raise TetraError("tetra info printed no information about the agent")
