# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The environment file: which policies run where, in which mode and with which values; the rings; the gates."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.apiary.tetragon.plugins.module_utils.agent.units import RELEASES
from ansible_collections.apiary.tetragon.plugins.plugin_utils import documents
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy import inputs, kernel, schema
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.load import FORMS, Library
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.render import MODES
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Problem, Refused

DEFAULT_PROTECTED = (
    "/lib/systemd/systemd",
    "/usr/lib/systemd/systemd",
    "/usr/lib/systemd/systemd-executor",
    "/usr/lib/systemd/systemd-journald",
    "/usr/lib/systemd/systemd-logind",
    "/usr/lib/systemd/systemd-networkd",
    "/usr/lib/systemd/systemd-resolved",
    "/usr/lib/systemd/systemd-udevd",
    "/usr/bin/udevadm",
    "/usr/bin/dbus-daemon",
    "/usr/bin/dbus-broker",
    "/usr/sbin/sshd",
    "/usr/lib/openssh/sshd-session",
    "/usr/lib/openssh/sshd-auth",
    "/usr/libexec/openssh/sshd-session",
    "/usr/libexec/openssh/sshd-auth",
    "/usr/local/bin/tetragon",
    "/usr/bin/tetragon",
    "/usr/local/bin/tetra",
    "/usr/bin/tetra",
    "/usr/bin/kubelet",
    "/usr/local/bin/kubelet",
    "/usr/bin/containerd",
    "/usr/bin/containerd-shim-runc-v2",
    "/usr/bin/dockerd",
    "/usr/bin/crio",
)


def default_protected(agent_version: str) -> tuple[str, ...]:
    """What nothing may kill unless an environment says otherwise, with the agent of this version where our role puts it.

    The agent compares whole paths, of the executed file behind all links, and one selector has one matchBinaries: a prefix for
    all versions would have no room beside the list.
    """
    return (*DEFAULT_PROTECTED, *(f"{RELEASES}/{agent_version}/bin/{program}" for program in ("tetragon", "tetra")))


_DURATION = re.compile(r"^([0-9]+)(s|m|h|d)$")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION_SCHEMA = {"type": "string", "pattern": _DURATION.pattern, "description": "a duration such as 30s, 10m, 2h or 1d"}
_SHARE = r"^(?:[1-9][0-9]*|(?:100|[1-9]?[0-9])%)$"
_SHARE_SCHEMA = {"type": ["string", "integer"], "pattern": _SHARE, "minimum": 0, "description": "a number of hosts or a share such as 25%"}
_NAME = {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?$", "description": "lower-case letters, digits and dashes"}
_GROUPS = {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1, "uniqueItems": True}


def _limit(minimum: float = 0) -> dict[str, Any]:
    return {
        "type": ["number", "boolean"],
        "minimum": minimum,
        "not": {"const": True},
        "description": "a limit, or false to switch the check off",
    }


def _object(properties: Mapping[str, Any], required: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": dict(properties), "required": list(required)}


SCHEMA: Mapping[str, Any] = _object(
    {
        "name": _NAME,
        "agent_version": {
            "type": "string",
            "pattern": r"^[0-9]+\.[0-9]+\.[0-9]+$",
            "description": 'an exact agent version in quotes, such as "1.7.0"',
        },
        "kernel": kernel.SCHEMA,
        "protected": {"type": "array", "items": inputs.TYPES["path"], "uniqueItems": True},
        "policies": {
            "type": "array",
            "minItems": 1,
            "items": _object(
                {
                    "policy": {"type": "string", "pattern": r"^[a-z0-9-]+/[a-z0-9-]+$", "description": "<category>/<name>"},
                    "mode": {"enum": list(MODES)},
                    "form": {"enum": list(FORMS)},
                    "namespace": _NAME,
                    "where": _GROUPS,
                    "values": {"type": "object"},
                    "overrides": {
                        "type": "array",
                        "items": _object({"where": _GROUPS, "values": {"type": "object"}}, ("where", "values")),
                    },
                },
                ("policy", "mode"),
            ),
        },
        "rings": {
            "type": "array",
            "minItems": 1,
            "items": _object(
                {
                    "name": _NAME,
                    "groups": _GROUPS,
                    "take": {
                        "type": ["string", "integer"],
                        "pattern": rf"^(?:cells|rest|{_SHARE[4:-2]})$",
                        "minimum": 1,
                        "description": "cells, rest, a number of hosts, or a share such as 25%",
                    },
                    "batch": _SHARE_SCHEMA,
                    "bake": _DURATION_SCHEMA,
                },
                ("name",),
            ),
        },
        "gates": _object(
            {
                "bake": _DURATION_SCHEMA,
                "unreachable": _SHARE_SCHEMA,
                "control": {"type": "integer", "minimum": 0},
                "event_burst": _limit(),
                "events_lost": _limit(),
                "blocks": _limit(),
                "cpu_cores": _limit(),
                "memory_mib": _limit(),
                "agent_restarts": _limit(),
                "export_stalled": {"type": "boolean"},
                "failed_units": {"type": "boolean"},
                "commands": {"type": "array", "items": {"type": "string", "minLength": 1}},
                "urls": {"type": "array", "items": {"type": "string", "pattern": r"^https?://", "description": "an http or https URL"}},
            }
        ),
        "on_fail": _object({"roll_back": {"enum": ["ring", "all"]}}, ("roll_back",)),
    },
    ("name", "agent_version", "policies", "rings"),
)


@dataclass(frozen=True)
class Ring:
    """An ordered group of hosts: by inventory groups, or taken from the fleet (``cells``, ``rest``, a number, a share).

    ``batch`` is how many hosts change at once, ``bake`` how long the gate watches, in seconds.
    """

    name: str
    groups: tuple[str, ...]
    take: str
    batch: str
    bake: int


@dataclass(frozen=True)
class Gates:
    """Limits of the gate. A limit of None switches its check off."""

    unreachable: str = "0"
    control: int = 20
    event_burst: float | None = 20
    events_lost: float | None = 0
    blocks: float | None = 0
    cpu_cores: float | None = 0.1
    memory_mib: float | None = 64
    agent_restarts: float | None = 0
    export_stalled: bool = True
    failed_units: bool = True
    commands: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()


@dataclass(frozen=True)
class Variant:
    """Values for the hosts of some groups; no groups: for all other hosts of the entry."""

    where: tuple[str, ...]
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """One policy in the environment. ``variants`` are tried in order; the last one always fits."""

    reference: str
    mode: str
    form: str
    namespace: str | None
    where: tuple[str, ...]
    variants: tuple[Variant, ...]

    @property
    def name(self) -> str:
        return self.reference.partition("/")[2]


@dataclass(frozen=True)
class Environment:
    """A validated environment file."""

    name: str
    file: str
    agent_version: str
    version: schema.Version
    kernel: kernel.Kernel
    protected: tuple[str, ...]
    entries: tuple[Entry, ...]
    rings: tuple[Ring, ...]
    gates: Gates
    roll_back_all: bool
    document: documents.Document = field(compare=False, repr=False)


def seconds(text: str) -> int:
    """``10m`` as seconds. The text must match the schema's pattern."""
    match = _DURATION.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is no duration")
    return int(match[1]) * _SECONDS[match[2]]


def load(path: str | Path, shown_as: str = "") -> Environment:
    """Read and validate an environment file, without looking at policies. Raises Refused with every problem."""
    document = documents.load(path, shown_as)
    problems = documents.validate(document, SCHEMA)
    if problems:
        raise Refused(problems)
    data = document.data
    try:
        version = schema.parse_version(data["agent_version"])
    except Refused as error:
        raise Refused([document.problem(("agent_version",), str(error))]) from None
    problems = [*_ring_problems(document), *_entry_problems(document)]
    if problems:
        raise Refused(problems)
    gates = data.get("gates", {})
    default_bake = gates.get("bake", "10m")
    return Environment(
        name=data["name"],
        file=document.file,
        agent_version=data["agent_version"],
        version=version,
        kernel=kernel.from_data(data.get("kernel", {})),
        protected=tuple(data.get("protected", default_protected(data["agent_version"]))),
        entries=tuple(_entry(raw) for raw in data["policies"]),
        rings=tuple(
            Ring(
                name=raw["name"],
                groups=tuple(raw.get("groups", ())),
                take=str(raw.get("take", "")),
                batch=str(raw.get("batch", "100%" if index == 0 else "25%")),
                bake=seconds(raw.get("bake", default_bake)),
            )
            for index, raw in enumerate(data["rings"])
        ),
        gates=_gates(gates),
        roll_back_all=data.get("on_fail", {}).get("roll_back") == "all",
        document=document,
    )


def _entry(raw: Mapping[str, Any]) -> Entry:
    base = raw.get("values", {})
    overrides = [Variant(tuple(one["where"]), {**base, **one["values"]}) for one in raw.get("overrides", ())]
    return Entry(
        reference=raw["policy"],
        mode=raw["mode"],
        form=raw.get("form", "host"),
        namespace=raw.get("namespace"),
        where=tuple(raw.get("where", ())),
        variants=(*overrides, Variant((), base)),
    )


def _gates(raw: Mapping[str, Any]) -> Gates:
    known = {key: value for key, value in raw.items() if key != "bake"}
    for key in ("event_burst", "events_lost", "blocks", "cpu_cores", "memory_mib", "agent_restarts"):
        if known.get(key) is False:
            known[key] = None
    for key in ("commands", "urls"):
        known[key] = tuple(known.get(key, ()))
    return Gates(**{**known, "unreachable": str(raw.get("unreachable", "0"))})


def _ring_problems(document: documents.Document) -> list[Problem]:
    problems: list[Problem] = []
    names: set[str] = set()
    rings = document.data["rings"]
    for index, raw in enumerate(rings):
        if raw["name"] in names:
            problems.append(document.problem(("rings", index, "name"), f"is {raw['name']!r}, as another ring is: ring names must differ"))
        names.add(raw["name"])
        if ("groups" in raw) == ("take" in raw):
            problems.append(document.problem(("rings", index), "needs either groups or take, not both"))
        if raw.get("take") == "rest" and index != len(rings) - 1:
            problems.append(document.problem(("rings", index, "take"), "is 'rest'; only the last ring can take the rest"))
    return problems


def _entry_problems(document: documents.Document) -> list[Problem]:
    problems = []
    seen: dict[tuple[str, str], int] = {}
    for index, raw in enumerate(document.data["policies"]):
        form, name = raw.get("form", "host"), raw["policy"].partition("/")[2]
        if (name, form) in seen:
            first = document.lines.get(("policies", seen[name, form], "policy"), 0)
            problems.append(
                document.problem(
                    ("policies", index, "policy"),
                    f"policy name {name!r} stands here twice for form {form}, first on line {first}: "
                    "use overrides for other values on some hosts",
                )
            )
        seen.setdefault((name, form), index)
        if "namespace" in raw and form != "cluster":
            problems.append(document.problem(("policies", index, "namespace"), "needs form: cluster; hosts have no namespaces of pods"))
    return problems


def check_values(environment: Environment, library: Library) -> None:
    """Hold every entry against its policy's inputs. Raises Refused with every problem, each at its line."""
    document = environment.document
    problems: list[Problem] = []
    for index, entry in enumerate(environment.entries):
        try:
            policy = library.get(entry.reference)
        except Refused as error:
            if entry.reference in library.references:
                problems += error.problems
            else:
                problems.append(document.problem(("policies", index, "policy"), str(error)))
            continue
        if entry.form not in policy.meta["forms"]:
            problems.append(
                document.problem(
                    ("policies", index, "form"), f"is {entry.form!r}; policy {entry.reference} has: {', '.join(policy.meta['forms'])}"
                )
            )
        wanted = inputs.values_schema(policy.inputs)
        raw = document.data["policies"][index]
        at = ("policies", index, "values")
        if "values" in raw:
            problems += documents.validate(document, {**wanted, "required": []}, at)
        missing = [name for name in wanted["required"] if name not in raw.get("values", {})]
        problems += [document.problem(at, f"value {name!r} is missing; policy {entry.reference} needs it") for name in missing]
        for position in range(len(raw.get("overrides", ()))):
            problems += documents.validate(document, {**wanted, "required": []}, ("policies", index, "overrides", position, "values"))
    if problems:
        raise Refused(problems)
