# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""What becomes of a run when a host's own programs do not answer."""

from __future__ import annotations

import subprocess

import pytest

from ansible_collections.apiary.tetragon.plugins.module_utils.agent import systemd


def test_a_program_that_hangs_does_not_keep_a_failed_start_from_being_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], **options: float) -> None:
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(systemd.ServiceError, match=r"systemctl daemon-reload: .*timed out"):
        systemd.run("systemctl", "daemon-reload")
    assert systemd.attempt("systemctl", "stop", "apiary-tetragon-a.service") == ""


def test_a_call_that_fails_is_told_in_the_programs_words() -> None:
    with pytest.raises(systemd.ServiceError, match=r"^sh -c echo no room >&2; exit 3: no room$"):
        systemd.run("sh", "-c", "echo no room >&2; exit 3")
