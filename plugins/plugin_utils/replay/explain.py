# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Why a policy fired on a call, or did not: what was compared with what, as plain values.

``CompiledPolicy.explain`` makes these. They hold texts, numbers, booleans and tuples of them only, so that
``dataclasses.asdict`` turns them into JSON. ``value`` has three values everywhere: None is undecidable, and
``reasons`` then say what the recording lacks.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FilterExplanation:
    """One filter and one call.

    ``kind`` is the field of the policy (``matchArgs``, ``matchBinaries``, ``workload`` ...), ``subject`` says in words
    what is compared (``argument 0 (file)``), ``operator`` and ``values`` are the policy's. ``found`` is what the recording
    holds, as text; None where it holds nothing that decides.
    """

    kind: str
    subject: str
    operator: str
    values: tuple[str, ...]
    found: str | None
    value: bool | None
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SelectorExplanation:
    """One selector and one call. ``value`` is that of all its ``filters`` together (those of the return apart).

    ``reached`` is False behind a selector that has already won: the agent does not look at it (R1.3). ``filters`` are
    those of the process, then those of the arguments. ``return_filters`` count only where the hook is a return probe.
    """

    index: int
    reached: bool
    value: bool | None
    reasons: tuple[str, ...]
    filters: tuple[FilterExplanation, ...]
    return_filters: tuple[FilterExplanation, ...]
    actions: tuple[str, ...]
    return_actions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OutcomeExplanation:
    """One thing that may happen: ``selector`` wins (None: none does), these ``actions`` run, an event is posted or not.

    ``effects`` are those of the actions that change something on the host in the policy's mode.
    """

    selector: int | None
    posts: bool
    rate_limited: bool
    actions: tuple[str, ...]
    effects: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HookExplanation:
    """One hook entry of a policy and one call. ``section`` and ``index`` say where the entry stands in the policy.

    ``fires`` is the verdict, ``reasons`` why it is undecidable, ``outcomes`` every outcome that the recording leaves
    possible. ``caveats`` hold whatever the verdict. ``recorded`` is the hook that was recorded; it differs from ``hook``
    where an equivalence decides, and ``equivalence`` then names its source.
    """

    hook: str
    section: str
    index: int
    recorded: str
    equivalence: str
    mode: str
    workload: FilterExplanation | None
    selectors: tuple[SelectorExplanation, ...]
    fires: bool | None
    reasons: tuple[str, ...]
    outcomes: tuple[OutcomeExplanation, ...]
    caveats: tuple[str, ...]
