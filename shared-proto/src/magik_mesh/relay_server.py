"""The relay's side: reservations held, circuits joined, quotas kept. What it carries is ciphertext to it."""

from __future__ import annotations

from collections.abc import Callable

import trio
from attrs import define, field
from structlog.typing import FilteringBoundLogger

from magik_mesh import codes
from magik_mesh.config import NodeConfig
from magik_mesh.errors import CallRefused, PeerUnreachable, RpcFailed, RpcTimeout
from magik_mesh.links import LinkTable
from magik_mesh.reach import Reach
from magik_mesh.relay_circuit import Calls, peer_in
from magik_mesh.relay_desk import Bucket, Circuit, Desk
from magik_mesh.relay_socket import SwitchSocket
from magik_mesh.rpc_server import Call
from magik_mesh.stats import Stats
from magik_mesh.streams import STREAM_ERRORS
from magik_proto.identity import PeerId

# Bytes taken from one end before they are handed to the other: a guess between wake-ups and delay.
_CHUNK = 16 << 10


@define(eq=False)
class RelayServer:
    """Serves `RESERVE` and `OPEN`."""

    config: NodeConfig
    calls: Calls
    links: LinkTable
    socket: SwitchSocket
    reach: Callable[[], Reach]
    stats: Stats
    log: FilteringBoundLogger
    desk: Desk = field(init=False)
    _all: Bucket = field(init=False)

    def __attrs_post_init__(self) -> None:
        limits = self.config.relay
        self.desk = Desk(self.config.identity.peer_id, limits)
        self._all = Bucket(limits.total_rate, limits.burst)

    async def on_reserve(self, call: Call) -> None:
        """Hold a reservation until its machine, or the way to it, is gone."""
        self._check(call.peer)
        self.desk.reserve(call.peer)
        try:
            await call.reply()
            while await call.stream.receive_some():
                pass
        finally:
            self.desk.give_back(call.peer)

    async def on_open(self, call: Call) -> None:
        """Join the caller with the machine that it names, for as long as both want and the quotas allow."""
        target = peer_in(call.body)
        self._check(call.peer)
        circuit = self.desk.open(call.peer, target, trio.current_time())
        try:
            await self._join(call, circuit)
        finally:
            self.desk.close(circuit)
            self.log.debug("circuit closed", caller=str(call.peer), target=str(target), bytes=circuit.carried)

    def _check(self, peer: PeerId) -> None:
        """Refuse where we do not relay, and for whom: only those who are here without another's help."""
        link = self.links.get(peer)
        if not self.config.relays_for_others or self.reach() is Reach.CLOSED:
            raise CallRefused(codes.RELAY_OFF, "this machine does not relay")
        if self.reach() is Reach.UNKNOWN:
            raise CallRefused(codes.RELAY_UNKNOWN, "this machine does not know yet whether it can be reached")
        if link is None or self.socket.real(link.connection.remote_address) is None:
            raise CallRefused(codes.RELAY_CHAINED, "relays are for those who reach them by themselves")

    async def _join(self, call: Call, circuit: Circuit) -> None:
        body = {"peer": circuit.caller.raw}
        seconds = self.config.timings.dial
        if circuit.target not in self.links:
            raise CallRefused(codes.RELAY_TARGET, f"{circuit.target} is not connected here")
        try:
            async with self.calls.open_call(circuit.target, codes.ACCEPT, body, timeout=seconds) as (
                _,
                other,
            ):
                await call.reply()
                self.stats.circuits_relayed += 1
                try:
                    await self._pump(circuit, call.stream, other)
                finally:
                    self.stats.circuits_ended += 1
        except RpcFailed as error:
            raise CallRefused(error.code, error.message) from error
        except (PeerUnreachable, RpcTimeout) as error:
            raise CallRefused(codes.RELAY_TARGET, str(error)) from error

    async def _pump(
        self, circuit: Circuit, one: trio.abc.HalfCloseableStream, other: trio.abc.HalfCloseableStream
    ) -> None:
        """Carry both ways until one end has enough, or the circuit is over."""
        with trio.CancelScope(deadline=circuit.ends_at) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._copy, circuit, one, other, scope)
                await self._copy(circuit, other, one, scope)

    async def _copy(
        self,
        circuit: Circuit,
        source: trio.abc.HalfCloseableStream,
        sink: trio.abc.HalfCloseableStream,
        scope: trio.CancelScope,
    ) -> None:
        try:
            while chunk := await source.receive_some(_CHUNK):
                now = trio.current_time()
                wait = circuit.carry(len(chunk), now)
                if wait is None:
                    self.log.info(
                        "circuit has carried its all", caller=str(circuit.caller), bytes=circuit.carried
                    )
                    break
                scope.deadline = circuit.ends_at
                await sink.send_all(chunk)
                self.stats.bytes_relayed += len(chunk)
                await trio.sleep(max(wait, self._all.take(len(chunk), now)))
        except STREAM_ERRORS:
            pass
        scope.cancel()
