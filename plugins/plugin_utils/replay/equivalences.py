# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""What a recording of one hook says about a policy on another.

Only what holds on every kernel that the agent supports is here. An equivalence decides calls that were recorded; that
nothing was recorded never says that nothing happened.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.records import Hook

# security_<name> calls the hook <name> of every security module with its own arguments, in its own order. Left out, since
# a wrapper returns early, or adds, drops or reorders arguments: mmap_file, the inode_*, path_* and sk_* hooks.
SECURITY_HOOKS = (
    "file_open file_permission file_ioctl file_receive bprm_committed_creds bprm_committing_creds "
    "bprm_creds_for_exec ptrace_access_check capable task_kill kernel_module_request kernel_read_file kernel_load_data sb_mount "
    "socket_create socket_bind socket_connect socket_listen socket_sendmsg bpf bpf_map bpf_prog locked_down task_fix_setuid"
).split()
# Functions whose name is not that of the hook that they call.
_OTHER_NAMES = {"bprm_check_security": "security_bprm_check"}
_SECURITY_SOURCE = "Linux security/security.c: the function {function} calls the hook {hook} of each module with the same arguments"
_SYSCALL_SOURCE = "Linux kernel/trace/trace_syscalls.c: {event} has the number of the call as field 4 and its arguments from field 5 on"
_FIRST_SYSCALL_FIELD = 5


@dataclass(frozen=True, slots=True)
class Equivalence:
    """A call recorded at ``recorded`` is one of ``wanted`` as well, with the same process.

    ``shift`` is added to the number of an argument of ``wanted`` to find the recorded one; ``context`` is the recorded
    argument's (see ``Declared``). With ``numbers_only`` texts do not carry over: memory is read at another moment.
    ``reached`` says that the call did reach ``wanted``; where it is False, only that a policy stays quiet is certain, unless
    the recorded function returned 0.
    """

    recorded: Hook
    wanted: Hook
    source: str
    shift: int = 0
    context: str = ""
    numbers_only: bool = False
    reached: bool = True


def security_function(hook: str) -> str:
    """The kernel function that calls an LSM hook; "" for one that is not known to pass its arguments on as they are."""
    return f"security_{hook}" if hook in SECURITY_HOOKS else _OTHER_NAMES.get(hook, "")


def equivalents(wanted: Hook) -> tuple[Equivalence, ...]:
    """Every recording that decides a policy on this hook, beside one of the hook itself, the best first."""
    kind, name = wanted.kind, wanted.name
    if kind == "lsm" and security_function(name):
        source = _SECURITY_SOURCE.format(function=security_function(name), hook=name)
        return (Equivalence(Hook("kprobe", security_function(name)), wanted, f"{source}, until one denies", reached=False),)
    if kind == "kprobe" and name.startswith("security_"):
        hooks = [hook for hook in (*SECURITY_HOOKS, *_OTHER_NAMES) if security_function(hook) == name]
        return tuple(Equivalence(Hook("lsm", hook), wanted, _SECURITY_SOURCE.format(function=name, hook=hook)) for hook in hooks)
    if kind == "kprobe" and name.startswith("sys_"):
        event = f"syscalls/sys_enter_{name.removeprefix('sys_')}"
        source = _SYSCALL_SOURCE.format(event=event)
        return (Equivalence(Hook("tracepoint", event), wanted, source, shift=_FIRST_SYSCALL_FIELD, numbers_only=True),)
    if kind == "tracepoint" and name.startswith("syscalls/sys_enter_"):
        function = "sys_" + name.removeprefix("syscalls/sys_enter_")
        source = _SYSCALL_SOURCE.format(event=name)
        return (Equivalence(Hook("kprobe", function), wanted, source, shift=-_FIRST_SYSCALL_FIELD, context="syscall", numbers_only=True),)
    return ()


def chosen(wanted: Hook, recorded: Collection[Hook]) -> Equivalence | None:
    """What decides a policy on this hook in a recording of these hooks; None when that is the hook itself, or nothing."""
    if wanted in recorded:
        return None
    return next((one for one in equivalents(wanted) if one.recorded in recorded), None)
