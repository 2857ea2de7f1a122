# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Takes secrets out of exported events before they leave the host, and counts what it took.

What a filter can compare is never replaced by another value, as a replay would then judge what did not happen: it becomes
an argument of no known type, which a replay calls undecidable.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, Dict, List, Mapping

ARGUMENTS = ("secrets", "all", "keep")
MARK = "[scrubbed]"
_NAMES = "pass(?:word|wd|phrase)?|secret|token|api[-_]?key|access[-_]?key|private[-_]?key|credentials?|auth(?:orization)?|cookie|session"
_SECRETS = (
    re.compile(r"(?i)(\bBearer\s+|\bBasic\s+)([A-Za-z0-9+/=._-]{8,})"),
    # name=value, name: value, --name value, in any of the spellings of a name that says what it is
    re.compile(
        r"(?i)((?:^|[\s\"'&?;,{{])-{{0,2}}[\w.-]*(?:{0})[\w.-]*[\"']?(?:\s*[=:]\s*|\s+)[\"']?)(?!\[scrubbed\])([^\s\"'&;,]+)".format(_NAMES)
    ),
    re.compile(r"(://[^/\s:@]*:)([^/\s@]+)(?=@)"),
    re.compile(r"()(-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z))", re.DOTALL),
    re.compile(r"()\b((?:AKIA|ASIA)[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{20,}|xox[abprs]-[A-Za-z0-9-]{10,}|eyJ[\w-]{8,}\.[\w-]+\.[\w-]*)"),
)
_ADDRESS = re.compile(r"\b(?:\d{1,3}\.){3}\d{1,3}\b|(?<![\w:])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])")
_SOCKETS = ("sock_arg", "skb_arg", "sockaddr_arg")
_BUFFERS = ("bytes_arg", "truncated_bytes_arg")


class Scrubber:
    """``arguments`` of processes: their secrets taken out, all of them, or none; ``addresses`` taken out or kept.

    ``counts`` says how many arguments, strings, environment variables, buffers and addresses were changed.
    """

    def __init__(self, arguments: str = "secrets", addresses: bool = False) -> None:
        self.arguments = arguments
        self.addresses = addresses
        self.counts: Counter[str] = Counter()

    def event(self, event: Dict[str, Any]) -> Dict[str, Any]:
        """Scrub one event in place; returns it."""
        for name, body in event.items():
            if name.startswith("process_") and isinstance(body, dict):
                for who in [body.get("process"), body.get("parent"), *(body.get("ancestors") or ())]:
                    if isinstance(who, dict):
                        self._process(who)
                for key in ("args", "data"):
                    if isinstance(body.get(key), list):
                        body[key] = [self._argument(one) for one in body[key]]
                if isinstance(body.get("return"), dict):
                    body["return"] = self._argument(body["return"])
        return event

    def _process(self, process: Dict[str, Any]) -> None:
        said = process.get("arguments")
        if said and self.arguments != "keep":
            clean = MARK if self.arguments == "all" else self.text(said)
            if clean != said:
                self.counts["arguments"] += 1
                process["arguments"] = clean
        if process.get("arguments") and self.addresses:
            process["arguments"] = self._without_addresses(process["arguments"])
        for variable in process.get("environment_variables") or ():
            if isinstance(variable, dict) and variable.get("value"):
                variable["value"] = MARK
                self.counts["environment"] += 1

    def _argument(self, argument: Any) -> Any:
        if not isinstance(argument, dict):
            return argument
        if self.addresses and any(member in argument for member in _SOCKETS):
            return self._taken(argument, "addresses")
        if any(member in argument for member in _BUFFERS):
            return self._taken(argument, "buffers")
        text = argument.get("string_arg")
        if isinstance(text, str):
            if self.text(text) != text:
                return self._taken(argument, "strings")
            if self.addresses and _ADDRESS.search(text):
                return self._taken(argument, "addresses")
        return argument

    def _taken(self, argument: Dict[str, Any], what: str) -> Dict[str, Any]:
        self.counts[what] += 1
        label = {"label": argument["label"]} if "label" in argument else {}
        return dict({"scrubbed_arg": what}, **label)

    def text(self, text: str) -> str:
        """A text without what looks like a secret in it."""
        for pattern in _SECRETS:
            text = pattern.sub(lambda match: match.group(1) + MARK, text)
        return text

    def _without_addresses(self, text: str) -> str:
        clean, found = _ADDRESS.subn(MARK, text)
        self.counts["addresses"] += found
        return clean


_WORDS = {
    "arguments": "command lines changed",
    "strings": "text arguments of hooks taken out",
    "environment": "values of environment variables taken out",
    "buffers": "buffers taken out",
    "addresses": "network addresses taken out",
}


def told(counts: Mapping[str, int]) -> List[str]:
    """What was taken out, in words."""
    return ["{0} {1}".format(counts[what], words) for what, words in _WORDS.items() if counts.get(what)]
