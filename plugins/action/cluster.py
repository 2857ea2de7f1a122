# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""apiary.tetragon.cluster, on the controller: the release on a cluster is judged, installed, its nodes labelled, or removed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible.plugins.action import ActionBase

from ansible_collections.apiary.tetragon.plugins.module_utils.agent.preflight import as_data, table
from ansible_collections.apiary.tetragon.plugins.plugin_utils import bundle, environment
from ansible_collections.apiary.tetragon.plugins.plugin_utils.controller import say
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.arguments import ARGUMENTS, the_cluster
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.operate import Operator, read_values


class ActionModule(ActionBase):  # type: ignore[misc]
    """One step per task; ``step`` names it."""

    TRANSFERS_FILES = False

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        _validation, self.arguments = self.validate_argument_spec(
            {
                **ARGUMENTS,
                "step": {"type": "str", "required": True, "choices": ["preflight", "install", "label", "remove"]},
                "environment_file": {"type": "path"},
                "values": {"type": "list", "elements": "path", "default": []},
                "bundle": {"type": "str", "default": ""},
            },
            required_if=[("step", step, ("environment_file",)) for step in ("preflight", "install", "label")],
        )
        step: Callable[[Operator], dict[str, Any]] = getattr(self, f"step_{self.arguments['step']}")
        with the_cluster(self.arguments, task_vars) as cluster:
            file = self.arguments["environment_file"]
            wanted = environment.load(file) if file else None
            return step(Operator(cluster, wanted, read_values(self.arguments["values"]), say))

    def step_preflight(self, operator: Operator) -> dict[str, Any]:
        path = self.arguments["bundle"]
        verdicts = operator.preflight(bundle.read(path) if path else None)
        return {"changed": False, "verdicts": as_data(verdicts), "table": table(verdicts)}

    def step_install(self, operator: Operator) -> dict[str, Any]:
        plan = operator.plan() if self._task.check_mode else operator.install()
        before, after = ("\n".join([*lines, ""]) for lines in plan.lines)
        header = f"{operator.name} values"
        return {
            "changed": plan.changed,
            "diff": {"before_header": header, "after_header": header, "before": before, "after": after},
        }

    def step_label(self, operator: Operator) -> dict[str, Any]:
        drawn = operator.labels()
        if not self._task.check_mode:
            operator.label(drawn)
        lines = "".join(f"{node}: {ring}\n" for node, ring in sorted(drawn.items()))
        header = f"{operator.name} nodes"
        return {
            "changed": bool(drawn),
            "labels": drawn,
            "diff": {"before_header": header, "after_header": header, "before": "", "after": lines},
        }

    def step_remove(self, operator: Operator) -> dict[str, Any]:
        if self._task.check_mode:
            return {"changed": operator.cluster.helm.release() is not None}
        return {"changed": operator.remove()}
