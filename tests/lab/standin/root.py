# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Where a host lies: its root directory."""

from __future__ import annotations

import json
import os
from typing import Any


class Root:
    """The directory that stands for ``/`` of one host; ``$STANDIN_ROOT``, or ``/`` itself."""

    def __init__(self, prefix: str | None = None) -> None:
        self.prefix = (os.environ.get("STANDIN_ROOT", "/") if prefix is None else prefix).rstrip("/")

    def path(self, path: str) -> str:
        """An absolute path of the host as one of this machine; a path that is already below the root stays as it is."""
        inside = not self.prefix or path.startswith(self.prefix + "/")
        return path if inside or not path.startswith("/") else self.prefix + path

    def address(self, address: str) -> str:
        scheme, found, path = address.partition("unix://")
        return scheme + found + self.path(path) if found else address

    def settings(self) -> dict[str, Any]:
        """The host's ``/etc/standin.json``: how the stand-in is to misbehave (see ``faults``); empty without one."""
        try:
            with open(self.path("/etc/standin.json"), encoding="utf-8") as file:
                found: dict[str, Any] = json.load(file)
                return found
        except (FileNotFoundError, NotADirectoryError):
            return {}
