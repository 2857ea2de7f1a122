# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The command ``act``: attempt acts on a host and say how each ended."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.records import Pod

from .acts import UnknownAct
from .kernel import Caller, Kernel
from .root import Root

_USAGE = """usage: act [--json] [--binary PATH] [--parent PATH] [--pid N] [--tid N] [--container] [--pod NS/NAME[,LABEL=VALUE...]]
           ACT [ARGUMENT...] [-- ACT [ARGUMENT...]]...
Exit code: 0 all allowed, 1 one denied, 137 killed (what follows is not attempted), 2 wrong use.
"""
_CODES = {"allowed": 0, "denied": 1, "killed": 137}


def pod(text: str) -> Pod:
    """``shop/cart,app=cart`` as a pod whose container has the pod's name."""
    name, *labels = text.split(",")
    namespace, _unused, own = name.partition("/")
    return Pod(namespace, dict(one.split("=", 1) for one in labels), own, f"example.test/{own}")


def _parse(arguments: Sequence[str]) -> tuple[dict[str, Any], bool, list[list[str]]]:
    caller: dict[str, Any] = {}
    words = list(arguments)
    as_json = False
    while words and words[0].startswith("--"):
        option = words.pop(0)[2:]
        if option == "json":
            as_json = True
        elif option == "container":
            caller["container"] = True
        elif option in ("pid", "tid"):
            caller[option] = int(words.pop(0))
        elif option == "pod":
            caller |= {"pod": pod(words.pop(0)), "container": True}
        elif option in ("binary", "parent"):
            caller[option] = words.pop(0)
        else:
            raise ValueError(f"unknown option --{option}")
    several: list[list[str]] = [[]]
    for word in words:
        several = [*several, []] if word == "--" else [*several[:-1], [*several[-1], word]]
    return caller, as_json, several


def main(arguments: Sequence[str]) -> int:
    try:
        caller, as_json, several = _parse(arguments)
        kernel, code = Kernel(Root()), 0
        for words in several:
            result = kernel.act(*words, caller=Caller(**caller))
            reason = f" ({result.error})" if result.result == "denied" else ""
            print(json.dumps(asdict(result)) if as_json else f"{result.act}: {result.result}{reason}")
            for undecided in result.undecided:
                sys.stderr.write(f"undecided: {undecided}\n")
            code = max(code, _CODES[result.result])
            if result.result == "killed":
                break
    except (UnknownAct, ValueError, IndexError) as error:
        sys.stderr.write(f"act: {error}\n{_USAGE}")
        return 2
    return code
