# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Agreement with the real agent: each narrow policy replayed over the broad recording, against what the agent emitted.

``python tests/agreement.py [DIRECTORY]`` prints the table, policy by policy; the exit code is 1 where a decided call differs
from what the agent did. The directory is laid out as tests/corpus is.
"""

from __future__ import annotations

import functools
import gzip
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils import documents
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.compile import SECTIONS, CompiledPolicy, Verdict, identities, recorder
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.events import Context, decode
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.history import History
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.records import EVENT_KINDS, Hook, Invocation

CORPUS = Path(__file__).parent / "corpus"
# What the workload's programs are on that machine, where the name they were executed by says otherwise.
EXECUTABLES = {
    "/lab/wl/run.sh": "/lab/wl/sh",
    "/lab/wl/bin/child1.sh": "/lab/wl/bin/child",
    "/bin/sh": "/usr/bin/dash",
    "/usr/bin/sh": "/usr/bin/dash",
}


@dataclass(frozen=True)
class Row:
    """One policy: calls of its hooks, how they were answered, and events of the agent by exec id.

    ``wrong``: processes for which the decided calls cannot be what the agent emitted, counts and all.
    """

    name: str
    verdicts: tuple[tuple[Invocation, Verdict], ...]
    emitted: Counter[str]
    wrong: tuple[str, ...]
    limited: bool

    def count(self, answer: bool | None) -> int:
        return sum(verdict.fires.value is answer for _, verdict in self.verdicts)

    @property
    def decided(self) -> float:
        return 1 - self.count(None) / len(self.verdicts) if self.verdicts else 0.0


def events(files: Iterator[Path]) -> Iterator[Mapping[str, Any]]:
    """Every event of these files."""
    for file in files:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)


@functools.cache
def recording(directory: Path, named: bool) -> Mapping[Hook, tuple[Invocation, ...]]:
    """Every call of the broad recording by hook, with what the recording as a whole shows.

    ``named``: with what is known about the machine's programs beside the recording.
    """
    policies = [documents.load(file).data for file in sorted((directory / "broad" / "policies").glob("*.yaml"))]
    declared = {hook: found for policy in policies for hook, found in recorder(policy).items()}
    history = History(policies, EXECUTABLES if named else None)
    for event in events(iter(sorted((directory / "broad").glob("*.jsonl.gz")))):
        history.add(event)
    calls: dict[Hook, list[Invocation]] = {}
    for event in events(iter(sorted((directory / "broad").glob("broad-*.jsonl.gz")))):
        call = decode(json.dumps(event).encode(), Context({"": declared}))
        if call is not None:
            calls.setdefault(call.hook, []).append(history.complete(call))
    return {hook: tuple(found) for hook, found in calls.items()}


def compare(directory: Path, name: str, named: bool = True) -> Row:
    """One narrow policy over the recording, by process: what fired must have been emitted, and the rest must fit in between."""
    policy = documents.load(directory / "narrow" / f"{name}.yaml").data
    calls = recording(directory, named)
    compiled = CompiledPolicy(policy, recorded=frozenset(calls))
    hooks = {hook for section, kind in SECTIONS.items() for raw in policy["spec"].get(section, ()) for hook in identities(kind, raw, {})}
    verdicts = tuple((call, one) for hook in compiled.hooks for call in calls.get(hook, ()) for one in compiled.evaluate(call))
    known = {call.process.exec_id for call, _ in verdicts}
    emitted: Counter[str] = Counter()
    for event in events(iter([directory / "narrow" / f"{name}.expected.jsonl.gz"])):
        kind = next((one for one in EVENT_KINDS if one in event), None)
        if kind and event[kind]["process"]["exec_id"] in known and hooks:
            emitted[event[kind]["process"]["exec_id"]] += 1
    fired = Counter(call.process.exec_id for call, verdict in verdicts if verdict.fires.value is True)
    maybe = Counter(call.process.exec_id for call, verdict in verdicts if verdict.fires.value is None)
    limited = any(outcome.rate_limited for _, verdict in verdicts for outcome in verdict.outcomes)
    wrong = tuple(one for one in sorted(known) if not (0 if limited else fired[one]) <= emitted[one] <= fired[one] + maybe[one])
    return Row(name, verdicts, emitted, wrong, limited)


def names(directory: Path) -> list[str]:
    """The narrow policies of a corpus."""
    return [file.stem for file in sorted((directory / "narrow").glob("*.yaml"))]


def table(rows: list[Row]) -> str:
    """The rows as text, with a total."""
    lines = [f"{'policy':<16}{'calls':>7}{'fires':>7}{'quiet':>7}{'undecided':>11}{'decided':>9}{'emitted':>9}{'wrong':>7}"]
    for row in rows:
        counts = [row.count(True), row.count(False), row.count(None)]
        note = "  (the agent's rate limit withholds some)" if row.limited else ""
        lines.append(
            f"{row.name:<16}{len(row.verdicts):>7}{counts[0]:>7}{counts[1]:>7}{counts[2]:>11}{row.decided:>9.1%}"
            f"{row.emitted.total():>9}{len(row.wrong):>7}{note}"
        )
    calls, undecided = sum(len(row.verdicts) for row in rows), sum(row.count(None) for row in rows)
    share = f"{1 - undecided / calls:.2%}" if calls else "none"
    lines.append(f"of {calls} calls {share} decided, {sum(len(row.wrong) for row in rows)} processes wrong")
    return "\n".join(lines)


if __name__ == "__main__":
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else CORPUS
    for named_ in (True, False):
        found_ = [compare(place, name_, named_) for name_ in names(place)]
        print("with" if named_ else "without", "what is known of the machine's programs beside the recording")
        print(table(found_), end="\n\n")
        if any(row_.wrong for row_ in found_):
            sys.exit(1)
