# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""apiary.tetragon.cluster_truth, on the controller: publish what the rings of a cluster run, outside any rollout."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase

from ansible_collections.apiary.tetragon.plugins.plugin_utils import environment
from ansible_collections.apiary.tetragon.plugins.plugin_utils.controller import failure, say
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube import look, truth
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.arguments import ARGUMENTS, cluster_from
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.client import ApiError
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Refused, refuse


class ActionModule(ActionBase):  # type: ignore[misc]
    """Needs no host."""

    TRANSFERS_FILES = False

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        _validation, arguments = self.validate_argument_spec({**ARGUMENTS, "environment_file": {"type": "path", "required": True}})
        cluster = cluster_from(arguments, task_vars)
        name = cluster.place.name
        try:
            rings = {}
            for one in look.truths(cluster.api, cluster.rings(environment.load(arguments["environment_file"]))):
                if not self._task.check_mode:
                    truth.publish(cluster.api, one)
                rings[one["ring"]] = one
                why = f": {one['reason']}" if one["reason"] else ""
                say(f"  {name} {one['ring']}: {one['verdict']}, {one['ready']} of {one['nodes']} nodes{why}")
        except Refused as error:
            raise failure(error) from None
        except ApiError as error:
            raise failure(refuse(error.message, path=f"cluster {name}")) from None
        return {"changed": bool(rings), "rings": rings}
