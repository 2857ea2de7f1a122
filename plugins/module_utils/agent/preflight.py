# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Whether a host can run an agent and enforce what is wanted: facts read without changing anything, then verdicts.

``gather()`` reads, ``judge()`` is a plain function over what was read. A check is ``ok``, ``warn``, ``fail`` or ``unknown``;
only ``fail`` stops an install. What kernels must have comes from upstream's documents and from measurements of v1.7.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from dataclasses import asdict, dataclass
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

from ansible_collections.apiary.tetragon.plugins.module_utils.agent.process import agent_pid, read_text
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.release import ARCHITECTURES

OLDEST_KERNEL = (4, 19)
SLOTS = {"a": 2112, "b": 2113}
# What a kernel release alone tells about a probe, where no program is there yet to ask.
_PROBE_SINCE = {"signal": (5, 3), "fmodret": (5, 7), "fentry": (5, 5)}
_NEEDED_BYTES = 400 << 20
_CONTAINER = re.compile(r"docker|containerd|crio|libpod|kubepods|lxc\.payload")
_PROBE_LINE = re.compile(r"^([a-z_]+): (true|false)$", re.MULTILINE)


@dataclass(frozen=True)
class Verdict:
    """One check: what was found, what is needed, and for a failure the way out."""

    check: str
    verdict: str
    found: str
    needed: str = ""
    way_out: str = ""

    def __str__(self) -> str:
        needed = "; needed: {0}".format(self.needed) if self.needed else ""
        return "{0}: {1}{2}{3}".format(self.check, self.found, needed, ": " + self.way_out if self.way_out else "")


@dataclass(frozen=True)
class Wanted:
    """What the host is to run. ``requirements``: kind (probe or flag), any_of, reason and the policies that need it."""

    version: str = ""
    options: Mapping[str, str] = ()  # type: ignore[assignment]
    requirements: Sequence[Mapping[str, Any]] = ()
    adopt: bool = False
    unpacked: int = _NEEDED_BYTES


def parse_probe(text: str) -> Dict[str, bool]:
    """The features in the output of ``tetra probe``, whatever log lines stand between them."""
    return {name: value == "true" for name, value in _PROBE_LINE.findall(text)}


def run_probe(program: str) -> Optional[Dict[str, bool]]:
    """The features that ``program`` (tetra) finds; None when it cannot be run or finds nothing."""
    try:
        done = subprocess.run(
            [program, "probe"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return parse_probe(done.stdout.decode("utf-8", "replace")) or None


def gather(root: str = "/", program: str = "") -> Dict[str, Any]:
    """The facts of the host below ``root``; what cannot be read is None. ``program`` is a tetra to ask for the kernel's features."""

    def at(path: str) -> str:
        return root.rstrip("/") + path

    mounts = [line.split() for line in read_text(at("/proc/self/mounts")).splitlines()]
    types = {fields[1]: fields[2] for fields in mounts if len(fields) > 2}
    lockdown = re.search(r"\[(\w+)\]", read_text(at("/sys/kernel/security/lockdown")))
    kptr = read_text(at("/proc/sys/kernel/kptr_restrict")).strip()
    release = read_text(at("/proc/sys/kernel/osrelease")).strip()
    own = {slot: agent_pid(at("/run/apiary/{0}/tetragon.pid".format(slot))) for slot in SLOTS}
    agents, falco = _processes(at("/proc"), {pid for pid in own.values() if pid})
    return {
        "kernel": release,
        "machine": platform.machine(),
        "btf": os.path.exists(at("/sys/kernel/btf/vmlinux")),
        "bpffs": types.get("/sys/fs/bpf") == "bpf",
        "lsm": read_text(at("/sys/kernel/security/lsm")).strip().split(",") if os.path.exists(at("/sys/kernel/security/lsm")) else None,
        "lockdown": lockdown.group(1) if lockdown else None,
        "kptr_restrict": int(kptr) if kptr.isdigit() else None,
        "cgroup": _cgroup_mode(types),
        "systemd": os.path.isdir(at("/run/systemd/system")),
        "free_bytes": {place: _free(at(place)) for place in ("/opt", "/var/log")},
        "override_config": _config(at, release, "BPF_KPROBE_OVERRIDE"),
        "own_slots": sorted(slot for slot, pid in own.items() if pid),
        "agents": [*agents, *_installed(at)],
        "kubernetes": any(os.path.exists(at(path)) for path in ("/etc/kubernetes/kubelet.conf", "/var/lib/kubelet/config.yaml")),
        "falco": falco,
        "listening": sorted(_listening(at)),
        "sockets": sorted(_sockets(read_text(at("/proc/net/unix")))),
        "probes": run_probe(program) if program else None,
    }


def _cgroup_mode(types: Mapping[str, str]) -> str:
    if types.get("/sys/fs/cgroup") == "cgroup2":
        return "unified"
    if types.get("/sys/fs/cgroup/unified") == "cgroup2":
        return "hybrid"
    return "legacy" if any(kind == "cgroup" for kind in types.values()) else "none"


def _free(place: str) -> int:
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    return shutil.disk_usage(place).free


def _config(at: Any, release: str, symbol: str) -> Optional[bool]:
    """Whether the kernel was built with a symbol; None when its configuration is not there."""
    text = read_text(at("/boot/config-" + release))
    return "CONFIG_{0}=y".format(symbol) in text.split("\n") if text else None


def _processes(proc: str, own: Set[int]) -> Tuple[List[Dict[str, str]], bool]:
    """Agents that run and are not ours, each with the kind of its home; whether Falco runs."""
    agents, falco = [], False
    entries = [entry for entry in os.listdir(proc) if entry.isdigit()] if os.path.isdir(proc) else []
    for entry in sorted(entries, key=int):
        if int(entry) in own:
            continue
        name = read_text("{0}/{1}/comm".format(proc, entry)).strip()
        falco = falco or name == "falco"
        if name != "tetragon":
            continue
        group = read_text("{0}/{1}/cgroup".format(proc, entry))
        if re.search(r"/apiary-tetragon-[ab]\.service", group):
            continue
        kind = "Kubernetes" if "kubepods" in group else "container" if _CONTAINER.search(group) else "process"
        agents.append({"kind": kind, "where": "process {0}".format(entry)})
    return agents, falco


def _installed(at: Any) -> Iterator[Dict[str, str]]:
    """What upstream's installer or a package left on the disk."""
    for unit in ("/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"):
        path = at(unit + "/tetragon.service")
        if os.path.isfile(path):
            package = any(os.path.exists(at("/var/lib/dpkg/info/{0}.list".format(name))) for name in ("tetragon", "tetragon-agent"))
            yield {"kind": "package" if package else "installer", "where": unit + "/tetragon.service"}
            return
    program = at("/usr/local/bin/tetragon")
    if os.path.isfile(program) and not os.path.realpath(program).startswith(at("/opt/apiary/")):
        yield {"kind": "installer", "where": "/usr/local/bin/tetragon"}


def _listening(at: Any) -> Iterator[int]:
    """TCP ports with a listener that a loopback address would meet."""
    for name in ("tcp", "tcp6"):
        for line in read_text(at("/proc/net/" + name)).splitlines()[1:]:
            fields = line.split()
            if len(fields) > 3 and fields[3] == "0A":
                address, port = fields[1].rsplit(":", 1)
                if address in ("0100007F", "00000000") or set(address) <= {"0"} or address.endswith("01000000"):
                    yield int(port, 16)


def _sockets(text: str) -> Iterator[str]:
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 7 and fields[7].startswith("/"):
            yield fields[7]


def kernel_number(release: str) -> Tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", release)
    return (int(found.group(1)), int(found.group(2))) if found else (0, 0)


def judge(facts: Mapping[str, Any], wanted: Wanted) -> List[Verdict]:
    """Every check of a host, in the order of a table."""
    return [*_of_host(facts, wanted), *_of_neighbours(facts, wanted), *(_of_requirement(facts, wanted, one) for one in wanted.requirements)]


def _of_host(facts: Mapping[str, Any], wanted: Wanted) -> Iterator[Verdict]:
    options, kernel = dict(wanted.options), kernel_number(facts["kernel"])
    known = facts["machine"] in ARCHITECTURES
    yield Verdict("architecture", "ok" if known else "fail", facts["machine"], "x86_64 or aarch64", "" if known else "take the host out")
    yield Verdict(
        "systemd", "ok" if facts["systemd"] else "fail", "runs" if facts["systemd"] else "does not run", "systemd as the first process",
        "" if facts["systemd"] else "the agent is a unit of systemd here; take the host out",
    )  # fmt: skip
    if kernel < OLDEST_KERNEL:
        yield Verdict("kernel", "fail", facts["kernel"] or "unknown", "4.19 or newer", "upgrade the kernel")
    elif ARCHITECTURES.get(facts["machine"]) == "arm64" and kernel < (6, 0):
        yield Verdict("kernel", "warn", facts["kernel"], "6.0 or newer for LSM, Override and fentry on arm64")
    else:
        yield Verdict("kernel", "ok", facts["kernel"], "4.19 or newer")
    if facts["btf"] or options.get("btf"):
        yield Verdict("BTF", "ok", "/sys/kernel/btf/vmlinux" if facts["btf"] else "option btf: {0}".format(options["btf"]))
    else:
        yield Verdict(
            "BTF", "fail", "no /sys/kernel/btf/vmlinux", "a kernel with CONFIG_DEBUG_INFO_BTF, or its BTF in a file",
            "boot such a kernel, or give that file as the agent's option btf",
        )  # fmt: skip
    yield Verdict(
        "bpffs", "ok" if facts["bpffs"] else "fail", "mounted" if facts["bpffs"] else "not at /sys/fs/bpf", "a BPF file system there",
        "" if facts["bpffs"] else "mount -t bpf bpf /sys/fs/bpf, and find out why systemd did not",
    )  # fmt: skip
    lockdown = facts["lockdown"]
    yield Verdict(
        "lockdown", "fail" if lockdown == "confidentiality" else "ok", lockdown or "none", "none or integrity",
        "boot without lockdown=confidentiality: it forbids what the agent reads" if lockdown == "confidentiality" else "",
    )  # fmt: skip
    yield _kptr_restrict(facts["kptr_restrict"], wanted.version)
    yield _cgroups(facts["cgroup"], kernel)
    for place, free in sorted(facts["free_bytes"].items()):
        needed = wanted.unpacked if place == "/opt" else 64 << 20
        enough = free >= needed
        yield Verdict(
            "space in " + place, "ok" if enough else "fail", "{0} MB free".format(free >> 20), "{0} MB".format(needed >> 20),
            "" if enough else "make room",
        )  # fmt: skip


def _kptr_restrict(value: Optional[int], version: str) -> Verdict:
    """With 2 symbols cannot be looked up before v1.6.1 and v1.7."""
    if value is None:
        return Verdict("kptr_restrict", "unknown", "cannot be read")
    numbers = tuple(int(one) for one in re.findall(r"\d+", version)[:3])
    if value == 2 and numbers and numbers < (1, 6, 1):
        return Verdict(
            "kptr_restrict", "fail", "2", "0 or 1 for agents before 1.6.1", "install 1.6.1 or newer, or set kernel.kptr_restrict to 1"
        )
    return Verdict("kptr_restrict", "ok", str(value))


def _cgroups(mode: str, kernel: Tuple[int, int]) -> Verdict:
    if mode in ("legacy", "none") or (mode == "hybrid" and kernel >= (6, 11)):
        return Verdict("cgroups", "warn", mode, "unified: without it events may lack their container")
    return Verdict("cgroups", "ok", mode)


def _of_neighbours(facts: Mapping[str, Any], wanted: Wanted) -> Iterator[Verdict]:
    for agent in facts["agents"]:
        found = "{0} ({1})".format(agent["kind"], agent["where"])
        if wanted.adopt and agent["kind"] in ("package", "installer", "process"):
            yield Verdict("another agent", "warn", found, "to be adopted")
        elif agent["kind"] in ("Kubernetes", "container"):
            yield Verdict(
                "another agent", "fail", found, "one agent on a host", "remove it where it was started from, or take the host out"
            )
        else:
            yield Verdict("another agent", "fail", found, "one agent on a host", "take it over with apiary_agent_adopt: true, or remove it")
    if not facts["agents"]:
        yield Verdict("another agent", "ok", "none")
    if facts["kubernetes"]:
        yield Verdict("Kubernetes", "warn", "a kubelet is set up here", "an agent that knows pods is deployed by its chart")
    if facts["falco"]:
        yield Verdict("Falco", "ok", "runs: both attach to the same hooks, and both cost")
    for slot, port in SLOTS.items():
        if slot in facts["own_slots"]:
            continue
        if port in facts["listening"]:
            yield Verdict(
                "port {0}".format(port), "fail", "in use by another program", "free for the metrics of slot {0}".format(slot),
                "see who has it (ss -ltnp) and move it",
            )  # fmt: skip
        socket = "/run/apiary/{0}/tetragon.sock".format(slot)
        if socket in facts["sockets"]:
            yield Verdict(
                "socket {0}".format(socket),
                "fail",
                "in use by another program",
                "free for slot {0}".format(slot),
                "see who has it (ss -lxp)",
            )


def _of_requirement(facts: Mapping[str, Any], wanted: Wanted, need: Mapping[str, Any]) -> Verdict:
    names, policies = " or ".join(need["any_of"]), ", ".join(need.get("policies") or ())
    check = "{0}: {1}".format(need["reason"], policies) if policies else str(need["reason"])
    if need["kind"] == "flag":
        given = any(str(dict(wanted.options).get(name, "")).lower() in ("true", "1", "t") for name in need["any_of"])
        return Verdict(
            check, "ok" if given else "fail", "option {0} is {1}".format(names, "set" if given else "not set"), "option {0}".format(names),
            "" if given else "set it in apiary_agent_options, or drop the policy here",
        )  # fmt: skip
    answers = {name: _feature(facts, name) for name in need["any_of"]}
    source = "tetra probe" if facts["probes"] is not None else "judged by the kernel alone"
    if any(answers.values()):
        return Verdict(check, "ok", "{0} ({1})".format(names, source), names)
    if None in answers.values():
        return Verdict(check, "unknown", "no tetra here yet to ask", names)
    return Verdict(check, "fail", "this kernel has no {0} ({1})".format(names, source), names, _remedy(facts, need["any_of"]))


def _feature(facts: Mapping[str, Any], name: str) -> Optional[bool]:
    """Whether the kernel has a feature, None when nothing here tells."""
    if facts["probes"] is not None:
        return bool(facts["probes"].get(name, False))
    if name == "lsm":
        return None if facts["lsm"] is None else "bpf" in facts["lsm"]
    if name == "override_return" and facts["override_config"] is not None:
        return bool(facts["override_config"])
    if name in _PROBE_SINCE:
        return kernel_number(facts["kernel"]) >= _PROBE_SINCE[name]
    return None


def _remedy(facts: Mapping[str, Any], names: Sequence[str]) -> str:
    if "lsm" in names and facts["lsm"] is not None and "bpf" not in facts["lsm"]:
        return "boot with lsm={0},bpf, or drop the policy here".format(",".join(one for one in facts["lsm"] if one))
    return "boot a kernel that has it, or drop the policy here"


def table(verdicts: Sequence[Verdict]) -> List[str]:
    """The verdicts for a person, one a line."""
    width = max(len(one.check) for one in verdicts)
    return [
        "{0:<7} {1:<{2}}  {3}{4}".format(
            one.verdict, one.check, width, one.found, "  (needed: {0})".format(one.needed) if one.needed else ""
        )
        for one in verdicts
    ]


def as_data(verdicts: Sequence[Verdict]) -> List[Dict[str, str]]:
    return [asdict(one) for one in verdicts]
