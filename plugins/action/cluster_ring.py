# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""apiary.tetragon.cluster_ring, on the controller: one ring of a cluster is changed, goes back, and tells its truth."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase

from ansible_collections.apiary.tetragon.plugins.plugin_utils import bundle, environment
from ansible_collections.apiary.tetragon.plugins.plugin_utils.controller import say
from ansible_collections.apiary.tetragon.plugins.plugin_utils.fleet.run import Run
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube import change, session, values
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.arguments import ARGUMENTS, the_cluster
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.client import ApiError
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Refused, refuse


class ActionModule(ActionBase):  # type: ignore[misc]
    """One step per task; ``step`` names it."""

    TRANSFERS_FILES = False

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        _validation, arguments = self.validate_argument_spec(
            {
                **ARGUMENTS,
                "step": {"type": "str", "required": True, "choices": ["preview", "change", "back", "publish", "end"]},
                "run": {"type": "path"},
                "ring": {"type": "str"},
                "environment_file": {"type": "path"},
                "bundle": {"type": "str", "default": ""},
                "break_lock": {"type": "str", "default": ""},
            },
            required_if=[
                ("step", "preview", ("environment_file",)),
                *(("step", step, ("run", "ring")) for step in ("change", "back", "publish")),
                ("step", "end", ("run",)),
            ],
        )
        with the_cluster(arguments, task_vars) as cluster:
            return self._preview(cluster, arguments) if arguments["step"] == "preview" else self._step(cluster, arguments)

    def _step(self, cluster: session.Cluster, arguments: dict[str, Any]) -> dict[str, Any]:
        run, step, ring = Run(arguments["run"]), arguments["step"], arguments["ring"]
        part = session.Part(cluster, run, say, arguments["break_lock"])
        if step == "end":
            part.end()
            return {"changed": False}
        if step == "publish":
            return {"changed": True, "verdict": part.publish(ring)}
        try:
            changed = part.change(ring) if step == "change" else part.back(ring)
        except (Refused, ApiError) as error:
            reason = error if isinstance(error, Refused) else refuse(error.message)
            session.fail_nodes(run, part.name, ring, "start" if step == "change" else "back", reason)
            raise
        return {"changed": changed, "requests": cluster.api.requests}

    @staticmethod
    def _preview(cluster: session.Cluster, arguments: dict[str, Any]) -> dict[str, Any]:
        """What a rollout would change, tried on the API server."""
        wanted = environment.load(arguments["environment_file"])
        chosen = bundle.read(arguments["bundle"]) if arguments["bundle"] else None
        session.check_bundle(wanted, chosen)
        release = change.installed(cluster.api, cluster.helm, cluster.rings(wanted), recover=False)
        after = session.try_change(cluster, wanted, release, chosen)
        diff = [
            {
                "before_header": f"{cluster.place.name} ring {new['name']}",
                "after_header": f"{cluster.place.name} ring {new['name']}",
                "before": "\n".join([*values.shown(old), ""]),
                "after": "\n".join([*values.shown(new), ""]),
            }
            for old, new in zip(release.values["rings"], after, strict=True)
            if values.shown(old) != values.shown(new)
        ]
        changed = list(release.values["rings"]) != after
        return {"changed": changed, "diff": diff}
