# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""One host's observation: what it truthfully runs, as one document.

A part that cannot be read is null, and ``problems`` says why: nothing is guessed, and nothing missing looks like zero.
"""

from __future__ import annotations

import datetime
import http.client
import json
import os
import platform
import re
import subprocess
import urllib.error
from typing import Any, Dict, List, Mapping, Optional, Sequence

from ansible.module_utils.urls import open_url

from ansible_collections.apiary.tetragon.plugins.module_utils.agent import bpf, break_glass, metrics
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.binaries import survey
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.pins import PinDirectory
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.process import (
    CLOCK_TICKS,
    Life,
    agent_life,
    agent_pid,
    process_age,
    read_text,
    stat_fields,
)
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.state import StateFile
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.tetra import LoadedPolicy, Tetra, TetraError

FORMAT = "apiary.dev/observation/1"
FLAGS = (
    "bpf-dir",
    "bpf-lib",
    "enable-policy-filter",
    "export-filename",
    "export-rate-limit",
    "keep-sensors-on-exit",
    "metrics-server",
    "parents-map-enabled",
    "release-pinned-bpf",
    "server-address",
    "tracing-policy-dir",
)
ENFORCED = ("signal", "override", "notify_enforcer", "set")
_CHECK_SECONDS = 20


def observe(
    tetra: Tetra,
    pins: PinDirectory,
    state: StateFile,
    pid_file: str,
    failed_units: bool = False,
    commands: Sequence[str] = (),
    urls: Sequence[str] = (),
) -> Dict[str, Any]:
    """The observation of this host. Never raises for an agent that is absent or silent: that is an observation too."""
    problems: List[str] = []
    agent = _agent(tetra, pid_file, problems)
    policies = _policies(tetra, pins, state, agent_life(pid_file), problems) if agent["answers"] else None
    counters = _counters(agent, problems)
    service, alarm = _service(pins.path), _alarm(pins.path, state.directory)
    kept = sorted({*pins.policies(), *(PinDirectory(pins.leftover).policies() if pins.leftover else ())})
    return {
        "format": FORMAT,
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(),
        "host": _host(),
        "agent": agent,
        "policies": policies,
        "pins": {"directory": pins.path, "present": pins.present, "leftover": pins.leftover, "folders": pins.policies()},
        "service": service,
        "alarm": alarm,
        "troubles": [*held_back(state.directory), *troubles(agent["answers"], kept, service, alarm), *idle(policies or ())],
        "counters": counters,
        "bundle": _bundle(state, problems),
        "health": {
            "failed_units": _failed_units(problems) if failed_units else None,
            "commands": [_command(command) for command in commands],
            "urls": [_url(url) for url in urls],
        },
        "problems": problems,
    }


def held_back(state_directory: str) -> List[str]:
    """What a person or an interrupted run has left in an unusual state, in words."""
    found, held = [], break_glass.record(state_directory)
    if held is not None:
        what = "ALL POLICIES" if break_glass.ALL in held["policies"] else ", ".join(held["policies"])
        found.append("BREAK-GLASS since {0}: NOT ENFORCING {1}".format(held["time"], what))
    if os.path.exists(os.path.join(state_directory, "handover.json")):
        found.append("a hand-over of the agent was interrupted: run the role's upgrade again")
    return found


def troubles(answers: bool, kept: Sequence[str], service: Optional[Mapping[str, Any]], alarm: Optional[Mapping[str, Any]]) -> List[str]:
    """What is wrong with the agent as a service, in words. ``kept``: policies with pins in the kernel."""
    found = []
    if not answers and kept:
        found.append("enforcing but blind: no agent answers, and the kernel goes on with {0}".format(", ".join(kept)))
    if service is not None:
        if service["state"] == "failed":  # its unit starts again whatever happens, until the start limit is reached
            found.append("systemd has given the agent up after {0} restarts ({1})".format(service["restarts"], service["result"]))
        elif service["substate"] == "auto-restart":
            found.append("the agent is in a crash loop: systemd has started it again {0} times".format(service["restarts"]))
    if alarm is not None:
        found.append("an alarm stands since {0}: the agent did not start".format(alarm.get("time", "an unknown time")))
    return found


def idle(policies: Sequence[Mapping[str, Any]]) -> List[str]:
    """Policies that are listed as they should be and do nothing, or soon will, in words."""
    found = [
        "{0} watches and enforces nothing in {1}, replaced since it was loaded: run this host's policies again".format(
            one["name"], ", ".join(one["replaced"])
        )
        for one in policies
        if one["replaced"]
    ]
    return found + [
        "{0}: {1} verdicts on threads that are gone are in its map, and full it denies nothing: run this host's policies again, and see "
        "to it that no two policies override one function".format(one["name"], one["stale_overrides"])
        for one in policies
        if one["stale_overrides"]
    ]


def _service(pin_directory: str) -> Optional[Dict[str, Any]]:
    """The agent's unit as systemd sees it; None where there is no such unit."""
    if not os.path.isdir("/run/systemd/system"):
        return None
    name = os.path.basename(pin_directory)
    unit = "apiary-tetragon-{0}.service".format(name[len("apiary-") :]) if name.startswith("apiary-") else "tetragon.service"
    try:
        done = _run(["systemctl", "show", unit, "--property=LoadState,ActiveState,SubState,Result,NRestarts"])
    except (OSError, subprocess.SubprocessError):
        return None
    shown = dict(line.partition("=")[::2] for line in done.stdout.decode("utf-8", "replace").splitlines())
    if shown.get("LoadState", "not-found") == "not-found":
        return None
    restarts = int(shown.get("NRestarts") or 0)
    return {
        "unit": unit,
        "state": shown.get("ActiveState", ""),
        "substate": shown.get("SubState", ""),
        "result": shown.get("Result", ""),
        "restarts": restarts,
    }


def _alarm(pin_directory: str, state_directory: str) -> Optional[Dict[str, Any]]:
    """What a unit that was given up left behind (see ``slotunit``); None when nothing did."""
    slot = os.path.basename(pin_directory).replace("apiary-", "", 1)
    try:
        found: Dict[str, Any] = json.loads(read_text(os.path.join(state_directory, "alarm-{0}.json".format(slot))))
    except ValueError:
        return None
    return found


def _host() -> Dict[str, Any]:
    uname = platform.uname()
    release = _os_release()
    return {
        "kernel": uname.release,
        "architecture": uname.machine,
        "os": release.get("ID", "unknown"),
        "os_version": release.get("VERSION_ID", ""),
        "boot_id": read_text("/proc/sys/kernel/random/boot_id").strip(),
        "cpus": os.cpu_count() or 1,
    }


def _os_release() -> Dict[str, str]:
    text = read_text("/etc/os-release") or read_text("/usr/lib/os-release")
    return {name: value.strip().strip("\"'") for name, value in re.findall(r"^([A-Z_]+)=(.*)$", text, re.MULTILINE)}


def _agent(tetra: Tetra, pid_file: str, problems: List[str]) -> Dict[str, Any]:
    pid = agent_pid(pid_file)
    fields = stat_fields(pid) if pid else []
    resident = re.search(r"^VmRSS:\s+(\d+) kB", read_text("/proc/{0}/status".format(pid)), re.MULTILINE) if pid else None
    document: Dict[str, Any] = {
        "answers": False,
        "version": None,
        "pid": pid,
        "started": int(fields[19]) / CLOCK_TICKS if fields else None,
        "age_seconds": process_age(pid) if pid else None,
        "cpu_seconds": (int(fields[11]) + int(fields[12])) / CLOCK_TICKS if fields else None,
        "memory_bytes": int(resident.group(1)) * 1024 if resident else None,
        "flags": None,
        "probes": None,
    }
    try:
        info = tetra.info()
    except TetraError as error:
        problems.append("agent: {0}".format(error))
        return document
    document["answers"] = True
    document["version"] = info["version"].lstrip("v")
    document["flags"] = {name: _flag(info["flags"][name]) for name in FLAGS if name in info["flags"]}
    document["probes"] = info["probes"]
    return document


def _flag(value: Any) -> Any:
    """A flag's value; options that came from a file are text, also where they are booleans."""
    return {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value


def _policies(tetra: Tetra, pins: PinDirectory, state: StateFile, life: Life, problems: List[str]) -> Optional[List[Dict[str, Any]]]:
    try:
        recorded = state.read()
        paths = {key: [one.path for one in files] for key, files in recorded.binaries.items()}
        replaced = survey(paths, recorded.binaries, recorded.life, life).replaced
        return [_policy(one, pins, one.key in recorded.policies, replaced.get(one.key, ()), problems) for one in tetra.policies()]
    except (TetraError, ValueError, OSError) as error:
        problems.append("policies: {0}".format(error))
        return None


def _stale_overrides(one: LoadedPolicy, pins: PinDirectory, problems: List[str]) -> Optional[int]:
    if not pins.are_maps:
        return None
    try:
        return sum(map(len, bpf.abandoned(pins.override_tasks(one.key)).values()))
    except bpf.BpfError as error:
        problems.append("stale overrides: {0}".format(error))
        return None


def _policy(one: LoadedPolicy, pins: PinDirectory, managed: bool, replaced: Sequence[str], problems: List[str]) -> Dict[str, Any]:
    hooks = pins.hooks(one.key)
    return {
        "name": one.name,
        "namespace": one.namespace,
        "managed": managed,
        "state": one.state,
        "mode": one.mode,
        "error": one.error,
        "replaced": list(replaced),
        "stale_overrides": _stale_overrides(one, pins, problems),
        "posted": one.counters.get("post", 0),
        "enforced": sum(one.counters.get(name, 0) for name in ENFORCED),
        "would_enforce": sum(one.counters.get("monitor_" + name, 0) for name in ENFORCED),
        "kernel_memory_bytes": one.kernel_memory_bytes,
        "pinned_links": {hook: len(found["links"]) for hook, found in sorted(hooks.items())},
    }


def _counters(agent: Dict[str, Any], problems: List[str]) -> Optional[Dict[str, Any]]:
    address = (agent["flags"] or {}).get("metrics-server")
    if not address:
        if agent["answers"]:
            problems.append("counters: the agent serves no metrics; set its flag metrics-server, for example to 127.0.0.1:2112")
        return None
    try:
        return metrics.counts(metrics.fetch(address))
    except metrics.MetricsError as error:
        problems.append("counters: {0}".format(error))
        return None


def _bundle(state: StateFile, problems: List[str]) -> Optional[Dict[str, Any]]:
    try:
        recorded = state.read()
    except (ValueError, OSError) as error:
        problems.append("bundle: {0}".format(error))
        return None
    return {"digest": recorded.bundle, "pending": recorded.pending}


def _failed_units(problems: List[str]) -> Optional[List[str]]:
    try:
        done = _run(["systemctl", "list-units", "--state=failed", "--plain", "--no-legend", "--no-pager"])
    except (OSError, subprocess.SubprocessError) as error:
        problems.append("failed units: {0}".format(error))
        return None
    if done.returncode != 0:
        problems.append("failed units: systemctl: {0}".format(done.stderr.decode("utf-8", "replace").strip()))
        return None
    return sorted(line.split()[0] for line in done.stdout.decode("utf-8", "replace").splitlines() if line.strip())


def _command(command: str) -> Dict[str, Any]:
    try:
        done = _run(["/bin/sh", "-c", command])
    except (OSError, subprocess.SubprocessError) as error:
        return {"check": command, "ok": False, "detail": str(error)}
    detail = (done.stderr or done.stdout).decode("utf-8", "replace").strip()[-200:]
    return {"check": command, "ok": done.returncode == 0, "detail": "exit code {0} {1}".format(done.returncode, detail).strip()}


def _run(command: List[str]) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=_CHECK_SECONDS, check=False
    )


def _url(url: str) -> Dict[str, Any]:
    try:
        with open_url(url, timeout=_CHECK_SECONDS) as response:
            return {"check": url, "ok": 200 <= response.status < 400, "detail": "status {0}".format(response.status)}
    except urllib.error.HTTPError as error:
        return {"check": url, "ok": False, "detail": "status {0}".format(error.code)}
    except (OSError, ValueError, http.client.HTTPException) as error:
        return {"check": url, "ok": False, "detail": str(error)}
