"""Which pod gets which port of the machine."""

from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machineplane.podnet.errors import PortsExhausted
from machineplane.podnet.ports import Forward, PortPool


def forward(port: int) -> Forward:
    return Forward(port, IPv4Address("10.1.0.2"), 4701)


def take(pool: PortPool, owner: str) -> int:
    port = pool.find(owner, lambda _: True)
    pool.hold(owner, forward(port))
    return port


def test_a_pod_is_given_the_port_that_it_had_after_all_is_forgotten() -> None:
    ports = range(20_000, 28_000)
    assert {take(PortPool(ports), "pod-a") for _ in range(3)} == {take(PortPool(ports), "pod-a")}
    assert take(PortPool(ports), "pod-a") != take(PortPool(ports), "pod-b")


@given(st.sets(st.text(max_size=5), max_size=20), st.integers(1, 30))
def test_no_two_pods_share_a_port_and_all_are_of_the_range(owners: set[str], size: int) -> None:
    pool = PortPool(range(1024, 1024 + size))
    taken = []
    for owner in sorted(owners):
        try:
            taken.append(take(pool, owner))
        except PortsExhausted:
            assert len(taken) == size
    assert len(set(taken)) == len(taken) == min(len(owners), size)
    assert all(1024 <= port < 1024 + size for port in taken)


def test_ports_that_programs_have_are_left_to_them() -> None:
    pool = PortPool(range(2000, 2003))
    assert pool.find("p", lambda port: port == 2001) == 2001
    with pytest.raises(PortsExhausted, match=r"no free UDP port from 2000 to 2002: 0 pods .* --agent-ports"):
        pool.find("p", lambda _: False)


def test_a_released_port_is_free_again() -> None:
    pool = PortPool(range(2000, 2001))
    assert take(pool, "a") == 2000
    with pytest.raises(PortsExhausted, match="1 pods"):
        pool.find("b", lambda _: True)
    pool.release("a")
    pool.release("a")
    assert pool.get("a") is None and take(pool, "b") == 2000


def test_what_was_found_on_the_machine_is_held_outside_of_the_range_too() -> None:
    pool = PortPool(range(2000, 2001))
    pool.hold("old", forward(3000))
    assert pool.get("old") == forward(3000)
    assert take(pool, "new") == 2000
    pool.hold("old", forward(4000))  # moved
    assert pool.get("old") == forward(4000)
