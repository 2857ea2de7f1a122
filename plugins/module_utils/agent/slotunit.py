# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""What the units of a slot run beside the agent: ``heal`` before a start, ``ready`` after it, ``alarm`` when it has failed.

Copied to hosts with what it imports, and run there by python3 alone.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
import time
from typing import Any, Dict, List, Mapping, Optional, Sequence

from ansible_collections.apiary.tetragon.plugins.module_utils.agent.pins import PinDirectory
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.policyset import PolicySet, sync_directory
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.process import agent_pid, read_text
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.slots import policy_files, policy_key, said_mode
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.tetra import Key, LoadedPolicy, Tetra, TetraError

BPFFS, ETC, RUN, RELEASES, STATE = "/sys/fs/bpf", "/etc/apiary/slots", "/run/apiary", "/opt/apiary/tetragon", "/var/lib/apiary"
POINTER = "/etc/systemd/system/apiary-tetragon.service"
_ALERT, _NOTICE = "<1>", "<5>"  # levels of the journal
_POLL_SECONDS = 0.3
_OUTSIDE = "/proc/1/root"  # the unit's own /run/tetragon is its slot's run directory


class NotReady(Exception):
    """The agent does not run what it is to run."""


class Slot:
    """One slot, as far as its unit needs it."""

    def __init__(self, name: str, root: str = "") -> None:
        self.name = name
        self.pins = PinDirectory("{0}{1}/apiary-{2}".format(root, BPFFS, name))
        self.policies = PolicySet("{0}{1}/{2}/policies".format(root, ETC, name))
        self.pid_file = "{0}{1}/{2}/tetragon.pid".format(root, RUN, name)
        self.alarm_file = "{0}{1}/alarm-{2}.json".format(root, STATE, name)
        self._root = root

    @property
    def version(self) -> str:
        return read_text("{0}{1}/{2}/version".format(self._root, ETC, self.name)).strip()

    @property
    def tetra(self) -> Tetra:
        program = "{0}{1}/{2}/bin/tetra".format(self._root, RELEASES, self.version)
        return Tetra(program, "unix://{0}{1}/{2}/tetragon.sock".format(self._root, RUN, self.name), 60)

    def alarm(self) -> Optional[Dict[str, Any]]:
        """The alarm that was raised and not taken back; None when there is none."""
        try:
            with open(self.alarm_file, encoding="utf-8") as file:
                found: Dict[str, Any] = json.load(file)
                return found
        except (OSError, ValueError):
            return None


def runs(slot: Slot) -> bool:
    """Whether the slot's agent runs: a number in a pid file may by now be another program's."""
    pid = agent_pid(slot.pid_file)
    return pid is not None and "tetragon" in read_text("/proc/{0}/cmdline".format(pid))


def heal(slot: Slot) -> str:
    """Undo what a start that did not finish did to kept pins. Returns what was done; empty when nothing was to do.

    Such a start leaves the good pins in ``<dir>_old`` and a part of a new set in ``<dir>``; the next start would delete the
    good ones (measured). A number in the pid file that is another program's would keep the agent from starting.
    """
    if runs(slot):
        return ""
    if os.path.exists(slot.pid_file):
        os.unlink(slot.pid_file)
    return _put_back(slot)


def _put_back(slot: Slot) -> str:
    """One at a time: whoever restarts a unit that is about to fail gets its alarm and its next start at the same moment (seen)."""
    if not slot.pins.leftover:
        return ""
    folder = os.open(os.path.dirname(slot.pins.path), os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        old = slot.pins.leftover
        if not old or runs(slot):
            return ""
        shutil.rmtree(slot.pins.path, ignore_errors=True)
        os.rename(old, slot.pins.path)
    finally:
        os.close(folder)
    return "{0} put back to {1}: the start before this one did not finish".format(old, slot.pins.path)


def expected(files: Mapping[str, str]) -> Dict[Key, str]:
    """Key -> mode of the policies that the agent loads when it starts; an empty mode for a file that says none, as others write them."""
    keys = {policy_key(text): said_mode(text) for text in files.values()}
    return {key: mode for key, mode in keys.items() if key is not None}


def missing(wanted: Dict[Key, str], listed: Sequence[LoadedPolicy], leftover: str) -> List[str]:
    """What is not yet as it is to be, in words; empty when the slot is ready."""
    by_key = {policy.key: policy for policy in listed}
    found = []
    for key, mode in sorted(wanted.items()):
        policy = by_key.get(key)
        if policy is None:
            found.append("{0} is not loaded".format(key[1]))
        elif policy.state != "enabled":
            found.append("{0} is {1}".format(key[1], policy.state))
        elif mode and policy.mode not in ((mode, "monitor_only") if mode == "monitor" else (mode,)):
            found.append("{0} is in mode {1}, not {2}".format(key[1], policy.mode, mode))
    if leftover:
        found.append("{0} is still there".format(leftover))
    return found


def lead_here(slot: Slot, root: str = "") -> None:
    """Let a person's client find this agent, if it is the one that boots: /run is empty after every boot."""
    try:
        if os.path.basename(os.readlink(root + POINTER)) != "apiary-tetragon-{0}.service".format(slot.name):
            return
    except OSError:
        return
    os.makedirs(root + "/run/tetragon", exist_ok=True)
    for name in ("tetragon-info.json", "tetragon.sock"):
        path, temporary = "{0}/run/tetragon/{1}".format(root, name), "{0}/run/tetragon/.{1}".format(root, name)
        if os.path.lexists(temporary):
            os.unlink(temporary)
        os.symlink("{0}/{1}/{2}".format(RUN, slot.name, name), temporary)
        os.replace(temporary, path)


def wait_ready(slot: Slot, seconds: float, pid: Optional[int]) -> None:
    """Return when every policy of the policy directory is enabled in its mode. Raises NotReady when the agent ends or time runs out."""
    wanted, deadline = expected(policy_files(slot.policies.policy_dir)), time.monotonic() + seconds
    while True:
        try:
            lacking = missing(wanted, slot.tetra.policies(), slot.pins.leftover)
        except TetraError as error:
            lacking = [str(error)]
        if not lacking:
            return
        if pid is not None and not os.path.isdir("/proc/{0}".format(pid)):
            raise NotReady("the agent ended before it was ready; its own lines say why")
        if time.monotonic() > deadline:
            raise NotReady("not ready after {0} seconds: {1}".format(int(seconds), "; ".join(lacking)))
        time.sleep(_POLL_SECONDS)


def raise_alarm(slot: Slot) -> str:
    """Leave a mark that observations report, until a start succeeds. Returns the line for the journal.

    The last failing start left its part of a set enforcing beside the good one; two copies deny what neither of them means.
    """
    _put_back(slot)
    kept = slot.pins.policies()
    mark = {"slot": slot.name, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "kept": kept}
    os.makedirs(os.path.dirname(slot.alarm_file), mode=0o700, exist_ok=True)
    temporary = slot.alarm_file + ".new"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(mark, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, slot.alarm_file)
    sync_directory(os.path.dirname(slot.alarm_file))
    held = "kept in the kernel without an agent: {0}".format(", ".join(kept)) if kept else "NOTHING IS ENFORCED by it"
    return "Tetragon in slot {0} does not start and is given up ({1}). See journalctl -u apiary-tetragon-{0}".format(slot.name, held)


def main(arguments: Sequence[str]) -> int:
    """``heal SLOT``, ``ready SLOT SECONDS``, ``alarm SLOT``."""
    what, slot = arguments[0], Slot(arguments[1])
    if what == "heal":
        done = heal(slot)
        if done:
            sys.stdout.write("{0}{1}\n".format(_NOTICE, done))
    elif what == "ready":
        text = os.environ.get("MAINPID", "")
        try:
            wait_ready(slot, float(arguments[2]), int(text) if text.isdigit() else None)
        except NotReady as error:
            sys.stderr.write("{0}{1}\n".format(_ALERT, error))
            return 1
        if os.path.exists(slot.alarm_file):
            os.unlink(slot.alarm_file)
        lead_here(slot, _OUTSIDE)
    elif what == "alarm":
        sys.stdout.write("{0}{1}\n".format(_ALERT, raise_alarm(slot)))
    else:
        sys.stderr.write("no such thing to do: {0}\n".format(what))
        return 2
    return 0
