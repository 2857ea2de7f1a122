# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Terminal output for rollouts: rings and hosts instead of tasks."""

from __future__ import annotations

DOCUMENTATION = r"""
name: rings
type: stdout
short_description: Show a rollout ring by ring
version_added: 0.1.0
author:
  - Apiary contributors (@apiary)
description:
  - Shows what the collection's playbooks say of themselves, one line for each host that changed, and every failure, in
    place of a line for each task and host. Made for fleets, where the default output cannot be read.
extends_documentation_fragment:
  - default_callback
"""

from typing import Any

from ansible import constants as C
from ansible.plugins.callback.default import CallbackModule as Default


class CallbackModule(Default):  # type: ignore[misc]
    """Quiet but for plays, changed hosts and failures."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "apiary.tetragon.rings"

    def v2_playbook_on_play_start(self, play: Any) -> None:
        self._play = play
        self._display.display(play.get_name().strip(), color=C.COLOR_HIGHLIGHT)

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        return

    def v2_playbook_on_handler_task_start(self, task: Any) -> None:
        return

    def v2_playbook_on_include(self, included_file: Any) -> None:
        return

    def v2_runner_on_ok(self, result: Any) -> None:
        host, task, content = _parts(result)
        if task.action == "apiary.tetragon.policies" and content.get("changed"):
            steps = [f"{one['action']} {one['policy']}".strip() for one in content.get("actions", ())]
            shown = ", ".join(steps[:4]) + (f" and {len(steps) - 4} more" if len(steps) > 4 else "")
            self._display.display(f"      {host}: {shown or 'recorded'}", color=C.COLOR_CHANGED)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        host, task, content = _parts(result)
        place = "" if task.run_once else f"{host}: "
        for line in str(content.get("msg", "failed")).splitlines():
            self._display.display(f"      {place}{line}", color=C.COLOR_ERROR)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        host, _task, content = _parts(result)
        self._display.display(f"      {host}: unreachable: {content.get('msg', '')}", color=C.COLOR_UNREACHABLE)

    def v2_runner_on_skipped(self, result: Any) -> None:
        return

    def v2_runner_item_on_ok(self, result: Any) -> None:
        return

    def v2_runner_item_on_skipped(self, result: Any) -> None:
        return

    def v2_playbook_on_no_hosts_matched(self) -> None:
        self._display.display("  no hosts: check the inventory and apiary_hosts", color=C.COLOR_ERROR)

    def v2_playbook_on_stats(self, stats: Any) -> None:
        lost = sum(bool(count) for count in stats.dark.values())
        if lost:
            self._display.display(f"  {lost} of {len(stats.processed)} host(s) unreachable", color=C.COLOR_UNREACHABLE)


def _parts(result: Any) -> tuple[str, Any, dict[str, Any]]:
    """Host name, task and content of a result, under the names of old and new releases of ansible-core."""
    if hasattr(result, "task"):
        return result.host.get_name(), result.task, result.result
    return result._host.get_name(), result._task, result._result
