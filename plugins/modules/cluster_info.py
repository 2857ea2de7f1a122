#!/usr/bin/python
# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Documentation of apiary.tetragon.cluster_info, which runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cluster_info
short_description: What the nodes of a cluster truthfully run
version_added: 0.1.0
author:
  - Apiary contributors (@apiary)
description:
  - Observes the nodes of a Kubernetes cluster, each by its agent's metrics, through the API server. One request a node.
  - Metrics tell neither a policy's mode nor what it blocked. The mode follows from the readiness of the agent's pod, which
    is given only when every policy of its set is enabled in its mode. C(tetra) in the pod is asked where the two disagree,
    or where an enforcing policy posted more events than it may block acts.
  - With O(run) it is a step of the role P(apiary.tetragon.rollout#role). At O(phase=fleet) it also takes the lease of the
    cluster and has the API server try the whole change, so that what cannot work is refused before anything changes.
options:
  run:
    description:
      - The run's directory, as M(apiary.tetragon.rollout) returned it; the records go there.
    type: path
  phase:
    description:
      - When in the run this is. V(fleet) observes every node, V(before) and V(end) those of O(ring) and those it is compared
        with. Records of V(before) that exist are left alone.
    type: str
    choices: [fleet, before, end]
  ring:
    description:
      - Name of the ring.
    type: str
  environment_file:
    description:
      - The environment file, to observe outside a run; it says which rings there are.
    type: path
  record:
    description:
      - The file on the controller that receives the records when there is no O(run).
    type: path
  break_lock:
    description:
      - The run whose lease is taken over, when its controller is gone and the lease has not lapsed yet.
    type: str
    default: ''
extends_documentation_fragment:
  - apiary.tetragon.cluster
  - apiary.tetragon.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
"""

EXAMPLES = r"""
- name: Observe a cluster
  apiary.tetragon.cluster_info:
    context: production-eu
    environment_file: environments/production.yml
    record: reports/status/production-eu.nodes.json
"""

RETURN = r"""
nodes:
  description: How many nodes have a record.
  returned: success
  type: int
requests:
  description: How many requests to the API server it took.
  returned: success
  type: int
"""
