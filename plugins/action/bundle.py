# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""apiary.tetragon.bundle, on the controller: render, check, and write one environment's bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

from ansible_collections.apiary.tetragon.plugins.plugin_utils import bundle, environment
from ansible_collections.apiary.tetragon.plugins.plugin_utils.build import Build, build
from ansible_collections.apiary.tetragon.plugins.plugin_utils.controller import failure, say
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.cache import Cache
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.load import with_shipped
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Refused


class ActionModule(ActionBase):  # type: ignore[misc]
    """Needs no host."""

    TRANSFERS_FILES = False

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        _validation, arguments = self.validate_argument_spec(
            {
                "environment_file": {"type": "path", "required": True},
                "policy_path": {"type": "list", "elements": "path", "default": []},
                "directory": {"type": "path", "required": True},
                "against": {"type": "path"},
                "cache_dir": {"type": "path"},
            }
        )
        try:
            wanted = environment.load(arguments["environment_file"])
            built = build(wanted, with_shipped(arguments["policy_path"]), Cache(arguments["cache_dir"]))
            former = bundle.read(arguments["against"]) if arguments["against"] else None
            target = Path(arguments["directory"]) / built.bundle.name
            changed = not target.exists()
            if not self._task.check_mode:
                bundle.write(built.bundle, arguments["directory"])
        except Refused as error:
            raise failure(error) from None
        changes = bundle.diff(former, built.bundle)
        say(*_summary(built, changes, former is not None))
        return {
            "changed": changed,
            "path": str(target),
            "digest": built.bundle.digest,
            "findings": [str(finding) for finding in built.findings],
            "changes": [{"policy": one.policy, "kind": one.kind, "details": list(one.details)} for one in changes],
            "cases": {
                name: {"cases": len(results), "events": sum(one.fired + one.quiet for one in results)}
                for name, results in built.cases.items()
            },
        }


def _summary(built: Build, changes: list[bundle.Change], compared: bool) -> list[str]:
    manifest = built.bundle.manifest
    lines = [f"  {built.bundle.name}: {len(manifest['assignments'])} policies for agent {manifest['agent_version']}"]
    for one in manifest["assignments"]:
        results = built.cases[one["policy"]]
        modes = {policy["mode"] for policy in manifest["policies"] if policy["reference"] == one["policy"]}
        events = sum(result.fired + result.quiet for result in results)
        recorded = sum(result.origin == "recorded" for result in results)
        lines.append(
            f"    {one['policy']:<36} {'/'.join(sorted(modes)):<8} {len(one['choices'])} revision(s)   "
            f"{len(results)} cases ({recorded} recorded), {events} events as they must be"
        )
    lines += [f"    {finding}" for finding in built.findings]
    if compared:
        lines += ["  against the former bundle:", *(f"    {line}" for change in changes or () for line in str(change).splitlines())]
        if not changes:
            lines.append("    nothing a host would notice")
    return lines
