# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Options that say where one Tetragon agent lives on a host."""

from __future__ import annotations


class ModuleDocFragment:
    """Shared by the modules that talk to an agent."""

    DOCUMENTATION = r"""
options:
  tetra:
    description:
      - The agent's client program, as a path or as a name that is looked up.
    type: str
    default: tetra
  server_address:
    description:
      - The agent's gRPC address, such as V(unix:///var/run/tetragon/tetragon.sock).
      - Without it the client finds the address in the agent's run directory.
    type: str
    default: ''
  policy_dir:
    description:
      - The directory from which the agent loads policies when it starts.
    type: path
    default: /etc/tetragon/tetragon.tp.d
  bpf_dir:
    description:
      - The agent's pin directory in the BPF file system.
    type: path
    default: /sys/fs/bpf/tetragon
  run_dir:
    description:
      - The agent's run directory, which holds its pid file.
    type: path
    default: /var/run/tetragon
  state_dir:
    description:
      - Where this collection records which policies it manages on the host.
    type: path
    default: /var/lib/apiary
  timeout:
    description:
      - Seconds that one call of the client may take. Loading a policy can take a minute on a slow host.
    type: int
    default: 120
  record:
    description:
      - A file B(on the controller) that receives the observation (JSON), instead of the module's result.
      - When the task fails, the file holds the reason.
    type: path
  keep_record:
    description:
      - Leave a record that exists alone, and do not ask the host again.
    type: bool
    default: false
"""
