# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The API server as it may be: away, restarting, forbidding, forgetting; and the lease that is kept there."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube import lease
from ansible_collections.apiary.tetragon.plugins.plugin_utils.kube.client import ApiError
from ansible_collections.apiary.tetragon.tests.unit.plugins.plugin_utils.samples import messages, refused

from .conftest import Answer, Server


def test_a_server_that_restarts_is_waited_for(server: Server) -> None:
    api = server.api()
    server.answers = [(200, {"n": 1}), (0, None), (503, {}), (429, {}), (200, {"n": 2})]
    assert [api.get("/x")["n"], api.get("/x")["n"]] == [1, 2]
    assert api.requests == 5


def test_a_server_that_is_away_is_named_with_the_way_out(server: Server) -> None:
    server.answers = lambda *_unused: (503, {})
    text = messages(refused(server.api().get, "/x"))
    assert text.startswith(
        f"cluster eu: the API server http://127.0.0.1:{server.http.server_address[1]} does not answer: status 503; check"
    )


@pytest.mark.parametrize("file", ["kubeconfig", "no-such-file"])
def test_a_context_that_is_not_there_is_refused(server: Server, file: str) -> None:
    server.kubeconfig = server.kubeconfig.with_name(file)
    text = messages(refused(server.api, "production"))
    assert "context 'production' cannot be used" in text
    assert "set apiary_kube_context and apiary_kubeconfig" in text


def test_a_token_that_has_expired_is_read_again_once(server: Server) -> None:
    api = server.api()
    server.login("second")
    server.answers = [(401, {}), (200, {}), (401, {}), (401, {})]
    assert api.get("/x") == {}
    assert server.tokens == ["Bearer first", "Bearer second"]
    assert "does not accept the credentials of context 'lab': they have expired or are wrong; log in again" in messages(
        refused(api.get, "/x")
    )


def test_what_rbac_forbids_is_named(server: Server) -> None:
    text = 'nodes is forbidden: User "me" cannot list resource "nodes" in API group "" at the cluster scope'
    server.answers = [(403, {"reason": "Forbidden", "message": text})]
    told = messages(refused(server.api().get, "/api/v1/nodes"))
    assert told.startswith(f"cluster eu: RBAC forbids to get or list /api/v1/nodes: {text}; grant it")


def test_lists_are_read_page_by_page_and_again_when_they_are_too_old(server: Server) -> None:
    def page(names: str, token: str = "") -> Answer:
        return 200, {"items": [{"metadata": {"uid": name}} for name in names], "metadata": {"continue": token}}

    server.answers = [page("ab", "t1"), (410, {"message": "too old"}), page("ab", "t2"), page("c")]
    assert [one["metadata"]["uid"] for one in server.api().items("/x", labelSelector="a=b")] == ["a", "b", "c"]
    assert server.asked[-1] == ("GET", "/x?limit=500&labelSelector=a%3Db&continue=t2")


def test_a_pod_that_does_not_answer_is_not_waited_for(server: Server) -> None:
    server.answers = [(503, {"message": "error trying to reach service: connection refused"})]
    with pytest.raises(ApiError, match="connection refused"):
        server.api().proxy("pod-1", 2112, "/metrics")
    assert server.asked == [("GET", "/api/v1/namespaces/tetragon/pods/pod-1:2112/proxy/metrics")]


class Leases:
    """An API server that keeps one Lease, as a real one would."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] | None = None
        self.version = 0

    def __call__(self, method: str, path: str, body: Any) -> Answer:
        if method == "GET":
            return (200, self.kept) if self.kept else (404, {})
        if method == "DELETE":
            self.kept = None
            return 200, {}
        if (method == "POST") == bool(self.kept) or (self.kept and body["metadata"].get("resourceVersion") != str(self.version)):
            return 409, {"message": "conflict"}
        self.version += 1
        self.kept = {**body, "metadata": {**body["metadata"], "resourceVersion": str(self.version)}}
        return 200, self.kept


def test_a_lease_is_held_renewed_taken_over_when_it_lapsed_and_given_back(server: Server) -> None:
    server.answers = kept = Leases()
    api = server.api()
    lease.take(api, "run-1", 60)
    lease.take(api, "run-1", 60)
    assert kept.kept is not None
    assert (kept.kept["spec"]["holderIdentity"], kept.kept["spec"]["leaseTransitions"], kept.version) == ("run-1", 0, 2)
    text = messages(refused(lease.take, api, "run-2", 60))
    assert "rollout run-1 is under way in it" in text
    assert "-e apiary_break_lock=run-1" in text
    lease.release(api, "run-2")
    lease.take(api, "run-2", 0, ["run-1"])
    assert kept.kept["spec"]["leaseTransitions"] == 1
    lease.take(api, "run-3", 60)
    assert kept.kept["spec"]["holderIdentity"] == "run-3"
    lease.release(api, "run-3")
    assert kept.kept is None


def test_a_lease_in_a_namespace_that_is_not_there_is_refused(server: Server) -> None:
    server.answers = [(404, {}), (404, {"message": 'namespaces "tetragon" not found'})]
    assert "has no namespace tetragon, and so no release apiary: install it" in messages(refused(lease.take, server.api(), "run-1", 60))
