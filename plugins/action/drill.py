# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Controller side of apiary.tetragon.drill: brings the bundle's triggers, shows and keeps what was found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

from ansible_collections.apiary.tetragon.plugins.plugin_utils import bundle
from ansible_collections.apiary.tetragon.plugins.plugin_utils.controller import failure, say
from ansible_collections.apiary.tetragon.plugins.plugin_utils.fleet import drill
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Refused

_SENT = ("loaded", "reference", "unpinned")


class ActionModule(ActionBase):  # type: ignore[misc]
    """Fails when something came through, after the reports are written."""

    TRANSFERS_FILES = False

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        path, directory = arguments.pop("bundle", ""), arguments.pop("report_dir", "")
        host = str(task_vars["inventory_hostname"])
        try:
            if path:
                policies = [one for one in bundle.read(path).policies_for(task_vars["group_names"]) if one["mode"] == "enforce"]
                arguments["policies"] = [{**{name: one[name] for name in _SENT}, "trigger": one.get("trigger")} for one in policies]
            result: dict[str, Any] = self._execute_module(module_name="apiary.tetragon.drill", module_args=arguments, task_vars=task_vars)
            found = result.get("drill")
            if not found or result.get("failed"):
                return result
            say(f"drill of {host}", *drill.lines(found))
            if directory:
                result["page"] = str(drill.write(host, found, Path(directory)))
        except Refused as error:
            raise failure(error) from None
        if found["lapses"]:
            result |= {"failed": True, "msg": "the drill found a gap:\n" + "\n".join(found["lapses"])}
        return result
