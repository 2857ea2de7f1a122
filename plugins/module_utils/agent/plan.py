# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""What has to change on a host, as a pure function of what is wanted and what the agent lists."""

from __future__ import annotations

from dataclasses import dataclass
from typing import AbstractSet, Any, Container, Dict, List, Mapping, Optional, Sequence, Tuple

from ansible_collections.apiary.tetragon.plugins.module_utils.agent.tetra import Key, LoadedPolicy

USABLE = ("enabled", "loading")


@dataclass(frozen=True)
class Wanted:
    """One policy that the host is to run. ``early`` ones have links that the agent does not pin: they load first.

    ``binaries``: paths of the programs and libraries that its uprobes sit in. ``trigger``: a harmless act that it forbids.
    """

    name: str
    mode: str
    text: str
    namespace: str = ""
    early: bool = False
    overrides: Tuple[str, ...] = ()
    binaries: Tuple[str, ...] = ()
    trigger: Optional[Mapping[str, Any]] = None

    @property
    def key(self) -> Key:
        return (self.namespace, self.name)

    @property
    def file(self) -> str:
        """File name in the policy directory, which the agent loads in order of name."""
        return "{0}-{1}.yaml".format(0 if self.early else 1, ".".join(part for part in self.key if part))

    @staticmethod
    def from_bundle(raw: Mapping[str, Any]) -> Wanted:
        """A policy as a bundle describes it."""
        return Wanted(
            name=raw["loaded"],
            mode=raw["mode"],
            text=raw["text"],
            namespace=raw.get("namespace") or "",
            early=bool(raw.get("unpinned")),
            overrides=tuple(raw.get("overrides") or ()),
            binaries=tuple(raw.get("binaries") or ()),
            trigger=raw.get("trigger") or None,
        )


@dataclass(frozen=True)
class Plan:
    """Steps in the order in which they must happen.

    ``clear``: entries that do not work, deleted before the same name is added. ``add``: loaded beside what runs, in
    monitor. ``flip``: modes, all set in one process, new to enforce before old to monitor. ``remove``: deleted last.
    ``write``: the policy directory does not hold exactly the wanted set.
    """

    clear: Tuple[Key, ...]
    add: Tuple[Wanted, ...]
    flip: Tuple[Tuple[Key, str], ...]
    remove: Tuple[Key, ...]
    write: bool

    @property
    def empty(self) -> bool:
        return not (self.clear or self.add or self.flip or self.remove or self.write)


def mode_fits(wanted: str, actual: str) -> bool:
    """Whether the mode that the agent lists is the one wanted; a policy without enforcing actions only monitors."""
    return actual == wanted or (wanted == "monitor" and actual == "monitor_only")


def plan(
    wanted: Sequence[Wanted],
    loaded: Sequence[LoadedPolicy],
    managed: AbstractSet[Key],
    files: Mapping[str, str],
    replaced: Container[Key] = (),
) -> Plan:
    """Compare. ``managed`` are the names that a former run loaded; whatever is neither managed nor wanted is not touched.

    ``replaced``: policies whose uprobes sit in a file that was replaced. No name can be loaded twice, so these go first
    and come back: nothing is lost by that, since in the new file they enforce nothing.
    """
    by_key: Dict[Key, LoadedPolicy] = {policy.key: policy for policy in loaded}
    keys = {policy.key for policy in wanted}
    usable = {key for key, policy in by_key.items() if policy.state in USABLE and key not in replaced}
    kept = [policy for policy in wanted if policy.key in usable]
    kept_keys = {policy.key for policy in kept}
    add = sorted((policy for policy in wanted if policy.key not in kept_keys), key=lambda policy: policy.file)
    remove = sorted(key for key in managed if key in by_key and key not in keys)
    to_enforce: List[Tuple[Key, str]] = [(policy.key, "enforce") for policy in add if policy.mode == "enforce"]
    to_monitor: List[Tuple[Key, str]] = []
    for policy in kept:
        if not mode_fits(policy.mode, by_key[policy.key].mode):
            (to_enforce if policy.mode == "enforce" else to_monitor).append((policy.key, policy.mode))
    to_monitor += [(key, "monitor") for key in remove if by_key[key].enforces]
    return Plan(
        clear=tuple(policy.key for policy in add if policy.key in by_key),
        add=tuple(add),
        flip=tuple(to_enforce + to_monitor),
        remove=tuple(remove),
        write=dict(files) != wanted_files(wanted),
    )


def wanted_files(wanted: Sequence[Wanted]) -> Dict[str, str]:
    """The policy directory's content for a set of policies."""
    return {policy.file: policy.text for policy in wanted}


def mismatches(wanted: Sequence[Wanted], loaded: Sequence[LoadedPolicy]) -> List[str]:
    """Every way in which the agent does not run what is wanted, in words."""
    by_key = {policy.key: policy for policy in loaded}
    found = []
    for policy in wanted:
        actual = by_key.get(policy.key)
        if actual is None:
            found.append("{0} is not loaded".format(policy.name))
        elif actual.state != "enabled":
            found.append("{0} is {1}, not enabled{2}".format(policy.name, actual.state, ": " + actual.error if actual.error else ""))
        elif not mode_fits(policy.mode, actual.mode):
            found.append("{0} is in mode {1}, not {2}".format(policy.name, actual.mode, policy.mode))
    return found
