# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The texts below were printed by the real client and agent v1.7.0."""

from __future__ import annotations

import pytest

from ansible_collections.apiary.tetragon.plugins.module_utils.agent.tetra import (
    LoadedPolicy,
    Tetra,
    TetraError,
    TetraMissing,
    clean_error,
    parse_info,
    parse_policies,
)

UNKNOWN_FUNCTION = (
    "policy handler 'tracing' failed loading policy 'err': validation failed: error in spec.kprobes[0]: kprobe spec "
    'pre-validation failed: validation error: call "no_such_function_xyz": not found'
)
LIST = (
    '{"policies":[{"id":"2","name":"seco","sensors":["generic_kprobe"],"enabled":true,"state":"TP_STATE_ENABLED",'
    '"kernel_memory_bytes":"933888","mode":"TP_MODE_MONITOR","stats":{"action_counters":{"post":"4","override":"3",'
    '"monitor_override":"1"}}},{"id":"3","name":"mon","sensors":["generic_kprobe"],"enabled":true,"state":"TP_STATE_ENABLED",'
    '"kernel_memory_bytes":"413696","mode":"TP_MODE_MONITOR_ONLY","stats":{"action_counters":{}}},{"id":"5","name":"err","error":"'
    + UNKNOWN_FUNCTION.replace('"', '\\"')
    + '","state":"TP_STATE_LOAD_ERROR"},{"id":"7","name":"kpfd","sensors":["generic_kprobe"],"state":"TP_STATE_LOADING"},'
    '{"id":"8","name":"off","sensors":["generic_kprobe"],"state":"TP_STATE_DISABLED"}]}\n'
)


def test_a_list_of_policies_is_read_whole_and_sorted():
    assert parse_policies(LIST) == [
        LoadedPolicy("err", state="load_error", error=UNKNOWN_FUNCTION),
        LoadedPolicy("kpfd", state="loading", sensors=("generic_kprobe",)),
        LoadedPolicy("mon", state="enabled", mode="monitor_only", sensors=("generic_kprobe",), kernel_memory_bytes=413696),
        LoadedPolicy("off", state="disabled", sensors=("generic_kprobe",)),
        LoadedPolicy(
            "seco",
            state="enabled",
            mode="monitor",
            sensors=("generic_kprobe",),
            kernel_memory_bytes=933888,
            counters={"post": 4, "override": 3, "monitor_override": 1},
        ),
    ]


def test_no_policies_are_an_empty_object():
    assert parse_policies("{}\n") == []


def test_states_and_modes_of_later_agents_are_passed_on_by_name():
    (policy,) = parse_policies('{"policies":[{"name":"x","state":"TP_STATE_NEW","mode":"TP_MODE_NEW"}]}')
    assert (policy.state, policy.mode, policy.enforces) == ("TP_STATE_NEW", "TP_MODE_NEW", False)


@pytest.mark.parametrize("text", ["", "no json", "[]", '{"policies":[{}]}', '{"policies":[{"name":"x","kernel_memory_bytes":"many"}]}'])
def test_a_list_that_cannot_be_read_is_an_error(text):
    with pytest.raises(TetraError, match="list of policies cannot be read"):
        parse_policies(text)


def test_information_is_found_among_log_lines():
    text = 'level=error msg="x"\n{"Name":"tetragon","Version":"v1.7.0","Probes":{"lsm":true},"Conf":{"bpf-dir":"tetragon"},"Build":{}}\n'
    assert parse_info(text) == {"version": "v1.7.0", "probes": {"lsm": True}, "flags": {"bpf-dir": "tetragon"}}


@pytest.mark.parametrize("text", ["", "{", '{"other":1}'])
def test_missing_information_is_an_error(text):
    with pytest.raises(TetraError, match="printed no information"):
        parse_info(text)


@pytest.mark.parametrize(
    ("stderr", "wanted"),
    [
        pytest.param(
            "Error: failed to add tracing policy: rpc error: code = Unknown desc = failed to add tracing policy {seco }, "
            "a sensor collection with the key already exists\n",
            "failed to add tracing policy: failed to add tracing policy {seco }, a sensor collection with the key already exists",
            id="duplicate",
        ),
        pytest.param(
            'Error: failed to list tracing policies: rpc error: code = Unavailable desc = connection error: desc = "transport: Error while '
            'dialing: dial unix /var/run/tetragon/tetragon.sock: connect: no such file or directory"\n',
            'failed to list tracing policies: rpc error: code = Unavailable desc = connection error: desc = "transport: Error while '
            'dialing: dial unix /var/run/tetragon/tetragon.sock: connect: no such file or directory"',
            id="no agent",
        ),
        pytest.param("Usage: x\nError: invalid mode\nmore", "invalid mode", id="among other lines"),
        pytest.param("panic: nil\n", "panic: nil", id="no error line"),
        pytest.param("", "no reason given", id="nothing"),
    ],
)
def test_the_agents_own_reason_is_kept(stderr, wanted):
    assert clean_error(stderr) == wanted


@pytest.fixture
def client(tmp_path):
    def make(script, timeout=5):
        program = tmp_path / "tetra"
        program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        program.chmod(0o755)
        return Tetra(str(program), "unix:///run/x.sock", timeout)

    return make


def test_every_call_states_its_time_limit_and_address(client):
    assert client('echo "$@"').call("info").split() == ["--timeout", "5s", "--server-address", "unix:///run/x.sock", "info"]


def test_a_namespaced_policy_is_named_with_its_namespace(client, tmp_path):
    client(f'echo "$@" >> {tmp_path}/calls').delete(("shop", "x"))
    assert (tmp_path / "calls").read_text(encoding="utf-8").endswith("tracingpolicy delete x --namespace shop\n")


def test_a_client_that_hangs_is_an_error_within_its_time(client, monkeypatch):
    monkeypatch.setattr("ansible_collections.apiary.tetragon.plugins.module_utils.agent.tetra._GRACE", 0)
    with pytest.raises(TetraError, match="tetra tracingpolicy: no answer within 1 seconds"):
        client("exec sleep 60", timeout=1).policies()


def test_a_client_that_gives_up_waiting_is_the_same_error(client):
    script = "echo 'Error: failed to list: rpc error: code = DeadlineExceeded desc = context deadline exceeded' >&2; exit 1"
    with pytest.raises(TetraError, match=r"^tetra tracingpolicy: no answer within 5 seconds"):
        client(script).policies()


def test_a_failing_client_gives_its_code_and_reason(client):
    with pytest.raises(TetraError, match=r"^no such policy$") as caught:
        client("echo 'Error: no such policy' >&2; exit 3").policies()
    assert caught.value.rc == 3


@pytest.mark.parametrize("program", ["/no/such/tetra", "no-such-program-tetra"])
def test_a_missing_client_says_how_to_name_it(program):
    with pytest.raises(TetraMissing, match=r"install the Tetragon agent first, or say where its client is \(option tetra\)"):
        Tetra(program).policies()
