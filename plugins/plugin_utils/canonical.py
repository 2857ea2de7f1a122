# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""One spelling for data, so that equal data has an equal digest on every machine."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any


def encode(value: Any) -> bytes:
    """JSON with sorted keys and no white space, in UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def digest(value: bytes | Any) -> str:
    """SHA-256 in hex of bytes, or of anything else's canonical encoding."""
    return hashlib.sha256(value if isinstance(value, bytes) else encode(value)).hexdigest()


def to_json(value: Any) -> str:
    """JSON on one line that is YAML too, keys sorted. Raises TypeError or ValueError for what JSON cannot hold."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return _NOT_PRINTED.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


# What any YAML reader takes for text without quotes. Readers differ on numbers such as 1e3 and on words such as y.
_PLAIN = re.compile(r"[A-Za-z_/][A-Za-z0-9_/.-]+")
# What YAML cannot hold, or takes for the end of a line, though JSON lets it stand inside quotes.
_NOT_PRINTED = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")
_WORDS = frozenset(["true", "false", "yes", "no", "on", "off", "null", "nan", "inf"])


def to_yaml(value: Any) -> str:
    """Block style YAML in the value's own key order, quoted as JSON wherever a reader could take text for anything else.

    Written here and not by a YAML library, so that the bytes, and with them digests, do not change with its version.
    """
    return "".join(_lines(value, "", ""))


def _lines(value: Any, indent: str, lead: str) -> Iterator[str]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield f"{lead}{_scalar(key)}:"
            yield from _nested(item, indent)
            lead = indent
    elif isinstance(value, (list, tuple)) and value:
        for item in value:
            yield f"{lead}- "
            yield from _lines(item, f"{indent}  ", "")
            lead = indent
    else:
        yield f"{lead}{_scalar(value)}\n"


def _nested(value: Any, indent: str) -> Iterator[str]:
    """A mapping's value: on the line of its key, or below it and further in."""
    if isinstance(value, (Mapping, list, tuple)) and value:
        yield "\n"
        yield from _lines(value, f"{indent}  ", f"{indent}  ")
    else:
        yield f" {_scalar(value)}\n"


def _scalar(value: Any) -> str:
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    return to_json(value)
