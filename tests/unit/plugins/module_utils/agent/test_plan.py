# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest

from ansible_collections.apiary.tetragon.plugins.module_utils.agent.plan import Wanted, mismatches, plan, wanted_files
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.tetra import LoadedPolicy

OLD, NEW, OTHER = "fim-00000001", "fim-00000002", "net-00000001"


def want(name, mode="monitor", **changes):
    return Wanted(name=name, mode=mode, text=f"{name} {mode}", **changes)


def have(name, mode="monitor", state="enabled"):
    return LoadedPolicy(name, state=state, mode=mode)


def steps(wanted, loaded, managed=(), files=None):
    files = wanted_files(wanted) if files is None else files
    return plan(wanted, loaded, {("", name) for name in managed}, files)


def names(keys):
    return [key[1] for key in keys]


def test_what_is_wanted_and_there_needs_nothing():
    assert steps([want(OLD), want(OTHER, "enforce")], [have(OLD), have(OTHER, "enforce")], [OLD, OTHER]).empty


def test_a_missing_policy_is_added():
    result = steps([want(NEW)], [])
    assert ([policy.name for policy in result.add], result.flip, result.remove) == ([NEW], (), ())


def test_a_new_enforcing_policy_is_flipped_after_it_was_added():
    result = steps([want(NEW, "enforce")], [])
    assert [policy.name for policy in result.add] == [NEW]
    assert result.flip == ((("", NEW), "enforce"),)


def test_the_next_revision_takes_over_before_the_former_goes():
    result = steps([want(NEW, "enforce")], [have(OLD, "enforce")], [OLD])
    assert result.flip == ((("", NEW), "enforce"), (("", OLD), "monitor"))
    assert names(result.remove) == [OLD]


def test_all_that_comes_to_enforce_does_so_before_anything_goes_to_monitor():
    wanted = [want("a-00000002", "enforce"), want("b-00000001", "monitor"), want("c-00000001", "enforce")]
    loaded = [have("a-00000001", "enforce"), have("b-00000001", "enforce"), have("c-00000001", "monitor")]
    result = steps(wanted, loaded, ["a-00000001", "b-00000001", "c-00000001"])
    assert [mode for _key, mode in result.flip] == ["enforce", "enforce", "monitor", "monitor"]


def test_a_change_of_mode_alone_reloads_nothing():
    result = steps([want(OLD, "enforce")], [have(OLD)], [OLD], files={"1-x.yaml": "old"})
    assert (result.add, result.remove, result.flip, result.write) == ((), (), ((("", OLD), "enforce"),), True)


def test_a_policy_that_can_only_monitor_needs_no_flip():
    assert steps([want(OLD)], [have(OLD, "monitor_only")], [OLD]).empty


@pytest.mark.parametrize("state", ["load_error", "error", "disabled", "unknown"])
def test_a_policy_that_does_not_work_is_cleared_and_added_again(state):
    result = steps([want(OLD)], [have(OLD, state=state)], [OLD])
    assert (names(result.clear), [policy.name for policy in result.add]) == ([OLD], [OLD])


def test_a_policy_whose_binary_was_replaced_is_loaded_again_and_enforces_again():
    wanted = [want(OLD, "enforce"), want(OTHER, "enforce")]
    loaded = [have(OLD, "enforce"), have(OTHER, "enforce")]
    result = plan(wanted, loaded, {("", OLD), ("", OTHER)}, wanted_files(wanted), {("", OLD)})
    assert (names(result.clear), [policy.name for policy in result.add], result.remove) == ([OLD], [OLD], ())
    assert result.flip == ((("", OLD), "enforce"),)


def test_a_policy_that_still_loads_is_waited_for():
    result = steps([want(OLD)], [have(OLD, "unknown", "loading")], [OLD])
    assert (result.clear, result.add) == ((), ())


def test_what_is_not_managed_is_never_touched():
    result = steps([want(NEW)], [have(OTHER, "enforce"), have("users-own", state="load_error")])
    assert (result.clear, result.remove, result.flip) == ((), (), ())


def test_a_wanted_policy_that_someone_else_loaded_is_adopted():
    assert steps([want(OLD)], [have(OLD)]).empty


def test_a_managed_policy_that_is_gone_already_needs_no_removal():
    assert steps([], [], [OLD]).empty


def test_policies_whose_links_are_not_pinned_come_first():
    result = steps([want("a-00000001"), want("z-00000001", early=True)], [])
    assert [policy.name for policy in result.add] == ["z-00000001", "a-00000001"]
    assert sorted(wanted_files([want("a-00000001"), want("z-00000001", early=True)])) == ["0-z-00000001.yaml", "1-a-00000001.yaml"]


@pytest.mark.parametrize("files", [{}, {"1-fim-00000001.yaml": "other"}, {"1-fim-00000001.yaml": "fim-00000001 monitor", "README": ""}])
def test_any_difference_in_the_policy_directory_is_written(files):
    assert steps([want(OLD)], [have(OLD)], [OLD], files).write


def test_namespaced_policies_of_one_name_are_kept_apart():
    wanted = [want(OLD, namespace="shop"), want(OLD, namespace="bank")]
    loaded = [LoadedPolicy(OLD, "shop", "enabled", "monitor")]
    result = plan(wanted, loaded, {("shop", OLD)}, {})
    assert [policy.key for policy in result.add] == [("bank", OLD)]
    assert len(wanted_files(wanted)) == 2


@pytest.mark.parametrize(
    ("loaded", "message"),
    [
        pytest.param([], [f"{OLD} is not loaded"], id="absent"),
        pytest.param([LoadedPolicy(OLD, state="load_error", error="why")], [f"{OLD} is load_error, not enabled: why"], id="error"),
        pytest.param([have(OLD, "enforce")], [f"{OLD} is in mode enforce, not monitor"], id="mode"),
        pytest.param([have(OLD)], [], id="right"),
    ],
)
def test_differences_are_told_in_words(loaded, message):
    assert mismatches([want(OLD)], loaded) == message


def test_a_bundles_policy_becomes_a_wanted_one():
    raw = {
        "loaded": NEW,
        "mode": "enforce",
        "text": "x",
        "namespace": None,
        "unpinned": ["lsmhooks:file_open"],
        "overrides": ["security_file_open"],
        "binaries": ["/usr/bin/app"],
    }
    assert Wanted.from_bundle(raw) == Wanted(NEW, "enforce", "x", "", True, ("security_file_open",), ("/usr/bin/app",))
