# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The agent's options: flags before environment before files of one option each, as v1.7.0 merges them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from .root import Root
from .wire import DEFAULT_ADDRESS

Value = bool | int | str | list[str]
DEFAULTS: Mapping[str, Value] = {
    "bpf-dir": "tetragon", "bpf-lib": "/var/lib/tetragon/", "btf": "", "cgroup-rate": "", "cluster-name": "", "config-dir": "",
    "cpuprofile": "", "cri-endpoint": "", "data-cache-size": 1024, "debug": False, "disable-kprobe-multi": False,
    "enable-ancestors": [], "enable-cgidmap": False, "enable-cgidmap-debug": False, "enable-cgtrackerid": True,
    "enable-cri": False, "enable-deprecated-tracingpolicy-grpc": False, "enable-export-aggregation": False,
    "enable-k8s-api": False, "enable-msg-handling-latency": False, "enable-pid-set-filter": False,
    "enable-pod-annotations": False, "enable-pod-info": False, "enable-policy-filter": False,
    "enable-policy-filter-cgroup-map": False, "enable-policy-filter-debug": False, "enable-process-cred": False,
    "enable-process-environment-variables": False, "enable-process-ns": False, "enable-tracing-policy-crd": True,
    "event-cache-retries": 15, "event-cache-retry-delay": 2, "event-queue-size": "10000", "execve-map-entries": 0,
    "execve-map-size": "", "export-aggregation-buffer-size": "10000", "export-aggregation-window-size": "15s",
    "export-allowlist": "", "export-denylist": "", "export-file-compress": False, "export-file-max-backups": 5,
    "export-file-max-size-mb": 10, "export-file-perm": "600", "export-file-rotation-interval": "0s", "export-filename": "",
    "export-rate-limit": -1, "expose-stack-addresses": False, "field-filters": "", "filter-environment-variables": [],
    "force-large-progs": False, "force-small-progs": False, "generate-docs": False, "gops-address": "",
    "health-server-address": ":6789", "health-server-interval": 10, "k8s-controlplane-retry": 1, "k8s-kubeconfig-path": "",
    "keep-sensors-on-exit": False, "kernel": "", "log-file": "", "log-format": "text", "log-level": "info", "memprofile": "",
    "metrics-label-filter": "namespace,workload,pod,binary", "metrics-server": "", "netns-dir": "/var/run/docker/netns/",
    "parents-map-enabled": False, "parents-map-entries": 0, "parents-map-size": "", "pprof-address": "",
    "process-cache-gc-interval": "30s", "process-cache-size": 65536, "procfs": "/proc/", "rb-queue-size": "65535",
    "rb-size": "0", "rb-size-total": "0", "redaction-filters": "", "release-pinned-bpf": True, "retprobes-cache-size": 4096,
    "server-address": DEFAULT_ADDRESS, "tracing-policy": "", "tracing-policy-dir": "/etc/tetragon/tetragon.tp.d",
    "use-perf-ring-buffer": False, "username-metadata": "disabled", "verbose": "0",
}  # fmt: skip
_FOLDERS = ("/usr/lib/tetragon/tetragon.conf.d", "/usr/local/lib/tetragon/tetragon.conf.d", "/etc/tetragon/tetragon.conf.d")
_WORDS = {"1": True, "t": True, "true": True, "0": False, "f": False, "false": False}
_SUFFIXES = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class UsageError(Exception):
    """A command line that the agent refuses, in its words."""


class StartError(Exception):
    """The agent cannot start, in its words."""


class Options:
    """The effective options. Values from files and the environment are text, as ``tetra info`` shows them."""

    def __init__(self, root: Root, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        flags = _flags(arguments)
        env = os.environ if environment is None else environment
        variables = {name: env[variable] for name in DEFAULTS if (variable := "TETRAGON_" + name.replace("-", "_").upper()) in env}
        files: dict[str, Value] = {}
        for folder in _FOLDERS:
            files.update(_folder(root.path(folder)))
        chosen = flags.get("config-dir", variables.get("config-dir", ""))
        if chosen:
            try:
                next(Path(root.path(str(chosen))).iterdir(), None)
            except OSError as error:
                raise StartError(f"failed to read config from directory: {error.strerror}: {chosen}") from None
            files.update(_folder(root.path(str(chosen))))
        self._root = root
        self.values: dict[str, Value] = {**DEFAULTS, **files, **variables, **flags}

    def text(self, name: str) -> str:
        return str(self.values[name])

    def path(self, name: str) -> str:
        """A path, below the host's root; empty when not set."""
        return self._root.path(self.text(name))

    def flag(self, name: str) -> bool:
        value = self.values[name]
        return value if isinstance(value, bool) else _WORDS.get(str(value).lower(), False)

    def number(self, name: str) -> int:
        """A number, with the suffixes K, M and G of sizes."""
        text = self.text(name)
        return int(text[:-1]) * _SUFFIXES[text[-1]] if text[-1:] in _SUFFIXES else int(text)


def _folder(path: str) -> dict[str, Value]:
    """One option per file; whatever is no option is passed over without a word (measured on v1.7.0)."""
    found: dict[str, Value] = {}
    try:
        for file in Path(path).iterdir():
            if file.name in DEFAULTS:
                found[file.name] = file.read_text(encoding="utf-8").strip()
    except OSError:
        return found
    return found


def _flags(arguments: Sequence[str]) -> dict[str, Value]:
    flags: dict[str, Value] = {}
    rest = iter(arguments)
    for one in rest:
        name, given, text = one.removeprefix("--").partition("=")
        if not one.startswith("--") or name not in DEFAULTS:
            raise UsageError(f"unknown flag: {one}" if one.startswith("-") else f'unknown command "{one}" for "tetragon"')
        default = DEFAULTS[name]
        if isinstance(default, bool):
            if given and text.lower() not in _WORDS:
                raise UsageError(f'invalid argument "{text}" for "--{name}" flag: strconv.ParseBool: parsing "{text}": invalid syntax')
            flags[name] = _WORDS[text.lower()] if given else True
            continue
        value = text if given else next(rest, None)
        if value is None:
            raise UsageError(f"flag needs an argument: --{name}")
        flags[name] = int(value) if isinstance(default, int) else value
    return flags
