#!/usr/bin/python
# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Documentation of apiary.tetragon.replay, which runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: replay
short_description: Replay recordings of the agent through policies
version_added: 0.1.0
author:
  - Apiary contributors (@apiary)
description:
  - Says, for every recorded event, which policies would have fired on it, with which selector and which action, and on
    which the recording cannot tell, and why. No kernel and no agent takes part.
  - Reports too what volume to expect from each policy, who causes it, which policies fire on the same events, and what
    was skipped.
  - A recording without an event of a hook is an error, as silence proves nothing then. So is a policy that the agent
    would not take; the others are replayed and reported all the same.
  - Runs on the controller and needs no host.
extends_documentation_fragment:
  - apiary.tetragon.library
  - apiary.tetragon.reports
  - apiary.tetragon.attributes
options:
  policies:
    description:
      - The policies, each a TracingPolicy file, a directory of such files, a directory of library policies, or a
        library policy as C(<category>/<name>).
      - Policies are known by their C(metadata.name), which must differ.
    type: list
    elements: path
    required: true
  corpus:
    description:
      - The recordings, each a file as the agent exports it (JSON lines, plain, gzip or zstd) or a directory of such files.
      - The policies under which they were recorded are looked for in the recording's directory and in a directory
        C(policies) in it or beside it. They say which argument is which.
      - A file C(recording.yml) in the directory can say more, see C(docs/replay.md).
    type: list
    elements: path
    required: true
  recorders:
    description:
      - Files or directories with the policies under which was recorded, when they lie elsewhere.
    type: list
    elements: path
    default: []
  executables:
    description:
      - The executed file of each exec name that differs from it, such as C(/usr/bin/dash) for C(/bin/sh). An empty
        dictionary says that none differs. Without it, filters on executables are decided only where the recorder
        recorded the executed file.
    type: dict
  at_hook:
    description:
      - Vouch that each process was in the namespaces that its event shows when it hit the hook.
    type: bool
    default: false
  agent_version:
    description:
      - The version of the agent that is to run the policies.
    type: str
    default: 1.7.0
  kernel:
    description:
      - The kernels that are to run the policies, as the key C(kernel) of an environment file describes them. The oldest
        release decides which of the agent's programs are taken, and whether parts of texts can be found; kprobe-multi,
        whether hooks of one policy share maps.
      - Without it the policies are judged for Linux 6.1 without kprobe-multi.
    type: dict
  values:
    description:
      - Values for the inputs of library policies, by C(<category>/<name>).
    type: dict
    default: {}
  form:
    description:
      - The form in which library policies are rendered. A policy that does not have it takes its first one.
    type: str
    choices: [host, cluster]
    default: host
  protected:
    description:
      - Executables that nothing may kill, for library policies. Without it the same as in environment files.
    type: list
    elements: str
  explain:
    description:
      - An event, as C(<file>:<line>). What every policy does with this event is then told filter by filter, and nothing
        else is replayed.
    type: str
  workers:
    description:
      - How many processes share the work; V(0) takes as many as there are processors.
    type: int
    default: 0
attributes:
  check_mode:
    support: full
    details:
      - It changes nothing; the reports are written in check mode too.
  diff_mode:
    support: none
seealso:
  - module: apiary.tetragon.check
  - module: apiary.tetragon.record
"""

EXAMPLES = r"""
- name: What would these policies have done last night?
  apiary.tetragon.replay:
    policies: [policies/file, network/c2-ranges]
    values:
      network/c2-ranges: {ranges: [192.0.2.0/24]}
    corpus: [recordings/web-tier]
    report: reports/replay.json
    markdown: reports/replay.md

- name: Why did nothing fire on line 812?
  apiary.tetragon.replay:
    policies: [policies/file/credential-writes]
    corpus: [recordings/web-tier]
    explain: recordings/web-tier/host1.jsonl.gz:812
"""

RETURN = r"""
replay:
  description:
    - The report without its entries. C(docs/schemas/replay-report.json) describes it.
  returned: success, without O(explain)
  type: dict
  contains:
    events:
      description: Events of a hook that were read.
      type: int
    policies:
      description: Each policy by name, with how many events fire, stay quiet and are undecided, volume and noise.
      type: dict
    skipped:
      description: What could not be read, and why.
      type: list
      elements: dict
explanation:
  description: What each policy does with the event, filter by filter; O(report) receives the same.
  returned: with O(explain)
  type: dict
  contains:
    event:
      description: The event.
      type: dict
    policies:
      description: By policy, an explanation for each of its hooks that the event reaches; none when there is no such hook.
      type: dict
"""
