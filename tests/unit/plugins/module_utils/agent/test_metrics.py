# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The lines below are from the metrics page of the real agent v1.7.0."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from ansible_collections.apiary.tetragon.plugins.module_utils.agent import metrics

PAGE = """\
# HELP tetragon_bpf_missed_events_total The total number of events that are lost
# TYPE tetragon_bpf_missed_events_total counter
tetragon_bpf_missed_events_total{error="EAGAIN",msg_op="5"} 60
tetragon_bpf_missed_events_total{error="EAGAIN",msg_op="13"} 1
tetragon_events_exported_total 905
tetragon_events_exported_bytes_total 307200
tetragon_policy_events_total{binary="/usr/bin/cat",hook="kprobe:fd_install",namespace="",node_name="vm",pod="",policy="kpfd",workload=""} 31
tetragon_policy_events_total{binary="a\\"b",hook="kprobe:fd_install",policy="kpfd"} 2e+00
tetragon_policy_events_total{binary="",hook="kprobe:x",namespace="",node_name="vm",pod="",policy="seco",workload=""} 4
go_goroutines 60
tetragon_process_cache_size NaN-ish
"""


def test_a_metric_is_summed_over_its_labels():
    assert metrics.counts(PAGE)["events_missed"] == 61


def test_a_metric_that_is_not_there_yet_is_zero():
    assert metrics.counts(PAGE)["events_overflowed"] == 0


def test_a_metric_is_told_apart_by_one_label():
    assert metrics.by_label(PAGE, "policy_events_total", "policy") == {"kpfd": 33.0, "seco": 4.0}


def test_other_programs_metrics_and_broken_lines_are_passed_over():
    names = {name for name, _labels, _value in metrics.samples(PAGE)}
    assert names == {"bpf_missed_events_total", "events_exported_total", "events_exported_bytes_total", "policy_events_total"}


@pytest.mark.parametrize("value", ["NaN", "+Inf"])
def test_a_count_that_is_no_number_is_an_error_and_never_zero(value):
    with pytest.raises(metrics.MetricsError, match="tetragon_bpf_missed_events_total is"):
        metrics.counts(PAGE + f"tetragon_bpf_missed_events_total {value}\n")


@pytest.fixture
def page():
    return PAGE


@pytest.fixture
def server(page):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/metrics" else 404)
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, *_arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("form", ["127.0.0.1:{}", ":{}"])
def test_the_page_is_fetched_from_the_flags_address(server, form, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert metrics.counts(metrics.fetch(form.format(server)))["events_exported"] == 905


@pytest.mark.parametrize("page", ["", "<html>Welcome</html>", "go_goroutines 60\n"], ids=["empty", "HTML", "another program"])
def test_a_page_of_something_else_is_an_error_and_not_an_agent_that_lost_nothing(server):
    with pytest.raises(metrics.MetricsError, match=r"http://.*/metrics: holds no metrics of the agent"):
        metrics.fetch(f":{server}")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense"])
def test_a_page_that_cannot_be_fetched_is_an_error_that_names_it(address):
    with pytest.raises(metrics.MetricsError, match=r"http://.*/metrics: "):
        metrics.fetch(address, timeout=1)


def test_what_an_observation_counts_is_read_from_the_page():
    assert metrics.counts(PAGE + "tetragon_missed_prog_probes_total 2\ntetragon_missed_link_probes_total 3\n") == {
        "events_missed": 61.0,
        "events_lost_ringbuf": 0.0,
        "events_lost_queue": 0.0,
        "events_overflowed": 0.0,
        "probes_missed": 5.0,
        "events_exported": 905.0,
        "bytes_exported": 307200.0,
        "policy_events": {"kpfd": 33.0, "seco": 4.0},
    }
