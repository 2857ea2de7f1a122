# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""What the checks of the lints look at, and how a check says what it found."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.kernel import Kernel
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.schema import Version
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.traits import HookEntry, Traits, hook_entries

Where = Sequence[str | int]
Found = Iterator[tuple[Where, str]]
ARGUMENT_KEYS = ("matchArgs", "matchData", "matchReturnArgs")
ACTION_KEYS = ("matchActions", "matchReturnActions")


@dataclass(frozen=True)
class Filter:
    """One entry of matchArgs, matchData or matchReturnArgs, and the argument that it names: None when the hook lists none."""

    path: tuple[str | int, ...]
    key: str
    hook: HookEntry
    selector: Mapping[str, Any]
    raw: Mapping[str, Any]
    position: int | None
    argument: Mapping[str, Any] | None

    @property
    def operator(self) -> str:
        return str(self.raw["operator"])

    @property
    def base(self) -> str:
        return self.operator.removeprefix("Not")

    @property
    def values(self) -> Sequence[str]:
        values: Sequence[str] = self.raw.get("values", ())
        return values

    @property
    def type(self) -> str:
        return str((self.argument or {}).get("type", "auto"))


@dataclass(frozen=True)
class Action:
    """One entry of matchActions or matchReturnActions."""

    path: tuple[str | int, ...]
    key: str
    hook: HookEntry
    selector: Mapping[str, Any]
    raw: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.raw["action"])

    @property
    def kills(self) -> bool:
        """Whether a signal goes out."""
        return self.name in ("Sigkill", "Signal") or (self.name == "NotifyEnforcer" and bool(self.raw.get("argSig")))


@dataclass(frozen=True)
class Context:
    """A rendered policy under inspection. ``protected`` are executables that no policy may ever kill."""

    policy: str
    spec: Mapping[str, Any]
    namespace: str | None
    mode: str
    version: Version
    protected: tuple[str, ...]
    traits: Traits
    kernel: Kernel = field(default_factory=Kernel)

    @cached_property
    def hooks(self) -> list[HookEntry]:
        """All hooks, their macros filled in."""
        macros = self.spec.get("selectorsMacros", {})
        return [
            replace(entry, raw={**entry.raw, "selectors": [_expanded(one, macros) for one in entry.selectors]}) if macros else entry
            for entry in hook_entries(self.spec)
        ]

    def selectors(self) -> Iterator[tuple[HookEntry, tuple[str | int, ...], Mapping[str, Any]]]:
        """Every selector with its hook and its path."""
        for hook in self.hooks:
            for index, selector in enumerate(hook.selectors):
                yield hook, (*hook.path, "selectors", index), selector

    @cached_property
    def filters(self) -> list[Filter]:
        """Every argument filter of the policy."""
        return [
            Filter((*path, key, place), key, hook, selector, one, *_addressed(key, one, hook))
            for hook, path, selector in self.selectors()
            for key in ARGUMENT_KEYS
            for place, one in enumerate(selector.get(key, ()))
        ]

    @cached_property
    def actions(self) -> list[Action]:
        """Every action of the policy, on both sides."""
        return [
            Action((*path, key, place), key, hook, selector, one)
            for hook, path, selector in self.selectors()
            for key in ACTION_KEYS
            for place, one in enumerate(selector.get(key, ()))
        ]

    @cached_property
    def _by_hook(self) -> tuple[Mapping[Where, list[Filter]], Mapping[Where, list[Action]], Mapping[int, list[Filter]]]:
        filters: defaultdict[Where, list[Filter]] = defaultdict(list)
        actions: defaultdict[Where, list[Action]] = defaultdict(list)
        beside: defaultdict[int, list[Filter]] = defaultdict(list)
        for one in self.filters:
            filters[one.hook.path].append(one)
            beside[id(one.selector)].append(one)
        for action in self.actions:
            actions[action.hook.path].append(action)
        return filters, actions, beside

    def filters_of(self, hook: HookEntry) -> Sequence[Filter]:
        return self._by_hook[0].get(hook.path, ())

    def actions_of(self, hook: HookEntry) -> Sequence[Action]:
        return self._by_hook[1].get(hook.path, ())

    def beside(self, one: Filter) -> Sequence[Filter]:
        """All filters of the same selector."""
        return self._by_hook[2][id(one.selector)]

    @cached_property
    def options(self) -> Mapping[str, str]:
        return {one["name"]: str(one.get("value", "")) for one in self.spec.get("options", ())}

    @property
    def kprobe_multi(self) -> bool:
        """Whether all kprobes of the policy may share one program."""
        return self.kernel.may_have("kprobe_multi") and self.options.get("disable-kprobe-multi") not in ("1", "true")

    def scoped(self, hook: HookEntry) -> bool:
        """Whether this hook acts on chosen workloads only: R4.1, R4.5, and uprobes before 1.7.1 (facts 5.6)."""
        if self.spec.get("hostSelector") is not None:
            return False
        if hook.section in ("uprobes", "usdts") and self.version < (1, 7, 1):
            return False
        return self.namespace is not None or any(self.spec.get(key) is not None for key in ("podSelector", "containerSelector"))

    @cached_property
    def _lists(self) -> Mapping[str, list[str]]:
        return {one["name"]: one.get("values", []) for one in self.spec.get("lists", ())}

    def functions(self, hook: HookEntry) -> list[str]:
        """The functions that a kprobe or fentry attaches to, lists looked up, without the prefix of an architecture (R5.1, R5.2)."""
        if hook.section not in ("kprobes", "fentries"):
            return []
        names = [hook.name]
        if hook.name.startswith("list:"):
            names = self._lists.get(hook.name[5:], [])
        return [plain_name(name) for name in names]


Check = Callable[[Context], Found]


def register(checks: dict[str, Check]) -> Callable[[str], Callable[[Check], Check]]:
    """A decorator that puts the check of a rule, by its id, into ``checks``."""

    def check(rule: str) -> Callable[[Check], Check]:
        def take(function: Check) -> Check:
            checks[rule] = function
            return function

        return take

    return check


def plain_name(call: str) -> str:
    """``__x64_sys_open`` as ``sys_open``; another name as it is."""
    return re.sub(r"^__(x64|arm64|ia32)_(?=sys_)", "", call)


def _expanded(selector: Mapping[str, Any], macros: Mapping[str, Any]) -> Mapping[str, Any]:
    """A selector with the lists of its macros appended (R1.14)."""
    expanded = dict(selector)
    for name in selector.get("macros", ()):
        for key, entries in macros.get(name, {}).items():
            if isinstance(entries, list):
                expanded[key] = [*expanded.get(key, ()), *entries]
    return expanded


def _addressed(key: str, raw: Mapping[str, Any], hook: HookEntry) -> tuple[int | None, Mapping[str, Any] | None]:
    """The position and declaration of the argument that a filter names.

    R2.3.1: ``args`` is a position in the list and goes first; ``index`` is the function's argument number; in matchData both
    are positions. R2.3.2: on tracepoints a field's number is rewritten to its position, argument by argument.
    """
    if key == "matchReturnArgs":
        return None, hook.raw.get("returnArg") or {"type": "int"}
    listed = hook.raw.get("data" if key == "matchData" else "args", ())
    by_position = raw.get("args", ())
    position: int | None = by_position[0] if by_position else raw.get("index", 0)
    if key == "matchArgs" and not by_position:
        if hook.section == "tracepoints":
            for place, one in enumerate(listed):
                if position == one["index"]:
                    position = place
        else:
            position = next((place for place, one in enumerate(listed) if one["index"] == position), None)
    if position is None or position >= len(listed):
        return None, None
    return position, listed[position]
