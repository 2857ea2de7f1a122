# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Results of checks, kept by the digest of everything they depend on: inputs, policy files, and the code itself."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils import canonical


@functools.cache
def _code() -> str:
    """Digest of the code whose results are kept."""
    here = Path(__file__).parent
    files = sorted([*here.glob("*.py"), *(here.parent / "replay").glob("*.py"), *here.parent.glob("*.py")])
    return canonical.digest([canonical.digest(path.read_bytes()) for path in files])


class Cache:
    """JSON results by key: in memory, and on disk when there is a directory. An unreadable entry counts as none."""

    def __init__(self, directory: str | Path | None = None) -> None:
        self.directory = Path(directory) if directory else None
        self._memory: dict[str, Any] = {}

    def get(self, parts: Any, compute: Callable[[], Any]) -> Any:
        """The result for ``parts`` (anything JSON can hold), computed when it is not known yet."""
        key = canonical.digest([_code(), parts])
        if key not in self._memory:
            self._memory[key] = self._load(key)
        if self._memory[key] is None:
            self._memory[key] = result = compute()
            self._store(key, result)
        return self._memory[key]

    def _path(self, key: str) -> Path | None:
        return self.directory / key[:2] / f"{key[2:]}.json" if self.directory else None

    def _load(self, key: str) -> Any:
        path = self._path(key)
        try:
            return json.loads(path.read_bytes()) if path else None
        except (OSError, ValueError):
            return None

    def _store(self, key: str, result: Any) -> None:
        path = self._path(key)
        if path is None:
            return
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=path.parent)
            try:
                with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                    json.dump(result, file)
                Path(temporary).replace(path)
            except BaseException:
                Path(temporary).unlink()
                raise
