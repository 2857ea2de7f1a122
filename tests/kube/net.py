# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""A cluster's network: a namespace in which every address of a node or pod is this machine's, and a way in to the API server.

``net.py LISTENER OWNER DIRECTORY``: runs inside the new namespace. LISTENER is a socket, inherited from outside, whose
connections go to the API server inside. When the process OWNER has ended, whatever has its id in DIRECTORY/*.pid is killed;
OWNER 0 is nobody. Once ``DIRECTORY/net.up`` is there, the namespace can be entered.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

API_SERVER = ("127.0.0.1", 6443)
NODES, PODS = "10.64.0.0/10", "10.128.0.0/9"
_CHUNK = 1 << 18


def configure() -> None:
    """Loopback, and every node's and pod's address as a local one: the API server refuses to reach pods in 127.0.0.0/8."""
    for command in ("link set lo up", f"route replace local {NODES} dev lo", f"route replace local {PODS} dev lo"):
        subprocess.run(["ip", *command.split()], check=True)


def relay(client: socket.socket) -> None:
    """Join a client to the API server until either hangs up; a server that is down looks as behind a load balancer."""
    with client, socket.socket() as server:
        try:
            server.connect(API_SERVER)
        except OSError:
            return
        for one in (client, server):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        other = threading.Thread(target=_copy, args=(server, client), daemon=True)
        other.start()
        _copy(client, server)
        other.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while chunk := source.recv(_CHUNK):
            target.sendall(chunk)
    for one in (source, target):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


def end_with(owner: int, directory: Path) -> None:
    """Wait for the owner's end, then end the cluster."""
    with contextlib.suppress(ProcessLookupError):
        select.select([os.pidfd_open(owner)], [], [])
    for path in directory.glob("*.pid"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            process = int(path.read_text(encoding="ascii").split()[0])
            if process != os.getpid():
                os.kill(process, signal.SIGKILL)
    os._exit(0)


def main() -> None:
    """Entry point."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    owner, directory = int(sys.argv[2]), Path(sys.argv[3])
    configure()
    if owner:
        threading.Thread(target=end_with, args=(owner, directory), daemon=True).start()
    (directory / "net.up").touch()
    while True:
        client, _address = listener.accept()
        threading.Thread(target=relay, args=(client,), daemon=True).start()


if __name__ == "__main__":
    main()
