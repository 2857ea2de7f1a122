# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The agent's metrics page: Prometheus text, summed over the labels that do not matter."""

from __future__ import annotations

import http.client
import math
import re
import urllib.request
from typing import Any, Dict, Iterator, Tuple

PREFIX = "tetragon_"
# What an observation counts, by the agent's names without their prefix.
COUNTERS = {
    "bpf_missed_events_total": "events_missed",
    "observer_ringbuf_events_lost_total": "events_lost_ringbuf",
    "observer_ringbuf_queue_events_lost_total": "events_lost_queue",
    "notify_overflowed_events_total": "events_overflowed",
    "missed_prog_probes_total": "probes_missed",
    "missed_link_probes_total": "probes_missed",
    "events_exported_total": "events_exported",
    "events_exported_bytes_total": "bytes_exported",
}
_LINE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+\d+)?$")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')


class MetricsError(Exception):
    """The page could not be fetched or read."""


def fetch(address: str, timeout: float = 5.0) -> str:
    """The page of an agent whose flag ``metrics-server`` is ``address`` (``:2112`` or ``127.0.0.1:2112``)."""
    host, _colon, port = address.rpartition(":")
    url = "http://{0}:{1}/metrics".format(host or "127.0.0.1", port)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=timeout) as response:
            text = str(response.read().decode("utf-8", "replace"))
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise MetricsError("{0}: {1}".format(url, error)) from None
    if not any(samples(text)):
        raise MetricsError("{0}: holds no metrics of the agent: does something else listen there?".format(url))
    return text


def samples(text: str) -> Iterator[Tuple[str, Dict[str, str], float]]:
    """Every sample of the agent's own: name without its prefix, labels, value. Raises as ``every`` does."""
    for name, labels, value in every(text, PREFIX):
        yield name[len(PREFIX) :], labels, value


def every(text: str, *prefixes: str) -> Iterator[Tuple[str, Dict[str, str], float]]:
    """Every sample whose name begins with one of these: name, labels, value. Lines that are no samples are passed over.

    Raises MetricsError for a value that no comparison holds.
    """
    for line in text.splitlines():
        match = _LINE.match(line)
        if match and match.group(1).startswith(prefixes):
            try:
                value = float(match.group(3))
            except ValueError:
                continue
            if not math.isfinite(value):
                raise MetricsError("{0} is {1}; needed: a number".format(match.group(1), match.group(3)))
            yield match.group(1), dict(_LABEL.findall(match.group(2) or "")), value


def counts(text: str) -> Dict[str, Any]:
    """The counters of an observation, each summed over all its labels; 0 for one that the agent leaves out, not having counted yet.

    Raises as ``every`` does.
    """
    found: Dict[str, float] = dict.fromkeys(COUNTERS.values(), 0.0)
    for metric, _labels, value in samples(text):
        if metric in COUNTERS:
            found[COUNTERS[metric]] += value
    return {**found, "policy_events": by_label(text, "policy_events_total", "policy")}


def by_label(text: str, name: str, label: str) -> Dict[str, float]:
    """One metric summed per value of one label."""
    sums: Dict[str, float] = {}
    for metric, labels, value in samples(text):
        if metric == name:
            sums[labels.get(label, "")] = sums.get(labels.get(label, ""), 0.0) + value
    return sums
