# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest

from ansible_collections.apiary.tetragon.plugins.module_utils.agent.preflight import (
    Wanted,
    gather,
    judge,
    parse_probe,
    run_probe,
    table,
)

GOOD = {
    "kernel": "6.1.0-50-cloud-amd64",
    "machine": "x86_64",
    "btf": True,
    "bpffs": True,
    "lsm": ["lockdown", "capability", "bpf"],
    "lockdown": "integrity",
    "kptr_restrict": 0,
    "cgroup": "unified",
    "systemd": True,
    "free_bytes": {"/opt": 10 << 30, "/var/log": 10 << 30},
    "override_config": False,
    "own_slots": [],
    "agents": [],
    "kubernetes": False,
    "falco": False,
    "listening": [22],
    "sockets": [],
    "probes": None,
}
LSM = {"kind": "probe", "any_of": ["lsm"], "reason": "hooks of BPF LSM", "policies": ["file/one", "file/two"]}
OVERRIDE = {"kind": "probe", "any_of": ["override_return", "fmodret_syscall"], "reason": "Override on system calls", "policies": ["a"]}
KILL = {"kind": "probe", "any_of": ["signal"], "reason": "Sigkill and Signal", "policies": ["a"]}
FLAG = {"kind": "flag", "any_of": ["enable-policy-filter"], "reason": "podSelector", "policies": ["a"]}
PROBE = """\
level=error msg="detect modify return syscall" error="failed to load"
override_return: false
fmodret: true
  indented: true
lsm: maybe
level=info msg="x: true"
lsm: true
"""


def failures(facts, wanted=None):
    return [str(one) for one in judge({**GOOD, **facts}, wanted or Wanted()) if one.verdict == "fail"]


def verdict(facts, check, wanted=None):
    return {one.check: one.verdict for one in judge({**GOOD, **facts}, wanted or Wanted())}[check]


def test_a_good_host_passes_every_check():
    assert {one.verdict for one in judge(GOOD, Wanted("1.7.0", {}, [LSM, KILL]))} == {"ok"}


FAILURES = [
    ({"machine": "riscv64"}, "architecture: riscv64; needed: x86_64 or aarch64: take the host out"),
    (
        {"systemd": False},
        "systemd: does not run; needed: systemd as the first process: the agent is a unit of systemd here; take the host out",
    ),
    ({"kernel": "4.18.0-553.el8"}, "kernel: 4.18.0-553.el8; needed: 4.19 or newer: upgrade the kernel"),
    ({"kernel": ""}, "kernel: unknown; needed: 4.19 or newer: upgrade the kernel"),
    (
        {"btf": False},
        "BTF: no /sys/kernel/btf/vmlinux; needed: a kernel with CONFIG_DEBUG_INFO_BTF, or its BTF in a file: "
        "boot such a kernel, or give that file as the agent's option btf",
    ),
    (
        {"bpffs": False},
        "bpffs: not at /sys/fs/bpf; needed: a BPF file system there: mount -t bpf bpf /sys/fs/bpf, and find out why systemd did not",
    ),
    (
        {"lockdown": "confidentiality"},
        "lockdown: confidentiality; needed: none or integrity: boot without lockdown=confidentiality: it forbids what the agent reads",
    ),
    ({"free_bytes": {"/opt": 5 << 20}}, "space in /opt: 5 MB free; needed: 400 MB: make room"),
    ({"free_bytes": {"/var/log": 5 << 20}}, "space in /var/log: 5 MB free; needed: 64 MB: make room"),
    (
        {"agents": [{"kind": "installer", "where": "/usr/lib/systemd/system/tetragon.service"}]},
        "another agent: installer (/usr/lib/systemd/system/tetragon.service); needed: one agent on a host: "
        "take it over with apiary_agent_adopt: true, or remove it",
    ),
    (
        {"agents": [{"kind": "Kubernetes", "where": "process 77"}]},
        "another agent: Kubernetes (process 77); needed: one agent on a host: remove it where it was started from, or take the host out",
    ),
    (
        {"listening": [2112]},
        "port 2112: in use by another program; needed: free for the metrics of slot a: see who has it (ss -ltnp) and move it",
    ),
    (
        {"sockets": ["/run/apiary/b/tetragon.sock"]},
        "socket /run/apiary/b/tetragon.sock: in use by another program; needed: free for slot b: see who has it (ss -lxp)",
    ),
]


@pytest.mark.parametrize(("facts", "message"), FAILURES)
def test_each_failure_says_what_is_needed_and_the_way_out(facts, message):
    assert failures(facts) == [message]


NEEDS = [
    (
        {"lsm": ["lockdown", "capability"]},
        LSM,
        "hooks of BPF LSM: file/one, file/two: this kernel has no lsm (judged by the kernel alone); needed: lsm: "
        "boot with lsm=lockdown,capability,bpf, or drop the policy here",
    ),
    (
        {"probes": {"override_return": False, "fmodret_syscall": False}},
        OVERRIDE,
        "Override on system calls: a: this kernel has no override_return or fmodret_syscall (tetra probe); needed: override_return or "
        "fmodret_syscall: boot a kernel that has it, or drop the policy here",
    ),
    (
        {"kernel": "4.19.0"},
        KILL,
        "Sigkill and Signal: a: this kernel has no signal (judged by the kernel alone); needed: signal: boot a kernel that has it, "
        "or drop the policy here",
    ),
    (
        {},
        FLAG,
        "podSelector: a: option enable-policy-filter is not set; needed: option enable-policy-filter: set it in apiary_agent_options, "
        "or drop the policy here",
    ),
]


@pytest.mark.parametrize(("facts", "need", "message"), NEEDS)
def test_a_feature_that_a_policy_needs_and_the_host_lacks_is_a_failure(facts, need, message):
    assert failures(facts, Wanted("1.7.0", {}, [need])) == [message]


def test_what_nobody_can_tell_yet_is_unknown_and_no_failure():
    assert verdict({}, "Override on system calls: a", Wanted(requirements=[OVERRIDE])) == "unknown"
    assert verdict({"override_config": True}, "Override on system calls: a", Wanted(requirements=[OVERRIDE])) == "ok"
    assert verdict({"lsm": None}, "hooks of BPF LSM: file/one, file/two", Wanted(requirements=[LSM])) == "unknown"
    assert verdict({"kptr_restrict": None}, "kptr_restrict") == "unknown"


def test_the_client_is_believed_over_the_kernels_release():
    assert verdict({"probes": {"signal": False}}, "Sigkill and Signal: a", Wanted(requirements=[KILL])) == "fail"
    assert verdict({"probes": {"lsm": True}, "lsm": []}, "hooks of BPF LSM: file/one, file/two", Wanted(requirements=[LSM])) == "ok"


def test_a_flag_that_is_set_serves_its_policies():
    assert verdict({}, "podSelector: a", Wanted("1.7.0", {"enable-policy-filter": "true"}, [FLAG])) == "ok"


def test_hidden_kernel_addresses_stop_only_agents_that_need_them():
    message = "kptr_restrict: 2; needed: 0 or 1 for agents before 1.6.1: install 1.6.1 or newer, or set kernel.kptr_restrict to 1"
    assert failures({"kptr_restrict": 2}, Wanted("1.6.0")) == [message]
    assert failures({"kptr_restrict": 2}, Wanted("1.6.1")) == failures({"kptr_restrict": 2}, Wanted("1.7.0")) == []


def test_warnings_are_no_failures():
    assert verdict({"machine": "aarch64", "kernel": "5.15.0"}, "kernel") == "warn"
    assert verdict({"cgroup": "hybrid"}, "cgroups") == "ok"
    assert verdict({"cgroup": "hybrid", "kernel": "6.12.0"}, "cgroups") == "warn"
    assert verdict({"cgroup": "legacy"}, "cgroups") == "warn"
    assert verdict({"kubernetes": True}, "Kubernetes") == "warn"
    assert verdict({"falco": True}, "Falco") == "ok"


def test_another_agent_may_be_adopted_but_not_out_of_a_cluster():
    adopt = Wanted(adopt=True)
    assert verdict({"agents": [{"kind": "package", "where": "x"}]}, "another agent", adopt) == "warn"
    assert verdict({"agents": [{"kind": "container", "where": "x"}]}, "another agent", adopt) == "fail"


def test_what_a_slot_of_ours_uses_is_no_obstacle():
    own = {"own_slots": ["a"], "listening": [2112], "sockets": ["/run/apiary/a/tetragon.sock"]}
    assert failures(own) == []


def test_btf_from_a_file_will_do():
    assert verdict({"btf": False}, "BTF", Wanted(options={"btf": "/boot/vmlinux.btf"})) == "ok"


def test_probe_lines_are_taken_strictly():
    assert parse_probe(PROBE) == {"override_return": False, "fmodret": True, "lsm": True}


def test_a_client_that_cannot_be_asked_gives_nothing(tmp_path):
    assert run_probe(str(tmp_path / "none")) is None
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\necho level=error >&2\n", encoding="utf-8")
    silent.chmod(0o755)
    assert run_probe(str(silent)) is None
    silent.write_text("#!/bin/sh\necho lsm: true; echo level=error; exit 0\n", encoding="utf-8")
    assert run_probe(str(silent)) == {"lsm": True}


def test_the_table_has_a_line_for_every_check():
    lines = table(judge({**GOOD, "btf": False}, Wanted()))
    assert any(line.startswith("fail    BTF") for line in lines)
    assert len(lines) == len(judge(GOOD, Wanted()))


# --- reading


@pytest.fixture
def root(tmp_path):
    files = {
        "proc/self/mounts": "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\nbpf /sys/fs/bpf bpf rw 0 0\n",
        "proc/sys/kernel/osrelease": "6.1.0-50-amd64\n",
        "proc/sys/kernel/kptr_restrict": "2\n",
        "proc/net/tcp": "  sl  local_address rem_address   st\n"
        "   0: 0100007F:0840 00000000:0000 0A 0:0 0:0 0 0 0 77\n"
        "   1: 0200000A:0016 00000000:0000 0A 0:0 0:0 0 0 0 78\n"
        "   2: 00000000:1A85 0100007F:0840 01 0:0 0:0 0 0 0 79\n",
        "proc/net/tcp6": "  sl\n   0: 00000000000000000000000000000000:0841 0:0 0A 0:0 0:0 0 0 0 80\n",
        "proc/net/unix": "Num RefCount Protocol Flags Type St Inode Path\n"
        "0: 2 0 10000 1 01 99 /run/apiary/a/tetragon.sock\n0: 2 0 0 1 01 98\n",
        "proc/10/comm": "tetragon\n",
        "proc/10/cgroup": "0::/kubepods.slice/pod1/x\n",
        "proc/11/comm": "tetragon\n",
        "proc/11/cgroup": "0::/system.slice/docker-1.scope\n",
        "proc/12/comm": "tetragon\n",
        "proc/12/cgroup": "0::/system.slice/apiary-tetragon-a.service\n",
        "proc/13/comm": "falco\n",
        "sys/kernel/security/lsm": "lockdown,capability,bpf",
        "sys/kernel/security/lockdown": "none [integrity] confidentiality\n",
        "sys/kernel/btf/vmlinux": "",
        "run/systemd/system/x": "",
        "boot/config-6.1.0-50-amd64": "CONFIG_BPF=y\nCONFIG_BPF_KPROBE_OVERRIDE=y\n",
        "usr/lib/systemd/system/tetragon.service": "[Unit]\n",
        "etc/kubernetes/kubelet.conf": "",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def test_a_host_is_read(root):
    facts = gather(str(root))
    free = facts.pop("free_bytes")
    assert sorted(free) == ["/opt", "/var/log"]
    facts.pop("machine")
    assert facts == {
        "kernel": "6.1.0-50-amd64",
        "btf": True,
        "bpffs": True,
        "lsm": ["lockdown", "capability", "bpf"],
        "lockdown": "integrity",
        "kptr_restrict": 2,
        "cgroup": "unified",
        "systemd": True,
        "override_config": True,
        "own_slots": [],
        "agents": [
            {"kind": "Kubernetes", "where": "process 10"},
            {"kind": "container", "where": "process 11"},
            {"kind": "installer", "where": "/usr/lib/systemd/system/tetragon.service"},
        ],
        "kubernetes": True,
        "falco": True,
        "listening": [2112, 2113],
        "sockets": ["/run/apiary/a/tetragon.sock"],
        "probes": None,
    }


def test_an_empty_host_is_read_too(tmp_path):
    facts = gather(str(tmp_path))
    assert (facts["btf"], facts["bpffs"], facts["systemd"], facts["lsm"], facts["lockdown"]) == (False, False, False, None, None)
    assert (facts["kptr_restrict"], facts["cgroup"], facts["agents"], facts["override_config"]) == (None, "none", [], None)


def test_an_installer_without_its_unit_and_our_own_program_are_told_apart(tmp_path):
    (tmp_path / "usr/local/bin").mkdir(parents=True)
    ours = tmp_path / "opt/apiary/tetragon/1.7.0/bin/tetragon"
    ours.parent.mkdir(parents=True)
    ours.touch()
    program = tmp_path / "usr/local/bin/tetragon"
    program.symlink_to(ours)
    assert gather(str(tmp_path))["agents"] == []
    program.unlink()
    program.touch()
    assert gather(str(tmp_path))["agents"] == [{"kind": "installer", "where": "/usr/local/bin/tetragon"}]


def test_a_package_is_told_from_an_installer(root):
    (root / "var/lib/dpkg/info").mkdir(parents=True)
    (root / "var/lib/dpkg/info/tetragon.list").touch()
    assert gather(str(root))["agents"][-1]["kind"] == "package"
