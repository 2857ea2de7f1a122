# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
import subprocess

import pytest
from ansible.errors import AnsibleActionFail

from ansible_collections.apiary.tetragon.plugins.action.rollout import _controller


def test_the_lock_is_taken_in_the_name_of_the_process_that_runs_the_playbook(monkeypatch):
    monkeypatch.setattr(os, "getppid", os.getpid)
    assert _controller() == os.getpid()


def test_a_worker_that_outlived_its_controller_takes_no_lock(monkeypatch):
    with subprocess.Popen(["sleep", "60"]) as adopter:  # whom orphans are given to
        monkeypatch.setattr(os, "getppid", lambda: adopter.pid)
        try:
            with pytest.raises(AnsibleActionFail, match="has ended: nothing was begun"):
                _controller()
        finally:
            adopter.kill()
    with pytest.raises(AnsibleActionFail, match="has ended: nothing was begun"):  # and it is gone
        _controller()
