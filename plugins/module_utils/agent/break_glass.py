# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Break-glass: take policies out of enforcement on this host, without agent, controller or network, and keep them out.

In force at once: the mode in the pinned maps, which the kernel's programs read at every call. Over restart and reboot: the mode in
the policy files. Against the next converge run: a record, which it heeds until it is told to lift it. The files come last to be
needed and the record first to be written, so that whatever ends this program half-way, doing it again finishes it.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from ansible_collections.apiary.tetragon.plugins.module_utils.agent import bpf
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.pins import PinDirectory
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.policyset import sync_directory
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.slots import SLOTS, Layout, policy_files, policy_key, with_mode
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.state import write_json

ALL = "*"
_USAGE = """usage: break-glass off POLICY... | off --all | status
off: the named policies (with or without their revision), or all, stop enforcing now and after every restart and reboot.
They go on when a converge run is told to lift it: apiary_break_glass_lift=true.
"""


def record_file(state: str) -> str:
    return os.path.join(state, "break-glass.json")


def record(state: str) -> Optional[Dict[str, Any]]:
    """What is held out of enforcement here: ``policies`` and ``time``; None for nothing. A damaged record holds everything."""
    try:
        with open(record_file(state), encoding="utf-8") as file:
            found = json.load(file)
        return {"policies": [str(one) for one in found["policies"]], "time": str(found["time"])}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return {"policies": [ALL], "time": "unknown: {0} is damaged".format(record_file(state))}


def names(policies: Sequence[str], loaded: str) -> bool:
    """Whether a list of names, with or without revisions, covers a loaded policy."""
    return ALL in policies or loaded in policies or loaded.rpartition("-")[0] in policies


def pinned(layout: Layout, policies: Sequence[str]) -> Iterator[Tuple[str, str]]:
    """(loaded name, path of its mode) of every pinned policy that is covered, in whichever agent's directory."""
    root = layout.inside("/sys/fs/bpf")
    for directory in sorted(os.listdir(root)) if os.path.isdir(root) else ():
        pins = PinDirectory(os.path.join(root, directory))
        for folder in pins.policies():
            path = os.path.join(pins.path, folder, "policy_conf")
            name = folder.rpartition(":")[2]
            if names(policies, name) and os.path.exists(path):
                yield name, path


def off(layout: Layout, policies: Sequence[str]) -> List[str]:
    """Take policies out of enforcement; returns what was done. Raises OSError, and then doing it again is safe."""
    held = record(layout.state)
    whole = sorted(set(policies) | set(held["policies"] if held else ()))
    write_json(record_file(layout.state), {"policies": whole, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())})
    done = []
    for name, path in pinned(layout, policies):
        if bpf.mode_of(path) == "enforce":
            bpf.set_modes([(path, "monitor")])
            done.append("{0}: does not enforce any more ({1})".format(name, path))
    for directory in [os.path.join(layout.home(slot), "policies") for slot in SLOTS] + [layout.inside("/etc/tetragon/tetragon.tp.d")]:
        for name, text in policy_files(directory).items():
            key = policy_key(text)
            if key is None or not names(policies, key[1]):
                continue
            path, eased = os.path.join(directory, name), with_mode(text, "monitor")
            if eased is None:
                _set_aside(layout, path)
                done.append("{0}: its file has no mode and was moved aside ({1})".format(key[1], path))
            elif eased != text:
                _replace(path, eased, os.path.join(os.path.dirname(directory), ".apiary-break-glass"))
                done.append("{0}: loads in monitor ({1})".format(key[1], path))
    return done


def lift(state: str) -> None:
    """Forget the record."""
    if os.path.exists(record_file(state)):
        os.unlink(record_file(state))
        sync_directory(state)


def _set_aside(layout: Layout, path: str) -> None:
    folder = os.path.join(layout.state, "break-glass")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    shutil.move(path, os.path.join(folder, os.path.basename(path)))
    sync_directory(os.path.dirname(path))


def _replace(path: str, text: str, work: str) -> None:
    """Replace a file's content in one rename from ``work``, which lies outside: an agent takes every file in there for a policy."""
    with open(os.open(work, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(work, path)
    sync_directory(os.path.dirname(path))


def main(arguments: Sequence[str], layout: Optional[Layout] = None) -> int:
    """``off POLICY...``, ``off --all``, ``status``."""
    layout = layout or Layout()
    if arguments[:1] == ["status"] and len(arguments) == 1:
        held = record(layout.state)
        told = "NOT ENFORCING since {0}: {1}".format(held["time"], ", ".join(held["policies"])) if held else "nothing is held"
        sys.stdout.write(told + "\n")
        return 0
    if arguments[:1] != ["off"] or len(arguments) < 2:
        sys.stderr.write(_USAGE)
        return 2
    wanted = [ALL] if "--all" in arguments else list(arguments[1:])
    if not any(True for _one in pinned(layout, wanted)) and wanted != [ALL]:
        there = sorted({name for name, _path in pinned(layout, [ALL])})
        sys.stderr.write("break-glass: no such policy here; pinned: {0}\n".format(", ".join(there) or "none"))
        return 1
    try:
        for line in off(layout, wanted):
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
    except OSError as error:
        sys.stderr.write("break-glass: {0}; do it again\n".format(error))
        return 1
    return 0
