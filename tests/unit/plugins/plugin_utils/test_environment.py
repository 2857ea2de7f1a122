# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Environment files: what they mean, and what a person is told when one is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from ansible_collections.apiary.tetragon.plugins.module_utils.agent import units
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.slots import Layout
from ansible_collections.apiary.tetragon.plugins.plugin_utils import environment
from ansible_collections.apiary.tetragon.plugins.plugin_utils.environment import (
    DEFAULT_PROTECTED,
    Entry,
    Environment,
    Gates,
    Ring,
    Variant,
    default_protected,
)
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.load import Library
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Problem
from ansible_collections.apiary.tetragon.tests.unit.plugins.plugin_utils.samples import ENVIRONMENTS, META, PolicyTree, messages, refused

WHOLE = """\
name: staging
agent_version: "1.7.0"
protected: [/usr/bin/guard]
policies:
  - policy: files/watch
    mode: enforce
    form: cluster
    namespace: shop
    where: [web]
    values:
      paths: [/etc/a]
      limit: 3
    overrides:
      - where: [databases]
        values:
          paths: [/etc/b]
rings:
  - name: canary
    groups: [first, second]
    batch: 1
    bake: 30s
  - name: early
    take: 25%
  - name: fleet
    take: rest
    batch: 10%
gates:
  bake: 10m
  unreachable: 2
  control: 5
  event_burst: 7.5
  commands: [/usr/bin/true]
  urls: ["https://example.org/health"]
on_fail:
  roll_back: all
"""

SHORT = """\
name: staging
agent_version: "1.7.0"
policies:
  - policy: files/watch
    mode: monitor
rings:
  - name: fleet
    take: rest
"""

INPUTS = """\
  limit:
    type: integer
    description: A number.
    default: 1
  owner:
    type: path
    description: A path.
"""

Read = Callable[[str], Environment]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Reads an environment from text; problems name it ``e.yml``."""

    def from_text(text: str) -> Environment:
        (tmp_path / "environment.yml").write_text(text, encoding="utf-8")
        return environment.load(tmp_path / "environment.yml", "e.yml")

    return from_text


def edited(old: str, new: str, text: str = WHOLE) -> str:
    """A text with one place changed."""
    assert text.count(old) == 1, f"{old!r} does not stand there once"
    return text.replace(old, new)


# --- the examples ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["staging", "production"])
def test_a_shipped_example_loads_and_fits_the_library(name: str, library: Library) -> None:
    example = environment.load(ENVIRONMENTS / f"{name}.yml")
    environment.check_values(example, library)
    assert example.name == name


def test_staging_uses_every_policy_of_the_library(library: Library) -> None:
    assert {entry.reference for entry in environment.load(ENVIRONMENTS / "staging.yml").entries} == set(library.references)


# --- what a file means ----------------------------------------------------------------------------------------------


def test_a_whole_file_is_read(read: Read) -> None:
    whole = read(WHOLE)
    assert (whole.name, whole.file, whole.agent_version, whole.version) == ("staging", "e.yml", "1.7.0", (1, 7, 0))
    assert whole.protected == ("/usr/bin/guard",)
    assert whole.roll_back_all


def test_an_entry_tries_its_overrides_before_its_own_values(read: Read) -> None:
    assert read(WHOLE).entries == (
        Entry(
            "files/watch",
            "enforce",
            "cluster",
            "shop",
            ("web",),
            (Variant(("databases",), {"paths": ["/etc/b"], "limit": 3}), Variant((), {"paths": ["/etc/a"], "limit": 3})),
        ),
    )


def test_the_name_of_an_entry_is_its_reference_without_the_category(read: Read) -> None:
    assert read(SHORT).entries[0].name == "watch"


def test_rings_keep_their_order_and_settings(read: Read) -> None:
    assert read(WHOLE).rings == (
        Ring("canary", ("first", "second"), "", "1", 30),
        Ring("early", (), "25%", "25%", 600),
        Ring("fleet", (), "rest", "10%", 600),
    )


def test_gates_are_read(read: Read) -> None:
    assert read(WHOLE).gates == Gates(
        unreachable="2", control=5, event_burst=7.5, commands=("/usr/bin/true",), urls=("https://example.org/health",)
    )


def test_a_short_file_takes_every_default(read: Read) -> None:
    short = read(SHORT)
    assert short.protected == default_protected("1.7.0")
    assert short.entries == (Entry("files/watch", "monitor", "host", None, (), (Variant((), {}),)),)
    assert short.rings == (Ring("fleet", (), "rest", "100%", 600),)
    assert short.gates == Gates()
    assert not short.roll_back_all


def test_the_first_ring_changes_at_once_and_later_ones_by_quarters(read: Read) -> None:
    text = edited("    take: rest\n", "    groups: [a]\n  - name: later\n    take: rest\n", SHORT)
    assert [ring.batch for ring in read(text).rings] == ["100%", "25%"]


def test_a_ring_without_a_bake_takes_that_of_the_gates(read: Read) -> None:
    assert [ring.bake for ring in read(SHORT + "gates: {bake: 1h}\n").rings] == [3600]


@pytest.mark.parametrize("limit", ["event_burst", "events_lost", "blocks", "cpu_cores", "memory_mib", "agent_restarts"])
def test_a_limit_of_false_switches_its_check_off(limit: str, read: Read) -> None:
    assert getattr(read(f"{SHORT}gates: {{{limit}: false}}\n").gates, limit) is None


@pytest.mark.parametrize("limit", ["event_burst", "events_lost", "blocks", "cpu_cores", "memory_mib", "agent_restarts"])
@pytest.mark.parametrize("value", ["0", "1", "2.5"])
def test_a_limit_keeps_its_number(limit: str, value: str, read: Read) -> None:
    assert getattr(read(f"{SHORT}gates: {{{limit}: {value}}}\n").gates, limit) == float(value)


@pytest.mark.parametrize("check", ["export_stalled", "failed_units"])
def test_a_check_can_be_switched_off(check: str, read: Read) -> None:
    assert getattr(read(f"{SHORT}gates: {{{check}: false}}\n").gates, check) is False


@pytest.mark.parametrize(("text", "seconds"), [("0s", 0), ("30s", 30), ("10m", 600), ("2h", 7200), ("1d", 86400)])
def test_durations_are_read_as_seconds(text: str, seconds: int) -> None:
    assert environment.seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "m", "-1s", "1.5h", "10 m", "1w", "1h30m"])
def test_other_texts_are_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match="is no duration"):
        environment.seconds(text)


@pytest.mark.parametrize("take", ["cells", "rest", "1", "25", "1%", "25%", "100%"])
def test_a_ring_may_take(take: str, read: Read) -> None:
    assert read(edited("take: rest", f"take: {take}", SHORT)).rings[0].take == take


@pytest.mark.parametrize(("version", "parsed"), [("1.6.0", (1, 6, 0)), ("1.7.12", (1, 7, 12)), ("1.8.0", (1, 8, 0))])
def test_agent_versions_of_known_minors_are_accepted(version: str, parsed: tuple[int, int, int], read: Read) -> None:
    assert read(edited("1.7.0", version, SHORT)).version == parsed


def test_one_policy_may_run_on_hosts_and_in_the_cluster(read: Read) -> None:
    twice = edited("    mode: monitor\n", "    mode: monitor\n  - {policy: files/watch, mode: monitor, form: cluster}\n", SHORT)
    assert [entry.form for entry in read(twice).entries] == ["host", "cluster"]


# --- what a file must not say ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "line", "path", "message"),
    [
        pytest.param("name: staging", "name: staging\nnmae: x", 2, "nmae", "unknown key; did you mean 'name'?", id="a misspelt key"),
        pytest.param("name: staging", "name: Staging", 1, "name", 'is "Staging"; needed: lower-case letters', id="a name in capitals"),
        pytest.param("name: staging", f"name: {'x' * 41}", 1, "name", "needed: lower-case letters", id="a name that is too long"),
        pytest.param("name: staging", "name: 7", 1, "name", "is 7; needed: text", id="a number as a name"),
        pytest.param('"1.7.0"', "1.7", 2, "agent_version", "is 1.7; needed: text", id="a version without quotes"),
        pytest.param('"1.7.0"', '"1.7"', 2, "agent_version", 'is "1.7"; needed: an exact agent version in quotes', id="a version of two"),
        pytest.param('"1.7.0"', "latest", 2, "agent_version", 'is "latest"; needed: an exact agent version', id="a word as a version"),
        pytest.param('"1.7.0"', '"1.5.0"', 2, "agent_version", "knows the policy schema of: 1.6, 1.7, 1.8", id="an agent too old"),
        pytest.param('"1.7.0"', '"2.0.0"', 2, "agent_version", "knows the policy schema of: 1.6, 1.7, 1.8", id="an agent too new"),
        pytest.param("[/usr/bin/guard]", "[guard]", 3, "protected[0]", 'is "guard"; needed: an absolute path', id="a relative path"),
        pytest.param(
            "[/usr/bin/guard]", "[/a, /a]", 3, "protected", 'is ["/a", "/a"]; no entry may stand twice', id="a protected path twice"
        ),
        pytest.param("policy: files/watch", "policy: watch", 5, "policies[0].policy", "needed: <category>/<name>", id="no category"),
        pytest.param("policy: files/watch", "policy: 1", 5, "policies[0].policy", "is 1; needed: text", id="a number as a policy"),
        pytest.param("mode: enforce", "mode: audit", 6, "policies[0].mode", 'allowed: "monitor", "enforce"', id="a mode that is none"),
        pytest.param("    mode: enforce\n", "", 5, "policies[0]", "key 'mode' is missing", id="no mode"),
        pytest.param(
            "mode: enforce", "mode: enforce\n    Mode: x", 7, "policies[0].Mode", "did you mean 'mode'?", id="an unknown key of an entry"
        ),
        pytest.param("form: cluster", "form: pod", 7, "policies[0].form", 'allowed: "host", "cluster"', id="a form that is none"),
        pytest.param("form: cluster", "form: host", 8, "policies[0].namespace", "needs form: cluster", id="a namespace on hosts"),
        pytest.param("    form: cluster\n", "", 7, "policies[0].namespace", "needs form: cluster", id="a namespace without a form"),
        pytest.param("namespace: shop", "namespace: Shop", 8, "policies[0].namespace", 'is "Shop"; needed: lower-case', id="a namespace"),
        pytest.param("where: [web]", "where: web", 9, "policies[0].where", 'is "web"; needed: a list', id="a group that is no list"),
        pytest.param("where: [web]", "where: []", 9, "policies[0].where", "needs at least 1 entries", id="no groups"),
        pytest.param("where: [web]", "where: [web, web]", 9, "policies[0].where", "no entry may stand twice", id="a group twice"),
        pytest.param(
            "    values:\n      paths: [/etc/a]\n      limit: 3\n",
            "    values: [/etc/a]\n",
            10,
            "policies[0].values",
            "needed: a mapping",
            id="values that are no mapping",
        ),
        pytest.param(
            "      - where: [databases]\n        values", "      - values", 14, "policies[0].overrides[0]", "'where'", id="no where"
        ),
        pytest.param("name: canary", "name: early", 22, "rings[1].name", "is 'early', as another ring is", id="two rings of one name"),
        pytest.param(
            "  - name: canary\n    groups: [first, second]\n    batch: 1\n",
            "  - groups: [first, second]\n    batch: 1\n",
            18,
            "rings[0]",
            "key 'name' is missing",
            id="a ring without a name",
        ),
        pytest.param(
            "take: 25%", "take: 25%\n    groups: [a]", 22, "rings[1]", "needs either groups or take, not both", id="groups and take"
        ),
        pytest.param("    take: 25%\n", "", 22, "rings[1]", "needs either groups or take", id="neither groups nor take"),
        pytest.param("take: 25%", "take: rest", 23, "rings[1].take", "only the last ring can take the rest", id="rest before the last"),
        pytest.param("take: 25%", "take: half", 23, "rings[1].take", "cells, rest, a number of hosts, or a share", id="take half"),
        pytest.param("take: 25%", "take: 101%", 23, "rings[1].take", "a share such as 25%", id="take more than all"),
        pytest.param("take: 25%", "take: -1", 23, "rings[1].take", "is -1; must be at least 1", id="take less than none"),
        pytest.param("take: 25%", "take: 0", 23, "rings[1].take", "is 0; must be at least 1", id="take none"),
        pytest.param("batch: 10%", "batch: many", 26, "rings[2].batch", "a number of hosts or a share", id="a batch that is a word"),
        pytest.param("batch: 10%", "batch: -5", 26, "rings[2].batch", "is -5; must be at least 0", id="a negative batch"),
        pytest.param("bake: 30s", "bake: 30", 21, "rings[0].bake", "is 30; needed: text", id="a bake without a unit"),
        pytest.param("bake: 30s", "bake: soon", 21, "rings[0].bake", 'is "soon"; needed: a duration such as 30s', id="a bake in words"),
        pytest.param("bake: 10m", "bake: 1w", 28, "gates.bake", 'is "1w"; needed: a duration such as 30s', id="a bake in weeks"),
        pytest.param("unreachable: 2", "unreachable: few", 29, "gates.unreachable", "a number of hosts or a share", id="unreachable"),
        pytest.param("control: 5", "control: 5%", 30, "gates.control", 'is "5%"; needed: a whole number', id="a control share"),
        pytest.param("event_burst: 7.5", "event_bursts: 7", 31, "gates.event_bursts", "did you mean 'event_burst'?", id="unknown gate"),
        pytest.param("event_burst: 7.5", "event_burst: -1", 31, "gates.event_burst", "is -1; must be at least 0", id="a negative limit"),
        pytest.param(
            "event_burst: 7.5", "event_burst: high", 31, "gates.event_burst", "needed: a number or true or false", id="a limit in words"
        ),
        pytest.param("event_burst: 7.5", "event_burst: true", 31, "gates.event_burst", "", id="a limit of true"),
        pytest.param("event_burst: 7.5", "export_stalled: 1", 31, "gates.export_stalled", "needed: true or false", id="a check of 1"),
        pytest.param("[/usr/bin/true]", "/usr/bin/true", 32, "gates.commands", "needed: a list", id="a single command"),
        pytest.param("https://example", "ftp://example", 33, "gates.urls[0]", "needed: an http or https URL", id="another protocol"),
        pytest.param("roll_back: all", "roll_back: none", 35, "on_fail.roll_back", 'allowed: "ring", "all"', id="roll back none"),
        pytest.param("  roll_back: all", "  {}", 34, "on_fail", "key 'roll_back' is missing", id="on_fail without a word"),
    ],
)
def test_a_broken_file_is_refused_at_the_line(old: str, new: str, line: int, path: str, message: str, read: Read) -> None:
    (problem,) = refused(read, edited(old, new))
    assert (problem.file, problem.line, problem.path) == ("e.yml", line, path)
    assert message in problem.message


@pytest.mark.parametrize("key", ["name", "agent_version", "policies", "rings"])
def test_a_file_needs(key: str, read: Read) -> None:
    without = "".join(f"{block}\n" for block in SHORT.replace("\n  ", "\0").splitlines() if not block.startswith(key)).replace("\0", "\n  ")
    assert refused(read, without) == (Problem("e.yml", 1, "", f"key {key!r} is missing"),)


@pytest.mark.parametrize("text", ["", "- a\n", "just words\n"], ids=["nothing", "a list", "words"])
def test_a_file_must_hold_a_mapping(text: str, read: Read) -> None:
    assert "needed: a mapping" in messages(refused(read, text))


def test_a_policy_may_stand_only_once_for_a_form(read: Read) -> None:
    twice = edited("    mode: monitor\n", "    mode: monitor\n  - policy: other/watch\n    mode: enforce\n", SHORT)
    assert refused(read, twice) == (
        Problem(
            "e.yml",
            6,
            "policies[1].policy",
            "policy name 'watch' stands here twice for form host, first on line 4: use overrides for other values on some hosts",
        ),
    )


def test_every_problem_is_reported_at_once(read: Read) -> None:
    text = edited("take: 25%", "take: rest", edited("name: canary", "name: fleet", edited("    form: cluster\n", "")))
    assert sorted(problem.line for problem in refused(read, text)) == [7, 22, 23]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("name: staging", 'name: "staging\\n"', id="the name"),
        pytest.param("namespace: shop", 'namespace: "shop\\n"', id="a namespace"),
        pytest.param("name: canary", 'name: "canary\\n"', id="the name of a ring"),
        pytest.param("take: rest", 'take: "rest\\n"', id="what a ring takes"),
        pytest.param("batch: 10%", 'batch: "10%\\n"', id="a batch"),
        pytest.param("bake: 30s", 'bake: "30s\\n"', id="a bake"),
    ],
)
def test_a_newline_at_the_end_of_a_text_is_refused(old: str, new: str, read: Read) -> None:
    refused(read, edited(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("take: 25%", "take: 2.0", id="what a ring takes"),
        pytest.param("batch: 10%", "batch: 2.0", id="a batch"),
        pytest.param("unreachable: 2", "unreachable: 2.0", id="unreachable"),
    ],
)
def test_a_number_of_hosts_has_no_fraction(old: str, new: str, read: Read) -> None:
    refused(read, edited(old, new))


@pytest.mark.parametrize("limit", ["event_burst", "cpu_cores"])
def test_a_limit_that_is_not_a_number_is_refused(limit: str, read: Read) -> None:
    refused(read, f"{SHORT}gates: {{{limit}: .nan}}\n")


def test_a_limit_of_true_says_what_is_allowed(read: Read) -> None:
    assert "a limit, or false to switch the check off" in messages(refused(read, f"{SHORT}gates: {{event_burst: true}}\n"))


# --- against the library --------------------------------------------------------------------------------------------


@pytest.fixture
def watch(tree: PolicyTree) -> Library:
    """A library with ``files/watch`` (inputs paths, limit) and ``files/needy`` (input owner without default)."""
    limit, _unused, owner = INPUTS.partition("  owner:")
    tree.add(meta=META + limit)
    tree.add("files/needy", meta=META + "  owner:" + owner)
    tree.add("files/hosts-only", meta=META.replace("[host, cluster]", "[host]"))
    return tree.library()


def test_values_that_fit_the_inputs_are_accepted(read: Read, watch: Library) -> None:
    environment.check_values(read(WHOLE), watch)


@pytest.mark.parametrize(
    ("old", "new", "line", "path", "message"),
    [
        pytest.param(
            "policy: files/watch",
            "policy: files/wacth",
            5,
            "policies[0].policy",
            "no policy 'files/wacth'; did you mean 'files/watch'?",
            id="a policy that does not exist",
        ),
        pytest.param("limit: 3", "limit: three", 12, "policies[0].values.limit", 'is "three"; needed: a whole number', id="a wrong type"),
        pytest.param("limit: 3", "limits: 3", 12, "policies[0].values.limits", "did you mean 'limit'?", id="an unknown input"),
        pytest.param("[/etc/a]", "[/etc/a, etc]", 11, "policies[0].values.paths[1]", "needed: an absolute path", id="a wrong element"),
        pytest.param("[/etc/a]", "/etc/a", 11, "policies[0].values.paths", "needed: a list", id="a scalar for a list"),
        pytest.param("[/etc/a]", "[]", 11, "policies[0].values.paths", "needs at least 1 entries", id="a list that is too short"),
        pytest.param(
            "paths: [/etc/b]",
            "paths: [7]",
            16,
            "policies[0].overrides[0].values.paths[0]",
            "is 7; needed: text",
            id="a wrong type in an override",
        ),
        pytest.param(
            "paths: [/etc/b]",
            "path: [/etc/b]",
            16,
            "policies[0].overrides[0].values.path",
            "did you mean 'paths'?",
            id="an unknown input in an override",
        ),
    ],
)
def test_an_entry_that_does_not_fit_is_refused_at_the_line(
    old: str, new: str, line: int, path: str, message: str, read: Read, watch: Library
) -> None:
    (problem,) = refused(environment.check_values, read(edited(old, new)), watch)
    assert (problem.file, problem.line, problem.path) == ("e.yml", line, path)
    assert message in problem.message


def test_an_unknown_policy_is_told_with_all_known_ones(read: Read, watch: Library) -> None:
    text = messages(refused(environment.check_values, read(edited("files/watch", "zoo/zebra", SHORT)), watch))
    assert "no policy 'zoo/zebra'; searched: " in text
    assert "known: files/hosts-only, files/needy, files/watch" in text


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        pytest.param("", 4, id="no values"),
        pytest.param("    values: {}\n", 6, id="empty values"),
        pytest.param("    values: {}\n    overrides: [{where: [a], values: {owner: /a}}]\n", 6, id="only in an override"),
    ],
)
def test_a_value_without_default_must_be_given(entry: str, line: int, read: Read, watch: Library) -> None:
    text = edited("    mode: monitor\n", f"    mode: monitor\n{entry}", edited("files/watch", "files/needy", SHORT))
    (problem,) = refused(environment.check_values, read(text), watch)
    assert (problem.line, problem.path) == (line, "policies[0].values")
    assert problem.message == "value 'owner' is missing; policy files/needy needs it"


def test_a_value_without_default_must_be_given_for_hosts_outside_the_overrides(read: Read, watch: Library) -> None:
    text = edited(
        "    mode: monitor\n",
        "    mode: monitor\n    overrides: [{where: [a], values: {owner: /a}}]\n",
        edited("files/watch", "files/needy", SHORT),
    )
    assert "value 'owner' is missing" in messages(refused(environment.check_values, read(text), watch))


def test_a_form_that_the_policy_does_not_have_is_refused(read: Read, watch: Library) -> None:
    text = edited("    mode: monitor\n", "    mode: monitor\n    form: cluster\n", edited("files/watch", "files/hosts-only", SHORT))
    assert refused(environment.check_values, read(text), watch) == (
        Problem("e.yml", 6, "policies[0].form", "is 'cluster'; policy files/hosts-only has: host"),
    )


def test_a_policy_that_is_not_sound_is_reported_with_its_own_file(read: Read, tree: PolicyTree) -> None:
    target = tree.add(meta=META.replace("severity: low", "severity: mild"))
    (problem,) = refused(environment.check_values, read(SHORT), tree.library())
    assert (problem.file, problem.line, problem.path) == (str(target / "meta.yml"), 3, "severity")


def test_the_problems_of_all_entries_are_reported_at_once(read: Read, watch: Library) -> None:
    text = edited(
        "    mode: monitor\n",
        "    mode: monitor\n    values: {limit: x}\n  - {policy: files/none, mode: monitor}\n  - {policy: files/needy, mode: monitor}\n",
        SHORT,
    )
    assert [problem.line for problem in refused(environment.check_values, read(text), watch)] == [6, 7, 8]


def test_the_agent_and_its_client_are_protected_where_the_role_puts_them() -> None:
    protected = default_protected("1.7.0")
    program = re.search("^ExecStart=([^ ]+)", units.unit("a", "1.7.0", units.Limits()), re.MULTILINE)
    assert program
    assert program[1] in protected
    assert Layout().slot("a", "1.7.0").tetra in protected
    assert set(DEFAULT_PROTECTED) < set(protected)
