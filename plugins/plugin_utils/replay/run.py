# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""A set of policies over many recordings: what fires, what stays quiet, what cannot be decided, and what was not read.

``replay`` streams: memory does not grow with the recordings, but with policies, hooks and files. It takes one process per
worker, file by file; results do not depend on how many there are.
"""

from __future__ import annotations

import multiprocessing
import pickle
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Problem, Refused, refuse
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay import corpus
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.compile import CompiledPolicy
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.corpus import Recording
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.parts import Part, PolicyPart
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.reading import Reader
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.results import Counts, Entry, PolicyTotals, Progress, Span, Summary

_SPOOLED, _PATIENCE = 1000, 0.2
MAX_TOP, MAX_NAMED = 10, 5
_DAY = 86400.0


def replay(
    policies: Sequence[CompiledPolicy],
    recordings: Sequence[Recording],
    *,
    workers: int = 1,
    agent_version: str = "",
    entry: Callable[[Entry], None] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Summary:
    """Replay recordings (see ``corpus.find``) through a set of policies.

    ``entry`` is called for each event that fires or cannot be decided, per hook entry of each policy: in the order of the
    recordings, their lines, and the policies. ``agent_version`` is the one that the policies are meant for: recordings of
    another are noted. ``workers`` processes are forked from this one. Lines that cannot be read are skipped and counted.
    Raises Refused when no recording holds an event of a hook: silence proves nothing then.
    """
    job = _Job(tuple(policies), tuple(corpus.surveyed(recordings)), entry is not None)
    total = Part()
    with tempfile.TemporaryDirectory(prefix="apiary-replay-") as spool:
        for part in _parts(job, min(workers, len(recordings)), Path(spool), entry, progress):
            total.merge(part)
    summary = _summary(job, total, agent_version)
    if not summary.events:
        raise Refused(Problem(str(one.path), 0, "", _nothing(summary, str(one.path))) for one in recordings)
    return summary


# --- many files -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    policies: tuple[CompiledPolicy, ...]
    recordings: tuple[Recording, ...]
    spools: bool


class _Worker:
    """One forked process: compiled policies cannot be sent to it, so it inherits them."""

    job: _Job
    reader: Reader
    done: Any

    @classmethod
    def inherit(cls, job: _Job, done: Any) -> None:
        cls.job, cls.reader, cls.done = job, Reader(job.policies), done

    @classmethod
    def run(cls, number: int, spool: Path) -> Part:
        position = 0

        def advance(now: int) -> None:
            nonlocal position
            with cls.done.get_lock():
                cls.done.value += now - position
            position = now

        recording = cls.job.recordings[number]
        if not cls.job.spools:
            return cls.reader.read(recording, None, advance)
        with _Spool(spool / str(number)) as spooled:
            return cls.reader.read(recording, spooled.write, advance)


class _Spool:
    """Entries on their way from one process to another, in a file: they may be too many for memory."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._batch: list[Entry] = []

    def __enter__(self) -> _Spool:
        return self

    def __exit__(self, *error: object) -> None:
        self._flush()
        self._file.close()

    def write(self, entry: Entry) -> None:
        self._batch.append(entry)
        if len(self._batch) >= _SPOOLED:
            self._flush()

    def _flush(self) -> None:
        pickle.dump(self._batch, self._file, pickle.HIGHEST_PROTOCOL)
        self._batch = []


def _spooled(path: Path) -> Iterator[Entry]:
    with path.open("rb") as file:
        while file.peek(1):
            yield from pickle.load(file)
    path.unlink()


def _parts(
    job: _Job, workers: int, spool: Path, entry: Callable[[Entry], None] | None, progress: Callable[[Progress], None] | None
) -> Iterator[Part]:
    """What each file came to, in the order of the recordings; the entries of a file go before its part."""
    sizes = [one.path.stat().st_size for one in job.recordings]
    total, told, finished = sum(sizes), progress or (lambda _unused: None), 0
    told(Progress(0, len(sizes), 0, total))
    if workers <= 1:
        reader = Reader(job.policies)
        for number, recording in enumerate(job.recordings):
            part = reader.read(recording, entry, lambda now: told(Progress(number, len(sizes), finished + now, total)))  # noqa: B023
            finished += sizes[number]
            told(Progress(number + 1, len(sizes), finished, total))
            yield part
        return
    forks = multiprocessing.get_context("fork")
    done = forks.Value("q", 0)
    with ProcessPoolExecutor(workers, forks, _Worker.inherit, (job, done)) as pool:
        futures = [pool.submit(_Worker.run, number, spool) for number in range(len(sizes))]
        try:
            for number, future in enumerate(futures):
                while wait([future], _PATIENCE).not_done:
                    told(_progress(futures, done.value, total))
                try:
                    part = future.result()
                except BrokenProcessPool:
                    message = "a process of the replay ended before its time, perhaps for lack of memory: try fewer workers"
                    raise refuse(message, file=str(job.recordings[number].path)) from None
                if entry is not None:
                    for one in _spooled(spool / str(number)):
                        entry(one)
                told(_progress(futures, done.value, total))
                yield part
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _progress(futures: Sequence[Future[Part]], done: int, total: int) -> Progress:
    return Progress(sum(future.done() for future in futures), len(futures), min(done, total), total)


# --- the summary ----------------------------------------------------------------------------------------------------


def _summary(job: _Job, total: Part, agent_version: str) -> Summary:
    spans = tuple(Span(node, count, first, last) for node, (count, first, last) in sorted(total.spans.items()))
    days = sum(span.seconds for span in spans) / _DAY
    return Summary(
        policies=tuple(_totals(number, policy.name, total.policy(number), days) for number, policy in enumerate(job.policies)),
        files=tuple(total.files),
        skipped=tuple(total.skipped.values()),
        spans=spans,
        overlap=dict(sorted(total.overlap.items())),
        unknown_recorders=dict(sorted(total.recorders.items())),
        notes=tuple(_notes(job, total, agent_version)),
    )


def _totals(number: int, policy: str, part: PolicyPart, days: float) -> PolicyTotals:
    by_file: dict[str, Counts] = {}
    by_hook: dict[str, Counts] = {}
    for (file, hook), counts in part.cells.items():
        by_file[file] = by_file.get(file, Counts()) + counts
        by_hook[hook] = by_hook.get(hook, Counts()) + counts
    all_counts = sum(by_hook.values(), Counts())
    return PolicyTotals(
        number=number,
        policy=policy,
        total=all_counts,
        by_file=by_file,
        by_hook=dict(sorted(by_hook.items())),
        reasons=dict(sorted(part.reasons.items())),
        noise={what: tuple(sources.top(MAX_TOP)) for what, sources in part.noise.items()},
        per_day=(all_counts.fired / days, all_counts.size / days) if days else None,
    )


def _notes(job: _Job, total: Part, agent_version: str) -> Iterator[str]:
    for file in total.files:
        if not file.events and not file.others:
            yield f"{file.file}: holds no event of a hook ({file.lines} lines): it says nothing about any policy"
    for via in dict.fromkeys(one.via for policy in job.policies for hooks in policy.hooks.values() for one in hooks if one.via is not None):
        yield f"{via.wanted} was not recorded: {via.recorded} stands for it ({via.source})"
    versions: dict[str, list[Recording]] = {}
    for recording in job.recordings:
        versions.setdefault(recording.agent_version, []).append(recording)
    for version, recordings in versions.items():
        if version and agent_version and version.removeprefix("v") != agent_version.removeprefix("v"):
            more = f" and {len(recordings) - 1} more" if len(recordings) > 1 else ""
            yield f"{recordings[0].path}{more}: recorded by agent {version}, but the policies are meant for {agent_version}"
    if any(one.context.complete is None for one in job.recordings) and any(part.reasons for part in total.policies.values()):
        limit = f"{corpus.MAX_SURVEYED >> 20} MB"
        yield f"in a recording of more than {limit}, what events say of each other's processes was not looked for: smaller ones decide more"
    files = total.unknown_files.top(MAX_NAMED + 1)
    if files:
        names = ", ".join(name for name, _unused in files[:MAX_NAMED]) + (" and more" if len(files) > MAX_NAMED else "")
        yield (
            f"no event shows which files were executed as {names}: where you know it, give apiary_executables, a map from such names to "
            "files; any name that is not in it then stands for itself"
        )
    for name, count in sorted(total.recorders.items()):
        yield (
            f"the policy {name!r} that recorded {count} events is not at hand: only arguments that say themselves what they are can be "
            "read; put its YAML into the recording's directory, or name it in apiary_recorders"
        )


def _nothing(summary: Summary, file: str) -> str:
    others = sum(one.others for one in summary.files if one.file == file)
    skipped = [one for one in summary.skipped if one.file == file]
    why = "; ".join(f"{one.count} lines skipped: {one.reason}, first line {one.line}: {one.detail}" for one in skipped)
    holds = f"holds no event of a hook, but {others} of processes (exec, exit ...)" if others else "holds no event of a hook"
    return f"{holds}: that policies stay quiet on it proves nothing" + (f" ({why})" if why else "")
