# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""What several test modules need: places, a small policy to write to disk, and a way to look at refusals."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.apiary.tetragon.plugins.plugin_utils import documents
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.kernel import Kernel
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.lint import Finding, lint_document, read
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.load import Library, Policy
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.schema import Version, tracing_policy
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Problem, Refused
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.records import Socket

ROOT = Path(__file__).resolve().parents[4]
POLICIES = ROOT / "policies"
HEAD = """\
name: lab
agent_version: "1.7.0"
policies:
  - {policy: network/c2-ranges, mode: monitor}
"""
ENVIRONMENTS = ROOT / "environments"
CORPUS = ROOT / "tests" / "corpus"
REFERENCES = tuple(sorted(f"{meta.parent.parent.name}/{meta.parent.name}" for meta in POLICIES.glob("*/*/meta.yml")))
# Every policy of the library in each form that it has.
FORMS = tuple((one, form) for one in REFERENCES for form in yaml.safe_load((POLICIES / one / "meta.yml").read_text("utf-8"))["forms"])
FORM_IDS = [f"{reference}-{form}" for reference, form in FORMS]

# Values for the inputs of library policies that have no default.
LIBRARY_VALUES: Mapping[str, Mapping[str, Any]] = {
    "application/function-call": {"program": "/usr/bin/tool", "function": "export_all", "first_argument": [1, 2]},
    "network/c2-ranges": {"ranges": ["192.0.2.0/24", "2001:db8::/32"]},
    "network/egress-allowlist": {"allowed": ["10.0.0.0/8"]},
}
PROTECTED = ("/usr/sbin/sshd", "/usr/lib/systemd/systemd")

META = """\
title: A watched file is opened
description: Made for tests.
severity: low
owner: tests
maturity: sandbox
attack: [T1003]
forms: [host, cluster]
event_budget: 5
inputs:
  paths:
    type: list
    elements: path
    min: 1
    description: The files.
    default: [/etc/watched]
"""

TEMPLATE = """\
apiVersion: cilium.io/v1alpha1
kind: TracingPolicy
metadata:
  name: watch
spec:
{% if form == "cluster" %}
  podSelector:
    matchLabels: {app: cart}
{% endif %}
  kprobes:
    - call: security_file_open
      syscall: false
      args:
        - {index: 0, type: file}
      selectors:
        - matchArgs:
            - {index: 0, operator: Equal, values: {{ paths }}}
          matchActions:
            - {action: Post}
"""

CASES = """\
- name: a watched file
  origin: written
  events: watched.jsonl
  must: fire
- name: another file
  origin: written
  events: other.jsonl
  must: stay-quiet
"""


def opened(path: str, function: str = "security_file_open") -> dict[str, Any]:
    """An exported event: a file was opened."""
    return {
        "process_kprobe": {
            "process": {"exec_id": "dGVzdA==", "pid": 4711, "binary": "/usr/bin/cat", "flags": "execve clone"},
            "parent": {"exec_id": "cGFyZW50", "pid": 4700, "binary": "/usr/bin/bash"},
            "function_name": function,
            "args": [{"file_arg": {"path": path, "permission": "-rw-r--r--"}}],
        },
        "time": "2026-11-22T09:00:00Z",
    }


def jsonl(*events: object) -> str:
    """Events as the agent exports them: one JSON object a line."""
    return "".join(json.dumps(event) + "\n" for event in events)


EVENTS = {"watched.jsonl": jsonl(opened("/etc/watched")), "other.jsonl": jsonl(opened("/etc/other"))}


class PolicyTree:
    """A policy directory under construction."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def add(
        self,
        reference: str = "files/watch",
        *,
        meta: str = META,
        template: str | None = TEMPLATE,
        cases: str | None = CASES,
        events: Mapping[str, str] = EVENTS,
    ) -> Path:
        """Write one policy; None leaves the file out. A template's ``name: watch`` follows the reference."""
        target = self.directory / reference
        (target / "cases").mkdir(parents=True, exist_ok=True)
        (target / "meta.yml").write_text(meta, encoding="utf-8")
        if template is not None:
            named = template.replace("name: watch\n", f"name: {target.name}\n")
            (target / "policy.yaml.j2").write_text(named, encoding="utf-8")
        if cases is not None:
            (target / "cases" / "cases.yml").write_text(cases, encoding="utf-8")
        for name, text in events.items():
            (target / "cases" / name).write_text(text, encoding="utf-8")
        return target

    def add_macros(self, name: str, text: str) -> None:
        """Write one file of shared macros."""
        (self.directory / "_macros").mkdir(exist_ok=True)
        (self.directory / "_macros" / name).write_text(text, encoding="utf-8")

    def library(self) -> Library:
        """A fresh library on this directory alone."""
        return Library([self.directory])

    def policy(self, reference: str = "files/watch") -> Policy:
        """One policy of this directory, read anew."""
        return self.library().get(reference)


def refused(call: Callable[..., object], *args: object, **options: object) -> tuple[Problem, ...]:
    """The problems of a call that must be refused."""
    with pytest.raises(Refused) as caught:
        call(*args, **options)
    return caught.value.problems


def messages(problems: Sequence[Problem]) -> str:
    """All problems as the user reads them."""
    return "\n".join(map(str, problems))


def show(value: object) -> str:
    """A value of a table in the name of a test."""
    if isinstance(value, list):
        return "[" + " ".join(map(show, value)) + "]"
    if isinstance(value, Socket):
        return "/".join(
            str(part) for part in (value.family, value.saddr, value.daddr, value.sport, value.dport, value.protocol, value.state) if part
        )
    text = ascii(str(value)).strip("'")
    return text if len(text) < 24 else f"{text[:20]}..{len(text)}"


def lint_file(path: Path, version: Version, kernel: Kernel | None = None, protected: Sequence[str] = ()) -> list[Finding]:
    """A plain policy file as the replay takes it: read, of sound shape, and linted."""
    document = read(path)
    problems = documents.validate(document, tracing_policy(version))
    if problems:
        raise Refused(problems)
    return lint_document(document, version, kernel, protected)
