# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""What the last run left on this host: which policies are ours, from which bundle, and whether it finished."""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Dict, FrozenSet, Iterator, Mapping

from ansible_collections.apiary.tetragon.plugins.module_utils.agent.binaries import Binaries, Binary
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.policyset import sync_directory
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.tetra import Key


class Busy(Exception):
    """Another run is changing this host's policies."""


@dataclass(frozen=True)
class State:
    """``pending`` is set before the first change and cleared after the last.

    ``binaries`` are the files that uprobes were loaded on, during the run of the agent named by ``life``. ``triggers``: acts
    that policies forbid when they enforce, as bundles have them.
    """

    bundle: str = ""
    pending: bool = False
    policies: FrozenSet[Key] = frozenset()
    binaries: Binaries = field(default_factory=dict)
    life: str = ""
    triggers: Mapping[Key, Mapping[str, Any]] = field(default_factory=dict)


def write_json(path: str, document: object) -> None:
    """Replace a file, so that it is whole and on disk after a power cut. Raises OSError, and then nothing is left of it."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    temporary = path + ".new"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(json.dumps(document, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_directory(os.path.dirname(path))
    except OSError:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


class StateFile:
    """``<directory>/policies.json``, replaced atomically."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.path = os.path.join(directory, "policies.json")

    def read(self) -> State:
        """The recorded state; an empty one when there is no file. Raises ValueError for a file that is not ours."""
        try:
            with open(self.path, encoding="utf-8") as file:
                raw = json.load(file)
            policies = {(one["namespace"], one["name"]): one for one in raw["policies"]}
            files = {key: one.get("binaries", ()) for key, one in policies.items()}
            binaries = {key: tuple(Binary(**file) for file in some) for key, some in files.items() if some}
            triggers = {key: dict(one["trigger"]) for key, one in policies.items() if "trigger" in one}
            return State(raw["bundle"], raw["pending"], frozenset(policies), binaries, raw.get("agent", ""), triggers)
        except FileNotFoundError:
            return State()
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError("{0} is damaged ({1}): remove it and run again".format(self.path, error)) from None

    def write(self, state: State) -> None:
        policies = []
        for key in sorted(state.policies):
            entry: Dict[str, Any] = {"namespace": key[0], "name": key[1]}
            if state.binaries.get(key):
                entry["binaries"] = [asdict(one) for one in state.binaries[key]]
            if state.triggers.get(key):
                entry["trigger"] = state.triggers[key]
            policies.append(entry)
        document = {"bundle": state.bundle, "pending": state.pending, "policies": policies}
        write_json(self.path, {**document, "agent": state.life} if state.binaries else document)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold this host for one run. Raises Busy when another one has it."""
        os.makedirs(self.directory, mode=0o700, exist_ok=True)
        with open(os.path.join(self.directory, "lock"), "a", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise Busy("another run is changing the policies of this host: wait for it to end") from None
            yield
