# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The inputs of a policy: their types as ``meta.yml`` declares them, turned into JSON Schema."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_NAME = r"^[a-z][a-z0-9_]*$"
_LABEL_VALUE = r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$"

# type in meta.yml -> JSON Schema. A description is what an error tells the user to write.
TYPES: Mapping[str, Mapping[str, Any]] = {
    "string": {"type": "string", "minLength": 1},
    "integer": {"type": "integer"},
    "boolean": {"type": "boolean"},
    "path": {
        "type": "string",
        "pattern": r"^/[^\0]*$",
        "maxLength": 255,
        "description": "an absolute path",
    },
    "cidr": {"type": "string", "format": "cidr", "description": "an address range such as 10.0.0.0/8 or 2001:db8::/32"},
    "port": {"type": "integer", "minimum": 1, "maximum": 65535},
    "identifier": {
        "type": "string",
        "pattern": r"^[A-Za-z_][A-Za-z0-9_.]*$",
        "description": "a name of letters, digits, dots and underscores",
    },
    "label_value": {"type": "string", "pattern": _LABEL_VALUE, "maxLength": 63, "description": "a Kubernetes label value"},
    "labels": {
        "type": "object",
        "additionalProperties": {"type": "string", "pattern": _LABEL_VALUE, "maxLength": 63, "description": "a label value"},
    },
}

SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "propertyNames": {
        "pattern": _NAME,
        "not": {"enum": ["form", "protected"]},
        "description": "lower-case letters, digits and underscores; form and protected are taken",
    },
    "additionalProperties": {
        "type": "object",
        "required": ["type", "description"],
        "additionalProperties": False,
        "properties": {
            "type": {"enum": [*TYPES, "list"]},
            "elements": {"enum": list(TYPES)},
            "description": {"type": "string", "minLength": 1},
            "default": {},
            "choices": {"type": "array", "minItems": 1, "uniqueItems": True},
            "min": {"type": "integer"},
            "max": {"type": "integer"},
        },
        "if": {"properties": {"type": {"const": "list"}}, "required": ["type"]},
        "then": {"required": ["elements"]},
        "else": {"properties": {"elements": {"not": {}}}},
    },
}


@dataclass(frozen=True)
class Input:
    """One declared input. ``min`` and ``max`` bound a number's value or a list's length."""

    name: str
    type: str
    description: str
    elements: str | None = None
    default: Any = None
    required: bool = True
    choices: tuple[Any, ...] = ()
    min: int | None = None
    max: int | None = None

    @staticmethod
    def from_meta(name: str, meta: Mapping[str, Any]) -> Input:
        known = {key: meta[key] for key in ("type", "description", "elements", "default", "min", "max") if key in meta}
        return Input(name=name, required="default" not in meta, choices=tuple(meta.get("choices", ())), **known)

    def schema(self) -> dict[str, Any]:
        """The JSON Schema that a value of this input must satisfy."""
        if self.type == "list":
            items = dict(TYPES[self.elements or "string"])
            if self.choices:
                items["enum"] = list(self.choices)
            return _bounded({"type": "array", "items": items, "uniqueItems": True}, "minItems", "maxItems", self)
        schema = dict(TYPES[self.type])
        if self.choices:
            schema["enum"] = list(self.choices)
        return _bounded(schema, "minimum", "maximum", self)


def _bounded(schema: dict[str, Any], lower: str, upper: str, spec: Input) -> dict[str, Any]:
    """The input's own bounds narrow those of its type."""
    if spec.min is not None:
        schema[lower] = max(spec.min, schema.get(lower, spec.min))
    if spec.max is not None:
        schema[upper] = min(spec.max, schema.get(upper, spec.max))
    return schema


def values_schema(inputs: Mapping[str, Input]) -> dict[str, Any]:
    """The JSON Schema of a ``values`` mapping for these inputs."""
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {name: spec.schema() for name, spec in inputs.items()},
        "required": [name for name, spec in inputs.items() if spec.required],
    }
