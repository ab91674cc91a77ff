"""Connections for the pod's own app that other agents bring: who may, to which port, and how many."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import structlog
import trio
from attrs import define, field

from magik_mesh import Call, CallRefused
from magik_proto.identity import PeerId
from magik_proto.passes import PodIdentity
from workplane.catalog import Visibility
from workplane.logs import Sparing, correlated_by
from workplane.pumps import both_ways, reset_unless_done
from workplane.routing import BUSY, Target
from workplane.services import Service

MAX_OF_PEER: Final = 256
"""Streams of one peer; a further one is refused, and the caller tries another replica. A guess: what a connection's window
is shared by."""
MAX_OF_ALL: Final = 4096
"""And of all peers together. A guess, below what a process may have open."""
APP_S: Final = 1.0
"""For the app to take a connection: on the loopback it does at once, or its backlog is full. A guess."""
RESET_BROKEN: Final = 16
"""The stream's reset when the connection with the app broke."""
HOST: Final = "127.0.0.1"


@define(eq=False)
class Inbound:
    """What is asked of the pod's own app.

    `services` are those that select this pod, `ports` the numbers of its containers' named ports, `ready` whether it may be
    sent traffic. Errors of calls are `CallRefused` with the codes ``draining``, ``not-ready``, ``busy``, ``body``,
    ``forbidden``, ``no-such-port`` and ``app``; each says to the caller that nothing was sent to the app.
    """

    identify: Callable[[PeerId], PodIdentity | None]
    visibility: Visibility
    services: Callable[[], Sequence[Service]]
    ports: Callable[[], Mapping[str, int]]
    ready: Callable[[], bool]
    max_of_peer: int = MAX_OF_PEER
    max_of_all: int = MAX_OF_ALL
    draining: bool = False
    open: int = 0
    asked: int = 0  # calls that came, in all
    taken: int = 0  # those that may be carried
    _of_peer: dict[PeerId, int] = field(factory=dict)
    _idle: trio.Event = field(factory=trio.Event)
    _refusals: Sparing = field(factory=lambda: Sparing(structlog.get_logger(part="traffic")))

    async def on_tcp(self, call: Call) -> None:
        """A connection to the app."""
        with self.told(call):
            port = self.admit(call, "TCP")
        async with self.counted(call.peer):
            with self.told(call):
                app = await self._connect(port)
            async with reset_unless_done(app):
                await call.reply({})
                await self._carry(call, app)

    async def _carry(self, call: Call, app: trio.SocketStream) -> None:
        try:
            await both_ways(call.stream, app)
        except trio.BrokenResourceError:
            call.stream.reset(RESET_BROKEN)
            raise

    @contextmanager
    def told(self, call: Call) -> Iterator[None]:
        """What is refused within it is logged, with the id that the caller's agent gave it."""
        try:
            yield
        except CallRefused as error:
            with correlated_by(call.body):
                self._refusals.info(
                    "connection-refused", peer=str(call.peer), code=error.code, reason=error.message
                )
            raise

    @asynccontextmanager
    async def open_own(self, service: Service, target: Target) -> AsyncIterator[trio.SocketStream]:
        """A connection to this pod's app for one of its own clients. Raises OSError."""
        app = await self._connect_os(self._number(service, target.port, target.protocol))
        async with reset_unless_done(app):
            yield app

    def drain(self) -> None:
        """Take nothing new."""
        self.draining = True

    async def idle(self) -> None:
        """Until nothing is open."""
        while self.open:
            self._idle = trio.Event()
            await self._idle.wait()

    def admit(self, call: Call, protocol: str) -> int:
        """The app's port that a call means, if the caller may have it now; else `CallRefused`."""
        self.asked += 1
        if self.draining:
            raise CallRefused("draining", "this pod is ending")
        if self.open >= self.max_of_all or self._of_peer.get(call.peer, 0) >= self.max_of_peer:
            raise CallRefused(BUSY, "this agent carries as many connections as it will")
        self._check_caller(call.peer)
        namespace, name, number = _read(call.body)
        for service in self.services():
            if (service.namespace, service.name) == (namespace, name):
                if not service.unready and not self.ready():
                    raise CallRefused("not-ready", "this pod is not ready")
                try:
                    return self._number(service, number, protocol)
                except OSError as error:
                    raise CallRefused("no-such-port", str(error)) from error
        raise CallRefused("no-such-port", f"no Service {namespace}/{name} selects this pod")

    @asynccontextmanager
    async def counted(self, peer: PeerId) -> AsyncIterator[None]:
        """Something is open with a peer."""
        self.taken += 1
        self.open += 1
        self._of_peer[peer] = self._of_peer.get(peer, 0) + 1
        try:
            yield
        finally:
            self.open -= 1
            self._of_peer[peer] -= 1
            if not self._of_peer[peer]:
                del self._of_peer[peer]
            if not self.open:
                self._idle.set()

    def _check_caller(self, peer: PeerId) -> None:
        identity = self.identify(peer)
        if identity is not None:
            admitted = self.visibility.admits(str(identity.resource))
        else:  # in an open fabric nobody proves what it is, so nobody passes a pattern
            admitted = not self.visibility.allow and not self.visibility.deny
        if not admitted:
            who = "a pod without a pass" if identity is None else str(identity.resource)
            raise CallRefused("forbidden", f"{who} may not call this workload")

    def _number(self, service: Service, port: int, protocol: str) -> int:
        found = service.port(port, protocol)
        if found is None:
            raise OSError(f"{service.namespace}/{service.name} has no port {port}/{protocol}")
        if isinstance(found.target, int):
            return found.target
        number = self.ports().get(found.target)
        if number is None:
            raise OSError(f"no container of this pod names a port {found.target!r}")
        return number

    async def _connect(self, port: int) -> trio.SocketStream:
        try:
            return await self._connect_os(port)
        except OSError as error:
            raise CallRefused("app", f"the app does not take connections at port {port}: {error}") from error

    async def _connect_os(self, port: int) -> trio.SocketStream:
        sock = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_STREAM)
        try:
            with trio.fail_after(APP_S):
                await sock.connect((HOST, port))
            return trio.SocketStream(sock)
        except trio.TooSlowError:
            sock.close()
            raise TimeoutError(f"no answer within {APP_S:g} s") from None
        except BaseException:
            sock.close()
            raise


def _read(body: object) -> tuple[str, str, int]:
    """The Service, its namespace, and the port that a call's body names."""
    if isinstance(body, dict):
        match body.get("namespace"), body.get("service"), body.get("port"):
            case str(namespace), str(name), int(port):
                return namespace, name, port
    raise CallRefused("body", "expected namespace, service and port")
