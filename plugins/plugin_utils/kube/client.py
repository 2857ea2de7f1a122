# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""One cluster's API server, as JSON: patient with restarts, and plain about what it refuses.

Documents are read raw and page by page: a typed list of thousands of pods costs more memory than the rest of a rollout.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import refuse, required

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

THREADS = 16
PAGE = 500
MANAGER = "apiary"
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
_FIRST_CONTACT = 10.0
_BUSY = (429, 502, 503, 504)
_VERBS = {"GET": "get or list", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


@dataclass(frozen=True)
class Place:
    """Where a cluster is and which release there is ours; ``name`` is its name in the inventory."""

    name: str
    context: str
    kubeconfig: str = ""
    namespace: str = "tetragon"
    release: str = "apiary"

    @property
    def fullname(self) -> str:
        """The chart's name for what belongs to the release."""
        return self.release if "apiary" in self.release else f"{self.release}-apiary"

    @property
    def selector(self) -> str:
        """The labels of all that the chart makes for the release."""
        return f"app.kubernetes.io/name=apiary,app.kubernetes.io/instance={self.release}"

    def path(self, group: str, kind: str, name: str = "") -> str:
        """The path of a namespaced resource, as ``("apps/v1", "daemonsets", ...)``; group ``v1`` is the core."""
        root = "/api/v1" if group == "v1" else f"/apis/{group}"
        return f"{root}/namespaces/{self.namespace}/{kind}" + (f"/{name}" if name else "")


class ApiError(Exception):
    """The API server's answer when it is an error that may be expected: ``status`` and its own words."""

    def __init__(self, place: Place, status: int, body: Mapping[str, Any]) -> None:
        self.status = status
        self.message = str(body.get("message") or f"status {status}")
        self.causes: list[dict[str, Any]] = list((body.get("details") or {}).get("causes") or ())
        super().__init__(f"cluster {place.name}: {self.message}")


class Api:
    """Requests to one API server, counted in ``requests``. Safe to use from several threads.

    An API server that is away is waited for: ``patience`` seconds once it has answered, and a few before. Raises Refused
    when it stays away, does not know us, or forbids; ApiError for other errors.
    """

    def __init__(self, place: Place, patience: float = 300.0) -> None:
        self.place = place
        self.patience = patience
        self.requests = 0
        self._kinds: dict[str, list[dict[str, Any]]] = {}
        self._reached = False
        self._guard = threading.Lock()
        self._client = self._connect()

    def _connect(self) -> ApiClient:
        place = self.place
        where = place.kubeconfig or "~/.kube/config"
        with required():
            from kubernetes import config
            from kubernetes.client import Configuration
        chosen = Configuration()
        chosen.retries = False
        chosen.connection_pool_maxsize = THREADS
        try:
            made: ApiClient = config.new_client_from_config(  # type: ignore[no-untyped-call]
                config_file=place.kubeconfig or None,
                context=place.context or None,
                persist_config=False,
                client_configuration=chosen,
            )
            return made
        except config.ConfigException as error:
            raise refuse(
                f"context {place.context!r} cannot be used: {error}; set apiary_kube_context and apiary_kubeconfig to one that "
                "`kubectl config get-contexts` lists",
                file=where,
                path=f"cluster {place.name}",
            ) from None

    @property
    def client(self) -> ApiClient:
        """The package's own client, for what is no plain request."""
        return self._client

    @property
    def server(self) -> str:
        return str(self._client.configuration.host)

    # --- requests ---------------------------------------------------------------------------------------------------

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        return self.send("GET", path, query)

    def find(self, path: str) -> dict[str, Any] | None:
        """A document, or None when there is none."""
        try:
            return self.get(path)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def kinds(self, root: str) -> list[dict[str, Any]]:
        """The resources of a group and version, whose path is ``root``; read once."""
        if root not in self._kinds:
            self._kinds[root] = self.get(root)["resources"]
        return self._kinds[root]

    def items(self, path: str, **query: Any) -> Iterator[dict[str, Any]]:
        """Every item of a list, page by page. A list that changed too much to be continued is read again from its start."""
        seen: set[str] = set()
        token = ""
        while True:
            try:
                page = self.get(path, limit=PAGE, **query, **({"continue": token} if token else {}))
            except ApiError as error:
                if error.status != 410:
                    raise
                token = ""
                continue
            for item in page["items"]:
                if item["metadata"]["uid"] not in seen:
                    seen.add(item["metadata"]["uid"])
                    yield item
            token = page["metadata"].get("continue", "")
            if not token:
                return

    def apply(
        self, path: str, document: Mapping[str, Any], *, manager: str = MANAGER, force: bool = True, dry: bool = False
    ) -> dict[str, Any]:
        """Server-side apply."""
        query = {"fieldManager": manager, "force": str(force).lower(), **({"dryRun": "All"} if dry else {})}
        return self.send("PATCH", path, query, document, APPLY)

    def delete(self, path: str) -> bool:
        """Delete a document; False when there was none."""
        try:
            self.send("DELETE", path, {"propagationPolicy": "Background"})
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return True

    def proxy(self, pod: str, port: int, path: str, timeout: float = 20.0) -> str:
        """A page that a pod serves, through the API server. Raises ApiError with the reason when the pod does not answer."""
        place = self.place
        url = place.path("v1", "pods", f"{pod}:{port}/proxy{path}")
        return self._answer("GET", url, {}, None, "", timeout=timeout, final=_BUSY).decode("utf-8", "replace")

    def send(
        self, method: str, path: str, query: Mapping[str, Any] | None = None, body: Any = None, content: str = "application/json"
    ) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self._answer(method, path, query or {}, body, content))
        return answer

    def _answer(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any],
        body: Any,
        content: str,
        timeout: float = 60.0,
        final: tuple[int, ...] = (),
    ) -> bytes:
        """The body of the answer. ``final`` are statuses that are not waited out."""
        import urllib3

        began, pause, renewed = time.monotonic(), 0.1, False
        while True:
            trouble = ""
            try:
                response = self._once(method, path, query, body, content, timeout)
            except (urllib3.exceptions.HTTPError, OSError) as error:
                trouble = str(error)
            else:
                if response.status < 400:
                    self._reached = True
                    return bytes(response.data)
                if response.status == 401 and not renewed:
                    renewed = True  # a token that has expired may have been renewed since, or by its own program
                    self._client = self._connect()
                    continue
                if response.status not in _BUSY or response.status in final:
                    self._reached = True
                    raise self._refusal(method, path, response.status, response.data)
                trouble = f"status {response.status}"
            if time.monotonic() - began > (self.patience if self._reached else _FIRST_CONTACT):
                raise refuse(
                    f"the API server {self.server} does not answer: {trouble}; check the network and the context {self.place.context!r}, "
                    "and run again",
                    path=f"cluster {self.place.name}",
                ) from None
            time.sleep(pause)
            pause = min(pause * 2, 3.0)

    def _once(self, method: str, path: str, query: Mapping[str, Any], body: Any, content: str, timeout: float) -> Any:
        import urllib3

        with self._guard:
            self.requests += 1
        client = self._client
        headers = {"User-Agent": MANAGER, "Accept": "application/json, */*"}
        for one in client.configuration.auth_settings().values():
            headers[str(one["key"])] = str(one["value"])
        if body is not None:
            headers["Content-Type"] = content
        return client.rest_client.pool_manager.request(
            method,
            self.server + path + (f"?{urlencode(query)}" if query else ""),
            body=None if body is None else json.dumps(body).encode(),
            headers=headers,
            timeout=urllib3.Timeout(connect=5.0, read=timeout),
            retries=False,
        )

    def _refusal(self, method: str, path: str, status: int, data: bytes) -> Exception:
        try:
            body = json.loads(data)
        except ValueError:
            body = {"message": data.decode("utf-8", "replace").strip()[:300]}
        cluster = f"cluster {self.place.name}"
        if status == 401:
            return refuse(
                f"the API server {self.server} does not accept the credentials of context {self.place.context!r}: they have expired or "
                "are wrong; log in again and run again: a rollout goes on where it was",
                path=cluster,
            )
        error = ApiError(self.place, status, body if isinstance(body, dict) else {"message": str(body)})
        if status == 403 and (body.get("reason") == "Forbidden") and "cannot" in error.message:
            return refuse(
                f"RBAC forbids to {_VERBS[method]} {path}: {error.message}; grant it to this user: the rules that are needed are in "
                "docs/rollouts.md, and the playbook apiary.tetragon.cluster_preflight reports which are missing",
                path=cluster,
            )
        return error
