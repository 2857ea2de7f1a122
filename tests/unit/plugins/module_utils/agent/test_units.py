# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import re

import pytest

from ansible_collections.apiary.tetragon.plugins.module_utils.agent.flags import OF_THE_SLOT, flags_of
from ansible_collections.apiary.tetragon.plugins.module_utils.agent.units import (
    MODULES,
    File,
    Limits,
    conf,
    slot_files,
    sources,
    stale,
    unit,
    write,
)


def test_two_slots_share_nothing():
    a, b = conf("a", "1.7.0", {}), conf("b", "1.7.0", {})
    same = {name for name in a if a[name] == b[name]}
    assert {name for name in a if name not in same} == {
        "bpf-dir",
        "export-filename",
        "metrics-server",
        "server-address",
        "tracing-policy-dir",
    }
    assert set(a) <= set(flags_of("1.7.0"))
    assert a["health-server-address"] == a["gops-address"] == ""


def test_the_user_is_heard_where_the_slot_does_not_decide():
    options = conf("a", "1.7.0", {"export-file-max-backups": "9", "enable-process-cred": "true"})
    assert (options["export-file-max-backups"], options["enable-process-cred"]) == ("9", "true")
    assert conf("a", "1.7.0", dict.fromkeys(OF_THE_SLOT, "x"))["bpf-dir"] == "apiary-a"


def test_a_unit_has_the_wanted_limits_and_no_empty_ones():
    text = unit("b", "1.7.0", Limits("1G", "150%", 3, 4, 60, ("sshd.service", "nginx.service")))
    for line in ("MemoryMax=1G", "CPUQuota=150%", "RestartSec=3", "StartLimitBurst=4", "Before=sshd.service", "Before=nginx.service"):
        assert line in text.splitlines()
    assert "ExecStart=/opt/apiary/tetragon/1.7.0/bin/tetragon --config-dir /etc/apiary/slots/b/conf.d" in text
    bare = unit("b", "1.7.0", Limits("", "", 3, 4, 60, ()))
    assert not any(word in bare for word in ("MemoryMax", "CPUQuota", "Before=sshd", "{", "}"))


@pytest.mark.parametrize("slot", ["a", "b"])
def test_a_slot_is_one_file_an_option(slot):
    files = slot_files(slot, "1.7.0", {"debug": "true"}, Limits())
    home = f"/etc/apiary/slots/{slot}"
    assert files[f"{home}/conf.d/debug"] == File("true\n", 0o600)
    assert files[f"{home}/version"].text == "1.7.0\n"
    assert f"/etc/systemd/system/apiary-tetragon-{slot}.service" in files


def test_what_differs_in_text_or_mode_is_written_and_nothing_else(tmp_path):
    files = {str(tmp_path / "x/one"): File("1\n", 0o600), str(tmp_path / "x/two"): File("2\n"), str(tmp_path / "three"): File("3\n")}
    assert stale(files) == sorted(files)
    write(files, stale(files))
    assert stale(files) == []
    (tmp_path / "x/one").chmod(0o644)
    (tmp_path / "three").write_text("other", encoding="utf-8")
    assert stale(files) == [str(tmp_path / "three"), str(tmp_path / "x/one")]
    before = (tmp_path / "x/two").stat().st_ino
    write(files, stale(files))
    assert (stale(files), (tmp_path / "x/two").stat().st_ino) == ([], before)
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == ["one", "two"]


def test_a_hosts_copy_of_the_code_is_whole():
    text = "\n".join(sources().values())
    needed = re.findall(r"^from [a-z_.]+\.agent\.(\w+) import", text, re.MULTILINE)
    together = re.findall(r"^from [a-z_.]+\.agent import (.+)$", text, re.MULTILINE)
    needed += [name for line in together for name in line.split(", ")]
    assert "process" in needed
    assert set(needed) <= set(MODULES)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"memory_max": "2GB"}, "memory_max is '2GB'; needed: bytes such as 512M or 2G, a share such as 10%, or nothing"),
        ({"cpu_quota": "50"}, "cpu_quota is '50'; needed: a share of one CPU such as 50%, or nothing"),
        ({"start_limit": 0}, "start_limit is 0; needed: 1 or more"),
        ({"before": ["nginx"]}, "before has 'nginx'; needed: whole names of units such as nginx.service"),
        ({"before": ["a.service\nExecStart=b.service"]}, "before has 'a.service\\nExecStart=b.service'; needed: whole names of units"),
    ],
)
def test_a_limit_that_systemd_would_pass_over_is_refused(given, problem):
    (found,) = Limits(**given).problems()
    assert found.startswith(problem)


def test_limits_that_systemd_takes_are_taken():
    assert Limits().problems() == []
    assert Limits("", "250%", 1, 1, 1, ["docker.service", "ssh@1-2.socket", "multi-user.target"]).problems() == []
    assert Limits("infinity").problems() == Limits("40%").problems() == Limits("1073741824").problems() == []
