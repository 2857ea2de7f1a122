# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The stand-in behaves as the real agent v1.7.0 was recorded: client, list, files, start, end and kept enforcement."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from standin.host import BIN, LabHost, NotReady
from standin.kernel import Caller
from standin.policy import Refused, read

KPROBE_MISSING = (
    "policy handler 'tracing' failed loading policy 'err': validation failed: error in spec.kprobes[0]: "
    'kprobe spec pre-validation failed: validation error: call "no_such_function_xyz": not found'
)


def policy(name: str, section: str, hook: dict[str, Any], action: str | None, **spec: Any) -> str:
    """A policy of one hook as JSON, which is YAML."""
    selectors = hook.pop("selectors", [{"matchActions": [{"action": action, "argError": -1}] if action else []}])
    body = {section: [{**hook, "selectors": selectors}], **spec}
    return json.dumps({"apiVersion": "cilium.io/v1alpha1", "kind": "TracingPolicy", "metadata": {"name": name}, "spec": body})


def on_path(path: str, action: str | None, index: int = 0) -> dict[str, Any]:
    """A selector for one file."""
    actions = {"matchActions": [{"action": action, "argError": -1}]} if action else {}
    return {"matchArgs": [{"index": index, "operator": "Equal", "values": [path]}], **actions}


def seco(name: str = "seco", path: str = "/lab/secret", action: str | None = "Override", **spec: Any) -> str:
    hook = {"call": "security_file_open", "syscall": False, "args": [{"index": 0, "type": "file"}]}
    return policy(name, "kprobes", {**hook, "selectors": [on_path(path, action)]}, action, **spec)


def kpfd(name: str = "kpfd") -> str:
    hook = {"call": "fd_install", "syscall": False, "args": [{"index": 0, "type": "int"}, {"index": 1, "type": "file"}]}
    return policy(name, "kprobes", {**hook, "selectors": [on_path("/lab/kpfd", "Sigkill", 1)]}, "Sigkill")


def lsm(name: str = "lsm") -> str:
    hook = {"hook": "file_open", "args": [{"index": 0, "type": "file"}], "selectors": [on_path("/lab/lsm", "Override")]}
    return policy(name, "lsmhooks", hook, "Override")


def lseek(name: str, **extra: Any) -> str:
    match = {"matchArgs": [{"index": 7, "operator": "Equal", "values": ["4444"]}], "matchActions": [{"action": "Sigkill"}]}
    hook = {"subsystem": "syscalls", "event": "sys_enter_lseek", "args": [{"index": 7, "type": "uint32"}], "selectors": [match]}
    return policy(name, "tracepoints", {**hook, **extra}, "Sigkill")


def raw(name: str = "rtp") -> str:
    match = {"matchArgs": [{"index": 1, "operator": "Equal", "values": ["500"]}], "matchActions": [{"action": "Sigkill"}]}
    hook = {"subsystem": "raw_syscalls", "event": "sys_enter", "raw": True, "args": [{"index": 1, "type": "uint64"}], "selectors": [match]}
    return policy(name, "tracepoints", hook, "Sigkill")


LIBC = next(str(path) for path in Path("/lib").glob("*/libc.so.6"))


def uprobe(name: str = "up", symbol: str = "malloc") -> str:
    return policy(name, "uprobes", {"path": LIBC, "symbols": [symbol]}, "Sigkill")


def place(host: LabHost, **files: str) -> None:
    for name, text in files.items():
        (host.policies / f"{name}.yaml").write_text(text, encoding="utf-8")


ACTS = {
    "seco": (("open", "/lab/secret"), "denied"),
    "kpfd": (("open", "/lab/kpfd"), "killed"),
    "lsm": (("open", "/lab/lsm"), "denied"),
    "tp": (("raw-syscall", "8", "0", "0", "4444"), "killed"),
    "rtp": (("raw-syscall", "500"), "killed"),
    "up": (("call", LIBC, "malloc", "1"), "killed"),
}
ALL = {"seco": seco(), "kpfd": kpfd(), "lsm": lsm(), "tp": lseek("tp"), "rtp": raw(), "up": uprobe()}


def enforced(host: LabHost) -> set[str]:
    """The policies whose forbidden act does not go through."""
    return {name for name, (words, wanted) in ACTS.items() if host.kernel.act(*words).result == wanted}


def test_client_without_an_agent(host: LabHost) -> None:
    unavailable = "rpc error: code = Unavailable desc = connection error: desc = "
    dialing = f'{unavailable}"transport: Error while dialing: dial tcp 127.0.0.1:54321: connect: connection refused"'
    done = host.tetra("tp", "list")
    assert (done.returncode, done.stderr) == (1, f"Error: failed to list tracing policies: {dialing}\n")
    done = host.tetra("--server-address", "unix:///var/run/tetragon/tetragon.sock", "info")
    socket = host.inside("/var/run/tetragon/tetragon.sock")
    missing = f'{unavailable}"transport: Error while dialing: dial unix {socket}: connect: no such file or directory"'
    assert (done.returncode, done.stderr) == (1, f"Error: failed to retrieve info: {missing}\n")
    done = host.tetra("status")
    assert (done.returncode, done.stdout) == (0, f"status error: {dialing}\n")
    done = host.tetra("version", "--server")
    assert (done.returncode, done.stdout) == (2, "CLI version: v1.7.0\n")
    assert "panic: runtime error: invalid memory address or nil pointer dereference" in done.stderr


def test_probe_needs_no_agent_and_logs_among_its_lines(host: LabHost) -> None:
    host.faults(kernel_features={"kprobe_multi": True})
    done = host.tetra("probe")
    assert done.stdout.startswith("override_return: false\nbuildid: true\nkprobe_multi: true\n")
    assert done.stderr.startswith('level=error msg="detect modify return syscall" error="failed to load:')
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--nope",), "unknown flag: --nope"),
        (("nope",), 'unknown command "nope" for "tetra"\nRun \'tetra --help\' for usage.'),
        (("tp", "delete"), "accepts 1 arg(s), received 0"),
        (("tp", "list", "-o", "yaml"), 'invalid value for "output" flag: yaml'),
        (("tp", "set-mode", "x", "audit"), 'invalid mode "audit"'),
        (("tp", "add", "/no/such.yaml"), "failed to read yaml file /no/such.yaml: open /no/such.yaml: no such file or directory"),
        (("--timeout", "x", "info"), 'invalid argument "x" for "--timeout" flag: time: invalid duration "x"'),
    ],
)
def test_wrong_use_of_the_client(host: LabHost, words: tuple[str, ...], message: str) -> None:
    done = host.tetra(*words)
    assert (done.returncode, done.stderr) == (1, f"Error: {message}\n")


def test_list_as_recorded(host: LabHost) -> None:
    host.start()
    assert host.tetra("tp", "list", "-o", "json").stdout == "{}\n"
    header = "ID   NAME   STATE   FILTERID   NAMESPACE   SENSORS   KERNELMEMORY   MODE   NPOST   NENFORCE   NMONITOR\n"
    assert host.tetra("tp", "list").stdout == header
    assert host.add(seco()).stdout == f'tracing policy "{host.path / "policy.yaml"}" added\n'
    host.add(seco("mon", "/lab/mon", None))
    host.add(policy("err", "kprobes", {"call": "no_such_function_xyz", "syscall": False}, None))
    for _unused in range(3):
        assert host.kernel.act("open", "/lab/secret").result == "denied"
        assert host.kernel.act("open", "/lab/mon").result == "allowed"
    assert host.listed() == {
        "seco": {
            "id": "2",
            "name": "seco",
            "sensors": ["generic_kprobe"],
            "enabled": True,
            "state": "TP_STATE_ENABLED",
            "kernel_memory_bytes": "933888",
            "mode": "TP_MODE_ENFORCE",
            "stats": {"action_counters": {"post": "3", "override": "3"}},
        },
        "mon": {
            "id": "3",
            "name": "mon",
            "sensors": ["generic_kprobe"],
            "enabled": True,
            "state": "TP_STATE_ENABLED",
            "kernel_memory_bytes": "413696",
            "mode": "TP_MODE_MONITOR_ONLY",
            "stats": {"action_counters": {"post": "3"}},
        },
        "err": {"id": "4", "name": "err", "error": KPROBE_MISSING, "state": "TP_STATE_LOAD_ERROR"},
    }
    assert host.tetra("tp", "list").stdout == (
        "ID   NAME   STATE        FILTERID   NAMESPACE   SENSORS          KERNELMEMORY   MODE           NPOST   NENFORCE   NMONITOR\n"
        "2    seco   enabled      0          (global)    generic_kprobe   933.89 kB      enforce        3       3          0\n"
        "3    mon    enabled      0          (global)    generic_kprobe   413.70 kB      monitor_only   3       0          0\n"
        "4    err    load_error   0          (global)                     0 B            unknown        0       0          0\n"
    )
    orders = {
        tuple(json.loads(host.tetra("tp", "list", "-o", "json").stdout)["policies"][0]["name"] for _unused in range(2))
        for _unused in range(8)
    }
    assert len(orders) > 1  # the order of policies changes from call to call


def test_modes_and_states_as_recorded(host: LabHost) -> None:
    host.start()
    for text in (seco(), seco("mon", "/lab/mon", None), policy("err", "kprobes", {"call": "no_such_function_xyz"}, None)):
        host.add(text)
    unknown = "rpc error: code = Unknown desc = "

    def fails(words: str, message: str) -> None:
        done = host.tetra("tp", *words.split())
        assert (done.returncode, done.stderr) == (1, f"Error: {message}\n")

    def succeeds(words: str, message: str) -> None:
        done = host.tetra("tp", *words.split())
        assert (done.returncode, done.stdout) == (0, f"tracing policy {message}\n")

    only = f'failed set mode to "enforce" tracing policy: {unknown}cannot set policy mode on a policy that is monitor only'
    fails("set-mode mon enforce", only)
    fails("set-mode mon monitor", only.replace('"enforce"', '"monitor"'))
    conf = f'failed set mode to "monitor" tracing policy: {unknown}failed to open bpf map {host.pins}/%s/policy_conf: '
    conf += "no such file or directory"
    fails("set-mode err monitor", conf % "err")
    fails("set-mode nosuch monitor", f'failed set mode to "monitor" tracing policy: {unknown}tracing policy {{nosuch }} does not exist')
    fails("delete nosuch", f"failed to delete tracing policy: {unknown}tracing policy {{nosuch }} does not exist")
    succeeds("set-mode seco monitor", '"seco" set to mode "monitor"')
    assert host.kernel.act("open", "/lab/secret").result == "allowed"
    assert host.listed()["seco"]["stats"]["action_counters"] == {"post": "1", "monitor_override": "1"}
    succeeds("set-mode seco enforce", '"seco" set to mode "enforce"')
    succeeds("disable seco", '"seco" disabled')
    assert not (host.pins / "seco").exists()
    assert host.listed()["seco"] == {"id": "2", "name": "seco", "sensors": ["generic_kprobe"], "state": "TP_STATE_DISABLED"}
    fails("disable seco", f"failed to disable tracing policy: {unknown}tracing policy seco is not enabled")
    fails("set-mode seco monitor", conf % "seco")
    succeeds("enable seco", '"seco" enabled')
    assert (host.listed()["seco"]["id"], host.listed()["seco"]["stats"]) == ("2", {"action_counters": {}})
    fails("enable seco", f"failed to enable tracing policy: {unknown}tracing policy seco is not disabled")
    fails("enable err", f"failed to enable tracing policy: {unknown}tracing policy err is not disabled")
    succeeds("delete err", '"err" deleted')
    succeeds("delete seco", '"seco" deleted')
    assert host.kernel.act("open", "/lab/secret").result == "allowed"


def _spec(section: str, hook: dict[str, Any], action: str | None = None, **spec: Any) -> str:
    return policy("err", section, hook, action, **spec)


TRACING = "policy handler 'tracing' failed loading policy 'err': "
REFUSED = {
    "apiVersion: cilium.io/v1alpha1\nkind: TracingPolicy\nmetadata: {name: malformed\nspec:\n  kprobes: [\n": (
        "failed to unmarshal YAML: error converting YAML to JSON: yaml: line 3: did not find expected ',' or '}'"
    ),
    "just some words": "failed to unmarshal YAML: error unmarshaling JSON: while decoding JSON: json: cannot unmarshal string "
    "into Go value of type map[string]interface {}",
    "# nothing": "unknown CRD kind: ",
    seco().replace("kprobes", "kprobez"): "failed to unmarshal into typed object: error unmarshaling JSON: while decoding JSON: "
    'json: unknown field "kprobez"',
    seco(action="Sigkil"): "validation failed: spec.kprobes[0].selectors[0].matchActions[0].action in body should be one of "
    "[Post FollowFD UnfollowFD Sigkill CopyFD Override GetUrl DnsLookup NoPost Signal TrackSock UntrackSock NotifyEnforcer "
    "CleanupEnforcerNotification Set]",
    seco("Bad_Name!"): 'validation failed: metadata.name: Invalid value: "Bad_Name!": a lowercase RFC 1123 subdomain is needed',
    seco().replace('"name": "seco"', ""): "validation failed: metadata.name: Required value: name or generateName is required",
    "apiVersion: cilium.io/v1alpha1\nkind: TracingPolicy\nmetadata: {name: x}\n": "validation failed: .spec in body is required",
}
NOT_LOADED = {
    _spec("kprobes", {"call": "no_such_function_xyz", "syscall": False}): KPROBE_MISSING,
    _spec("kprobes", {"call": "sys_close", "syscall": False}): KPROBE_MISSING.replace("no_such_function_xyz", "sys_close"),
    _spec("kprobes", {"call": "fd_install", "syscall": False}, "Override"): TRACING
    + "override validation failed: override action can be used only with syscalls and security_ hooks",
    _spec("kprobes", {"call": "sys_symlink"}, "Override"): TRACING
    + "override validation failed: override action not supported on syscalls, bpf_override_return helper not available",
    _spec("fentries", {"call": "security_file_open", "syscall": False}, "Sigkill"): TRACING + "enforcement is not supported for fentry yet",
    _spec("lsmhooks", {"hook": "no_such_hook"}): TRACING + "lsm validation failed: error in spec.lsmHooks[0]: "
    'lsm hook "no_such_hook" not found in BTF (looked up "bpf_lsm_no_such_hook")',
    _spec("tracepoints", {"subsystem": "syscalls", "event": "sys_enter_nosuch"}): TRACING
    + "tracepoint syscalls/sys_enter_nosuch not supported: failed to parse tracepoint format",
    _spec("uprobes", {"path": "/no/such/binary", "symbols": ["x"]}): TRACING + "open /no/such/binary: no such file or directory",
    _spec("uprobes", {"path": LIBC, "symbols": ["nosuchsym"]}): TRACING
    + "sensor generic_uprobe from collection err failed to load: attaching 'generic_uprobe_event' failed: symbol nosuchsym: not found",
    _spec("lsmhooks", {"hook": "file_open"}, podSelector={}): TRACING + "policyfilter is disabled",
    _spec("lsmhooks", {"hook": "file_open", "selectors": [{}] * 6}): TRACING + "no more than 5 selectors supported (6 provided)",
    _spec("kprobes", {"call": "fd_install", "syscall": False, "selectors": [on_path("/x", None)]}): TRACING
    + "parseMatchArgs  error: argFilter for unknown index",
    _spec("kprobes", {"call": "fd_install", "selectors": [{"matchCapabilities": [{"operator": "In", "values": ["CAP_NOPE"]}]}]}): TRACING
    + "parseMatchCapabilities error: value CAP_NOPE unknown",
    _spec("kprobes", {"call": "sys_close"}, enforcers=[{"calls": ["sys_close"]}]): TRACING.replace("tracing", "enforcer")
    + "no override helper or mod_ret support: cannot load enforcer",
}


def test_refusals_as_recorded(host: LabHost) -> None:
    host.start()
    for text, message in {**REFUSED, **NOT_LOADED}.items():
        done = host.add(text)
        wanted = f"Error: failed to add tracing policy: rpc error: code = Unknown desc = {message}\n"
        assert (done.returncode, done.stderr) == (1, wanted)
        if text in NOT_LOADED:
            assert host.listed()["err"]["error"] == message  # until the next of this name replaces it
    assert host.listed().keys() == {"err"}


def test_a_taken_name_is_refused_but_a_failed_one_is_replaced(host: LabHost) -> None:
    host.start()
    host.add(policy("seco", "kprobes", {"call": "no_such_function_xyz"}, None))
    assert host.add(seco() + "\n---\n" + seco("second")).returncode == 0  # and of two documents only the first counts
    assert host.listed().keys() == {"seco"}
    assert host.listed()["seco"]["id"] == "3"
    done = host.add(seco())
    taken = "failed to add tracing policy {seco }, a sensor collection with the key already exists"
    assert (done.returncode, done.stderr) == (1, f"Error: failed to add tracing policy: rpc error: code = Unknown desc = {taken}\n")


def test_kprobe_multi_and_override(host: LabHost) -> None:
    host.faults(load_seconds=0, kernel_features={"kprobe_multi": True})
    host.start()
    done = host.add(seco())
    assert "can't override 'security_file_open' function with kprobe_multi, use --disable-kprobe-multi option" in done.stderr
    assert host.add(seco("with", options=[{"name": "disable-kprobe-multi", "value": "1"}])).returncode == 0


def test_version_decides_the_schema() -> None:
    fentry = policy("x", "fentries", {"call": "fd_install", "syscall": False}, None)
    assert read(fentry, "1.7.0").sensors == ["generic_fentry"]
    with pytest.raises(Refused, match='unknown field "fentries"'):
        read(fentry, "1.6.1")


def test_mode_of_add_before_option_before_enforce(host: LabHost) -> None:
    host.start()
    monitor = [{"name": "policy-mode", "value": "monitor"}, {"name": "polcy-mode", "value": "ignored"}]
    host.add(seco("plain"))
    host.add(seco("option", options=monitor))
    file = host.path / "policy.yaml"
    file.write_text(seco("asked", options=monitor), encoding="utf-8")
    host.tetra("tp", "add", str(file), "-m", "enforce")
    modes = {name: one["mode"] for name, one in host.listed().items()}
    assert modes == {"plain": "TP_MODE_ENFORCE", "option": "TP_MODE_MONITOR", "asked": "TP_MODE_ENFORCE"}


def test_an_add_that_outlasts_its_timeout_goes_on(host: LabHost) -> None:
    host.start()
    host.faults(load_seconds=0.5)
    done = host.add(seco(), "--timeout", "150ms")
    deadline = "Error: failed to add tracing policy: rpc error: code = DeadlineExceeded desc = context deadline exceeded\n"
    assert (done.returncode, done.stderr) == (1, deadline)
    assert host.listed()["seco"] == {"id": "2", "name": "seco", "sensors": ["generic_kprobe"], "state": "TP_STATE_LOADING"}
    host.wait_for('Loaded sensor successfully" sensor=generic_kprobe')
    assert host.listed()["seco"]["state"] == "TP_STATE_ENABLED"


def test_pins_have_the_real_tree(host: LabHost) -> None:
    place(host, **ALL)
    host.start()
    files = {str(path.relative_to(host.pins)) for path in host.pins.rglob("*") if path.is_file()}
    for name, hook, wanted in (
        ("seco", "generic_kprobe/security_file_open", {"prog", "link", "prog_override", "link_override", "override_tasks"}),
        ("kpfd", "generic_kprobe/fd_install", {"prog", "link"}),
        ("lsm", "generic_lsm/file_open", {"prog", "override_tasks"}),
        ("tp", "generic_tracepoint/syscalls:sys_enter_lseek", {"prog", "link"}),
        ("rtp", "generic_tracepoint/raw_syscalls:sys_enter", {"prog"}),
        ("up", "generic_uprobe/0-malloc", {"prog", "link"}),
    ):
        assert {path for path in files if path.startswith(f"{name}/")} == {
            *(f"{name}/{hook}/{one}" for one in wanted),
            f"{name}/policy_conf",
            f"{name}/policy_stats",
        }
    assert {"__base__/event_execve/link", "execve_map", "tg_conf_map"} <= files
    assert "__base__/execve_map_update/link" not in files


def test_run_directory(host: LabHost) -> None:
    host.start()
    run = host.inside("/var/run/tetragon")
    assert host.process is not None
    assert (run / "tetragon.pid").read_text(encoding="ascii") == str(host.process.pid)
    assert oct((run / "tetragon.sock").stat().st_mode)[-3:] == "660"
    info = json.loads((run / "tetragon-info.json").read_text(encoding="utf-8"))
    assert (info["server_address"], info["pid"]) == ("unix:///var/run/tetragon/tetragon.sock", host.process.pid)
    assert host.stop() == 0
    assert [path.name for path in run.iterdir()] == ["tetragon-info.json"]
    host.start()
    assert host.stop(signal.SIGKILL) == -signal.SIGKILL
    assert {path.name for path in run.iterdir()} == {"tetragon-info.json", "tetragon.pid", "tetragon.sock"}
    assert "connect: connection refused" in host.tetra("tp", "list").stderr
    former = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, and so it would be by the agent
    host.start()  # over a stale pid file and socket
    signal.signal(signal.SIGHUP, former)
    assert host.stop(signal.SIGHUP) == -signal.SIGHUP


def test_a_second_agent_is_refused_without_touching_the_first(host: LabHost) -> None:
    place(host, seco=seco())
    host.start()
    first = host.process
    with pytest.raises(NotReady) as refusal:
        host.start()
    pid_file = host.inside("/var/run/tetragon/tetragon.pid")
    assert (
        f"failed to create pid file '{pid_file}', another Tetragon instance seems to be up and running: process is already running"
        in str(refusal.value)
    )
    assert host.process is not None
    assert host.process.wait() == 255
    host.process = first
    assert host.listed()["seco"]["state"] == "TP_STATE_ENABLED"
    assert not Path(f"{host.pins}_old").exists()


def test_options_merge_in_order(host: LabHost) -> None:
    for folder, value in (("usr/lib", "one"), ("usr/local/lib", "two")):
        path = host.path / folder / "tetragon/tetragon.conf.d"
        path.mkdir(parents=True)
        (path / "bpf-lib").write_text(f"{value}\n", encoding="utf-8")
        (path / "log-leevl").write_text("ignored", encoding="utf-8")
    os.environ["TETRAGON_CLUSTER_NAME"] = "from-environment"
    try:
        host.start("--enable-process-ns", "--rb-size-total=128K", "--process-cache-size", "17")
    finally:
        del os.environ["TETRAGON_CLUSTER_NAME"]
    info = json.loads(host.tetra("info").stdout)
    wanted = {"bpf-lib": "two", "enable-process-ns": True, "process-cache-size": 17, "keep-sensors-on-exit": "true"}
    assert wanted.items() <= info["Conf"].items()
    assert (info["Conf"]["cluster-name"], info["Conf"]["release-pinned-bpf"]) == ("from-environment", "false")
    assert list(info) == ["Name", "Version", "Probes", "Conf", "Build"]
    assert len(info["Conf"]) > 80


def test_unknown_flag(host: LabHost) -> None:
    with pytest.raises(NotReady, match="Error: unknown flag: --nope"):
        host.start("--nope")
    assert host.process is not None
    assert host.process.returncode == 1


def test_policy_directory_walk(host: LabHost) -> None:
    elsewhere = host.path / "elsewhere"
    (elsewhere / "dir").mkdir(parents=True)
    (elsewhere / "l.yaml").write_text(seco("linked"), encoding="utf-8")
    (elsewhere / "dir/no.yaml").write_text(seco("through-linked-dir"), encoding="utf-8")
    (host.policies / "apiary/deep").mkdir(parents=True)
    for path, name in (("50-seco.yaml", "seco"), (".hidden.yaml.swp", "hidden"), ("apiary/kpfd.yaml", "kpfd"), ("apiary/deep/x", "deep")):
        (host.policies / path).write_text(seco(name), encoding="utf-8")
    (host.policies / "60-link.yaml").symlink_to(elsewhere / "l.yaml")
    (host.policies / "linkdir").symlink_to(elsewhere / "dir")
    host.start()
    assert {name: one["id"] for name, one in host.listed().items()} == {"hidden": "2", "seco": "3", "linked": "4", "kpfd": "5"}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"README": "just words"}, "json: cannot unmarshal string into Go value of type map[string]interface {}"),
        ({"x.yaml.bak": ""}, 'error="unknown CRD kind: "'),
        ({"a": seco("mon"), "b": seco("mon")}, "failed to add tracing policy {mon }, a sensor collection with the key already exists"),
        ({"..2026/x.yaml": seco("cm"), "x.yaml": "->..2026/x.yaml"}, "a sensor collection with the key already exists"),
    ],
)
def test_one_bad_file_ends_the_agent(host: LabHost, files: dict[str, str], message: str) -> None:
    for name, text in files.items():
        path = host.policies / name
        path.parent.mkdir(exist_ok=True)
        if text.startswith("->"):
            path.symlink_to(host.policies / text[2:])
        else:
            path.write_text(text, encoding="utf-8")
    with pytest.raises(NotReady) as refusal:
        host.start()
    assert 'level=error msg="Failed to execute tetragon"' in str(refusal.value)
    assert message in str(refusal.value)
    assert host.process is not None
    assert host.process.wait() == 255


def test_an_agent_told_to_end_before_it_serves_fails(host: LabHost) -> None:
    place(host, seco=seco())
    host.faults(start_seconds=1)
    host.start(wait=False)
    host.wait_for('msg="Loading sensor" name=__base__')
    assert host.stop() == 255
    log = host.log.read_text(encoding="utf-8")
    assert 'msg="Failed to execute tetragon" error="error starting JSON exporter: context canceled"' in log
    assert log.index("shutting down") < log.index('"Loaded sensor successfully" sensor=__base__')


def test_what_outlives_the_agent(host: LabHost) -> None:
    place(host, **ALL)
    host.start()
    assert enforced(host) == ALL.keys()
    host.stop()
    assert enforced(host) == ALL.keys() - {"lsm", "rtp"}  # their links are not pinned
    host.start()
    assert enforced(host) == ALL.keys()
    host.stop(signal.SIGKILL)
    assert enforced(host) == ALL.keys() - {"lsm", "rtp"}
    shutil.rmtree(host.pins)
    assert enforced(host) == set()


def test_defaults_keep_nothing(tmp_path: Path) -> None:
    with LabHost(tmp_path / "h", keep_sensors_on_exit=None, release_pinned_bpf=None) as host:
        place(host, kpfd=kpfd())
        host.start()
        host.stop()
        assert not host.pins.exists()
        assert enforced(host) == set()
        host.start()
        host.stop(signal.SIGKILL)
        assert enforced(host) == {"kpfd"}  # whatever the options say
        host.faults(load_seconds=0, start_seconds=0.3)
        host.start(wait=False)
        host.wait_for('Loading sensor" name=__base__')
        assert enforced(host) == set()  # released at the start, before anything new is there


def test_restart_overlaps_and_forgets_what_was_added(host: LabHost) -> None:
    place(host, kpfd=kpfd())
    host.start()
    host.add(seco())
    host.stop()
    host.faults(load_seconds=0.4)
    host.start(wait=False)
    host.wait_for(f"Found bpf instance: {host.pins}, moved to: {host.pins}_old")
    host.wait_for("Starting gRPC server")
    assert enforced(host) == {"kpfd", "seco"}
    host.wait_for('Loading sensor" name=generic_kprobe')
    listed = host.listed()  # the agent answers before it has loaded its files
    assert listed["kpfd"]["state"] == "TP_STATE_LOADING"
    host.wait_for(f"Removed bpf instance: {host.pins}_old")
    host.wait_for("Listening for events...")
    assert enforced(host) == {"kpfd"}
    assert host.listed().keys() == {"kpfd"}


def test_the_second_failing_start_destroys_what_was_kept(host: LabHost) -> None:
    place(host, aa=kpfd(), zz=lseek("tp"))
    host.start()
    host.stop()
    place(host, mm=policy("err", "kprobes", {"call": "no_such_function_xyz"}, None))
    old = Path(f"{host.pins}_old")
    for kept, leftover in (({"kpfd", "tp"}, False), ({"kpfd"}, True)):
        with pytest.raises(NotReady) as failure:
            host.start()
        assert (f"Found bpf leftover instance, removing: {old}" in str(failure.value)) == leftover
        assert enforced(host) == kept
    assert old.exists()
    shutil.rmtree(host.pins)
    old.rename(host.pins)  # what is enforced lies in the pins, wherever they are moved to
    assert enforced(host) == {"kpfd"}


def test_a_leftover_without_a_newer_instance_stays(host: LabHost) -> None:
    place(host, kpfd=kpfd())
    host.start()
    host.stop()
    host.pins.rename(f"{host.pins}_old")
    (host.policies / "kpfd.yaml").unlink()
    host.start()
    assert enforced(host) == {"kpfd"}
    assert host.listed() == {}


def test_two_agents_side_by_side(host: LabHost, tmp_path: Path) -> None:
    """A second agent with a run directory of its own, on the same kernel."""
    place(host, lsm=lsm())
    host.start()
    with LabHost(tmp_path / "b", bpf_dir="tetragon-b") as other:
        for shared in ("/sys/fs/bpf", "/run/standin-kernel"):
            other.inside(shared).parent.mkdir(parents=True, exist_ok=True)
            other.inside(shared).symlink_to(host.inside(shared))
        place(other, lsm=lsm())
        other.start()
        host.stop()
        shutil.rmtree(host.pins)
        assert enforced(host) == {"lsm"}
        other.stop(signal.SIGKILL)
        assert enforced(host) == set()


def test_clash_of_health_addresses_is_fatal(tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken, LabHost(tmp_path / "h") as host:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(NotReady, match="bind: address already in use"):
            host.start(f"--health-server-address=127.0.0.1:{taken.getsockname()[1]}")


def test_faults(host: LabHost) -> None:
    host.start()
    host.faults(load_seconds=0, fail_load=["bad-", ["worse-", "verifier: too many instructions"]])
    assert "failed loading policy 'bad-1': refused by the laboratory" in host.add(seco("bad-1")).stderr
    assert "failed loading policy 'worse-1': verifier: too many instructions" in host.add(seco("worse-1")).stderr
    host.faults(load_seconds=0, hang_on="list")
    assert "code = DeadlineExceeded" in host.tetra("--timeout", "100ms", "tp", "list").stderr
    assert host.tetra("--timeout", "5s", "status").stdout == "Health Status: running\n"
    host.faults(load_seconds=0, hang=True)
    assert "code = DeadlineExceeded" in host.tetra("--timeout", "100ms", "status").stdout
    host.faults(load_seconds=0, exit_after_load="crash")
    assert host.add(kpfd("crashing")).returncode == 1
    assert host.process is not None
    assert host.process.wait() == 2
    assert enforced(host) == {"kpfd"}


def test_burning_cpu_only_with_a_policy(host: LabHost) -> None:
    host.faults(load_seconds=0, burn_cpu_policy={"prefix": "hot", "cores": 0.5})
    host.start()
    assert host.process is not None
    stat = Path(f"/proc/{host.process.pid}/stat")

    def ticks() -> int:
        return sum(map(int, stat.read_text(encoding="utf-8").rpartition(")")[2].split()[11:13]))

    before = ticks()
    time.sleep(0.5)
    assert ticks() - before <= 2
    host.add(seco("hot-policy"))
    before, deadline = ticks(), time.monotonic() + 60
    while ticks() - before <= 20:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_act_command(host: LabHost) -> None:
    place(host, seco=seco(), kpfd=kpfd())
    host.start()

    def act(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([str(BIN / "act"), *words], capture_output=True, text=True, env=host.environment, check=False)

    done = act("open", "/lab/other", "--", "open", "/lab/secret")
    assert (done.returncode, done.stdout) == (1, "open /lab/other: allowed\nopen /lab/secret: denied (EPERM)\n")
    done = act("--json", "--binary", "/usr/bin/vi", "open", "/lab/kpfd", "--", "open", "/never")
    assert done.returncode == 137
    result = json.loads(done.stdout)
    assert (result["result"], result["happened"], result["policies"]) == ("killed", True, ["kpfd"])
    assert act("fly").returncode == 2
    assert act("open").returncode == 2


def test_selectors_see_the_caller(host: LabHost) -> None:
    host.start()
    match = {"matchBinaries": [{"operator": "NotIn", "values": ["/usr/bin/vi"]}], "matchActions": [{"action": "Override", "argError": -13}]}
    outside = {
        "matchNamespaces": [{"namespace": "Pid", "operator": "NotIn", "values": ["host_ns"]}],
        "matchActions": [{"action": "Sigkill"}],
    }
    hook = {"call": "security_bprm_check", "syscall": False, "args": [{"index": 0, "type": "linux_binprm"}]}
    host.add(policy("binaries", "kprobes", {**hook, "selectors": [match]}, None))
    host.add(policy("containers", "kprobes", {"call": "tcp_connect", "syscall": False, "selectors": [outside]}, None))
    act: Callable[..., Any] = host.kernel.act
    assert act("exec", "/bin/ls", caller=Caller(binary="/usr/bin/vi")).result == "allowed"
    assert act("exec", "/bin/ls").error == "EACCES"
    assert act("connect", "10.0.0.7", "443").result == "allowed"
    assert act("connect", "10.0.0.7", "443", caller=Caller(container=True)).result == "killed"
