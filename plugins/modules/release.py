#!/usr/bin/python
# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Put one release of the agent on a host, beside the others."""

from __future__ import annotations

DOCUMENTATION = r"""
module: release
short_description: Put a release of Tetragon on a host, beside the versions that are there
version_added: 0.1.0
author:
  - Apiary contributors (@apiary)
description:
  - Fetches a release tarball onto the controller, once for all hosts of one architecture, verifies it, sends it to the host
    and unpacks it to C(<directory>/<version>). No agent is started, stopped or changed.
  - A version that is there is never changed. One that is there but not whole is replaced.
  - A tarball with the wrong sum, the wrong architecture or version, or with anything outside its own directory is refused
    before the host is touched.
options:
  version:
    description:
      - The exact version. There is no word for the newest one.
    type: str
    required: true
  sha256:
    description:
      - SHA-256 of the tarball by architecture (V(amd64), V(arm64)), for releases whose sum the collection does not know.
      - A sum that contradicts a known one is refused.
    type: dict
    default: {}
  source:
    description:
      - Where the tarball lies, as an address or as a path B(on the controller), with the placeholders C({version}), C({architecture})
        and C({file}).
      - Without it, the project's release site.
    type: str
    default: ''
  proxy:
    description:
      - Proxy for this download alone. Without it the controller's environment decides.
    type: str
    default: ''
  cache_dir:
    description:
      - Directory B(on the controller) that keeps verified tarballs. A tarball that somebody put there under its own name is used.
    type: path
    default: ~/.cache/apiary/releases
  directory:
    description:
      - Directory of the versions on the host.
    type: path
    default: /opt/apiary/tetragon
  tarball:
    description:
      - The tarball on the host. Filled by the controller, which fetches, verifies and sends it.
    type: path
  tarball_sha256:
    description:
      - Its SHA-256, as it was verified. Filled by the controller.
    type: str
    default: ''
  unpacked:
    description:
      - Bytes that the release takes on the host. Filled by the controller.
    type: int
    default: 0
extends_documentation_fragment:
  - apiary.tetragon.attributes
attributes:
  check_mode:
    support: full
    details:
      - Fetches nothing in check mode; whether a sum is known is checked.
  diff_mode:
    support: full
"""

EXAMPLES = r"""
- name: From the release site
  apiary.tetragon.release:
    version: 1.7.1

- name: From a mirror
  apiary.tetragon.release:
    version: 1.7.1
    source: https://mirror.example.org/tetragon/{file}

- name: From a file on the controller, with its sum
  apiary.tetragon.release:
    version: 1.6.1
    source: /srv/releases/{file}
    sha256:
      amd64: "{{ tetragon_sum }}"
"""

RETURN = r"""
path:
  description: The version's directory on the host.
  returned: always
  type: str
  sample: /opt/apiary/tetragon/1.7.1
architecture:
  description: The host's architecture, in the release's word.
  returned: always
  type: str
  sample: amd64
installed:
  description: All versions that are on the host, whole.
  returned: always
  type: list
  elements: str
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.release import ReleaseError, Versions, architecture, exact_version


def main() -> None:
    """Entry point of the module. The action plugin calls it twice: to look, then with ``tarball`` to unpack."""
    module = AnsibleModule(
        argument_spec={
            "version": {"type": "str", "required": True},
            "sha256": {"type": "dict", "default": {}},
            "source": {"type": "str", "default": ""},
            "proxy": {"type": "str", "default": ""},
            "cache_dir": {"type": "path", "default": "~/.cache/apiary/releases"},
            "directory": {"type": "path", "default": "/opt/apiary/tetragon"},
            "tarball": {"type": "path"},
            "tarball_sha256": {"type": "str", "default": ""},
            "unpacked": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    params = module.params
    versions = Versions(params["directory"])
    try:
        version, arch = exact_version(params["version"]), architecture(os.uname().machine)
        present, changed = versions.manifest(version), False
        if params["unpacked"] and present is None:
            versions.require_space(params["unpacked"])
        if params["tarball"]:
            present, changed = versions.unpack(params["tarball"], version, arch, params["tarball_sha256"]), True
    except ReleaseError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg="{0}: {1}".format(params["directory"], error))
    module.exit_json(
        changed=changed,
        path=versions.path(version),
        architecture=arch,
        installed=sorted(versions.installed()),
        manifest={name: present[name] for name in ("version", "architecture", "sha256")} if present else None,
    )


if __name__ == "__main__":
    main()
