# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""What changes for a policy when its agents go from one version to another, up or down."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils import documents
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.kernel import Kernel
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.lint import Finding, context_of, lint
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.lint_base import Context, Where
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.schema import Version, tracing_policy
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Problem, Refused

RULE = "migration"


@dataclass(frozen=True)
class Change:
    """Something that agents do otherwise since a version, and that no lint tells. ``example`` is a spec that it concerns."""

    since: Version
    concerns: Callable[[Context], Iterator[Where]]
    before: str
    after: str
    source: str
    example: str


def _arguments(*types: str) -> Callable[[Context], Iterator[Where]]:
    def concerns(context: Context) -> Iterator[Where]:
        for hook in context.hooks:
            for place, one in enumerate(hook.raw.get("args", ())):
                if one["type"] in types:
                    yield (*hook.path, "args", place)

    return concerns


def _observing(context: Context) -> Iterator[Where]:
    if not context.traits.enforcing:
        yield ("spec",)


def _registers(context: Context) -> Iterator[Where]:
    return (action.path for action in context.actions if action.hook.section == "uprobes" and action.raw.get("argRegs"))


def _enforcing_by_binary(context: Context) -> Iterator[Where]:
    for hook, path, selector in context.selectors():
        if context.traits.enforcing and selector.get("matchBinaries") and context.actions_of(hook):
            yield (*path, "matchBinaries")


CHANGES = (
    Change(
        (1, 7, 0),
        _observing,
        "the agent lists its mode as enforce, though nothing in it enforces",
        "the agent lists its mode as monitor_only, and refuses to switch it",
        "pkg/policyconf, 1.7.0 (pull request 4316)",
        "kprobes: [{call: security_path_chmod, syscall: false}]",
    ),
    Change(
        (1, 7, 0),
        _arguments("syscall64"),
        "enable-compatibility-syscall64-size-type keeps events with a plain number",
        "events hold an object of number and ABI, and the flag that kept the number is gone",
        "upgrade notes of 1.3; the flags of 1.7.0",
        "tracepoints: [{subsystem: raw_syscalls, event: sys_enter, args: [{index: 4, type: syscall64}]}]",
    ),
    Change(
        (1, 7, 1),
        _registers,
        "argRegs can change another register than the one that is named",
        "argRegs changes the register that is named",
        "10efc4235, 1.7.1",
        "uprobes: [{path: /usr/bin/tool, symbols: [main], selectors: [{matchActions: [{action: Override, argRegs: [rax=1]}]}]}]",
    ),
    Change(
        (1, 8, 0),
        _arguments("fd"),
        "the path of a descriptor is known after FollowFD alone",
        "the path is looked up at the hook, and an event whose descriptor leads nowhere is dropped",
        "bpf/process/types/basic.h, main",
        "kprobes: [{call: sys_fchdir, args: [{index: 0, type: fd}]}]",
    ),
    Change(
        (1, 8, 0),
        _enforcing_by_binary,
        "while the agent is down, programs that start are still known by their own executable",
        "while the agent is down, programs that start are judged by the executable of their parent: the hook that keeps "
        "count of them is a raw tracepoint, and not pinned",
        "119ec6234 (pull request 5346), main",
        """
kprobes:
  - call: security_path_chmod
    syscall: false
    selectors:
      - matchBinaries: [{operator: In, values: [/usr/bin/tool]}]
        matchActions: [{action: Sigkill}]
""",
    ),
)


def migrate(document: Mapping[str, Any], old: Version, new: Version, kernel: Kernel | None = None) -> list[Finding]:
    """What changes for a rendered TracingPolicy from agents of one version to those of another.

    Severity ``error`` is what the new agent would refuse or do wrong, ``warning`` what it does otherwise, ``info`` what is
    mended. Raises Refused when the old agent would not take the policy's shape either.
    """
    source = documents.Document(str(document.get("metadata", {}).get("name", "")), document, {})
    problems = documents.validate(source, tracing_policy(old))
    if problems:
        raise Refused(problems)
    name, label = document["metadata"]["name"], ".".join(map(str, new))
    refused = documents.validate(source, tracing_policy(new))
    if refused:
        return [Finding(RULE, "error", name, one.path, f"agent {label} refuses it: {one.message}{_pruned(one)}") for one in refused]
    before, after = context_of(document, old, kernel), context_of(document, new, kernel)
    was = {(one.rule, one.path): one for one in lint(before)}
    found = {(one.rule, one.path): one for one in lint(after)}
    return [
        *(Finding(one.rule, one.severity, name, one.path, f"on {label}: {one.message}") for key, one in found.items() if key not in was),
        *(
            Finding(one.rule, "info", name, one.path, f"no longer on {label}: {one.message}")
            for key, one in was.items()
            if key not in found
        ),
        *(Finding(RULE, "info" if good else "warning", name, path, text) for path, text, good in _otherwise(before, after, label)),
    ]


def _pruned(problem: Problem) -> str:
    if not problem.message.startswith("unknown key"):
        return ""
    return "; a cluster whose CRD is of that version drops the key without a word, and the policy may apply to more than was meant"


def _otherwise(before: Context, after: Context, label: str) -> Iterator[tuple[str, str, bool]]:
    """Path, message, and whether it is for the better."""
    for one in CHANGES:
        if (before.version < one.since) != (after.version < one.since):
            text = one.before if after.version < one.since else one.after
            for path in one.concerns(after):
                yield documents.show_path(path), f"on {label}: {text}", False
    for hook in sorted({*after.traits.unpinned} - {*before.traits.unpinned}):
        yield "", f"on {label}: the link of {hook} is not pinned: what it enforces ends when the agent stops", False
    for hook in sorted({*before.traits.unpinned} - {*after.traits.unpinned}):
        yield "", f"on {label}: the link of {hook} is pinned and outlives the agent", True
    for need in after.traits.requirements:
        if need not in before.traits.requirements:
            yield "", f"on {label}: {need.reason} needs the {need.kind} {' or '.join(need.any_of)}", False
    for need in before.traits.requirements:
        if need not in after.traits.requirements:
            yield "", f"on {label}: {need.reason} no longer needs the {need.kind} {' or '.join(need.any_of)}", True
