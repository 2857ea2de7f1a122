# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""A local connection to a host that can be lost while its policies change."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.connection.local import Connection as Local

DOCUMENTATION = """
name: losable
short_description: local, until the host is lost
description:
  - A file C(HOST.armed) in the directory $LOSABLE holds the path of the host's state file. The first change of its policies then
    dies once it is under way, and C(HOST.lost) takes the file's place. As long as that is there the host cannot be reached.
author: Apiary contributors
options:
  become_success_timeout:
    description: As with local.
    type: int
    default: 10
  become_strip_preamble:
    description: As with local.
    type: bool
    default: true
extends_documentation_fragment: connection_pipelining
"""


class Connection(Local):  # type: ignore[misc]
    """Local, but for what the files in $LOSABLE say."""

    transport = "losable"

    def _file(self, kind: str) -> Path:
        return Path(os.environ["LOSABLE"], f"{self._play_context.remote_addr}.{kind}")

    def _connect(self) -> Any:
        if self._file("lost").exists():
            raise AnsibleConnectionFailure("the host is lost")
        return super()._connect()

    def exec_command(self, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> tuple[int, bytes, bytes]:
        self._connect()
        armed = self._file("armed")
        if "AnsiballZ_policies" not in cmd or "chmod" in cmd or not armed.exists():
            done: tuple[int, bytes, bytes] = super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
            return done
        state = Path(armed.read_text(encoding="utf-8"))
        change = subprocess.Popen(cmd, shell=True, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while change.poll() is None and not (state.exists() and json.loads(state.read_text(encoding="utf-8"))["pending"]):
            time.sleep(0.002)
        os.killpg(change.pid, signal.SIGKILL)
        change.wait()
        armed.rename(self._file("lost"))
        raise AnsibleConnectionFailure("the host is lost")
