# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""apiary.tetragon.cluster_truth, on the controller: publish what the rings of a cluster run, outside any rollout."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase

from ansible_collections.apiary.tetragon.plugins.plugin_utils import environment
from ansible_collections.apiary.tetragon.plugins.plugin_utils.controller import say
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube import look, truth
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.arguments import ARGUMENTS, the_cluster


class ActionModule(ActionBase):  # type: ignore[misc]
    """Needs no host."""

    TRANSFERS_FILES = False

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        _validation, arguments = self.validate_argument_spec({**ARGUMENTS, "environment_file": {"type": "path", "required": True}})
        rings = {}
        with the_cluster(arguments, task_vars) as cluster:
            for one in look.truths(cluster.api, cluster.rings(environment.load(arguments["environment_file"]))):
                if not self._task.check_mode:
                    truth.publish(cluster.api, one)
                rings[one["ring"]] = one
                why = f": {one['reason']}" if one["reason"] else ""
                say(f"  {cluster.place.name} {one['ring']}: {one['verdict']}, {one['ready']} of {one['nodes']} nodes{why}")
        return {"changed": bool(rings), "rings": rings}
