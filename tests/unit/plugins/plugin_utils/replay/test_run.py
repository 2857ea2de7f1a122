# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Sets of policies over recordings: the same answers as one by one, whatever is kept; and what was not read is told."""

from __future__ import annotations

import gzip
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.apiary.tetragon.plugins.plugin_utils import documents
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay import corpus, parts, reading, run, verdicts
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.compile import CompiledPolicy
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.records import Hook
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.results import Counts, Entry, Progress, Summary
from ansible_collections.apiary.tetragon.tests.unit.plugins.plugin_utils.samples import CORPUS, messages, refused

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

EXECUTABLES = {
    "/lab/wl/run.sh": "/lab/wl/sh",
    "/lab/wl/bin/child1.sh": "/lab/wl/bin/child",
    "/bin/sh": "/usr/bin/dash",
    "/usr/bin/sh": "/usr/bin/dash",
}
NARROW = sorted((CORPUS / "narrow").glob("*.yaml"))


def policy(name: str, *selectors: Mapping[str, Any], **hook: Any) -> CompiledPolicy:
    """A policy of one function ``f`` with a file."""
    entry = {"call": "f", "args": [{"index": 0, "type": "file"}], "selectors": list(selectors), **hook}
    return CompiledPolicy({"kind": "TracingPolicy", "metadata": {"name": name}, "spec": {"kprobes": [entry]}})


def opens(*paths: str) -> dict[str, Any]:
    """A selector for these files."""
    return {"matchArgs": [{"index": 0, "operator": "Equal", "values": list(paths)}]}


RECORDER = {
    "kind": "TracingPolicy",
    "metadata": {"name": "r"},
    "spec": {"kprobes": [{"call": "f", "args": [{"index": 0, "type": "file"}]}]},
}
ETC, VAR = policy("etc", opens("/etc")), policy("var", opens("/var", "/etc"))


def event(path: str = "/etc", second: int = 0, **process: Any) -> dict[str, Any]:
    """An event of ``f``, as ``r`` records it."""
    body = {
        "process": {"exec_id": f"id{second}", "pid": 7, "binary": "/bin/cat", **process},
        "parent": {"binary": "/bin/sh"},
        "function_name": "f",
        "args": [{"file_arg": {"path": path}}],
        "policy_name": "r",
    }
    return {"process_kprobe": body, "node_name": "n1", "time": f"2026-11-22T09:00:{second:02}.5Z"}


def lines(*events: Mapping[str, Any] | str | bytes) -> bytes:
    """Events as a file of them; text and bytes stay as they are."""
    return b"".join(
        (one if isinstance(one, bytes) else (one if isinstance(one, str) else json.dumps(one)).encode()) + b"\n" for one in events
    )


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory for a recording, with its recorder."""
    place = tmp_path / "recording"
    (place / "policies").mkdir(parents=True)
    (place / "policies" / "r.yaml").write_text(json.dumps(RECORDER), encoding="utf-8")
    return place


def replayed(where: Path, policies: Sequence[CompiledPolicy] = (ETC, VAR), **more: Any) -> tuple[Summary, list[Entry]]:
    """A replay of one place, and all its entries."""
    entries: list[Entry] = []
    summary = run.replay(policies, corpus.find([where]), entry=entries.append, **more)
    return summary, entries


# --- the recordings of the real agent -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def narrow() -> list[CompiledPolicy]:
    """The narrow policies of the corpus."""
    return [CompiledPolicy(documents.load(file).data) for file in NARROW]


def one_by_one(policies: Sequence[CompiledPolicy], recordings: Sequence[corpus.Recording]) -> Counter[tuple[Any, ...]]:
    """What every policy says of every event, with nothing kept between two of them."""
    found: Counter[tuple[Any, ...]] = Counter()
    for recording in recordings:
        with corpus.Lines(recording.path) as file:
            for number, line in enumerate(file, 1):
                invocation = corpus.events.decode(line, recording.context)
                for place, one in enumerate(policies if invocation else ()):
                    for verdict in one.evaluate(invocation):
                        if verdict.fires.value is not False:
                            found[place, str(recording.path), number, verdict.fires.value is True, verdict.outcomes] += 1
    return found


def test_what_is_kept_changes_nothing(narrow: list[CompiledPolicy]) -> None:
    recordings = corpus.surveyed(corpus.find([CORPUS / "broad"], executables=EXECUTABLES))
    entries: list[Entry] = []
    run.replay(narrow, recordings, entry=entries.append)
    told = Counter((one.said.number, one.file, one.line, one.said.fires, one.said.outcomes) for one in entries)
    assert told == one_by_one(narrow, recordings)


def test_results_do_not_depend_on_the_number_of_workers(narrow: list[CompiledPolicy]) -> None:
    recordings = corpus.find([CORPUS / "broad"], executables=EXECUTABLES)
    alone: list[Entry] = []
    shared: list[Entry] = []
    first = run.replay(narrow, recordings, entry=alone.append)
    assert run.replay(narrow, recordings, entry=shared.append, workers=3) == first
    assert shared == alone
    assert run.replay(narrow, recordings, workers=2) == first


def test_the_recorders_lie_beside_their_recording(narrow: list[CompiledPolicy]) -> None:
    summary = run.replay(narrow, corpus.find([CORPUS / "broad"], executables=EXECUTABLES))
    by_name = {one.policy: one.total for one in summary.policies}
    assert (by_name["n01-equal"].fired, by_name["n09-bin-in"].fired, by_name["n20-execve-str"].fired) == (31, 41, 15)
    assert summary.unknown_recorders == {}
    assert summary.skipped == ()


@pytest.mark.parametrize("executables", [EXECUTABLES, None], ids=["programs known", "from the recording alone"])
def test_a_replay_fires_where_the_agent_fired(narrow: list[CompiledPolicy], executables: Mapping[str, str] | None) -> None:
    fired: dict[str, Counter[str]] = {one.name: Counter() for one in narrow}
    maybe: dict[str, Counter[str]] = {one.name: Counter() for one in narrow}
    seen = set()

    def told(one: Entry) -> None:
        (fired if one.said.fires else maybe)[one.said.policy][one.exec_id] += 1

    summary = run.replay(narrow, corpus.find([CORPUS / "broad"], executables=executables), entry=told)
    for file in sorted((CORPUS / "broad").glob("broad-*.gz")):
        seen |= {json.loads(line)[next(iter(json.loads(line)))]["process"]["exec_id"] for line in gzip.open(file)}  # noqa: SIM115
    for totals in summary.policies:
        assert totals.total.undecided <= 0.05 * totals.total.seen
        if totals.policy == "n17-ratelimit":
            continue  # the agent withheld some
        with gzip.open(CORPUS / "narrow" / f"{totals.policy}.expected.jsonl.gz") as lines_:
            emitted = Counter(json.loads(line)["process_kprobe"]["process"]["exec_id"] for line in lines_)
        for exec_id in seen:
            assert fired[totals.policy][exec_id] <= emitted[exec_id] <= fired[totals.policy][exec_id] + maybe[totals.policy][exec_id]


def test_a_recording_that_is_too_large_is_not_surveyed(narrow: list[CompiledPolicy], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "MAX_SURVEYED", 1 << 20)
    summary = run.replay(narrow, corpus.find([CORPUS / "broad"], executables=EXECUTABLES))
    assert sum(one.total.undecided for one in summary.policies) > 0
    assert any("of more than 1 MB" in note for note in summary.notes)


def test_a_hook_that_stands_for_another_is_told(narrow: list[CompiledPolicy]) -> None:
    found = corpus.surveyed(corpus.find([CORPUS / "broad" / "broad-lsm-file-open.jsonl.gz"]))
    policies = [CompiledPolicy(documents.load(NARROW[0]).data, recorded=corpus.hooks(found))]
    (note,) = run.replay(policies, found).notes
    assert note.startswith("kprobe security_file_open was not recorded: lsm file_open stands for it (Linux security/security.c")


def test_the_hooks_of_a_recording_are_those_that_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = [CORPUS / "broad" / "broad-lsm-file-open.jsonl.gz"]
    assert corpus.hooks(corpus.surveyed(corpus.find(alone))) == {Hook("lsm", "file_open")}
    declared = corpus.hooks(corpus.find(alone))
    assert declared > {Hook("lsm", "file_open"), Hook("kprobe", "security_file_open")}, "before anybody has looked"
    monkeypatch.setattr(corpus, "MAX_SURVEYED", 1 << 10)
    assert corpus.hooks(corpus.surveyed(corpus.find(alone))) == declared


# --- counts ---------------------------------------------------------------------------------------------------------


def test_a_policy_counts_what_reached_its_hook(home: Path) -> None:
    other = event("/etc", 3)
    other["process_kprobe"]["function_name"] = "g"
    (home / "a.jsonl").write_bytes(lines(event("/etc"), event("/var", 1), event("/usr", 2), other))
    summary, entries = replayed(home)
    size = len(lines(event("/etc")))
    assert [one.total for one in summary.policies] == [Counts(1, 2, 0, size), Counts(2, 1, 0, size + len(lines(event("/var", 1))))]
    assert [(one.said.policy, one.line, one.exec_id, one.time) for one in entries] == [
        ("etc", 1, "id0", "2026-11-22T09:00:00.5Z"),
        ("var", 1, "id0", "2026-11-22T09:00:00.5Z"),
        ("var", 2, "id1", "2026-11-22T09:00:01.5Z"),
    ]
    assert (summary.policies[1].by_hook, summary.overlap) == ({"kprobe f": summary.policies[1].total}, {(0, 1): 1})


def test_a_policy_whose_hook_was_not_recorded_was_not_tried(home: Path) -> None:
    (home / "a.jsonl").write_bytes(lines(event()))
    summary, _unused = replayed(home, [policy("g", {}, call="g")])
    assert summary.policies[0].total.seen == 0


def test_what_cannot_be_decided_says_why(home: Path) -> None:
    binaries = policy("b", {"matchBinaries": [{"operator": "In", "values": ["/bin/cat"]}]})
    (home / "a.jsonl").write_bytes(lines(event(), event(second=1)))
    summary, entries = replayed(home, [binaries])
    reason = "the recording lacks the executed file of the process"
    assert summary.policies[0].total == Counts(undecided=2)
    assert summary.policies[0].reasons == {reason: 2}
    assert [(one.said.fires, one.said.reasons) for one in entries] == [(False, (reason,))] * 2


FROM_SSHD: Mapping[str, Any] = {"matchBinaries": [{"operator": "In", "values": ["/usr/sbin/sshd"], "followChildren": True}]}


@pytest.mark.parametrize(
    ("recorder", "expected"),
    [
        pytest.param([FROM_SSHD], True, id="the same filter"),
        pytest.param([{**FROM_SSHD, **opens("/etc")}, FROM_SSHD], True, id="in every selector"),
        pytest.param([FROM_SSHD, opens("/etc")], None, id="in one selector"),
        pytest.param([{"matchBinaries": [{"operator": "In", "values": ["/usr/sbin/sshd"]}]}], None, id="another"),
        pytest.param([], None, id="none"),
    ],
)
def test_what_the_recorder_has_compared_holds(recorder: list[dict[str, Any]], expected: bool | None, home: Path) -> None:
    document = {**RECORDER, "spec": {"kprobes": [{**RECORDER["spec"]["kprobes"][0], "selectors": recorder}]}}
    (home / "policies" / "r.yaml").write_text(json.dumps(document), encoding="utf-8")
    (home / "a.jsonl").write_bytes(lines(event("/etc"), event("/usr", 1)))
    summary, _unused = replayed(home, [policy("p", {**FROM_SSHD, **opens("/etc")})])
    counts = summary.policies[0].total
    assert (counts.fired, counts.quiet, counts.undecided) == ((1, 1, 0) if expected else (0, 1, 1))


def test_programs_whose_file_is_not_known_are_named(home: Path) -> None:
    selector = {"matchBinaries": [{"operator": "In", "values": ["/usr/bin/cat"]}]}
    (home / "a.jsonl").write_bytes(lines(event(binary="/bin/sh"), event(second=1, binary="/bin/cat")))
    document = {"kind": "TracingPolicy", "metadata": {"name": "p"}, "spec": {"kprobes": [{"call": "f", "selectors": [selector]}]}}
    summary, _unused = replayed(home, [CompiledPolicy(document)])
    (note,) = [one for one in summary.notes if "executables" in one]
    assert "/bin/cat, /bin/sh" in note


def test_volume_is_per_host_and_day(home: Path) -> None:
    there = [{**event("/etc", second), "node_name": "n2"} for second in (0, 20)]
    (home / "a.jsonl").write_bytes(lines(event("/etc", 0), event("/usr", 40), *there))
    summary, _unused = replayed(home)
    assert [(span.node, span.events, span.seconds) for span in summary.spans] == [("n1", 2, 40.0), ("n2", 2, 20.0)]
    assert summary.policies[0].per_day is not None
    assert summary.policies[0].per_day[0] == pytest.approx(3 * 86400 / 60)


def test_without_a_span_there_is_no_volume(home: Path) -> None:
    (home / "a.jsonl").write_bytes(lines(event()))
    assert replayed(home)[0].policies[0].per_day is None


def test_the_loudest_sources_come_first(home: Path) -> None:
    (home / "a.jsonl").write_bytes(lines(event("/etc", 0, binary="/b"), event("/var", 1, binary="/a"), event("/etc", 2, binary="/a")))
    noise = replayed(home)[0].policies[1].noise
    assert noise == {"binary": (("/a", 2), ("/b", 1)), "parent": (("/bin/sh", 3),), "argument": (("/etc", 2), ("/var", 1))}


def test_sources_of_noise_are_bounded(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setattr(parts, "MAX_SOURCES", 4)
    (home / "a.jsonl").write_bytes(lines(*[event("/etc", number, binary=f"/b{number}") for number in range(30)], event("/etc", 31)))
    noise = replayed(home, [policy("all")])[0].policies[0].noise
    assert len(noise["binary"]) <= 8
    assert noise["argument"] == (("/etc", 31),)


def test_answers_are_forgotten_and_found_again(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setattr(verdicts, "MAX_KEPT", 3)
    paths = [f"/p{number % 7}" for number in range(50)]
    (home / "a.jsonl").write_bytes(lines(*[event(path, number) for number, path in enumerate(paths)]))
    summary, _unused = replayed(home, [policy("p", opens("/p3"))])
    assert summary.policies[0].total.fired == paths.count("/p3")
    assert summary.policies[0].total.quiet == 50 - paths.count("/p3")


@pytest.mark.parametrize(
    ("selector", "differs"),
    [
        ({"matchPIDs": [{"operator": "In", "values": [7]}]}, {"pid": 8}),
        ({"matchPIDs": [{"operator": "In", "values": [7], "isNamespacePID": True}]}, {"pod": {"container": {"pid": 8}}}),
        ({"matchBinaries": [{"operator": "In", "values": ["/bin/cat"]}]}, {"binary": "/bin/dog"}),
        ({"matchNamespaces": [{"namespace": "Pid", "operator": "In", "values": ["5"]}]}, {"ns": {"pid": {"inum": 6}}}),
        ({"matchNamespaces": [{"namespace": "Pid", "operator": "In", "values": ["5"]}]}, {"flags": "clone"}),
    ],
    ids=["pid", "pid in the namespace", "binary", "namespace", "flags"],
)
def test_events_that_differ_in_what_a_policy_reads_are_told_apart(selector: dict[str, Any], differs: dict[str, Any], home: Path) -> None:
    (home / "recording.yml").write_text("executables: {}\n", encoding="utf-8")
    same = {"pod": {"container": {"pid": 7}}, "ns": {"pid": {"inum": 5}}, "flags": "execve clone"}
    (home / "a.jsonl").write_bytes(lines(event(second=0, **same), event(second=1, **{**same, **differs}), event(second=2, **same)))
    _unused, entries = replayed(home, [policy("p", selector)])
    assert [one.line for one in entries if one.said.fires] == [1, 3]


def test_pods_are_told_apart(home: Path) -> None:
    document = {
        "kind": "TracingPolicy",
        "metadata": {"name": "p"},
        "spec": {"podSelector": {"matchLabels": {"a": "b"}}, "kprobes": [{"call": "f"}]},
    }
    pods = [{"pod": {"namespace": "x", "pod_labels": {"a": value}}} for value in ("b", "c", "b")]
    (home / "a.jsonl").write_bytes(lines(*[event(second=number, **pod) for number, pod in enumerate(pods)]))
    _unused, entries = replayed(home, [CompiledPolicy(document)])
    assert [one.line for one in entries] == [1, 3]


# --- recordings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        pytest.param("a.jsonl", bytes, id="plain"),
        pytest.param("a.log", bytes, id="as the agent names it"),
        pytest.param("a.json.gz", gzip.compress, id="gzip"),
        pytest.param("a.jsonl.zst", zstd.compress, id="zstd"),
        pytest.param("a.jsonl", gzip.compress, id="gzip under another name"),
        pytest.param("a.jsonl.gz", bytes, id="plain under another name"),
        pytest.param("a.jsonl", lambda text: text.replace(b"\n", b"\r\n"), id="line ends of Windows"),
    ],
)
def test_recordings_are_unpacked(name: str, pack: Callable[[bytes], bytes], home: Path) -> None:
    content = lines(event("/etc"), event("/usr", 1))
    packed = pack(content[:99]) + pack(content[99:])
    (home / name).write_bytes(packed)
    assert replayed(home)[0].events == 2


def test_a_byte_order_mark_is_no_event(home: Path) -> None:
    (home / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + lines(event(), event(second=1)))
    summary, _unused = replayed(home)
    assert (summary.events, summary.skipped) == (2, ())


@pytest.mark.parametrize(("content", "hint"), [(b"[{},\n{}]", "'jq -c .[]'"), (b"{\n}\n", "'jq -c .'")], ids=["array", "indented"])
def test_json_of_another_form_says_what_makes_it_events(content: bytes, hint: str, home: Path) -> None:
    (home / "a.json").write_bytes(content)
    (problem,) = refused(lambda: replayed(home))
    assert hint in problem.message


def test_a_directory_is_read_by_name_and_a_file_once(home: Path) -> None:
    (home / "sub").mkdir()
    for name in ("b.jsonl", "a.jsonl", "sub/c.jsonl", "notes.txt"):
        (home / name).write_bytes(lines(event()))
    found = corpus.find([home / "b.jsonl", home])
    assert [str(one.path.relative_to(home)) for one in found] == ["b.jsonl", "a.jsonl", "sub/c.jsonl"]


def test_events_of_a_recorder_that_is_not_at_hand_are_told(home: Path) -> None:
    stranger = event()
    stranger["process_kprobe"]["policy_name"] = "s"
    (home / "a.jsonl").write_bytes(lines(stranger, event("/etc", 1)))
    summary, entries = replayed(home)
    assert summary.unknown_recorders == {"s": 1}
    assert any("'s'" in note for note in summary.notes)
    assert [(one.line, one.said.fires) for one in entries if one.said.policy == "etc"] == [(1, False), (2, True)]
    assert entries[0].said.reasons == ("the policy that recorded this is not at hand to tell argument 0 as file",)


def test_labels_say_what_an_unknown_recorder_declared(home: Path) -> None:
    stranger = event()
    stranger["process_kprobe"].update(policy_name="s", args=[{"file_arg": {"path": "/etc"}, "label": "a0:file"}])
    (home / "a.jsonl").write_bytes(lines(stranger))
    assert [one.said.fires for one in replayed(home)[1]] == [True, True]


def test_another_agent_version_is_told(home: Path) -> None:
    (home / "a.jsonl").write_bytes(lines(event()))
    (home / "recording.yml").write_text("agent_version: v1.6.1\nhosts: [a]\n", encoding="utf-8")
    assert replayed(home, agent_version="1.6.1")[0].notes == ()
    (note,) = replayed(home, agent_version="1.7.0")[0].notes
    assert "1.6.1" in note
    assert "1.7.0" in note


@pytest.mark.parametrize("text", ["agent_version: 7\n", "executables: [a]\n", "- a\n", "at_hook: 1\n", "a: [\n"])
def test_a_description_that_is_not_sound_is_refused(text: str, home: Path) -> None:
    (home / "a.jsonl").write_bytes(lines(event()))
    (home / "recording.yml").write_text(text, encoding="utf-8")
    assert str(home / "recording.yml") in messages(refused(lambda: corpus.find([home])))


def test_a_place_without_recordings_is_refused(home: Path) -> None:
    assert "no such file" in messages(refused(lambda: corpus.find([home / "x"])))
    assert "holds no recording" in messages(refused(lambda: corpus.find([home])))


@pytest.mark.parametrize("spec", [{}, {"kprobes": 1}, {"kprobes": [{}]}, {"kprobes": [{"call": "f", "args": [{"index": "x"}]}]}])
def test_a_recorder_that_is_none_is_refused(spec: Any, home: Path) -> None:
    (home / "a.jsonl").write_bytes(lines(event()))
    broken = {"kind": "TracingPolicy", "metadata": {"name": "x"} if spec else {}, "spec": spec}
    (home / "x.yaml").write_text(json.dumps(broken), encoding="utf-8")
    assert str(home / "x.yaml") in messages(refused(lambda: corpus.find([home])))


# --- what cannot be read --------------------------------------------------------------------------------------------


def skipped(summary: Summary) -> dict[str, tuple[int, int]]:
    """Reasons with how many lines, and the first."""
    return {one.reason: (one.count, one.line) for one in summary.skipped}


def test_lines_that_cannot_be_read_are_skipped_and_counted(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "MAX_LINE", 1000)
    torn = json.dumps(event())[:100]
    content = lines(
        event(), torn, '{"other": 1}', '{"process_kprobe": 7}', "[]", event("/etc"), "", " ", b"\xff", b"x" * 2000,
        {"process_exec": {}}, "[" * 900, event("/usr", 1),
    ) + json.dumps(event("/etc", 2))[:-30].encode()  # fmt: skip
    (home / "a.jsonl").write_bytes(content)
    summary, entries = replayed(home)
    assert skipped(summary) == {
        reading.TORN: (3, 2),
        reading.FOREIGN: (1, 3),
        reading.SHAPE: (3, 4),
        reading.DUPLICATE: (1, 6),
        reading.LONG: (1, 10),
    }
    (file,) = summary.files
    assert (file.lines, file.events, file.others, file.skipped) == (14, 2, 1, 9)
    assert [one.line for one in entries] == [1, 1]


def test_an_argument_of_another_shape_makes_its_line_unreadable_where_it_is_read(home: Path) -> None:
    broken = event("/etc", 1)
    broken["process_kprobe"]["args"] = [{"file_arg": None}]
    (home / "a.jsonl").write_bytes(lines(broken, event()))
    assert skipped(replayed(home)[0]) == {reading.SHAPE: (1, 1)}


@pytest.mark.parametrize(("name", "pack"), [("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zstd.compress)])
def test_a_packed_file_is_read_as_far_as_it_goes(name: str, pack: Callable[[bytes], bytes], home: Path) -> None:
    (home / name).write_bytes(pack(lines(event())) + pack(lines(event("/etc", 1)))[:-9])
    summary, _unused = replayed(home)
    assert summary.events >= 1
    assert reading.UNREADABLE in skipped(summary)


def test_reordered_events_are_read_and_told(home: Path) -> None:
    (home / "a.jsonl").write_bytes(lines(event("/etc", 5), event("/etc", 1), event("/etc", 9)))
    summary, _unused = replayed(home)
    assert (summary.events, summary.files[0].backwards, summary.spans[0].seconds) == (3, 1, 8.0)


@pytest.mark.parametrize("late", [(), (7, 150)], ids=["in order", "not in order"])
def test_an_event_that_comes_again_much_later_was_read_before(late: Sequence[int], home: Path) -> None:
    timed = [{**event("/etc", number), "time": f"2026-11-22T09:{number // 60:02}:{number % 60:02}.5Z"} for number in range(200)]
    content = [one for number, one in enumerate(timed) if number not in late] + [timed[number] for number in late]
    again, other = timed[3], {**event("/var", 3), "time": timed[3]["time"]}
    (home / "a.jsonl").write_bytes(lines(*content, again, other))
    summary, _unused = replayed(home)
    assert skipped(summary) == {reading.DUPLICATE: (1, 201)}
    assert (summary.events, summary.files[0].backwards) == (201, 1 + len(late) // 2)
    assert (summary.spans[0].first, summary.spans[0].last) == (timed[0]["time"], timed[-1]["time"])


def test_written_events_of_one_moment_are_not_taken_for_one(home: Path) -> None:
    written = {**event(), "time": "2026-11-22T09:00:00Z"}
    (home / "a.jsonl").write_bytes(lines(written, written))
    assert replayed(home)[0].policies[0].total.fired == 2


@pytest.mark.parametrize("content", [b"", b"\n\n", lines({"process_exec": {}}), lines("{"), lines('{"a":1}')], ids=str)
def test_a_recording_without_an_event_of_a_hook_proves_nothing(content: bytes, home: Path) -> None:
    (home / "a.jsonl").write_bytes(content)
    (problem,) = refused(lambda: replayed(home))
    assert problem.file == str(home / "a.jsonl")
    assert "proves nothing" in problem.message


def test_an_empty_file_beside_others_is_told(home: Path) -> None:
    (home / "a.jsonl").write_bytes(lines(event()))
    (home / "b.jsonl").write_bytes(b"")
    (note,) = replayed(home)[0].notes
    assert str(home / "b.jsonl") in note


@pytest.mark.parametrize("workers", [1, 2])
def test_progress_goes_to_the_end(workers: int, home: Path) -> None:
    for name in "abc":
        (home / f"{name}.jsonl").write_bytes(lines(event()))
    told: list[Progress] = []
    replayed(home, progress=told.append, workers=workers)
    assert told[-1].files_done == told[-1].files == 3
    assert told[-1].bytes_done == told[-1].bytes > 0
    assert [one.bytes_done for one in told] == sorted(one.bytes_done for one in told)


def test_a_worker_that_dies_is_told(home: Path) -> None:
    for name in "ab":
        (home / f"{name}.jsonl").write_bytes(lines(event()))

    class Deadly(CompiledPolicy):
        def evaluate(self, invocation: Any) -> Any:
            os._exit(1)

    deadly = Deadly(RECORDER)
    assert "fewer workers" in messages(refused(lambda: replayed(home, [deadly], workers=2)))
