# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""apiary.tetragon.rollout, on the controller: the steps of a rollout between the changes of hosts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ansible_collections.apiary.tetragon.plugins.plugin_utils import bundle
from ansible_collections.apiary.tetragon.plugins.plugin_utils.controller import failure, groups_of, say
from ansible_collections.apiary.tetragon.plugins.plugin_utils.fleet import gates, report
from ansible_collections.apiary.tetragon.plugins.plugin_utils.fleet.run import Request, Run, find_target
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.rings import cluster_of
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Refused, few

_TICK = 30.0
MAX_NAMED = 20
ARGUMENTS: dict[str, dict[str, Any]] = {
    "step": {
        "type": "str",
        "required": True,
        "choices": ["begin", "plan", "ring", "batch", "bake", "gate", "conclude", "finish", "end"],
    },
    "environment_file": {"type": "path"},
    "bundle": {"type": "str", "default": ""},
    "bundle_dir": {"type": "path"},
    "ledger_dir": {"type": "path"},
    "report_dir": {"type": "path"},
    "back": {"type": "bool", "default": False},
    "retry": {"type": "bool", "default": False},
    "break_lock": {"type": "str", "default": ""},
    "run": {"type": "path"},
    "ring": {"type": "str"},
    "batch": {"type": "int"},
}
REQUIRED = [
    ("step", "begin", ("environment_file", "bundle_dir", "ledger_dir")),
    ("step", "plan", ("run",)),
    *(("step", step, ("run", "ring")) for step in ("ring", "bake", "gate", "conclude")),
    ("step", "batch", ("run", "ring", "batch")),
    ("step", "finish", ("run",)),
    ("step", "end", ("run", "report_dir")),
]


class ActionModule(ActionBase):  # type: ignore[misc]
    """One step per task; ``step`` names it."""

    TRANSFERS_FILES = False

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        _validation, self.arguments = self.validate_argument_spec(ARGUMENTS, required_if=REQUIRED)
        self.task_vars = task_vars
        step: Callable[[], dict[str, Any]] = getattr(self, f"step_{self.arguments['step']}")
        try:
            return {"changed": False, **step()}
        except Refused as error:
            raise failure(error) from None

    @property
    def _run(self) -> Run:
        return Run(self.arguments["run"])

    def step_begin(self) -> dict[str, Any]:
        request = Request(
            environment=self.arguments["environment_file"],
            bundle=self.arguments["bundle"],
            ledger_dir=self.arguments["ledger_dir"],
            bundle_dir=self.arguments["bundle_dir"],
            back=self.arguments["back"],
            retry=self.arguments["retry"],
            break_lock=self.arguments["break_lock"],
        )
        target = find_target(request)
        new, old = (bundle.read(path) if path else None for path in (target.bundle, target.previous))
        run = None if self._task.check_mode else Run.begin(request, _controller())
        say(
            f"  {target.environment.name}: {bundle.label(target.stand.current)} -> {bundle.label(target.digest)}"
            + (f"  (run {run.name})" if run else "  (check mode)"),
            *(f"    {line}" for change in bundle.diff(old, new) for line in str(change).splitlines()),
        )
        limits = target.environment.gates
        return {
            "run": str(run.directory) if run else "",
            "bundle": target.bundle,
            "previous": target.previous,
            "failed_units": limits.failed_units,
            "commands": list(limits.commands),
            "urls": list(limits.urls),
        }

    def step_plan(self) -> dict[str, Any]:
        run = self._run
        plan = run.plan(groups_of(self.task_vars))
        rings: dict[str, Any] = {}
        last: dict[str, int] = {}
        for index, ring in enumerate(plan.rings):
            earlier = [host for former in plan.rings[:index] for host in former.hosts] if run.environment.roll_back_all else []
            say(
                f"  ring {ring.name}: {len(ring.hosts)} host(s) in {len(ring.batches)} batch(es), "
                f"{len(ring.control)} to compare with, bake {ring.bake} s"
            )
            changed = _machines(ring.hosts)
            watched = _machines((*ring.hosts, *ring.control))
            part = _machines((*watched, *earlier, *run.exposed))
            rings[ring.name] = {
                "changed": dict.fromkeys(changed, True),
                "watched": dict.fromkeys(watched, True),
                "taking_part": dict.fromkeys(part, True),
                "batches": list(range(len(ring.batches))),
                "batch_of": {host: number for number, batch in enumerate(ring.batches) for host in _machines(batch)},
            }
            last.update(dict.fromkeys(part, index))
        if plan.left_out:
            named = [f"{host} ({why})" for host, why in sorted(plan.left_out.items())]
            say(f"  left out: {few(named, MAX_NAMED)}")
        return {"order": [ring.name for ring in plan.rings], "rings": rings, "last": last}

    def step_ring(self) -> dict[str, Any]:
        state = self._run.ring_begins(self.arguments["ring"])
        known = {"passed": ": passed before", "failed": ": failed before, its roll-back is due"}
        say(f"  ring {self.arguments['ring']}{known.get(state, '')}")
        return {"state": state}

    def step_batch(self) -> dict[str, Any]:
        run, ring, index = self._run, self.arguments["ring"], self.arguments["batch"]
        reason = run.batch_begins(ring, index)
        plan = run.ring(ring)
        say(
            f"    batch {index + 1} of {len(plan.batches)}: "
            + (f"held back: {reason}" if reason else f"changing {len(plan.batches[index])} host(s)")
        )
        return {"go": not reason}

    def step_bake(self) -> dict[str, Any]:
        run, ring = self._run, self.arguments["ring"]
        total = float(run.ring(ring).bake)
        if run.hindrance(ring, run.ring(ring).hosts):
            say("    a change failed: no bake")
            return {"baked": 0}
        end = time.monotonic() + total
        while (left := end - time.monotonic()) > 0:
            say(f"    baking, {left:.0f} of {total:.0f} s to go")
            time.sleep(min(_TICK, left))
        return {"baked": total}

    def step_gate(self) -> dict[str, Any]:
        run, ring = self._run, self.arguments["ring"]
        verdict = run.judge(ring)
        more = [f"and {len(verdict.reasons) - MAX_NAMED} more, all in the report"] if len(verdict.reasons) > MAX_NAMED else []
        say(f"    gate: {verdict.status}", *(f"      {reason}" for reason in (*verdict.reasons[:MAX_NAMED], *more)))
        back = run.to_roll_back(ring) if verdict.status == gates.FAIL else []
        if back:
            say(f"    rolling {len(back)} host(s) back to {bundle.label(run.facts['previous_digest'])}")
        reasons = list(verdict.reasons[:MAX_NAMED])
        return {"verdict": verdict.status, "reasons": reasons, "back": dict.fromkeys(_machines(back), True)}

    def step_conclude(self) -> dict[str, Any]:
        run, ring = self._run, self.arguments["ring"]
        verdict = run.verdict(ring)
        if verdict.status == gates.PASS:
            run.ring_passed(ring)
            return {"verdict": verdict.status}
        reason = verdict.reasons[0] if verdict.reasons else "no reason given"
        stuck = run.ring_failed(ring, verdict.status, reason)
        if verdict.status == gates.INCONCLUSIVE:
            raise AnsibleActionFail(
                f"halted at ring {ring}: the gate is inconclusive: {reason}. Mend that and run again: it goes on at this ring."
            )
        where = f"; NOT back: {few(stuck, MAX_NAMED)}" if stuck else "; every changed host is back on the previous bundle"
        raise AnsibleActionFail(f"halted at ring {ring}: {reason}{where}")

    def step_finish(self) -> dict[str, Any]:
        run = self._run
        run.finish()
        say(f"  {run.environment.name} runs {bundle.label(run.facts['digest'])}")
        return {}

    def step_end(self) -> dict[str, Any]:
        run = self._run
        run.release()
        if not run.has_begun:
            say("  not begun: nothing was changed")
            return {"report": "", "outcome": "not begun"}
        page, data = report.write(run, self.arguments["report_dir"])
        say(f"  {data['outcome']}; report: {page}")
        return {"report": str(page), "outcome": data["outcome"]}


def _controller() -> int:
    """The process that runs the playbook, which this one was forked from. Raises AnsibleActionFail when it has ended.

    A worker that outlived it for a moment would take the lock in the name of process 1, which never ends.
    """
    parent = os.getppid()
    try:
        lives = Path(f"/proc/{parent}/exe").samefile("/proc/self/exe")
    except OSError:
        lives = False
    if not lives:
        raise AnsibleActionFail("the process that ran this playbook has ended: nothing was begun; run it again")
    return parent


def _machines(members: Iterable[str]) -> list[str]:
    """The inventory hosts through which these members are changed."""
    return list(dict.fromkeys(map(cluster_of, members)))
