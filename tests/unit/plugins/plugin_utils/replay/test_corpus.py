# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Ground truth: what the replay says of a recording is what the real agent did. See tests/corpus/README.md."""

from __future__ import annotations

import functools
import gzip
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from ansible_collections.apiary.tetragon.plugins.plugin_utils import documents
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay import corpus
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.compile import CompiledPolicy, Verdict
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.records import Invocation
from ansible_collections.apiary.tetragon.tests.unit.plugins.plugin_utils.samples import CORPUS

EXECUTABLES = {
    "/lab/wl/run.sh": "/lab/wl/sh",
    "/lab/wl/bin/child1.sh": "/lab/wl/bin/child",
    "/bin/sh": "/usr/bin/dash",
    "/usr/bin/sh": "/usr/bin/dash",
}
RECORDINGS = {
    "security_file_open": "sec-file-open",
    "fd_install": "fd-install",
    "security_file_permission": "sec-file-permission",
    "tcp_connect": "tcp-connect",
    "sys_execve": "sys-execve",
}
DECIDED = ["n01-equal", "n02-prefix", "n03-postfix", "n04-mask", "n06-daddr", "n08-dport", "n09-bin-in", "n16-multi-sel", "n20-execve-str"]
UNDECIDED = ["n11-bin-follow", "n13-caps-in"]


@functools.cache
def recording(function: str) -> tuple[Invocation, ...]:
    """Every recorded call of a function."""
    stem = RECORDINGS[function]
    policy = documents.load(CORPUS / "broad" / "policies" / f"b-{stem}.yaml").data
    files = sorted((CORPUS / "broad").glob(f"broad-{stem}.*jsonl.gz"))
    return tuple(one for file in files for one in corpus.read(file, policy, EXECUTABLES))


@dataclass(frozen=True)
class Replay:
    """A narrow policy's verdicts over the broad recording, and the agent's own events, as counts by exec id."""

    verdicts: Sequence[tuple[str, Verdict]]
    emitted: Counter[str]

    def count(self, answer: bool | None) -> Counter[str]:
        """How many calls of each process were answered so."""
        return Counter(exec_id for exec_id, verdict in self.verdicts if verdict.fires.value is answer)


@functools.cache
def replayed(name: str) -> Replay:
    """A narrow policy replayed."""
    policy: Any = documents.load(CORPUS / "narrow" / f"{name}.yaml").data
    compiled = CompiledPolicy(policy)
    calls = recording(policy["spec"]["kprobes"][0]["call"])
    verdicts = [(call.process.exec_id, verdict) for call in calls for verdict in compiled.evaluate(call)]
    known = {exec_id for exec_id, _unused in verdicts}
    with gzip.open(CORPUS / "narrow" / f"{name}.expected.jsonl.gz", "rt", encoding="utf-8") as lines:
        emitted = Counter(json.loads(line)["process_kprobe"]["process"]["exec_id"] for line in lines)
    return Replay(verdicts, Counter({exec_id: count for exec_id, count in emitted.items() if exec_id in known}))


@pytest.mark.parametrize("function", list(RECORDINGS))
def test_a_recording_is_read_whole(function: str) -> None:
    calls = [call for call in recording(function) if call.hook.name == function]
    assert calls
    assert all(call.args for call in calls)


@pytest.mark.parametrize("name", DECIDED)
def test_a_policy_fires_where_the_agent_fired(name: str) -> None:
    replay = replayed(name)
    assert replay.emitted
    assert replay.count(True) == replay.emitted


@pytest.mark.parametrize("name", DECIDED)
def test_nothing_is_left_undecided(name: str) -> None:
    assert replayed(name).count(None) == Counter()


@pytest.mark.parametrize(
    ("name", "fired"),
    [("n01-equal", 31), ("n02-prefix", 23), ("n03-postfix", 22), ("n04-mask", 5), ("n06-daddr", 3), ("n08-dport", 5), ("n09-bin-in", 41)],
)
def test_the_ground_truth_is_not_empty(name: str, fired: int) -> None:
    assert replayed(name).emitted.total() == fired


@pytest.mark.parametrize("name", UNDECIDED)
def test_what_a_recording_does_not_hold_is_never_decided_wrongly(name: str) -> None:
    replay = replayed(name)
    assert replay.count(True) == Counter()
    assert replay.emitted - replay.count(None) == Counter()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("n11-bin-follow", "the recording lacks the executed files of the process's ancestors"),
        ("n13-caps-in", "the recording holds the capabilities of the last exec, not those at the hook"),
    ],
)
def test_what_cannot_be_decided_says_why(name: str, reason: str) -> None:
    reasons = {verdict.fires.reasons for _unused, verdict in replayed(name).verdicts if verdict.fires.value is None}
    assert reasons == {frozenset([reason])}


def test_a_rate_limited_policy_fires_for_every_match() -> None:
    replay = replayed("n17-ratelimit")
    fired = [verdict for _unused, verdict in replay.verdicts if verdict.fires.value]
    assert len(fired) == 84
    assert replay.count(None) == Counter()


def test_what_a_rate_limit_may_withhold_is_marked() -> None:
    fired = [verdict for _unused, verdict in replayed("n17-ratelimit").verdicts if verdict.fires.value]
    assert all(outcome.rate_limited for verdict in fired for outcome in verdict.outcomes)


def test_the_agent_emitted_nothing_beyond_the_matches_of_a_rate_limited_policy() -> None:
    replay = replayed("n17-ratelimit")
    assert replay.emitted - replay.count(True) == Counter()
    assert replay.emitted.total() == 64


@pytest.mark.parametrize("name", [one for one in DECIDED if one != "n17-ratelimit"])
def test_nothing_else_is_marked_as_rate_limited(name: str) -> None:
    assert not any(outcome.rate_limited for _unused, verdict in replayed(name).verdicts for outcome in verdict.outcomes)
