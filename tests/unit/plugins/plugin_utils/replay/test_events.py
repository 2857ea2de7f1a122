# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Exported events as invocations: which hook, which arguments, which process."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay import corpus
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.events import Context, decode
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.records import (
    Argument,
    Declared,
    FilePath,
    Hook,
    Invocation,
    Opaque,
    Pod,
    Process,
    ReadError,
    Socket,
    Value,
)
from ansible_collections.apiary.tetragon.tests.unit.plugins.plugin_utils.samples import messages, opened, refused

NO_RECORDER: Mapping[Hook, Any] = {}


def decoded(
    event: Mapping[str, Any],
    recorder: Mapping[Hook, Any] = NO_RECORDER,
    executables: Mapping[str, str] | None = None,
    at_hook: bool = False,
) -> Invocation:
    """An event as an invocation."""
    invocation = decode(json.dumps(event).encode(), Context({"": recorder}, executables, at_hook), ("e.jsonl", 1))
    assert invocation is not None
    return invocation


def kprobe(**body: Any) -> dict[str, Any]:
    """A kprobe's event."""
    return {"process_kprobe": {"function_name": "f", **body}}


def process(raw: Mapping[str, Any], parent: Mapping[str, Any] | None = None, **options: Any) -> Process:
    """The process of an event."""
    return decoded(kprobe(process=raw, parent=parent or {}), **options).process


# --- hooks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "hook"),
    [
        pytest.param({"process_kprobe": {"function_name": "tcp_connect"}}, Hook("kprobe", "tcp_connect"), id="a kprobe"),
        pytest.param({"process_kprobe": {"function_name": "__x64_sys_open"}}, Hook("kprobe", "sys_open"), id="a system call"),
        pytest.param({"process_kprobe": {"function_name": "__arm64_sys_open"}}, Hook("kprobe", "sys_open"), id="a system call of arm64"),
        pytest.param(
            {"process_kprobe": {"function_name": "__ia32_sys_open"}}, Hook("kprobe", "__ia32_sys_open"), id="a system call of i386"
        ),
        pytest.param({"process_kprobe": {"function_name": "__x64_other"}}, Hook("kprobe", "__x64_other"), id="no system call"),
        pytest.param({"process_lsm": {"function_name": "file_open"}}, Hook("lsm", "file_open"), id="an LSM hook"),
        pytest.param({"process_tracepoint": {"subsys": "a", "event": "b"}}, Hook("tracepoint", "a/b"), id="a tracepoint"),
        pytest.param({"process_uprobe": {"path": "/x", "symbol": "main"}}, Hook("uprobe", "/x:main"), id="a uprobe by symbol"),
        pytest.param({"process_uprobe": {"path": "/x", "offset": "4096"}}, Hook("uprobe", "/x:0x1000"), id="a uprobe by offset"),
        pytest.param({"process_uprobe": {"path": "/x"}}, Hook("uprobe", "/x:0x0"), id="a uprobe at the start"),
        pytest.param({"process_usdt": {"path": "/x", "provider": "p", "name": "n"}}, Hook("usdt", "/x:p:n"), id="a USDT"),
    ],
)
def test_an_event_names_its_hook(event: Mapping[str, Any], hook: Hook) -> None:
    assert decoded(event).hook == hook


@pytest.mark.parametrize("key", ["process_exec", "process_exit", "process_loader", "rate_limit_info", "process_throttle", "test"])
def test_an_event_of_no_hook_is_no_invocation(key: str) -> None:
    assert decode(json.dumps({key: {}}).encode(), Context()) is None


# --- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        pytest.param({"int_arg": -3}, -3, id="int"),
        pytest.param({"int_arg": 0}, 0, id="zero"),
        pytest.param({"uint_arg": 7}, 7, id="uint"),
        pytest.param({"long_arg": "-9223372036854775808"}, -(1 << 63), id="long, which JSON writes as text"),
        pytest.param({"size_arg": "18446744073709551615"}, (1 << 64) - 1, id="size, which JSON writes as text"),
        pytest.param({"string_arg": "/etc"}, "/etc", id="string"),
        pytest.param({"bytes_arg": base64.b64encode(b"\0\xff").decode()}, b"\0\xff", id="bytes"),
        pytest.param({"file_arg": {"path": "/a", "permission": "-rw-"}}, FilePath("/a", "-rw-"), id="file"),
        pytest.param({"file_arg": {}}, FilePath(""), id="file without a path"),
        pytest.param({"path_arg": {"path": "/a"}}, FilePath("/a"), id="path"),
        pytest.param({"linux_binprm_arg": {"path": "/a"}}, FilePath("/a"), id="program"),
        pytest.param(
            {"sock_arg": {"family": "AF_INET", "daddr": "1.2.3.4", "dport": 80, "state": "TCP_CLOSE"}},
            Socket(family="AF_INET", daddr="1.2.3.4", dport=80, state="TCP_CLOSE"),
            id="socket",
        ),
        pytest.param({"skb_arg": {"protocol": "IPPROTO_UDP", "sport": 53}}, Socket(protocol="IPPROTO_UDP", sport=53), id="packet"),
        pytest.param(
            {"sockaddr_arg": {"family": "AF_INET6", "addr": "::1", "port": 80}},
            Socket(family="AF_INET6", saddr="::1", sport=80),
            id="socket address, as the source",
        ),
        pytest.param({"sockaddr_arg": {"family": "AF_UNIX"}}, Socket(family="AF_UNIX"), id="socket address of another family"),
        pytest.param({"sock_arg": {}}, Socket(), id="socket without anything"),
        pytest.param({"cap_effective_arg": "00000000000000ff"}, 255, id="capabilities"),
        pytest.param({"syscall_id": {"id": 59, "abi": "x64"}}, 59, id="number of a system call"),
        pytest.param({"syscall_id": {}}, 0, id="number of the first system call"),
        pytest.param({"error_arg": {"message": "Bad address"}}, ReadError("Bad address"), id="read error"),
        pytest.param({"error_arg": {"Message": "Bad address"}}, ReadError("Bad address"), id="read error, in the other spelling"),
        pytest.param({"label": "x", "int_arg": 1}, 1, id="with a label"),
        pytest.param({"bpf_map_arg": {}}, Opaque("bpf_map_arg"), id="what no filter compares"),
        pytest.param({"truncated_bytes_arg": {"bytes_arg": "AP8=", "orig_size": "5000"}}, b"\0\xff", id="bytes cut off"),
        pytest.param({"bytes_arg": base64.b64encode(bytes(4096)).decode()}, Opaque("bytes_arg"), id="more bytes than are compared"),
        pytest.param({"bytes_arg": base64.b64encode(b"CharBufErrorPageFault").decode()}, Opaque("bytes_arg"), id="bytes not read"),
        pytest.param({}, Opaque(""), id="nothing"),
    ],
)
def test_a_value_is_read(raw: Mapping[str, Any], value: Value) -> None:
    recorder = {Hook("kprobe", "f"): ((Declared(0, "any"),), ())}
    assert decoded(kprobe(args=[raw]), recorder).args == (Argument(Declared(0, "any"), value),)


def test_the_number_of_a_32_bit_system_call_carries_bit_31() -> None:
    recorder = {Hook("kprobe", "f"): ((Declared(0, "syscall64"),), ())}
    assert decoded(kprobe(args=[{"syscall_id": {"id": 5, "abi": "i386"}}]), recorder).args[0].value == 5 | 1 << 31


# --- arguments ------------------------------------------------------------------------------------------------------


def recorded(*types: str) -> dict[Hook, Any]:
    """A recorder that declares arguments of these types."""
    return {Hook("kprobe", "f"): (tuple(Declared(index, kind) for index, kind in enumerate(types)), ())}


def test_arguments_stand_in_the_order_of_the_recorder() -> None:
    recorder = {Hook("kprobe", "f"): ((Declared(3, "int"), Declared(0, "string")), (Declared(0, "uint64", "a.b", "current_task"),))}
    invocation = decoded(kprobe(args=[{"int_arg": 1}, {"string_arg": "x"}], data=[{"size_arg": "2"}]), recorder)
    assert [(one.declared.index, one.value) for one in invocation.args] == [(3, 1), (0, "x")]
    assert [(one.declared.resolve, one.value) for one in invocation.data] == [("a.b", 2)]


def test_arguments_of_type_nop_are_not_in_the_event() -> None:
    invocation = decoded(kprobe(args=[{"int_arg": 1}, {"int_arg": 2}]), recorded("int", "nop", "int"))
    assert [(one.declared.index, one.value) for one in invocation.args] == [(0, 1), (2, 2)]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_arguments_are_unknown_when_their_number_is_not_that_of_the_recorder(count: int) -> None:
    assert decoded(kprobe(args=[{"int_arg": 1}] * count), recorded("int", "int")).args == ()


def test_arguments_are_unknown_when_the_recorder_does_not_know_the_hook() -> None:
    (only,) = decoded(kprobe(args=[{"int_arg": 1}])).args
    assert only.declared.type == ""


@pytest.mark.parametrize(("body", "value"), [({"return": {"int_arg": -1}}, -1), ({"return": {"int_arg": 0}}, 0), ({}, None)], ids=str)
def test_the_returned_value_is_read(body: dict[str, Any], value: Value | None) -> None:
    assert decoded(kprobe(**body)).returned == value


def test_the_place_and_time_of_an_event_are_kept() -> None:
    invocation = decoded({**kprobe(), "time": "2026-11-22T09:00:00Z"})
    assert (invocation.source, invocation.time) == (("e.jsonl", 1), "2026-11-22T09:00:00Z")


# --- without the policy that recorded ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "args", "declared"),
    [
        pytest.param("security_file_open", ["file_arg"], [(0, "file", "")], id="the only argument of its kind"),
        pytest.param("fd_install", ["int_arg", "file_arg"], [(-1, "", ""), (1, "file", "")], id="a number has no known width"),
        pytest.param("fd_install", ["file_arg", "int_arg"], [(1, "file", ""), (-1, "", "")], id="in another order"),
        pytest.param("__x64_sys_execve", ["string_arg"], [(0, "string", "syscall")], id="of a system call"),
        pytest.param("security_file_open", ["file_arg", "file_arg"], [(-1, "", "")] * 2, id="two of a kind"),
        pytest.param("__x64_sys_mount", ["string_arg"], [(-1, "", "")], id="a function that takes several"),
        pytest.param("security_file_open", ["error_arg"], [(-1, "", "")], id="one that could not be read"),
        pytest.param("f", ["file_arg"], [(-1, "", "")], id="a function that is not known"),
    ],
)
def test_the_prototype_says_what_an_argument_is(function: str, args: list[str], declared: list[tuple[int, str, str]]) -> None:
    values = {"file_arg": {"path": "/x"}, "int_arg": 1, "string_arg": "x", "error_arg": {"message": "Bad address"}}
    found = decoded(kprobe(function_name=function, args=[{one: values[one]} for one in args])).args
    assert [(one.declared.index, one.declared.type, one.declared.context) for one in found] == declared


def test_an_lsm_hook_has_no_prototype_as_it_may_list_what_is_no_argument() -> None:
    (only,) = decoded({"process_lsm": {"function_name": "file_open", "args": [{"file_arg": {"path": "/x"}}]}}).args
    assert only.declared.type == ""


def test_a_label_of_a_system_call_names_its_own_argument() -> None:
    (only,) = decoded(kprobe(function_name="__x64_sys_mount", args=[{"string_arg": "tmpfs", "label": "a2:string"}])).args
    assert only.declared == Declared(2, "string", context="syscall")


# --- processes ------------------------------------------------------------------------------------------------------


def test_the_executed_file_is_unknown_without_a_map() -> None:
    one = process({"binary": "/usr/bin/cat"}, {"binary": "/bin/sh"})
    assert (one.binary, one.executable, one.parent_executable) == ("/usr/bin/cat", None, None)


def test_a_map_gives_the_executed_files_and_vouches_for_all_it_does_not_name() -> None:
    cat = {"binary": "/usr/bin/cat", "flags": "execve clone"}
    one = process(cat, {"binary": "/bin/sh"}, executables={"/bin/sh": "/usr/bin/dash"})
    assert (one.executable, one.parent_executable) == ("/usr/bin/cat", "/usr/bin/dash")


def test_a_process_without_a_name_has_no_executed_file() -> None:
    assert process({}, executables={}).executable is None


@pytest.mark.parametrize("where", ["args", "data"])
def test_a_recorded_executable_goes_before_the_map(where: str) -> None:
    exe = (Declared(0, "file", "mm.exe_file", "current_task", "exe"),)
    recorder = {Hook("kprobe", "f"): (exe, ()) if where == "args" else ((), exe)}
    event = kprobe(process={"binary": "/bin/sh"}, **{where: [{"file_arg": {"path": "/usr/bin/dash"}}]})
    assert decoded(event, recorder, {"/bin/sh": "/usr/bin/bash"}).process.executable == "/usr/bin/dash"


@pytest.mark.parametrize(
    ("label", "value"),
    [
        pytest.param("", {"file_arg": {"path": "/usr/bin/dash"}}, id="without the label"),
        pytest.param("executable", {"file_arg": {"path": "/usr/bin/dash"}}, id="another label"),
        pytest.param("exe", {"error_arg": {"message": "Bad address"}}, id="a read error"),
        pytest.param("exe", {"string_arg": "/usr/bin/dash"}, id="a text"),
    ],
)
def test_only_a_file_labelled_exe_is_the_executable(label: str, value: Mapping[str, Any]) -> None:
    recorder = {Hook("kprobe", "f"): ((Declared(0, "file", label=label),), ())}
    assert decoded(kprobe(process={"binary": "/bin/sh"}, args=[value]), recorder).process.executable is None


@pytest.mark.parametrize(("raw", "pid", "exec_id"), [({"pid": 7, "exec_id": "eA=="}, 7, "eA=="), ({}, 0, "")], ids=["given", "left out"])
def test_the_process_is_read(raw: dict[str, Any], pid: int, exec_id: str) -> None:
    assert (process(raw).pid, process(raw).exec_id) == (pid, exec_id)


@pytest.mark.parametrize(
    ("flags", "executed"),
    [("execve clone", True), ("execve rootcwd clone", True), ("execve", False), ("clone", False), ("procFS", False), ("", False)],
)
def test_only_an_exec_after_a_fork_is_taken_for_one(flags: str, executed: bool) -> None:
    assert process({"flags": flags}).executed is executed


@pytest.mark.parametrize("at_hook", [True, False])
def test_a_recording_may_vouch_for_the_moment_of_the_hook(at_hook: bool) -> None:
    assert process({}, at_hook=at_hook).current is at_hook


def test_namespaces_are_read() -> None:
    raw = {"ns": {"pid": {"inum": 4026531836, "is_host": True}, "mnt": {"inum": 4026532500}, "time": {}}}
    assert process(raw).namespaces == {"pid": (4026531836, True), "mnt": (4026532500, False)}


POD = {
    "namespace": "shop",
    "pod_labels": {"app": "cart"},
    "container": {"name": "main", "pid": 7, "image": {"id": "registry.example/cart@sha256:00ff"}},
}


def test_a_pod_is_read() -> None:
    one = process({"pod": POD, "docker": "0a1b"})
    assert one.pod == Pod("shop", {"app": "cart"}, "main", "registry.example/cart")
    assert (one.in_container, one.namespace_pid) == (True, 7)


@pytest.mark.parametrize(("image", "repo"), [("a/b@sha256:0", "a/b"), ("sha256:0", ""), ("a@b@c", ""), ("", "")])
def test_the_repository_is_what_stands_before_the_only_at_sign(image: str, repo: str) -> None:
    pod = process({"pod": {"namespace": "x", "container": {"image": {"id": image}}}}).pod
    assert pod is not None
    assert pod.image_repo == repo


@pytest.mark.parametrize(("raw", "in_container"), [({}, False), ({"docker": ""}, False), ({"docker": "0a1b"}, None)], ids=str)
def test_without_a_pod_a_container_is_known_by_its_id_alone(raw: dict[str, Any], in_container: bool | None) -> None:
    assert process(raw).in_container is in_container


def test_the_pod_of_a_process_may_have_no_container() -> None:
    one = process({"pod": {"namespace": "shop"}})
    assert one.pod == Pod("shop", {}, "", "")
    assert one.namespace_pid is None


# --- files of events ------------------------------------------------------------------------------------------------

RECORDER = {"metadata": {"name": "r"}, "spec": {"kprobes": [{"call": "security_file_open", "args": [{"index": 0, "type": "file"}]}]}}


@pytest.mark.parametrize("name", ["e.jsonl", "e.jsonl.gz"])
def test_a_file_is_read_line_by_line(name: str, tmp_path: Path) -> None:
    text = "\n".join([json.dumps(opened("/a")), "", json.dumps({"process_exec": {}}), json.dumps(opened("/b")), ""])
    opener = gzip.open if name.endswith(".gz") else open
    with opener(tmp_path / name, "wt", encoding="utf-8") as file:
        file.write(text)
    found = list(corpus.read(tmp_path / name, RECORDER, None))
    assert [one.args[0].value for one in found] == [FilePath("/a", "-rw-r--r--"), FilePath("/b", "-rw-r--r--")]
    assert [one.source for one in found] == [(str(tmp_path / name), 1), (str(tmp_path / name), 4)]


@pytest.mark.parametrize("at_hook", [True, False])
def test_what_a_recording_vouches_for_holds_for_all_its_events(at_hook: bool, tmp_path: Path) -> None:
    (tmp_path / "e.jsonl").write_text(json.dumps(opened("/a")), encoding="utf-8")
    assert [one.process.current for one in corpus.read(tmp_path / "e.jsonl", RECORDER, None, at_hook)] == [at_hook]


def test_a_recording_vouches_for_nothing_by_itself(tmp_path: Path) -> None:
    (tmp_path / "e.jsonl").write_text(json.dumps(opened("/a")), encoding="utf-8")
    (one,) = corpus.read(tmp_path / "e.jsonl", RECORDER, None)
    assert (one.process.current, one.process.executable) == (False, None)


@pytest.mark.parametrize(
    ("name", "content", "line", "message"),
    [
        pytest.param("e.jsonl", b"{}\n{\n", 2, "is not JSON", id="broken JSON"),
        pytest.param("e.jsonl", b"{}\n[]\n", 2, "is not a JSON object", id="a list"),
        pytest.param("e.jsonl", b"\xff\n", 1, "is not JSON", id="not UTF-8"),
        pytest.param("e.jsonl.gz", b"no gzip\n", 0, "cannot be read", id="not gzip"),
        pytest.param("e.jsonl.gz", gzip.compress(b"{}\n" * 99)[:-9], 0, "cannot be read", id="gzip cut off"),
        pytest.param("e.jsonl", None, 0, "cannot be read", id="no file"),
    ],
)
def test_a_file_that_is_not_sound_is_refused(name: str, content: bytes | None, line: int, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    (problem,) = refused(lambda: list(corpus.read(tmp_path / name, RECORDER, None)))
    assert (problem.file, problem.line) == (str(tmp_path / name), line)
    assert message in problem.message


@pytest.mark.parametrize(
    "position",
    [
        pytest.param(0, id="the mark of gzip"),
        pytest.param(10, id="the first block"),
        pytest.param(-8, id="the checksum"),
        pytest.param(-1, id="the length"),
    ],
)
def test_a_damaged_gzip_file_is_refused(position: int, tmp_path: Path) -> None:
    content = bytearray(gzip.compress(b'{"process_exec": {}}\n' * 9, mtime=0))
    content[position] ^= 0xFF
    (tmp_path / "e.jsonl.gz").write_bytes(content)
    assert str(tmp_path / "e.jsonl.gz") in messages(refused(lambda: list(corpus.read(tmp_path / "e.jsonl.gz", RECORDER, None))))


@pytest.mark.parametrize(
    "event",
    [
        pytest.param({"process_kprobe": None}, id="a body of nothing"),
        pytest.param(
            {"process_kprobe": {"function_name": "security_file_open", "args": [{"file_arg": None}]}}, id="an argument of nothing"
        ),
        pytest.param({"process_kprobe": {"function_name": "security_file_open", "args": [{"int_arg": "x"}]}}, id="a number in words"),
        pytest.param({"process_kprobe": {"function_name": "security_file_open", "args": [{"bytes_arg": "="}]}}, id="bytes that are none"),
        pytest.param({"process_kprobe": {"process": {"pid": "x"}}}, id="a pid in words"),
    ],
)
def test_an_event_of_another_shape_is_refused_at_its_line(event: Mapping[str, Any], tmp_path: Path) -> None:
    (tmp_path / "e.jsonl").write_text(json.dumps(event), encoding="utf-8")
    (problem,) = refused(lambda: list(corpus.read(tmp_path / "e.jsonl", RECORDER, None)))
    assert problem.line == 1
