# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Bundles: the rendered, checked, content-addressed set of policies of one environment.

On disk a bundle is a directory ``<environment>-<16 hex digits>`` with ``bundle.json`` (the manifest, whose SHA-256
begins with those digits) and one YAML file per loaded policy, each named in the manifest with its SHA-256.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils import canonical
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Problem, Refused, refuse

FORMAT = "apiary.dev/bundle/1"
MANIFEST = "bundle.json"
SHORT = 16


def directory_name(environment: str, digest: str) -> str:
    """The name of a bundle's directory."""
    return f"{environment}-{digest[:SHORT]}"


def label(digest: str) -> str:
    """A bundle's digest for a person; an empty one stands for no policies."""
    return digest[:SHORT] if digest else "(no policies)"


@dataclass(frozen=True)
class Bundle:
    """A manifest and the text of each policy file it names."""

    manifest: Mapping[str, Any]
    files: Mapping[str, str]

    @property
    def digest(self) -> str:
        return canonical.digest(_manifest_bytes(self.manifest))

    @property
    def name(self) -> str:
        return directory_name(self.environment, self.digest)

    @property
    def environment(self) -> str:
        return str(self.manifest["environment"])

    def policies_for(self, groups: Iterable[str], form: str = "host") -> list[dict[str, Any]]:
        """The policies of a host in these inventory groups, in load order, each with its ``text``."""
        member = frozenset(groups)
        chosen = []
        for one in self.manifest["assignments"]:
            if one["form"] != form or (one["where"] and member.isdisjoint(one["where"])):
                continue
            loaded = next(choice["loaded"] for choice in one["choices"] if not choice["where"] or not member.isdisjoint(choice["where"]))
            chosen.append(loaded)
        policies = {one["loaded"]: one for one in self.manifest["policies"] if one["form"] == form}
        return [{**policies[loaded], "text": self.files[policies[loaded]["file"]]} for loaded in _load_order(chosen, policies)]


def _load_order(names: Iterable[str], policies: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Policies whose links the agent does not pin load first: their protection starts anew with every agent."""
    return sorted(names, key=lambda name: (not policies[name]["unpinned"], name))


def _manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    return json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def needs(policies: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every requirement of these policies once, with the policies that have it."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for policy in policies:
        for need in policy["requirements"]:
            key = (need["kind"], *need["any_of"], need["reason"])
            entry = found.setdefault(key, {**need, "policies": []})
            if policy["reference"] not in entry["policies"]:
                entry["policies"].append(policy["reference"])
    return list(found.values())


def write(bundle: Bundle, directory: str | Path) -> Path:
    """Write a bundle below ``directory`` in one rename; one that is there already is verified and left alone."""
    target = Path(directory) / bundle.name
    if target.exists():
        read(target)
        return target
    staging = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{bundle.name}.", dir=target.parent))
        for name, text in bundle.files.items():
            (staging / name).write_text(text, encoding="utf-8")
        (staging / MANIFEST).write_bytes(_manifest_bytes(bundle.manifest))
        for path in staging.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        staging.chmod(0o755)
        staging.rename(target)
    except OSError as error:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        if target.is_dir():  # another build was faster
            read(target)
            return target
        raise refuse(f"bundle cannot be written: {error}", file=str(target)) from None
    return target


def read(path: str | Path) -> Bundle:
    """Read a bundle and verify every byte of it. Raises Refused naming what was altered."""
    directory = Path(path)
    try:
        raw = (directory / MANIFEST).read_bytes()
        present = sorted(entry.name for entry in directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        raise refuse(
            "is no bundle: it has no bundle.json; build one with the playbook apiary.tetragon.bundle", file=str(directory)
        ) from None
    except OSError as error:
        raise refuse(f"bundle cannot be read: {error}", file=str(directory)) from None
    stated = directory.name.rpartition("-")[2]
    actual = canonical.digest(raw)
    if len(stated) != SHORT or not actual.startswith(stated):
        raise refuse(
            f"has the digest {actual[:SHORT]}, but its directory says {stated!r}: it was altered or renamed; build the bundle again",
            file=str(directory / MANIFEST),
        )
    manifest = json.loads(raw)
    name = directory_name(str(manifest.get("environment")), actual)
    if directory.name != name:
        raise refuse(f"is the bundle {name}, but its directory was renamed: give it its name back", file=str(directory / MANIFEST))
    if manifest.get("format") != FORMAT:
        raise refuse(f"has format {manifest.get('format')!r}; this collection reads {FORMAT}", file=str(directory / MANIFEST))
    problems, files = [], {}
    for one in manifest["policies"]:
        file = directory / one["file"]
        content = file.read_bytes() if file.is_file() else b""
        if canonical.digest(content) != one["sha256"]:
            problems.append(
                Problem(str(file), 0, "", "was altered or is missing: its digest is not the one in bundle.json; build the bundle again")
            )
        files[one["file"]] = content.decode("utf-8", "replace")
    problems += [
        Problem(str(directory / name), 0, "", "does not belong to the bundle: remove it")
        for name in present
        if name not in (*files, MANIFEST)
    ]
    if problems:
        raise Refused(problems)
    return Bundle(manifest, files)


@dataclass(frozen=True)
class Change:
    """How one policy differs between two bundles. ``details`` are lines for a person, ``summary`` is one line of them."""

    policy: str
    kind: str
    details: tuple[str, ...]
    summary: str = ""

    def __str__(self) -> str:
        if self.kind == "changed":
            return "\n".join([f"~ {self.policy}", *(f"    {line}" for line in self.details)])
        return f"{'+' if self.kind == 'added' else '-'} {self.policy}  ({self.summary})"


def diff(old: Bundle | None, new: Bundle | None) -> list[Change]:
    """What a person wants to know before shipping ``new`` over ``old``; None stands for no policies at all."""
    before, after = _by_policy(old), _by_policy(new)
    changes = []
    for key in sorted({*before, *after}):
        label = key[0] if key[1] == "host" else f"{key[0]} ({key[1]} form)"
        if key not in before:
            changes.append(Change(label, "added", tuple(_facts(after[key])), _headline(after[key])))
        elif key not in after:
            changes.append(Change(label, "removed", tuple(_facts(before[key])), _headline(before[key])))
        else:
            lines = _compare(_summary(before[key]), _summary(after[key]))
            if lines:
                changes.append(Change(label, "changed", tuple(lines)))
    return changes


def _by_policy(bundle: Bundle | None) -> dict[tuple[str, str], dict[str, Any]]:
    if bundle is None:
        return {}
    policies = {(one["loaded"], one["form"]): one for one in bundle.manifest["policies"]}
    return {
        (one["policy"], one["form"]): {
            "assignment": one,
            "variants": [policies[choice["loaded"], one["form"]] for choice in one["choices"]],
        }
        for one in bundle.manifest["assignments"]
    }


def _summary(policy: Mapping[str, Any]) -> dict[str, list[str]]:
    variants = policy["variants"]
    return {
        "revision": [one["revision"] for one in variants],
        "mode": sorted({one["mode"] for one in variants}),
        "hooks": sorted({hook for one in variants for hook in one["hooks"]}),
        "actions": sorted({action for one in variants for action in one["actions"]}),
        "scope": sorted({one["scope"] for one in variants}),
        "hosts": policy["assignment"]["where"] or ["all"],
        "overrides for hosts": [" or ".join(one["where"]) for one in policy["assignment"]["choices"] if one["where"]],
        "event budget": [str(max(one["event_budget"] for one in variants))],
        "owner": sorted({one["owner"] for one in variants}),
    }


def _facts(policy: Mapping[str, Any]) -> list[str]:
    return [f"{name}: {', '.join(values)}" for name, values in _summary(policy).items() if values]


def _headline(policy: Mapping[str, Any]) -> str:
    facts = _summary(policy)
    hooks = f"{len(facts['hooks'])} hook(s)"
    return ", ".join([*facts["mode"], hooks, "/".join(facts["actions"]), *facts["scope"], f"hosts: {' '.join(facts['hosts'])}"])


def _compare(before: Mapping[str, list[str]], after: Mapping[str, list[str]]) -> list[str]:
    lines = []
    for name in before:
        if before[name] == after[name]:
            continue
        if name in ("hooks", "actions"):
            gone, come = set(before[name]) - set(after[name]), set(after[name]) - set(before[name])
            lines.append(f"{name}: " + ", ".join([*(f"+{one}" for one in sorted(come)), *(f"-{one}" for one in sorted(gone))]))
        else:
            lines.append(f"{name}: {', '.join(before[name]) or 'none'} -> {', '.join(after[name]) or 'none'}")
    return lines
