# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Bring another agent up beside the running one, let it take over, and only then take the old one down.

One way for upgrade, downgrade, change of configuration, and adoption. The order was measured to be free of gaps: the new
agent starts without policies; each is loaded into it once, those that override ``security_*`` functions in monitor, since two
enforcing copies refuse unrelated calls; their files are written; one process flips all modes, new to enforce before old to
monitor, so that the new alone is what forbidden acts meet when they are attempted now; the pointer that boots moves in one
rename; the old agent stops and its pins go. Before every step a record is written, from which the next run goes on or goes
back. The pointer decides which: until it has moved, the old agent boots.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from ansible_collections.apiary.tetragon.plugins.module_utils.agent import bpf, break_glass, flags, prober, slotunit, units
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.converge import load_policy, set_modes
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.pins import PinDirectory
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.policyset import sync_directory
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.process import read_text
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.proof import HARMLESS, Proof, refused, resolve
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.slots import (
    FOREIGN,
    FOREIGN_UNIT,
    SLOTS,
    Layout,
    Place,
    conf_of,
    link,
    policy_key,
)
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.state import StateFile, write_json
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.systemd import ServiceError
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.tetra import Key, LoadedPolicy, Tetra, TetraError

# ``point`` is the first step that can have moved the pointer.
STEPS = ("clean", "start", "load", "write", "flip", "point", "retire", "prove")
_POLL_SECONDS = 0.2


class HandoverError(Exception):
    """The wanted agent does not run. ``restored`` says whether the former one does, as before."""

    def __init__(self, message: str, restored: bool) -> None:
        super().__init__(message)
        self.restored = restored


_FAILURES = (TetraError, ServiceError, bpf.BpfError, OSError, ValueError)


@dataclass(frozen=True)
class Agent:
    """An agent as it is wanted: version, the user's options, limits of its unit."""

    version: str
    options: Mapping[str, str] = field(default_factory=dict)
    limits: units.Limits = field(default_factory=units.Limits)


@dataclass
class Record:
    """A hand-over in flight. ``enforcing``: policies that enforce in the old agent; ``flips``: those that come up in monitor in the new.

    ``proofs``: how it is proved that the new agent enforces them too, for those of which it can be.
    """

    step: str
    source: Place
    to: str
    version: str
    enforcing: Sequence[Key] = ()
    flips: Sequence[Key] = ()
    proofs: Sequence[Proof] = ()

    def dump(self) -> Dict[str, Any]:
        return asdict(self)

    @staticmethod
    def parse(raw: Mapping[str, Any]) -> Record:
        enforcing, flips = ([(one[0], one[1]) for one in raw[name]] for name in ("enforcing", "flips"))
        proofs = [Proof(**one) for one in raw["proofs"]]
        return Record(raw["step"], Place(**raw["source"]), raw["to"], raw["version"], enforcing, flips, proofs)


@dataclass
class Result:
    """``reasons``: why the agent had to change. ``actions``: what was done or, in check mode, would be. ``proofs``: of enforcement."""

    changed: bool = False
    slot: str = ""
    reasons: List[str] = field(default_factory=list)
    actions: List[str] = field(default_factory=list)
    proofs: List[str] = field(default_factory=list)
    warnings: List[str] = field(default_factory=list)
    before: Dict[str, str] = field(default_factory=dict)
    after: Dict[str, str] = field(default_factory=dict)


def recovery(record: Record, active: Optional[str]) -> str:
    """What becomes of an interrupted hand-over: ``continue`` once the pointer has moved, ``undo`` before."""
    moved = STEPS.index(record.step) >= STEPS.index("point") and active == record.to
    return "continue" if moved else "undo"


def reasons(before: Mapping[str, str], after: Mapping[str, str]) -> List[str]:
    """Why one description of an agent is not the other, in words. Options of a slot's own differ from slot to slot."""
    found = []
    for name in sorted(set(before) | set(after)):
        if before.get(name) != after.get(name):
            if name == "unit":
                found.append("the unit's text changes")
            else:
                found.append("{0}: {1} -> {2}".format(name, before.get(name, "not set") or "''", after.get(name, "not set") or "''"))
    return found


def overrides_functions(pins: PinDirectory, key: Key) -> bool:
    """Whether a loaded policy overrides functions by kprobes: two enforcing copies of it would refuse unrelated calls."""
    return any("generic_kprobe" in path for path in pins.override_tasks(key))


class Handover:
    """Changes of one host's agent. ``attempt`` does one act and tells whether it was refused (see ``prober.once``).

    ``triggers``: whether acts that policies forbid are attempted; else every policy is proved by its links.
    """

    def __init__(
        self,
        layout: Layout,
        services: Any,
        timeout: int = 120,
        drop_loaded_by_hand: bool = False,
        triggers: bool = True,
        attempt: Callable[[Mapping[str, Any]], Optional[bool]] = prober.once,
    ) -> None:
        self.layout = layout
        self.services = services
        self.timeout = timeout
        self.drop_loaded_by_hand = drop_loaded_by_hand
        self.triggers = triggers
        self.attempt = attempt
        self.state = StateFile(layout.state)
        self.path = os.path.join(layout.state, "handover.json")
        self.warnings: List[str] = []

    # --- what the outside calls

    def execute(self, wanted: Agent, adopt: bool = False, check: bool = False) -> Result:
        """Make the wanted agent the one in charge. Raises HandoverError, and Busy while another run changes this host."""
        if check:
            return self._plan(wanted, adopt, check)
        with self.state.lock():
            return self._plan(wanted, adopt, check)

    def pending(self) -> Optional[Record]:
        """The hand-over that was interrupted; None when there is none. Raises ValueError for a record that is not ours."""
        try:
            with open(self.path, encoding="utf-8") as file:
                return Record.parse(json.load(file))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError("{0} is damaged ({1}): remove it and run again".format(self.path, error)) from None

    # --- decisions

    def _plan(self, wanted: Agent, adopt: bool, check: bool) -> Result:
        result = Result(warnings=self.warnings)
        try:
            record = self.pending()
            if record is not None:
                what = recovery(record, self.layout.active())
                result.actions.append("{0} the hand-over to slot {1} that was interrupted at {2}".format(what, record.to, record.step))
                result.changed = True
                if not check:
                    self._recover(record)
            source = self._source(adopt)
            if source is None:
                raise ValueError("no agent runs here: bring one up first (role apiary.tetragon.agent, entry point install)")
            to = SLOTS[1] if source.name == SLOTS[0] else SLOTS[0]
            result.before = self._describe(source)
            result.after = self._wanted(source.name, wanted) if source.name in SLOTS else self._wanted(to, wanted)
            result.reasons = (
                reasons(result.before, result.after)
                if source.name in SLOTS
                else ["unit {0} was installed by somebody else".format(source.unit)]
            )
            result.slot = source.name
            if not result.reasons:
                return result
            result.changed = True
            result.slot = to
            result.actions += ["{0} {1}".format(step, to if step != "retire" else source.name) for step in STEPS]
            target = self.layout.slot(to, wanted.version)
            if check:
                enforcing = [policy.key for policy in source.client(self.timeout).policies() if policy.enforces]
                result.proofs = [str(proof) for proof in self._proofs(source, target, enforcing)]
            else:
                self._require_version(wanted)
                result.proofs = [str(proof) for proof in self._change(source, target, wanted)]
        except HandoverError:
            raise
        except _FAILURES as error:
            raise HandoverError(str(error), True) from None
        return result

    def _source(self, adopt: bool) -> Optional[Place]:
        active = self.layout.active()
        if active is not None:
            return self.layout.slot(active)
        foreign = self.layout.foreign(self.timeout)
        if foreign is not None and not adopt:
            raise ValueError(
                "unit {0} belongs to an agent that somebody else installed: take it over with adopt, or remove it".format(foreign.unit)
            )
        return foreign

    def _describe(self, source: Place) -> Dict[str, str]:
        if source.name == FOREIGN:
            return {"unit": source.unit}
        home = self.layout.home(source.name)
        unit = read_text(os.path.join(self.layout.units, source.unit))
        return {"version": self.layout.version(source.name), "unit": unit, **conf_of(os.path.join(home, "conf.d"))}

    def _wanted(self, slot: str, wanted: Agent) -> Dict[str, str]:
        return {
            "version": wanted.version,
            "unit": units.unit(slot, wanted.version, wanted.limits),
            **units.conf(slot, wanted.version, wanted.options),
        }

    def _require_version(self, wanted: Agent) -> None:
        program = self.layout.inside("{0}/{1}/bin/tetragon".format(units.RELEASES, wanted.version))
        if not os.access(program, os.X_OK):
            raise ValueError("version {0} is not on this host: bring it there first (apiary.tetragon.release)".format(wanted.version))

    # --- forward

    def _change(self, source: Place, target: Place, wanted: Agent) -> Sequence[Proof]:
        files, modes = self._carried(source)
        self._purge(source)
        enforcing = [key for key, mode in modes.items() if mode == "enforce"]
        flips = [key for key in enforcing if overrides_functions(source.pins, key)]
        proofs = [self._possible(source, target, proof) for proof in self._proofs(source, target, enforcing)]
        record = Record("clean", source, target.name, wanted.version, enforcing, flips, [one for one in proofs if one])
        client = target.client(self.timeout)
        try:
            self._step(record, "clean")
            self._clean(self.layout.slot(target.name))
            self._prepare(target, files, wanted)
            self._step(record, "start")
            self.services.start(target.unit)
            self._effective(client, target, wanted)
            self._step(record, "load")
            for name, text in files.items():
                key = policy_key(text)
                if key is None:
                    raise ValueError("{0} shows no metadata.name: it is no policy".format(name))
                load_policy(client, key, os.path.join(self._staged(target), name), "monitor" if key in flips else modes[key])
            self._require(client, {key: "monitor" if key in flips else mode for key, mode in modes.items()})
            self._step(record, "write")
            os.rename(self._staged(target), target.policy_dir)
            sync_directory(os.path.dirname(target.policy_dir))
            self._step(record, "flip")
            changes = [(target.pins, client, key, "enforce") for key in flips]
            changes += [(source.pins, source.client(self.timeout), key, "monitor") for key in enforcing]
            set_modes(changes)
            self._require(client, modes)
            self._prove(record, target)
            self._step(record, "point")
            self._point(record)
        except _FAILURES as error:
            problems = self._undo(record)
            tail = "; the former agent is in charge as before" if not problems else "; and it could not be put back: " + "; ".join(problems)
            raise HandoverError("{0}{1}".format(error, tail), not problems) from None
        self._finish(record, modes)
        return record.proofs

    # --- proof

    def _proofs(self, source: Place, target: Place, enforcing: Sequence[Key]) -> List[Proof]:
        """How each enforcing policy can be proved in the new agent."""
        known = self.state.read().triggers if self.triggers else {}
        found = []
        for key in sorted(enforcing):
            trigger = known.get(key)
            step = resolve(trigger) if trigger and trigger["kind"] in HARMLESS else None
            proof = Proof(key[1], key[1], "trigger", step) if step else self._by_links(source, target, key)
            found += [proof] if proof else []
        return found

    def _by_links(self, source: Place, target: Place, key: Key, note: str = "") -> Optional[Proof]:
        """By the links that it has in the old agent too; None for one without, such as an LSM hook's in v1.7."""
        if not prober.links(source.pins.folder(key)):
            self._warn("{0}: is only listed as enforcing: it has neither an act to attempt nor pinned links".format(key[1]))
            return None
        folder = os.path.basename(target.pins.folder(key))
        return Proof(key[1], key[1], "links", {"kind": "links", "directory": target.bpf_dir, "folder": folder, "count": 1}, note)

    def _possible(self, source: Place, target: Place, proof: Proof) -> Optional[Proof]:
        """The proof, or the next best where a trigger proves nothing: it is not refused under the old agent either, or is void."""
        done = True if proof.by == "links" else refused(proof.step, self.attempt)
        if done:
            return proof
        if done is None:
            return self._by_links(source, target, ("", proof.loaded), "its trigger cannot be attempted here")
        self._warn(
            "{0}: is not refused under the agent in charge, which lists the policy as enforcing: it proves nothing here "
            "(the policy may exempt python3, or deny nothing: hold a drill)".format(proof)
        )
        return self._by_links(source, target, ("", proof.loaded), "its trigger is not refused")

    def _prove(self, record: Record, target: Place) -> None:
        """Raises ValueError when what the policies forbid is not refused; only the new agent enforces when this is called."""
        self._purge(target)
        wrong = []
        for proof in record.proofs if self.triggers else [one for one in record.proofs if one.by == "links"]:
            done = refused(proof.step, self.attempt)
            if done is None:
                self._warn("{0}: cannot be attempted any more".format(proof))
            elif not done:
                wrong.append("{0} {1}".format(proof, "is allowed" if proof.by == "trigger" else "are gone"))
        if wrong:
            raise ValueError(
                "the new agent does not enforce what it lists: {0} (attempt_triggers: false goes without attempts)".format("; ".join(wrong))
            )

    def _warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)

    # --- steps

    def _carried(self, source: Place) -> Tuple[Dict[str, str], Dict[Key, str]]:
        """The old agent's policies: (file -> text, key -> mode), once it has finished what it is loading. Raises ValueError."""
        files = source.files()
        shown = {name: policy_key(text) for name, text in files.items()}
        keys = {name: key for name, key in shown.items() if key is not None}
        unnamed = sorted(set(shown) - set(keys))
        if unnamed:
            raise ValueError("{0}/{1} shows no metadata.name: it is no policy; take it out of there".format(source.policy_dir, unnamed[0]))
        client, deadline = source.client(self.timeout), time.monotonic() + self.timeout
        while True:
            listed = {policy.key: policy for policy in client.policies()}
            awaited = [key for key in keys.values() if key not in listed] if (source.uptime or 1e9) < self.timeout else []
            if not awaited and not any(policy.state in ("loading", "unloading") for policy in listed.values()):
                break
            if time.monotonic() > deadline:
                raise ValueError("the agent is still loading policies after {0} seconds".format(self.timeout))
            time.sleep(_POLL_SECONDS)
        for name, key in keys.items():
            found = listed.get(key)
            if found is None or found.state != "enabled":
                raise ValueError(
                    "policy {0} of {1}/{2} is {3} in the running agent: mend or remove the file, so that the next agent starts".format(
                        key[1], source.policy_dir, name, found.state if found else "not loaded"
                    )
                )
        by_hand = sorted(key[1] for key, policy in listed.items() if policy.state == "enabled" and key not in set(keys.values()))
        if by_hand and not self.drop_loaded_by_hand:
            raise ValueError(
                "loaded by hand, without a file, and lost with this agent: {0}; delete them, or put their files into {1}".format(
                    ", ".join(by_hand), source.policy_dir
                )
            )
        modes = {key: _mode(listed[key]) for key in keys.values()}
        if source.name == FOREIGN:
            files = {"adopted/{0}".format(name.replace("/", "-")): text for name, text in files.items()}
        return files, modes

    def _clean(self, place: Place) -> None:
        """Make a slot free: whatever a killed run left there goes, its agent first."""
        self._stop(place)
        _remove_pins(place.bpf_dir)
        shutil.rmtree(self.layout.home(place.name), ignore_errors=True)

    def _stop(self, place: Place) -> None:
        if self.services.running(place.unit) or (place.name in SLOTS and place.pid is not None):
            self.services.stop(place.unit)

    def _prepare(self, target: Place, files: Mapping[str, str], wanted: Agent) -> None:
        """Write the slot: unit, options, version, an empty policy directory, and beside it the policies that are to be loaded."""
        os.makedirs(target.policy_dir, mode=0o700, exist_ok=True)
        staged = self._staged(target)
        for name, text in files.items():
            path = os.path.join(staged, name)
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        os.makedirs(staged, mode=0o700, exist_ok=True)
        host_files = {**units.host_files(units.sources()), **units.slot_files(target.name, wanted.version, wanted.options, wanted.limits)}
        rooted = {self.layout.inside(path): file for path, file in host_files.items()}
        units.write(rooted, units.stale(rooted))
        self.services.reload()
        os.sync()

    def _staged(self, target: Place) -> str:
        return target.policy_dir + ".new"

    def _effective(self, client: Tetra, target: Place, wanted: Agent) -> None:
        """Raises ValueError when the agent that came up is not the wanted one; it can be asked from v1.7 on."""
        if [int(part) for part in wanted.version.split("-")[0].split(".")[:2]] < [1, 7]:
            return
        info = client.info()
        if info["version"].lstrip("v") != wanted.version:
            raise ValueError("the agent in slot {0} says that it is {1}, not {2}".format(target.name, info["version"], wanted.version))
        wrong = flags.differences(wanted.version, units.conf(target.name, wanted.version, wanted.options), info["flags"])
        if wrong:
            raise ValueError("the agent did not take its options: {0}".format("; ".join(wrong)))

    def _require(self, client: Tetra, modes: Mapping[Key, str]) -> None:
        """Raises ValueError unless the agent runs exactly these policies, enabled, in these modes."""
        listed = {policy.key: policy for policy in client.policies()}
        wrong = ["{0} is not loaded".format(key[1]) for key in sorted(set(modes) - set(listed))]
        wrong += ["{0} is loaded too".format(key[1]) for key in sorted(set(listed) - set(modes))]
        for key in sorted(set(modes) & set(listed)):
            if listed[key].state != "enabled":
                wrong.append("{0} is {1}".format(key[1], listed[key].state))
            elif _mode(listed[key]) != modes[key]:
                wrong.append("{0} is in mode {1}, not {2}".format(key[1], listed[key].mode, modes[key]))
        if wrong:
            raise ValueError("the agent does not run what it was given: " + "; ".join(wrong))

    def _point(self, record: Record) -> None:
        """Let the new slot boot, in one rename; of an adopted agent, its unit's name is what decides until that agent is gone."""
        if record.source.name == FOREIGN:
            self._keep_foreign_unit()
            link(self.layout.unit(record.to), os.path.join(self.layout.units, FOREIGN_UNIT))
            self.layout.point(record.to)
        else:
            self.layout.point(record.to)
            self.services.reload()
        os.sync()

    def _keep_foreign_unit(self) -> None:
        unit, kept = os.path.join(self.layout.units, FOREIGN_UNIT), os.path.join(self.layout.state, "adopted", FOREIGN_UNIT)
        if os.path.isfile(unit) and not os.path.islink(unit):
            os.makedirs(os.path.dirname(kept), mode=0o700, exist_ok=True)
            shutil.copy2(unit, kept)

    def _finish(self, record: Record, modes: Optional[Mapping[Key, str]]) -> None:
        """What follows the pointer: the old agent and all that is its own go, and the new one is proved. Raises HandoverError."""
        source, target = record.source, self.layout.slot(record.to)
        client = target.client(self.timeout)
        try:
            self._links(target)
            self._step(record, "retire")
            self._stop(source)
            _remove_pins(source.bpf_dir)
            if source.name == FOREIGN:
                self._retire_foreign(source)
            else:
                shutil.rmtree(self.layout.home(source.name), ignore_errors=True)
                unit = os.path.join(self.layout.units, source.unit)
                if os.path.exists(unit):
                    os.unlink(unit)
            self.services.reload()
            self._step(record, "prove")
            if modes is not None:
                self._require(client, modes)
            left = [path for path in (source.bpf_dir, source.bpf_dir + "_old", target.bpf_dir + "_old") if os.path.exists(path)]
            if left:
                raise ValueError("still there: {0}".format(", ".join(left)))
            self._prove(record, target)
            os.unlink(self.path)
            sync_directory(self.layout.state)
        except _FAILURES as error:
            raise HandoverError(
                "slot {0} is in charge and boots, but the hand-over is not finished: {1}; run again".format(record.to, error), False
            ) from None

    def _retire_foreign(self, source: Place) -> None:
        """Take its unit and its configuration out of the way; both are kept below the state directory."""
        kept = os.path.join(self.layout.state, "adopted")
        os.makedirs(kept, mode=0o700, exist_ok=True)
        for path in ("/etc/tetragon/tetragon.conf.d", "/etc/tetragon/tetragon.yaml", "/etc/tetragon/tetragon.tp.d"):
            if os.path.exists(self.layout.inside(path)):
                target = os.path.join(kept, os.path.basename(path))
                if os.path.isdir(target):
                    shutil.rmtree(target)
                shutil.move(self.layout.inside(path), target)
        for path in (
            os.path.join(self.layout.units, "multi-user.target.wants", FOREIGN_UNIT),
            os.path.join(self.layout.units, FOREIGN_UNIT),
        ):
            if os.path.islink(path):
                os.unlink(path)
        sync_directory(self.layout.units)

    def _links(self, target: Place) -> None:
        """What leads a person to the agent in charge: its client, and the addresses that the client looks for."""
        link("/opt/apiary/tetragon/{0}/bin/tetra".format(self.layout.version(target.name)), self.layout.inside("/usr/local/bin/tetra"))
        run_dir = self.layout.inside("/run/tetragon")
        for name in ("tetragon-info.json", "tetragon.sock"):
            path = os.path.join(run_dir, name)
            if os.path.lexists(path) and not os.path.islink(path):
                os.unlink(path)
            link("/run/apiary/{0}/{1}".format(target.name, name), path)

    def _purge(self, place: Place) -> None:
        """Clear what an overlap of enforcing copies left: a map full of it denies nothing, whatever the list says."""
        paths = [os.path.join(folder, "override_tasks") for folder, _dirs, names in os.walk(place.bpf_dir) if "override_tasks" in names]
        try:
            purged = bpf.purge_stale(paths)
        except bpf.BpfError as error:
            self._warn("stale override entries could not be looked for: {0}".format(error))
            return
        if purged:
            self._warn("{0} stale override entries were cleared in {1}".format(purged, place.bpf_dir))

    # --- back, and on

    def _step(self, record: Record, step: str) -> None:
        record.step = step
        write_json(self.path, record.dump())

    def _recover(self, record: Record) -> None:
        """Finish or undo what an earlier run began. Raises HandoverError."""
        target = self.layout.slot(record.to)
        if recovery(record, self.layout.active()) == "continue":
            try:
                self._point(record)
                if target.pid is None:
                    self.services.start(target.unit)
                modes = self._awaited(target)
            except _FAILURES as error:
                if record.source.pid is None:
                    raise HandoverError("slot {0} boots but does not come up: {1}".format(record.to, error), False) from None
            else:
                self._finish(record, modes)
                return
        problems = self._undo(record)
        if problems:
            raise HandoverError("an interrupted hand-over could not be undone: {0}".format("; ".join(problems)), False)

    def _awaited(self, target: Place) -> Dict[Key, str]:
        """The modes of a slot's agent once it runs every policy of its files. Raises ValueError when it does not."""
        keys = {policy_key(text) for text in target.files().values()}
        client, deadline = target.client(self.timeout), time.monotonic() + self.timeout
        while True:
            try:
                listed = {policy.key: policy for policy in client.policies()}
                lacking = sorted(key[1] for key in keys if key and (key not in listed or listed[key].state != "enabled"))
            except TetraError as error:
                lacking = [str(error)]
            if not lacking:
                return {key: _mode(listed[key]) for key in keys if key}
            if time.monotonic() > deadline:
                raise ValueError("not enabled in slot {0}: {1}".format(target.name, ", ".join(lacking)))
            time.sleep(_POLL_SECONDS)

    def _undo(self, record: Record) -> List[str]:
        """Put the old agent back in charge, best effort; returns what could not be done."""
        source, target, problems = record.source, self.layout.slot(record.to), []

        def attempt(action: Callable[[], Any]) -> None:
            try:
                action()
            except _FAILURES as error:
                problems.append(str(error))

        if STEPS.index(record.step) >= STEPS.index("flip"):
            changes = [(source.pins, source.client(self.timeout), key, "enforce") for key in self._to_enforce(record)]
            changes += [(target.pins, target.client(self.timeout), key, "monitor") for key in record.flips]
            there = [change for change in changes if os.path.exists(change[0].policy_conf(change[2]))]
            attempt(lambda: set_modes(there))
        if self.layout.active() == record.to:
            attempt(lambda: self._point_back(source))
        attempt(lambda: self._clean(target))
        if os.path.exists(os.path.join(self.layout.units, target.unit)):
            attempt(lambda: os.unlink(os.path.join(self.layout.units, target.unit)))
        attempt(self.services.reload)
        if source.pid is None:
            if source.name in SLOTS:
                attempt(lambda: slotunit.heal(slotunit.Slot(source.name, self.layout.root)))
            attempt(lambda: self.services.start(source.unit))
        attempt(lambda: self._purge(source))
        if not problems:
            attempt(lambda: self._require_enforcing(source, record))
            attempt(lambda: self._links(source) if source.name in SLOTS else None)
        if not problems:
            os.unlink(self.path)
            sync_directory(self.layout.state)
        return problems

    def _to_enforce(self, record: Record) -> List[Key]:
        """What enforced in the old agent, but for what somebody has taken out of enforcement since."""
        held = break_glass.record(self.state.directory)
        return [key for key in record.enforcing if not (held and break_glass.names(held["policies"], key[1]))]

    def _require_enforcing(self, source: Place, record: Record) -> None:
        modes = self._awaited(source)
        wrong = sorted(key[1] for key in self._to_enforce(record) if modes.get(key) != "enforce")
        if wrong:
            raise ValueError("not enforcing in {0}: {1}".format(source.name, ", ".join(wrong)))

    def _point_back(self, source: Place) -> None:
        if source.name in SLOTS:
            self.layout.point(source.name)
            return
        unit, kept = os.path.join(self.layout.units, FOREIGN_UNIT), os.path.join(self.layout.state, "adopted", FOREIGN_UNIT)
        if os.path.exists(kept):
            shutil.copy2(kept, unit + ".apiary-new")
            os.replace(unit + ".apiary-new", unit)
        elif os.path.islink(unit):
            os.unlink(unit)
        self.layout.point(None)


def _mode(policy: LoadedPolicy) -> str:
    return "monitor" if policy.mode == "monitor_only" else policy.mode


def _remove_pins(directory: str) -> None:
    """End what is pinned below a directory and beside it. Raises OSError when some of it stays."""
    for path in (directory, directory + "_old"):
        if os.path.isdir(path):
            shutil.rmtree(path)
