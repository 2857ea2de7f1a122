# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""What an environment says of its kernels, and what that leaves open."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.apiary.tetragon.plugins.plugin_utils import environment
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.kernel import Kernel, target
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.target import DEFAULT, KPROBE_MULTI, STRCASESTR, STRNSTR, Target
from ansible_collections.apiary.tetragon.tests.unit.plugins.plugin_utils.samples import messages, refused

ENVIRONMENT = """\
name: staging
agent_version: "1.7.0"
policies:
  - {policy: files/watch, mode: monitor}
rings:
  - {name: all, take: rest}
"""


def kernel_of(text: str, tmp_path: Path) -> Kernel:
    """The kernel of an environment that ends with this text."""
    path = tmp_path / "staging.yml"
    path.write_text(ENVIRONMENT + text, encoding="utf-8")
    return environment.load(path).kernel


def test_an_environment_need_not_say(tmp_path: Path) -> None:
    assert kernel_of("", tmp_path) == Kernel((5, 15), {}, None)


def test_an_environment_may_say(tmp_path: Path) -> None:
    text = 'kernel: {release: "6.1", probes: {kprobe_multi: false}, cpus: 64}\n'
    assert kernel_of(text, tmp_path) == Kernel((6, 1), {"kprobe_multi": False}, 64)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("kernel: {release: 6.1}\n", "kernel.release: is 6.1; needed: text", id="a release without quotes"),
        pytest.param('kernel: {release: "6"}\n', 'needed: the oldest kernel series in quotes, such as "5.15"', id="half a release"),
        pytest.param("kernel: {probes: {kprobe-multi: true}}\n", "did you mean 'kprobe_multi'?", id="a misspelt probe"),
        pytest.param("kernel: {probes: {lsm: 1}}\n", "kernel.probes.lsm: is 1; needed: true or false", id="a probe as a number"),
        pytest.param("kernel: {cpus: 0}\n", "kernel.cpus: is 0; must be at least 1", id="no CPU"),
    ],
)
def test_what_it_says_must_be_sound(text: str, message: str, tmp_path: Path) -> None:
    assert message in messages(refused(kernel_of, text, tmp_path))


@pytest.mark.parametrize(("probes", "may", "lacks"), [({}, True, False), ({"lsm": True}, True, False), ({"lsm": False}, False, True)])
def test_what_is_not_said_may_be_there_or_not(probes: dict[str, bool], may: bool, lacks: bool) -> None:
    assert (Kernel(probes=probes).may_have("lsm"), Kernel(probes=probes).lacks("lsm")) == (may, lacks)


def test_one_of_several_is_enough() -> None:
    assert not Kernel(probes={"override_return": False}).lacks("override_return", "fmodret_syscall")
    assert Kernel(probes={"override_return": False, "fmodret_syscall": False}).lacks("override_return", "fmodret_syscall")


@pytest.mark.parametrize(
    ("kernel", "tier", "features"),
    [
        pytest.param(Kernel((4, 19)), "small", set(), id="4.19"),
        pytest.param(Kernel((5, 4)), "large", set(), id="5.4"),
        pytest.param(Kernel((5, 15), {"kprobe_multi": False}), "v511", set(), id="5.15"),
        pytest.param(Kernel((6, 12), {"kprobe_multi": True}), "v61", {KPROBE_MULTI}, id="kprobe-multi"),
        pytest.param(Kernel((6, 17)), "v61", {STRNSTR}, id="6.17"),
        pytest.param(Kernel((6, 19)), "v61", {STRNSTR, STRCASESTR}, id="6.19"),
    ],
)
def test_the_oldest_kernel_decides_what_is_judged_for(kernel: Kernel, tier: str, features: set[str]) -> None:
    assert target((1, 8, 0), kernel) == Target((1, 8), tier, frozenset(features))
    assert target((1, 7, 0)) == DEFAULT
