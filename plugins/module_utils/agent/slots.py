# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Where agents live on a host: two slots of ours, of which one pointer boots, and the place of an agent that somebody else installed."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Dict, Mapping, Optional, Sequence

from ansible_collections.apiary.tetragon.plugins.module_utils.agent.pins import PinDirectory
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.policyset import sync_directory
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.process import agent_pid, process_age, read_text
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.tetra import Key, Tetra, TetraError

SLOTS = ("a", "b")
FOREIGN = "adopted"
FOREIGN_UNIT = "tetragon.service"
_UNIT = "apiary-tetragon-{0}.service"
_NAME = re.compile(r"^metadata:[^\n]*\n(?:[ \t#][^\n]*\n|\n)*?[ \t]+name:[ \t]*[\"']?([^\s\"'#]+)", re.MULTILINE)
_NAMESPACE = re.compile(r"^metadata:[^\n]*\n(?:[ \t#][^\n]*\n|\n)*?[ \t]+namespace:[ \t]*[\"']?([^\s\"'#]+)", re.MULTILINE)
_MODE = re.compile(r"(name[\"']?:\s*[\"']?policy-mode[\"']?\s*,?\s*[\"']?value[\"']?:\s*[\"']?)(enforce|monitor)\b")


def policy_key(text: str) -> Optional[Key]:
    """(namespace, name) of a policy file, JSON or YAML; None when it shows none. There is no YAML reader on hosts."""
    try:
        metadata = json.loads(text)["metadata"]
        return (metadata.get("namespace") or "", metadata["name"])
    except (ValueError, KeyError, TypeError):
        pass
    if re.search(r"^metadata:\s*\{", text, re.MULTILINE):
        inside = re.search(r"^metadata:\s*\{([^}]*)\}", text, re.MULTILINE)
        pairs = dict(re.findall(r"[\"']?(\w+)[\"']?\s*:\s*[\"']?([^\s\"',}]+)", inside.group(1))) if inside else {}
        return (pairs.get("namespace", ""), pairs["name"]) if "name" in pairs else None
    name, namespace = _NAME.search(text), _NAMESPACE.search(text)
    return (namespace.group(1) if namespace else "", name.group(1)) if name else None


def said_mode(text: str) -> str:
    """The mode that a file says; empty for none, which an agent takes for enforce where there is something to enforce."""
    found = _MODE.search(text)
    return found.group(2) if found else ""


def with_mode(text: str, mode: str) -> Optional[str]:
    """The same policy with another mode; None when the file has no such option to change."""
    changed, count = _MODE.subn(lambda match: match.group(1) + mode, text)
    return changed if count == 1 else None


def policy_files(directory: str) -> Dict[str, str]:
    """What an agent loads from its policy directory, in its order: every file one level deep, whatever it is called."""
    found = {}
    for entry in sorted(_listing(directory)):
        path = os.path.join(directory, entry)
        if os.path.isdir(path) and not os.path.islink(path):
            names = [os.path.join(entry, name) for name in sorted(_listing(path))]
        else:
            names = [entry]
        for name in names:
            if os.path.isfile(os.path.join(directory, name)):
                with open(os.path.join(directory, name), encoding="utf-8", errors="replace") as file:
                    found[name] = file.read()
    return found


def _listing(directory: str) -> Sequence[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


@dataclass(frozen=True)
class Place:
    """One agent's place: its unit, its pins, its socket, its policy directory, its run directory, its client."""

    name: str
    unit: str
    bpf_dir: str
    server_address: str
    policy_dir: str
    run_dir: str
    tetra: str

    @property
    def pins(self) -> PinDirectory:
        return PinDirectory(self.bpf_dir)

    @property
    def pid(self) -> Optional[int]:
        """The agent's process; None when there is none: a number in a pid file may by now be another program's."""
        pid = agent_pid(os.path.join(self.run_dir, "tetragon.pid"))
        return pid if pid and "tetragon" in read_text("/proc/{0}/cmdline".format(pid)) else None

    @property
    def uptime(self) -> Optional[float]:
        pid = self.pid
        return process_age(pid) if pid else None

    def client(self, timeout: int) -> Tetra:
        return Tetra(self.tetra, self.server_address, timeout)

    def files(self) -> Dict[str, str]:
        return policy_files(self.policy_dir)


class Layout:
    """Paths of a host, below ``root`` (empty: the host itself)."""

    def __init__(self, root: str = "") -> None:
        self.root = root.rstrip("/")
        self.units = self.inside("/etc/systemd/system")
        self.pointer = os.path.join(self.units, "apiary-tetragon.service")
        self.wanted = os.path.join(self.units, "multi-user.target.wants", "apiary-tetragon.service")
        self.state = self.inside("/var/lib/apiary")

    def inside(self, path: str) -> str:
        return self.root + path

    def unit(self, slot: str) -> str:
        return _UNIT.format(slot)

    def home(self, slot: str) -> str:
        return self.inside("/etc/apiary/slots/" + slot)

    def version(self, slot: str) -> str:
        return read_text(os.path.join(self.home(slot), "version")).strip()

    def slot(self, name: str, version: str = "") -> Place:
        run_dir = self.inside("/run/apiary/" + name)
        return Place(
            name=name,
            unit=self.unit(name),
            bpf_dir=self.inside("/sys/fs/bpf/apiary-" + name),
            server_address="unix://{0}/tetragon.sock".format(run_dir),
            policy_dir=os.path.join(self.home(name), "policies"),
            run_dir=run_dir,
            tetra=self.inside("/opt/apiary/tetragon/{0}/bin/tetra".format(version or self.version(name))),
        )

    def active(self) -> Optional[str]:
        """The slot that boots; None when none does. While an agent is adopted, its unit's name is the pointer."""
        for link in (self.pointer, os.path.join(self.units, FOREIGN_UNIT)):
            try:
                target = os.path.basename(os.readlink(link))
            except OSError:
                continue
            for slot in SLOTS:
                if target == self.unit(slot):
                    return slot
        return None

    def foreign(self, timeout: int) -> Optional[Place]:
        """The agent that upstream's installer or a package put on this host, when its unit is there and its agent answers."""
        units = [self.inside(path) for path in ("/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")]
        if not any(os.path.isfile(os.path.join(path, FOREIGN_UNIT)) for path in units) or self.active():
            return None
        run_dir = self.inside("/run/tetragon")
        address = _info_address(run_dir)
        tetra = "tetra"
        for path in ("/usr/local/bin/tetra", "/usr/bin/tetra"):
            if os.access(self.inside(path), os.X_OK):
                tetra = self.inside(path)
                break
        flags: Mapping[str, Any] = {}
        with suppress(TetraError):
            flags = Tetra(tetra, address, timeout).info()["flags"]
        return Place(
            name=FOREIGN,
            unit=FOREIGN_UNIT,
            bpf_dir=self.inside("/sys/fs/bpf/" + str(flags.get("bpf-dir") or "tetragon")),
            server_address=address,
            policy_dir=self._below(str(flags.get("tracing-policy-dir") or "/etc/tetragon/tetragon.tp.d")),
            run_dir=run_dir,
            tetra=tetra,
        )

    def _below(self, path: str) -> str:
        return path if path.startswith(self.root + "/") and self.root else self.root + path

    def point(self, slot: Optional[str]) -> None:
        """Let this slot boot, in one rename; None: no slot of ours."""
        if slot is None:
            for path in (self.wanted, self.pointer):
                if os.path.islink(path):
                    os.unlink(path)
        else:
            link(self.unit(slot), self.pointer)
            link("../apiary-tetragon.service", self.wanted)
        sync_directory(self.units)


def _info_address(run_dir: str) -> str:
    try:
        return str(json.loads(read_text(os.path.join(run_dir, "tetragon-info.json")))["server_address"])
    except (ValueError, KeyError, TypeError):
        return ""


def link(target: str, path: str) -> None:
    """Make ``path`` a symbolic link to ``target``, in one rename."""
    if os.path.islink(path) and os.readlink(path) == target:
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = path + ".apiary-new"
    if os.path.lexists(temporary):
        os.unlink(temporary)
    os.symlink(target, temporary)
    os.replace(temporary, path)
    sync_directory(os.path.dirname(path))


def conf_of(directory: str) -> Dict[str, str]:
    """The options in a slot's ``conf.d``."""
    return {name: read_text(os.path.join(directory, name)).rstrip("\n") for name in sorted(_listing(directory)) if not name.startswith(".")}
