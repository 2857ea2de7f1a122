# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""What the installation does when a host's own programs do not answer."""

from __future__ import annotations

import subprocess

import pytest

from ansible_collections.apiary.tetragon.plugins.module_utils.agent import install


def test_a_program_that_hangs_does_not_keep_a_failed_start_from_being_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], **options: float) -> None:
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(install.InstallError, match=r"systemctl daemon-reload: .*timed out"):
        install.systemctl("daemon-reload")
    assert install._command("systemctl", "stop", "apiary-tetragon-a.service") == ""
