# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Bundles on disk: written whole or not at all, read only when every byte is as it was, and compared for a person."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.apiary.tetragon.plugins.plugin_utils import bundle as bundles
from ansible_collections.apiary.tetragon.plugins.plugin_utils import canonical
from ansible_collections.apiary.tetragon.plugins.plugin_utils.bundle import Bundle, Change, diff, directory_name, label, read, write
from ansible_collections.apiary.tetragon.tests.unit.plugins.plugin_utils.samples import messages, refused

Edit = Mapping[str, Any]


def policy(name: str, values: str = "aaaa", form: str = "host", **more: object) -> dict[str, Any]:
    """The record of a policy in a manifest, and its text."""
    loaded = f"{name}-{values}"
    text = f"# {loaded}\nname: ü\n"
    return {
        "name": name,
        "reference": f"files/{name}",
        "revision": values,
        "loaded": loaded,
        "mode": "monitor",
        "form": form,
        "namespace": None,
        "severity": "low",
        "owner": "tests",
        "event_budget": 5,
        "hooks": ["kprobes:security_file_open"],
        "actions": ["Post"],
        "enforcing": False,
        "overrides": [],
        "unpinned": [],
        "binaries": [],
        "scope": "everything on the host",
        "requirements": [],
        "file": f"{form}-{loaded}.yaml",
        "sha256": canonical.digest(text.encode()),
        "text": text,
        **more,
    }


def bundle(*policies: dict[str, Any], where: Mapping[str, list[str]] | None = None, choices: Mapping[str, Any] | None = None) -> Bundle:
    """A bundle of these policies; ``where`` gives groups by name, ``choices`` the variants of a name."""
    assignments = {}
    for one in policies:
        fallback = [{"where": [], "loaded": one["loaded"]}]
        assignments[one["name"], one["form"]] = {
            "policy": one["reference"],
            "form": one["form"],
            "where": (where or {}).get(one["name"], []),
            "choices": (choices or {}).get(one["name"], fallback),
        }
    manifest = {
        "format": bundles.FORMAT,
        "environment": "test",
        "agent_version": "1.7.0",
        "policies": [{key: value for key, value in one.items() if key != "text"} for one in policies],
        "assignments": list(assignments.values()),
    }
    return Bundle(manifest, {one["file"]: one["text"] for one in policies})


SMALL = bundle(policy("watch"), policy("guard", form="cluster"))


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A bundle on disk."""
    return write(SMALL, tmp_path)


# --- names ----------------------------------------------------------------------------------------------------------


def test_a_bundle_is_named_after_its_environment_and_digest() -> None:
    assert SMALL.name == f"test-{SMALL.digest[:16]}" == directory_name("test", SMALL.digest)


def test_the_digest_is_that_of_the_manifest_on_disk(written: Path) -> None:
    assert canonical.digest((written / "bundle.json").read_bytes()) == SMALL.digest


@pytest.mark.parametrize(("digest", "shown"), [("0123456789abcdef0123", "0123456789abcdef"), ("", "(no policies)")], ids=["some", "none"])
def test_a_digest_is_shown_short(digest: str, shown: str) -> None:
    assert label(digest) == shown


# --- write ----------------------------------------------------------------------------------------------------------


def test_a_bundle_can_be_read_back(written: Path) -> None:
    assert read(written) == SMALL


def test_a_bundle_is_its_manifest_and_its_policies(written: Path) -> None:
    assert sorted(path.name for path in written.iterdir()) == ["bundle.json", "cluster-guard-aaaa.yaml", "host-watch-aaaa.yaml"]
    assert (written / "host-watch-aaaa.yaml").read_text(encoding="utf-8") == "# watch-aaaa\nname: ü\n"


def test_a_bundle_without_policies_can_be_written_and_read(tmp_path: Path) -> None:
    assert read(write(bundle(), tmp_path)) == bundle()


def test_the_directory_is_made(tmp_path: Path) -> None:
    assert write(SMALL, tmp_path / "not" / "there" / "yet").is_dir()


def test_others_may_read_the_directory(written: Path) -> None:
    assert written.stat().st_mode & 0o777 == 0o755


def test_writing_again_changes_nothing(written: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in [written, *written.iterdir()]}
    assert write(SMALL, written.parent) == written
    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in [written, *written.iterdir()]} == before


def test_writing_leaves_nothing_else_behind(written: Path) -> None:
    write(SMALL, written.parent)
    assert list(written.parent.iterdir()) == [written]


def test_two_builds_may_write_the_same_bundle_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = tempfile.mkdtemp

    def overtaken(**options: Any) -> str:
        monkeypatch.setattr(tempfile, "mkdtemp", make)
        write(SMALL, tmp_path)
        return make(**options)

    monkeypatch.setattr(tempfile, "mkdtemp", overtaken)
    target = write(SMALL, tmp_path)
    assert read(target) == SMALL
    assert list(tmp_path.iterdir()) == [target]


def test_writing_over_an_altered_bundle_is_refused(written: Path) -> None:
    (written / "host-watch-aaaa.yaml").write_text("altered", encoding="utf-8")
    assert "was altered or is missing" in messages(refused(write, SMALL, written.parent))


def test_a_bundle_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    impossible = Bundle(SMALL.manifest, {**SMALL.files, "no/such/directory.yaml": "x"})
    assert "bundle cannot be written" in messages(refused(write, impossible, tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_directory_that_cannot_be_made_is_refused(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    assert "bundle cannot be written" in messages(refused(write, SMALL, tmp_path / place))


def test_a_full_disk_is_refused_and_nothing_is_left_behind(full_disk: Path) -> None:
    assert "bundle cannot be written: [Errno 28] No space left on device" in messages(refused(write, SMALL, full_disk))
    assert [path.name for path in full_disk.iterdir()] == ["filler"]


# --- read -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["bundle.json", "cluster-guard-aaaa.yaml", "host-watch-aaaa.yaml"])
@pytest.mark.parametrize("part", range(8))
def test_a_single_flipped_bit_is_found(file: str, part: int, written: Path) -> None:
    content = bytearray((written / file).read_bytes())
    position = (len(content) - 1) * part // 7
    content[position] ^= 1 << part
    (written / file).write_bytes(content)
    (problem,) = refused(read, written)
    assert problem.file == str(written / file)
    assert "altered" in problem.message


@pytest.mark.parametrize("file", ["bundle.json", "cluster-guard-aaaa.yaml", "host-watch-aaaa.yaml"])
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda content: content + b"\n", id="a byte more"),
        pytest.param(lambda content: content[:-1], id="a byte less"),
        pytest.param(lambda content: b"", id="empty"),
        pytest.param(lambda content: content.replace(b"\n", b"\r\n"), id="other line ends"),
    ],
)
def test_another_length_is_found(file: str, change: Callable[[bytes], bytes], written: Path) -> None:
    (written / file).write_bytes(change((written / file).read_bytes()))
    assert [problem.file for problem in refused(read, written)] == [str(written / file)]


def test_a_missing_policy_is_found(written: Path) -> None:
    (written / "host-watch-aaaa.yaml").unlink()
    (problem,) = refused(read, written)
    assert problem.file == str(written / "host-watch-aaaa.yaml")
    assert "was altered or is missing" in problem.message


@pytest.mark.parametrize("name", ["extra.yaml", ".hidden", "host-watch-aaaa.yaml~"])
def test_a_file_too_many_is_found(name: str, written: Path) -> None:
    (written / name).write_text("x", encoding="utf-8")
    (problem,) = refused(read, written)
    assert problem.file == str(written / name)
    assert problem.message == "does not belong to the bundle: remove it"


def test_a_directory_too_many_is_found(written: Path) -> None:
    (written / "more").mkdir()
    assert "does not belong to the bundle" in messages(refused(read, written))


def test_two_policies_with_their_files_exchanged_are_found(written: Path) -> None:
    one, two = written / "host-watch-aaaa.yaml", written / "cluster-guard-aaaa.yaml"
    one.rename(written / "x")
    two.rename(one)
    (written / "x").rename(two)
    assert {problem.file for problem in refused(read, written)} == {str(one), str(two)}


def test_everything_that_is_wrong_is_told(written: Path) -> None:
    (written / "extra").write_text("x", encoding="utf-8")
    (written / "host-watch-aaaa.yaml").write_text("x", encoding="utf-8")
    (written / "cluster-guard-aaaa.yaml").unlink()
    assert len(refused(read, written)) == 3


@pytest.mark.parametrize("name", ["test", "test-0123456789abcdef", f"test-{SMALL.digest[:15]}", f"test-{SMALL.digest[:17]}", "test-"])
def test_a_renamed_directory_is_found(name: str, written: Path) -> None:
    renamed = written.rename(written.parent / name)
    (problem,) = refused(read, renamed)
    assert problem.file == str(renamed / "bundle.json")
    assert "it was altered or renamed" in problem.message


def test_a_directory_renamed_to_another_environment_is_found(written: Path) -> None:
    refused(read, written.rename(written.parent / f"production-{SMALL.digest[:16]}"))


@pytest.mark.parametrize("form", ["apiary.dev/bundle/2", "", None], ids=["newer", "empty", "none"])
def test_an_unknown_format_is_refused(form: str | None, tmp_path: Path) -> None:
    path = write(Bundle({**SMALL.manifest, "format": form}, SMALL.files), tmp_path)
    (problem,) = refused(read, path)
    assert problem.message == f"has format {form!r}; this collection reads apiary.dev/bundle/1"


def test_a_place_without_a_bundle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    for place in (tmp_path, tmp_path / "none", tmp_path / "file"):
        assert "is no bundle: it has no bundle.json" in messages(refused(read, place))


def test_a_manifest_that_is_a_directory_is_refused(written: Path) -> None:
    (written / "bundle.json").unlink()
    (written / "bundle.json").mkdir()
    assert "bundle cannot be read" in messages(refused(read, written))


# --- what a host gets -----------------------------------------------------------------------------------------------


def loaded_for(groups: list[str], form: str = "host", **options: Any) -> list[str]:
    """What a host in these groups loads of a bundle of three policies."""
    one = bundle(policy("watch", "base"), policy("watch", "over"), policy("other"), policy("guard", form="cluster"), **options)
    return [policy["loaded"] for policy in one.policies_for(groups, form)]


WATCH = {"watch": [{"where": ["databases", "queues"], "loaded": "watch-over"}, {"where": [], "loaded": "watch-base"}]}


@pytest.mark.parametrize(
    ("groups", "loaded"),
    [
        pytest.param([], ["other-aaaa"], id="a host in no group"),
        pytest.param(["web"], ["other-aaaa", "watch-base"], id="a host of the entry's group"),
        pytest.param(["web", "databases"], ["other-aaaa", "watch-over"], id="a host of an override's group"),
        pytest.param(["queues", "web", "x"], ["other-aaaa", "watch-over"], id="a host of an override's other group"),
        pytest.param(["databases"], ["other-aaaa"], id="a host of an override's group alone"),
    ],
)
def test_groups_and_overrides_decide_what_a_host_gets(groups: list[str], loaded: list[str]) -> None:
    assert loaded_for(groups, where={"watch": ["web"]}, choices=WATCH) == loaded


def test_the_first_override_that_fits_wins() -> None:
    choices = {
        "watch": [
            {"where": ["a"], "loaded": "watch-base"},
            {"where": ["a", "b"], "loaded": "watch-over"},
            {"where": [], "loaded": "watch-over"},
        ]
    }
    assert loaded_for(["b", "a"], choices=choices) == ["other-aaaa", "watch-base"]


def test_the_cluster_gets_the_policies_of_its_form_alone() -> None:
    assert loaded_for([], "cluster") == ["guard-aaaa"]


def test_a_policy_comes_with_its_text() -> None:
    assert [one["text"] for one in SMALL.policies_for([])] == ["# watch-aaaa\nname: ü\n"]


def test_policies_whose_links_are_not_pinned_load_first() -> None:
    one = bundle(policy("aa"), policy("bb", unpinned=["lsmhooks:x"]), policy("cc"), policy("dd", unpinned=["tracepoints:x"]))
    assert [policy["name"] for policy in one.policies_for([])] == ["bb", "dd", "aa", "cc"]


# --- differences ----------------------------------------------------------------------------------------------------


def test_equal_bundles_do_not_differ() -> None:
    assert diff(SMALL, SMALL) == []


def test_no_bundles_do_not_differ() -> None:
    assert diff(None, None) == []


def test_an_added_policy_is_told_with_its_facts() -> None:
    (change,) = diff(None, bundle(policy("watch"), where={"watch": ["web", "db"]}))
    assert (change.policy, change.kind) == ("files/watch", "added")
    assert change.details == (
        "revision: aaaa",
        "mode: monitor",
        "hooks: kprobes:security_file_open",
        "actions: Post",
        "scope: everything on the host",
        "hosts: web, db",
        "event budget: 5",
        "owner: tests",
    )
    assert str(change).startswith("+ files/watch")


def test_a_removed_policy_is_told() -> None:
    (change,) = diff(SMALL, bundle(policy("guard", form="cluster")))
    assert (change.policy, change.kind) == ("files/watch", "removed")
    assert str(change).startswith("- files/watch")


def test_a_policy_of_the_cluster_is_told_as_such() -> None:
    assert [change.policy for change in diff(SMALL, bundle(policy("watch")))] == ["files/guard (cluster form)"]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        pytest.param({"values": "bbbb"}, "revision: aaaa -> bbbb", id="revision"),
        pytest.param({"mode": "enforce"}, "mode: monitor -> enforce", id="mode"),
        pytest.param({"hooks": ["kprobes:x", "lsmhooks:y"]}, "hooks: +kprobes:x, +lsmhooks:y, -kprobes:security_file_open", id="hooks"),
        pytest.param({"actions": ["Post", "Sigkill"]}, "actions: +Sigkill", id="an action more"),
        pytest.param({"actions": []}, "actions: -Post", id="an action less"),
        pytest.param({"scope": "pods (all)"}, "scope: everything on the host -> pods (all)", id="scope"),
        pytest.param({"event_budget": 50}, "event budget: 5 -> 50", id="event budget"),
        pytest.param({"owner": "security"}, "owner: tests -> security", id="owner"),
    ],
)
def test_a_changed_policy_is_told_with_what_changed(change: Edit, line: str) -> None:
    assert diff(bundle(policy("watch")), bundle(policy("watch", **change))) == [Change("files/watch", "changed", (line,))]


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [([], ["web"], "hosts: all -> web"), (["web"], [], "hosts: web -> all"), (["a", "b"], ["b"], "hosts: a, b -> b")],
    ids=["fewer", "all", "one less"],
)
def test_other_hosts_are_told(before: list[str], after: list[str], line: str) -> None:
    changes = diff(bundle(policy("watch"), where={"watch": before}), bundle(policy("watch"), where={"watch": after}))
    assert changes == [Change("files/watch", "changed", (line,))]


def test_a_changed_override_is_told() -> None:
    def with_override(values: str) -> Bundle:
        choices = {"watch": [{"where": ["db"], "loaded": f"watch-{values}"}, {"where": [], "loaded": "watch-base"}]}
        return bundle(policy("watch", "base"), policy("watch", values), choices=choices)

    assert diff(with_override("one"), with_override("two")) == [Change("files/watch", "changed", ("revision: one, base -> two, base",))]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(["databases"], ["web"], id="another group"),
        pytest.param(["databases"], ["databases", "web"], id="one group more"),
    ],
)
def test_other_hosts_of_an_override_are_told(before: list[str], after: list[str]) -> None:
    def with_groups(groups: list[str]) -> Bundle:
        choices = {"watch": [{"where": groups, "loaded": "watch-over"}, {"where": [], "loaded": "watch-base"}]}
        return bundle(policy("watch", "base"), policy("watch", "over"), choices=choices)

    assert [change.policy for change in diff(with_groups(before), with_groups(after))] == ["files/watch"]


def test_a_change_of_several_things_is_one_change_with_several_lines() -> None:
    (change,) = diff(bundle(policy("watch")), bundle(policy("watch", "bbbb", mode="enforce", actions=["Override"])))
    assert str(change) == "~ files/watch\n    revision: aaaa -> bbbb\n    mode: monitor -> enforce\n    actions: +Override, -Post"


def test_changes_come_in_the_order_of_policies() -> None:
    old = bundle(policy("bb"), policy("cc"))
    new = bundle(policy("aa"), policy("cc", mode="enforce"))
    assert [(change.kind, change.policy) for change in diff(old, new)] == [
        ("added", "files/aa"),
        ("removed", "files/bb"),
        ("changed", "files/cc"),
    ]


def test_the_manifest_can_be_read_by_a_person(written: Path) -> None:
    text = (written / "bundle.json").read_text(encoding="utf-8")
    assert text == json.dumps(SMALL.manifest, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def test_what_policies_need_is_listed_once_with_all_that_need_it():
    lsm = {"kind": "probe", "any_of": ["lsm"], "reason": "hooks of BPF LSM"}
    flag = {"kind": "flag", "any_of": ["enable-policy-filter"], "reason": "podSelector"}
    policies = [
        {"reference": "file/one", "requirements": [lsm]},
        {"reference": "file/two", "requirements": [flag, lsm]},
        {"reference": "file/two", "requirements": [lsm]},
    ]
    assert bundles.needs(policies) == [{**lsm, "policies": ["file/one", "file/two"]}, {**flag, "policies": ["file/two"]}]
