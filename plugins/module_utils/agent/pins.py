# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The agent's pin directory: what of a policy stays in the kernel when the agent is gone.

Layout of v1.7: ``<dir>/<policy>/policy_conf`` and ``<dir>/<policy>/<sensor>/<hook>/{prog, link, prog_override,
link_override, override_tasks, ...}``; a namespaced policy's folder is ``<namespace>:<name>``.
"""

from __future__ import annotations

import os
from typing import Any, Dict, List

from ansible_collections.apiary.tetragon.plugins.module_utils.agent.process import read_text
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.tetra import Key

_BASE = "__base__"


class PinDirectory:
    """Read access to one agent's pins, such as ``/sys/fs/bpf/tetragon``."""

    def __init__(self, path: str) -> None:
        self.path = path.rstrip("/")

    @property
    def present(self) -> bool:
        return os.path.isdir(self.path)

    @property
    def are_maps(self) -> bool:
        """Whether a BPF file system holds the directory: an agent without one (a stand-in) has files in the place of maps."""
        points = [fields[1] for fields in map(str.split, read_text("/proc/self/mounts").splitlines()) if fields[2] == "bpf"]
        return any(os.path.realpath(self.path).startswith(point + "/") for point in points)

    @property
    def leftover(self) -> str:
        """``<dir>_old`` if it exists. After a good start it must not: it is enforcement that nobody lists."""
        old = self.path + "_old"
        return old if os.path.isdir(old) else ""

    def folder(self, key: Key) -> str:
        name = "{0}:{1}".format(*key) if key[0] else key[1]
        return os.path.join(self.path, name.replace("/", "_"))

    def policy_conf(self, key: Key) -> str:
        return os.path.join(self.folder(key), "policy_conf")

    def override_tasks(self, key: Key) -> List[str]:
        """The maps in which enforcing Override programs of a policy pass their verdict on."""
        return sorted(
            os.path.join(place, "override_tasks") for place, _dirs, files in os.walk(self.folder(key)) if "override_tasks" in files
        )

    def hooks(self, key: Key) -> Dict[str, Dict[str, Any]]:
        """Per hook folder of a policy: names of pinned programs and links."""
        found = {}
        root = self.folder(key)
        for place, _dirs, files in os.walk(root):
            programs = sorted(name for name in files if name.startswith("prog"))
            if programs:
                links = sorted(name for name in files if name.startswith("link"))
                found[os.path.relpath(place, root)] = {"programs": programs, "links": links}
        return found

    def policies(self) -> List[str]:
        """Folder names of all policies with pins."""
        try:
            return sorted(entry.name for entry in os.scandir(self.path) if entry.is_dir() and entry.name != _BASE)
        except OSError:
            return []
