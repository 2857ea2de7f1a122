# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""What the stand-in's kernel has to attach to: functions, LSM hooks, system calls and tracepoints.

Names of a 6.x kernel for amd64, with the functions that policies commonly name. A name that is not here is "not found".
"""

from __future__ import annotations

LSM_HOOKS = frozenset(
    """
    audit_rule_free audit_rule_init audit_rule_known audit_rule_match backing_file_alloc backing_file_free bdev_alloc_security
    bdev_free_security bdev_setintegrity binder_set_context_mgr binder_transaction binder_transfer_binder binder_transfer_file
    bpf bpf_map bpf_map_alloc_security bpf_map_create bpf_map_free bpf_prog bpf_prog_alloc_security bpf_prog_free bpf_prog_load
    bpf_token_capable bpf_token_cmd bpf_token_create bpf_token_free bprm_check_security bprm_committed_creds
    bprm_committing_creds bprm_creds_for_exec bprm_creds_from_file capable capget capset cred_alloc_blank cred_free
    cred_getlsmprop cred_getsecid cred_prepare cred_transfer current_getlsmprop_subj d_instantiate dentry_create_files_as
    dentry_init_security file_alloc_security file_fcntl file_free_security file_ioctl file_ioctl_compat file_lock file_mprotect
    file_open file_permission file_post_open file_receive file_release file_send_sigiotask file_set_fowner file_truncate
    fs_context_dup fs_context_parse_param fs_context_submount getprocattr getselfattr inet_conn_established inet_conn_request
    inet_csk_clone inode_alloc_security inode_copy_up inode_copy_up_xattr inode_create inode_file_getattr inode_file_setattr
    inode_follow_link inode_free_security inode_free_security_rcu inode_get_acl inode_getattr inode_getlsmprop inode_getsecctx
    inode_getsecurity inode_getxattr inode_init_security inode_init_security_anon inode_invalidate_secctx inode_killpriv
    inode_link inode_listsecurity inode_listxattr inode_mkdir inode_mknod inode_need_killpriv inode_notifysecctx
    inode_permission inode_post_create_tmpfile inode_post_remove_acl inode_post_removexattr inode_post_set_acl
    inode_post_setattr inode_post_setxattr inode_readlink inode_remove_acl inode_removexattr inode_rename inode_rmdir
    inode_set_acl inode_setattr inode_setintegrity inode_setsecctx inode_setsecurity inode_setxattr inode_symlink inode_unlink
    ipc_getlsmprop ipc_permission ismaclabel kernel_act_as kernel_create_files_as kernel_load_data kernel_module_request
    kernel_post_load_data kernel_post_read_file kernel_read_file kernfs_init_security key_alloc key_getsecurity key_permission
    key_post_create_or_update locked_down lsmprop_to_secctx mmap_addr mmap_backing_file mmap_file move_mount mptcp_add_subflow
    msg_msg_alloc_security msg_msg_free_security msg_queue_alloc_security msg_queue_associate msg_queue_free_security
    msg_queue_msgctl msg_queue_msgrcv msg_queue_msgsnd netlink_send path_chmod path_chown path_chroot path_link path_mkdir
    path_mknod path_notify path_post_mknod path_rename path_rmdir path_symlink path_truncate path_unlink perf_event_alloc
    perf_event_open perf_event_read perf_event_write ptrace_access_check ptrace_traceme quota_on quotactl release_secctx
    req_classify_flow sb_alloc_security sb_clone_mnt_opts sb_delete sb_eat_lsm_opts sb_free_mnt_opts sb_free_security
    sb_kern_mount sb_mnt_opts_compat sb_mount sb_pivotroot sb_remount sb_set_mnt_opts sb_show_options sb_statfs sb_umount
    sctp_assoc_established sctp_assoc_request sctp_bind_connect sctp_sk_clone secctx_to_secid secid_to_secctx
    secmark_refcount_dec secmark_refcount_inc secmark_relabel_packet sem_alloc_security sem_associate sem_free_security
    sem_semctl sem_semop setprocattr setselfattr settime shm_alloc_security shm_associate shm_free_security shm_shmat shm_shmctl
    sk_alloc_security sk_clone_security sk_free_security sk_getsecid sock_graft socket_accept socket_bind socket_connect
    socket_create socket_getpeername socket_getpeersec_dgram socket_getpeersec_stream socket_getsockname socket_getsockopt
    socket_listen socket_post_create socket_recvmsg socket_sendmsg socket_setsockopt socket_shutdown socket_sock_rcv_skb
    socket_socketpair syslog task_alloc task_fix_setgid task_fix_setgroups task_fix_setuid task_free task_getioprio
    task_getlsmprop_obj task_getpgid task_getscheduler task_getsid task_kill task_movememory task_prctl task_prlimit
    task_setioprio task_setnice task_setpgid task_setrlimit task_setscheduler task_to_inode tun_dev_alloc_security
    tun_dev_attach tun_dev_attach_queue tun_dev_create tun_dev_open unix_may_send unix_stream_connect uring_allowed uring_cmd
    uring_override_creds uring_sqpoll userns_create vm_enough_memory xfrm_decode_session xfrm_policy_alloc_security
    xfrm_policy_clone_security xfrm_policy_delete_security xfrm_policy_free_security xfrm_policy_lookup xfrm_state_alloc
    xfrm_state_alloc_acquire xfrm_state_delete_security xfrm_state_free_security xfrm_state_pol_flow_match
    """.split()
)
SYSCALLS = frozenset(
    """
    accept accept4 access acct add_key adjtimex adjtimex_time32 alarm arch_prctl bind bpf brk cachestat capget capset chdir
    chmod chown chown16 chroot clock_adjtime clock_adjtime32 clock_getres clock_getres_time32 clock_gettime clock_gettime32
    clock_nanosleep clock_nanosleep_time32 clock_settime clock_settime32 clone clone3 close close_range connect copy_file_range
    creat delete_module dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2
    execve execveat exit exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_init fanotify_mark fchdir
    fchmod fchmodat fchmodat2 fchown fchown16 fchownat fcntl fdatasync fgetxattr file_getattr file_setattr finit_module
    flistxattr flock fork fremovexattr fsconfig fsetxattr fsmount fsopen fspick fstat fstatfs fstatfs64 fsync ftruncate futex
    futex_requeue futex_time32 futex_wait futex_waitv futex_wake futimesat futimesat_time32 get_mempolicy get_robust_list
    get_thread_area getcpu getcwd getdents getdents64 getegid getegid16 geteuid geteuid16 getgid getgid16 getgroups getgroups16
    gethostname getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid16 getresuid
    getresuid16 getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid getuid16 getxattr getxattrat
    init_module inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents
    io_getevents_time32 io_pgetevents io_pgetevents_time32 io_setup io_submit io_uring_enter io_uring_register io_uring_setup
    ioctl ioperm iopl ioprio_get ioprio_set ipc kcmp kexec_file_load kexec_load keyctl kill landlock_add_rule
    landlock_create_ruleset landlock_restrict_self lchown lchown16 lgetxattr link linkat listen listmount listxattr listxattrat
    llistxattr llseek lremovexattr lseek lsetxattr lsm_get_self_attr lsm_list_modules lsm_set_self_attr lstat madvise
    map_shadow_stack mbind membarrier memfd_create memfd_secret migrate_pages mincore mkdir mkdirat mknod mknodat mlock mlock2
    mlockall mmap mmap_pgoff modify_ldt mount mount_setattr move_mount move_pages mprotect mq_getsetattr mq_notify mq_open
    mq_timedreceive mq_timedreceive_time32 mq_timedsend mq_timedsend_time32 mq_unlink mremap mseal msgctl msgget msgrcv msgsnd
    msync munlock munlockall munmap name_to_handle_at nanosleep nanosleep_time32 newfstat newfstatat newlstat newstat newuname
    nice old_getrlimit old_msgctl old_readdir old_semctl old_shmctl oldumount olduname open open_by_handle_at open_tree
    open_tree_attr openat openat2 pause pciconfig_iobase pciconfig_read pciconfig_write perf_event_open personality pidfd_getfd
    pidfd_open pidfd_send_signal pipe pipe2 pivot_root pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time32 prctl pread64
    preadv preadv2 prlimit64 process_madvise process_mrelease process_vm_readv process_vm_writev pselect6 pselect6_time32 ptrace
    pwrite64 pwritev pwritev2 quotactl quotactl_fd read readahead readlink readlinkat readv reboot recv recvfrom recvmmsg
    recvmmsg_time32 recvmsg remap_file_pages removexattr removexattrat rename renameat renameat2 request_key restart_syscall
    rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
    rt_sigtimedwait_time32 rt_tgsigqueueinfo rtas s390_ipc s390_pci_mmio_read s390_pci_mmio_write sched_get_priority_max
    sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval
    sched_rr_get_interval_time32 sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select
    semctl semget semop semtimedop semtimedop_time32 send sendfile sendfile64 sendmmsg sendmsg sendto set_mempolicy
    set_mempolicy_home_node set_robust_list set_thread_area set_tid_address setdomainname setfsgid setfsgid16 setfsuid
    setfsuid16 setgid setgid16 setgroups setgroups16 sethostname setitimer setns setpgid setpriority setregid setregid16
    setresgid setresgid16 setresuid setresuid16 setreuid setreuid16 setrlimit setsid setsockopt settimeofday setuid setuid16
    setxattr setxattrat sgetmask shmat shmctl shmdt shmget shutdown sigaltstack signal signalfd signalfd4 sigpending sigprocmask
    sigsuspend socket socketcall socketpair splice spu_create spu_run ssetmask stat statfs statfs64 statmount statx stime
    stime32 subpage_prot swapoff swapon symlink symlinkat sync sync_file_range sync_file_range2 syncfs sysfs sysinfo syslog tee
    tgkill time time32 timer_create timer_delete timer_getoverrun timer_gettime timer_gettime32 timer_settime timer_settime32
    timerfd_create timerfd_gettime timerfd_gettime32 timerfd_settime timerfd_settime32 times tkill truncate umask umount uname
    unlink unlinkat unshare uprobe uretprobe uselib userfaultfd ustat utime utime32 utimensat utimensat_time32 utimes
    utimes_time32 vfork vhangup vm86 vm86old vmsplice wait4 waitid waitpid write writev
    """.split()
)
# Functions with a hook's name but for these spellings, and security_* functions that are no LSM hook.
_SECURITY_ONLY = (
    "bprm_check bpf_map_alloc bpf_prog_alloc create_user_ns sk_alloc sk_free file_alloc inode_alloc settime64 vm_enough_memory_mm"
)
FUNCTIONS = frozenset(f"security_{name}" for name in (LSM_HOOKS - {"bprm_check_security"}) | set(_SECURITY_ONLY.split())) | frozenset(
    """
    __cgroup_bpf_run_filter_skb __dev_queue_xmit __sk_free __sys_setfsgid __sys_setfsuid __sys_setgid __sys_setregid
    __sys_setresgid __sys_setresuid __sys_setreuid __sys_setuid acct_process bpf_check cap_capable capable commit_creds
    create_user_ns dev_hard_start_xmit dev_queue_xmit do_exit do_filp_open do_init_module do_mount do_sys_openat2
    do_unlinkat fd_install filp_close find_module_sections free_module inet_csk_accept inet_csk_listen_start ip6_output
    ip_mc_output ip_output ip_queue_xmit kfree_skb_reason ksys_read ksys_write load_module ns_capable override_creds
    path_mount prepare_kernel_cred revert_creds sk_alloc sk_filter_trim_cap sk_free sock_recvmsg sock_sendmsg
    switch_task_namespaces tcp_close tcp_connect tcp_create_openreq_child tcp_recvmsg tcp_sendmsg tcp_set_state tty_write
    udp_recvmsg udp_sendmsg vfs_open vfs_read vfs_rename vfs_unlink vfs_write wake_up_new_task
    """.split()
)
_TRACEPOINTS = frozenset(
    """
    block/block_rq_issue net/net_dev_queue oom/mark_victim raw_syscalls/sys_enter raw_syscalls/sys_exit
    sched/sched_process_exec sched/sched_process_exit sched/sched_process_fork sched/sched_switch sched/sched_wakeup
    signal/signal_deliver signal/signal_generate skb/kfree_skb sock/inet_sock_set_state task/task_newtask tcp/tcp_connect
    tcp/tcp_retransmit_skb
    """.split()
)
_ARCH_PREFIXES = ("__x64_", "__arm64_", "__ia32_")
SYSCALL_NUMBERS = {
    "read": 0, "write": 1, "lseek": 8, "mmap": 9, "connect": 42, "execve": 59, "truncate": 76, "ptrace": 101, "setuid": 105,
    "mount": 165, "init_module": 175, "openat": 257, "mkdirat": 258, "mknodat": 259, "unlinkat": 263, "renameat2": 316,
    "linkat": 265, "symlinkat": 266, "finit_module": 313, "memfd_create": 319,
}  # fmt: skip


def syscall(call: str) -> str:
    """The system call that a function name such as ``__x64_sys_openat`` or ``sys_openat`` stands for; empty for none."""
    for prefix in _ARCH_PREFIXES:
        call = call.removeprefix(prefix)
    name = call.removeprefix("sys_")
    return name if name != call and name in SYSCALLS else ""


def has_function(call: str, is_syscall: bool) -> bool:
    """Whether a kprobe can find ``call``. A system call needs its prefix, which the agent adds only if asked to."""
    if call in FUNCTIONS:
        return True
    return bool(syscall(call)) and (is_syscall or call.startswith(_ARCH_PREFIXES))


def has_tracepoint(subsystem: str, event: str) -> bool:
    kind, _unused, name = event.partition("_")[2].partition("_")
    if subsystem == "syscalls" and kind in ("enter", "exit"):
        return name in SYSCALLS
    return f"{subsystem}/{event}" in _TRACEPOINTS
