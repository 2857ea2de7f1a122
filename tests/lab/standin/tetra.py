# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The client ``tetra``: commands, output and exit codes of v1.7.0 as recorded."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from typing import Any, NoReturn

from . import wire
from .root import Root

_WITH_VALUE = {
    "--server-address": "server-address",
    "--timeout": "timeout",
    "--retries": "retries",
    "--max-recv-size": "max-recv-size",
    "-m": "mode",
    "--mode": "mode",
    "-n": "namespace",
    "--namespace": "namespace",
    "-o": "output",
    "--output": "output",
    "--policy-names": "policy-names",
}
_SWITCHES = {"-d": "debug", "--debug": "debug", "-s": "server", "--server": "server", "-b": "build", "--build": "build"}
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_COLUMNS = "ID NAME STATE FILTERID NAMESPACE SENSORS KERNELMEMORY MODE NPOST NENFORCE NMONITOR".split()
_ENFORCED = ("signal", "override", "notify_enforcer", "set")


class _Failed(Exception):
    """The call failed; the text is a gRPC status as the client prints it."""


def _fail(message: str, code: int = 1) -> NoReturn:
    sys.stderr.write(message + "\n")
    raise SystemExit(code)


def duration(text: str) -> float:
    """A Go duration such as ``1m30s`` in seconds."""
    parts = re.findall(r"(\d+(?:\.\d+)?)(ns|us|ms|s|m|h)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        _fail(f'Error: invalid argument "{text}" for "--timeout" flag: time: invalid duration "{text}"')
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def _parse(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    words: list[str] = []
    options: dict[str, str] = {}
    rest = iter(arguments)
    for one in rest:
        name, given, value = one.partition("=")
        if name in _WITH_VALUE:
            options[_WITH_VALUE[name]] = value if given else next(rest, "")
        elif name in _SWITCHES:
            options[_SWITCHES[name]] = "true"
        elif one.startswith("-"):
            _fail(f"Error: unknown flag: {one}")
        else:
            words.append(one)
    return words, options


class Client:
    """One run of ``tetra``. The time limit covers the whole call; what it asked for goes on in the agent."""

    def __init__(self, options: dict[str, str]) -> None:
        self.root = Root()
        self.options = options
        self.deadline = time.monotonic() + duration(options.get("timeout", "30s"))
        self.version = "v" + self.root.settings().get("version", wire.VERSION)

    def address(self) -> str:
        if self.options.get("server-address"):
            return self.root.address(self.options["server-address"])
        try:
            with open(self.root.path(f"{wire.RUN_DIR}/tetragon-info.json"), encoding="utf-8") as file:
                return self.root.address(json.load(file)["server_address"])
        except (OSError, ValueError, KeyError):
            return wire.DEFAULT_ADDRESS

    def open(self, method: str, parameters: dict[str, Any]) -> Any:
        """A connection on which the request has been sent."""
        left = max(self.deadline - time.monotonic(), 0.001)
        connection = wire.connect(self.address(), left)
        wire.send(connection, {"method": method, **parameters})
        return connection

    def call(self, method: str, **parameters: Any) -> Any:
        """The answer's result. Raises _Failed."""
        try:
            answer = wire.receive(self.open(method, parameters))
        except wire.Unreachable as error:
            raise _Failed(f"rpc error: code = Unavailable desc = {error}") from None
        except TimeoutError:
            raise _Failed("rpc error: code = DeadlineExceeded desc = context deadline exceeded") from None
        except OSError:
            answer = None
        if answer is None:
            raise _Failed("rpc error: code = Unavailable desc = error reading from server: EOF")
        if "error" in answer:
            raise _Failed(f"rpc error: code = Unknown desc = {answer['error']}")
        return answer["result"]

    def run(self, what: str, method: str, **parameters: Any) -> Any:
        """``call``, with a failure printed as ``Error: failed to <what>: ...`` and exit code 1."""
        try:
            return self.call(method, **parameters)
        except _Failed as error:
            _fail(f"Error: {what}: {error}")


def _bytes(number: int) -> str:
    size, unit = float(number), "B"
    for larger in ("kB", "MB", "GB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{number} B" if unit == "B" else f"{size:.2f} {unit}"


def _row(policy: dict[str, Any]) -> list[str]:
    counters = {name: int(value) for name, value in policy.get("stats", {}).get("action_counters", {}).items()}
    return [
        policy["id"],
        policy["name"],
        policy["state"].removeprefix("TP_STATE_").lower(),
        policy.get("filter_id", "0"),
        policy.get("namespace", "(global)"),
        ",".join(policy.get("sensors", ())),
        _bytes(int(policy.get("kernel_memory_bytes", 0))),
        policy.get("mode", "TP_MODE_UNKNOWN").removeprefix("TP_MODE_").lower(),
        str(counters.get("post", 0)),
        str(sum(counters.get(name, 0) for name in _ENFORCED)),
        str(sum(counters.get("monitor_" + name, 0) for name in _ENFORCED)),
    ]


def _table(policies: list[dict[str, Any]]) -> str:
    rows = [_COLUMNS, *map(_row, sorted(policies, key=lambda one: int(one["id"])))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "".join("   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n" for row in rows)


def _count(words: list[str], wanted: int) -> list[str]:
    if len(words) != wanted:
        _fail(f"Error: accepts {wanted} arg(s), received {len(words)}")
    return words


def _policies(client: Client, words: list[str]) -> None:
    command, words, options = words[0] if words else "", words[1:], client.options
    mode, namespace = options.get("mode", ""), options.get("namespace", "")
    if command == "add":
        (file,) = _count(words, 1)
        try:
            with open(file, encoding="utf-8") as source:
                text = source.read()
        except OSError as error:
            _fail(f"Error: failed to read yaml file {file}: open {file}: {os.strerror(error.errno or 0).lower()}")
        if mode not in ("", "enforce", "monitor"):
            _fail(f'Error: failed to apply mode "{mode}" to yaml file {file}: invalid mode: "{mode}"')
        client.run("failed to add tracing policy", "add", text=text, mode=mode)
        print(f'tracing policy "{file}" added')
    elif command in ("delete", "enable", "disable"):
        (name,) = _count(words, 1)
        client.run(f"failed to {command} tracing policy", command, name=name, namespace=namespace)
        print(f'tracing policy "{name}" {command.removesuffix("e")}ed')
    elif command == "set-mode":
        name, mode = _count(words, 2)
        if mode not in ("enforce", "monitor"):
            _fail(f'Error: invalid mode "{mode}"')
        client.run(f'failed set mode to "{mode}" tracing policy', "set-mode", name=name, namespace=namespace, mode=mode)
        print(f'tracing policy "{name}" set to mode "{mode}"')
    elif command == "list":
        output = options.get("output", "text")
        if output not in ("text", "json"):
            _fail(f'Error: invalid value for "output" flag: {output}')
        found = client.run("failed to list tracing policies", "list")
        sys.stdout.write(json.dumps(found, separators=(",", ":")) + "\n" if output == "json" else _table(found.get("policies", [])))
    else:
        print("Manage tracing policies")


def _info(client: Client) -> None:
    print(json.dumps(client.run("failed to retrieve info", "info"), separators=(",", ":")))


def _probe(client: Client) -> None:
    found = {**wire.PROBES, **client.root.settings().get("kernel_features", {})}
    if not found["fmodret_syscall"]:
        sys.stderr.write(wire.NO_FMODRET_SYSCALL + "\n")
    sys.stdout.write("".join(f"{name}: {str(found[name]).lower()}\n" for name in wire.PROBES))


def _status(client: Client) -> None:
    try:
        client.call("health")
        print("Health Status: running")
    except _Failed as error:
        print(f"status error: {error}")


def _version(client: Client) -> None:
    print(f"CLI version: {client.version}")
    if "build" in client.options:
        print("GoVersion: go1.26.8")
    if "server" in client.options:
        try:
            print(f"Server version: {client.call('version')}")
        except _Failed as error:
            quoted = str(error).replace('"', '\\"')
            sys.stderr.write(f'level=error msg="error retrieving server version" error="{quoted}"\n')
            _fail("panic: runtime error: invalid memory address or nil pointer dereference", 2)


def _events(client: Client) -> None:
    try:
        stream = client.open("events", {})
    except wire.Unreachable as error:
        _fail(f"Error: failed to call GetEvents: rpc error: code = Unavailable desc = {error}")
    stream.settimeout(None)
    names = set(client.options.get("policy-names", "").split(",")) - {""}
    with stream.makefile("r", encoding="utf-8") as lines:
        for line in lines:
            if not names or any(isinstance(body, dict) and body.get("policy_name") in names for body in json.loads(line).values()):
                sys.stdout.write(line)
                sys.stdout.flush()


_COMMANDS = {"info": _info, "probe": _probe, "status": _status, "version": _version, "getevents": _events}


def main(arguments: list[str]) -> None:
    words, options = _parse(arguments)
    client = Client(options)
    command = words[0] if words else ""
    if command in ("tracingpolicy", "tp"):
        _policies(client, words[1:])
    elif words[:2] == ["loglevel", "get"]:
        print(f"Current log level: {client.run('failed to get log level', 'loglevel')}")
    elif command in _COMMANDS:
        _COMMANDS[command](client)
    else:
        _fail(f'Error: unknown command "{command}" for "tetra"\nRun \'tetra --help\' for usage.')
