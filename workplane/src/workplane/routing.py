"""From a service's name to a stream to one of its replicas: chosen, called, hedged, and its identity checked.

An attempt that has no answer within `HEDGE_S` does not hold the connection up: the next replica is tried beside it, and the
first that answers is taken. That is safe because nothing of the app is sent before a replica has said that its app took the
connection. Whoever did not answer is avoided for a while, and asked whether it lives (`lifesigns`): if it does not, what was
open with it is torn down long before QUIC's own time-outs would say so.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
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
from workplane.lifesigns import Asker, LifeSigns, Stream
from workplane.logs import correlation_id
from workplane.services import Service, Services
from workplane.vigil import LAG_S

TCP: Final = "/workplane/tcp/1.0.0"
UDP: Final = "/workplane/udp/1.0.0"
METHODS: Final[Mapping[str, str]] = {"TCP": TCP, "UDP": UDP}
LEADER: Final = "leader"
BUSY: Final = "busy"
"""The code with which a replica refuses what is too many."""

HEDGE_S: Final = 0.3
"""Without an answer for so long, the next replica is tried as well. A guess: several round trips around the earth, few
handshakes."""
HEDGES: Final = 20.0
HEDGE_PART: Final = 0.1
"""Attempts beside others that may be made at once, and what each success adds to them: where everybody is slow, as in an
overload, more attempts would make it worse (after gRPC's proposal A6, "Throttling Retry Attempts and Hedged RPCs")."""
CONNECT_S: Final = 5.0
"""For all attempts together, as the mesh takes for one dial. A guess."""
MAX_LONGER: Final = 4
"""By so much at most that is longer while this agent, or all that it sees, is slow (`LocalHealth`): a late answer is of more
use than none. A guess: clients wait for a connection for longer than 20 s."""
BUSY_S: Final = 0.2
"""After all replicas have said that they carry as much as they will, they are asked again. A guess."""
MAX_TRIES: Final = 5
"""Replicas that are tried for one connection. A guess."""


class Caller(Asker, Protocol):
    """What is needed of `magik_mesh.Node`."""

    def introduce(self, peer: BootstrapPeer) -> None:
        """See `Node.introduce`."""

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
    """The attempts for one connection, of which one wins. `limit` is of the task that would end them."""

    limit: trio.CancelScope
    scopes: list[trio.CancelScope] = field(factory=list)
    won: bool = False
    stir: trio.Event = field(factory=trio.Event)
    left: int = 0
    errors: list[str] = field(factory=list)
    busy: bool = False  # a replica said that it carries as much as it will

    def win(self, scope: trio.CancelScope) -> bool:
        """Whether this attempt is the first to succeed; the others are given up then."""
        if self.won:
            return False
        self.won = True
        self.limit.cancel()
        for other in self.scopes:
            if other is not scope:
                other.cancel()
        self.stir.set()
        return True


class Router:
    """Opens connections to services' replicas. `nursery` has the questions to those who do not answer; run `signs.watch`."""

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
        self.signs = LifeSigns(node, self._failed, nursery)
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
            for record in self._of(service, workload_id, now)
            if not part or record.pod_name == part
        }
        return tuple(found.values())

    def _of(self, service: Service, workload_id: str, now: int) -> Iterable[ServiceRecord]:
        """Those of a workload's replicas that belong to a Service."""
        found = (self._catalog.replicas if service.unready else self._catalog.hoped)(workload_id, now)
        machine = self._balancer.machine
        return (record for record in found if not service.local or record.caps.get("machine") == machine)

    async def connect(self, target: Target, carry: Carry) -> None:
        """Have `carry` called with a stream to a ready replica; returns when it does. Raises `Unreachable`."""
        limit = trio.CancelScope()
        race = _Race(limit)
        none: Unreachable | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._limit, limit, nursery.cancel_scope)
            try:
                while not await self._try(race, target, carry) and race.busy:
                    await trio.sleep(BUSY_S)
                    race = _Race(limit)
            except Unreachable as error:
                none = error
            nursery.cancel_scope.cancel()
        if none is not None:
            raise none
        if not race.won:
            why = "; ".join(race.errors) or "no answer in time"
            raise Unreachable(f"{target}: {why}")

    async def _limit(self, limit: trio.CancelScope, attempts: trio.CancelScope) -> None:
        """End what has won nothing in time, which is longer while we are slow; `limit` is cancelled when something has."""
        began = now = trio.current_time()
        with limit:
            while (due := began + CONNECT_S * min(MAX_LONGER, self.signs.health.multiplier)) > now:
                await trio.sleep_until(due)
                now = trio.current_time()
            attempts.cancel()

    async def _try(self, race: _Race, target: Target, carry: Carry) -> bool:
        """Each replica once; whether one took the connection, which is over then."""
        service = await self._service(target)
        order = await self._order(service, target)
        async with trio.open_nursery() as nursery:
            for record in order[:MAX_TRIES]:
                race.left += 1
                nursery.start_soon(self._attempt, race, record, service, target, carry)
                await self._await_answer(race)
                if race.won:
                    break
        return race.won

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
            return Rule(sticky_s=service.sticky_s)

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
                        await self._carry(peer, scope, f"{target.namespace}/{target.service}", stream, carry)
            except (MeshError, OSError, trio.BrokenResourceError) as error:
                if not won:
                    race.errors.append(f"{record.pod_name}: {error}")
                    if isinstance(error, RpcFailed) and error.code == BUSY:
                        race.busy = True  # a sign of life, and nothing to avoid it for later
                    else:
                        self._failed(peer)
            except Exception:  # noqa: BLE001 -- a defect in how one connection is carried must not end the agent
                self._log.exception("connection-defect", target=str(target), pod=record.pod_name)
                race.errors.append(f"{record.pod_name}: see the agent's log")
            finally:
                race.left -= 1
                race.stir.set()
                if not won and trio.current_time() - began >= HEDGE_S:
                    self._failed(peer)
                    self.signs.doubt(peer)

    async def _carry(
        self, peer: PeerId, scope: trio.CancelScope, key: str, stream: Stream, carry: Carry
    ) -> None:
        self._hedges = min(HEDGES, self._hedges + HEDGE_PART)
        self._balancer.opened(key, peer, trio.current_time())
        try:
            with self.signs.open(peer, scope, stream) as heard:
                await carry(heard)
        finally:
            self._balancer.closed(peer)

    @asynccontextmanager
    async def _stream(self, record: ServiceRecord, service: Service, target: Target) -> AsyncIterator[Stream]:
        if record.peer_id == self._node.id:
            async with self._open_own(service, target) as own:
                yield own
            return
        self._introduce(record)
        body: dict[str, Any] = {
            "namespace": target.namespace,
            "service": target.service,
            "port": target.port,
            "id": correlation_id(),
        }
        method = METHODS[target.protocol]
        async with self._node.open_call(record.peer_id, method, body, timeout=CONNECT_S * MAX_LONGER) as (
            _,
            stream,
        ):
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
