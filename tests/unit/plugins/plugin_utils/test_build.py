# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Building: the same input gives the same bytes, and nothing that is not proved becomes a bundle."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from ansible_collections.apiary.tetragon.plugins.plugin_utils import canonical, environment
from ansible_collections.apiary.tetragon.plugins.plugin_utils.build import Build, build
from ansible_collections.apiary.tetragon.plugins.plugin_utils.bundle import write
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.cache import Cache
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.load import Library
from ansible_collections.apiary.tetragon.tests.unit.plugins.plugin_utils.samples import (
    CASES,
    ENVIRONMENTS,
    EVENTS,
    POLICIES,
    TEMPLATE,
    PolicyTree,
    jsonl,
    messages,
    opened,
    refused,
)

ONE = """\
name: test
agent_version: "1.7.0"
policies:
  - policy: files/watch
    mode: monitor
rings:
  - {name: fleet, take: rest}
"""
TWO = ONE.replace(
    "    mode: monitor\n",
    """\
    mode: monitor
    where: [web]
    values: {paths: [/etc/a]}
    overrides:
      - where: [databases]
        values: {paths: [/etc/b]}
  - {policy: files/watch, mode: monitor, form: cluster, namespace: shop}
""",
)

Make = Callable[..., Build]


@pytest.fixture
def make(tmp_path: Path, tree: PolicyTree) -> Make:
    """Builds the bundle of an environment over the directory of ``tree``."""

    def of(text: str = ONE, cache: Cache | None = None, library: Library | None = None) -> Build:
        (tmp_path / "test.yml").write_text(text, encoding="utf-8")
        return build(environment.load(tmp_path / "test.yml", "test.yml"), library or tree.library(), cache)

    return of


def files_below(directory: Path) -> dict[str, bytes]:
    """Every file of a directory with its bytes."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


# --- what a bundle holds --------------------------------------------------------------------------------------------


def test_a_bundle_names_its_environment_version_and_policies(make: Make, tree: PolicyTree) -> None:
    tree.add()
    manifest = make().bundle.manifest
    assert (manifest["format"], manifest["environment"], manifest["agent_version"]) == ("apiary.dev/bundle/1", "test", "1.7.0")
    assert [(one["reference"], one["mode"], one["form"]) for one in manifest["policies"]] == [("files/watch", "monitor", "host")]


def test_a_policy_is_recorded_with_what_a_rollout_needs(make: Make, tree: PolicyTree) -> None:
    tree.add()
    bundle = make().bundle
    (record,) = bundle.manifest["policies"]
    assert record["loaded"] == f"watch-{record['revision']}"
    assert record["file"] == f"host-{record['loaded']}.yaml"
    assert record["sha256"] == canonical.digest(bundle.files[record["file"]].encode())
    assert (record["severity"], record["owner"], record["event_budget"], record["namespace"]) == ("low", "tests", 5, None)
    assert (record["hooks"], record["actions"], record["enforcing"]) == (["kprobes:security_file_open"], ["Post"], False)
    assert record["scope"] == "everything on the host"


def test_the_files_are_the_policies_as_the_agent_loads_them(make: Make, tree: PolicyTree) -> None:
    tree.add()
    bundle = make().bundle
    (text,) = bundle.files.values()
    loaded = yaml.safe_load(text)
    assert loaded["metadata"]["name"] == bundle.manifest["policies"][0]["loaded"]
    assert loaded["spec"]["options"] == [{"name": "policy-mode", "value": "monitor"}]


def test_variants_and_forms_are_policies_of_their_own(make: Make, tree: PolicyTree) -> None:
    tree.add()
    manifest = make(TWO).bundle.manifest
    loaded = {(one["form"], one["loaded"]) for one in manifest["policies"]}
    assert len(loaded) == 3
    host = next(one for one in manifest["assignments"] if one["form"] == "host")
    assert (host["policy"], host["where"]) == ("files/watch", ["web"])
    assert [choice["where"] for choice in host["choices"]] == [["databases"], []]


def test_variants_of_equal_values_are_one_policy(make: Make, tree: PolicyTree) -> None:
    tree.add()
    bundle = make(TWO.replace("/etc/b", "/etc/a")).bundle
    assert len([one for one in bundle.manifest["policies"] if one["form"] == "host"]) == 1


def test_cases_and_warnings_come_with_the_bundle(make: Make, tree: PolicyTree) -> None:
    hook = "  lsmhooks:\n    - hook: file_open\n      args:\n"
    tree.add(
        template=TEMPLATE.replace("  kprobes:\n    - call: security_file_open\n      syscall: false\n      args:\n", hook)
        .replace("values: {{ paths }}}", "values: {{ paths }}}\n          matchBinaries:\n            - {operator: In, values: [/bin/x]}")
        .replace("action: Post", "action: Sigkill"),
        cases=CASES.replace("  must: fire\n", "  must: fire\n  executables: {/usr/bin/cat: /bin/x}\n"),
        events={
            name: text.replace("process_kprobe", "process_lsm").replace("security_file_open", "file_open") for name, text in EVENTS.items()
        },
    )
    made = make(ONE.replace("monitor", "enforce"))
    assert ("not-persistent", "warning") in [(one.rule, one.severity) for one in made.findings]
    assert [one.name for one in made.cases["files/watch"]] == ["a watched file", "another file"]


@pytest.mark.parametrize("name", ["staging", "production"])
def test_a_shipped_environment_becomes_a_bundle(name: str, library: Library) -> None:
    made = build(environment.load(ENVIRONMENTS / f"{name}.yml"), library)
    assert [str(finding) for finding in made.findings if finding.severity == "error"] == []
    assert {one["policy"] for one in made.bundle.manifest["assignments"]} == set(made.cases)


# --- the same input gives the same bytes ----------------------------------------------------------------------------


def test_two_builds_from_two_directories_have_the_same_bytes(tmp_path: Path) -> None:
    written = []
    for name in ("one", "another place"):
        shutil.copytree(POLICIES, tmp_path / name / "policies")
        shutil.copy(ENVIRONMENTS / "staging.yml", tmp_path / name / "staging.yml")
        made = build(environment.load(tmp_path / name / "staging.yml"), Library([tmp_path / name / "policies"]))
        written.append(write(made.bundle, tmp_path / name / "bundles"))
    assert written[0].name == written[1].name
    assert files_below(written[0]) == files_below(written[1])


def test_the_order_of_policies_in_the_environment_does_not_matter(make: Make, tree: PolicyTree) -> None:
    tree.add("files/watch")
    tree.add("files/other")
    more = "  - policy: files/other\n    mode: monitor\n"
    after = make(ONE.replace("rings:", f"{more}rings:")).bundle
    before = make(ONE.replace("policies:\n", f"policies:\n{more}")).bundle
    assert before == after
    assert before.digest == after.digest


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("name: test", "name: prod", id="the environment's name"),
        pytest.param("1.7.0", "1.7.1", id="the agent's version"),
        pytest.param("mode: monitor", "mode: monitor\n    where: [web]", id="the hosts"),
        pytest.param("mode: monitor", "mode: monitor\n    form: cluster", id="the form"),
        pytest.param("mode: monitor", "mode: monitor\n    values: {paths: [/x]}", id="a value"),
    ],
)
def test_the_digest_changes_with(old: str, new: str, make: Make, tree: PolicyTree) -> None:
    tree.add()
    assert make(ONE.replace(old, new, 1)).bundle.digest != make().bundle.digest


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("rings:", "gates: {bake: 1h}\nrings:", id="the gates"),
        pytest.param("take: rest", "take: 10%", id="the rings"),
        pytest.param("name: test", "# a comment\nname: test", id="a comment"),
        pytest.param("mode: monitor", "mode: monitor\n    values: {paths: [/etc/watched]}", id="a value equal to the default"),
    ],
)
def test_the_digest_does_not_change_with(old: str, new: str, make: Make, tree: PolicyTree) -> None:
    tree.add()
    assert make(ONE.replace(old, new, 1)).bundle.digest == make().bundle.digest


# --- what does not become a bundle ----------------------------------------------------------------------------------


def test_values_that_do_not_fit_are_refused_before_anything_is_rendered(make: Make, tree: PolicyTree) -> None:
    tree.add(template="{{ broken")
    (problem,) = refused(make, ONE.replace("mode: monitor", "mode: monitor\n    values: {path: [/x]}"))
    assert (problem.file, problem.line) == ("test.yml", 6)


def test_a_template_that_fails_is_refused(make: Make, tree: PolicyTree) -> None:
    target = tree.add(template=TEMPLATE.replace("{{ paths }}", "{{ pahts }}"))
    (problem,) = refused(make)
    assert problem.file == str(target / "policy.yaml.j2")


def test_a_policy_without_cases_is_refused(make: Make, tree: PolicyTree) -> None:
    tree.add(cases=None)
    assert "has no cases" in messages(refused(make))


def test_a_broken_case_is_refused_with_what_it_must_do_and_the_event(make: Make, tree: PolicyTree) -> None:
    target = tree.add(events={**EVENTS, "other.jsonl": jsonl(opened("/etc/watched"))})
    (problem,) = refused(make)
    assert problem.file == str(target / "cases" / "cases.yml")
    assert problem.path == "another file"
    assert problem.message == f"must stay quiet: {target / 'cases' / 'other.jsonl'}:1: kprobe security_file_open by /usr/bin/cat: fires"


def test_an_undecidable_case_is_refused(make: Make, tree: PolicyTree) -> None:
    binaries = "          matchBinaries:\n            - {operator: In, values: [/usr/bin/cat]}\n          matchActions:\n"
    tree.add(template=TEMPLATE.replace("          matchActions:\n", binaries))
    assert "cannot be decided: the recording lacks the executed file of the process" in messages(refused(make))


def test_an_error_of_a_lint_is_refused_with_its_rule(make: Make, tree: PolicyTree) -> None:
    tree.add(template=TEMPLATE.replace("action: Post", "action: Sigkill"))
    (problem,) = refused(make)
    assert (problem.file, problem.path) == ("test.yml", "policy watch")
    assert problem.message.startswith("spec.kprobes[0].selectors[0].matchActions[0]: Sigkill can hit ")
    assert problem.message.endswith("[kills-protected]")


def test_an_error_that_only_an_override_has_is_refused(make: Make, tree: PolicyTree) -> None:
    tree.add(template=TEMPLATE.replace("action: Post", "action: {% if paths | length > 1 %}Sigkill{% else %}Post{% endif %}"))
    text = ONE.replace("mode: monitor", "mode: monitor\n    overrides:\n      - {where: [web], values: {paths: [/a, /b]}}")
    make()
    assert "[kills-protected]" in messages(refused(make, text))


def test_more_policies_than_a_host_can_take_are_refused(make: Make, tree: PolicyTree) -> None:
    names = [f"files/watch-{number}" for number in range(39)]
    template = TEMPLATE.replace("action: Post", "action: Override, argError: -1").replace(
        "  kprobes:\n", '  options:\n    - {name: disable-kprobe-multi, value: "1"}\n  kprobes:\n'
    )
    for name in names:
        tree.add(name, template=template)
    entries = "".join(f"  - {{policy: {name}, mode: monitor}}\n" for name in names)
    text = ONE.replace("  - policy: files/watch\n    mode: monitor\n", entries)
    assert messages(refused(make, text)) == (
        "test.yml: policy all policies: 39 programs on security_file_open; the kernel takes 38 [ceiling]"
    )


def test_the_problems_of_all_policies_are_told_at_once(make: Make, tree: PolicyTree) -> None:
    tree.add("files/watch", cases=None)
    tree.add("files/other", template=TEMPLATE.replace("{{ paths }}", "{{ pahts }}"))
    text = messages(refused(make, ONE.replace("rings:", "  - policy: files/other\n    mode: monitor\nrings:")))
    assert "has no cases" in text
    assert "'pahts' is undefined" in text


# --- the cache ------------------------------------------------------------------------------------------------------


def test_a_build_from_the_cache_is_the_same_bundle(make: Make, tree: PolicyTree, tmp_path: Path) -> None:
    tree.add()
    first, second = make(TWO, Cache(tmp_path / "cache")), make(TWO, Cache(tmp_path / "cache"))
    assert first.bundle == second.bundle == make(TWO).bundle
    assert first.findings == second.findings


def test_a_build_from_the_cache_has_the_same_cases(make: Make, tree: PolicyTree, tmp_path: Path) -> None:
    tree.add()
    assert make(cache=Cache(tmp_path / "cache")).cases == make(cache=Cache(tmp_path / "cache")).cases


def test_a_build_uses_the_cache(make: Make, tree: PolicyTree, tmp_path: Path) -> None:
    tree.add()
    make(cache=Cache(tmp_path / "cache"))
    before = files_below(tmp_path / "cache")
    make(cache=Cache(tmp_path / "cache"))
    assert before
    assert files_below(tmp_path / "cache") == before


@pytest.mark.parametrize("file", ["policy.yaml.j2", "meta.yml"])
def test_a_changed_policy_is_computed_anew(file: str, make: Make, tree: PolicyTree, tmp_path: Path) -> None:
    target = tree.add()
    before = make(cache=Cache(tmp_path / "cache")).bundle
    text = (target / file).read_text(encoding="utf-8")
    (target / file).write_text(text.replace("owner: tests", "owner: me").replace("type: file}", "type: file, label: f}"), encoding="utf-8")
    after = make(cache=Cache(tmp_path / "cache")).bundle
    assert after != before
    assert after == make().bundle


def test_a_changed_event_is_computed_anew(make: Make, tree: PolicyTree, tmp_path: Path) -> None:
    target = tree.add()
    make(cache=Cache(tmp_path / "cache"))
    (target / "cases" / "other.jsonl").write_text(EVENTS["watched.jsonl"], encoding="utf-8")
    assert "must stay quiet" in messages(refused(make, cache=Cache(tmp_path / "cache")))


def test_a_changed_macro_is_computed_anew(make: Make, tree: PolicyTree, tmp_path: Path) -> None:
    tree.add(template='{% import "m.j2" as m %}\n' + TEMPLATE.replace("syscall: false", "syscall: false\n      message: {{ m.text() }}"))
    tree.add_macros("m.j2", "{% macro text() %}one{% endmacro %}")
    make(cache=Cache(tmp_path / "cache"))
    tree.add_macros("m.j2", "{% macro text() %}two{% endmacro %}")
    assert "message: two" in next(iter(make(cache=Cache(tmp_path / "cache")).bundle.files.values()))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("mode: monitor", "mode: monitor\n    values: {paths: [/x]}", id="a value"),
        pytest.param("mode: monitor", "mode: monitor\n    form: cluster", id="the form"),
        pytest.param("mode: monitor", "mode: monitor\n    form: cluster\n    namespace: shop", id="a namespace"),
    ],
)
def test_a_changed_environment_is_computed_anew(old: str, new: str, make: Make, tree: PolicyTree, tmp_path: Path) -> None:
    tree.add()
    make(cache=Cache(tmp_path / "cache"))
    assert make(ONE.replace(old, new), Cache(tmp_path / "cache")).bundle == make(ONE.replace(old, new)).bundle


def test_a_changed_list_of_protected_programs_is_computed_anew(make: Make, tree: PolicyTree, tmp_path: Path) -> None:
    tree.add(template=TEMPLATE.replace("action: Post", "action: Sigkill"))
    make(ONE + "protected: []\n", Cache(tmp_path / "cache"))
    assert "[kills-protected]" in messages(refused(make, ONE, Cache(tmp_path / "cache")))


def test_a_refusal_is_not_kept(make: Make, tree: PolicyTree, tmp_path: Path) -> None:
    tree.add(cases=None)
    for _unused in range(2):
        assert "has no cases" in messages(refused(make, ONE, Cache(tmp_path / "cache")))


def test_a_damaged_cache_gives_the_same_bundle(make: Make, tree: PolicyTree, tmp_path: Path) -> None:
    tree.add()
    before = make(cache=Cache(tmp_path / "cache")).bundle
    for entry in (tmp_path / "cache").rglob("*.json"):
        entry.write_bytes(entry.read_bytes()[:-1])
    assert make(cache=Cache(tmp_path / "cache")).bundle == before


def test_the_same_policy_in_another_category_keeps_its_own_reference(make: Make, tree: PolicyTree, tmp_path: Path) -> None:
    tree.add("files/watch")
    tree.add("custom/watch")
    make(cache=Cache(tmp_path / "cache"))
    text = ONE.replace("files/watch", "custom/watch")
    assert make(text, Cache(tmp_path / "cache")).bundle == make(text).bundle
