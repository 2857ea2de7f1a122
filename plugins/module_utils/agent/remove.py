# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Take everything of the agent off a host, and prove that nothing is left."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from typing import Any, List

from ansible_collections.apiary.tetragon.plugins.module_utils.agent import drill
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.process import read_text
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.slots import SLOTS, Layout
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.units import alarm_name

_ADOPTED = "/var/lib/apiary/adopted"
_FILES = (
    "/opt/apiary",
    "/etc/apiary",
    "/run/apiary",
    "/run/tetragon",
    "/etc/tmpfiles.d/apiary.conf",
    "/etc/systemd/system/apiary-tetragon.service",
    "/etc/systemd/system/multi-user.target.wants/apiary-tetragon.service",
    "/etc/systemd/system/apiary-tetragon-alarm@.service",
    "/etc/systemd/system/" + drill.UNIT,
    "/etc/systemd/system/multi-user.target.wants/" + drill.UNIT,
    *("/etc/systemd/system/apiary-tetragon-{0}.service{1}".format(slot, tail) for slot in SLOTS for tail in ("", ".d")),
)
# What systemd makes by itself around the alarm's instances.
_ALARM_SLICE = "system-apiary\\x2dtetragon\\x2dalarm.slice"
_CLIENT, _LOGS, _STATE = "/usr/local/bin/tetra", "/var/log/tetragon", "/var/lib/apiary"


def bpf_directories(layout: Layout) -> List[str]:
    """Every pin directory that an agent of ours, or one that was adopted, can have used and that is there."""
    names = {"apiary-" + slot for slot in SLOTS}
    for source in (_ADOPTED + "/tetragon.conf.d/bpf-dir", "/etc/tetragon/tetragon.conf.d/bpf-dir"):
        names.add(os.path.basename(read_text(layout.inside(source)).strip()))
    if os.path.isdir(layout.inside(_ADOPTED)):
        names.add("tetragon")
    root = layout.inside("/sys/fs/bpf")
    paths = [os.path.join(root, name + tail) for name in sorted(names - {""}) for tail in ("", "_old")]
    return [path for path in paths if os.path.isdir(path)]


def present(layout: Layout, keep_logs: bool) -> List[str]:
    """What of the agent is on this host: files, links, pin directories, mounts."""
    paths = [*_FILES, _STATE, *([] if keep_logs else [_LOGS])]
    found = [path for path in paths if os.path.lexists(layout.inside(path))]
    client = layout.inside(_CLIENT)
    if os.path.islink(client) and "/opt/apiary/" in os.readlink(client):
        found.append(_CLIENT)
    return found + bpf_directories(layout) + mounts(layout)


def mounts(layout: Layout) -> List[str]:
    """Mount points below the agents' run directories, the deepest first."""
    points = re.findall(r"^\S+ (\S+)", read_text("/proc/self/mounts"), re.MULTILINE)
    ours = (layout.inside("/run/tetragon"), layout.inside("/run/apiary"))
    return sorted((point for point in points if point.startswith(ours)), reverse=True)


def remove(layout: Layout, services: Any, keep_logs: bool = False) -> List[str]:
    """Remove it all; returns what was there. Raises OSError, naming what is left, when something stays."""
    found = present(layout, keep_logs)
    for slot in SLOTS:
        unit = layout.unit(slot)
        if services.running(unit) or layout.slot(slot).pid is not None:
            services.stop(unit)
    if services.running(_ALARM_SLICE):
        services.stop(_ALARM_SLICE)
    if os.path.exists(os.path.join(layout.units, drill.UNIT)):
        services.stop(drill.UNIT)
    directories = bpf_directories(layout)
    for path in directories:
        shutil.rmtree(path)
    for point in mounts(layout):
        subprocess.run(["umount", point], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    for path in found:
        whole = layout.inside(path) if path.startswith(("/opt", "/etc", "/usr", "/var", "/run")) else path
        if os.path.isdir(whole) and not os.path.islink(whole):
            shutil.rmtree(whole)
        elif os.path.lexists(whole):
            os.unlink(whole)
    services.reload()
    for slot in SLOTS:
        services.forget(alarm_name(slot))  # one that was raised while its program went
    left = present(layout, keep_logs) + [path for path in directories if os.path.isdir(path)] + _running(layout)
    if left:
        raise OSError("still there after the removal: {0}".format(", ".join(sorted(set(left)))))
    return found


def _running(layout: Layout) -> List[str]:
    """Processes that run a program of the removed versions."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and layout.inside("/opt/apiary/tetragon/") in read_text("/proc/{0}/cmdline".format(name)):
            found.append("process {0}".format(name))
    return found
