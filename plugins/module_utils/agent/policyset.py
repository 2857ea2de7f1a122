# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The set of policy files that an agent loads when it starts, replaced as a whole in one rename.

The agent reads its policy directory one level deep and takes every file there for a policy. The managed set is the
directory ``apiary`` in it; the next set grows in ``.apiary/next``, two levels deep, where the agent does not look.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from typing import Dict, Mapping

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


class PolicySet:
    """The managed files below an agent's policy directory."""

    def __init__(self, policy_dir: str) -> None:
        self.policy_dir = policy_dir.rstrip("/")
        self.live = os.path.join(self.policy_dir, "apiary")
        self._work = os.path.join(self.policy_dir, ".apiary")
        self.staged = os.path.join(self._work, "next")

    def read(self) -> Dict[str, str]:
        """Text of every file of the live set, by file name; empty when there is none yet."""
        try:
            names = sorted(os.listdir(self.live))
        except FileNotFoundError:
            return {}
        return {name: _read(os.path.join(self.live, name)) for name in names}

    def stage(self, files: Mapping[str, str]) -> None:
        """Write the next set to disk, all of it, without making it live. Raises OSError, and then nothing is left of it."""
        shutil.rmtree(self._work, ignore_errors=True)
        try:
            os.makedirs(self.staged, mode=0o700)
            for name, text in files.items():
                descriptor = os.open(os.path.join(self.staged, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
            sync_directory(self.staged)
        except OSError:
            shutil.rmtree(self._work, ignore_errors=True)
            raise

    def swap(self) -> None:
        """Make the staged set live and keep the former one, if any, staged: doing it twice changes nothing."""
        if not os.path.isdir(self.live):
            os.rename(self.staged, self.live)
        elif os.path.isdir(self.staged):
            _exchange(self.staged, self.live)
        else:
            os.rename(self.live, self.staged)
        sync_directory(self.policy_dir)

    def discard(self) -> None:
        """Remove what is staged."""
        shutil.rmtree(self._work, ignore_errors=True)


def _exchange(one: str, other: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) != 0:
        error = ctypes.get_errno()
        hint = "; its file system cannot exchange two directories in one step" if error in (errno.EINVAL, errno.ENOSYS) else ""
        raise OSError(error, os.strerror(error) + hint, other)


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def sync_directory(path: str) -> None:
    """Make renames inside a directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
