# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Controller side of apiary.tetragon.record: reads the recorders, and brings the events home."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase

from ansible_collections.apiary.tetragon.plugins.module_utils.agent.scrub import told
from ansible_collections.apiary.tetragon.plugins.plugin_utils import recording
from ansible_collections.apiary.tetragon.plugins.plugin_utils.controller import failure, say
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Refused

_ONLY_HERE = ("destination", "label")


class ActionModule(ActionBase):  # type: ignore[misc]
    """Runs the module, once or, while it brings events home, once for each part of them."""

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        arguments = {name: value for name, value in self._task.args.items() if name not in _ONLY_HERE}
        host = str(task_vars["inventory_hostname"])
        state, destination = arguments.get("state"), self._task.args.get("destination")
        try:
            if state == "started":
                arguments["policies"] = policies = recording.recorders(arguments.get("policies") or recording.USUAL)
                result = self._module(arguments, task_vars)
                if destination and not result.get("failed") and not self._task.check_mode:
                    described = {"agent_version": result["agent_version"], "label": self._task.args.get("label", "")}
                    recording.Home(destination).begin(policies, described)
                return result
            result = self._module(arguments, task_vars)
            if state != "collected" or not result.get("recording"):
                return result
            if not destination:
                raise recording.no_destination()
            return self._bring_home(result, host, recording.Home(destination), arguments, task_vars)
        except Refused as error:
            raise failure(error) from None

    def _module(self, arguments: dict[str, Any], task_vars: Any) -> dict[str, Any]:
        result: dict[str, Any] = self._execute_module(module_name="apiary.tetragon.record", module_args=arguments, task_vars=task_vars)
        return result

    def _bring_home(
        self, result: dict[str, Any], host: str, home: recording.Home, arguments: dict[str, Any], task_vars: Any
    ) -> dict[str, Any]:
        at = home.part(host, result["part"], 0)
        while at < result["size"]:
            more = self._module({**arguments, "offset": at}, task_vars)
            if more.get("failed"):
                return more
            at = home.part(host, more["part"], at)
        found = result["recording"]
        home.finish(host, found)
        self._module({**arguments, "state": "absent"}, task_vars)
        taken = "; ".join(told(found.get("scrubbed", {}))) or "nothing had to be taken out"
        say(f"  {host}: {found.get('events', 0)} events, {found['ended']}; {taken}")
        if found.get("stuck"):
            return {"failed": True, "msg": f"policies of the recording could not be removed: {', '.join(found['stuck'])}"}
        return {"changed": True, "finished": True, "recording": found}
