# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Recordings on disk: JSON lines as the agent exports them, plain or gzip."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import refuse
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay import records
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.compile import recorder


def read(
    path: Path, recorded_under: Mapping[str, Any], executables: Mapping[str, str] | None, at_hook: bool = False
) -> Iterator[records.Invocation]:
    """Every hook invocation in one file, in file order (see ``records.decode``).

    Raises Refused for a file that cannot be read and for a line that is no JSON object.
    """
    declared = recorder(recorded_under)
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    event = json.loads(line)
                except ValueError as error:
                    raise refuse(f"is not JSON: {error}", file=str(path), line=number) from None
                if not isinstance(event, dict):
                    raise refuse("is not a JSON object", file=str(path), line=number)
                invocation = records.decode(event, declared, executables, at_hook, (str(path), number))
                if invocation is not None:
                    yield invocation
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise refuse(f"cannot be read: {error}", file=str(path)) from None
