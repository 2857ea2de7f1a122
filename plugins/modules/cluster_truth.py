#!/usr/bin/python
# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Documentation of apiary.tetragon.cluster_truth, which runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cluster_truth
short_description: Publish what the rings of a cluster run
version_added: 0.1.0
author:
  - Apiary contributors (@apiary)
description:
  - Observes the nodes of a Kubernetes cluster, holds them against what the DaemonSet of their ring wants, and writes the
    result into the cluster, one ConfigMap for each ring, for C(kubectl) and the health checks of GitOps. A rollout does so
    by itself; this is for the time between rollouts, and for clusters that are kept from a git repository.
  - A ring whose pods change is progressing, one with a node that does not run every policy in its mode is degraded. A
    ring without a DaemonSet is left out.
options:
  environment_file:
    description:
      - The environment file, which says which rings there are.
    type: path
    required: true
extends_documentation_fragment:
  - apiary.tetragon.cluster
  - apiary.tetragon.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
seealso:
  - module: apiary.tetragon.gitops
"""

EXAMPLES = r"""
- name: Publish the truth
  apiary.tetragon.cluster_truth:
    context: production-eu
    environment_file: environments/production.yml
"""

RETURN = r"""
rings:
  description: What was published, by ring.
  returned: success
  type: dict
"""
