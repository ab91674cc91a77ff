"""TCP of the pod's apps: services' ports on loopback addresses, each connection carried to a replica's agent."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import structlog
import trio
from attrs import define, field, frozen
from trio import socket

from workplane.datagrams import DatagramFront, open_datagrams
from workplane.lifesigns import Stream
from workplane.logs import Sparing, correlated
from workplane.pumps import both_ways, reset, reset_unless_done
from workplane.redirect import listen_on_loopback, original_destination
from workplane.routing import Router, Target, Unreachable

MAX_LISTENERS: Final = 4096
"""(address, port) pairs at which connections are taken; at it the one unused for longest is closed, and opened again when
its name is asked for. Not earlier: a client may keep an address for as long as it runs. A guess."""
MAX_CONNECTIONS: Final = 4096
"""Of the pod's apps to services; at it a further one is reset. A guess, below what a process may have open."""
BACKLOG: Final = 4096
"""Connections that wait to be accepted; more wait for their SYN to be repeated, and are reset after 15 s (measured, in an
overload, with 512). What Linux allows."""


@frozen
class Place:
    """Where a client in the pod connects to, or sends datagrams to."""

    host: str
    port: int
    protocol: str = "TCP"


@define(eq=False)
class _Listener:
    target: Target
    scope: trio.CancelScope = field(factory=trio.CancelScope)


class Front:
    """Takes connections and datagrams of clients in this pod. Runs in `nursery`.

    `redirected`: TCP to any place comes to `serve_redirected`, so that no place is bound for it.
    """

    def __init__(
        self,
        router: Router,
        nursery: trio.Nursery,
        *,
        redirected: bool = False,
        listeners: int = MAX_LISTENERS,
        connections: int = MAX_CONNECTIONS,
    ) -> None:
        self._router = router
        self._nursery = nursery
        self._redirected = redirected
        self._datagrams = DatagramFront(router, nursery)
        self._listeners: OrderedDict[Place, _Listener] = OrderedDict()
        self._max_listeners = listeners
        self._max_connections = connections
        self._idle = trio.Event()
        self._log = structlog.get_logger(part="traffic")
        self._failures = Sparing(self._log)
        self.connections = 0
        self.failed = 0

    async def listen(self, place: Place, target: Target) -> None:
        """Take connections to an address and port for a target; where that is done already, it goes on.

        Raises OSError where a port that has to be bound is taken, as it is by an app that listens at that port of all
        addresses.
        """
        if (listener := self._listeners.get(place)) is not None:
            self._listeners.move_to_end(place)
            listener.target = target
            return
        listener = self._listeners[place] = _Listener(target)
        try:
            if not self._redirected or place.protocol != "TCP":
                await self._nursery.start(self._serve, place, listener)
        except BaseException:
            if self._listeners.get(place) is listener:
                del self._listeners[place]
            raise
        while len(self._listeners) > self._max_listeners:
            self.close(next(iter(self._listeners)))

    async def serve_redirected(
        self, port: int, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Take at a port of the loopback what clients send to places, until cancelled; says the port.

        Raises OSError where it is taken.
        """
        listening = await listen_on_loopback(port, BACKLOG)
        async with listening:
            task_status.started(listening.socket.getsockname()[1])
            await trio.serve_listeners(self._redirect, [listening], handler_nursery=self._nursery)

    async def _redirect(self, client: trio.SocketStream) -> None:
        destination = original_destination(client)
        place = Place(*destination) if destination else None
        listener = self._listeners.get(place) if place else None
        if place is None or listener is None:
            self._log.debug("connection to no service", destination=destination)
            reset(client)
            client.socket.close()
            return
        await self._accepted(place, listener, client)

    def close(self, place: Place) -> None:
        """Listen there no more; connections go on."""
        if (listener := self._listeners.pop(place, None)) is not None:
            listener.scope.cancel()

    @property
    def dropped(self) -> int:
        """Datagrams that found no room."""
        return self._datagrams.dropped

    async def idle(self) -> None:
        """Until no connection is open."""
        while self.connections:
            self._idle = trio.Event()
            await self._idle.wait()

    @property
    def places(self) -> tuple[Place, ...]:
        """Where it listens, those used least lately first."""
        return tuple(self._listeners)

    async def _serve(
        self,
        place: Place,
        listener: _Listener,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        if place.protocol == "UDP":
            with await open_datagrams(place.host, place.port) as server:
                task_status.started()
                with listener.scope:
                    await self._datagrams.serve(server, lambda: self._used(place, listener))
            return
        (listening,) = await trio.open_tcp_listeners(place.port, host=place.host, backlog=BACKLOG)
        task_status.started()
        handler: Callable[[trio.SocketStream], Awaitable[None]] = partial(self._accepted, place, listener)
        with listener.scope:
            async with listening:
                await trio.serve_listeners(handler, [listening], handler_nursery=self._nursery)

    def _used(self, place: Place, listener: _Listener) -> Target:
        if place in self._listeners:
            self._listeners.move_to_end(place)
        return listener.target

    async def _accepted(self, place: Place, listener: _Listener, client: trio.SocketStream) -> None:
        target = self._used(place, listener)
        with correlated():
            try:
                async with reset_unless_done(client):
                    await self._connect(target, client)
            except Unreachable as error:
                self.failed += 1
                self._failures.info("connection-failed", target=str(target), error=str(error))

    async def _connect(self, target: Target, client: trio.SocketStream) -> None:
        if self.connections >= self._max_connections:
            raise Unreachable(f"{target}: {self.connections} connections are open")
        self.connections += 1
        try:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._router.connect(target, partial(_carry, client))
        finally:
            self.connections -= 1
            if not self.connections:
                self._idle.set()


async def _carry(client: trio.SocketStream, replica: Stream) -> None:
    async with reset_unless_done(client):
        await both_ways(client, replica)
