# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Controller side of apiary.tetragon.policies: reads the bundle and sends each host what it is to run."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase

from ansible_collections.apiary.tetragon.plugins.plugin_utils import bundle
from ansible_collections.apiary.tetragon.plugins.plugin_utils.controller import failure, recorded
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Refused

_SENT = ("loaded", "mode", "text", "namespace", "unpinned", "overrides", "binaries", "trigger")


class ActionModule(ActionBase):  # type: ignore[misc]
    """Replaces ``bundle`` by the host's policies and runs the module."""

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        path = arguments.get("bundle")
        if path is not None and "policies" not in arguments:
            del arguments["bundle"]
            try:
                chosen = bundle.read(path) if path else None
            except Refused as error:
                raise failure(error) from None
            policies = chosen.policies_for(task_vars["group_names"]) if chosen else []
            arguments["policies"] = [{name: one[name] for name in _SENT if name in one} for one in policies]
            arguments["digest"] = chosen.digest if chosen else ""
        result = self._execute_module(module_name="apiary.tetragon.policies", module_args=arguments, task_vars=task_vars)
        return recorded(result, arguments.get("record"))
