#!/usr/bin/python
# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Documentation of apiary.tetragon.gitops, which runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gitops
short_description: Write the tree of a git repository from which clusters are kept, or promote a ring in it
version_added: 0.1.0
author:
  - Apiary contributors (@apiary)
description:
  - Renders the collection's chart for every cluster of the inventory group C(apiary_clusters) with the policies that a
    bundle has for it (C(form) V(cluster)), and writes the objects as kustomizations, one for each ring of each cluster,
    with an ApplicationSet and a health check for Argo CD and the policies' owners in CODEOWNERS.
  - The bundle becomes a directory that is never changed again. The environment's first ring takes it; every other ring
    stays with the bundle that it has until O(promote), or a person who edits one line, moves it on. A ring that is new on
    a cluster takes the new bundle.
  - Files that it did not write are left alone. A bundle is removed by a run that brings a new one, and only when no ring
    named it before nor names it after. What belongs to clusters that are not in the inventory stays.
  - The same input gives the same files. Nothing is committed.
  - Clusters are described by the inventory variables C(apiary_kube_namespace), C(apiary_kube_release),
    C(apiary_kube_values), C(apiary_kube_digests), C(apiary_kube_version) (the Kubernetes to render for, C(1.30) unless set)
    and C(apiary_helm).
  - Runs on the controller and needs no host and no cluster.
options:
  environment_file:
    description:
      - The environment file, for its rings.
    type: path
    required: true
  bundle:
    description:
      - Directory of the bundle that the first ring takes. Left out, it is built from the environment file, and not kept.
    type: path
  policy_path:
    description:
      - Directories with policies of your own, as of M(apiary.tetragon.bundle), where the bundle is built.
    type: list
    elements: path
    default: []
  cache_dir:
    description:
      - Where results of checks are kept, by the digest of everything they depend on.
    type: path
  promote:
    description:
      - A ring. On every cluster it takes the bundle that the ring before it has; nothing else changes.
    type: str
  directory:
    description:
      - The checkout of the repository.
    type: path
    required: true
  path:
    description:
      - The tree's place in the repository; left out, its root.
    type: str
    default: ""
  repo_url:
    description:
      - Where Argo CD finds the repository. Needed without O(promote).
    type: str
  revision:
    description:
      - The branch or tag that Argo CD follows.
    type: str
    default: HEAD
  argocd_namespace:
    description:
      - The namespace of Argo CD.
    type: str
    default: argocd
  argocd_project:
    description:
      - The project of the Applications.
    type: str
    default: default
  truth_max_age:
    description:
      - After how many seconds published truth counts as stale, and its ring as degraded. With V(0) it never does.
    type: int
    default: 3600
  owners:
    description:
      - Handles for CODEOWNERS by the owners that policies name. An owner that is not here is C(@) and its name.
    type: dict
    default: {}
  promoters:
    description:
      - Handles for CODEOWNERS of those who decide what runs where. None means that CODEOWNERS does not say.
    type: list
    elements: str
    default: []
extends_documentation_fragment:
  - apiary.tetragon.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
seealso:
  - module: apiary.tetragon.bundle
"""

EXAMPLES = r"""
- name: Let the first ring take a new bundle
  apiary.tetragon.gitops:
    environment_file: environments/production.yml
    bundle: bundles/production-0123456789abcdef
    directory: ../fleet-config
    path: apiary
    repo_url: https://git.example.com/platform/fleet-config.git
    owners: {security: "@example/security", platform: "@example/platform"}

- name: Let the ring early take what the ring before it has
  apiary.tetragon.gitops:
    environment_file: environments/production.yml
    promote: early
    directory: ../fleet-config
    path: apiary
"""

RETURN = r"""
rings:
  description: The bundle that each ring names now, by cluster and ring.
  returned: success
  type: dict
  sample: {us-1: {canary: production-0123456789abcdef-01234567}}
written:
  description: Files written, from O(directory) on.
  returned: success
  type: list
  elements: str
removed:
  description: Files removed, from O(directory) on.
  returned: success
  type: list
  elements: str
"""
