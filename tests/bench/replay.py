# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The parts of the replay's benchmark, each for a process of its own; they print JSON.

``replay.py make DIRECTORY FILES LINES`` writes recordings. ``replay.py compare DIRECTORY`` replays them through forty
policies and, file by file in between, decodes the same events alone: CPU seconds of each. ``replay.py run WORKERS FILE...``
only replays: CPU seconds of all processes, from their start and of the replay alone, and the memory of the largest.
"""

from __future__ import annotations

import gzip
import json
import random
import re
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from ansible_collections.apiary.tetragon.plugins.plugin_utils import documents
from ansible_collections.apiary.tetragon.plugins.plugin_utils.environment import DEFAULT_PROTECTED
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.load import Library
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.render import render
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay import corpus, events, run
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.compile import CompiledPolicy

REPOSITORY = Path(__file__).parents[2]
CORPUS = REPOSITORY / "tests" / "corpus"
POLICIES = 40
NEW_ARGUMENTS = 100  # one event in so many opens a file that no other event of the recording names
EXECUTABLES = {
    "/lab/wl/run.sh": "/lab/wl/sh",
    "/lab/wl/bin/child1.sh": "/lab/wl/bin/child",
    "/bin/sh": "/usr/bin/dash",
    "/usr/bin/sh": "/usr/bin/dash",
}
_ALL = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
# What differs between two calls of the same kind: the process (twice: pid and tid), its exec id, the file, the time.
_VARIES = re.compile(
    rb'(?<="process":\{"exec_id":")(?P<exec>[^"]*)|(?<="pid":)(?P<pid>\d+)|(?<="tid":)(?P<tid>\d+)|(?<="time":")(?P<time>[^"]*)'
    rb'|(?<=_arg":\{"path":")(?P<path>/[^"]*)'
)


def policies() -> list[CompiledPolicy]:
    """Forty policies: the narrow ones of the corpus, then those of the library, again and again with values of their own."""
    found = [CompiledPolicy(documents.load(path).data) for path in sorted((CORPUS / "narrow").glob("*.yaml"))]
    library = Library([REPOSITORY / "policies"])
    names = sorted(f"{meta.parent.parent.name}/{meta.parent.name}" for meta in (REPOSITORY / "policies").glob("*/*/meta.yml"))
    for number in range(POLICIES - len(found)):
        policy = library.get(names[number % len(names)])
        values: dict[str, Any] = {
            "c2-ranges": {"ranges": [f"198.51.{number}.0/24"]},
            "egress-allowlist": {"allowed": [f"10.{number}.0.0/16"]},
            "function-call": {"program": "/usr/bin/bash", "function": "change_flag", "first_argument": [number]},
            "credential-writes": {"directories": [f"/srv/keys{number}"]},
            "immutable-paths": {"directories": [f"/srv/image{number}"]},
            "shell-in-container": {"allowed_starters": [f"/opt/app{number}"]},
            "fileless-execution": {"exempt": [f"/opt/runtime{number}"]},
        }
        rendered = render(policy, values.get(policy.name, {}), policy.meta["forms"][-1], DEFAULT_PROTECTED)
        found.append(CompiledPolicy(rendered.document("monitor")))
    return found


def make(directory: Path, files: int, lines: int) -> None:
    """Recordings made of the corpus's events in random order, with other processes, times and, now and then, files."""
    kinds = []
    for path in sorted((CORPUS / "broad").glob("broad-*.gz")):
        for line in gzip.decompress(path.read_bytes()).splitlines(keepends=True):
            found = list(_VARIES.finditer(line))
            edges = [0, *(edge for one in found for edge in one.span()), len(line)]
            kinds.append(([line[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)], [(one.lastgroup, one[0]) for one in found]))
    chance = random.Random(7)
    directory.mkdir(parents=True)
    for number in range(files):
        with (directory / f"{number:02}.jsonl").open("wb") as out:
            for count in range(number * lines, (number + 1) * lines):
                out.write(_varied(*chance.choice(kinds), count, chance))


def _varied(fixed: list[bytes], varies: list[tuple[str | None, bytes]], count: int, chance: random.Random) -> bytes:
    pid, moment = chance.randrange(300, 4_000_000), divmod(count * 1_300_007, 1_000_000_000)
    made = {
        "exec": b"%032x" % chance.getrandbits(128),
        "pid": b"%d" % pid,
        "tid": b"%d" % pid,
        "time": b"2026-11-22T%02d:%02d:%02d.%09dZ" % (moment[0] // 3600, moment[0] // 60 % 60, moment[0] % 60, moment[1]),
    }
    if chance.randrange(NEW_ARGUMENTS) == 0:
        made["path"] = b"/srv/made/%d" % count
    text = [fixed[0]]
    for (what, old), after in zip(varies, fixed[1:], strict=True):
        text += (made.get(str(what), old), after)
    return b"".join(text)


def recordings(paths: list[Path]) -> list[corpus.Recording]:
    recorders = corpus.recorders_of(documents.load(path) for path in sorted((CORPUS / "broad" / "policies").glob("*.yaml")))
    return corpus.find(paths, recorders, EXECUTABLES)


def compare(directory: Path) -> dict[str, float]:
    """CPU seconds of a replay, and of decoding the same events alone with msgspec, into the replay's records, and with orjson.

    Alone is a plain loop over the lines of the open file.
    """
    spent = {"msgspec": 0.0, "orjson": 0.0}
    decoders: dict[str, Callable[[bytes], object]] = {"msgspec": events.decode_line, "orjson": orjson.loads}
    files = sorted(directory.iterdir())
    done = 0

    def between(progress: run.Progress) -> None:
        nonlocal done
        while done < progress.files_done:
            for name, decode in decoders.items():
                start = time.process_time()
                with files[done].open("rb") as lines:
                    for line in lines:
                        decode(line)
                spent[name] += time.process_time() - start
            done += 1

    chosen = policies()
    start = time.process_time()
    summary = run.replay(chosen, recordings(files), progress=between, entry=lambda one: None)
    total = time.process_time() - start
    return {
        **spent,
        "replay": total - sum(spent.values()),
        "events": summary.events,
        "fired": sum(one.total.fired for one in summary.policies),
        "undecided": sum(one.total.undecided for one in summary.policies),
    }


def replay(workers: int, files: list[Path]) -> dict[str, float]:
    """CPU seconds of all processes, from their start and of the replay alone, and MB of memory of the largest."""
    chosen, found = policies(), recordings(files)
    before = _cpu()
    run.replay(chosen, found, workers=workers)
    after = _cpu()
    memory = max(resource.getrusage(who).ru_maxrss for who in _ALL) / 1024
    return {"cpu": after, "replay": after - before, "memory": memory}


def _cpu() -> float:
    return sum(one.ru_utime + one.ru_stime for one in map(resource.getrusage, _ALL))


def main() -> None:
    """Command line."""
    what, *rest = sys.argv[1:]
    if what == "make":
        make(Path(rest[0]), int(rest[1]), int(rest[2]))
    elif what == "compare":
        print(json.dumps(compare(Path(rest[0]))))
    else:
        print(json.dumps(replay(int(rest[0]), [Path(one) for one in rest[1:]])))


if __name__ == "__main__":
    main()
