#!/usr/bin/python
# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Documentation of apiary.tetragon.cluster_ring, which runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cluster_ring
short_description: One ring of a cluster in a staged rollout
version_added: 0.1.0
author:
  - Apiary contributors (@apiary)
description:
  - The steps that the role P(apiary.tetragon.rollout#role) takes in a Kubernetes cluster. One ring is given its bundle by
    C(helm), after the API server has tried every object that differs; the other rings keep what they have. Then its nodes
    are counted, each by the pod that runs on it, until all run the set.
  - A node that is not ready is lost, one that joined counts in, one that left is forgotten.
  - An upgrade that was cut off is cleared away by the next step.
options:
  step:
    description:
      - V(preview) tells what a rollout would change, and has the API server try it.
      - V(change) brings the ring to the run's bundle, V(back) to the former one.
      - V(publish) writes what was found of the ring into the cluster, as one ConfigMap.
      - V(end) removes ConfigMaps of the release that nothing uses any more, and gives the lease of the cluster back.
    type: str
    required: true
    choices: [preview, change, back, publish, end]
  run:
    description:
      - The run's directory, as M(apiary.tetragon.rollout) returned it. Needed by all steps but V(preview).
    type: path
  ring:
    description:
      - Name of the ring.
    type: str
  environment_file:
    description:
      - The environment file, for O(step=preview).
    type: path
  bundle:
    description:
      - Directory of the bundle, for O(step=preview); empty for no policies.
    type: str
    default: ''
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
    support: partial
    details:
      - O(step=preview) changes nothing in either mode; the role skips the other steps in check mode.
  diff_mode:
    support: partial
    details:
      - O(step=preview) returns the agent's version and the policies of every ring that would change.
"""

EXAMPLES = r"""
- name: Tell what a rollout would change
  apiary.tetragon.cluster_ring:
    step: preview
    context: production-eu
    environment_file: environments/production.yml
    bundle: bundles/production-0123456789abcdef
"""

RETURN = r"""
verdict:
  description: What the ring's truth says, V(healthy), V(progressing) or V(degraded).
  returned: step is publish
  type: str
requests:
  description: How many requests to the API server it took, those of helm aside.
  returned: step is change or back
  type: int
"""
