# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest

from ansible_collections.apiary.tetragon.plugins.action.release import _same
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Refused
from ansible_collections.apiary.tetragon.plugins.plugin_utils.release.fetch import Release

RELEASE = Release("1.5.0", "amd64")
SEEN = {"path": "/opt/apiary/tetragon/1.5.0", "manifest": {"sha256": "ab" * 32}}


@pytest.mark.parametrize("given", [{}, {"amd64": "ab" * 32}, {"arm64": "cd" * 32}])
def test_a_version_that_is_there_is_taken_as_it_is(given):
    assert _same(SEEN, RELEASE, given) is False


def test_a_version_that_was_made_of_another_tarball_is_never_changed():
    with pytest.raises(Refused, match=rf"1\.5\.0 on the host was made of a tarball with the SHA-256 {'ab' * 32}, not the given one"):
        _same(SEEN, RELEASE, {"amd64": "cd" * 32})
