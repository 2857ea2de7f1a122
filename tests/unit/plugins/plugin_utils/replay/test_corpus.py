# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Ground truth: what the replay says of a recording is what the real agent did. See tests/corpus/README.md."""

from __future__ import annotations

import functools
from collections import Counter

import pytest

from ansible_collections.apiary.tetragon.plugins.plugin_utils import documents
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.compile import CompiledPolicy
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.records import Hook
from ansible_collections.apiary.tetragon.tests import agreement
from ansible_collections.apiary.tetragon.tests.unit.plugins.plugin_utils.samples import CORPUS

NAMES = agreement.names(CORPUS)
SHARE_DECIDED = 0.95
RATE_LIMITED = {"n17-ratelimit"}


@functools.cache
def row(name: str, named: bool = True) -> agreement.Row:
    """A narrow policy replayed."""
    return agreement.compare(CORPUS, name, named)


def per_process(one: agreement.Row, answer: bool) -> Counter[str]:
    """How many calls of each process were answered so."""
    return Counter(call.process.exec_id for call, verdict in one.verdicts if verdict.fires.value is answer)


@pytest.mark.parametrize("stem", [file.stem.removeprefix("b-") for file in sorted((CORPUS / "broad" / "policies").glob("*.yaml"))])
def test_a_recording_is_read_whole(stem: str) -> None:
    policy = CompiledPolicy(documents.load(CORPUS / "broad" / "policies" / f"b-{stem}.yaml").data)
    calls = [call for hook in policy.hooks for call in agreement.recording(CORPUS, True).get(hook, ())]
    assert calls
    assert all(call.args for call in calls if call.hook.kind != "uprobe")


@pytest.mark.parametrize("named", [True, False], ids=["programs known", "from the recording alone"])
@pytest.mark.parametrize("name", NAMES)
def test_no_decided_call_differs_from_what_the_agent_did(name: str, named: bool) -> None:
    one = row(name, named)
    assert one.emitted
    assert one.wrong == ()


@pytest.mark.parametrize("named", [True, False], ids=["programs known", "from the recording alone"])
@pytest.mark.parametrize("name", NAMES)
def test_nearly_all_is_decided(name: str, named: bool) -> None:
    assert row(name, named).decided >= SHARE_DECIDED


@pytest.mark.parametrize("name", [one for one in NAMES if one not in RATE_LIMITED])
def test_a_policy_fires_where_the_agent_fired(name: str) -> None:
    one = row(name)
    assert one.count(None) == 0
    assert per_process(one, True) == one.emitted


def test_the_table_has_a_line_per_policy_and_a_total() -> None:
    lines = agreement.table([row(name) for name in NAMES]).splitlines()
    print("\n".join(lines))
    assert [line.split()[0] for line in lines] == ["policy", *NAMES, "of"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("n09-bin-in", "the recording lacks the executed file of the process"),
        ("n11-bin-follow", "the recording lacks the executed files of the process's ancestors"),
    ],
)
def test_what_cannot_be_decided_says_why(name: str, reason: str) -> None:
    reasons = {one for _, verdict in row(name, False).verdicts for one in verdict.fires.reasons}
    assert reason in reasons
    assert all(one.startswith("the recording lacks the executed file") for one in reasons)


def test_capabilities_of_the_last_exec_alone_decide_nothing() -> None:
    """The trap of n13: without commit_creds in the recording, programs that dropped capabilities cannot be told."""
    policy = CompiledPolicy(documents.load(CORPUS / "narrow" / "n13-caps-in.yaml").data)
    plain = [
        call.__class__(call.hook, call.process.__class__(call.process.binary, exec_id=call.process.exec_id), call.args)
        for call, verdict in row("n13-caps-in").verdicts
        if verdict.fires.value
    ]
    assert {verdict.fires.value for call in plain for verdict in policy.evaluate(call)} == {None}


def test_a_rate_limited_policy_fires_for_every_match() -> None:
    one = row("n17-ratelimit")
    assert (one.count(True), one.count(None), one.emitted.total()) == (84, 0, 64)
    assert per_process(one, True) >= one.emitted


def test_what_a_rate_limit_may_withhold_is_marked() -> None:
    fired = [verdict for _, verdict in row("n17-ratelimit").verdicts if verdict.fires.value]
    assert all(outcome.rate_limited for verdict in fired for outcome in verdict.outcomes)
    assert {verdict.posts.value for verdict in fired} == {None}


@pytest.mark.parametrize("name", [one for one in NAMES if one not in RATE_LIMITED])
def test_nothing_else_is_marked_as_rate_limited(name: str) -> None:
    assert not row(name).limited


@pytest.mark.parametrize(
    ("wanted", "recorded"),
    [
        (Hook("kprobe", "security_file_open"), Hook("lsm", "file_open")),
        (Hook("kprobe", "security_bprm_check"), Hook("lsm", "bprm_check_security")),
    ],
    ids=str,
)
def test_an_lsm_recording_holds_the_calls_of_its_function(wanted: Hook, recorded: Hook) -> None:
    """What equivalences.py says, seen on a real kernel: the same calls by the same processes with the same files."""
    calls = agreement.recording(CORPUS, True)
    both = [Counter((call.process.exec_id, str(call.args[0].value)) for call in calls[hook]) for hook in (wanted, recorded)]
    assert both[0] == both[1]


@pytest.mark.parametrize("name", ["n01-equal", "n02-prefix", "n09-bin-in", "n16-multi-sel"])
def test_an_lsm_recording_decides_a_policy_on_its_function_as_the_agent_did(name: str) -> None:
    policy = CompiledPolicy(documents.load(CORPUS / "narrow" / f"{name}.yaml").data, recorded=[Hook("lsm", "file_open")])
    calls = agreement.recording(CORPUS, True)[Hook("lsm", "file_open")]
    verdicts = [(call.process.exec_id, one.fires.value) for call in calls for one in policy.evaluate(call)]
    assert Counter(exec_id for exec_id, fires in verdicts if fires) == row(name).emitted
    assert None not in {fires for _, fires in verdicts}
