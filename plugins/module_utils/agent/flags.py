# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The agent's options: which a version has, what a slot decides itself, and whether a running agent took them.

The agent passes over a file whose name is no option without a word, so names are checked before and values read back after.
"""

from __future__ import annotations

import difflib
import re
from typing import Any, Dict, List, Mapping, Tuple

from ansible_collections.apiary.tetragon.plugins.module_utils.agent.flagtable import FIRST, FLAGS, LAST

# What makes two agents able to live side by side, and the agent the one that the units know.
OF_THE_SLOT = (
    "bpf-dir", "bpf-lib", "config-dir", "export-filename", "generate-docs", "gops-address", "health-server-address",
    "metrics-server", "pprof-address", "server-address", "tracing-policy", "tracing-policy-dir",
)  # fmt: skip
DEFAULTS: Mapping[str, str] = {
    "export-file-compress": "true",
    "export-file-max-backups": "5",
    "export-file-max-size-mb": "64",
    "export-file-perm": "600",
    "keep-sensors-on-exit": "true",
    "release-pinned-bpf": "false",
}
_WORDS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
_PATTERNS = {
    "int": (r"-?\d+", "a whole number"),
    "uint": (r"\d+", "a whole number"),
    "duration": (r"0|(\d+(\.\d+)?(ns|us|ms|s|m|h))+", "a duration such as 30s or 5m"),
}


def _minor(version: str) -> Tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def flags_of(version: str) -> Dict[str, str]:
    """Name -> kind of every option of a version; a version newer than the table counts as its newest."""
    wanted = min(_minor(version), _minor(LAST))
    found = {}
    for line in FLAGS.split("\n"):
        if line:
            name, kind, first, gone = line.split()
            if _minor(first) <= wanted and (gone == "-" or wanted < _minor(gone)):
                found[name] = kind
    return found


def text_of(value: Any) -> str:
    """A value as it stands in an option's file."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return ",".join(text_of(one) for one in value) if isinstance(value, (list, tuple)) else str(value).strip()


def problems(version: str, options: Mapping[str, Any]) -> List[str]:
    """Every reason why a version cannot be given these options, in words; empty when it can."""
    if _minor(version) < _minor(FIRST):
        return ["version {0} is older than {1}, the first that knows modes: a policy in monitor would enforce there".format(version, FIRST)]
    known, found = flags_of(version), []
    for name, value in sorted(options.items()):
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.7)
            hint = "; did you mean {0}?".format(near[0]) if near else ""
            found.append("version {0} has no option {1!r}{2}".format(version, name, hint))
        elif name in OF_THE_SLOT:
            found.append("option {0} is not for the user: each slot has its own".format(name))
        elif known[name] == "bool" and text_of(value).lower() not in _WORDS:
            found.append("option {0} is true or false, not {1!r}".format(name, text_of(value)))
        elif known[name] in _PATTERNS and not re.match("^(?:{0})$".format(_PATTERNS[known[name]][0]), text_of(value)):
            found.append("option {0} is {1}, not {2!r}".format(name, _PATTERNS[known[name]][1], text_of(value)))
    return found


def differences(version: str, wanted: Mapping[str, str], effective: Mapping[str, Any]) -> List[str]:
    """Where the agent's effective options (``tetra info``) are not the wanted ones, in words."""
    kinds, found = flags_of(version), []
    for name, value in sorted(wanted.items()):
        if name not in effective:
            found.append("the agent does not list its option {0}".format(name))
        elif _plain(kinds.get(name, "text"), effective[name]) != _plain(kinds.get(name, "text"), value):
            found.append("option {0} is {1!r} in the agent, not {2!r}".format(name, text_of(effective[name]), value))
    return found


def _plain(kind: str, value: Any) -> Any:
    text = text_of(value)
    if kind == "bool":
        return _WORDS.get(text.lower(), text)
    return text.strip("[]") if kind == "list" else text
