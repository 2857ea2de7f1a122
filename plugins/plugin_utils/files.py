# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Files on the controller that are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import refuse


def write(path: Path, text: str) -> None:
    """Write a file in one rename, on disk before this returns. Raises Refused, and then a former file is as it was."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise refuse(f"cannot be written: {error.strerror}; free some space or name another directory", file=str(path)) from None
