"""From a service's name to a stream to one of its replicas: chosen, called, hedged, and its identity checked.

An attempt that has no answer within `HEDGE_S` does not hold the connection up: the next replica is tried beside it, and the
first that answers is taken. That is safe because nothing of the app is sent before a replica has said that its app took the
connection. Whoever did not answer is avoided for a while, and asked whether it lives: if it does not, what was open with it
is torn down long before QUIC's own time-outs would say so.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, Protocol

import structlog
import trio
from attrs import define, field, frozen

from magik_mesh import MeshError, RpcFailed
from magik_proto.identity import BootstrapPeer, PeerId, parse_address
from magik_proto.passes import PodIdentity
from magik_proto.records import ServiceRecord
from workplane.balance import Balancer, Rule
from workplane.catalog import Catalog
from workplane.services import Service, Services

TCP: Final = "/workplane/tcp/1.0.0"
UDP: Final = "/workplane/udp/1.0.0"
METHODS: Final[Mapping[str, str]] = {"TCP": TCP, "UDP": UDP}
PING: Final = "/workplane/ping/1.0.0"
LEADER: Final = "leader"

HEDGE_S: Final = 0.3
"""Without an answer for so long, the next replica is tried as well. A guess: several round trips around the earth, few
handshakes."""
LAG_S: Final = 0.1
"""What took so much longer than it may was held up here, and says nothing about the other end. A guess."""
HEDGES: Final = 20.0
HEDGE_PART: Final = 0.1
"""Attempts beside others that may be made at once, and what each success adds to them: where everybody is slow, as in an
overload, more attempts would make it worse (after gRPC's proposal A6, "Throttling Retry Attempts and Hedged RPCs")."""
CONNECT_S: Final = 5.0
"""For all attempts together, as the mesh takes for one dial. A guess."""
MAX_TRIES: Final = 5
"""Replicas that are tried for one connection. A guess."""
SILENCE_S: Final = 0.4
"""A replica that was sent something and has sent nothing for so long is asked whether it lives. A guess."""
PINGS: Final = 3
PING_S: Final = 0.5
"""If it has not answered so many questions in a row, each within so long, it is taken for dead. A guess: 2 s in all, and one
hiccup of our own does not count as three."""


class Stream(Protocol):
    """Bytes both ways: to an app of this pod, or by a call to another's agent."""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of it."""

    async def send_eof(self) -> None:
        """End our half."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Some bytes; none at the end."""
        ...


class Caller(Protocol):
    """What is needed of `magik_mesh.Node`."""

    id: PeerId

    def introduce(self, peer: BootstrapPeer) -> None:
        """See `Node.introduce`."""

    async def call(self, peer: PeerId, method: str, body: Any = None, *, timeout: float = 30.0) -> Any:
        """See `Node.call`."""

    def open_call(
        self, peer: PeerId, method: str, body: Any = None, *, timeout: float = 30.0
    ) -> AbstractAsyncContextManager[tuple[Any, Stream]]:
        """See `Node.open_call`."""
        ...


Carry = Callable[[Stream], Awaitable[None]]
"""What is done with the stream: until it returns, or raises `trio.BrokenResourceError`, which tears it down."""
OpenOwn = Callable[[Service, "Target"], AbstractAsyncContextManager[Stream]]
"""A stream to this pod's own app. Raises OSError."""


class Unreachable(Exception):
    """No replica took the connection; the text says why."""


@frozen
class Target:
    """What a client wants: a port of a Service, at the replica `part` (a pod's name, or ``leader``) if that is not empty."""

    namespace: str
    service: str
    port: int
    protocol: str = "TCP"
    part: str = ""

    def __str__(self) -> str:
        part = f"{self.part}." if self.part else ""
        return f"{part}{self.service}.{self.namespace}:{self.port}/{self.protocol}"


@define(eq=False)
class _Race:
    """The attempts for one connection, of which one wins."""

    scopes: list[trio.CancelScope] = field(factory=list)
    won: bool = False
    stir: trio.Event = field(factory=trio.Event)
    left: int = 0
    errors: list[str] = field(factory=list)

    def win(self, scope: trio.CancelScope) -> bool:
        """Whether this attempt is the first to succeed; the others are given up then."""
        if self.won:
            return False
        self.won = True
        for other in self.scopes:
            if other is not scope:
                other.cancel()
        self.stir.set()
        return True


@define(eq=False)
class _OpenWith:
    """What is open with a replica, and since when it lets us wait: inf while it does not."""

    scopes: set[trio.CancelScope] = field(factory=set)
    waits_since: float = float("inf")
    questioned: bool = False


@frozen(eq=False)
class _Heard:
    """A stream of which is known whether the other end lets us wait."""

    stream: Stream
    open_with: _OpenWith

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self.open_with.waits_since == float("inf"):
            self.open_with.waits_since = trio.current_time()
        await self.stream.send_all(data)

    async def send_eof(self) -> None:
        await self.stream.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self.stream.receive_some(max_bytes)
        self.open_with.waits_since = float("inf")
        return data


class Router:
    """Opens connections to services' replicas. `nursery` has the questions to those that do not answer."""

    def __init__(
        self,
        *,
        node: Caller,
        catalog: Catalog,
        services: Services,
        balancer: Balancer,
        wall: Callable[[], int],
        follow: Callable[[str], Awaitable[None]],
        identify: Callable[[PeerId], PodIdentity | None],
        open_own: OpenOwn,
        nursery: trio.Nursery,
    ) -> None:
        self._node = node
        self._catalog = catalog
        self._services = services
        self._balancer = balancer
        self._wall = wall
        self._follow = follow
        self._identify = identify
        self._open_own = open_own
        self._nursery = nursery
        self._open: dict[PeerId, _OpenWith] = {}
        self._hedges = HEDGES
        self._told: set[str] = set()
        self._log = structlog.get_logger(part="traffic")

    async def ready(self, service: Service, part: str = "") -> tuple[ServiceRecord, ...]:
        """The replicas that take traffic, once the table has been asked for them."""
        for workload_id in service.workloads:
            await self._follow(workload_id)
        now = self._wall()
        if part == LEADER:
            leaders = (self._catalog.leader(workload_id, now) for workload_id in service.workloads)
            return tuple(leader for leader in leaders if leader is not None)
        found = {
            record.peer_id: record
            for workload_id in service.workloads
            for record in self._catalog.ready(workload_id, now)
            if not part or record.pod_name == part
        }
        return tuple(found.values())

    async def connect(self, target: Target, carry: Carry) -> None:
        """Have `carry` called with a stream to a ready replica; returns when it does. Raises `Unreachable`."""
        race = _Race()
        with trio.move_on_after(CONNECT_S) as patience:
            service = await self._service(target)
            order = await self._order(service, target)
            async with trio.open_nursery() as nursery:
                for record in order[:MAX_TRIES]:
                    race.left += 1
                    nursery.start_soon(self._attempt, race, patience, record, service, target, carry)
                    await self._await_answer(race)
                    if race.won:
                        break
        if not race.won:
            why = "; ".join(race.errors) or f"no answer within {CONNECT_S:g} s"
            raise Unreachable(f"{target}: {why}")

    async def _service(self, target: Target) -> Service:
        try:
            service = await self._services.get(target.namespace, target.service)
        except OSError as error:
            raise Unreachable(f"{target}: {error}") from error
        if service is None or service.port(target.port, target.protocol) is None:
            raise Unreachable(f"{target}: no such service or port")
        return service

    async def _order(self, service: Service, target: Target) -> Sequence[ServiceRecord]:
        replicas = await self.ready(service, target.part)
        if not replicas:
            raise Unreachable(f"{target}: none of its replicas is ready")
        key = f"{target.namespace}/{target.service}"
        return self._balancer.order(key, self._rule(service), replicas, trio.current_time())

    def _rule(self, service: Service) -> Rule:
        try:
            return Rule.of(service)
        except ValueError as error:
            text = f"{service.namespace}/{service.name}: {error}"
            if text not in self._told and len(self._told) < 100:
                self._told.add(text)
                self._log.warning("the annotation is not followed; it is round-robin instead", error=text)
            return Rule(sticky=service.sticky)

    async def _await_answer(self, race: _Race) -> None:
        """Until an attempt has won, or all have failed, or it is time for the next."""
        while not race.won and race.left:
            due = trio.current_time() + HEDGE_S
            with trio.move_on_at(due) as scope:
                while not race.won and race.left:
                    race.stir = trio.Event()
                    await race.stir.wait()
            if scope.cancelled_caught and trio.current_time() < due + LAG_S and self._hedges >= 1:
                self._hedges -= 1
                return

    async def _attempt(
        self,
        race: _Race,
        patience: trio.CancelScope,
        record: ServiceRecord,
        service: Service,
        target: Target,
        carry: Carry,
    ) -> None:
        peer, began, won = record.peer_id, trio.current_time(), False
        with trio.CancelScope() as scope:
            race.scopes.append(scope)
            try:
                async with self._stream(record, service, target) as stream:
                    won = race.win(scope)
                    if won:
                        patience.deadline = float("inf")
                        await self._carry(peer, scope, f"{target.namespace}/{target.service}", stream, carry)
            except (MeshError, OSError, trio.BrokenResourceError) as error:
                if not won:
                    race.errors.append(f"{record.pod_name}: {error}")
                    self._failed(peer)
            except Exception:  # noqa: BLE001 -- a defect in how one connection is carried must not end the agent
                self._log.exception("connection-defect", target=str(target), pod=record.pod_name)
                race.errors.append(f"{record.pod_name}: see the agent's log")
            finally:
                race.left -= 1
                race.stir.set()
                if not won and trio.current_time() - began >= HEDGE_S:
                    self._failed(peer)
                    self._doubt(peer)

    async def _carry(
        self, peer: PeerId, scope: trio.CancelScope, key: str, stream: Stream, carry: Carry
    ) -> None:
        self._hedges = min(HEDGES, self._hedges + HEDGE_PART)
        self._balancer.opened(key, peer)
        open_with = self._open.setdefault(peer, _OpenWith())
        open_with.scopes.add(scope)
        try:
            await carry(_Heard(stream, open_with))
        finally:
            self._balancer.closed(peer)
            open_with.scopes.discard(scope)
            if not open_with.scopes:
                del self._open[peer]

    @asynccontextmanager
    async def _stream(self, record: ServiceRecord, service: Service, target: Target) -> AsyncIterator[Stream]:
        if record.peer_id == self._node.id:
            async with self._open_own(service, target) as own:
                yield own
            return
        self._introduce(record)
        body = {"namespace": target.namespace, "service": target.service, "port": target.port}
        method = METHODS[target.protocol]
        async with self._node.open_call(record.peer_id, method, body, timeout=CONNECT_S) as (_, stream):
            self._check(record)
            yield stream

    def _introduce(self, record: ServiceRecord) -> None:
        """Tell the node where the record says that the replica is; nothing happens if it is connected."""
        for address in record.addrs:
            host, port = parse_address(address)
            self._node.introduce(BootstrapPeer(record.peer_id, host, port))

    def _check(self, record: ServiceRecord) -> None:
        """That who answered is the replica that its record says. In an open fabric there is no knowing."""
        identity = self._identify(record.peer_id)
        if identity is None:
            return
        if str(identity.resource) != record.workload_id or identity.pod_name != record.pod_name:
            self._catalog.forget(record.peer_id, record.workload_id)
            raise OSError(f"its pass is that of {identity.resource}, pod {identity.pod_name}")

    def _failed(self, peer: PeerId) -> None:
        self._balancer.failed(peer, trio.current_time())

    # -- those that do not answer

    async def watch(self) -> None:
        """Ask those that let us wait whether they live, until cancelled."""
        while True:
            await trio.sleep(SILENCE_S)
            before = trio.current_time() - SILENCE_S
            for peer, open_with in self._open.items():
                if open_with.waits_since <= before:
                    self._doubt(peer)

    def _doubt(self, peer: PeerId) -> None:
        """Find out whether a replica lives, if anything of ours is open with it."""
        open_with = self._open.get(peer)
        if open_with is not None and not open_with.questioned and peer != self._node.id:
            open_with.questioned = True
            self._nursery.start_soon(self._question, peer, open_with)

    async def _question(self, peer: PeerId, open_with: _OpenWith) -> None:
        try:
            silent = 0
            while silent < PINGS:
                due = trio.current_time() + PING_S
                if await self._lives(peer):
                    open_with.waits_since = float("inf")
                    return
                silent += trio.current_time() < due + LAG_S
            self._log.warning("a replica does not answer: its connections are torn down", peer=str(peer))
            self._failed(peer)
            for scope in open_with.scopes:
                scope.cancel()
        finally:
            open_with.questioned = False

    async def _lives(self, peer: PeerId) -> bool:
        try:
            await self._node.call(peer, PING, timeout=PING_S)
        except RpcFailed:
            return True  # an answer of whatever kind
        except MeshError:
            return False
        return True
