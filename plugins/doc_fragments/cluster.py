# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Options that say where a cluster is and which release there is ours."""

from __future__ import annotations


class ModuleDocFragment:
    """Shared by the modules that talk to a cluster."""

    DOCUMENTATION = r"""
options:
  context:
    description:
      - The context of the kubeconfig; empty for its current one.
    type: str
    default: ''
  kubeconfig:
    description:
      - The kubeconfig on the controller; empty for what C(kubectl) would use.
    type: path
    default: ''
  namespace:
    description:
      - The namespace of the release.
    type: str
    default: tetragon
  release:
    description:
      - The name of the release.
    type: str
    default: apiary
  helm:
    description:
      - The program C(helm), 3 or 4, as a path or as a name that is looked up.
    type: str
    default: helm
  stall:
    description:
      - Seconds without a further node after which a change counts as stuck.
    type: int
    default: 600
  digests:
    description:
      - Digests of the agent's images by agent version, such as V(sha256:...), for rings whose image is pinned by one.
    type: dict
    default: {}
attributes:
  action_group:
    description: Use C(group/apiary.tetragon.cluster) in C(module_defaults) to set defaults for this module.
    support: full
    membership:
      - apiary.tetragon.cluster
requirements:
  - The Python package kubernetes on the controller.
  - helm 3.13 or newer, or 4, on the controller.
notes:
  - Everything runs on the controller; the cluster is an inventory host of the group C(apiary_clusters) with a local connection.
"""
