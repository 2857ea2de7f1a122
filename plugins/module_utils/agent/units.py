# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""What systemd runs on a host: the texts of a slot's unit and configuration, of the alarm, and of what both need.

Other services order themselves after ``apiary-tetragon-a.service`` and ``-b.service`` (both: only one of them boots): a slot's
start job ends when every policy of its set is enabled in its mode, not when its process exists.
"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from typing import Dict, List, Mapping, Sequence

from ansible_collections.apiary.tetragon.plugins.module_utils.agent.flags import DEFAULTS
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.policyset import sync_directory

ETC, RUN, LIB, RELEASES = "/etc/apiary/slots", "/run/apiary", "/opt/apiary/lib", "/opt/apiary/tetragon"
SYSTEM = "/etc/systemd/system"
METRICS = {"a": "127.0.0.1:2112", "b": "127.0.0.1:2113"}
PROGRAM = LIB + "/slot"
BREAK_GLASS = LIB + "/break-glass"
TMPFILES = "/etc/tmpfiles.d/apiary.conf"
# What the programs of the units import, by module name.
MODULES = ("binaries", "bpf", "break_glass", "pins", "policyset", "process", "slots", "slotunit", "state", "tetra")
_PACKAGE = "ansible_collections/apiary/tetragon/plugins/module_utils/agent"
_CAPABILITIES = (
    "CAP_BPF CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_IPC_LOCK CAP_KILL CAP_NET_ADMIN CAP_PERFMON "
    "CAP_SYS_ADMIN CAP_SYS_PTRACE CAP_SYS_RESOURCE CAP_SYSLOG"
)
_UNIT = re.compile(r"[\w:.\\@-]+\.(service|socket|target|mount|automount|swap|timer|path|slice|scope|device)", re.ASCII)


@dataclass(frozen=True)
class Limits:
    """How much a unit may take, how often it is started again, and what waits for it."""

    memory_max: str = "2G"
    cpu_quota: str = ""
    restart_seconds: int = 5
    start_limit: int = 10
    start_timeout: int = 900
    before: Sequence[str] = ()

    def problems(self) -> List[str]:
        """What systemd would pass over with a line in its log and no more, in words."""
        found = []
        if self.memory_max and not re.fullmatch(r"\d+[KMGT]?|\d{1,3}%|infinity", self.memory_max):
            found.append("memory_max is {0!r}; needed: bytes such as 512M or 2G, a share such as 10%, or nothing".format(self.memory_max))
        if self.cpu_quota and not re.fullmatch(r"[1-9]\d*%", self.cpu_quota):
            found.append("cpu_quota is {0!r}; needed: a share of one CPU such as 50%, or nothing".format(self.cpu_quota))
        for name in ("restart_seconds", "start_limit", "start_timeout"):
            if getattr(self, name) < 1:
                found.append("{0} is {1}; needed: 1 or more".format(name, getattr(self, name)))
        found += [
            "before has {0!r}; needed: whole names of units such as nginx.service".format(one)
            for one in self.before
            if not _UNIT.fullmatch(one)
        ]
        return found


@dataclass(frozen=True)
class File:
    text: str
    mode: int = 0o644


def unit_name(slot: str) -> str:
    return "apiary-tetragon-{0}.service".format(slot)


def alarm_name(slot: str) -> str:
    return "apiary-tetragon-alarm@{0}.service".format(slot)


def conf(slot: str, version: str, options: Mapping[str, str]) -> Dict[str, str]:
    """Every option of a slot's agent: the slot's own, the collection's, and the user's over those."""
    return {
        **DEFAULTS,
        **options,
        "bpf-dir": "apiary-" + slot,
        "bpf-lib": "{0}/{1}/lib/tetragon/bpf/".format(RELEASES, version),
        "export-filename": "/var/log/tetragon/{0}/tetragon.log".format(slot),
        "gops-address": "",
        "health-server-address": "",
        "metrics-server": METRICS[slot],
        "server-address": "unix://{0}/{1}/tetragon.sock".format(RUN, slot),
        "tracing-policy-dir": "{0}/{1}/policies".format(ETC, slot),
    }


def slot_files(slot: str, version: str, options: Mapping[str, str], limits: Limits) -> Dict[str, File]:
    """Path -> file of one slot: its unit, its version, and one file per option."""
    home = "{0}/{1}".format(ETC, slot)
    files = {"{0}/conf.d/{1}".format(home, name): File(value + "\n", 0o600) for name, value in conf(slot, version, options).items()}
    files[home + "/version"] = File(version + "\n")
    files["{0}/{1}".format(SYSTEM, unit_name(slot))] = File(unit(slot, version, limits))
    return files


def unit(slot: str, version: str, limits: Limits) -> str:
    """The unit of a slot."""
    before = "".join("Before={0}\n".format(one) for one in limits.before)
    quota = "CPUQuota={0}\n".format(limits.cpu_quota) if limits.cpu_quota else ""
    memory = "MemoryMax={0}\n".format(limits.memory_max) if limits.memory_max else ""
    return """\
[Unit]
Description=Tetragon {version}, slot {slot}
Documentation=https://tetragon.io/docs/
DefaultDependencies=no
RequiresMountsFor={etc}/{slot} {releases} /var/log/tetragon
After=local-fs.target systemd-tmpfiles-setup.service sys-fs-bpf.mount
Conflicts=shutdown.target
Before=shutdown.target
{before}StartLimitIntervalSec=3600
StartLimitBurst={limits.start_limit}
OnFailure=apiary-tetragon-alarm@{slot}.service

[Service]
Type=simple
ExecStartPre=+/usr/bin/python3 -I {program} heal {slot}
ExecStart={releases}/{version}/bin/tetragon --config-dir {etc}/{slot}/conf.d
ExecStartPost=+/usr/bin/python3 -I {program} ready {slot} {limits.start_timeout}
TimeoutStartSec={grace}
TimeoutStopSec=90
Restart=always
RestartSec={limits.restart_seconds}
Environment=PATH={releases}/{version}/lib/tetragon:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
UMask=0077
LimitMEMLOCK=infinity
LimitNOFILE=65536
OOMScoreAdjust=-900
{memory}{quota}RuntimeDirectory=apiary/{slot}
RuntimeDirectoryMode=0700
LogsDirectory=tetragon tetragon/{slot}
LogsDirectoryMode=0700
BindPaths={run}/{slot}:/run/tetragon
InaccessiblePaths=-/etc/tetragon -/usr/lib/tetragon -/usr/local/lib/tetragon
CapabilityBoundingSet={capabilities}
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
ProtectClock=yes
ProtectHostname=yes
ProtectKernelModules=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
""".format(
        slot=slot, version=version, limits=limits, before=before, quota=quota, memory=memory, etc=ETC, run=RUN, releases=RELEASES,
        program=PROGRAM, capabilities=_CAPABILITIES, grace=limits.start_timeout + 60,
    )  # fmt: skip


_ALARM = """\
[Unit]
Description=Alarm: Tetragon in slot %i does not start
DefaultDependencies=no
After=local-fs.target

[Service]
Type=oneshot
ExecStart=/usr/bin/python3 -I {program} alarm %i
""".format(program=PROGRAM)

_TMPFILES = """\
d {run} 0755 root root -
d /run/tetragon 0755 root root -
""".format(run=RUN)

_START = '''\
#!/usr/bin/python3 -I
"""Of Apiary. Written by the role apiary.tetragon.agent."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
from {package}.{{0}} import main

sys.exit(main(sys.argv[1:]))
'''.format(package=_PACKAGE.replace("/", "."))


def host_files(sources: Mapping[str, str]) -> Dict[str, File]:
    """Path -> file of what both slots need. ``sources``: text of each of MODULES."""
    files = {"{0}/{1}/{2}.py".format(LIB, _PACKAGE, name): File(sources[name]) for name in MODULES}
    files[PROGRAM] = File(_START.format("slotunit"), 0o755)
    files[BREAK_GLASS] = File(_START.format("break_glass"), 0o755)
    files[SYSTEM + "/apiary-tetragon-alarm@.service"] = File(_ALARM)
    files[TMPFILES] = File(_TMPFILES)
    return files


def sources() -> Dict[str, str]:
    """The texts of MODULES, from wherever this very code was loaded: a module's archive, a checkout, or a host's copy."""
    # Named here so that they go along in a module's archive.
    from ansible_collections.apiary.tetragon.plugins.module_utils.agent import (  # noqa: F401
        binaries,
        bpf,
        break_glass,
        pins,
        process,
        slots,
        slotunit,
        state,
        tetra,
    )

    return {name: source("{0}.{1}".format(_PACKAGE.replace("/", "."), name)) for name in MODULES}


def source(module: str) -> str:
    """The text of a module, from wherever it was loaded; Ansible's own loader gives bytes. Raises OSError."""
    from importlib.util import find_spec

    spec = find_spec(module)
    text = spec.loader.get_source(module) if spec is not None and spec.loader is not None else None  # type: ignore[attr-defined]
    if text is None:
        raise OSError(errno.ENOENT, "the source of {0} is not there".format(module))
    return text.decode("utf-8") if isinstance(text, bytes) else str(text)


def stale(files: Mapping[str, File]) -> List[str]:
    """Paths whose content or mode is not the wanted one."""
    return sorted(path for path, file in files.items() if not _fits(path, file))


def _fits(path: str, file: File) -> bool:
    try:
        with open(path, encoding="utf-8") as there:
            return there.read() == file.text and os.fstat(there.fileno()).st_mode & 0o7777 == file.mode
    except (OSError, UnicodeDecodeError):
        return False


def strays(slot: str, files: Mapping[str, File]) -> List[str]:
    """Files of options that a slot is not to have."""
    folder = "{0}/{1}/conf.d".format(ETC, slot)
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return sorted(path for path in (os.path.join(folder, name) for name in names) if path not in files)


def write(files: Mapping[str, File], paths: Sequence[str]) -> None:
    """Write these of the files, each in one rename."""
    for path in paths:
        folder = os.path.dirname(path)
        os.makedirs(folder, mode=0o755, exist_ok=True)
        temporary = os.path.join(folder, ".{0}.new".format(os.path.basename(path)))
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(files[path].text)
            os.fchmod(file.fileno(), files[path].mode)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    for folder in {os.path.dirname(path) for path in paths}:
        sync_directory(folder)
