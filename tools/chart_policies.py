# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Make charts/apiary/files/policies from the library: every policy with a cluster form that needs no values, in monitor."""

from __future__ import annotations

from pathlib import Path

from ansible_collections.apiary.tetragon.plugins.plugin_utils.environment import DEFAULT_PROTECTED
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.load import Library
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.render import render

ROOT = Path(__file__).parents[1]
FILES = ROOT / "charts/apiary/files/policies"


def files() -> dict[str, str]:
    """File name -> text."""
    found = {}
    for policy in Library([ROOT / "policies"]):
        if "cluster" in policy.meta["forms"] and not any(spec.required for spec in policy.inputs.values()):
            found[f"{policy.name}.yaml"] = render(policy, {}, "cluster", DEFAULT_PROTECTED).text("monitor")
    return found


def main() -> None:
    for path in FILES.glob("*"):
        path.unlink()
    for name, text in files().items():
        (FILES / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
