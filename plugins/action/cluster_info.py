# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""apiary.tetragon.cluster_info, on the controller: what the nodes of a cluster run, into a run's directory or a record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

from ansible_collections.apiary.tetragon.plugins.plugin_utils import environment
from ansible_collections.apiary.tetragon.plugins.plugin_utils.controller import say
from ansible_collections.apiary.tetragon.plugins.plugin_utils.fleet.run import Run
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube import observe, records
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.arguments import ARGUMENTS, the_cluster
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.session import Cluster, Part


class ActionModule(ActionBase):  # type: ignore[misc]
    """Needs no host."""

    TRANSFERS_FILES = False

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        _validation, arguments = self.validate_argument_spec(
            {
                **ARGUMENTS,
                "run": {"type": "path"},
                "phase": {"type": "str", "choices": ["fleet", "before", "end"]},
                "ring": {"type": "str"},
                "environment_file": {"type": "path"},
                "record": {"type": "path"},
                "break_lock": {"type": "str", "default": ""},
            },
            required_one_of=[("run", "environment_file")],
            mutually_exclusive=[("run", "environment_file")],
            required_together=[("run", "phase"), ("environment_file", "record")],
            required_if=[("phase", "before", ("ring",)), ("phase", "end", ("ring",))],
        )
        with the_cluster(arguments, task_vars) as cluster:
            nodes = self._rollout(cluster, arguments) if arguments["run"] else self._look(cluster, arguments)
            return {"changed": False, "nodes": nodes, "requests": cluster.api.requests}

    @staticmethod
    def _rollout(cluster: Cluster, arguments: dict[str, Any]) -> int:
        run = Run(arguments["run"])
        part = Part(cluster, run, say, arguments["break_lock"])
        phase, ring = arguments["phase"], arguments["ring"]
        if phase == "fleet":
            return part.observe_fleet()
        known = run.nodes(ring, phase, part.name) if phase == "before" else None
        return len(known) if known is not None else part.observe(ring, phase)

    @staticmethod
    def _look(cluster: Cluster, arguments: dict[str, Any]) -> int:
        api, rings = cluster.api, cluster.rings(environment.load(arguments["environment_file"]))
        found = observe.survey(api, observe.nodes(api, rings).values(), observe.pods(api), ask=observe.asker(api))
        records.write(Path(arguments["record"]), found)
        return len(found)
