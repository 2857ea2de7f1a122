# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""apiary.tetragon.check, on the controller: check every policy of an environment and report."""

from __future__ import annotations

import json
from typing import Any

from ansible.plugins.action import ActionBase

from ansible_collections.apiary.tetragon.plugins.plugin_utils import environment, formats
from ansible_collections.apiary.tetragon.plugins.plugin_utils.controller import failure, say
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy import report as checks
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.cache import Cache
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.load import with_shipped
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.schema import parse_version
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Refused, refuse


class ActionModule(ActionBase):  # type: ignore[misc]
    """Needs no host."""

    TRANSFERS_FILES = False

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        _validation, arguments = self.validate_argument_spec(
            {
                "environment_file": {"type": "path", "required": True},
                "policy_path": {"type": "list", "elements": "path", "default": []},
                "cache_dir": {"type": "path"},
                "mutation": {"type": "bool", "default": False},
                "mutation_needed": {"type": "int", "default": 90},
                "migrate_to": {"type": "str"},
                **{name: {"type": "path"} for name in formats.REPORTS},
            }
        )
        try:
            report = checks.check_environment(
                environment.load(arguments["environment_file"]),
                with_shipped(arguments["policy_path"]),
                Cache(arguments["cache_dir"]),
                arguments["mutation_needed"] / 100 if arguments["mutation"] else None,
                progress=lambda line: say(f"  {line}"),
                towards=parse_version(arguments["migrate_to"]) if arguments["migrate_to"] else None,
            )
            result = checks.as_json(report)
            written = formats.write_reports(
                arguments,
                report=lambda out: out.write(json.dumps(result, indent=1) + "\n"),
                junit=lambda out: out.write(formats.junit(f"apiary check {report.environment}", checks.trials(report))),
                sarif=lambda out: out.write(formats.sarif(checks.RULES, checks.alerts(report))),
                markdown=lambda out: out.write(checks.markdown(report)),
            )
        except Refused as error:
            raise failure(error) from None
        say(*checks.lines(report), *(f"  report: {path}" for path in written))
        if not report.passed:
            broken = [one.reference for one in report.policies if not one.passed] or ["the policies together"]
            raise failure(refuse(f"failed: {', '.join(broken)}: see the lines above", file=report.file))
        return {"changed": False, "check": result}
