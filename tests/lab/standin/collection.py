# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Makes the collection's code importable where no collection is installed: on a lab's hosts, and in a checkout."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path

_NAMES = ("ansible_collections", "ansible_collections.apiary", "ansible_collections.apiary.tetragon")


def link() -> None:
    """Take ``plugins`` from ``$STANDIN_COLLECTION`` or the nearest directory above this file that has it.

    Without either, the collection must be on PYTHONPATH.
    """
    chosen = os.environ.get("STANDIN_COLLECTION")
    homes = [Path(chosen)] if chosen else list(Path(__file__).resolve().parents)
    home = next((one for one in homes if (one / "plugins" / "plugin_utils").is_dir()), None)
    if home is None or _NAMES[-1] in sys.modules:
        return
    for name in _NAMES:
        module = sys.modules.setdefault(name, types.ModuleType(name))
        module.__path__ = [str(home)] if name == _NAMES[-1] else []
