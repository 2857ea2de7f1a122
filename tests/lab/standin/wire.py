# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""What the client and the agent share: addresses, one JSON line per message, kernel features.

The client imports nothing else but ``root``, so that it starts in a few hundredths of a second.
"""

from __future__ import annotations

import json
import os
import socket
from typing import Any

# A laboratory without mount namespaces gives each agent a run directory of its own by a variable.
RUN_DIR = os.environ.get("STANDIN_RUN_DIR", "/var/run/tetragon")
DEFAULT_ADDRESS = "localhost:54321"
VERSION = os.environ.get("STANDIN_VERSION", "1.7.0")
# In the order in which the agent prints them; values of Debian's kernel 6.1.
PROBES = {
    "override_return": False,
    "buildid": True,
    "kprobe_multi": False,
    "uprobe_multi": False,
    "fmodret": True,
    "fmodret_syscall": False,
    "signal": True,
    "large": True,
    "link_pin": True,
    "lsm": True,
    "missed_stats_kprobe_multi": False,
    "missed_stats_kprobe": False,
    "batch_update": True,
    "uprobe_refctroff": True,
    "audit_loginuid": True,
    "probe_write_user": True,
    "uprobe_regs_change": False,
    "mix_bpf_and_tail_calls": True,
    "fentry": True,
    "get_func_ret": True,
}
NO_FMODRET_SYSCALL = (
    'level=error msg="detect modify return syscall" error="failed to load: load program: invalid argument: '
    '__x64_sys_getcpu() is not modifiable (1 line(s) omitted)"'
)
_MAX_SOCKET_PATH = 100


class Unreachable(OSError):
    """Nothing answers at an address. The text is the client library's."""


def _endpoint(address: str) -> tuple[socket.socket, Any, int | None]:
    """A socket, what to bind or connect it to, and a directory to close: socket paths are limited to 108 bytes."""
    if not address.startswith("unix://"):
        host, _unused, port = address.rpartition(":")
        return socket.socket(socket.AF_INET), ("127.0.0.1" if host == "localhost" else host, int(port)), None
    path = address.removeprefix("unix://")
    made = socket.socket(socket.AF_UNIX)
    if len(path) <= _MAX_SOCKET_PATH:
        return made, path, None
    directory = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY)
    return made, f"/proc/self/fd/{directory}/{os.path.basename(path)}", directory


def connect(address: str, timeout: float) -> socket.socket:
    """A connection to an agent. Raises Unreachable in the words of the real client."""
    shown = "unix " + address.removeprefix("unix://") if address.startswith("unix://") else "tcp " + _numeric(address)
    directory = None
    try:
        made, where, directory = _endpoint(address)
        made.settimeout(timeout)
        made.connect(where)
    except TimeoutError:
        raise
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise Unreachable(f'connection error: desc = "transport: Error while dialing: dial {shown}: connect: {reason}"') from None
    finally:
        if directory is not None:
            os.close(directory)
    return made


def _numeric(address: str) -> str:
    host, _unused, port = address.rpartition(":")
    return f"{'127.0.0.1' if host in ('', 'localhost') else host}:{port}"


def listen(address: str) -> socket.socket:
    """A listening socket; a stale socket file is replaced and a new one readable by root's group only (mode 0660)."""
    path = address.removeprefix("unix://")
    if path != address and os.path.lexists(path):
        os.unlink(path)
    made, where, directory = _endpoint(address)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(where)
        made.listen(64)
    finally:
        if directory is not None:
            os.close(directory)
    if path != address:
        os.chmod(path, 0o660)
    return made


def send(to: socket.socket, message: Any) -> None:
    to.sendall(json.dumps(message, separators=(",", ":")).encode() + b"\n")


def receive(source: socket.socket) -> Any:
    """One message; None when the other end closed without one."""
    data = bytearray()
    while not data.endswith(b"\n"):
        chunk = source.recv(1 << 16)
        if not chunk:
            return None
        data += chunk
    return json.loads(data)
