# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The tree on disk: what a run would change, and changing it. Files that are not ours are never touched."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ansible_collections.apiary.tetragon.plugins.plugin_utils import files
from ansible_collections.apiary.tetragon.plugins.plugin_utils.environment import Environment
from ansible_collections.apiary.tetragon.plugins.plugin_utils.gitops import layout
from ansible_collections.apiary.tetragon.plugins.plugin_utils.gitops.layout import Cluster, Rendered
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Problem, Refused, refuse

CODEOWNERS = "CODEOWNERS"


@dataclass(frozen=True)
class Change:
    """One file: its text before and after, None where there is none."""

    path: Path
    before: str | None
    after: str | None


@dataclass(frozen=True)
class Plan:
    """The changes in the order in which they are made, and which bundle each ring then names: cluster -> ring -> bundle."""

    changes: tuple[Change, ...]
    rings: Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Wanted:
    """What the tree is to hold. ``owners`` is a CODEOWNERS file and our lines in it."""

    bundle: str
    clusters: Mapping[Cluster, Rendered]
    argocd: Mapping[str, str]
    owners: tuple[Path, str]


def read(path: Path) -> str | None:
    """The text of a file, None where there is none. Raises Refused for what cannot be read."""
    try:
        return path.read_text("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise refuse(f"cannot be read: {error}", file=str(path)) from None


def propose(root: Path, environment: Environment, wanted: Wanted) -> Plan:
    """Write a new bundle for every cluster and let the first ring take it; the others stay where they are.

    A ring that is new on a cluster takes it too: until then its nodes would be without an agent.
    """
    fixed: dict[str, str] = {}
    current = dict(wanted.argocd)
    named: dict[str, dict[str, str]] = {}
    lines: dict[str, str] = {}
    for cluster, rendered in wanted.clusters.items():
        fixed |= rendered.sets
        fixed |= {f"{cluster.bundles()}/{wanted.bundle}/{place}": text for place, text in rendered.inside.items()}
        current |= rendered.current
        named[cluster.name] = {}
        for ring in layout.rings_of(cluster, environment):
            place = cluster.ring(ring.name)
            former = read(root / place)
            bundle = (
                wanted.bundle
                if ring == environment.rings[0] or former is None
                else layout.bundle_named(former, ring.name, str(root / place))
            )
            named[cluster.name][ring.name] = bundle
            lines[place] = layout.ring_kustomization(cluster, ring.name, bundle)
            _there(root, cluster, ring.name, bundle, fixed)
    changes = [*_fixed(root, fixed), *_current(root, current)]
    path, block = wanted.owners
    text = read(path)
    with_ours = layout.with_block(text or "", block)
    if with_ours != text:
        changes.append(Change(path, text, with_ours))
    changes += _current(root, lines)
    changes += _obsolete(root, wanted.clusters, {*current, *lines})
    if any(change.before is None and change.path.parent.parent.name == wanted.bundle for change in changes):
        changes += _unnamed(root, wanted.clusters, fixed, lines)
    return Plan(tuple(changes), named)


def promote(root: Path, clusters: Sequence[Cluster], environment: Environment, ring: str) -> Plan:
    """Let a ring take, on every cluster, the bundle that the ring before it has: one line of one file each."""
    texts: dict[tuple[Cluster, str], str] = {}
    named: dict[str, dict[str, str]] = {}
    for cluster in clusters:
        named[cluster.name] = {}
        for one in layout.rings_of(cluster, environment):
            path = root / cluster.ring(one.name)
            text = read(path)
            if text is None:
                raise refuse("is missing: run the playbook apiary.tetragon.gitops without apiary_promote first", file=str(path))
            texts[cluster, one.name] = text
            named[cluster.name][one.name] = layout.bundle_named(text, one.name, str(path))
    names = [one.name for one in environment.rings if any(one.name in taken for taken in named.values())]
    if ring not in names[1:]:
        raise refuse(f"ring {ring!r} cannot be promoted; rings that follow another one: {', '.join(names[1:]) or 'none'}")
    before = names[names.index(ring) - 1]
    ahead = {name: taken[before] for name, taken in named.items() if before in taken}
    if len(set(ahead.values())) > 1:
        listed = "; ".join(f"{name}: {bundle}" for name, bundle in ahead.items())
        raise refuse(f"ring {before} has not the same bundle on all clusters ({listed}): promote it first")
    bundle = next(iter(ahead.values()))
    changes = []
    for (cluster, name), text in texts.items():
        former = named[cluster.name][name]
        if name == ring and former != bundle:
            _there(root, cluster, ring, bundle, ())
            changes.append(Change(root / cluster.ring(ring), text, text.replace(f"/bundles/{former}/", f"/bundles/{bundle}/")))
            named[cluster.name][name] = bundle
    return Plan(tuple(changes), named)


def apply(plan: Plan) -> None:
    """Make the changes, the lines that name a bundle after the bundle."""
    for change in plan.changes:
        if change.after is not None:
            files.write(change.path, change.after)
            continue
        try:
            change.path.unlink(missing_ok=True)
        except OSError as error:
            raise refuse(f"cannot be removed: {error.strerror}", file=str(change.path)) from None
        with contextlib.suppress(OSError):  # the first directory that still holds something
            for parent in change.path.parents:
                parent.rmdir()


def _there(root: Path, cluster: Cluster, ring: str, bundle: str, written: Collection[str]) -> None:
    place = f"{cluster.bundles()}/{bundle}/{ring}/{layout.KUSTOMIZATION}"
    if place not in written and not (root / place).is_file():
        raise refuse(
            f"names bundle {bundle}, which has nothing for ring {ring}: no {root / place}; bring it back from git or name another one",
            file=str(root / cluster.ring(ring)),
        )


def _fixed(root: Path, wanted: Mapping[str, str]) -> list[Change]:
    changes, problems = [], []
    for place, text in sorted(wanted.items()):
        before = read(root / place)
        if before is None:
            changes.append(Change(root / place, None, text))
        elif before != text:
            problems.append(
                Problem(str(root / place), 0, "", "was altered, and the name of its directory says what it holds: bring it back from git")
            )
    if problems:
        raise Refused(problems)
    return changes


def _current(root: Path, wanted: Mapping[str, str]) -> list[Change]:
    changes, problems = [], []
    for place, text in sorted(wanted.items()):
        before = read(root / place)
        if before is not None and not before.startswith(layout.OWN):
            problems.append(Problem(str(root / place), 0, "", f"is not ours (it does not begin with {layout.OWN.strip()!r}): move it away"))
        elif before != text:
            changes.append(Change(root / place, before, text))
    if problems:
        raise Refused(problems)
    return changes


def _obsolete(root: Path, clusters: Mapping[Cluster, object], wanted: Collection[str]) -> Iterator[Change]:
    """Files of ours, of these clusters and outside bundles, that are not wanted any more."""
    for cluster in clusters:
        for place in (f"clusters/{cluster.name}/rings", f"common/{cluster.name}"):
            for path in sorted((root / place).rglob("*.yaml")):
                text = read(path) or ""
                if path.relative_to(root).as_posix() not in wanted and text.startswith(layout.OWN):
                    yield Change(path, text, None)


def _unnamed(root: Path, clusters: Mapping[Cluster, object], fixed: Mapping[str, str], lines: Mapping[str, str]) -> Iterator[Change]:
    """Bundles that no ring names, neither before nor after this run, and sets that no bundle is left to need."""
    named = {path: layout.referenced(read(path) or "") for path in root.glob(f"clusters/*/rings/*/{layout.KUSTOMIZATION}")}
    kept = {(path.parts[-4], bundle) for path, bundles in named.items() for bundle in bundles}
    kept |= {(place.split("/")[1], bundle) for place, text in lines.items() for bundle in layout.referenced(text)}
    dropped = [
        ring
        for cluster in clusters
        for ring in sorted((root / cluster.bundles()).glob("*/*"))
        if (cluster.name, ring.parent.name) not in kept and (read(ring / layout.KUSTOMIZATION) or "").startswith(layout.OWN)
    ]
    needed = {place.rpartition("/")[0] for place in fixed if place.endswith(layout.KUSTOMIZATION)}
    for path in root.glob(f"clusters/*/bundles/*/*/{layout.KUSTOMIZATION}"):
        if path.parent not in dropped:
            needed |= {_below(root, path.parent / one) for one in _listed(path, "resources")}
    for directory in dropped:
        yield from _whole(directory, _listed(directory / layout.KUSTOMIZATION, "resources"))
    for path in sorted(root.glob(f"*/*/{layout.KUSTOMIZATION}")):
        generators = _listed(path, "configMapGenerator")
        if generators and _below(root, path.parent) not in needed and (read(path) or "").startswith(layout.OWN):
            yield from _whole(path.parent, generators[0]["files"])


def _listed(path: Path, key: str) -> list[Any]:
    return (yaml.safe_load(read(path) or "") or {}).get(key) or []


def _below(root: Path, path: Path) -> str:
    return path.resolve().relative_to(root.resolve()).as_posix()


def _whole(directory: Path, names: Sequence[str]) -> Iterator[Change]:
    for name in [*(one for one in names if not one.startswith("../")), layout.KUSTOMIZATION]:
        text = read(directory / name)
        if text is not None:
            yield Change(directory / name, text, None)
