# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""From a policy's text to what would be attached, with the refusals of the real agent in its words (v1.7.0, recorded)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import yaml

from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.schema import parse_version, tracing_policy
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.traits import ENFORCING, HookEntry, hook_entries
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.compile import SECTIONS, identities
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.filters import CAPABILITY_NAMES

from . import known
from .pins import Egress

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SENSORS = {
    "kprobes": "generic_kprobe",
    "fentries": "generic_fentry",
    "tracepoints": "generic_tracepoint",
    "lsmhooks": "generic_lsm",
    "uprobes": "generic_uprobe",
    "usdts": "generic_usdt",
}
_MAX_SELECTORS, _MAX_ACTIONS = 5, 3
# Longest value per operator of string arguments, and the step at which the agent finds it too long.
_TOO_LONG = {
    "Equal": (4096, "writeMatchStrings"),
    "NotEqual": (4096, "writeMatchStrings"),
    "Prefix": (256, "writePrefixStrings"),
    "NotPrefix": (256, "writePrefixStrings"),
    "Postfix": (127, "writePostfixStrings"),
    "NotPostfix": (127, "writePostfixStrings"),
}
_CRD_ORDER = "Post FollowFD UnfollowFD Sigkill CopyFD Override".split()
_GO_TYPES = {"string": "string", "integer": "int", "boolean": "bool", "array": "slice", "object": "struct"}
_JSON_TYPES: tuple[tuple[type, str, str], ...] = (
    (bool, "boolean", "bool"),
    (int, "integer", "number"),
    (float, "number", "number"),
    (str, "string", "string"),
    (list, "array", "array"),
    (dict, "object", "object"),
)


class Refused(Exception):
    """The text is no policy; the agent's list shows no trace of it."""


class LoadError(Exception):
    """The policy cannot be loaded; it stays in the list with this reason."""


@dataclass(frozen=True)
class Program:
    """What one hook attaches. ``kind`` and ``name`` as the replay engine names hooks; ``folder`` below the policy's pins.

    Facts of v1.7.0: links of LSM hooks and raw tracepoints are not pinned; Override on security_* has a second program.
    """

    section: str
    kind: str
    name: str
    folder: str
    pins_link: bool
    overrides: bool

    @property
    def has_override_link(self) -> bool:
        return self.overrides and self.section == "kprobes"


@dataclass(frozen=True)
class TracingPolicy:
    """A policy that passed the decoder and the schema."""

    document: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.document["metadata"]["name"])

    @property
    def namespace(self) -> str:
        return str(self.document["metadata"].get("namespace", ""))

    @property
    def key(self) -> str:
        return f"{{{self.name} {self.namespace}}}"

    @property
    def folder(self) -> str:
        return (f"{self.namespace}:{self.name}" if self.namespace else self.name).replace("/", "_")

    @property
    def spec(self) -> Mapping[str, Any]:
        spec: Mapping[str, Any] = self.document["spec"]
        return spec

    @cached_property
    def hooks(self) -> Sequence[HookEntry]:
        return hook_entries(self.spec)

    @property
    def option(self) -> Mapping[str, str]:
        return {one["name"]: one.get("value", "") for one in self.spec.get("options", ())}

    @property
    def enforces(self) -> bool:
        """Whether the agent finds an enforcing action; it does not look into macros or at the return side."""
        return any(name in ENFORCING for hook in self.hooks for _unused, name in hook.actions())

    @property
    def selects_workloads(self) -> bool:
        return bool(self.namespace) or any(self.spec.get(key) is not None for key in ("podSelector", "containerSelector", "hostSelector"))

    def mode(self, requested: str) -> str:
        """Mode at load: as asked for, else the option, else enforce; without an enforcing action only monitor_only."""
        if not self.enforces:
            return "monitor_only"
        return requested or ("monitor" if self.option.get("policy-mode") == "monitor" else "enforce")

    @cached_property
    def programs(self) -> Sequence[Program]:
        lists = {one["name"]: one for one in self.spec.get("lists", ())}
        found: dict[tuple[str, str], Program] = {}
        for place, hook in enumerate(self.hooks):
            overrides = any(name == "Override" for _unused, name in hook.actions())
            for identity in identities(SECTIONS[hook.section], hook.raw, lists):
                if hook.raw.get("ignore", {}).get("callNotFound") and not known.has_function(identity.name, True):
                    continue  # v1.7 drops such a hook without a word
                program = Program(
                    section=hook.section,
                    kind=identity.kind,
                    name=identity.name,
                    folder=f"{_SENSORS[hook.section]}/{_hook_folder(hook, place, identity.name)}",
                    pins_link=hook.section != "lsmhooks" and not hook.raw.get("raw"),
                    overrides=overrides,
                )
                earlier = found.get((program.kind, program.name))
                if earlier is None or program.overrides:
                    found[program.kind, program.name] = program
        return tuple(found.values())

    @property
    def sensors(self) -> list[str]:
        return sorted({program.folder.partition("/")[0] for program in self.programs})

    @property
    def kernel_memory(self) -> int:
        """Bytes of maps as measured on 2 CPUs and kernel 6.1: per kind, more for Override, returns and rate limits."""
        total = 0
        for hook in self.hooks:
            overrides = any(name == "Override" for _unused, name in hook.actions())
            if hook.section == "kprobes":
                total += (335872 if total else 413696) + (520192 if overrides else 0) + (217088 if hook.raw.get("return") else 0)
            else:
                total += {"lsmhooks": 581632, "tracepoints": 409600 if hook.raw.get("raw") else 339968}.get(hook.section, 352256)
            total += 7598080 * any(action.get("rateLimit") for one in hook.selectors for action in one.get("matchActions", ()))
        return total


_RANGES = {"SAddr": False, "DAddr": False, "NotSAddr": True, "NotDAddr": True}


def egress(policy: TracingPolicy, program: Program) -> Egress | None:
    """The connections that a hook overrides by nothing but IPv4 ranges; None for any other hook."""
    if program.name != "security_socket_connect" or not program.overrides:
        return None
    selectors = [one for hook in policy.hooks if hook.name == program.name for one in hook.selectors]
    if len(selectors) != 1 or set(selectors[0]) != {"matchArgs", "matchActions"} or len(selectors[0]["matchArgs"]) != 1:
        return None
    match = selectors[0]["matchArgs"][0]
    networks = tuple(IPv4Network(value, strict=False) for value in match["values"] if ":" not in value)
    return Egress(networks, _RANGES[match["operator"]]) if match["operator"] in _RANGES and networks else None


def _hook_folder(hook: HookEntry, place: int, name: str) -> str:
    if hook.section == "tracepoints":
        return name.replace("/", ":")
    if hook.section == "uprobes":
        return f"{place}-{name.rpartition(':')[2]}"
    if hook.section == "usdts":
        return f"{place}-{hook.raw['provider']}_{hook.raw['name']}"
    return f"__x64_{name}" if hook.section == "kprobes" and known.syscall(name) else name


# --- the text -------------------------------------------------------------------------------------------------------


def read(text: str, version: str) -> TracingPolicy:
    """Decode and validate one policy for an agent of ``version``. Only the first document of the text counts.

    Raises Refused.
    """
    raw = _decode(text)
    if raw.get("kind") not in ("TracingPolicy", "TracingPolicyNamespaced"):
        raise Refused(f"unknown CRD kind: {raw.get('kind', '')}")
    schema = tracing_policy(parse_version(version))
    for fault, path, message in _faults(raw, schema, ""):
        if fault == "decode":
            raise Refused(f"failed to unmarshal into typed object: error unmarshaling JSON: while decoding JSON: json: {message}")
        raise Refused(f"validation failed: {path}{message}")
    return TracingPolicy(raw)


def _decode(text: str) -> Mapping[str, Any]:
    loader = _LOADER(text)
    try:
        node = loader.get_node() if loader.check_node() else None
        for twice in _repeated_keys(node):
            raise Refused(f"failed to unmarshal YAML: error converting YAML to JSON: yaml: {twice}")
        raw = loader.construct_document(node) if node is not None else None
    except yaml.MarkedYAMLError as error:
        # The parser counts lines from 0, the scanner from 1.
        line = (error.problem_mark.line if error.problem_mark else 0) + isinstance(error, yaml.scanner.ScannerError)
        raise Refused(f"failed to unmarshal YAML: error converting YAML to JSON: yaml: line {line}: {error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise Refused(f"failed to unmarshal YAML: error converting YAML to JSON: yaml: {error}") from None
    finally:
        loader.dispose()
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise Refused(
            "failed to unmarshal YAML: error unmarshaling JSON: while decoding JSON: json: cannot unmarshal "
            f"{_json_type(raw)[1]} into Go value of type map[string]interface {{}}"
        )
    return raw


def _repeated_keys(node: yaml.Node | None) -> Iterator[str]:
    if isinstance(node, yaml.MappingNode):
        keys = set()
        for key, value in node.value:
            if key.value in keys:
                yield f'unmarshal errors:\n  line {key.start_mark.line + 1}: key "{key.value}" already set in map'
            keys.add(key.value)
            yield from _repeated_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for one in node.value:
            yield from _repeated_keys(one)


def _json_type(value: object) -> tuple[str, str]:
    return next(((name, shown) for kind, name, shown in _JSON_TYPES if isinstance(value, kind)), ("null", "null"))


def _faults(value: Any, schema: Mapping[str, Any], path: str) -> Iterator[tuple[str, str, str]]:
    """Ways in which a value breaks the schema: decoder faults before those of the validation, as the agent meets them."""
    found = list(_walk(value, schema, path))
    yield from sorted(found, key=lambda fault: fault[0] != "decode")


def _walk(value: Any, schema: Mapping[str, Any], path: str) -> Iterator[tuple[str, str, str]]:
    wanted = schema.get("type")
    if wanted and _json_type(value)[0] != wanted:
        if value is not None:
            yield "decode", path, f"cannot unmarshal {_json_type(value)[1]} into Go struct field {path} of type {_GO_TYPES[wanted]}"
        return
    if isinstance(value, dict):
        yield from _object_faults(value, schema, path)
    elif isinstance(value, list):
        if len(value) > schema.get("maxItems", len(value)):
            yield "validate", path, f": Too many: {len(value)}: must have at most {schema['maxItems']} items"
        for index, one in enumerate(value):
            yield from _walk(one, schema["items"], f"{path}[{index}]")
    elif isinstance(value, str):
        if "enum" in schema and value not in schema["enum"]:
            order = sorted(schema["enum"], key=lambda one: _CRD_ORDER.index(one) if one in _CRD_ORDER else 99)
            yield "validate", path, f" in body should be one of [{' '.join(order)}]"
        if "pattern" in schema and not re.match(schema["pattern"], value):
            yield "validate", path, f': Invalid value: "{value}": a lowercase RFC 1123 subdomain is needed'
        if len(value) > schema.get("maxLength", len(value)):
            yield "validate", path, f": Too long: may not be more than {schema['maxLength']} bytes"
    elif isinstance(value, int) and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        yield "decode", path, f"cannot unmarshal number {value} into Go struct field {path} of type uint32"


def _object_faults(value: Mapping[str, Any], schema: Mapping[str, Any], path: str) -> Iterator[tuple[str, str, str]]:
    properties, others = schema.get("properties", {}), schema.get("additionalProperties", {})
    for name in schema.get("required", ()):
        if name not in value:
            missing = (
                ": Required value: name or generateName is required" if (path, name) == ("metadata", "name") else " in body is required"
            )
            yield "validate", f"{path}.{name}", missing
    for name, one in value.items():
        if name not in properties and others is False:
            yield "decode", path, f'unknown field "{name}"'
        else:
            yield from _walk(one, properties.get(name, others or {}), f"{path}.{name}".lstrip("."))


# --- loading --------------------------------------------------------------------------------------------------------


def check(policy: TracingPolicy, features: Mapping[str, bool], policy_filter: bool, kprobe_multi: bool) -> None:
    """What the agent refuses before it loads a program. Raises LoadError."""
    sections = [section for section in SECTIONS if policy.spec.get(section)]
    if len(sections) > 1:
        raise LoadError(f"a policy may have one of the sections {', '.join(sections)}, not several")
    if policy.spec.get("enforcers") and not (features["override_return"] or features["fmodret_syscall"]):
        raise LoadError("no override helper or mod_ret support: cannot load enforcer")
    if policy.selects_workloads and not policy_filter:
        raise LoadError("policyfilter is disabled")
    multi = features["kprobe_multi"] and kprobe_multi and policy.option.get("disable-kprobe-multi") not in ("1", "true")
    lists = {one["name"]: one for one in policy.spec.get("lists", ())}
    for hook in policy.hooks:
        _check_target(hook, lists, features)
        _check_override(hook, features, multi)
        for selector in hook.selectors:
            _check_selector(hook, selector)


def _check_target(hook: HookEntry, lists: Mapping[str, Any], features: Mapping[str, bool]) -> None:
    raw, place = hook.raw, hook.path[-1]
    if hook.section in ("kprobes", "fentries"):
        for identity in identities("kprobe", raw, lists):
            call = raw["call"] if not raw["call"].startswith("list:") else identity.name
            is_syscall = bool(raw.get("syscall", True)) or call != raw["call"]
            if not known.has_function(call, is_syscall) and not raw.get("ignore", {}).get("callNotFound"):
                where = f"error in spec.{hook.section}[{place}]: kprobe spec pre-validation failed"
                raise LoadError(f'validation failed: {where}: validation error: call "{call}": not found')
    elif hook.section == "tracepoints" and not known.has_tracepoint(raw["subsystem"], raw["event"]):
        raise LoadError(f"tracepoint {hook.name} not supported: failed to parse tracepoint format")
    elif hook.section == "lsmhooks":
        if not features["lsm"]:
            raise LoadError("validation failed: does your kernel support the bpf LSM?")
        if hook.name not in known.LSM_HOOKS:
            name = f'lsm hook "{hook.name}" not found in BTF (looked up "bpf_lsm_{hook.name}")'
            raise LoadError(f"lsm validation failed: error in spec.lsmHooks[{place}]: {name}")
    elif hook.section in ("uprobes", "usdts") and not Path(raw["path"]).exists():
        raise LoadError(f"open {raw['path']}: no such file or directory")


def _check_override(hook: HookEntry, features: Mapping[str, bool], multi: bool) -> None:
    names = {name for _unused, name in hook.actions()}
    if hook.section == "fentries" and names & ENFORCING:
        raise LoadError("enforcement is not supported for fentry yet")
    if hook.section == "uprobes" and "Override" in names and not features["uprobe_regs_change"]:
        raise LoadError("override validation failed: override action not supported on uprobes, registers cannot be changed")
    if hook.section != "kprobes" or "Override" not in names:
        return
    if hook.is_security:
        if multi:
            raise LoadError(f"can't override '{hook.name}' function with kprobe_multi, use --disable-kprobe-multi option")
        if not features["fmodret"]:
            raise LoadError("override validation failed: override action not supported, kernel has no modify return")
    elif not known.syscall(hook.name):
        raise LoadError("override validation failed: override action can be used only with syscalls and security_ hooks")
    elif not (features["override_return"] or features["fmodret_syscall"]):
        raise LoadError("override validation failed: override action not supported on syscalls, bpf_override_return helper not available")


def _check_selector(hook: HookEntry, selector: Mapping[str, Any]) -> None:
    if len(hook.selectors) > _MAX_SELECTORS:
        raise LoadError(f"no more than {_MAX_SELECTORS} selectors supported ({len(hook.selectors)} provided)")
    for key in ("matchActions", "matchReturnActions"):
        if len(selector.get(key, ())) > _MAX_ACTIONS:
            raise LoadError(f"no more than {_MAX_ACTIONS} actions supported ({len(selector[key])} provided)")
    declared = {one["index"] for one in hook.raw.get("args", ())}
    for one in selector.get("matchArgs", ()):
        places = one.get("args")
        if max(places) >= len(hook.raw.get("args", ())) if places else one.get("index", 0) not in declared:
            raise LoadError("parseMatchArgs  error: argFilter for unknown index")
        limit, step = _TOO_LONG.get(one["operator"], (1 << 30, ""))
        for value in one.get("values", ()):
            if len(value) > limit:
                raise LoadError(f"parseMatchArgs error: {step} error: MatchArgs value {value} invalid: string is too long")
    for one in (*selector.get("matchCapabilities", ()), *selector.get("matchCapabilityChanges", ())):
        for value in one["values"]:
            if value not in CAPABILITY_NAMES:
                raise LoadError(f"parseMatchCapabilities error: value {value} unknown")


def missing_symbol(policy: TracingPolicy) -> str:
    """The first uprobe symbol that its binary does not have; found only after the whole load. Empty when all are there."""
    for hook in policy.hooks:
        if hook.section == "uprobes" and hook.raw.get("symbols"):
            content = Path(hook.raw["path"]).read_bytes()
            for symbol in hook.raw["symbols"]:
                if symbol.encode() + b"\0" not in content:  # a string table shares the ends of its names
                    return str(symbol)
    return ""
