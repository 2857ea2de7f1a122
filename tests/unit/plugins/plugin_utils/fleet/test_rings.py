# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest

from ansible_collections.apiary.tetragon.plugins.plugin_utils.fleet.rings import Member, Plan, budget, cell_of, count, plan_rings
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Refused

DEBIAN = ("6.1", "x86_64", "debian 12")
UBUNTU = ("6.8", "x86_64", "ubuntu 24.04")
ARM = ("6.1", "aarch64", "debian 12")
THREE = "  - {name: canary, take: cells}\n  - {name: early, take: 25%}\n  - {name: fleet, take: rest}\n"


def fleet(total, cells=(DEBIAN,), groups=()):
    return [Member(f"h{number:03d}", frozenset(groups), cells[number % len(cells)]) for number in range(total)]


def names(plan, ring):
    return set(plan.rings[ring].hosts)


@pytest.mark.parametrize(
    ("share", "total", "wanted"), [("25%", 24, 6), ("1%", 10, 1), ("10%", 95, 10), ("3", 24, 3), ("100%", 7, 7), ("5%", 0, 0)]
)
def test_a_share_is_rounded_up_and_never_nothing(share, total, wanted):
    assert count(share, total) == wanted


@pytest.mark.parametrize(("share", "total", "wanted"), [("5%", 24, 1), ("5%", 10, 0), ("0", 24, 0), ("2", 24, 2)])
def test_a_budget_of_missing_hosts_is_rounded_down(share, total, wanted):
    assert budget(share, total) == wanted


def test_the_rings_hold_every_host_exactly_once(make_environment):
    plan = plan_rings(make_environment(THREE), fleet(24))
    hosts = [host for ring in plan.rings for host in ring.hosts]
    assert sorted(hosts) == sorted(member.name for member in fleet(24))
    assert [len(ring.hosts) for ring in plan.rings] == [1, 6, 17]


def test_the_plan_depends_on_nothing_but_its_input(make_environment):
    environment = make_environment(THREE)
    assert plan_rings(environment, fleet(50)) == plan_rings(environment, reversed(fleet(50)))


def test_a_host_keeps_its_ring_when_others_come_and_go(make_environment):
    environment = make_environment("  - {name: canary, take: 2}\n  - {name: fleet, take: rest}\n")
    before = names(plan_rings(environment, fleet(24)), 0)
    without_last = [member for member in fleet(24) if member.name in before or member.name > "h005"]
    assert names(plan_rings(environment, without_last), 0) == before


def test_the_first_ring_holds_one_host_of_every_cell(make_environment):
    members = fleet(30, (DEBIAN, UBUNTU, ARM))
    cells = {member.name: member.cell for member in members}
    plan = plan_rings(make_environment(THREE), members)
    assert {cells[host] for host in plan.rings[0].hosts} == {DEBIAN, UBUNTU, ARM}


def test_a_first_ring_by_number_covers_every_cell_too(make_environment):
    members = fleet(30, (DEBIAN, UBUNTU, ARM))
    cells = {member.name: member.cell for member in members}
    plan = plan_rings(make_environment("  - {name: canary, take: 1}\n  - {name: fleet, take: rest}\n"), members)
    assert {cells[host] for host in plan.rings[0].hosts} == {DEBIAN, UBUNTU, ARM}


def test_a_first_ring_by_group_that_misses_a_cell_is_refused(make_environment):
    members = [Member("a", frozenset(["canary"]), DEBIAN), Member("b", frozenset(["other"]), ARM)]
    environment = make_environment("  - {name: canary, groups: [canary]}\n  - {name: fleet, take: rest}\n")
    with pytest.raises(Refused, match=r"lab.yml:6: rings\[0\]: ring 'canary' has no host with kernel 6.1 aarch64 debian 12 \(such as b\)"):
        plan_rings(environment, members)


def test_overlapping_rings_are_refused_by_host(make_environment):
    members = [Member("a", frozenset(["one", "two"]), DEBIAN), Member("b", frozenset(["two"]), DEBIAN)]
    environment = make_environment("  - {name: canary, groups: [one]}\n  - {name: fleet, groups: [two]}\n")
    with pytest.raises(Refused, match=r"lab.yml:7: rings\[1\].groups: host a is in ring 'canary' already"):
        plan_rings(environment, members)


def test_rings_that_leave_hosts_out_are_refused(make_environment):
    members = [Member("a", frozenset(["one"]), DEBIAN), Member("b", frozenset(), DEBIAN)]
    with pytest.raises(Refused, match="1 hosts are in no ring: b; let the last ring take the rest"):
        plan_rings(make_environment("  - {name: canary, groups: [one]}\n"), members)


@pytest.mark.parametrize(
    ("rings", "message"),
    [
        ("  - {name: canary, groups: [none]}\n  - {name: fleet, take: rest}\n", "ring 'canary' is empty: no host is in none"),
        ("  - {name: canary, take: 5}\n  - {name: fleet, take: rest}\n", "ring 'fleet' is empty: the rings before it took every host"),
    ],
)
def test_an_empty_ring_is_refused(make_environment, rings, message):
    with pytest.raises(Refused, match=message):
        plan_rings(make_environment(rings), fleet(3))


def test_no_hosts_at_all_are_refused(make_environment):
    with pytest.raises(Refused, match="there are no hosts to roll out to"):
        plan_rings(make_environment(THREE), [])


def test_hosts_that_cannot_take_part_are_left_out_within_the_budget(make_environment):
    members = [*fleet(20), Member("dead", frozenset(), None, "unreachable")]
    plan = plan_rings(make_environment(THREE, "gates: {unreachable: 5%}\n"), members)
    assert plan.left_out == {"dead": "unreachable"}
    assert all("dead" not in ring.hosts for ring in plan.rings)


def test_more_missing_hosts_than_the_budget_are_refused(make_environment):
    members = [*fleet(20), *(Member(f"dead{n}", frozenset(), None, "unreachable") for n in range(2))]
    with pytest.raises(Refused, match=r"gates.unreachable: 2 of 22 hosts cannot take part and 1 may be missing: dead0: unreachable"):
        plan_rings(make_environment(THREE, "gates: {unreachable: 5%}\n"), members)


def test_batches_cover_the_ring_in_order(make_environment):
    environment = make_environment("  - {name: canary, take: 1}\n  - {name: fleet, take: rest, batch: 4}\n")
    ring = plan_rings(environment, fleet(11)).rings[1]
    assert [len(batch) for batch in ring.batches] == [4, 4, 2]
    assert tuple(host for batch in ring.batches for host in batch) == ring.hosts


def test_control_hosts_have_not_changed_yet_and_the_last_ring_has_none(make_environment):
    plan = plan_rings(make_environment(THREE, "gates: {control: 5}\n"), fleet(24))
    assert len(plan.rings[0].control) == 5
    for index, ring in enumerate(plan.rings):
        later = {host for following in plan.rings[index + 1 :] for host in following.hosts}
        assert set(ring.control) <= later
    assert plan.rings[-1].control == ()


def test_a_plan_survives_its_file():
    plan = Plan((), {"dead": "unreachable"})
    assert Plan.from_json(plan.to_json()) == plan


def test_a_full_plan_survives_its_file(make_environment):
    plan = plan_rings(make_environment(THREE), fleet(24))
    assert Plan.from_json(plan.to_json()) == plan


def test_a_cell_is_kernel_series_architecture_and_system():
    host = {"kernel": "5.14.0-427.el9.x86_64", "architecture": "x86_64", "os": "rhel", "os_version": "9.4"}
    assert cell_of(host) == ("5.14", "x86_64", "rhel 9.4")
