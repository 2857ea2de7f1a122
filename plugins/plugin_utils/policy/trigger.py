# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The trigger of a policy: a harmless act that it forbids when it enforces, by which the drill proves that it does.

Declared in ``meta.yml`` over the policy's inputs, rendered with them, and carried in a bundle's manifest.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils import documents
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.inputs import TYPES
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.render import Rendered, expand
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Refused, refuse

_PATHS: Mapping[str, Any] = {"type": "array", "minItems": 1, "items": TYPES["path"]}
_RANGES: Mapping[str, Any] = {"type": "array", "items": TYPES["cidr"]}
_WORDS: Mapping[str, Any] = {"type": "string", "minLength": 1}
# What each kind of act takes: (needed, or), once rendered.
_KINDS: Mapping[str, Mapping[str, Any]] = {
    "open": {"required": ["files"], "properties": {"files": _PATHS}},
    "write": {"anyOf": [{"required": ["files"]}, {"required": ["below"]}], "properties": {"files": _PATHS, "below": _PATHS}},
    "connect": {
        "oneOf": [{"required": ["inside"]}, {"required": ["outside"]}],
        "properties": {"inside": {**_RANGES, "minItems": 1}, "outside": _RANGES},
    },
    "exec": {"required": ["files"], "properties": {"files": _PATHS}},
    "exec-memory": {"properties": {}},
    "call": {
        "required": ["library", "symbol", "argument"],
        "properties": {"library": TYPES["path"], "symbol": TYPES["identifier"], "argument": TYPES["integer"]},
    },
}
# Addresses that documentation may use and nobody else has.
_NOBODY = ("192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1")


def act(rendered: Rendered) -> dict[str, Any] | None:
    """The act that a drill attempts against this rendering; None when the policy names none, or none is forbidden by these values.

    Raises Refused when the trigger cannot be rendered or is no act.
    """
    declared = rendered.policy.meta.get("trigger")
    if declared is None:
        return None
    file = str(rendered.policy.directory / "meta.yml")
    parts = ", ".join(f"{json.dumps(name)}: {one if '{{' in str(one) else json.dumps(one)}" for name, one in declared.items())
    text = expand(rendered.policy, f"{{ {parts} }}", {**rendered.values, "form": rendered.form}, file)
    document = documents.parse(text, f"{file} (trigger, rendered)")
    kind = document.data["kind"]
    schema = {"type": "object", "additionalProperties": False, **_KINDS[kind]}
    schema["properties"] = {"kind": {}, **schema["properties"]}
    problems = documents.validate(document, schema)
    if problems:
        raise Refused(problems)
    if kind != "connect":
        return dict(document.data)
    try:
        address = _inside(document.data["inside"]) if "inside" in document.data else _outside(document.data["outside"])
    except ValueError as error:
        raise refuse(f"trigger: {error}", file=file) from None
    return {"kind": kind, "address": address} if address else None


def _inside(ranges: Sequence[str]) -> str:
    """The first address of a host in these ranges, IPv4 before IPv6, which not every host speaks."""
    networks = sorted((ipaddress.ip_network(one, strict=False) for one in ranges), key=lambda one: one.version)
    return str(networks[0][min(1, networks[0].num_addresses - 1)])


def _outside(ranges: Sequence[str]) -> str | None:
    """An address that is nobody's and in none of these ranges."""
    networks = [ipaddress.ip_network(one, strict=False) for one in ranges]
    return next((one for one in _NOBODY if not any(ipaddress.ip_address(one) in network for network in networks)), None)
