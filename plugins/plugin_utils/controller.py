# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""What the action plugins share: arguments, errors, lines on the screen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.utils.display import Display

from ansible_collections.apiary.tetragon.plugins.plugin_utils import files
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Refused

_display = Display()


def say(*lines: str) -> None:
    """Show lines to the person at the terminal, at once and in order, whichever output callback is in use."""
    for line in lines:
        _display.display(line)


def failure(error: Refused) -> AnsibleActionFail:
    """A refusal as the failure of a task, one problem a line."""
    return AnsibleActionFail("\n".join(str(problem) for problem in error.problems))


def groups_of(task_vars: Mapping[str, Any]) -> dict[str, list[str]]:
    """Every host of the play with its inventory groups."""
    members: dict[str, list[str]] = {host: [] for host in task_vars["ansible_play_hosts_all"]}
    for group, hosts in task_vars["groups"].items():
        for host in hosts:
            if host in members:
                members[host].append(str(group))
    return members


def write_record(path: str, content: Mapping[str, Any]) -> None:
    """Write a record on the controller in one rename; a disk that takes it not is the failure of the task."""
    try:
        files.write(Path(path), json.dumps(content))
    except Refused as error:
        raise failure(error) from None


def recorded(result: dict[str, Any], path: str | None) -> dict[str, Any]:
    """Move a host module's observation, or the reason of its failure, into a record; returns what is left of the result."""
    if not path:
        return result
    if result.get("failed"):
        write_record(path, {"failed": str(result.get("msg", "no reason given"))})
    elif "observation" in result:
        write_record(path, result.pop("observation"))
    return result
