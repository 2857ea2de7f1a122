# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""A mirror on loopback for a scenario: mirror.py DIRECTORY STATE serves files for ten minutes.

Writes its port to STATE/port and each request's path to STATE/requests.
"""

from __future__ import annotations

import functools
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SECONDS = 600


class Handler(SimpleHTTPRequestHandler):
    """Serves, and notes what was asked for."""

    state: Path

    def log_message(self, *arguments: object) -> None:
        with (self.state / "requests").open("a", encoding="utf-8") as file:
            file.write(f"{self.path}\n")


def main() -> None:
    directory, Handler.state = sys.argv[1], Path(sys.argv[2])
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=directory)) as server:
        (Handler.state / "requests").write_text("", encoding="utf-8")
        (Handler.state / "port").write_text(str(server.server_port), encoding="utf-8")
        threading.Timer(SECONDS, server.shutdown).start()
        server.serve_forever()


if __name__ == "__main__":
    main()
