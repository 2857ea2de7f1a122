# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Controller side of apiary.tetragon.agent_info: keeps the observation where it is asked to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

from ansible_collections.apiary.tetragon.plugins.plugin_utils.controller import recorded


class ActionModule(ActionBase):  # type: ignore[misc]
    """Runs the module on the host."""

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        record = arguments.get("record")
        if record and arguments.get("keep_record") and Path(record).exists():
            return {"changed": False, "kept": True}
        if record:
            Path(record).unlink(missing_ok=True)
        result = self._execute_module(module_name="apiary.tetragon.agent_info", module_args=arguments, task_vars=task_vars)
        return recorded(result, record)
