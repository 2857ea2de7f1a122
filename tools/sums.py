# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Keep plugins/plugin_utils/release/sums.yml: sums.py [--from SOURCE] VERSION...

Reads each release's own ``<tarball>.sha256sum`` for both architectures. SOURCE is an address or a path with {version},
{architecture} and {file}, as for the collection; the release site by default. A sum that differs from a known one is an
error, not an update: somebody has to find out which is wrong.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import yaml

from ansible_collections.apiary.tetragon.plugins.module_utils.agent.release import ReleaseError, exact_version
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Refused, refuse
from ansible_collections.apiary.tetragon.plugins.plugin_utils.release.fetch import SITE, SUMS, Release, locate, open_source

_HEAD = "# SHA-256 of the agent's release tarballs, kept by tools/sums.py. Only what is really known is here: `learned` says how.\n---\n"


def published(release: Release, source: str) -> str:
    """The sum that stands beside a tarball. Raises Refused when there is none, or it is another file's."""
    place = locate(release, source) + ".sha256sum"
    with open_source(place, release, "") as (stream, _size):
        text = stream.read(4096).decode("utf-8", "replace")
    found = re.match(rf"^([0-9a-f]{{64}}) [ *](?:\S*/)?{re.escape(release.file)}\s*$", text)
    if not found:
        raise refuse(f"{place}: holds no SHA-256 of {release.file}: {text[:80]!r}")
    return found.group(1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", default=SITE, metavar="SOURCE")
    parser.add_argument("--table", type=Path, default=SUMS, help=argparse.SUPPRESS)
    parser.add_argument("versions", nargs="+", metavar="VERSION")
    options = parser.parse_args()
    table = yaml.safe_load(options.table.read_text(encoding="utf-8")) or {}
    try:
        for version in map(exact_version, options.versions):
            for arch in ("amd64", "arm64"):
                release = Release(version, arch)
                sum_ = published(release, options.source)
                known = table.setdefault(version, {}).setdefault(arch, {"sha256": sum_, "learned": "the release's own .sha256sum"})
                if known["sha256"] != sum_:
                    raise refuse(f"{release}: {options.source} says {sum_}, the table says {known['sha256']} ({known['learned']})")
    except (Refused, ReleaseError) as error:
        print(f"sums: {error}", file=sys.stderr)
        return 1
    ordered = {version: dict(sorted(table[version].items())) for version in sorted(table, key=_order)}
    options.table.write_text(_HEAD + yaml.safe_dump(ordered, sort_keys=False, width=140), encoding="utf-8")
    return 0


def _order(version: str) -> tuple[list[int], bool, str]:
    numbers, _unused, pre = version.partition("-")
    return [int(one) for one in numbers.split(".")], not pre, pre


if __name__ == "__main__":
    sys.exit(main())
