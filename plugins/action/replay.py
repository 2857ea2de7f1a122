# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""apiary.tetragon.replay, on the controller: recordings through policies, and the reports about it."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

from ansible_collections.apiary.tetragon.plugins.plugin_utils import documents, formats
from ansible_collections.apiary.tetragon.plugins.plugin_utils.controller import failure, say
from ansible_collections.apiary.tetragon.plugins.plugin_utils.environment import default_protected
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.kernel import SCHEMA, Kernel, from_data, target
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.load import FORMS, with_shipped
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.schema import parse_version
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Refused, required

try:
    with required():
        from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay import corpus, run, words
        from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay import report as reports
        from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.compile import CompiledPolicy
        from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.policies import gather, recorder_files, told_more
except Refused as error:
    raise failure(error) from None

_PAUSE = 2.0


class ActionModule(ActionBase):  # type: ignore[misc]
    """Needs no host."""

    TRANSFERS_FILES = False

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        _validation, arguments = self.validate_argument_spec(
            {
                "policies": {"type": "list", "elements": "path", "required": True},
                "corpus": {"type": "list", "elements": "path", "required": True},
                "recorders": {"type": "list", "elements": "path", "default": []},
                "executables": {"type": "dict"},
                "at_hook": {"type": "bool", "default": False},
                "agent_version": {"type": "str", "default": "1.7.0"},
                "kernel": {"type": "dict"},
                "policy_path": {"type": "list", "elements": "path", "default": []},
                "values": {"type": "dict", "default": {}},
                "form": {"type": "str", "choices": list(FORMS), "default": FORMS[0]},
                "protected": {"type": "list", "elements": "str"},
                "explain": {"type": "str"},
                "workers": {"type": "int", "default": 0},
                **{name: {"type": "path"} for name in formats.REPORTS},
            }
        )
        try:
            with tempfile.TemporaryDirectory(prefix="apiary-replay-") as spool:
                return _replay(arguments, Path(spool))
        except Refused as error:
            raise failure(error) from None


def _replay(arguments: Mapping[str, Any], spool: Path) -> dict[str, Any]:
    library = with_shipped(arguments["policy_path"])
    version = parse_version(arguments["agent_version"])
    protected = arguments["protected"]
    if protected is None:
        protected = default_protected(arguments["agent_version"])
    kernel = None if arguments["kernel"] is None else _kernel(arguments["kernel"])
    gathered = gather(arguments["policies"], library, version, protected, arguments["values"], arguments["form"], kernel)
    if not gathered.policies:
        raise Refused(reports.nothing_to_replay(gathered.problems))
    recorders = [documents.load(path) for path in recorder_files(arguments["recorders"], arguments["corpus"])]
    found = corpus.find(
        [Path(one) for one in arguments["corpus"]], corpus.recorders_of(recorders), arguments["executables"], arguments["at_hook"]
    )
    recordings = corpus.surveyed(told_more(found, recorders))
    policies = [CompiledPolicy(one.document, target(version, kernel), corpus.hooks(recordings)) for one in gathered.policies]
    if arguments["explain"]:
        return _explain(arguments, policies, recordings)
    entries = reports.Entries(spool)
    summary = run.replay(
        policies,
        recordings,
        workers=arguments["workers"] or len(os.sched_getaffinity(0)),
        agent_version=arguments["agent_version"],
        entry=entries.add,
        progress=_Progress().show,
    )
    entries.close()
    replayed = reports.Replayed(gathered, summary, entries)
    written = formats.write_reports(
        arguments,
        report=lambda out: reports.write_json(replayed, out),
        junit=lambda out: out.write(formats.junit("apiary replay", reports.trials(replayed))),
        sarif=lambda out: out.write(formats.sarif(reports.RULES, reports.alerts(replayed))),
        markdown=lambda out: out.write(reports.markdown(replayed)),
    )
    say(*reports.lines(replayed), *(f"  report: {path}" for path in written))
    if gathered.problems:
        raise Refused(gathered.problems)
    return {"changed": False, "replay": reports.summary_json(replayed)}


def _kernel(raw: Mapping[str, Any]) -> Kernel:
    problems = documents.validate(documents.Document("apiary_kernel", raw, {}), SCHEMA)
    if problems:
        raise Refused(replace(problem, line=0) for problem in problems)
    return from_data(raw)


def _explain(arguments: Mapping[str, Any], policies: Sequence[words.Explains], recordings: Sequence[corpus.Recording]) -> dict[str, Any]:
    event = words.find(arguments["explain"], recordings)
    explained = words.explain(event, policies)
    told = words.as_json(event, explained)
    formats.write_reports(arguments, report=lambda out: out.write(json.dumps(told, indent=1) + "\n"))
    say(*words.lines(event, explained))
    return {"changed": False, "explanation": told}


class _Progress:
    """Says how far the replay is, now and then."""

    def __init__(self) -> None:
        self._due = time.monotonic() + _PAUSE

    def show(self, progress: run.Progress) -> None:
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + _PAUSE
            share = progress.bytes_done / progress.bytes if progress.bytes else 1.0
            filled = "#" * int(share * 30)
            say(f"  [{filled:<30}] {share:4.0%}  {progress.files_done} of {progress.files} files")
