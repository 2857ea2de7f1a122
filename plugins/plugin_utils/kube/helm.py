# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""One release through the program ``helm``, 3 or 4, and what a change would do through the API server first."""

from __future__ import annotations

import ctypes
import json
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.client import Api, ApiError, Place
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Problem, Refused, refuse

CHART = Path(__file__).parents[3] / "charts" / "apiary"
MANAGER = "helm"
_PENDING = "pending-"
_SECONDS = 600
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
Document = Mapping[str, Any]


@dataclass(frozen=True)
class Release:
    """A release as it stands: helm's word for its state, and the values it was given."""

    status: str
    revision: int
    values: Mapping[str, Any]


class Helm:
    """Calls of one ``helm`` against one cluster. It ends with the process that called it, so that no run outlives its controller."""

    def __init__(self, place: Place, program: str = "helm", chart: Path = CHART) -> None:
        self.place = place
        self.program = program
        self.chart = chart

    def version(self) -> str:
        """Its version, such as ``3.22.0``. Raises Refused for one before 3.13, which lacks what is asked of it, and after 4."""
        text = self._call("version", "--template", "{{.Version}}", at=False).strip()
        found = re.match(r"v?((\d+)\.(\d+)(?:\.\d+)?)", text)
        if not found or not (3, 13) <= (int(found[2]), int(found[3])) < (5, 0):
            raise refuse(f"is helm {text}; needed: helm 3.13 or newer, or 4; set apiary_helm to one", file=self.program)
        return found[1]

    def release(self) -> Release | None:
        """The release, or None when it is not installed."""
        # helm status would read every pod of the release: 1 GB of memory at thousands of nodes.
        known = self._find("get", "metadata", self.place.release, "-o", "json")
        if known is None:
            return None
        metadata = json.loads(known)
        values = json.loads(self._call("get", "values", self.place.release, "-o", "json"))
        return Release(metadata["status"], int(metadata["revision"]), values or {})

    def manifest(self) -> list[Document]:
        """The documents of the release as deployed."""
        return list(parse(self._find("get", "manifest", self.place.release) or ""))

    def render(self, values: Mapping[str, Any]) -> list[Document]:
        """The documents that these values would give, with what the API server can do in view."""
        with _file(values) as path:
            text = self._call(
                "template",
                self.place.release,
                str(self.chart),
                "-f",
                path,
                "--is-upgrade",
                "--no-hooks",
                "--dry-run=server",
            )
        return list(parse(text))

    def upgrade(self, values: Mapping[str, Any], create_namespace: bool = False) -> None:
        """Bring the release to these values, all of them; installs it where it is not. Does not wait for pods."""
        with _file(values) as path:
            flags = ["--create-namespace"] if create_namespace else []
            self._call(
                "upgrade", self.place.release, str(self.chart), "--install", "-f", path, "--reset-values", "--history-max", "10", *flags
            )

    def uninstall(self) -> bool:
        """Take the release off; False when there was none."""
        return self._find("uninstall", self.place.release) is not None

    def recover(self, api: Api) -> str:
        """Forget an upgrade that was cut off: helm refuses every other while it is there. Returns what was forgotten.

        What it had created is taken over by the next one, since it carries the release's name.
        """
        release = self.release()
        if release is None or not release.status.startswith(_PENDING):
            return ""
        name = f"sh.helm.release.v1.{self.place.release}.v{release.revision}"
        api.delete(self.place.path("v1", "secrets", name))
        return f"revision {release.revision} ({release.status})"

    def _find(self, *arguments: str) -> str | None:
        """Output of a call, or None when the release is not there."""
        try:
            return self._call(*arguments)
        except Refused as error:
            if "not found" in str(error):
                return None
            raise

    def _call(self, *arguments: str, at: bool = True) -> str:
        place = self.place
        where = ["--namespace", place.namespace] if at else []
        if at and place.context:
            where += ["--kube-context", place.context]
        if at and place.kubeconfig:
            where += ["--kubeconfig", place.kubeconfig]
        command = [self.program, *arguments, *where]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=_SECONDS,
                preexec_fn=_end_with_parent,
            )
        except FileNotFoundError:
            raise refuse("is not there: install helm 3 or 4 on the controller, or set apiary_helm to its path", file=self.program) from None
        except OSError as error:
            raise refuse(f"cannot be run: {error.strerror}; set apiary_helm to a helm 3 or 4", file=self.program) from None
        except subprocess.TimeoutExpired:
            raise refuse(f"helm {arguments[0]} did not end within {_SECONDS} s", path=f"cluster {place.name}") from None
        if done.returncode:
            text = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
            errors = [line for line in text.splitlines() if line.startswith("Error:")] or text.splitlines()[-1:]
            raise refuse(f"helm {arguments[0]}: {errors[0].removeprefix('Error: ')}", path=f"cluster {place.name}")
        return done.stdout


_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1


def _end_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class _file:
    """A file with values for the time of a call."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def __enter__(self) -> str:
        self.file = tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8")
        json.dump(self.values, self.file)
        self.file.flush()
        return self.file.name

    def __exit__(self, *_unused: object) -> None:
        self.file.close()


def parse(text: str) -> Iterator[Document]:
    """The documents of a manifest."""
    return (one for one in yaml.load_all(text, _LOADER) if one)


def same(new: Sequence[Document], old: Sequence[Document]) -> bool:
    """Whether two manifests have the same documents, in whatever order."""
    return {_identity(one): one for one in new} == {_identity(one): one for one in old}


def dry_run(api: Api, new: Sequence[Document], old: Sequence[Document]) -> None:
    """Have the API server try every document that is new or differs: its schema, admission, RBAC, and who owns its fields.

    Changes nothing. Raises Refused with all that it would not take.
    """
    before = {_identity(one): one for one in old}
    problems = []
    for document in new:
        if before.get(_identity(document)) == document:
            continue
        name = f"{document['kind']} {document['metadata']['name']}"
        try:
            problems += [_problem(api, name, text) for text in _try(api, document)]
        except ApiError as error:
            problems.append(_problem(api, name, f"would be refused by the API server: {error.message}"))
    if problems:
        raise Refused(problems)


def _problem(api: Api, name: str, text: str) -> Problem:
    return Problem(f"cluster {api.place.name}", 0, name, text)


def _identity(document: Document) -> tuple[str, str, str]:
    return (document["apiVersion"], document["kind"], document["metadata"]["name"])


def _try(api: Api, document: Document) -> Iterator[str]:
    path = resource_path(api, document)
    try:
        api.apply(path, document, manager=MANAGER, force=False, dry=True)
    except ApiError as error:
        if error.status != 409:
            raise
        foreign = [cause for cause in error.causes if f'"{MANAGER}"' not in cause.get("message", "")]
        for cause in foreign:
            yield (
                f"field {cause.get('field', '')}: {cause.get('message', '')}: somebody else manages it; give it up there "
                "(or delete the object), so that the release can set it"
            )
        if not foreign:
            api.apply(path, document, manager=MANAGER, force=True, dry=True)


def resource_path(api: Api, document: Document) -> str:
    """The path of a document, from what the API server says of its kind. Raises Refused when it does not know the kind."""
    group, kind = document["apiVersion"], document["kind"]
    root = f"/api/{group}" if "/" not in group else f"/apis/{group}"
    try:
        known = next((one for one in api.kinds(root) if one["kind"] == kind and "/" not in one["name"]), None)
    except ApiError as error:
        if error.status != 404:
            raise
        known = None
    if known is None:
        raise refuse(
            f"the API server has no {kind} of {group}: install what defines it (for {group.partition('/')[0]} its CRDs), or leave it out "
            "of the values",
            path=f"cluster {api.place.name}",
        )
    metadata = document["metadata"]
    space = f"/namespaces/{metadata.get('namespace') or api.place.namespace}" if known["namespaced"] else ""
    return f"{root}{space}/{known['name']}/{metadata['name']}"
