# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The catalogue of lint rules, as data: docs/lints.md is made from it, and every example and fix is a test.

An example is the spec of a policy that breaks the rule, its fix one that breaks none as an error. ``source`` says where the
fact is known from: a file of the agent's source, an issue of its tracker, or a measurement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.schema import Version

# Kinds, in the order of the document.
REFUSED, DIFFERS, UNSAFE, WEAK, COST, VERSIONS = "refused", "differs", "unsafe", "weak", "cost", "versions"
KINDS: Mapping[str, str] = {
    REFUSED: "What the agent refuses to load",
    DIFFERS: "What loads and then does something else",
    UNSAFE: "What hits the wrong process",
    WEAK: "What can be got round, or ends",
    COST: "What costs the host",
    VERSIONS: "What depends on where it runs",
}


@dataclass(frozen=True)
class Rule:
    """One rule. ``example`` and ``fix`` are specs in YAML; the other values are the circumstances of both.

    ``policies`` is how many policies with the spec stand on the host, for the rules about all of them together.
    """

    id: str
    severity: str
    kind: str
    title: str
    why: str
    source: str
    example: str
    fix: str
    mode: str = "monitor"
    version: Version = (1, 7, 0)
    namespace: str | None = None
    protected: tuple[str, ...] = ()
    kernel: Mapping[str, Any] = field(default_factory=dict)
    policies: int = 1

    @property
    def can_be_allowed(self) -> bool:
        """What the agent refuses cannot be allowed: the policy would never load."""
        return self.kind != REFUSED


def _rule(id_: str, severity: str, kind: str, title: str, why: str, source: str, example: str, fix: str, **more: Any) -> Rule:
    return Rule(id_, severity, kind, title, " ".join(why.split()), source, example.strip("\n"), fix.strip("\n"), **more)


_RULES = (
    # --- refused ---------------------------------------------------------------------------------------------------
    _rule(
        "one-section",
        "error",
        REFUSED,
        "Hooks of more than one kind",
        "The agent loads one section of hooks per policy and refuses a policy with several. Each policy then has its own mode.",
        "pkg/sensors/tracing/policyhandler_linux.go, 1.7.0",
        """
kprobes:
  - {call: security_path_chmod, syscall: false}
tracepoints:
  - {subsystem: oom, event: mark_victim}
""",
        """
kprobes:
  - {call: security_path_chmod, syscall: false}
""",
    ),
    _rule(
        "action-not-for-hook",
        "error",
        REFUSED,
        "An action that this kind of hook does not have",
        """Fentries cannot enforce, LSM hooks only kill, override and post, Set is for USDTs, enforcers are notified by kprobes and
        tracepoints.""",
        "pkg/sensors/tracing/genericfentry.go and genericlsm.go, 1.7.0; tried",
        """
fentries:
  - call: security_path_chmod
    syscall: false
    args: [{index: 0, type: path}]
    selectors:
      - matchArgs: [{index: 0, operator: Prefix, values: [/srv/]}]
        matchActions: [{action: Sigkill}]
""",
        """
kprobes:
  - call: security_path_chmod
    syscall: false
    args: [{index: 0, type: path}]
    selectors:
      - matchArgs: [{index: 0, operator: Prefix, values: [/srv/]}]
        matchActions: [{action: Sigkill}]
""",
    ),
    _rule(
        "enforcers",
        "error",
        REFUSED,
        "NotifyEnforcer and enforcers that do not fit",
        """NotifyEnforcer needs the section enforcers; the agent takes one entry there, whose calls are system calls, lists, or
        security_* functions.""",
        "pkg/sensors/tracing/enforcer.go, 1.7.0",
        """
kprobes:
  - call: security_path_chmod
    syscall: false
    args: [{index: 0, type: path}]
    selectors:
      - matchArgs: [{index: 0, operator: Prefix, values: [/srv/]}]
        matchActions: [{action: NotifyEnforcer, argError: -1}]
""",
        """
enforcers: [{calls: [sys_chmod]}]
kprobes:
  - call: security_path_chmod
    syscall: false
    args: [{index: 0, type: path}]
    selectors:
      - matchArgs: [{index: 0, operator: Prefix, values: [/srv/]}]
        matchActions: [{action: NotifyEnforcer, argError: -1}]
""",
    ),
    _rule(
        "override-target",
        "error",
        REFUSED,
        "Override of a function that cannot be overridden",
        "A kprobe can replace the result of a system call or of a security_* function, of no other.",
        "pkg/sensors/tracing/generickprobe.go, 1.7.0; tried",
        """
kprobes:
  - call: vfs_truncate
    syscall: false
    args: [{index: 0, type: path}]
    selectors:
      - matchArgs: [{index: 0, operator: Prefix, values: [/srv/]}]
        matchActions: [{action: Override, argError: -1}]
""",
        """
options: [{name: disable-kprobe-multi, value: "1"}]
kprobes:
  - call: security_path_truncate
    syscall: false
    args: [{index: 0, type: path}]
    selectors:
      - matchArgs: [{index: 0, operator: Prefix, values: [/srv/]}]
        matchActions: [{action: Override, argError: -1}]
""",
    ),
    _rule(
        "override-kprobe-multi",
        "error",
        REFUSED,
        "Override of a security_* function where kprobe-multi is in use",
        """Such an override works by fmod_ret, which cannot stand beside kprobe-multi. A kernel without kprobe-multi (Debian's 6.1)
        loads the policy, one with it (6.12, Ubuntu, RHEL) refuses it, unless the policy switches kprobe-multi off. An environment
        whose kernels have no kprobe-multi can say so.""",
        "pkg/sensors/tracing/generickprobe.go, 1.7.0; measured on Linux 6.1 and 6.12",
        """
kprobes:
  - call: security_path_truncate
    syscall: false
    args: [{index: 0, type: path}]
    selectors:
      - matchArgs: [{index: 0, operator: Prefix, values: [/srv/]}]
        matchActions: [{action: Override, argError: -1}]
""",
        """
options: [{name: disable-kprobe-multi, value: "1"}]
kprobes:
  - call: security_path_truncate
    syscall: false
    args: [{index: 0, type: path}]
    selectors:
      - matchArgs: [{index: 0, operator: Prefix, values: [/srv/]}]
        matchActions: [{action: Override, argError: -1}]
""",
    ),
    _rule(
        "duplicate-symbol",
        "error",
        REFUSED,
        "One function hooked twice",
        "Where kprobe-multi is in use, a policy cannot hook a function twice. Put the selectors into one hook.",
        "pkg/sensors/tracing/generickprobe.go, 1.7.0; tried",
        """
kprobes:
  - {call: security_path_chmod, syscall: false}
  - {call: security_path_chmod, syscall: false, message: Again}
""",
        """
kprobes:
  - {call: security_path_chmod, syscall: false}
  - {call: security_path_chown, syscall: false}
""",
    ),
    _rule(
        "kernel-lacks",
        "error",
        REFUSED,
        "A feature that the environment's kernels do not have",
        """An environment can say which series is its oldest kernel and what its kernels have or lack, by the names of `tetra probe`.
        Override of system calls needs function error injection (override_return), LSM hooks the BPF LSM, and so on.""",
        "pkg/sensors/tracing/generickprobe.go, genericlsm.go and enforcer.go, 1.7.0; tried on a kernel without error injection",
        """
kprobes:
  - call: sys_symlinkat
    args: [{index: 1, type: int}]
    selectors:
      - matchArgs: [{index: 1, operator: Equal, values: ["3"]}]
        matchActions: [{action: Override, argError: -1}]
""",
        """
options: [{name: disable-kprobe-multi, value: "1"}]
kprobes:
  - call: security_path_symlink
    syscall: false
    args: [{index: 0, type: path}]
    selectors:
      - matchArgs: [{index: 0, operator: Prefix, values: [/srv/]}]
        matchActions: [{action: Override, argError: -1}]
""",
        kernel={"probes": {"override_return": False, "fmodret_syscall": False}},
    ),
    _rule(
        "operator-not-for-type",
        "error",
        REFUSED,
        "A filter that the loader cannot compile",
        """The operator does not exist for the argument's type, a value cannot be read (numbers must fit the type, sets and ports are
        decimal), or the filter names an argument that the hook does not list.""",
        "pkg/selectors/kernel.go, 1.7.0; tried",
        """
kprobes:
  - call: security_path_chmod
    syscall: false
    args: [{index: 1, type: uint32}]
    selectors:
      - matchArgs: [{index: 1, operator: Equal, values: ["-1"]}]
""",
        """
kprobes:
  - call: security_path_chmod
    syscall: false
    args: [{index: 1, type: uint32}]
    selectors:
      - matchArgs: [{index: 1, operator: Mask, values: ["04000"]}]
""",
    ),
    _rule(
        "capability-name",
        "error",
        REFUSED,
        "A capability by a name that the agent does not know",
        "The agent's list spells one capability without its prefix: DAC_OVERRIDE.",
        "api/v1/tetragon/capabilities.proto, 1.7.0; tried",
        """
kprobes:
  - call: security_path_chmod
    syscall: false
    selectors:
      - matchCapabilities: [{operator: In, values: [CAP_DAC_OVERRIDE]}]
""",
        """
kprobes:
  - call: security_path_chmod
    syscall: false
    selectors:
      - matchCapabilities: [{operator: In, values: [DAC_OVERRIDE]}]
""",
    ),
    _rule(
        "ceiling",
        "error",
        REFUSED,
        "More than agent or kernel take",
        """Per hook 5 selectors and 5 arguments; per selector 3 actions and 5 argument filters; 4 numbers per filter (more with InMap),
        4 values per namespace; texts of 4,096 bytes, prefixes of 256, postfixes of 127, executables of 255; messages and tags of 2
        characters at least. On a host: 38 programs on one function, 128 policies that select workloads, 64 selectors that follow
        children.""",
        "pkg/selectors/kernel.go and pkg/policyfilter, 1.7.0; issues 4204 and 4260",
        """
kprobes:
  - call: security_path_chmod
    syscall: false
    args: [{index: 1, type: uint32}]
    selectors:
      - matchArgs: [{index: 1, operator: Equal, values: ["1", "2", "3", "4", "5"]}]
""",
        """
kprobes:
  - call: security_path_chmod
    syscall: false
    args: [{index: 1, type: uint32}]
    selectors:
      - matchArgs: [{index: 1, operator: InMap, values: ["1", "2", "3", "4", "5"]}]
""",
    ),
    _rule(
        "filter-maps",
        "error",
        REFUSED,
        "More filters of one family than a program has maps",
        """A program has 8 maps each for prefixes, postfixes, numbers, IPv4 and IPv6 addresses, and for texts of about one length. Hooks
        that share a program by kprobe-multi share them too.""",
        "pkg/selectors/string_maps.h, argfilter_maps.h and addr_lpm_maps.h, 1.7.0; tried with texts",
        """
kprobes:
"""
        + "".join(
            f"""  - call: security_path_{name}
    syscall: false
    args: [{{index: 0, type: path}}]
    selectors:
      - matchArgs: [{{index: 0, operator: Prefix, values: [/srv/]}}]
      - matchArgs: [{{index: 0, operator: Prefix, values: [/opt/]}}]
      - matchArgs: [{{index: 0, operator: Prefix, values: [/home/]}}]
"""
            for name in ("chmod", "chown", "truncate")
        ),
        """
kprobes:
"""
        + "".join(
            f"""  - call: security_path_{name}
    syscall: false
    args: [{{index: 0, type: path}}]
    selectors:
      - matchArgs: [{{index: 0, operator: Prefix, values: [/srv/, /opt/, /home/]}}]
"""
            for name in ("chmod", "chown", "truncate")
        ),
    ),
    _rule(
        "argument-type",
        "error",
        REFUSED,
        "A type that cannot be chosen for this kind of hook",
        "Kprobes take neither auto nor syscall64, tracepoints no const_buf; sizeArgIndex ends at 15.",
        "pkg/sensors/tracing/generickprobe.go and generictracepoint.go, 1.7.0",
        """
kprobes:
  - {call: security_path_chmod, syscall: false, args: [{index: 1, type: auto}]}
""",
        """
kprobes:
  - {call: security_path_chmod, syscall: false, args: [{index: 1, type: uint32}]}
""",
    ),
    _rule(
        "argument-source",
        "error",
        REFUSED,
        "source and resolve in the wrong place",
        """What does not come from the function's arguments stands under data, with resolve and with source current_task or pt_regs
        (uprobes: pt_regs alone). A tracepoint resolves only when it is raw.""",
        "pkg/sensors/tracing/generickprobe.go and genericuprobe.go, 1.7.0",
        """
kprobes:
  - {call: security_path_chmod, syscall: false, args: [{index: 0, type: file, source: current_task, resolve: mm.exe_file}]}
""",
        """
kprobes:
  - {call: security_path_chmod, syscall: false, data: [{index: 0, type: file, source: current_task, resolve: mm.exe_file}]}
""",
    ),
    _rule(
        "return-argument",
        "error",
        REFUSED,
        "A return side that does not load",
        """return: true needs returnArg. returnArgAction takes TrackSock and UntrackSock; Post was taken until 1.6. LSM hooks have no
        matchReturnArgs.""",
        "pkg/sensors/tracing/generickprobe.go and genericlsm.go, 1.7.0",
        """
kprobes:
  - {call: security_path_chmod, syscall: false, return: true}
""",
        """
kprobes:
  - {call: security_path_chmod, syscall: false, return: true, returnArg: {index: 0, type: int}}
""",
    ),
    _rule(
        "namespaced-scope",
        "error",
        REFUSED,
        "A policy of a namespace that reaches beyond it",
        "A TracingPolicyNamespaced cannot select the host, and from 1.7.1 on cannot hold uprobes or usdts.",
        "pkg/sensors/k8s.go, 1.7.0; 4eec6e521, 1.7.1",
        """
hostSelector: {}
kprobes:
  - {call: security_path_chmod, syscall: false}
""",
        """
kprobes:
  - {call: security_path_chmod, syscall: false}
""",
        namespace="shop",
    ),
    _rule(
        "macro",
        "error",
        REFUSED,
        "A macro that cannot be filled in",
        "A selector names a macro that is not there, sets a key twice, or a macro uses macros.",
        "pkg/sensors/tracing/generic.go, 1.7.0",
        """
selectorsMacros:
  outside: {matchNamespaces: [{namespace: Pid, operator: NotIn, values: [host_ns]}]}
kprobes:
  - {call: security_path_chmod, syscall: false, selectors: [{macros: [inside]}]}
""",
        """
selectorsMacros:
  outside: {matchNamespaces: [{namespace: Pid, operator: NotIn, values: [host_ns]}]}
kprobes:
  - {call: security_path_chmod, syscall: false, selectors: [{macros: [outside]}]}
""",
    ),
    _rule(
        "list",
        "error",
        REFUSED,
        "A list that is not there, or not for this filter",
        "Values from a list work on tracepoints alone, on an argument of type syscall64.",
        "pkg/sensors/tracing/lists_linux.go, 1.7.0; tried",
        """
lists: [{name: calls, type: syscalls, values: [sys_dup]}]
tracepoints:
  - subsystem: raw_syscalls
    event: sys_enter
    args: [{index: 4, type: uint64}]
    selectors:
      - matchArgs: [{index: 4, operator: InMap, values: ["list:calls"]}]
""",
        """
lists: [{name: calls, type: syscalls, values: [sys_dup]}]
tracepoints:
  - subsystem: raw_syscalls
    event: sys_enter
    args: [{index: 4, type: syscall64}]
    selectors:
      - matchArgs: [{index: 4, operator: InMap, values: ["list:calls"]}]
""",
    ),
    _rule(
        "uprobe-place",
        "error",
        REFUSED,
        "A uprobe that does not say where",
        "One of symbols, offsets and addrs says where; refCtrOffsets has as many entries as it.",
        "pkg/sensors/tracing/genericuprobe.go, 1.7.0",
        """
uprobes:
  - {path: /usr/bin/tool}
""",
        """
uprobes:
  - {path: /usr/bin/tool, symbols: [export_all]}
""",
    ),
    _rule(
        "action-option",
        "error",
        REFUSED,
        "A property that the action does not take",
        """Stack traces go with Post, and not in LSM hooks; imaHash in LSM hooks alone; rateLimit is a number, with s, m or h. GetUrl and
        DnsLookup in uprobes and usdts are refused from 1.7.1 on.""",
        "pkg/sensors/tracing/generickprobe.go and pkg/selectors/kernel.go, 1.7.0; 1fa0107df, 1.7.1",
        """
kprobes:
  - {call: security_path_chmod, syscall: false, selectors: [{matchActions: [{action: Post, rateLimit: 1 minute}]}]}
""",
        """
kprobes:
  - {call: security_path_chmod, syscall: false, selectors: [{matchActions: [{action: Post, rateLimit: 1m}]}]}
""",
    ),
    # --- differs ---------------------------------------------------------------------------------------------------
    _rule(
        "no-hooks",
        "error",
        DIFFERS,
        "No hooks at all",
        "A policy without hooks, loader or enforcers loads, is listed as enabled, and sees nothing.",
        "pkg/sensors/tracing/policyhandler_linux.go, 1.7.0",
        """
options:
  - {name: policy-mode, value: monitor}
""",
        """
options:
  - {name: policy-mode, value: monitor}
kprobes:
  - {call: security_path_chmod, syscall: false}
""",
    ),
    _rule(
        "second-document",
        "error",
        DIFFERS,
        "A second document in one file",
        "The agent loads the first document of a file and says nothing of the others.",
        "measured, 1.7.0",
        """
kprobes:
  - {call: security_path_chmod, syscall: false}
---
kprobes:
  - {call: security_path_chown, syscall: false}
""",
        """
kprobes:
  - {call: security_path_chmod, syscall: false}
  - {call: security_path_chown, syscall: false}
""",
    ),
    _rule(
        "unknown-option",
        "error",
        DIFFERS,
        "An option that the agent does not know",
        "The agent ignores it without a word: with policy-mode misspelt, a policy meant to monitor enforces.",
        "pkg/sensors/tracing/options.go, 1.7.0",
        """
options: [{name: policy_mode, value: monitor}]
kprobes:
  - {call: security_path_chmod, syscall: false}
""",
        """
options: [{name: policy-mode, value: monitor}]
kprobes:
  - {call: security_path_chmod, syscall: false}
""",
    ),
    _rule(
        "mode-ignored",
        "error",
        DIFFERS,
        "monitor on an agent that only enforces",
        "Agents before 1.4 do not know policy-mode, ignore it, and enforce.",
        "pkg/sensors/tracing/options.go, 1.3.0",
        """
options: [{name: disable-kprobe-multi, value: "1"}, {name: policy-mode, value: monitor}]
kprobes:
  - call: security_path_truncate
    syscall: false
    args: [{index: 0, type: path}]
    selectors:
      - matchArgs: [{index: 0, operator: Prefix, values: [/srv/]}]
        matchActions: [{action: Override, argError: -1}]
""",
        """
options: [{name: policy-mode, value: monitor}]
kprobes:
  - call: security_path_truncate
    syscall: false
    args: [{index: 0, type: path}]
    selectors:
      - matchArgs: [{index: 0, operator: Prefix, values: [/srv/]}]
""",
        version=(1, 3, 0),
    ),
    _rule(
        "uprobe-scope",
        "error",
        DIFFERS,
        "A uprobe that is meant for chosen pods",
        "Agents before 1.7.1 do not look at podSelector, containerSelector or the namespace in uprobes and usdts.",
        "10b997a6b, 1.7.1",
        """
podSelector: {matchLabels: {app: cart}}
uprobes:
  - {path: /usr/bin/tool, symbols: [export_all]}
""",
        """
uprobes:
  - {path: /usr/bin/tool, symbols: [export_all]}
""",
    ),
    _rule(
        "syscall-default",
        "error",
        DIFFERS,
        "A function taken for a system call",
        """syscall is true unless said otherwise: the agent reads the arguments of a function as those of a system call, or does not
        find it.""",
        "the CRD's default, 1.7.0; the upstream documentation says otherwise",
        """
kprobes:
  - {call: security_path_chmod, args: [{index: 0, type: path}]}
""",
        """
kprobes:
  - {call: security_path_chmod, syscall: false, args: [{index: 0, type: path}]}
""",
    ),
    _rule(
        "lsm-without-selector",
        "error",
        DIFFERS,
        "An LSM hook that never posts",
        "Events of an LSM hook are posted by its selectors' actions. Without selectors there are none; one empty selector is enough.",
        "bpf/process/bpf_generic_lsm_core.c, 1.7.0 and main; tried",
        """
lsmhooks:
  - {hook: task_setnice}
""",
        """
lsmhooks:
  - {hook: task_setnice, selectors: [{}]}
""",
    ),
    _rule(
        "duplicate-lsm-hook",
        "error",
        DIFFERS,
        "An LSM hook that stands twice",
        "Before 1.7.1 all entries of one hook use the selectors of the last one, and events come several times.",
        "issue 4578; 2e7388886, 1.7.1",
        """
lsmhooks:
  - {hook: task_setnice, selectors: [{matchPIDs: [{operator: In, values: [1]}]}]}
  - {hook: task_setnice, selectors: [{matchPIDs: [{operator: In, values: [2]}]}]}
""",
        """
lsmhooks:
  - {hook: task_setnice, selectors: [{matchPIDs: [{operator: In, values: [1, 2]}]}]}
""",
    ),
    _rule(
        "lsm-echo",
        "warning",
        DIFFERS,
        "An LSM hook that repeats events of others",
        """Under a workload selector, a call that the selector rejects posts the last event of that CPU again: the flag that says
        post is cleared too late.""",
        "bpf/process/bpf_generic_lsm_output.c, 1.7.0 and main; issue 5237",
        """
podSelector: {matchLabels: {app: cart}}
lsmhooks:
  - {hook: task_setnice, selectors: [{}]}
""",
        """
podSelector: {matchLabels: {app: cart}}
kprobes:
  - {call: security_task_setnice, syscall: false}
""",
    ),
    _rule(
        "lsm-error-number",
        "warning",
        DIFFERS,
        "An LSM hook's own error number",
        "The number is widened without its sign in the kernel, taken for no error, and replaced: callers see EPERM.",
        "measured, 1.7.0 and main, -13 asked for",
        """
lsmhooks:
  - hook: task_setnice
    selectors:
      - matchPIDs: [{operator: In, values: [1]}]
        matchActions: [{action: Override, argError: -13}]
""",
        """
options: [{name: disable-kprobe-multi, value: "1"}]
kprobes:
  - call: security_task_setnice
    syscall: false
    selectors:
      - matchPIDs: [{operator: In, values: [1]}]
        matchActions: [{action: Override, argError: -13}]
""",
    ),
    _rule(
        "override-without-error",
        "error",
        DIFFERS,
        "Override that overrides nothing",
        "Without argError the answer is 0, and a security_* function or LSM hook that answers 0 allows the call.",
        "bpf/process/bpf_generic_kprobe.c, 1.7.0, and how the kernel runs fmod_ret and LSM programs",
        """
options: [{name: disable-kprobe-multi, value: "1"}]
kprobes:
  - call: security_path_truncate
    syscall: false
    args: [{index: 0, type: path}]
    selectors:
      - matchArgs: [{index: 0, operator: Prefix, values: [/srv/]}]
        matchActions: [{action: Override}]
""",
        """
options: [{name: disable-kprobe-multi, value: "1"}]
kprobes:
  - call: security_path_truncate
    syscall: false
    args: [{index: 0, type: path}]
    selectors:
      - matchArgs: [{index: 0, operator: Prefix, values: [/srv/]}]
        matchActions: [{action: Override, argError: -1}]
""",
    ),
    _rule(
        "signal-without-number",
        "error",
        DIFFERS,
        "A signal that is none",
        """Signal sends argSig, which is 0 unless said otherwise, and signal 0 does nothing. NotifyEnforcer does what argError and
        argSig say.""",
        "bpf/process/generic_calls.h, 1.7.0",
        """
kprobes:
  - call: security_path_truncate
    syscall: false
    args: [{index: 0, type: path}]
    selectors:
      - matchArgs: [{index: 0, operator: Prefix, values: [/srv/]}]
        matchActions: [{action: Signal}]
""",
        """
kprobes:
  - call: security_path_truncate
    syscall: false
    args: [{index: 0, type: path}]
    selectors:
      - matchArgs: [{index: 0, operator: Prefix, values: [/srv/]}]
        matchActions: [{action: Signal, argSig: 15}]
""",
    ),
    _rule(
        "action-without-effect",
        "error",
        DIFFERS,
        "An action in a place where it does nothing",
        """Override, NotifyEnforcer and Set have no code on the return side; LSM hooks, tracepoints and usdts have no return side. GetUrl
        and DnsLookup happen in user space, and only as the last action of an event that is posted.""",
        "bpf/process/generic_calls.h and pkg/sensors/tracing/generickprobe.go, 1.7.0",
        """
kprobes:
  - call: security_path_truncate
    syscall: false
    args: [{index: 0, type: path}]
    selectors:
      - matchArgs: [{index: 0, operator: Prefix, values: [/srv/]}]
        matchActions: [{action: GetUrl, argUrl: "http://127.0.0.1/"}, {action: Post}]
""",
        """
kprobes:
  - call: security_path_truncate
    syscall: false
    args: [{index: 0, type: path}]
    selectors:
      - matchArgs: [{index: 0, operator: Prefix, values: [/srv/]}]
        matchActions: [{action: Post}, {action: GetUrl, argUrl: "http://127.0.0.1/"}]
""",
    ),
    _rule(
        "return-enforcement",
        "error",
        DIFFERS,
        "A kill on the return side",
        "The return program is not told the mode and takes it for enforce: Sigkill and Signal there kill in monitor mode too, uncounted.",
        "measured, 1.7.0: 18 of 19 killed in mode monitor, 19 of 19 in monitor_only",
        """
kprobes:
  - call: security_path_truncate
    syscall: false
    return: true
    returnArg: {index: 0, type: int}
    args: [{index: 0, type: path}]
    selectors:
      - matchArgs: [{index: 0, operator: Prefix, values: [/srv/]}]
        matchReturnActions: [{action: Sigkill}]
""",
        """
kprobes:
  - call: security_path_truncate
    syscall: false
    args: [{index: 0, type: path}]
    selectors:
      - matchArgs: [{index: 0, operator: Prefix, values: [/srv/]}]
        matchActions: [{action: Sigkill}]
""",
    ),
    _rule(
        "enforce-without-action",
        "error",
        DIFFERS,
        "Mode enforce without an enforcing action",
        "The agent looks for enforcing actions under matchActions, macros left out, and when it finds none the policy monitors for good.",
        "pkg/sensors/tracing/policyhandler_linux.go, 1.7.0; issue 4997",
        """
kprobes:
  - {call: security_path_truncate, syscall: false}
""",
        """
options: [{name: disable-kprobe-multi, value: "1"}]
kprobes:
  - call: security_path_truncate
    syscall: false
    args: [{index: 0, type: path}]
    selectors:
      - matchArgs: [{index: 0, operator: Prefix, values: [/srv/]}]
        matchActions: [{action: Override, argError: -1}]
""",
        mode="enforce",
    ),
    _rule(
        "macro-enforcement",
        "error",
        DIFFERS,
        "An enforcing action in a macro alone",
        """The agent looks for enforcing actions before it fills macros in. Finding none, it only monitors; the events say SIGKILL
        all the same.""",
        "pkg/sensors/tracing/policyhandler_linux.go, 1.7.0 and main; tried",
        """
selectorsMacros:
  kill: {matchActions: [{action: Sigkill}]}
kprobes:
  - call: security_path_truncate
    syscall: false
    args: [{index: 0, type: path}]
    selectors:
      - matchArgs: [{index: 0, operator: Prefix, values: [/srv/]}]
        macros: [kill]
""",
        """
kprobes:
  - call: security_path_truncate
    syscall: false
    args: [{index: 0, type: path}]
    selectors:
      - matchArgs: [{index: 0, operator: Prefix, values: [/srv/]}]
        matchActions: [{action: Sigkill}]
""",
    ),
    _rule(
        "filter-constant",
        "error",
        DIFFERS,
        "A filter that always gives the same answer",
        """Prefix, Postfix and their negations load for every type. Where the kernel has no comparison they match always (filename,
        char_iovec, iov_iter, kiocb, cred, ...), on numbers and sockets never, negated or not. The same holds for SubString and CelExpr
        where they do not work, Mask with 0, State of a skb, reversed ranges, empty prefixes, and prefixes of 256 bytes.""",
        "pkg/selectors/kernel.go and bpf/process/types/basic.h, 1.7.0; tried with filename and int",
        """
kprobes:
  - call: security_path_chmod
    syscall: false
    args: [{index: 1, type: uint32}]
    selectors:
      - matchArgs: [{index: 1, operator: NotPrefix, values: ["1"]}]
""",
        """
kprobes:
  - call: security_path_chmod
    syscall: false
    args: [{index: 1, type: uint32}]
    selectors:
      - matchArgs: [{index: 1, operator: NotEqual, values: ["1"]}]
""",
    ),
    _rule(
        "empty-filter",
        "error",
        DIFFERS,
        "Executables that are not named",
        "matchBinaries without values is left out: the selector matches every process.",
        "pkg/selectors/kernel.go, 1.7.0",
        """
kprobes:
  - {call: security_path_chmod, syscall: false, selectors: [{matchBinaries: [{operator: In, values: []}]}]}
""",
        """
kprobes:
  - {call: security_path_chmod, syscall: false, selectors: [{matchBinaries: [{operator: In, values: [/usr/bin/tool]}]}]}
""",
    ),
    _rule(
        "negative-number",
        "error",
        DIFFERS,
        "A negative number that is never met",
        """Arguments of 8 and 16 bits are compared without their sign, so that negative values never match and a range with one matches
        nothing. InMap finds negative numbers in 64 bits only.""",
        "pkg/selectors/kernel.go and bpf/process/types/basic.h, 1.7.0; tried",
        """
kprobes:
  - call: security_task_setnice
    syscall: false
    args: [{index: 1, type: int}]
    selectors:
      - matchArgs: [{index: 1, operator: InMap, values: ["-5", "-6"]}]
""",
        """
kprobes:
  - call: security_task_setnice
    syscall: false
    args: [{index: 1, type: int}]
    selectors:
      - matchArgs: [{index: 1, operator: Equal, values: ["-5", "-6"]}]
""",
    ),
    _rule(
        "size-t",
        "error",
        DIFFERS,
        "A size beyond 32 bits",
        "Of a size_t the low 32 bits are compared, without a sign: 0x1_0000_0007 equals 7.",
        "bpf/process/types/basic.h, 1.7.0; tried",
        """
kprobes:
  - call: vfs_truncate
    syscall: false
    args: [{index: 1, type: size_t}]
    selectors:
      - matchArgs: [{index: 1, operator: GT, values: ["0x100000000"]}]
""",
        """
kprobes:
  - call: vfs_truncate
    syscall: false
    args: [{index: 1, type: uint64}]
    selectors:
      - matchArgs: [{index: 1, operator: GT, values: ["0x100000000"]}]
""",
    ),
    _rule(
        "nul-in-value",
        "error",
        DIFFERS,
        "A NUL at the end of a path",
        "The agent takes a NUL off the values of type string alone. Paths have none, so a value with one never matches.",
        "pkg/selectors/kernel.go, 1.7.0",
        r"""
kprobes:
  - call: security_path_truncate
    syscall: false
    args: [{index: 0, type: path}]
    selectors:
      - matchArgs: [{index: 0, operator: Equal, values: ["/etc/shadow\0"]}]
""",
        """
kprobes:
  - call: security_path_truncate
    syscall: false
    args: [{index: 0, type: path}]
    selectors:
      - matchArgs: [{index: 0, operator: Equal, values: [/etc/shadow]}]
""",
    ),
    _rule(
        "prefix-is-no-directory",
        "warning",
        DIFFERS,
        "A prefix without the slash of its directory",
        "Prefixes are bytes, not directories: /srv/data matches /srv/database too.",
        "bpf/process/types/basic.h, 1.7.0",
        """
kprobes:
  - call: security_path_truncate
    syscall: false
    args: [{index: 0, type: path}]
    selectors:
      - matchArgs: [{index: 0, operator: Prefix, values: [/srv/data]}]
""",
        """
kprobes:
  - call: security_path_truncate
    syscall: false
    args: [{index: 0, type: path}]
    selectors:
      - matchArgs: [{index: 0, operator: Prefix, values: [/srv/data/]}]
""",
    ),
    _rule(
        "multiple-entries",
        "error",
        DIFFERS,
        "More than one entry where the kernel reads one",
        "Of matchPIDs, matchCapabilities and matchCapabilityChanges the kernel reads one entry and takes the next for another filter.",
        "bpf/process/pfilter.h, 1.7.0; tried: nothing matched",
        """
kprobes:
  - call: security_path_chmod
    syscall: false
    selectors:
      - matchCapabilities:
          - {operator: In, values: [CAP_SYS_ADMIN]}
          - {operator: In, values: [CAP_SYS_MODULE]}
""",
        """
kprobes:
  - call: security_path_chmod
    syscall: false
    selectors:
      - matchCapabilities:
          - {operator: In, values: [CAP_SYS_ADMIN, CAP_SYS_MODULE]}
""",
    ),
    _rule(
        "pid-values",
        "error",
        DIFFERS,
        "Process numbers that are not compared",
        """Four numbers are compared; eight or more spoil the rest of the selector. The number 0 with isNamespacePID and followForks is
        found in every process of a container.""",
        "bpf/process/pfilter.h, 1.7.0; tried",
        """
kprobes:
  - call: security_path_chmod
    syscall: false
    selectors:
      - matchPIDs: [{operator: NotIn, values: [0, 1], isNamespacePID: true, followForks: true}]
""",
        """
kprobes:
  - call: security_path_chmod
    syscall: false
    selectors:
      - matchPIDs: [{operator: NotIn, values: [1], isNamespacePID: true, followForks: true}]
""",
    ),
    _rule(
        "silently-cut",
        "warning",
        DIFFERS,
        "A text that is cut",
        "Messages are cut at 256 characters, tags at 128.",
        "pkg/sensors/tracing/message.go and tags.go, 1.7.0",
        f"""
kprobes:
  - {{call: security_path_chmod, syscall: false, message: {"Mode changed. " * 20}}}
""",
        """
kprobes:
  - {call: security_path_chmod, syscall: false, message: Mode changed.}
""",
    ),
    _rule(
        "char-buffer",
        "error",
        DIFFERS,
        "A filter on a buffer that is not there yet",
        "With maxData a filter reads at the wrong place; with returnCopy the content is only known on return.",
        "bpf/process/generic_calls.h, 1.7.0; tried with maxData",
        """
kprobes:
  - call: sys_add_key
    args: [{index: 2, type: char_buf, sizeArgIndex: 4, maxData: true}]
    selectors:
      - matchArgs: [{index: 2, operator: Prefix, values: [sudo]}]
""",
        """
kprobes:
  - call: sys_add_key
    args: [{index: 2, type: char_buf, sizeArgIndex: 4}]
    selectors:
      - matchArgs: [{index: 2, operator: Prefix, values: [sudo]}]
""",
    ),
    _rule(
        "tracepoint-int",
        "error",
        DIFFERS,
        "An int of a tracepoint",
        "Before 1.7.1 it always reads as 0.",
        "bpf/process/bpf_generic_tracepoint.c, 1.7.0; tried; 1574eb91e, 1.7.1",
        """
tracepoints:
  - {subsystem: oom, event: mark_victim, args: [{index: 4, type: int}]}
""",
        """
tracepoints:
  - {subsystem: oom, event: mark_victim, args: [{index: 4, type: int32}]}
""",
    ),
    _rule(
        "raw-index",
        "error",
        DIFFERS,
        "A raw tracepoint's argument that is another",
        """The agent rewrites a filter's index to the argument's position, one argument after the other, and can rewrite a second time.
        Positions under args are not rewritten.""",
        "pkg/sensors/tracing/generictracepoint.go, 1.7.0; tried",
        """
tracepoints:
  - subsystem: oom
    event: mark_victim
    raw: true
    args: [{index: 1, type: uint64}, {index: 0, type: uint64}]
    selectors:
      - matchArgs: [{index: 1, operator: Equal, values: ["7"]}]
""",
        """
tracepoints:
  - subsystem: oom
    event: mark_victim
    raw: true
    args: [{index: 1, type: uint64}, {index: 0, type: uint64}]
    selectors:
      - matchArgs: [{args: [0], operator: Equal, values: ["7"]}]
""",
    ),
    _rule(
        "argument-offset",
        "warning",
        DIFFERS,
        "A filter on what stands behind a long argument",
        """A filter finds its argument within the first 2,047 bytes of what was read. Behind a path or a text that somebody made longer,
        it compares other bytes: a way round the policy. List the longest argument last.""",
        "bpf/process/types/basic.h, 1.7.0 and main; tried with 3,000 bytes",
        """
kprobes:
  - call: security_path_chmod
    syscall: false
    args: [{index: 0, type: path}, {index: 1, type: uint32}]
    selectors:
      - matchArgs: [{index: 1, operator: Mask, values: ["04000"]}]
""",
        """
kprobes:
  - call: security_path_chmod
    syscall: false
    args: [{index: 1, type: uint32}, {index: 0, type: path}]
    selectors:
      - matchArgs: [{index: 1, operator: Mask, values: ["04000"]}]
""",
    ),
    _rule(
        "selector-block",
        "error",
        DIFFERS,
        "Selectors of more than 1,024 bytes",
        "The agent writes up to 4,096 bytes of selectors, the kernel side finds the first 1,024: what stands behind them is lost.",
        "bpf/process/types/basic.h, 1.7.0 and main; tried with 1.4 kB",
        """
kprobes:
  - call: security_path_chmod
    syscall: false
    args: [{index: 1, type: uint64}]
    selectors:
"""
        + """      - matchArgs:
          - {index: 1, operator: InRange, values: ["1:2", "3:4", "5:6", "7:8"]}
          - {index: 1, operator: InRange, values: ["1:9", "3:4", "5:6", "7:8"]}
        matchActions: [{action: Post}, {action: Post}, {action: Post}]
"""
        * 4,
        """
kprobes:
  - call: security_path_chmod
    syscall: false
    args: [{index: 1, type: uint64}]
    selectors:
      - matchArgs: [{index: 1, operator: InMap, values: ["1:9"]}]
""",
    ),
    _rule(
        "shared-maps",
        "error",
        DIFFERS,
        "Hooks that use each other's values",
        """Kprobes of a policy share one program where kprobe-multi is in use. Sets, ports, addresses and substrings are then numbered
        anew for each hook, and matchBinaries goes by the number of the selector alone: the hook that was loaded last wins.""",
        "measured on Linux 6.12 with 1.7.0: one act was allowed, another process was killed; with the option as written",
        """
kprobes:
  - call: security_path_chmod
    syscall: false
    selectors: [{matchBinaries: [{operator: In, values: [/usr/bin/one]}]}]
  - call: security_path_chown
    syscall: false
    selectors: [{matchBinaries: [{operator: In, values: [/usr/bin/two]}]}]
""",
        """
options: [{name: disable-kprobe-multi, value: "1"}]
kprobes:
  - call: security_path_chmod
    syscall: false
    selectors: [{matchBinaries: [{operator: In, values: [/usr/bin/one]}]}]
  - call: security_path_chown
    syscall: false
    selectors: [{matchBinaries: [{operator: In, values: [/usr/bin/two]}]}]
""",
    ),
    _rule(
        "mapped-addresses",
        "warning",
        DIFFERS,
        "IPv4 addresses that IPv6 sockets go round",
        """A program that opens an IPv6 socket reaches IPv4 hosts as ::ffff:a.b.c.d. The agent compares such an address with IPv6 values
        alone: SAddr and DAddr do not match it, NotSAddr and NotDAddr always do.""",
        "bpf/process/types/basic.h, 1.7.0",
        """
kprobes:
  - call: tcp_connect
    syscall: false
    args: [{index: 0, type: sock}]
    selectors:
      - matchArgs: [{index: 0, operator: DAddr, values: [192.0.2.0/24]}]
""",
        """
kprobes:
  - call: tcp_connect
    syscall: false
    args: [{index: 0, type: sock}]
    selectors:
      - matchArgs: [{index: 0, operator: DAddr, values: [192.0.2.0/24, "::ffff:192.0.2.0/120"]}]
""",
    ),
    _rule(
        "port-without-family",
        "warning",
        DIFFERS,
        "Ports of sockets that have none",
        "A unix socket has port 0, which is below 1024 and in no list.",
        "bpf/process/types/basic.h, 1.7.0; tried",
        """
kprobes:
  - call: security_socket_connect
    syscall: false
    args: [{index: 1, type: sockaddr}]
    selectors:
      - matchArgs: [{index: 1, operator: NotSPort, values: ["443"]}]
""",
        """
kprobes:
  - call: security_socket_connect
    syscall: false
    args: [{index: 1, type: sockaddr}]
    selectors:
      - matchArgs:
          - {index: 1, operator: Family, values: [AF_INET, AF_INET6]}
          - {index: 1, operator: NotSPort, values: ["443"]}
""",
    ),
    _rule(
        "negated-path",
        "warning",
        DIFFERS,
        "Everything but these paths",
        "A file without a path (the root directory, pipes, sockets) matches neither a path nor its negation.",
        "bpf/process/types/basic.h, 1.7.0; tried",
        """
kprobes:
  - call: security_path_truncate
    syscall: false
    args: [{index: 0, type: path}]
    selectors:
      - matchArgs: [{index: 0, operator: NotPrefix, values: [/srv/]}]
""",
        """
kprobes:
  - call: security_path_truncate
    syscall: false
    args: [{index: 0, type: path}]
    selectors:
      - matchArgs: [{index: 0, operator: Prefix, values: [/etc/, /usr/]}]
""",
    ),
    _rule(
        "binary-path",
        "warning",
        DIFFERS,
        "An executable by the name of a symlink",
        """The agent compares the executed file with symlinks resolved, and for a script its interpreter. /bin is a symlink on most
        distributions, sh and python3 are everywhere. The events show the other name.""",
        "bpf/process/bpf_execve_event.c, 1.7.0; tried",
        """
kprobes:
  - {call: security_path_chmod, syscall: false, selectors: [{matchBinaries: [{operator: In, values: [/bin/cat]}]}]}
""",
        """
kprobes:
  - {call: security_path_chmod, syscall: false, selectors: [{matchBinaries: [{operator: In, values: [/bin/cat, /usr/bin/cat]}]}]}
""",
    ),
    _rule(
        "rate-limit-slot",
        "warning",
        DIFFERS,
        "A rate limit outside of kprobes",
        "The table of what was posted is sized for kprobes alone; elsewhere it has one entry, so that two alternating events pass.",
        "pkg/sensors/tracing, 1.7.0",
        """
tracepoints:
  - {subsystem: oom, event: mark_victim, selectors: [{matchActions: [{action: Post, rateLimit: 1m}]}]}
""",
        """
kprobes:
  - {call: security_path_chmod, syscall: false, selectors: [{matchActions: [{action: Post, rateLimit: 1m}]}]}
""",
    ),
    _rule(
        "post-before-action",
        "error",
        DIFFERS,
        "An action behind Post on an old kernel",
        "The programs for kernels before 5.11 do not skip the last word of Post and misread the action behind it.",
        "bpf/process/generic_calls.h, 1.7.0",
        """
kprobes:
  - call: security_path_truncate
    syscall: false
    args: [{index: 0, type: path}]
    selectors:
      - matchArgs: [{index: 0, operator: Prefix, values: [/srv/]}]
        matchActions: [{action: Post}, {action: Sigkill}]
""",
        """
kprobes:
  - call: security_path_truncate
    syscall: false
    args: [{index: 0, type: path}]
    selectors:
      - matchArgs: [{index: 0, operator: Prefix, values: [/srv/]}]
        matchActions: [{action: Sigkill}, {action: Post}]
""",
        kernel={"release": "5.4"},
    ),
    _rule(
        "hidden-enforcement",
        "warning",
        DIFFERS,
        "Enforcement that nobody is told of",
        "NoPost takes the event away and leaves the other actions: a process is refused or killed, and no event says so.",
        "bpf/process/generic_calls.h, 1.7.0",
        """
options: [{name: disable-kprobe-multi, value: "1"}]
kprobes:
  - call: security_path_truncate
    syscall: false
    args: [{index: 0, type: path}]
    selectors:
      - matchArgs: [{index: 0, operator: Prefix, values: [/srv/]}]
        matchActions: [{action: Override, argError: -1}, {action: NoPost}]
""",
        """
options: [{name: disable-kprobe-multi, value: "1"}]
kprobes:
  - call: security_path_truncate
    syscall: false
    args: [{index: 0, type: path}]
    selectors:
      - matchArgs: [{index: 0, operator: Prefix, values: [/srv/]}]
        matchActions: [{action: Override, argError: -1}]
""",
    ),
    # --- unsafe ----------------------------------------------------------------------------------------------------
    _rule(
        "enforce-unscoped",
        "error",
        UNSAFE,
        "Enforcement against every caller",
        "An enforcing action in a selector that filters nothing, in a policy that selects no workloads, hits all of the host.",
        "how selectors work: an empty one matches",
        """
options: [{name: disable-kprobe-multi, value: "1"}]
kprobes:
  - {call: security_path_truncate, syscall: false, selectors: [{matchActions: [{action: Override, argError: -1}]}]}
""",
        """
podSelector: {matchLabels: {app: cart}}
options: [{name: disable-kprobe-multi, value: "1"}]
kprobes:
  - {call: security_path_truncate, syscall: false, selectors: [{matchActions: [{action: Override, argError: -1}]}]}
""",
    ),
    _rule(
        "kills-protected",
        "error",
        UNSAFE,
        "A kill that can hit what must live",
        """Environments name executables that nothing may kill: systemd, sshd, the agent, the container runtime. A kill must exclude them,
        name the executables meant, or be scoped to workloads. followChildren reaches whatever the named ones started; hostSelector
        brings the host back in; uprobes before 1.7.1 look at no workload selector.""",
        "how selectors work; pkg/sensors/k8s.go, 1.7.0; 10b997a6b, 1.7.1",
        """
kprobes:
  - call: security_path_truncate
    syscall: false
    args: [{index: 0, type: path}]
    selectors:
      - matchArgs: [{index: 0, operator: Prefix, values: [/srv/]}]
        matchActions: [{action: Sigkill}]
""",
        """
kprobes:
  - call: security_path_truncate
    syscall: false
    args: [{index: 0, type: path}]
    selectors:
      - matchArgs: [{index: 0, operator: Prefix, values: [/srv/]}]
        matchBinaries: [{operator: NotIn, values: [/usr/sbin/sshd]}]
        matchActions: [{action: Sigkill}]
""",
        protected=("/usr/sbin/sshd",),
    ),
    # --- weak ------------------------------------------------------------------------------------------------------
    _rule(
        "lsm-override-leaks",
        "error",
        WEAK,
        "Override in an LSM hook",
        """The two programs of an LSM hook pass the verdict on in a map with room for one: of two processes that race, one gets through.
        Measured: 0 of 20,000 attempts of one process, 2 to 5 of 100 of two and more. The kprobe on the security_* function has a map
        for 32,768 and let none through in 48,000.""",
        "measured, 1.7.0 and main, Linux 6.1, 2 CPUs",
        """
lsmhooks:
  - hook: path_truncate
    args: [{index: 0, type: path}]
    selectors:
      - matchArgs: [{index: 0, operator: Prefix, values: [/srv/]}]
        matchActions: [{action: Override, argError: -1}]
""",
        """
options: [{name: disable-kprobe-multi, value: "1"}]
kprobes:
  - call: security_path_truncate
    syscall: false
    args: [{index: 0, type: path}]
    selectors:
      - matchArgs: [{index: 0, operator: Prefix, values: [/srv/]}]
        matchActions: [{action: Override, argError: -1}]
""",
    ),
    _rule(
        "overridden-twice",
        "warning",
        WEAK,
        "Two policies that override one function",
        """Each policy keeps its verdicts in a map of its own. Where two deny one act, the program that was attached last refuses it, and
        the other never takes its verdict back: the thread's next, harmless call is refused too. Verdicts on threads that are gone stay,
        and a map with 32,768 of them denies nothing more. Measured: one wrong refusal after each such act, and 200 entries after 200
        denied threads.""",
        "measured, 1.7.0, Linux 6.1",
        """
options: [{name: disable-kprobe-multi, value: "1"}, {name: policy-mode, value: enforce}]
kprobes:
  - call: security_path_truncate
    syscall: false
    args: [{index: 0, type: path}]
    selectors:
      - matchArgs: [{index: 0, operator: Prefix, values: [/srv/]}]
        matchActions: [{action: Override, argError: -1}]
""",
        """
options: [{name: disable-kprobe-multi, value: "1"}, {name: policy-mode, value: monitor}]
kprobes:
  - call: security_path_truncate
    syscall: false
    args: [{index: 0, type: path}]
    selectors:
      - matchArgs: [{index: 0, operator: Prefix, values: [/srv/]}]
        matchActions: [{action: Override, argError: -1}]
""",
        policies=2,
    ),
    _rule(
        "not-persistent",
        "warning",
        WEAK,
        "Enforcement that ends with the agent",
        """What an agent enforces outlives it where it pins the link of the hook: kprobes, tracepoints, uprobes. It never pins raw
        tracepoints and enforcers that work by fmod_ret, and LSM hooks only from 1.8 on.""",
        "pkg/sensors/program/loader_linux.go, 1.6.1, 1.7.0 and main; measured for 1.7.0",
        """
tracepoints:
  - subsystem: oom
    event: mark_victim
    raw: true
    selectors:
      - matchBinaries: [{operator: In, values: [/usr/bin/tool]}]
        matchActions: [{action: Sigkill}]
""",
        """
tracepoints:
  - subsystem: oom
    event: mark_victim
    selectors:
      - matchBinaries: [{operator: In, values: [/usr/bin/tool]}]
        matchActions: [{action: Sigkill}]
""",
        mode="enforce",
    ),
    _rule(
        "kill-after-effect",
        "warning",
        WEAK,
        "A kill where only Override prevents",
        """The signal is delivered when the process returns to user space: the file is open, truncated or renamed, the packet sent. Add
        Override where the kernel can refuse the act.""",
        "bpf_send_signal in the kernel; upstream documentation on enforcement",
        """
kprobes:
  - call: security_path_truncate
    syscall: false
    args: [{index: 0, type: path}]
    selectors:
      - matchArgs: [{index: 0, operator: Prefix, values: [/srv/]}]
        matchActions: [{action: Sigkill}]
""",
        """
options: [{name: disable-kprobe-multi, value: "1"}]
kprobes:
  - call: security_path_truncate
    syscall: false
    args: [{index: 0, type: path}]
    selectors:
      - matchArgs: [{index: 0, operator: Prefix, values: [/srv/]}]
        matchActions: [{action: Override, argError: -1}, {action: Sigkill}]
""",
    ),
    _rule(
        "sibling-hooks",
        "warning",
        WEAK,
        "Another call that does the same",
        """open, openat, openat2, creat and open_by_handle_at open files; most acts have several calls. Hook all of them, or the function
        through which all pass.""",
        "the kernel's table of system calls",
        """
kprobes:
  - {call: sys_renameat, args: [{index: 1, type: string}]}
""",
        """
kprobes:
  - {call: security_path_rename, syscall: false, args: [{index: 0, type: path}]}
""",
    ),
    _rule(
        "io-uring",
        "warning",
        WEAK,
        "A system call that io_uring does without",
        "A program with an io_uring opens, reads, writes, connects and renames without these system calls. security_* functions see it.",
        "the kernel's io_uring operations; public proofs against monitors of system calls",
        """
kprobes:
  - {call: sys_connect, args: [{index: 1, type: sockaddr}]}
""",
        """
kprobes:
  - {call: security_socket_connect, syscall: false, args: [{index: 1, type: sockaddr}]}
""",
    ),
    _rule(
        "syscall-argument",
        "warning",
        WEAK,
        "Enforcement on what the caller's memory says",
        """The text at the entry of a system call is the caller's: another thread can change it before the kernel reads it, and it may be
        relative or a symlink. The security_* function has the file itself.""",
        "upstream documentation on hook points",
        """
kprobes:
  - call: sys_swapon
    args: [{index: 0, type: string}]
    selectors:
      - matchArgs: [{index: 0, operator: Prefix, values: [/srv/]}]
        matchActions: [{action: Override, argError: -1}]
""",
        """
options: [{name: disable-kprobe-multi, value: "1"}]
kprobes:
  - call: security_path_truncate
    syscall: false
    args: [{index: 0, type: path}]
    selectors:
      - matchArgs: [{index: 0, operator: Prefix, values: [/srv/]}]
        matchActions: [{action: Override, argError: -1}]
""",
    ),
    _rule(
        "compat-syscall",
        "warning",
        WEAK,
        "A system call that 32-bit programs do not call",
        "32-bit programs enter through functions of their own. A list of type syscalls takes them as i386/sys_...",
        "pkg/arch, 1.7.0",
        """
kprobes:
  - call: sys_swapon
    selectors:
      - matchBinaries: [{operator: In, values: [/usr/bin/tool]}]
        matchActions: [{action: Override, argError: -1}]
""",
        """
lists: [{name: calls, type: syscalls, values: [sys_swapon, i386/sys_swapon]}]
kprobes:
  - call: "list:calls"
    selectors:
      - matchBinaries: [{operator: In, values: [/usr/bin/tool]}]
        matchActions: [{action: Override, argError: -1}]
""",
    ),
    _rule(
        "rename-or-link",
        "warning",
        WEAK,
        "A file that gets another path",
        "A filter on paths guards a path, not the file. Renamed or linked elsewhere, the file is read and written under the other one.",
        "public reports on path-based monitors",
        """
options: [{name: disable-kprobe-multi, value: "1"}]
kprobes:
  - call: security_file_open
    syscall: false
    args: [{index: 0, type: file}]
    selectors:
      - matchArgs: [{index: 0, operator: Equal, values: [/etc/shadow]}]
        matchActions: [{action: Override, argError: -1}]
""",
        """
options: [{name: disable-kprobe-multi, value: "1"}]
kprobes:
  - call: security_file_open
    syscall: false
    args: [{index: 0, type: file}]
    selectors:
      - matchArgs: [{index: 0, operator: Equal, values: [/etc/shadow]}]
        matchActions: [{action: Override, argError: -1}]
  - call: security_path_rename
    syscall: false
    args: [{index: 1, type: dentry}]
    selectors:
      - matchArgs: [{index: 1, operator: Postfix, values: [/shadow]}]
        matchActions: [{action: Override, argError: -1}]
  - call: security_path_link
    syscall: false
    args: [{index: 0, type: dentry}]
    selectors:
      - matchArgs: [{index: 0, operator: Postfix, values: [/shadow]}]
        matchActions: [{action: Override, argError: -1}]
""",
    ),
    _rule(
        "bind-mount",
        "warning",
        WEAK,
        "A file under a bind mount",
        "Who may mount can show a file under another path, and the agent sees that one.",
        "public reports on path-based monitors",
        """
options: [{name: disable-kprobe-multi, value: "1"}]
kprobes:
  - call: security_file_open
    syscall: false
    args: [{index: 0, type: file}]
    selectors:
      - matchArgs: [{index: 0, operator: Equal, values: [/etc/shadow]}]
        matchActions: [{action: Override, argError: -1}]
""",
        """
options: [{name: disable-kprobe-multi, value: "1"}]
kprobes:
  - call: security_file_open
    syscall: false
    args: [{index: 0, type: file}]
    selectors:
      - matchArgs: [{index: 0, operator: Equal, values: [/etc/shadow]}]
        matchActions: [{action: Override, argError: -1}]
  - call: security_sb_mount
    syscall: false
    args: [{index: 1, type: path}]
    selectors:
      - matchArgs: [{index: 1, operator: Prefix, values: [/srv/]}]
        matchActions: [{action: Override, argError: -1}]
  - call: security_move_mount
    syscall: false
    args: [{index: 1, type: path}]
    selectors:
      - matchArgs: [{index: 1, operator: Prefix, values: [/srv/]}]
        matchActions: [{action: Override, argError: -1}]
""",
    ),
    # --- cost ------------------------------------------------------------------------------------------------------
    _rule(
        "hot-hook-unfiltered",
        "warning",
        COST,
        "A hook that is called all the time, unfiltered",
        """Every call becomes an event: for files, reads and writes, scheduling, and every system call that is millions a day. NoPost is
        allowed: it makes no event.""",
        "event counts of recordings; public reports of hosts that were overwhelmed",
        """
kprobes:
  - {call: security_file_open, syscall: false, args: [{index: 0, type: file}]}
""",
        """
kprobes:
  - call: security_file_open
    syscall: false
    args: [{index: 0, type: file}]
    selectors:
      - matchArgs: [{index: 0, operator: Equal, values: [/etc/shadow]}]
""",
    ),
    _rule(
        "memory",
        "warning",
        COST,
        "Kernel memory of all policies together",
        """Beside what the agent lists, a policy takes about 85 kB per possible CPU; a hook with a rate limit takes 8 MB. It is told when
        all policies of a host take more than 256 MB.""",
        "measured, 1.7.0, 0 to 38 policies",
        """
kprobes:
  - {call: security_path_chmod, syscall: false, selectors: [{matchActions: [{action: Post, rateLimit: 1m}]}]}
""",
        """
kprobes:
  - {call: security_path_chmod, syscall: false, selectors: [{matchActions: [{action: Post}]}]}
""",
        policies=40,
    ),
    # --- versions --------------------------------------------------------------------------------------------------
    _rule(
        "pruned-field",
        "warning",
        VERSIONS,
        "A field that an older CRD takes away",
        """A cluster drops what its CRD does not know, and clients that do not ask for strict validation see at most a warning. A policy
        that a newer field narrows down then applies everywhere. Raise the CRD before such a policy is sent.""",
        "pruning of unknown fields by Kubernetes; the CRDs of 1.6.1, 1.7.0 and main",
        """
nodeSelector: {matchLabels: {pool: web}}
kprobes:
  - {call: security_path_chmod, syscall: false}
""",
        """
podSelector: {matchLabels: {app: cart}}
kprobes:
  - {call: security_path_chmod, syscall: false}
""",
        version=(1, 8, 0),
    ),
    _rule(
        "call-not-found",
        "warning",
        VERSIONS,
        "A hook that may not be there",
        """Where the kernel lacks the function, ignore.callNotFound drops the hook. Agents before 1.8 list the policy as enabled, even with
        no hook left.""",
        "pkg/sensors/tracing/policyhandler_linux.go, 1.7.0",
        """
kprobes:
  - {call: security_path_chmod, syscall: false, ignore: {callNotFound: true}}
""",
        """
kprobes:
  - {call: security_path_chmod, syscall: false}
""",
    ),
    _rule(
        "fd-argument",
        "warning",
        VERSIONS,
        "A file descriptor as an argument",
        """Until 1.7 the agent knows the path of a descriptor only after FollowFD; from 1.8 on it looks it up, and drops the event when it
        cannot. A function that has the file as an argument works on all versions.""",
        "bpf/process/types/basic.h, 1.7.0 and main",
        """
kprobes:
  - {call: sys_fchdir, args: [{index: 0, type: fd}]}
""",
        """
kprobes:
  - {call: set_fs_pwd, syscall: false, args: [{index: 1, type: path}]}
""",
    ),
    _rule(
        "deprecated-action",
        "warning",
        VERSIONS,
        "An action that is going away",
        "FollowFD, UnfollowFD and CopyFD are deprecated since 1.4 and unknown to 1.8.",
        "upgrade notes of 1.4 and main",
        """
kprobes:
  - call: fd_install
    syscall: false
    args: [{index: 0, type: int}, {index: 1, type: file}]
    selectors:
      - matchArgs: [{index: 1, operator: Equal, values: [/etc/shadow]}]
        matchActions: [{action: FollowFD, argFd: 0, argName: 1}]
""",
        """
kprobes:
  - call: security_file_permission
    syscall: false
    args: [{index: 0, type: file}]
    selectors:
      - matchArgs: [{index: 0, operator: Equal, values: [/etc/shadow]}]
""",
    ),
    _rule(
        "architecture-name",
        "warning",
        VERSIONS,
        "A system call by the name of one architecture",
        "__x64_sys_... does not exist on arm64, and the other way round. The agent adds the prefix to sys_... itself.",
        "pkg/arch, 1.7.0; issues 751, 884 and 886",
        """
kprobes:
  - {call: __x64_sys_swapon}
""",
        """
kprobes:
  - {call: sys_swapon}
""",
    ),
    _rule(
        "literal-pid",
        "warning",
        VERSIONS,
        "A process by its number",
        "A number names another process after the next start, and on every other host.",
        "how the kernel numbers processes",
        """
kprobes:
  - {call: security_path_chmod, syscall: false, selectors: [{matchPIDs: [{operator: In, values: [4711]}]}]}
""",
        """
kprobes:
  - {call: security_path_chmod, syscall: false, selectors: [{matchBinaries: [{operator: In, values: [/usr/bin/tool]}]}]}
""",
    ),
)

CATALOGUE: Mapping[str, Rule] = {rule.id: rule for rule in _RULES}
