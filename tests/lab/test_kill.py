# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""A run on a host is killed before every single thing it does, and nothing is lost."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from ansible_collections.apiary.tetragon.plugins.module_utils.agent import bpf
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.converge import Host, converge
from enforcing import KILL, LSM, deny
from standin.host import LabHost
from standin.kernel import Caller

BEFORE = [deny("1"), KILL, LSM]
AFTER = [deny("2", "/more"), KILL, LSM]
DENIED = {"/secret": "denied", "/kill": "killed", "/lsm": "denied"}
OWN = """
apiVersion: cilium.io/v1alpha1
kind: TracingPolicy
metadata: {name: own}
spec: {kprobes: [{call: sys_mount}]}
"""


def killed_before(step: int, target: Host, run: Callable[[], Any]) -> bool:
    """Run in a child that dies by SIGKILL before its ``step``-th operation; says whether it got that far."""
    child = os.fork()
    if child == 0:
        left = step

        def counted(operation: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **named: Any) -> Any:
                nonlocal left
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return operation(*arguments, **named)

            return call

        target.tetra.call = counted(target.tetra.call)  # type: ignore[method-assign]
        for part, names in ((target.files, ("stage", "swap", "discard")), (target.state, ("write",))):
            for name in names:
                setattr(part, name, counted(getattr(part, name)))
        for name in ("set_modes", "purge_stale"):
            setattr(bpf, name, counted(getattr(bpf, name)))
        run()
        os._exit(0)
    _pid, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def forbidden(host: LabHost) -> dict[str, str]:
    """How forbidden acts end, each by a thread of its own."""
    threads = itertools.count(1)
    return {path: host.kernel.act("open", path, caller=Caller(pid=4000, tid=next(threads))).result for path in DENIED}


@pytest.mark.parametrize("onward", [True, False], ids=["and goes on", "and goes back"])
def test_a_run_that_is_killed_anywhere_loses_nothing(host: LabHost, target: Host, onward: bool) -> None:
    host.add(OWN)
    step = 1
    while True:
        converge(target, BEFORE, "bundle-1")
        killed = killed_before(step, target, lambda: converge(target, AFTER, "bundle-2"))
        if not killed:
            break
        assert forbidden(host) == DENIED, step
        if step % 3 == 0:
            host.stop(signal.SIGKILL)
            host.start()
            assert forbidden(host) == DENIED, step
        wanted, bundle = (AFTER, "bundle-2") if onward else (BEFORE, "bundle-1")
        converge(target, wanted, bundle)
        modes = {name: one["mode"] for name, one in host.listed().items() if name != "own"}
        assert modes == dict.fromkeys((policy.name for policy in wanted), "TP_MODE_ENFORCE"), step
        assert forbidden(host) == DENIED, step
        assert [path.name for path in host.policies.iterdir()] == ["apiary"], step
        assert (target.state.read().pending, target.state.read().bundle) == (False, bundle), step
        assert not converge(target, wanted, bundle).changed
        step += 1
    assert step > 12
