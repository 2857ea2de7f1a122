# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Controller side of apiary.tetragon.preflight: checks version and options, and reads what the host's policies need."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase

from ansible_collections.apiary.tetragon.plugins.module_utils.agent import flags
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.release import ReleaseError, exact_version
from ansible_collections.apiary.tetragon.plugins.plugin_utils import bundle
from ansible_collections.apiary.tetragon.plugins.plugin_utils.controller import failure
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Problem, Refused, refuse


class ActionModule(ActionBase):  # type: ignore[misc]
    """Fails on the controller for what no host can mend."""

    TRANSFERS_FILES = False

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        path, version = arguments.pop("bundle", ""), arguments.get("version") or ""
        try:
            if version:
                arguments["version"] = version = exact_version(str(version))
                wrong = flags.problems(version, arguments.get("options") or {})
                if wrong:
                    raise Refused(Problem("apiary_agent_options", 0, "", one) for one in wrong)
            if path:
                chosen = bundle.read(path)
                if version and version.split(".")[:2] != str(chosen.manifest["agent_version"]).split(".")[:2]:
                    raise refuse(
                        f"its policies were checked for agent {chosen.manifest['agent_version']}, the hosts are to run {version}: build a "
                        "bundle for that version, or install the other",
                        file=str(path),
                    )
                arguments["requirements"] = bundle.needs(chosen.policies_for(task_vars["group_names"]))
        except ReleaseError as error:
            raise failure(refuse(str(error))) from None
        except Refused as error:
            raise failure(error) from None
        result: dict[str, Any] = self._execute_module(module_name="apiary.tetragon.preflight", module_args=arguments, task_vars=task_vars)
        return result
