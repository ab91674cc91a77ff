"""Services out of the machine's JSON, remembered for a moment; and addresses for their names."""

from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from workplane.addressbook import AddressBook, whole_name
from workplane.names import ServiceName
from workplane.services import FRESH_S, MAX_ITEMS, MAX_KEPT, MISSING_S, Service, ServicePort, Services

JSON: dict[str, Any] = {
    "name": "web",
    "namespace": "default",
    "ports": [
        {"name": "http", "port": 80, "protocol": "TCP", "target": "app"},
        {"port": 53, "protocol": "UDP", "target": 5353},
    ],
    "workloads": ["default/Deployment/web"],
    "headless": True,
    "annotations": {"magik.io/balance": "locality", "other": 5},
}


def test_a_service_is_read() -> None:
    service = Service.of(JSON)
    assert service.ports == (ServicePort("http", 80, "TCP", "app"), ServicePort("", 53, "UDP", 5353))
    assert service.port(53, "UDP") == service.ports[1] and service.port(53, "TCP") is None
    assert service.workloads == ("default/Deployment/web",) and service.headless and not service.sticky_s
    assert not service.unready and not service.local
    assert service.annotations == {"magik.io/balance": "locality"}
    assert Service.of({**JSON, "affinity": "ClientIP"}).sticky_s == 10_800
    assert Service.of({**JSON, "affinity": "ClientIP", "affinity_s": 5}).sticky_s == 5
    other = Service.of({**JSON, "unready": True, "local": True})
    assert other.unready and other.local
    assert (
        Service.of({"name": "x", "namespace": "y", "external_name": "example.org"}).external_name
        == "example.org"
    )


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        ("name", {"name": None}),
        ("namespace", {"namespace": 5}),
        ("ports", {"ports": {"port": 80}}),
        ("ports", {"ports": [{"port": 80, "target": 80}] * (MAX_ITEMS + 1)}),
        ("port", {"ports": [{"port": 0, "target": 80}]}),
        ("port", {"ports": [{"port": True, "target": 80}]}),
        ("target", {"ports": [{"port": 80, "target": 1 << 16}]}),
        ("target", {"ports": [{"port": 80}]}),
        ("protocol", {"ports": [{"port": 80, "target": 80, "protocol": "SCTP"}]}),
        ("workloads", {"workloads": [5]}),
    ],
)
def test_what_is_no_service_is_named(what: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=what):
        Service.of({**JSON, **changes})


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda s: (
            st.lists(s)
            | st.dictionaries(
                st.sampled_from(["name", "namespace", "ports", "port", "workloads", "annotations", "target"]),
                s,
            )
        ),
    )
)
def test_any_json_is_a_service_or_a_value_error(value: object) -> None:
    with suppress(ValueError):
        Service.of(value)


class Asked:
    def __init__(self) -> None:
        self.names: list[str] = []
        self.there = True
        self.error: OSError | None = None

    async def __call__(self, namespace: str, name: str) -> Service | None:
        self.names.append(name)
        await trio.sleep(0.1)
        if self.error:
            raise self.error
        return Service(name=name, namespace=namespace) if self.there else None


async def test_the_machine_is_asked_again_after_a_while_and_once_for_many(autojump_clock: MockClock) -> None:
    asked = Asked()
    services = Services(asked)
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(services.get, "default", "web")
    await trio.sleep(FRESH_S - 0.2)
    assert await services.get("default", "web") and asked.names == ["web"]
    await trio.sleep(0.3)
    asked.there = False
    assert await services.get("default", "web") is None and len(asked.names) == 2
    await trio.sleep(MISSING_S - 0.01)
    assert await services.get("default", "web") is None and len(asked.names) == 2
    await trio.sleep(0.02)
    asked.there = True
    assert await services.get("default", "web") and len(asked.names) == 3


async def test_while_the_machine_is_away_its_last_word_holds(autojump_clock: MockClock) -> None:
    asked = Asked()
    services = Services(asked)
    asked.error = OSError("away")
    with pytest.raises(OSError, match="away"):
        await services.get("default", "web")
    asked.error = None
    assert await services.get("default", "web")
    asked.error = OSError("away")
    await trio.sleep(10 * FRESH_S)
    assert await services.get("default", "web")


async def test_only_so_many_are_remembered(autojump_clock: MockClock) -> None:
    asked = Asked()
    services = Services(asked)
    async with trio.open_nursery() as nursery:
        for n in range(MAX_KEPT + 5):
            nursery.start_soon(services.get, "default", f"s{n}")
    assert len(services._kept) == MAX_KEPT


def test_an_address_is_the_same_in_every_pod() -> None:
    """So it can be told in a log; the value is that of the specification's rule, worked out by hand."""
    name = ServiceName("web", "default")
    assert AddressBook("cluster.local").address(name) == IPv4Address("127.75.104.24")
    book = AddressBook("cluster.local")
    assert book.name(book.address(name)) == name
    assert whole_name(ServiceName("db", "a", "db-0"), "x.y") == "db-0.db.a.svc.x.y"


@given(st.lists(st.integers(0, 60), max_size=200))
def test_no_two_names_share_an_address(numbers: list[int]) -> None:
    book = AddressBook("cluster.local", limit=40)
    net = IPv4Network("127.64.0.0/10")
    for number in numbers:
        name = ServiceName(f"s{number}", "default")
        address = book.address(name)
        assert address in net and book.name(address) == name and book.address(name) == address
        assert len(book._addresses) == len(book._names) <= 40


def test_an_address_that_is_taken_is_passed_over() -> None:
    book, name = AddressBook("cluster.local"), ServiceName("web", "default")
    wanted = AddressBook("cluster.local").address(name)
    book._names[wanted] = ServiceName("other", "default")
    assert book.address(name) == wanted + 1
