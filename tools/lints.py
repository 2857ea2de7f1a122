# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""docs/lints.md from the catalogue of lints: ``lints.py > docs/lints.md``."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.catalogue import CATALOGUE, KINDS, Rule
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.migrate import CHANGES

WIDTH = 120
HEAD = """\
# Lints

What a policy does before a kernel runs it: what the agent would refuse, what it would load and then do otherwise, and
what is written as meant and still goes wrong. An error keeps a policy out of a bundle, a warning is shown. Every example
and every fix below is a test.

A policy can allow a rule, with its reason, in `meta.yml`:

```yaml
lint:
  allow:
    - {rule: bind-mount, reason: nobody but root can mount on these hosts}
```

What the agent refuses cannot be allowed, nor a rule that the policy does not break.

Examples are specs of a policy for agent 1.7.0 in mode monitor, on kernels of which nothing is known but that they are
5.15 or newer; what differs is said. An environment can tell what its kernels have: see `environments.md`.
"""


MIGRATION = """\
`migrate()` holds a policy against two agent versions, up or down, and says what changes: what the other version refuses,
which rules it breaks there and not here or here and not there, links that are pinned, what the agent must have, and:
"""


def circumstances(rule: Rule) -> Iterator[str]:
    """What the example supposes beyond the usual."""
    if rule.version != (1, 7, 0):
        yield f"agent {'.'.join(map(str, rule.version))}"
    if rule.mode != "monitor":
        yield f"mode {rule.mode}"
    if rule.namespace:
        yield "a policy of a namespace"
    if rule.protected:
        yield f"protected: {', '.join(rule.protected)}"
    if rule.policies > 1:
        yield f"{rule.policies} such policies on a host"
    for key, value in rule.kernel.items():
        yield f"kernels: {key} {_plain(value)}"


def _plain(value: Any) -> str:
    return ", ".join(f"{name} {str(one).lower()}" for name, one in value.items()) if isinstance(value, Mapping) else str(value)


def shown(rule: Rule) -> Iterator[str]:
    """One rule."""
    yield f"### `{rule.id}` ({rule.severity})\n"
    yield f"**{rule.title}.** {rule.why}"
    yield f"Source: {rule.source}."
    supposed = ", ".join(circumstances(rule))
    yield f"\nBreaks it{f' ({supposed})' if supposed else ''}:\n\n```yaml\n{rule.example}\n```\n\nKeeps it:\n\n```yaml\n{rule.fix}\n```\n"


def text() -> str:
    """The document."""
    lines = [HEAD]
    for kind, title in KINDS.items():
        rules = [rule for rule in CATALOGUE.values() if rule.kind == kind]
        lines.append(f"## {title}\n\n| rule | | |\n|---|---|---|")
        lines += [f"| [`{rule.id}`](#{rule.id}-{rule.severity}) | {rule.severity} | {rule.title} |" for rule in rules]
        lines.append("")
        for rule in rules:
            for part in shown(rule):
                is_text = part.startswith(("**", "Source"))
                lines.append(textwrap.fill(part, WIDTH, break_long_words=False, break_on_hyphens=False) if is_text else part)
    lines.append("## Between versions\n")
    lines.append(MIGRATION)
    lines.append("| since | before | from then on | source |\n|---|---|---|---|")
    lines += [f"| {'.'.join(map(str, one.since))} | {one.before} | {one.after} | {one.source} |" for one in CHANGES]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
