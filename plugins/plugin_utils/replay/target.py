# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The agent and the kernel that a policy is judged for."""

from __future__ import annotations

from dataclasses import dataclass

# The sets of programs that the agent chooses from by the running kernel: below 5.3, from 5.3, from 5.11, from 6.1.
TIERS = ("small", "large", "v511", "v61")
KPROBE_MULTI, STRNSTR, STRCASESTR = "kprobe_multi", "bpf_strnstr", "bpf_strncasestr"
FEATURES = frozenset([KPROBE_MULTI, STRNSTR, STRCASESTR])


@dataclass(frozen=True, slots=True)
class Target:
    """``features`` are those of the kernel that change what a policy matches, by the names in ``FEATURES``.

    kprobe_multi makes hooks of one policy share maps (R1.13). Without the two kfuncs (6.17 and 6.19) part of a text is
    never found (R2.3.24).
    """

    version: tuple[int, int] = (1, 7)
    tier: str = "v61"
    features: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.tier not in TIERS:
            raise ValueError(f"tier {self.tier!r} is not known; known: {', '.join(TIERS)}")
        unknown = self.features - FEATURES
        if unknown:
            raise ValueError(f"features {sorted(unknown)} are not known; known: {', '.join(sorted(FEATURES))}")

    def at_least(self, tier: str) -> bool:
        return TIERS.index(self.tier) >= TIERS.index(tier)

    @property
    def is_main(self) -> bool:
        """Whether the agent is of the main branch of August 2026, to be 1.8."""
        return self.version >= (1, 8)

    @property
    def max_string(self) -> int:
        """Bytes of a text that are read and compared (R2.3.17)."""
        return 4096 if self.at_least("v511") else 510 if self.at_least("large") else 144


DEFAULT = Target()
