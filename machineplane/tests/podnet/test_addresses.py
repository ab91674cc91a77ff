"""Which pod gets which address."""

from ipaddress import IPv4Address, IPv4Network

import pytest

from machineplane.podnet.addresses import AddressPool
from machineplane.podnet.errors import PodNetworkError, SubnetExhausted


def pool(subnet: str = "10.1.0.0/29") -> AddressPool:
    return AddressPool(IPv4Network(subnet))


def test_the_gateway_is_first_and_pods_follow() -> None:
    made = pool()
    assert str(made.gateway) == "10.1.0.1"
    assert [str(made.take(f"p{number}")) for number in range(5)] == [
        f"10.1.0.{2 + number}" for number in range(5)
    ]


def test_a_freed_address_rests_until_the_ring_comes_round() -> None:
    made = pool()
    for number in range(3):
        made.take(f"p{number}")
    made.release("p0")
    assert [str(made.take(name)) for name in ("x", "y", "z")] == ["10.1.0.5", "10.1.0.6", "10.1.0.2"]


def test_the_same_pod_gets_the_same_address() -> None:
    made = pool()
    assert made.take("p") == made.take("p")
    assert len(made) == 1


def test_a_full_subnet_says_so_and_keeps_what_it_holds() -> None:
    made = pool()
    for number in range(made.size):
        made.take(f"p{number}")
    with pytest.raises(SubnetExhausted, match=r"subnet 10\.1\.0\.0/29 has no free address: all 5 are held"):
        made.take("late")
    assert len(made) == 5 and made.get("late") is None
    made.release("p3")
    made.release("p3")
    assert str(made.take("late")) == "10.1.0.5"


def test_restored_addresses_are_not_given_again() -> None:
    made = pool()
    made.restore("old", IPv4Address("10.1.0.3"))
    assert [str(made.take(name)) for name in "abcd"] == ["10.1.0.4", "10.1.0.5", "10.1.0.6", "10.1.0.2"]
    assert made.held()["old"] == IPv4Address("10.1.0.3")


@pytest.mark.parametrize("address", ["10.1.0.0", "10.1.0.1", "10.1.0.7", "10.2.0.3"])
def test_addresses_that_are_no_pods_are_refused(address: str) -> None:
    with pytest.raises(PodNetworkError, match="is not one for pods"):
        pool().restore("p", IPv4Address(address))


def test_two_pods_cannot_hold_one_address() -> None:
    made = pool()
    made.restore("p", IPv4Address("10.1.0.3"))
    with pytest.raises(PodNetworkError, match="held by both pod p and pod q"):
        made.restore("q", IPv4Address("10.1.0.3"))


def test_a_subnet_without_room_is_refused() -> None:
    assert pool("10.1.0.0/30").size == 1
    with pytest.raises(PodNetworkError, match="holds no pod"):
        pool("10.1.0.0/31")
