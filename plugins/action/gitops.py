# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""apiary.tetragon.gitops, on the controller: write the tree that clusters are kept from, or promote a ring in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

from ansible_collections.apiary.tetragon.plugins.plugin_utils import bundle, environment
from ansible_collections.apiary.tetragon.plugins.plugin_utils.build import build
from ansible_collections.apiary.tetragon.plugins.plugin_utils.controller import failure, say
from ansible_collections.apiary.tetragon.plugins.plugin_utils.gitops import argocd, helm, layout, tree
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube import helm as kube_helm
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.rings import GROUP
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.cache import Cache
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.load import with_shipped
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Refused, refuse


class ActionModule(ActionBase):  # type: ignore[misc]
    """Needs no host; clusters and their variables come from the inventory."""

    TRANSFERS_FILES = False

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        _validation, arguments = self.validate_argument_spec(
            {
                "environment_file": {"type": "path", "required": True},
                "bundle": {"type": "path"},
                "policy_path": {"type": "list", "elements": "path", "default": []},
                "cache_dir": {"type": "path"},
                "promote": {"type": "str"},
                "directory": {"type": "path", "required": True},
                "path": {"type": "str", "default": ""},
                "repo_url": {"type": "str"},
                "revision": {"type": "str", "default": "HEAD"},
                "argocd_namespace": {"type": "str", "default": "argocd"},
                "argocd_project": {"type": "str", "default": "default"},
                "truth_max_age": {"type": "int", "default": 3600},
                "owners": {"type": "dict", "default": {}},
                "promoters": {"type": "list", "elements": "str", "default": []},
            },
            mutually_exclusive=[["bundle", "promote"]],
            required_one_of=[["repo_url", "promote"]],
        )
        directory = Path(arguments["directory"])
        inside = arguments["path"].strip("/")
        try:
            wanted = environment.load(arguments["environment_file"])
            clusters = [_cluster(name, task_vars["hostvars"][name]) for name in task_vars["groups"].get(GROUP, [])]
            if not clusters:
                raise refuse(f"the inventory has no cluster: put your clusters into the group {GROUP}")
            if arguments["promote"]:
                plan = tree.promote(directory / inside, clusters, wanted, arguments["promote"])
            else:
                plan = tree.propose(directory / inside, wanted, _wanted(arguments, inside, wanted, clusters))
            if not self._task.check_mode:
                tree.apply(plan)
        except Refused as error:
            raise failure(error) from None
        say(*(f"  {name}: {', '.join(f'{ring} {one}' for ring, one in taken.items())}" for name, taken in plan.rings.items()))
        result: dict[str, Any] = {
            "changed": bool(plan.changes),
            "rings": plan.rings,
            "written": [str(change.path.relative_to(directory)) for change in plan.changes if change.after is not None],
            "removed": [str(change.path.relative_to(directory)) for change in plan.changes if change.after is None],
        }
        if self._task.diff:
            result["diff"] = [
                {
                    "before_header": str(change.path.relative_to(directory)),
                    "after_header": str(change.path.relative_to(directory)),
                    "before": change.before or "",
                    "after": change.after or "",
                }
                for change in plan.changes
            ]
        return result


def _wanted(arguments: Mapping[str, Any], inside: str, wanted: environment.Environment, clusters: Iterable[layout.Cluster]) -> tree.Wanted:
    if arguments["bundle"]:
        built = bundle.read(arguments["bundle"])
    else:
        built = build(wanted, with_shipped(arguments["policy_path"]), Cache(arguments["cache_dir"])).bundle
    if built.environment != wanted.name:
        raise refuse(f"is a bundle of environment {built.environment}, not of {wanted.name}", file=arguments["bundle"])
    rendered = {}
    for cluster in clusters:
        rings = layout.rings_of(cluster, wanted)
        objects = helm.template(cluster, kube_helm.CHART, layout.values(cluster, rings, built))
        rendered[cluster] = layout.render(cluster, rings, built, objects)
    settings = argocd.Settings(
        repo_url=arguments["repo_url"],
        revision=arguments["revision"],
        path=inside,
        namespace=arguments["argocd_namespace"],
        project=arguments["argocd_project"],
        max_age=arguments["truth_max_age"],
    )
    owners = layout.code_owners(built, inside, arguments["owners"], arguments["promoters"])
    return tree.Wanted(
        layout.directory_of(built, rendered),
        rendered,
        layout.argocd_files(settings, wanted.rings),
        (Path(arguments["directory"]) / tree.CODEOWNERS, owners),
    )


def _cluster(name: str, variables: Mapping[str, Any]) -> layout.Cluster:
    names = {
        "namespace": "apiary_kube_namespace",
        "release": "apiary_kube_release",
        "kube_version": "apiary_kube_version",
        "helm": "apiary_helm",
    }
    given = {field: str(variables[variable]) for field, variable in names.items() if variable in variables}
    return layout.Cluster(name=name, groups=tuple(variables["group_names"]), values=tuple(variables.get("apiary_kube_values", ())), **given)
