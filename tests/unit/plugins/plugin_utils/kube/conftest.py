# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Environments to place nodes with, and an API server of answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube import client
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.client import Api, Place

Answer = tuple[int, Any]


class Server:
    """An API server of answers: a list that is used up, of statuses with bodies, or a function of method, path and body."""

    def __init__(self, directory: Path) -> None:
        self.answers: list[Answer] | Callable[[str, str, Any], Answer] = []
        self.asked: list[tuple[str, str]] = []
        self.tokens: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                outer.asked.append((self.command, self.path))
                outer.tokens.append(self.headers.get("Authorization", ""))
                answers = outer.answers
                status, content = answers.pop(0) if isinstance(answers, list) else answers(self.command, self.path, body)
                if status == 0:
                    self.connection.close()
                    return
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

            def log_message(self, *_unused: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.kubeconfig = directory / "kubeconfig"
        self.login("first")

    def login(self, token: str) -> None:
        named = {"name": "lab", "cluster": {"server": f"http://127.0.0.1:{self.http.server_address[1]}"}}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "lab",
            "clusters": [named],
            "users": [{"name": "me", "user": {"token": token}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "me"}}],
        }
        self.kubeconfig.write_text(json.dumps(content), encoding="utf-8")

    def api(self, context: str = "lab") -> Api:
        return Api(Place("eu", context, str(self.kubeconfig)), patience=5)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(client, "_FIRST_CONTACT", 0.3)
    made = Server(tmp_path)
    yield made
    made.http.shutdown()
    made.http.server_close()
