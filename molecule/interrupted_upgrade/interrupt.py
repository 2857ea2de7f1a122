# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""interrupt.py STEP VERSION: a hand-over to VERSION that dies by SIGKILL as soon as it has recorded STEP. STEP ``none``: it lives."""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from ansible_collections.apiary.tetragon.plugins.module_utils.agent import handover, systemd, units
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.slots import Layout


def main(step, version):
    write = handover.write_json

    def write_and_die(path, document):
        write(path, document)
        if document["step"] == step:
            os.kill(os.getpid(), signal.SIGKILL)

    handover.write_json = write_and_die
    limits = units.Limits(restart_seconds=1, start_limit=3)
    done = handover.Handover(Layout(), systemd.Systemd()).execute(handover.Agent(version, {}, limits))
    print("; ".join(done.actions))


main(*sys.argv[1:])
