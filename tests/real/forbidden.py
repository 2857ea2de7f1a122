# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""One enforcing policy per kind of hook, and the acts that the prober attempts against it under the same name."""

from __future__ import annotations

from typing import Any

import yaml

from ansible_collections.apiary.tetragon.plugins.plugin_utils import canonical
from ansible_collections.apiary.tetragon.plugins.plugin_utils.bundle import FORMAT, Bundle

FILES = "/srv/apiary"
_WHENCE = _ARGUMENT = 4444
_FILE = {"index": 0, "type": "file"}
# A library that nothing else on the machine maps from where the policy watches it: a copy of this one.
LIBRARY = "/usr/lib/x86_64-linux-gnu/libz.so.1"
_SYMBOL = "compressBound"


def _on(name: str, index: int = 0) -> dict[str, Any]:
    return {"matchArgs": [{"index": index, "operator": "Equal", "values": [f"{FILES}/{name}"]}]}


def _selector(match: dict[str, Any], action: str) -> list[dict[str, Any]]:
    return [{**match, "matchActions": [{"action": action, **({"argError": -1} if action == "Override" else {})}]}]


def _number(index: int, value: int) -> dict[str, Any]:
    return {"matchArgs": [{"index": index, "operator": "Equal", "values": [str(value)]}]}


HOOKS: dict[str, tuple[str, dict[str, Any], str]] = {
    "kprobe": (
        "kprobes",
        {"call": "fd_install", "syscall": False, "args": [{"index": 0, "type": "int"}, {"index": 1, "type": "file"}]},
        "Sigkill",
    ),
    "override": ("kprobes", {"call": "security_file_open", "syscall": False, "args": [_FILE]}, "Override"),
    "lsm": ("lsmhooks", {"hook": "file_open", "args": [_FILE]}, "Override"),
    "tracepoint": (
        "tracepoints",
        {"subsystem": "syscalls", "event": "sys_enter_lseek", "args": [{"index": 7, "type": "uint32"}]},
        "Sigkill",
    ),
    "uprobe": (
        "uprobes",
        {"path": f"{FILES}/library", "symbols": [_SYMBOL], "args": [{"index": 0, "type": "int64"}]},
        "Sigkill",
    ),
}
MATCHES = {
    "kprobe": _on("kprobe", 1),
    "override": _on("override"),
    "lsm": _on("lsm"),
    "tracepoint": _number(7, _WHENCE),
    "uprobe": _number(0, _ARGUMENT),
}


def acts(files: str = FILES) -> dict[str, Any]:
    """What the prober attempts: every kind by fresh processes, Override also by one that lives on, and acts that nothing forbids."""
    opens = {name: {"kind": "open", "path": f"{files}/{name}"} for name in ("kprobe", "override", "lsm", "plain")}
    seek = {"kind": "seek", "whence": _WHENCE}
    call = {"kind": "call", "library": f"{files}/library", "symbol": _SYMBOL, "argument": _ARGUMENT}
    return {
        "kprobe": {"steps": [opens["kprobe"]]},
        "override": {"steps": [opens["override"]]},
        "override-long": {"steps": [opens["override"]], "fresh": False},
        "lsm": {"steps": [opens["lsm"]]},
        "lsm-long": {"steps": [opens["lsm"]], "fresh": False},
        "tracepoint": {"steps": [seek]},
        "uprobe": {"steps": [call]},
        "innocent": {"steps": [opens["plain"], {**seek, "whence": 1}, {**call, "argument": 1}], "innocent": True},
    }


def policy(kind: str, revision: str, mode: str = "enforce") -> dict[str, Any]:
    """The policy against one kind of act, as a bundle describes it, its text in the form that bundles have."""
    section, hook, action = HOOKS[kind]
    spec = {
        section: [{**hook, "message": f"forbidden act, revision {revision}", "selectors": _selector(MATCHES[kind], action)}],
        "options": [{"name": "disable-kprobe-multi", "value": "1"}, {"name": "policy-mode", "value": mode}],
    }
    name = f"{kind}-{revision}"
    document = {"apiVersion": "cilium.io/v1alpha1", "kind": "TracingPolicy", "metadata": {"name": name}, "spec": spec}
    return {
        "loaded": name,
        "mode": mode,
        "text": yaml.safe_dump(document, sort_keys=False),
        "namespace": "",
        "unpinned": ["file_open"] if kind == "lsm" else [],
        "overrides": ["security_file_open"] if kind == "override" else [],
        "binaries": [entry["path"] for entry in spec.get("uprobes", ())],
    }


def broken() -> dict[str, Any]:
    """One that no agent loads: it names a function that no kernel has."""
    made = policy("kprobe", "broken")
    return {**made, "text": made["text"].replace("fd_install", "no_such_function")}


def bundle(revision: str) -> Bundle:
    """All of them as a bundle, each with its act as the trigger; a tracepoint is proved by its links."""
    policies, files = [], {}
    for kind in HOOKS:
        made = policy(kind, revision)
        act = acts()[kind]["steps"][0]
        trigger = {"open": {"kind": "open", "files": [act.get("path")]}, "call": act}.get(act["kind"])
        text, file = made.pop("text"), f"{made['loaded']}.yaml"
        files[file] = text
        entry = {**made, "form": "host", "reference": kind, "file": file, "sha256": canonical.digest(text.encode())}
        policies.append({**entry, **({"trigger": trigger} if trigger else {})})
    assignments = [{"form": "host", "where": [], "choices": [{"where": [], "loaded": one["loaded"]}]} for one in policies]
    return Bundle({"format": FORMAT, "environment": "real", "policies": policies, "assignments": assignments}, files)
