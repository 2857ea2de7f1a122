# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Controller side of apiary.tetragon.release: fetches and verifies the tarball, and sends it only to hosts that lack it."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase

from ansible_collections.apiary.tetragon.plugins.module_utils.agent.release import ReleaseError, exact_version
from ansible_collections.apiary.tetragon.plugins.plugin_utils.controller import failure
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Refused, refuse
from ansible_collections.apiary.tetragon.plugins.plugin_utils.release.fetch import Release, expected_sum, fetch

_ARGUMENTS: dict[str, dict[str, Any]] = {
    "version": {"type": "str", "required": True},
    "sha256": {"type": "dict", "default": {}},
    "source": {"type": "str", "default": ""},
    "proxy": {"type": "str", "default": ""},
    "cache_dir": {"type": "path", "default": "~/.cache/apiary/releases"},
    "directory": {"type": "path", "default": "/opt/apiary/tetragon"},
}


class ActionModule(ActionBase):  # type: ignore[misc]
    """Looks at the host, fetches, looks whether it fits, sends, unpacks."""

    TRANSFERS_FILES = True

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        _validation, arguments = self.validate_argument_spec(_ARGUMENTS)
        try:
            version = exact_version(arguments["version"])
        except ReleaseError as error:
            raise failure(refuse(str(error))) from None
        on_host = {"version": version, "directory": arguments["directory"]}
        seen = self._on_host(task_vars, on_host)
        if seen.get("failed"):
            return seen
        try:
            release = Release(version, seen["architecture"])
            if seen["manifest"] is not None:
                return _result(seen, _same(seen, release, arguments["sha256"]))
            sha256 = expected_sum(release, arguments["sha256"])
            diff = {"before_header": seen["path"], "after_header": seen["path"], "before": "", "after": f"{release}\n"}
            if self._task.check_mode:
                return {**_result(seen, True), "diff": diff}
            fetched = fetch(release, sha256, cache_dir=arguments["cache_dir"], source=arguments["source"], proxy=arguments["proxy"])
        except Refused as error:
            raise failure(error) from None
        fits = self._on_host(task_vars, {**on_host, "unpacked": fetched.unpacked})
        if fits.get("failed"):
            return fits
        remote = self._connection._shell.join_path(self._make_tmp_path(), release.file)
        self._transfer_file(str(fetched.path), remote)
        done = self._on_host(task_vars, {**on_host, "tarball": remote, "tarball_sha256": fetched.sha256})
        return done if done.get("failed") else {**_result(done, True), "diff": diff}

    def _on_host(self, task_vars: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        result: dict[str, Any] = self._execute_module(module_name="apiary.tetragon.release", module_args=arguments, task_vars=task_vars)
        return result


def _same(seen: dict[str, Any], release: Release, given: dict[str, str]) -> bool:
    """False, as nothing changes. Raises Refused when the version on the host came from another tarball than the given sum's."""
    here = seen["manifest"]["sha256"]
    if given.get(release.architecture) and expected_sum(release, given) != here:
        raise refuse(
            f"{seen['path']} on the host was made of a tarball with the SHA-256 {here}, not the given one. "
            "A version is never changed: move the host to another version first, then remove that directory"
        )
    return False


def _result(seen: dict[str, Any], changed: bool) -> dict[str, Any]:
    return {"changed": changed, **{name: seen[name] for name in ("path", "architecture", "installed")}}
