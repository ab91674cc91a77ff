"""The ends' side of a relay: an unreachable machine keeps relays and accepts circuits, others open them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable

import trio
from attrs import define, field
from structlog.typing import FilteringBoundLogger

from magik_mesh import codes
from magik_mesh.addresses import Address
from magik_mesh.clock import Bits, Clock
from magik_mesh.config import NodeConfig
from magik_mesh.errors import CallRefused, MeshError, PeerUnreachable, RpcFailed, WrongIdentity
from magik_mesh.links import LinkTable
from magik_mesh.presence import Presence
from magik_mesh.reach import Reach
from magik_mesh.relay_circuit import Calls, carry, peer_in
from magik_mesh.relay_socket import Path, PathsFull, SwitchSocket
from magik_mesh.rpc_server import Call
from magik_mesh.streams import STREAM_ERRORS
from magik_mesh.survey import Survey
from magik_mesh.tls import Admitted
from magik_proto.identity import PeerId
from magik_proto.machine import shuffled
from trio_quic import Connection

# Seconds for which a circuit outlives its connection, so that the farewell still gets through.
_FAREWELL = 0.5
# Connections for a call through a relay that is not ours: with it, and with the callee.
_FOR_A_CALL = 2
# A relay that answers so may well relay a little later.
_SOON = frozenset({codes.RELAY_UNKNOWN, codes.BUSY})


@define(eq=False)
class RelayClient:
    """See the module. Everything runs in `nursery`, which the node owns."""

    config: NodeConfig
    clock: Clock
    calls: Calls
    links: LinkTable
    presence: Presence
    socket: SwitchSocket
    survey: Survey
    nursery: trio.Nursery
    log: FilteringBoundLogger
    _held: dict[PeerId, bool] = field(factory=dict)  # relays: whether they have agreed
    _accepted: Counter[PeerId] = field(factory=Counter)  # circuits to here, by who is at the other end
    _not_before: dict[PeerId, float] = field(factory=dict)
    _changed: trio.Event = field(factory=trio.Event)

    # -- opening circuits

    def relays_of(self, peer: PeerId) -> tuple[PeerId, ...]:
        """By whom `peer` can be reached, as it says itself."""
        known = self.presence.directory.get(peer)
        relays = None if known is None or known.record is None else known.record.relays
        own = self.config.identity.peer_id
        return tuple(relay for relay in dict.fromkeys(relays or ()) if relay not in (own, peer))

    async def connect(
        self, peer: PeerId, relay: PeerId, dial: Callable[[Address], Awaitable[Connection[Admitted]]]
    ) -> Connection[Admitted]:
        """A connection with `peer`, made by `dial` at the virtual address of a circuit through `relay`.

        Raises `PeerUnreachable`, and what `dial` raises.
        """
        if relay not in self.links and self.relays_of(relay):
            raise PeerUnreachable(peer, f"its relay {relay} needs a relay itself")
        try:
            path: Path = await self.nursery.start(self._circuit, peer, relay)
        except (MeshError, PathsFull, *STREAM_ERRORS) as error:
            raise PeerUnreachable(peer, f"no circuit through {relay}: {error}") from error
        connection = None
        try:
            connection = await dial(path.address)
        except WrongIdentity as error:
            raise PeerUnreachable(peer, f"the relay {relay} led to {error.actual}") from error
        finally:
            if connection is None:
                path.scope.cancel()
        self.nursery.start_soon(self._end_with, connection, path)
        return connection

    async def _circuit(
        self, peer: PeerId, relay: PeerId, *, task_status: trio.TaskStatus[Path] = trio.TASK_STATUS_IGNORED
    ) -> None:
        path: Path | None = None
        seconds = self.config.timings.dial
        try:
            async with self.calls.open_call(relay, codes.OPEN, {"peer": peer.raw}, timeout=seconds) as (
                _,
                stream,
            ):
                path = self.socket.open_path()
                task_status.started(path)
                await carry(self.socket, path, stream)
        except (MeshError, *STREAM_ERRORS) as error:
            if path is None:
                raise
            self.log.debug("circuit broke", peer=str(peer), relay=str(relay), error=str(error))

    async def _end_with(self, connection: Connection[Admitted], path: Path) -> None:
        await connection.closed.wait()
        await trio.sleep(_FAREWELL)
        path.scope.cancel()

    # -- being reached

    async def on_accept(self, call: Call) -> None:
        """A relay of ours brings somebody, who proves who it is inside the circuit."""
        caller = peer_in(call.body)
        if not self._held.get(call.peer):
            raise CallRefused(codes.RELAY_TARGET, "that relay was not asked to relay")
        if self._accepted[caller] >= self.config.relay.circuits_per_pair:
            raise CallRefused(
                codes.RELAY_QUOTA, f"{caller} has {self._accepted[caller]} circuits to here already"
            )
        try:
            path = self.socket.open_path()
        except PathsFull as error:
            raise CallRefused(codes.RELAY_FULL, str(error)) from error
        self._accepted[caller] += 1
        try:
            await call.reply()
            await carry(self.socket, path, call.stream)
        finally:
            self.socket.end_circuit(path)
            self._accepted[caller] -= 1
            if not self._accepted[caller]:
                del self._accepted[caller]

    @property
    def kept(self) -> tuple[PeerId, ...]:
        """The relays that have agreed."""
        return tuple(sorted(relay for relay, agreed in self._held.items() if agreed))

    async def run(self) -> None:
        """Keep relays while this machine cannot be reached without, until cancelled."""
        while True:
            changed = self.survey.changed
            async with trio.open_nursery() as nursery:
                if self.survey.reach is Reach.CLOSED:
                    nursery.start_soon(self._keep_some)
                await changed.wait()
                nursery.cancel_scope.cancel()

    async def _keep_some(self) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                self._changed = trio.Event()
                for relay in self._candidates()[: max(0, self._wanted - len(self._held))]:
                    self._held[relay] = False
                    nursery.start_soon(self._hold, relay)
                with trio.move_on_after(self.config.relay.retry):
                    await self._changed.wait()

    @property
    def _wanted(self) -> int:
        """How many relays to keep: each holds a connection for good, and calls need some."""
        return max(1, min(self.config.relay.kept, self.config.max_connections - _FOR_A_CALL))

    def _candidates(self) -> list[PeerId]:
        """Whom to ask, in a random order: those whom we reach by ourselves and who did not refuse just now."""
        now = self.clock.now()
        self._not_before = {peer: at for peer, at in self._not_before.items() if at > now}
        near = [
            link.peer
            for link in self.links.all()
            if self.socket.real(link.connection.remote_address) is not None
            and link.peer not in self._held
            and link.peer not in self._not_before
        ]
        return shuffled(Bits(self.clock), near)

    async def _hold(self, relay: PeerId) -> None:
        """Keep a reservation until the relay ends it."""
        limits = self.config.relay
        pause = limits.retry
        try:
            async with self.calls.open_call(relay, codes.RESERVE, timeout=self.config.timings.dial) as (
                _,
                stream,
            ):
                self._held[relay] = True
                self._publish()
                self.log.info("relay found", relay=str(relay))
                while await stream.receive_some():
                    pass
        except RpcFailed as error:
            pause = limits.retry if error.code in _SOON else limits.refused
            self.log.debug("no relay", relay=str(relay), error=str(error))
        except (MeshError, *STREAM_ERRORS) as error:
            self.log.debug("relay lost", relay=str(relay), error=str(error))
        finally:
            self._not_before[relay] = self.clock.now() + pause
            if self._held.pop(relay, False):
                self._publish()
            self._changed.set()

    def _publish(self) -> None:
        self.presence.set_relays(self.kept)
