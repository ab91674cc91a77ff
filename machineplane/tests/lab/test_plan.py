"""Names, addresses and groups of a lab."""

from ipaddress import IPv4Network

import pytest

from machineplane.lab import plan
from machineplane.lab.errors import LabError, NoSuchMachine

MACHINES = ("m0", "m1", "m2", "m3")


def test_machines_behind_nat_are_named_with_the_kind_of_their_router() -> None:
    assert plan.parse_nats("", "", MACHINES) == {}
    assert plan.parse_nats("m1,m3", "m2", MACHINES) == {"m1": "cone", "m3": "cone", "m2": "symmetric"}


def test_what_is_behind_a_router_is_apart_from_the_lab_and_from_pods() -> None:
    lab = plan.free_subnet([])
    for index in (1, 98):
        inside = plan.inside_subnet(index)
        assert not inside.overlaps(lab) and not inside.overlaps(plan.pod_subnet(index))
        assert {plan.first_inside(inside), plan.own_inside(inside)} < set(inside.hosts())


def test_a_free_subnet_overlaps_no_route() -> None:
    taken = [IPv4Network(text) for text in ("0.0.0.0/0", "10.202.0.0/24", "10.202.1.128/25", "192.0.2.0/24")]
    assert str(plan.free_subnet(taken)) == "10.202.2.0/24"


def test_a_wide_route_sends_the_lab_to_another_range() -> None:
    assert str(plan.free_subnet([IPv4Network("10.0.0.0/8")])) == "172.31.0.0/24"


def test_no_free_subnet_is_said() -> None:
    with pytest.raises(LabError, match="no private /24 is free"):
        plan.free_subnet(
            [IPv4Network("10.0.0.0/8"), IPv4Network("172.16.0.0/12"), IPv4Network("192.168.0.0/16")]
        )


def test_addresses_of_the_largest_lab_are_in_its_subnet_and_differ() -> None:
    subnet = IPv4Network("10.202.3.0/24")
    addresses = {plan.machine_address(subnet, index) for index in range(plan.MACHINES_LIMIT)}
    assert len(addresses) == plan.MACHINES_LIMIT
    assert all(address in subnet and address != plan.host_address(subnet) for address in addresses)
    pods = [plan.pod_subnet(index) for index in range(plan.MACHINES_LIMIT)]
    assert len(set(pods)) == len(pods) and not any(network.overlaps(subnet) for network in pods)


@pytest.mark.parametrize("name", ["lab", "a", "a-rather-long-lab-nm"])
def test_interface_names_fit(name: str) -> None:
    assert len(plan.host_link(plan.check_name(name))) <= 15


def test_long_names_with_one_beginning_get_different_interfaces() -> None:
    assert plan.host_link("testing-one") != plan.host_link("testing-two")


@pytest.mark.parametrize("name", ["", "Lab", "0lab", "a/b", "a.b", "../x", "x" * 21])
def test_names_that_do_not_serve(name: str) -> None:
    with pytest.raises(LabError, match="lab name"):
        plan.check_name(name)


@pytest.mark.parametrize("count", [0, -1, 100])
def test_counts_that_do_not_serve(count: int) -> None:
    with pytest.raises(LabError, match="1 to 99"):
        plan.check_count(count)


def test_two_groups_lose_each_other_and_the_rest_hears_all() -> None:
    groups = plan.parse_groups(["m0,m1", "m2"], MACHINES)
    assert plan.cut_off_from("m0", groups) == ("m2",)
    assert plan.cut_off_from("m2", groups) == ("m0", "m1")
    assert plan.cut_off_from("m3", groups) == ()


def test_one_group_is_parted_from_all_others() -> None:
    groups = plan.parse_groups(["m1"], MACHINES)
    assert plan.cut_off_from("m1", groups) == ("m0", "m2", "m3")
    assert plan.cut_off_from("m3", groups) == ("m1",)


def test_loss_is_always_both_ways() -> None:
    groups = plan.parse_groups(["m0", "m1,m2"], MACHINES)
    for one in MACHINES:
        for other in MACHINES:
            assert (one in plan.cut_off_from(other, groups)) == (other in plan.cut_off_from(one, groups))


@pytest.mark.parametrize("words", [[], [""], ["m0,m1,m2,m3"], ["m0", ""], ["m0", "m0"], ["m0,m1", "m1"]])
def test_groups_that_part_nothing_or_contradict(words: list[str]) -> None:
    with pytest.raises(LabError, match=r"partition has two sides|named twice"):
        plan.parse_groups(words, MACHINES)


def test_unknown_machines_are_named_with_those_that_there_are() -> None:
    with pytest.raises(NoSuchMachine, match=r"no machine m9 in this lab: it has m0, m1, m2, m3"):
        plan.parse_groups(["m0", "m9"], MACHINES)
