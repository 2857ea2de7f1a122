# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""How many bytes selectors and arguments take in the agent's own encoding, where a limit changes what is compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay import filters
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.records import Declared, FilePath, ReadError, Value

MAX_SELECTOR_BYTES = 1024  # R1.12: user space gives 4096, the programs wrap at this
MAX_ARGUMENT_OFFSET = 2047  # R2.3.5
# Most bytes that an argument can take; those that are not here are at most _OTHER.
_FIXED = {"nop": 0, "sock": 64, "socket": 64, "skb": 64, "sockaddr": 24, "sockaddr_un": 112}
_OTHER = 128
_VARIABLE = frozenset(["string", "filename", "file", "path", "dentry", "linux_binprm", "fd", "kiocb", "data_loc"])
_BUFFERS = frozenset(["char_buf", "char_iovec", "iov_iter", "const_buf"])
_EIGHT = frozenset(["size_t", *filters.CAPABILITY_TYPES])
_STATUS = 4
_ACTION_BYTES = {
    **dict.fromkeys(("Sigkill", "NoPost", "CleanupEnforcerNotification"), 4),
    **dict.fromkeys(("Signal", "Override", "GetUrl", "DnsLookup", "TrackSock", "UntrackSock"), 8),
    **dict.fromkeys(("FollowFD", "UnfollowFD", "CopyFD", "Set"), 12),
    "NotifyEnforcer": 16,
    "Post": 24,
}


def most_bytes(type_: str) -> int:
    """The most that an argument of this type can take (R2.3.5)."""
    if type_ in _VARIABLE or type_ in _BUFFERS:
        return 4096 + 18
    return (
        _STATUS + _FIXED.get(type_, 8 if type_ in _EIGHT or filters.INTEGERS.get(type_, (32,))[0] == 64 else _OTHER)
        if type_ != "nop"
        else 0
    )


def argument_bytes(declared: Declared, value: Value | None) -> int:
    """What a recorded argument took; of one that was not recorded, the most that it can have taken.

    One that could not be read is its status alone: the agent's own reader finds the next argument right behind it.
    """
    if isinstance(value, ReadError):
        return _STATUS
    if declared.type in filters.INTEGERS:
        return _STATUS + (8 if declared.type in _EIGHT or filters.INTEGERS[declared.type][0] == 64 else 4)
    if isinstance(value, FilePath):
        return _STATUS + 4 + len(value.path.encode("utf-8", "surrogateescape")) + 10
    if isinstance(value, str) and "\ufffd" not in value:
        return _STATUS + 4 + len(value.encode("utf-8", "surrogateescape"))
    if isinstance(value, bytes) and declared.type == "char_buf":
        return _STATUS + 8 + min(len(value), 4095)
    return most_bytes(declared.type)


def selector_bytes(selectors: Sequence[Mapping[str, Any]], args: Sequence[Declared]) -> int:
    """The encoded size of a hook's selectors, macros expanded (R1.12)."""
    types = {one.index: one.type for one in reversed(args)}
    total = 4 + 4 * len(selectors)
    for selector in selectors:
        total += 4 + 5 * 4 + 24 + 4
        total += sum(12 + 4 * len(raw.get("values") or ()) for raw in selector.get("matchPIDs") or ())
        total += sum(12 + 4 * len(raw.get("values") or ()) for raw in selector.get("matchNamespaces") or ())
        total += 20 * len(selector.get("matchCapabilities") or ()) + 20 * len(selector.get("matchCapabilityChanges") or ())
        total += 8 * len(selector.get("matchNamespaceChanges") or ())
        for key in ("matchArgs", "matchData"):
            total += sum(_filter_bytes(raw, types.get(raw.get("index", 0), "int")) for raw in selector.get(key) or ())
        total += sum(_ACTION_BYTES.get(raw["action"], 24) for raw in selector.get("matchActions") or ())
    return total


def _filter_bytes(raw: Mapping[str, Any], type_: str) -> int:
    operator, values = raw["operator"], len(raw.get("values") or ())
    if operator in filters.ADDRESS_OPERATORS:
        return 24
    if operator in filters.PRIVILEGED_OPERATORS:
        return 16
    if operator in filters.SET_OPERATORS or operator in filters.PORT_OPERATORS or operator in filters.NAME_OPERATORS:
        return 20
    if operator in filters.END_OPERATORS or operator == "CapabilitiesGained":
        return 20
    wide = type_ in _EIGHT or filters.INTEGERS.get(type_, (32,))[0] == 64
    if operator in filters.RANGE_OPERATORS:
        return 16 + (16 if wide else 8) * values
    if operator in ("Equal", "NotEqual") and type_ not in filters.INTEGERS and type_ not in filters.CAPABILITY_TYPES:
        return 60
    return 16 + (8 if wide and operator in filters.NUMBER_OPERATORS else 4) * values
