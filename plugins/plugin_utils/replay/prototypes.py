# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""What kernel functions take, to read events whose recording policy is not at hand.

An event holds values in the policy's order, without the function's argument numbers (R2.3.3). Where a function takes one
argument of a kind and the event holds one, they belong together. Numbers are left out: their width is the policy's choice.
Source: the prototypes in Linux 5.4 to 6.12, and the types of the agent that print as these members.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.records import Declared, Hook, call_context

# By function, the number and the agent's type of each argument of a kind that it takes once.
_FILE, _BINPRM, _SOCK, _TEXT = (0, "file"), (0, "linux_binprm"), (0, "sock"), (0, "string")
_PROTOTYPES: Mapping[str, tuple[tuple[int, str], ...]] = {
    **dict.fromkeys(
        ("security_file_open", "security_file_permission", "security_file_ioctl", "security_file_receive", "security_mmap_file"), (_FILE,)
    ),
    "fd_install": ((1, "file"),),
    **dict.fromkeys(("security_path_truncate", "security_path_chmod", "security_path_chown"), ((0, "path"),)),
    **dict.fromkeys(
        ("security_bprm_check", "security_bprm_creds_for_exec", "security_bprm_committing_creds", "security_bprm_committed_creds"),
        (_BINPRM,),
    ),
    **dict.fromkeys(("tcp_connect", "tcp_close", "tcp_sendmsg", "udp_sendmsg", "tcp_set_state"), (_SOCK,)),
    **dict.fromkeys(("security_socket_connect", "security_socket_bind"), ((0, "socket"), (1, "sockaddr"))),
    "security_kernel_module_request": (_TEXT,),
    **dict.fromkeys(("sys_execve", "sys_open", "sys_creat", "sys_unlink", "sys_rmdir", "sys_chmod", "sys_chdir", "sys_chroot"), (_TEXT,)),
    **dict.fromkeys(("sys_openat", "sys_openat2", "sys_execveat", "sys_unlinkat", "sys_fchmodat", "sys_finit_module"), ((1, "string"),)),
    **dict.fromkeys(("sys_swapon", "sys_swapoff", "sys_acct", "sys_umount"), (_TEXT,)),
    "sys_init_module": ((2, "string"),),
}
_MEMBERS = {
    "file": "file_arg",
    "path": "path_arg",
    "linux_binprm": "linux_binprm_arg",
    "sock": "sock_arg",
    "socket": "sock_arg",
    "sockaddr": "sockaddr_arg",
    "string": "string_arg",
}
_NOT_KNOWN = Declared(-1, "")


def by_prototype(hook: Hook, members: Sequence[str]) -> tuple[Declared, ...]:
    """How the arguments of an event were declared whose values print as these members; those that nobody can tell have no type."""
    known = _PROTOTYPES.get(hook.name, ()) if hook.kind == "kprobe" else ()
    context = call_context(hook.name)
    found = {_MEMBERS[type_]: Declared(index, type_, context=context) for index, type_ in known}
    return tuple(found[one] if one in found and members.count(one) == 1 else _NOT_KNOWN for one in members)
