# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Checks for what the agent does as written, and that hurts: wrong victims, ways round, enforcement that ends, cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.kernel import Kernel
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.lint_base import Action, Check, Context, Found, register
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.traits import (
    ENFORCING,
    WORKLOAD_SELECTORS,
    HookEntry,
    hook_entries,
    is_filtered,
)

CHECKS: dict[str, Check] = {}
check = register(CHECKS)

HOT_FUNCTIONS = frozenset(
    (
        "fd_install security_file_open security_file_permission security_file_ioctl security_file_fcntl "
        "security_mmap_file security_file_mprotect security_inode_permission security_inode_getattr "
        "security_inode_follow_link security_bprm_check security_bprm_creds_for_exec security_task_alloc "
        "security_task_kill security_capable capable ns_capable cap_capable commit_creds vfs_read vfs_write vfs_open "
        "do_filp_open do_sys_openat2 filp_close tcp_sendmsg tcp_recvmsg udp_sendmsg ip_output ip_queue_xmit "
        "__dev_queue_xmit dev_hard_start_xmit security_socket_sendmsg security_socket_recvmsg sock_sendmsg sock_recvmsg "
        "sys_execve sys_read sys_write sys_open sys_openat sys_openat2 sys_close sys_newfstatat sys_fstat sys_stat "
        "sys_statx sys_mmap sys_mprotect sys_futex sys_poll sys_ppoll sys_epoll_wait sys_select sys_ioctl sys_recvmsg "
        "sys_sendmsg sys_recvfrom sys_sendto sys_clock_nanosleep sys_nanosleep sys_lseek sys_getpid sys_fcntl sys_brk"
    ).split()
)
HOT_LSM = frozenset(
    (
        "file_open file_permission file_ioctl file_fcntl mmap_file inode_permission inode_getattr bprm_check_security "
        "bprm_creds_for_exec task_alloc capable socket_sendmsg socket_recvmsg"
    ).split()
)
HOT_TRACEPOINTS = frozenset(["raw_syscalls/sys_enter", "raw_syscalls/sys_exit", "sched/sched_switch", "sched/sched_wakeup"])
MAX_TRAMPOLINES_PER_FUNCTION, MAX_WORKLOAD_POLICIES, MAX_FOLLOW_CHILDREN = 38, 128, 64
# Measured with 1.7.0: outside of the maps that the agent counts, about 85 kB per policy and CPU; a rate limit, 8 MB.
_PER_CPU, _RATE_LIMIT, _MEMORY = 85_000, 8_000_000, 256_000_000


@dataclass(frozen=True)
class Family:
    """Functions that do the same thing: who hooks one must hook the others, or what all of them pass through."""

    what: str
    members: tuple[str, ...]
    instead: str
    trigger: tuple[str, ...]


def _family(what: str, members: str, instead: str, trigger: str = "") -> Family:
    return Family(what, tuple(members.split()), instead, tuple((trigger or members).split()))


FAMILIES = (
    _family("open a file", "sys_open sys_openat sys_openat2 sys_creat sys_open_by_handle_at", "security_file_open"),
    _family("read a file", "sys_read sys_pread64 sys_readv sys_preadv sys_preadv2 sys_sendfile64 sys_copy_file_range sys_splice",
            "security_file_permission and security_mmap_file"),
    _family("write a file",
            "sys_write sys_pwrite64 sys_writev sys_pwritev sys_pwritev2 sys_sendfile64 sys_copy_file_range sys_splice sys_ftruncate",
            "security_file_permission, security_mmap_file and security_path_truncate"),
    _family("rename a file", "sys_rename sys_renameat sys_renameat2", "security_path_rename"),
    _family("link a file", "sys_link sys_linkat", "security_path_link"),
    _family("make a symlink", "sys_symlink sys_symlinkat", "security_path_symlink"),
    _family("remove a file", "sys_unlink sys_unlinkat sys_rmdir", "security_path_unlink and security_path_rmdir"),
    _family("change a file's mode", "sys_chmod sys_fchmod sys_fchmodat sys_fchmodat2", "security_path_chmod"),
    _family("change a file's owner", "sys_chown sys_lchown sys_fchown sys_fchownat", "security_path_chown"),
    _family("truncate a file", "sys_truncate sys_ftruncate", "security_path_truncate"),
    _family("execute a program", "sys_execve sys_execveat", "security_bprm_check"),
    _family("send to an address", "sys_connect sys_sendto sys_sendmsg sys_sendmmsg", "security_socket_connect and security_socket_sendmsg"),
    _family("accept a connection", "sys_accept sys_accept4", "security_socket_accept"),
    _family("mount a file system", "sys_mount sys_move_mount", "security_sb_mount and security_move_mount"),
    _family("load a kernel module", "sys_init_module sys_finit_module", "security_kernel_read_file and security_kernel_load_data"),
    _family("look into another process", "sys_ptrace sys_process_vm_readv sys_process_vm_writev", "security_ptrace_access_check"),
    _family("change user", "sys_setuid sys_setreuid sys_setresuid sys_setfsuid", "security_task_fix_setuid"),
    _family("change group", "sys_setgid sys_setregid sys_setresgid sys_setfsgid", "security_task_fix_setgid"),
    _family("make a process", "sys_clone sys_clone3 sys_fork sys_vfork", "security_task_alloc"),
    _family("load a kernel module", "security_kernel_module_request security_kernel_read_file security_kernel_load_data", "all three"),
    _family("mount a file system", "security_sb_mount security_move_mount", "both"),
    _family("change what a file holds", "security_file_permission security_mmap_file security_path_truncate", "all three",
            "security_file_permission"),
)  # fmt: skip
# What io_uring does without the system call (liburing's operations).
_IO_URING = frozenset(
    (
        "sys_open sys_openat sys_openat2 sys_close sys_read sys_pread64 sys_readv sys_preadv sys_preadv2 sys_write sys_pwrite64 "
        "sys_writev sys_pwritev sys_pwritev2 sys_fsync sys_fallocate sys_statx sys_splice sys_tee sys_rename sys_renameat "
        "sys_renameat2 sys_unlink sys_unlinkat sys_mkdir sys_mkdirat sys_symlink sys_symlinkat sys_link sys_linkat sys_ftruncate "
        "sys_connect sys_accept sys_accept4 sys_send sys_sendto sys_sendmsg sys_recv sys_recvfrom sys_recvmsg sys_socket sys_bind "
        "sys_listen sys_shutdown sys_setxattr sys_fsetxattr sys_getxattr sys_fgetxattr sys_epoll_ctl sys_madvise"
    ).split()
)
# Functions after which it is too late, and what prevents the same act.
_PREVENTED_AT = {
    "fd_install": "security_file_open", "vfs_open": "security_file_open", "do_filp_open": "security_file_open",
    "do_sys_openat2": "security_file_open", "vfs_read": "security_file_permission", "vfs_write": "security_file_permission",
    "tcp_connect": "security_socket_connect", "tcp_v4_connect": "security_socket_connect", "ip_output": "security_socket_sendmsg",
    "udp_sendmsg": "security_socket_sendmsg", "tcp_sendmsg": "security_socket_sendmsg", "create_user_ns": "security_create_user_ns",
    "commit_creds": "security_task_fix_setuid", "bpf_check": "security_bpf_prog",
}  # fmt: skip
_KPROBE_OF = {"bprm_check_security": "security_bprm_check"}
_FILE_HOOKS = frozenset(
    ["security_file_open", "security_file_permission", "security_mmap_file", "fd_install", "file_open", "file_permission", "mmap_file"]
)
_PATH_TYPES = frozenset(["file", "path", "fd", "string", "filename"])


def as_kprobe(hook: str) -> str:
    """The function at which a kprobe sees what an LSM hook sees."""
    return _KPROBE_OF.get(hook, f"security_{hook}")


def _places(context: Context, hook: HookEntry) -> list[str]:
    """The functions of a hook; an LSM hook as the function that calls it."""
    return [as_kprobe(hook.name)] if hook.section == "lsmhooks" else context.functions(hook)


def _all_places(context: Context) -> set[str]:
    return {name for hook in context.hooks for name in _places(context, hook)}


@check("hot-hook-unfiltered")
def _hot_hook(context: Context) -> Found:
    for hook in context.hooks:
        name = _hot_name(context, hook)
        if not name:
            continue
        if not hook.selectors:
            yield (
                hook.path,
                f"{name} is called all the time and has no selectors: every call becomes an event; add matchArgs or matchBinaries",
            )
        for index, selector in enumerate(hook.selectors):
            if not is_filtered(selector) and not _is_silent(selector):
                yield (
                    (*hook.path, "selectors", index),
                    f"{name} is called all the time and this selector filters nothing: add matchArgs or matchBinaries",
                )


def _hot_name(context: Context, hook: HookEntry) -> str:
    if hook.section == "tracepoints":
        return hook.name if hook.name in HOT_TRACEPOINTS else ""
    if hook.section == "lsmhooks":
        return hook.name if hook.name in HOT_LSM else ""
    return next((name for name in context.functions(hook) if name in HOT_FUNCTIONS), "")


def _is_silent(selector: Mapping[str, Any]) -> bool:
    return any(action["action"] == "NoPost" for action in selector.get("matchActions", ()))


def _is_in_program(hook: HookEntry) -> bool:
    """Whether the hook stands in one program, not in a library."""
    return hook.section in ("uprobes", "usdts") and ".so" not in hook.raw["path"]


@check("enforce-unscoped")
def _enforce_unscoped(context: Context) -> Found:
    for action in context.actions:
        hook = action.hook
        if _is_in_program(hook):
            continue  # no other process runs it
        if action.key == "matchActions" and action.name in ENFORCING and not is_filtered(action.selector) and not context.scoped(hook):
            yield (
                action.path,
                f"{action.name} hits every process that calls {hook.name}: narrow the selector or scope the policy to workloads",
            )


@check("kills-protected")
def _kills_protected(context: Context) -> Found:
    for action in context.actions:
        reason = _may_hit_protected(context, action) if action.kills else ""
        if reason:
            yield (
                action.path,
                f"{action.name} can hit {reason}: exclude the protected executables (matchBinaries NotIn), "
                "list the ones meant (In), or scope to workloads",
            )


def _may_hit_protected(context: Context, action: Action) -> str:
    hook, selector, protected = action.hook, action.selector, context.protected
    if context.scoped(hook) or not protected:
        return ""
    for one in selector.get("matchNamespaces", ()):
        if one["namespace"] in ("Pid", "Mnt") and one["operator"] == "NotIn" and "host_ns" in one["values"]:
            return ""
    if _is_in_program(hook):
        return hook.raw["path"] if hook.raw["path"] in protected else ""
    for one in selector.get("matchBinaries", ()):
        operator, values = one["operator"], tuple(one["values"])
        if operator == "In" and one.get("followChildren"):
            return "any process that a listed program started (followChildren), protected ones among them"
        if operator in ("In", "NotIn"):
            hit = [name for name in protected if (name in values) == (operator == "In")]
        elif operator in ("Prefix", "NotPrefix"):
            hit = [name for name in protected if name.startswith(values) == (operator == "Prefix")]
        else:
            hit = [name for name in protected if name.endswith(values) == (operator == "Postfix")]
        return ", ".join(hit[:3]) + (f" and {len(hit) - 3} more" if len(hit) > 3 else "")
    return "any process of the host, protected ones among them"


@check("lsm-override-leaks")
def _lsm_override(context: Context) -> Found:
    for action in context.actions:
        if action.hook.section == "lsmhooks" and action.name == "Override":
            yield (
                action.path,
                f"Override in an LSM hook lets 2 to 5 of 100 attempts through when two processes race: use a kprobe on "
                f"{as_kprobe(action.hook.name)}, with option disable-kprobe-multi",
            )


@check("not-persistent")
def _not_persistent(context: Context) -> Found:
    if context.mode != "enforce":
        return
    version, unpinned = ".".join(map(str, context.version)), set(context.traits.unpinned)
    for hook in context.hooks:
        if f"{hook.section}:{hook.name}" in unpinned and context.actions_of(hook):
            instead = f"a kprobe on {as_kprobe(hook.name)}" if hook.section == "lsmhooks" else "a tracepoint without raw, or a kprobe"
            yield (
                hook.path,
                f"agent {version} does not pin the link of {hook.name}: enforcement ends whenever the agent stops; use {instead}",
            )
    forced = any(call.startswith("security_") for one in context.spec.get("enforcers", ()) for call in one["calls"])
    if forced or (context.spec.get("enforcers") and context.options.get("override-method") == "fmod-ret"):
        yield (
            ("spec", "enforcers"),
            "no agent pins an enforcer that works by fmod_ret: enforcement ends whenever the agent stops; use Override in a kprobe",
        )


@check("kill-after-effect")
def _kill_after_effect(context: Context) -> Found:
    overridden = {name for one in context.actions if one.name == "Override" for name in _places(context, one.hook)}
    for action in context.actions:
        if not action.kills or action.key != "matchActions":
            continue
        if any(one["action"] in ("Override", "NotifyEnforcer") for one in action.selector["matchActions"]):
            continue
        for name in _places(context, action.hook):
            able = name.startswith("security_") or (action.hook.is_syscall and name.startswith("sys_"))
            at = name if able else _PREVENTED_AT.get(name, "")
            if at and at not in overridden:
                yield action.path, f"{action.name} arrives when {name} is over: what it was to prevent has happened; add Override at {at}"
                break


@check("sibling-hooks")
def _sibling_hooks(context: Context) -> Found:
    hooked = _all_places(context)
    for family in FAMILIES:
        missing = [name for name in family.members if name not in hooked]
        first = next((hook for hook in context.hooks if set(_places(context, hook)) & set(family.trigger)), None)
        if first and missing and not hooked.issuperset(_named(family.instead)):
            yield first.path, f"{', '.join(missing)} can {family.what} too, and the policy does not hook it: hook {family.instead}"


def _named(text: str) -> set[str]:
    names = {word.strip(",") for word in text.split()}
    return {name for name in names if name.startswith("security_")} or {"-"}


@check("io-uring")
def _io_uring(context: Context) -> Found:
    for hook in context.hooks:
        seen = [name for name in context.functions(hook) if name in _IO_URING]
        if hook.section == "tracepoints" and hook.raw["subsystem"] == "syscalls":
            seen = [name for name in [hook.raw["event"].replace("sys_enter_", "sys_")] if name in _IO_URING]
        if seen:
            yield hook.path, f"{seen[0]} does not see what a program does through io_uring: hook the security_* function"


@check("syscall-argument")
def _syscall_argument(context: Context) -> Found:
    for one in context.filters:
        acts = any(action["action"] in ENFORCING for action in one.selector.get("matchActions", ()))
        entered = one.hook.is_syscall or (one.hook.section == "tracepoints" and one.hook.raw["subsystem"] == "syscalls")
        if acts and entered and one.type in ("string", "char_buf", "filename", "sockaddr"):
            yield (
                one.path,
                "compares what the caller's memory holds at entry; the caller can change it afterwards, and a relative path or a "
                "symlink reads otherwise: filter at the security_* function",
            )


@check("compat-syscall")
def _compat_syscall(context: Context) -> Found:
    hooked = {hook.name for hook in context.hooks}
    for hook in context.hooks:
        if hook.section != "kprobes" or not hook.is_syscall or hook.name.startswith(("list:", "__ia32_")):
            continue
        acting = any(action.name in ENFORCING for action in context.actions_of(hook))
        if acting and f"__ia32_{hook.name}" not in hooked:
            yield hook.path, f"{hook.name} is not what a 32-bit program calls: use a list with {hook.name} and i386/{hook.name}"


def _path_filtered(context: Context) -> list[HookEntry]:
    """Hooks that enforce on the path of a file."""
    return [
        hook
        for hook in context.hooks
        if hook.name in _FILE_HOOKS
        and any(one.type in _PATH_TYPES and one.key == "matchArgs" for one in context.filters_of(hook))
        and any(action.name in ENFORCING for action in context.actions_of(hook))
    ]


@check("rename-or-link")
def _rename_or_link(context: Context) -> Found:
    hooked = _all_places(context)
    ways = {"a rename": ("security_path_rename", "security_inode_rename"), "a hard link": ("security_path_link", "security_inode_link")}
    missing = {what: names[0] for what, names in ways.items() if not hooked & set(names)}
    for hook in _path_filtered(context)[:1]:
        if missing:
            yield (
                hook.path,
                f"{' or '.join(missing)} gives the file another path, which the filter does not know: hook {', '.join(missing.values())}",
            )


@check("bind-mount")
def _bind_mount(context: Context) -> Found:
    for hook in _path_filtered(context)[:1]:
        if not _all_places(context) & {"security_sb_mount", "security_move_mount"}:
            yield (
                hook.path,
                "a bind mount shows the file under another path, which the filter does not know: keep mounting from those meant",
            )


@check("deprecated-action")
def _deprecated_action(context: Context) -> Found:
    for action in context.actions:
        if action.name in ("FollowFD", "UnfollowFD", "CopyFD"):
            yield action.path, f"{action.name} is deprecated since 1.4 and gone in 1.8: hook a function that has the file as an argument"


@check("architecture-name")
def _architecture_name(context: Context) -> Found:
    for hook in context.hooks:
        if hook.section in ("kprobes", "fentries") and hook.name.startswith(("__x64_", "__arm64_")):
            plain = context.functions(hook)[0]
            yield (*hook.path, "call"), f"{hook.name} exists on one architecture alone: write {plain}, the agent adds the prefix"


def shared(policies: Sequence[Mapping[str, Any]], kernel: Kernel) -> Iterator[tuple[str, str]]:
    """Rule and message of all that the policies of one host break together, each as its rendered document."""
    trampolines: Counter[str] = Counter()
    overriding: dict[str, list[str]] = {}
    followers = workload = limited = 0
    for document in policies:
        spec = document["spec"]
        enforces = {"name": "policy-mode", "value": "enforce"} in spec.get("options", ())
        for hook in hook_entries(spec):
            overridden = hook.is_security and any(name == "Override" for _unused, name in hook.actions())
            if overridden and enforces:
                overriding.setdefault(hook.name, []).append(document["metadata"]["name"])
            if hook.section in ("lsmhooks", "fentries") or overridden:
                trampolines[hook.name if hook.section != "lsmhooks" else f"bpf_lsm_{hook.name}"] += 1
            followers += sum(bool(one.get("followChildren")) for s in hook.selectors for one in s.get("matchBinaries", ()))
            limited += any(action.get("rateLimit") for s in hook.selectors for action in s.get("matchActions", ()))
        workload += any(spec.get(key) is not None for key in WORKLOAD_SELECTORS) or "namespace" in document["metadata"]
    for function, count in sorted(trampolines.items()):
        if count > MAX_TRAMPOLINES_PER_FUNCTION:
            yield ("ceiling", f"{count} programs on {function}; the kernel takes {MAX_TRAMPOLINES_PER_FUNCTION}")
    if workload > MAX_WORKLOAD_POLICIES:
        yield ("ceiling", f"{workload} policies select workloads; the agent takes {MAX_WORKLOAD_POLICIES}")
    if followers > MAX_FOLLOW_CHILDREN:
        yield ("ceiling", f"{followers} selectors use followChildren; the agent takes {MAX_FOLLOW_CHILDREN}")
    for function, names in sorted(overriding.items()):
        if len(names) > 1:
            yield (
                "overridden-twice",
                f"{' and '.join(names)} enforce by Override on {function}: see to it that no act meets two of them, or let one monitor",
            )
    memory = len(policies) * _PER_CPU * (kernel.cpus or 0) + limited * _RATE_LIMIT
    if memory > _MEMORY:
        on = f" on {kernel.cpus} CPUs" if kernel.cpus else ""
        yield (
            "memory",
            f"{len(policies)} policies{on} take about {memory // 1_000_000} MB of kernel memory: join policies, or drop rate limits",
        )
