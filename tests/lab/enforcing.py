# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Three policies that enforce, one for each way in which the kernel keeps a verdict."""

from __future__ import annotations

import json

from ansible_collections.apiary.tetragon.plugins.module_utils.agent.plan import Wanted


def _policy(name: str, section: str, hook: dict[str, object], paths: list[str], action: str, **wanted: object) -> Wanted:
    index = len(hook["args"]) - 1  # type: ignore[arg-type]
    match = {"index": index, "operator": "Equal", "values": paths}
    selector = {"matchArgs": [match], "matchActions": [{"action": action, **({"argError": -1} if action == "Override" else {})}]}
    spec = {section: [{**hook, "selectors": [selector]}], "options": [{"name": "policy-mode", "value": "enforce"}]}
    document = {"apiVersion": "cilium.io/v1alpha1", "kind": "TracingPolicy", "metadata": {"name": name}, "spec": spec}
    return Wanted(name, "enforce", json.dumps(document), trigger={"kind": "open", "files": paths}, **wanted)  # type: ignore[arg-type]


def deny(revision: str, *more: str) -> Wanted:
    hook = {"call": "security_file_open", "syscall": False, "args": [{"index": 0, "type": "file"}]}
    return _policy(f"deny-{revision}", "kprobes", hook, ["/secret", *more], "Override", overrides=("security_file_open",))


KILL = _policy(
    "kill-1",
    "kprobes",
    {"call": "fd_install", "syscall": False, "args": [{"index": 0, "type": "int"}, {"index": 1, "type": "file"}]},
    ["/kill"],
    "Sigkill",
)
LSM = _policy("lsm-1", "lsmhooks", {"hook": "file_open", "args": [{"index": 0, "type": "file"}]}, ["/lsm"], "Override", early=True)
