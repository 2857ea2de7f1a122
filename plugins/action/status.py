# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""apiary.tetragon.status, on the controller: the fleet's observations against the ledger."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

from ansible_collections.apiary.tetragon.plugins.plugin_utils import bundle, environment
from ansible_collections.apiary.tetragon.plugins.plugin_utils.controller import failure, groups_of, say, write_record
from ansible_collections.apiary.tetragon.plugins.plugin_utils.fleet.ledger import Ledger
from ansible_collections.apiary.tetragon.plugins.plugin_utils.fleet.status import fleet_status, intended
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube import records
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.rings import GROUP
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Refused

MAX_SHOWN = 20


class ActionModule(ActionBase):  # type: ignore[misc]
    """Needs no host."""

    TRANSFERS_FILES = False

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        _validation, arguments = self.validate_argument_spec(
            {
                name: {"type": "path", "required": True}
                for name in ("environment_file", "ledger_dir", "bundle_dir", "observations", "report")
            }
        )
        try:
            name = environment.load(arguments["environment_file"]).name
            entries = Ledger(arguments["ledger_dir"]).read()
            bundles = _bundles(name, set(intended(entries, name).values()), Path(arguments["bundle_dir"]))
        except Refused as error:
            raise failure(error) from None
        place = Path(arguments["observations"])
        groups: dict[str, list[str]] = {}
        seen: dict[str, dict[str, Any] | None] = {}
        for host, members in groups_of(task_vars).items():
            nodes = records.read(records.path_of(place, host)) if GROUP in members else None
            if nodes is None:
                groups[host], seen[host] = members, _observation(place / f"{host}.json")
            else:
                groups.update({f"{host}/{node}": members for node in nodes})
                seen.update({f"{host}/{node}": record for node, record in nodes.items()})
        status = fleet_status(entries, name, bundles, groups, seen)
        write_record(arguments["report"], status)
        say(*_lines(status))
        return {"changed": False, "status": status}


def _bundles(name: str, digests: set[str], directory: Path) -> dict[str, bundle.Bundle]:
    places = {digest: directory / bundle.directory_name(name, digest) for digest in digests if digest}
    return {digest: bundle.read(place) for digest, place in places.items() if place.is_dir()}


def _observation(path: Path) -> dict[str, Any] | None:
    try:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return None if "failed" in raw else raw


def _lines(status: Mapping[str, Any]) -> list[str]:
    lines = [f"  {status['environment']}: current bundle {bundle.label(status['current'])}"]
    if status["unfinished"]:
        unfinished = status["unfinished"]
        state = f"halted ({unfinished['halted']}): {unfinished['reason']}" if unfinished["halted"] else "not finished"
        lines.append(f"  rollout {unfinished['run']} to {bundle.label(unfinished['bundle'])}: {state}")
    for digest, hosts in Counter(host["bundle"] for host in status["hosts"]).most_common():
        lines.append(f"  {hosts} host(s) should run {bundle.label(digest)}")
    drifted = [host for host in status["hosts"] if host["drift"]]
    lines.append(f"  {len(drifted)} of {len(status['hosts'])} host(s) differ" if drifted else "  every host runs what it should")
    lines += [f"    {host['name']}: {'; '.join(host['drift'])}" for host in drifted[:MAX_SHOWN]]
    if len(drifted) > MAX_SHOWN:
        lines.append(f"    and {len(drifted) - MAX_SHOWN} more, all in the report")
    unmanaged = sorted({name for host in status["hosts"] for name in host["unmanaged"]})
    if unmanaged:
        lines.append(f"  policies that are not managed here: {', '.join(unmanaged[:MAX_SHOWN])}")
    return lines
