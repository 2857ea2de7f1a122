# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Make plugins/module_utils/agent/flagtable.py from the agent's source: flags.py GIT_DIRECTORY MINOR=REF...

For example: flags.py tetragon.git 1.6=v1.6.1 1.7=v1.7.0 1.8=main
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

TABLE = Path(__file__).parents[1] / "plugins/module_utils/agent/flagtable.py"
KINDS = {"Bool": "bool", "Int": "int", "Uint": "uint", "Uint64": "uint", "Duration": "duration", "String": "text", "StringSlice": "list"}
HEAD = '''# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The agent's options by minor release: name, kind, first release, and the one that no longer has it.

Made by tools/flags.py from the agent's source ({sources}).
"""

FIRST, LAST = "{first}", "{last}"
FLAGS = """
'''


def flags_of(git: str, ref: str) -> dict[str, str]:
    """Name -> kind of every flag at one ref."""
    command = ["git", "-C", git, "show", f"{ref}:pkg/option/flags.go"]
    source = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names = dict(re.findall(r'^\s*(?:const\s+)?([A-Z]\w+)\s*=\s*"([a-z0-9-]+)"', source, re.MULTILINE))
    made = re.findall(r"\bflags\.(Bool|Int|Uint|Uint64|Duration|String|StringSlice)P?\((\w+),", source)
    return {names[constant]: KINDS[kind] for kind, constant in made}


def main() -> None:
    git, *pairs = sys.argv[1:]
    minors = [pair.partition("=")[::2] for pair in pairs]
    found = {minor: flags_of(git, ref) for minor, ref in minors}
    order = list(found)
    lines = []
    for name in sorted({name for flags in found.values() for name in flags}):
        having = [minor for minor in order if name in found[minor]]
        after = order.index(having[-1]) + 1
        gone = order[after] if after < len(order) else "-"
        lines.append(f"{name} {found[having[-1]][name]} {having[0]} {gone}\n")
    head = HEAD.format(sources=", ".join(ref for _unused, ref in minors), first=order[0], last=order[-1])
    TABLE.write_text(head + "".join(lines) + '"""\n', encoding="utf-8")


if __name__ == "__main__":
    main()
