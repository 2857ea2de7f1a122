# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""What a whole recording says about its processes that no single event does.

An event names a process as it was at its last exec. Other events of the same recording say more: which file was executed
(the last ``bprm_check`` before the exec; a script's interpreter is checked after the script), who its ancestors were
(``process_exec``), what became of its capabilities (``commit_creds``, which every change of credentials goes through) and
whether it can have entered another namespace (none but a user namespace can be made or entered without a check for
CAP_SYS_ADMIN, which is ``capable``). The latter two hold only where that hook was recorded for the same processes, which
the recording policies show; they are taken to have been loaded before the first call that any of them recorded. That the
kernel acts for a process with other credentials than its own, as overlayfs does, shows nowhere: capabilities of processes in
containers stay undecided, and the files of a host are taken not to lie on overlayfs. Times are nanoseconds.
"""

from __future__ import annotations

import json
from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.compile import SECTIONS, identities
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.filters import CAPABILITY_NAMES
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.records import EVENT_KINDS, Hook, Invocation

_CREDENTIALS = (Hook("kprobe", "commit_creds"),)
_CAPABLE = (Hook("kprobe", "security_capable"), Hook("lsm", "capable"))
_EXECUTIONS = (Hook("kprobe", "security_bprm_check"), Hook("lsm", "bprm_check_security"))
_EXIT = "process_exit"
_CAP_SYS_ADMIN = 21
_PROCESS_FILTERS = frozenset(["matchBinaries", "matchParentBinaries", "matchPIDs", "macros"])
_MAX_PIDS = 10


@dataclass(slots=True)
class _Seen:
    """One exec id. ``executed`` at this time, None for a bare fork; ``older`` than the agent; ``started``: its exec or fork.

    ``last``: its last event, which may be that of its end. ``flags`` are those of its events: one that was forked and has executed
    nothing shows ``execve`` without ``clone``.
    """

    parent: str
    pid: int
    binary: str
    started: int
    flags: frozenset[str] = frozenset()
    executed: int | None = None
    older: bool = False
    capabilities: Mapping[str, int] | None = None
    credentials: list[tuple[int, int, Mapping[str, int]]] = field(default_factory=list)
    admin_checks: list[int] = field(default_factory=list)
    last: int = 0
    node: str = ""


class History:
    """Add every event of a recording, in any order, then complete its invocations.

    ``recorders`` are the policies that recorded it. ``executables`` maps exec names to executed files where they differ;
    None says that this is not known for those that the recording itself does not show.
    """

    def __init__(self, recorders: Iterable[Mapping[str, Any]] = (), executables: Mapping[str, str] | None = None) -> None:
        self._executables = executables
        self._recorded = _recorded_processes(recorders)
        self._seen: dict[str, _Seen] = {}
        self._checks: dict[tuple[str, int], list[tuple[int, str, str]]] = {}  # by node and pid: time, exec id, path
        self._known: dict[str, dict[str, Any]] = {}
        self._first: dict[str, int] = {}  # call of a hook, by node
        self._held: set[tuple[str, Hook]] = set()

    def add(self, event: Mapping[str, Any]) -> None:
        """One exported event, as JSON."""
        node = str(event.get("node_name", ""))
        if "process_exec" in event:
            self._executed(event["process_exec"].get("process", {}), nanoseconds(str(event.get("time", ""))), node)
            return
        key = next((one for one in (*EVENT_KINDS, _EXIT) if one in event), None)
        if key is None:
            return
        body, time = event[key], nanoseconds(str(event.get("time", "")))
        process = body.get("process", {})
        seen = self._named(process, node)
        seen.last = max(seen.last, time)
        if key == _EXIT:
            return
        self._first[node] = min(self._first.get(node, time), time)
        hook = Hook(EVENT_KINDS[key], str(body.get("function_name", "")))
        self._held.add((node, hook))
        if hook in _EXECUTIONS:
            path = next((one["linux_binprm_arg"].get("path", "") for one in body.get("args", ()) if "linux_binprm_arg" in one), "")
            if path and self._recorded.get(hook) is not None:
                insort(self._checks.setdefault((node, seen.pid), []), (time, str(process.get("exec_id", "")), path))
        elif hook in _CREDENTIALS:
            found = next((one["process_credentials_arg"] for one in body.get("args", ()) if "process_credentials_arg" in one), None)
            masks = capabilities((found or {}).get("caps"))
            insort(seen.credentials, (time, int(process.get("tid", 0)), masks), key=lambda one: one[:2])
        elif hook in _CAPABLE:
            asked = next((one["capability_arg"].get("value", 0) for one in body.get("args", ()) if "capability_arg" in one), _CAP_SYS_ADMIN)
            if asked == _CAP_SYS_ADMIN:
                insort(seen.admin_checks, time)

    def _named(self, process: Mapping[str, Any], node: str) -> _Seen:
        exec_id = str(process.get("exec_id", ""))
        found = self._seen.get(exec_id)
        if found is None:
            found = self._seen[exec_id] = _Seen(
                str(process.get("parent_exec_id", "")),
                int(process.get("pid", 0)),
                str(process.get("binary", "")),
                nanoseconds(str(process.get("start_time", ""))),
                frozenset(str(process.get("flags", "")).split()),
                node=node,
            )
        return found

    def _executed(self, process: Mapping[str, Any], time: int, node: str) -> None:
        seen = self._named(process, node)
        seen.flags = frozenset(str(process.get("flags", "")).split())
        seen.executed, seen.older = time, "procFS" in seen.flags
        seen.capabilities = capabilities(process.get("cap"))

    # --- what follows from it

    def complete(self, invocation: Invocation) -> Invocation:
        """The call with everything about its process that the recording shows."""
        process = invocation.process
        if process.exec_id not in self._seen:
            return invocation
        known = self._known.get(process.exec_id)
        if known is None:
            known = self._known[process.exec_id] = self._constant(process.exec_id)
        time = nanoseconds(invocation.time)
        told = {key: value for key, value in known.items() if value is not None or key == "parent_executable"}
        seen, kept = self._seen[process.exec_id], set()
        comparable = self._starts_as_kept(seen)
        if process.in_container is False and self._covered(_CREDENTIALS, invocation.hook, seen.node):
            if comparable and not any(one[0] < time for one in seen.credentials):
                kept.add("capabilities")
            masks = self._capabilities(process.exec_id, time, process.thread)
            if masks is not None:
                told |= {"capabilities": masks, "current_capabilities": True}
        if self._covered(_CAPABLE, invocation.hook, seen.node) and self._stays(process.exec_id, time):
            told["current_namespaces"] = True
            if comparable:
                kept.add("namespaces")
        told["kept"] = frozenset(kept)
        told["ancestors_alive"] = self._alive(process.exec_id, time)
        return replace(invocation, process=replace(process, **told))

    def _constant(self, exec_id: str) -> dict[str, Any]:
        seen = self._seen[exec_id]
        by_exec = seen.executed is not None and not seen.older
        return {
            "executable": self.executable(exec_id),
            "parent_executable": self.executable(seen.parent) if by_exec else None,
            "ancestors": self.ancestors(exec_id),
            "ancestor_pids": self._pids(exec_id),
            "executed": True if by_exec else None,
            "bare_fork": self._forked(seen) or None,
        }

    def _forked(self, seen: _Seen) -> bool:
        """Whether it has executed nothing since its fork. One that executed again without a fork is its own parent by pid."""
        above = self._seen.get(seen.parent)
        return (
            seen.executed is None and "execve" in seen.flags and "clone" not in seen.flags and above is not None and above.pid != seen.pid
        )

    def _starts_as_kept(self, seen: _Seen) -> bool:
        """Whether what the agent keeps to compare changes with is what the process began with: at a fork and at the exec that
        follows one, not at further execs (R2.7)."""
        by_exec = seen.executed is not None and "clone" in seen.flags and not seen.older
        return self._recorded_from_start(seen) and (by_exec or self._forked(seen))

    def _recorded_from_start(self, seen: _Seen) -> bool:
        """Whether its host's recording policies were there when it executed or was forked."""
        return seen.node in self._first and seen.started >= self._first[seen.node]

    def _origin(self, seen: _Seen) -> _Seen | None:
        """What a bare fork was forked from; None where neither that nor the exec of a process that shows one is in the recording."""
        above = self._seen.get(seen.parent)
        return above if above is not None and above.binary == seen.binary and "clone" not in seen.flags else None

    def executable(self, exec_id: str) -> str | None:
        """The file that this process executed; None when the recording does not show it."""
        visited: set[str] = set()
        while exec_id in self._seen and exec_id not in visited:
            visited.add(exec_id)
            seen = self._seen[exec_id]
            if seen.executed is None:
                if self._origin(seen) is None:
                    return None
                exec_id = seen.parent
                continue
            if seen.older and seen.binary.startswith("/"):
                return seen.binary  # R2.2.1: of processes older than itself the agent reads the file from /proc
            found = self._checked(seen)
            if found is not None or self._executables is None or not seen.binary:
                return found
            return self._executables.get(seen.binary, seen.binary)
        return None

    def _checked(self, seen: _Seen) -> str | None:
        """The file of the last check before the exec, by the process that executed."""
        checks = self._checks.get((seen.node, seen.pid), [])
        place = bisect_left(checks, (seen.executed or 0, "", "")) - 1
        if place < 0:
            return None
        _unused, by, path = checks[place]
        forked = self._seen.get(by)
        return path if by == seen.parent or (forked is not None and forked.parent == seen.parent and forked.executed is None) else None

    def _lineage(self, exec_id: str) -> Iterable[tuple[str, _Seen | None]]:
        """Every exec above this one, the nearest first; ends with (exec id, None) where the recording lacks one."""
        visited = {exec_id}
        seen: _Seen | None = self._seen[exec_id]
        while seen is not None and seen.parent and seen.parent not in visited:
            visited.add(seen.parent)
            exec_id, seen = seen.parent, self._seen.get(seen.parent)
            yield exec_id, seen

    def ancestors(self, exec_id: str) -> tuple[str, ...]:
        """Executed files as far as followChildren looks (R2.2.8); "" stands for one that is not known.

        Of processes older than the agent only the nearest and its direct parent count.
        """
        found, older = [], self._seen[exec_id].older
        for above, seen in self._lineage(exec_id):
            found.append(self.executable(above) or "")
            if older:
                break
            older = seen is not None and seen.older
        return tuple(found)

    def _pids(self, exec_id: str) -> tuple[int, ...] | None:
        pids = [self._seen[exec_id].pid]
        for _unused, seen in self._lineage(exec_id):
            if seen is None:
                return None
            if seen.pid != pids[-1]:
                pids.append(seen.pid)
            if len(pids) > _MAX_PIDS:
                break
        return tuple(pids[1:])

    def _alive(self, exec_id: str, time: int) -> int:
        """How many of the pids above, the nearest first, had not ended: of each an event is at hand that came later."""
        pids = [self._seen[exec_id].pid]
        for _unused, seen in self._lineage(exec_id):
            if seen is None or len(pids) > _MAX_PIDS:
                break
            if seen.pid != pids[-1]:
                if seen.last < time:
                    break
                pids.append(seen.pid)
        return len(pids) - 1

    def _capabilities(self, exec_id: str, time: int, thread: int) -> Mapping[str, int] | None:
        """Capabilities at this time. Other threads' changes, and a fork after a change, leave them unknown."""
        seen = self._seen[exec_id]
        changes = [one for one in seen.credentials if one[0] < time]
        if any(one[1] != seen.pid for one in changes) or (changes and thread != seen.pid):
            return None
        if changes:
            return changes[-1][2]
        if seen.executed is not None:
            return seen.capabilities if self._recorded_from_start(seen) else None
        above = self._origin(seen)
        if above is None or any(one[0] < seen.started for one in above.credentials):
            return None
        return self._capabilities(seen.parent, seen.started, above.pid) if seen.parent != exec_id else None

    def _stays(self, exec_id: str, time: int) -> bool:
        """Whether the process is in the namespaces that its events show, those of its exec or of what it was forked from."""
        seen = self._seen[exec_id]
        if any(one < time for one in seen.admin_checks):
            return False
        if seen.executed is not None:
            return self._recorded_from_start(seen)
        return self._origin(seen) is not None and seen.parent != exec_id and self._stays(seen.parent, seen.started)

    def _covered(self, needed: Iterable[Hook], hook: Hook, node: str) -> bool:
        """Whether one of these hooks was recorded for every process of which this hook was. A host without any event of it may
        have its events in a file that is not here."""
        for one in needed:
            processes = self._recorded.get(one) if (node, one) in self._held else None
            if processes is not None and processes in ("[]", self._recorded.get(hook)):
                return True
        return False


def _recorded_processes(recorders: Iterable[Mapping[str, Any]]) -> dict[Hook, str | None]:
    """By hook, the process filters of the policy that recorded it, as JSON; None where it recorded only some calls."""
    found: dict[Hook, str | None] = {}
    for document in recorders:
        spec = document["spec"]
        lists = {one["name"]: one for one in spec.get("lists") or ()}
        everywhere = all(spec.get(key) is None for key in ("podSelector", "containerSelector", "hostSelector", "selectorsMacros"))
        for section, kind in SECTIONS.items():
            for raw in spec.get(section) or ():
                selectors = raw.get("selectors") or []
                whole = everywhere and all(set(one) <= _PROCESS_FILTERS for one in selectors)
                if section == "lsmhooks" and not selectors:
                    whole = False  # R1.6
                told = json.dumps([] if {} in selectors else selectors, sort_keys=True) if whole else None
                for hook in identities(kind, raw, lists):
                    found[hook] = told if hook not in found or told is not None else found[hook]
    return found


def capabilities(raw: Mapping[str, Iterable[str]] | None) -> Mapping[str, int]:
    """Masks of the sets of capabilities that an event lists by name; a set that is not listed is empty."""
    return {
        kind: sum(1 << CAPABILITY_NAMES[name] for name in (raw or {}).get(kind, ()) if name in CAPABILITY_NAMES)
        for kind in ("effective", "permitted", "inheritable")
    }


def nanoseconds(time: str) -> int:
    """A time of the export, which drops zeros at the end, in nanoseconds; 0 when there is none. Raises ValueError."""
    if not time:
        return 0
    whole, _unused, rest = time.rstrip("Z").partition(".")
    return int(datetime.fromisoformat(f"{whole}+00:00").timestamp()) * 1_000_000_000 + int(rest.ljust(9, "0")[:9] or 0)
