# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""What the kernels under a policy can do: lints hold a policy against it, and the engine judges events as they would."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.target import KPROBE_MULTI, STRCASESTR, STRNSTR, Target

# What `tetra probe` of 1.7 asks of a kernel.
PROBES = (
    "override_return buildid kprobe_multi uprobe_multi fmodret fmodret_syscall signal large link_pin lsm "
    "missed_stats_kprobe_multi missed_stats_kprobe batch_update uprobe_refctroff audit_loginuid probe_write_user "
    "uprobe_regs_change mix_bpf_and_tail_calls fentry get_func_ret"
).split()

SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "release": {"type": "string", "pattern": r"^[0-9]+\.[0-9]+\Z", "description": 'the oldest kernel series in quotes, such as "5.15"'},
        "cpus": {"type": "integer", "minimum": 1},
        "probes": {"type": "object", "additionalProperties": False, "properties": {name: {"type": "boolean"} for name in PROBES}},
    },
}


@dataclass(frozen=True)
class Kernel:
    """What a fleet's kernels have in common.

    ``release`` is the oldest series. ``probes`` says what all of them have (true) or none has (false); a probe that is
    left out may be there or not, and a policy must then do on both. ``cpus`` are the possible CPUs of the largest host,
    None when nobody knows.
    """

    release: tuple[int, int] = (5, 15)
    probes: Mapping[str, bool] = field(default_factory=dict)
    cpus: int | None = None

    def may_have(self, probe: str) -> bool:
        """Whether some kernel may have it."""
        return self.probes.get(probe, True)

    def lacks(self, *any_of: str) -> bool:
        """Whether it is known that no kernel has one of these."""
        return all(self.probes.get(probe) is False for probe in any_of)


_TIERS = {(6, 1): "v61", (5, 11): "v511", (5, 3): "large"}
_SINCE = {STRNSTR: (6, 17), STRCASESTR: (6, 19)}


def target(version: tuple[int, ...], kernel: Kernel | None = None) -> Target:
    """What the engine judges for: an agent of this version on the oldest of these kernels; on 6.1 when none is named.

    Hooks of one policy share maps only where all kernels are known to have kprobe-multi.
    """
    if kernel is None:
        return Target(version[:2])  # type: ignore[arg-type]
    tier = next((name for since, name in _TIERS.items() if kernel.release >= since), "small")
    features = {name for name, since in _SINCE.items() if kernel.release >= since}
    features |= {KPROBE_MULTI} if kernel.probes.get("kprobe_multi") else set()
    return Target(version[:2], tier, frozenset(features))  # type: ignore[arg-type]


def from_data(raw: Mapping[str, Any]) -> Kernel:
    """The ``kernel`` key of an environment, which matches SCHEMA."""
    major, _unused, minor = raw.get("release", "5.15").partition(".")
    return Kernel((int(major), int(minor)), raw.get("probes", {}), raw.get("cpus"))
