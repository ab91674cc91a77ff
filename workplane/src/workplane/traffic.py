"""The pod's traffic, put together: names to addresses, addresses to listeners, listeners to replicas."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from ipaddress import IPv4Address
from typing import Final

import structlog
import trio
from attrs import frozen

from magik_mesh import Node
from magik_proto.identity import PeerId
from magik_proto.passes import PodIdentity
from magik_proto.records import ServiceRecord
from workplane.addressbook import AddressBook
from workplane.balance import Balancer
from workplane.catalog import Catalog, Visibility
from workplane.datagrams import DatagramInbound
from workplane.inbound import Inbound
from workplane.lifesigns import PING, Witness
from workplane.metrics import Family, counter, gauge
from workplane.names import Found, ServiceName
from workplane.proxy import Front, Place
from workplane.routing import LEADER, TCP, UDP, Router, Target
from workplane.services import Service, ServicePort, Services

MAX_PODS: Final = 128
"""Pods of a headless Service that its name stands for; of more, the first by their names. A guess: as many addresses fit
into an answer by UDP twice over."""
RETRY_S: Final = 5.0
"""Between tries to have the port to which connections are redirected, where an app has it. A guess."""


@frozen(kw_only=True)
class Seams:
    """What traffic gets of the agent's other parts, as `Router` and `Inbound` say.

    `redirect_port`: where TCP to services' addresses is redirected to, if it is.
    """

    node: Node
    catalog: Catalog
    visibility: Visibility
    wall: Callable[[], int]
    follow: Callable[[str], Awaitable[None]]
    identify: Callable[[PeerId], PodIdentity | None]
    services: Services
    own_services: Callable[[], Sequence[Service]]
    own_ports: Callable[[], Mapping[str, int]]
    ready: Callable[[], bool]
    redirect_port: int | None = None
    domain: str = "cluster.local"
    machine: str = ""
    zone: str = ""


class Traffic:
    """See `open_traffic`."""

    def __init__(self, seams: Seams, inbound: Inbound, nursery: trio.Nursery) -> None:
        self._seams = seams
        self._nursery = nursery
        self._services = seams.services
        self._book = AddressBook(seams.domain)
        self._log = structlog.get_logger(part="traffic")
        self.inbound = inbound
        self.router = Router(
            node=seams.node,
            catalog=seams.catalog,
            services=self._services,
            balancer=Balancer(random.Random().random, seams.machine, seams.zone),
            wall=seams.wall,
            follow=seams.follow,
            identify=seams.identify,
            open_own=inbound.open_own,
            nursery=nursery,
        )
        self.redirect_port = 0  # where redirected connections are taken; 0: nowhere
        self.front = Front(self.router, nursery, redirected=seams.redirect_port is not None)

    async def take_redirected(self, port: int) -> None:
        """Begin to. A port that is taken is logged and tried again: what the pod gives to others goes on."""
        try:
            await self._take(port)
        except OSError as error:
            self._log.error(
                "no-redirect: this pod's apps reach no service by TCP. Does one of them listen at that port?",
                port=port,
                error=str(error),
            )
            self._nursery.start_soon(self._go_on_trying, port)

    async def _take(self, port: int) -> None:
        self.redirect_port = await self._nursery.start(self.front.serve_redirected, port)
        self._log.info("redirected", port=self.redirect_port)

    async def _go_on_trying(self, port: int) -> None:
        while not self.redirect_port:
            await trio.sleep(RETRY_S)
            with suppress(OSError):
                await self._take(port)

    async def lookup(self, name: ServiceName) -> Found | None:
        """What DNS answers for a name; listens there before it does. Raises OSError if the machine cannot be asked."""
        service = await self._services.get(name.namespace, name.service)
        if service is None:
            return None
        if service.external_name:
            return None if name.part else Found(alias=service.external_name)
        numbers = {(port.name, port.protocol.lower()): port.port for port in service.ports if port.name}
        if name.part or service.headless:
            addresses = await self._of_pods(service, name)
            return Found(addresses, numbers) if addresses or not name.part else None
        self._nursery.start_soon(self.router.ready, service)  # asked of the table before somebody connects
        await self._listen(service, name, ())
        return Found((self._book.address(name),), numbers)

    async def drain(self) -> None:
        """Take nothing new from others, and wait until what is open has ended.

        What this pod's own clients open goes on: apps say goodbye to others, too.
        """
        self.inbound.drain()
        await self.inbound.idle()
        await self.front.idle()

    def metrics(self) -> Iterable[Family]:
        """For ``/metrics``."""
        signs = self.router.signs
        yield gauge("connections_out", "Connections of this pod's apps to services.", self.front.connections)
        yield gauge("connections_in", "Connections and flows of other pods to this one.", self.inbound.open)
        yield counter("connections_asked", "Those that other pods asked for.", self.inbound.asked)
        yield counter("connections_taken", "Those of them that were let in.", self.inbound.taken)
        yield counter(
            "connections_failed", "Of this pod's apps, for which there was no replica.", self.front.failed
        )
        yield counter("replicas_torn_down", "Times that a replica was taken for dead.", signs.torn_down)
        yield gauge(
            "slowness", "By how much more time others are given: 0 is none, 7 the most.", signs.health.score
        )
        yield gauge(
            "service_ports", "Ports of services at which connections are taken.", len(self.front.places)
        )
        yield counter("datagrams_dropped", "Of this pod's apps, that found no room.", self.front.dropped)

    async def _of_pods(self, service: Service, name: ServiceName) -> tuple[IPv4Address, ...]:
        """The addresses of the pods that a name stands for, or of the leader, whichever pod that is."""
        if name.part == LEADER:
            await self._listen(service, name, ())
            return (self._book.address(name),)
        addresses = []
        found = await self.router.ready(service, name.part)
        for record in sorted(found, key=lambda record: record.pod_name)[:MAX_PODS]:
            pod = ServiceName(service.name, service.namespace, record.pod_name)
            await self._listen(service, pod, (record,))
            addresses.append(self._book.address(pod))
        return tuple(addresses)

    async def _listen(self, service: Service, name: ServiceName, pods: Iterable[ServiceRecord]) -> None:
        host = str(self._book.address(name))
        for port in service.ports:
            target = Target(service.namespace, service.name, port.port, port.protocol, name.part)
            # A client of a single pod goes to the app's own port, as it would by the pod's address.
            for number in {port.port, *(_target_of(port, record) for record in pods)} - {None}:
                await self._listen_at(Place(host, number or 0, port.protocol), target)

    async def _listen_at(self, place: Place, target: Target) -> None:
        try:
            await self.front.listen(place, target)
        except OSError as error:
            self._log.error(
                "cannot listen for a service: does an app of this pod listen at that port of all addresses?",
                target=str(target),
                address=f"{place.host}:{place.port}/{place.protocol}",
                error=str(error),
            )


def _target_of(port: ServicePort, record: ServiceRecord) -> int | None:
    return port.target if isinstance(port.target, int) else record.ports.get(port.target)


@asynccontextmanager
async def open_traffic(seams: Seams) -> AsyncIterator[Traffic]:
    """The pod's traffic, until the context is left. Enter it before the node's first await: it registers handlers."""
    inbound = Inbound(seams.identify, seams.visibility, seams.own_services, seams.own_ports, seams.ready)
    seams.node.handle(TCP, inbound.on_tcp)
    seams.node.handle(UDP, DatagramInbound(inbound).on_udp)
    seams.node.handle(PING, Witness(seams.node).on_ping)
    async with trio.open_nursery() as nursery:
        traffic = Traffic(seams, inbound, nursery)
        nursery.start_soon(traffic.router.signs.watch)
        if seams.redirect_port is not None:
            await traffic.take_redirected(seams.redirect_port)
        try:
            yield traffic
        finally:
            nursery.cancel_scope.cancel()
