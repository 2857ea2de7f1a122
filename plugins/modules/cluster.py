#!/usr/bin/python
# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Documentation of apiary.tetragon.cluster, which runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cluster
short_description: The release on a Kubernetes cluster
version_added: 0.1.0
author:
  - Apiary contributors (@apiary)
description:
  - Judges a cluster, installs the chart C(charts/apiary) of this collection with the rings of an environment, labels nodes
    with their rings, and takes the release off with all that it left on nodes.
  - Policies come with rollouts only, see P(apiary.tetragon.rollout#role).
options:
  step:
    description:
      - V(preflight) gives a verdict on everything that an installation and a rollout need, and changes nothing.
      - V(install) brings the release to the environment's rings and to O(values); each ring keeps the agent and the policies
        that it has. Then every node is counted.
      - V(label) gives the nodes without a label a ring, by what the rings of the environment take. A node that has a label
        keeps it.
      - V(remove) uninstalls the release, waits until its pods are gone, and has a Job on every node remove what is pinned
        there; it fails when a node is not proved clean. CRDs and the namespace stay.
    type: str
    required: true
    choices: [preflight, install, label, remove]
  environment_file:
    description:
      - The environment file. Needed by all steps but V(remove).
    type: path
  values:
    description:
      - Values files of the chart, such as a platform's; the later over the earlier.
    type: list
    elements: path
    default: []
  bundle:
    description:
      - Directory of the bundle to judge at O(step=preflight); empty for none.
    type: str
    default: ''
extends_documentation_fragment:
  - apiary.tetragon.cluster
  - apiary.tetragon.attributes
attributes:
  check_mode:
    support: full
    details:
      - At V(install) the API server tries every object.
  diff_mode:
    support: partial
    details:
      - V(install) returns the values, V(label) the labels.
"""

EXAMPLES = r"""
- name: Install
  apiary.tetragon.cluster:
    step: install
    context: production-eu
    environment_file: environments/production.yml
    values: [charts/apiary/platforms/eks.yaml]
"""

RETURN = r"""
verdicts:
  description: Each check with its verdict, what was found, what is needed, and the way out.
  returned: step is preflight
  type: list
  elements: dict
table:
  description: The verdicts for a person, one a line.
  returned: step is preflight
  type: list
  elements: str
labels:
  description: The nodes that were given a ring, or would be, with it.
  returned: step is label
  type: dict
"""
