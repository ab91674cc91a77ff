"""From a relayed path to a direct one: both ends send to where the other is seen, at the same time.

What an end sends opens its own NAT for what the other sends. A NAT that uses another port for each destination is not
where others see it, and the path stays relayed; it is tried again from time to time. An end sends its connection's
datagrams directly once a pong proved that the other hears it there.
"""

from __future__ import annotations

from collections.abc import Iterable

import trio
from attrs import define, field
from structlog.typing import FilteringBoundLogger

from magik_mesh import codes
from magik_mesh.addresses import Address, text_of
from magik_mesh.clock import Clock
from magik_mesh.config import NodeConfig
from magik_mesh.errors import CallRefused, MeshError
from magik_mesh.links import LinkTable
from magik_mesh.presence import Presence
from magik_mesh.relay_circuit import MAX_CANDIDATES, candidates, entry, is_candidate
from magik_mesh.relay_socket import Path, SwitchSocket
from magik_mesh.relay_wire import KEY_BYTES, PING, PunchKey, parse_ping
from magik_mesh.rpc_client import ask
from magik_mesh.rpc_server import Call
from magik_mesh.stats import Stats
from magik_mesh.streams import STREAM_ERRORS
from magik_mesh.survey import Survey
from magik_mesh.tls import Admitted
from magik_proto.errors import RemoteProtocolError
from magik_proto.identity import PeerId
from trio_quic import Connection

# Pauses after the rounds of pings (s): early ones meet a NAT that the other end has not opened yet. 3 s in all.
_ROUNDS = (0.05, 0.1, 0.2, 0.4, 0.75, 1.5)
_NONCE = 8
# Punches under way at once; more are refused. A guess.
MAX_PUNCHES = 64


@define(eq=False)
class _Punch:
    key: PunchKey
    peer: PeerId
    path: Path
    sent: set[bytes] = field(factory=set)
    confirmed: trio.Event = field(factory=trio.Event)


@define(eq=False)
class Puncher:
    """See the module."""

    config: NodeConfig
    clock: Clock
    links: LinkTable
    presence: Presence
    socket: SwitchSocket
    survey: Survey
    stats: Stats
    nursery: trio.Nursery
    log: FilteringBoundLogger
    _active: dict[bytes, _Punch] = field(factory=dict)

    async def upgrade(self, connection: Connection[Admitted], path: Path) -> None:
        """Try for a direct way, at once and from time to time, until there is one or the connection is over.

        Run by the end that dialled.
        """
        pause = self.config.relay.punch_first
        while path.relayed and not connection.closed.is_set():
            await self._try(connection, path)
            if not path.relayed:
                await self._hand_over(path)
                break
            with trio.move_on_after(pause):
                await connection.closed.wait()
            pause = min(2 * pause, self.config.relay.punch_cap)

    async def _try(self, connection: Connection[Admitted], path: Path) -> None:
        await self.survey.look()
        key = PunchKey(self.clock.random(KEY_BYTES), asked=True)
        body = {"key": key.key, "addrs": self._own()}
        try:
            stream = await connection.open_stream()
            answer = await ask(stream, codes.PUNCH, body, int(self.config.timings.dial * 1000))
            addresses = candidates(entry(answer, "addrs", list))
        except (MeshError, RemoteProtocolError, *STREAM_ERRORS) as error:
            self.log.debug("no punch", peer=str(connection.peer.peer), error=str(error))
            return
        await self._ping(_Punch(key, connection.peer.peer, path), addresses)

    async def _hand_over(self, path: Path) -> None:
        """Let the circuit go when the other end has changed over too, and what was under way has come."""
        while path.circuit and not path.used_directly:
            await path.changed.wait()
        await trio.sleep(self.config.relay.linger)
        path.scope.cancel()

    async def on_punch(self, call: Call) -> dict[str, list[str]]:
        """The other end wants a direct way: begin at once, and tell it where we are seen."""
        key = PunchKey(entry(call.body, "key", bytes, KEY_BYTES), asked=False)
        addresses = candidates(entry(call.body, "addrs", list))
        link = self.links.get(call.peer)
        path = None if link is None else self.socket.path_of(link.connection.remote_address)
        if path is None or not path.relayed:
            raise CallRefused(codes.RELAY_DIRECT, "no relay is between us")
        if len(self._active) >= MAX_PUNCHES or key.id in self._active:
            raise CallRefused(codes.BUSY, f"this punch, or {MAX_PUNCHES} others, are under way")
        punch = self._active[key.id] = _Punch(key, call.peer, path)
        self.nursery.start_soon(self._ping, punch, addresses)
        await self.survey.look()
        return {"addrs": self._own()}

    def _own(self) -> list[str]:
        found = [*self.survey.observed, *self.presence.addresses.current()]
        return [text_of(address) for address in dict.fromkeys(found) if is_candidate(address)][
            :MAX_CANDIDATES
        ]

    async def _ping(self, punch: _Punch, addresses: Iterable[Address]) -> None:
        """Ping all addresses until one answers; answer the other end's pings for as long as it may send any."""
        self._active[punch.key.id] = punch
        try:
            for pause in _ROUNDS:
                if not punch.confirmed.is_set():
                    self._round(punch, addresses)
                await trio.sleep(pause)
        finally:
            self._active.pop(punch.key.id, None)

    def _round(self, punch: _Punch, addresses: Iterable[Address]) -> None:
        nonce = self.clock.random(_NONCE)
        punch.sent.add(nonce)
        for address in addresses:
            self.socket.send_aside(punch.key.ping(nonce), address)

    def hear(self, data: bytes, source: Address) -> None:
        """A side datagram that is no probe: what is not proven is not answered."""
        ping = parse_ping(data)
        punch = None if ping is None else self._active.get(ping.id)
        if ping is None or punch is None or not punch.key.proves(ping):
            return
        if ping.kind == PING:
            self.socket.hear_from(punch.path, source)
            self.socket.send_aside(punch.key.pong(ping.nonce), source)
            if not punch.confirmed.is_set():
                self._round(punch, [source])  # a NAT may have given it a port that nobody had seen
        elif ping.nonce in punch.sent and not punch.confirmed.is_set():
            self._confirm(punch, source)

    def _confirm(self, punch: _Punch, address: Address) -> None:
        punch.confirmed.set()
        self.socket.go_direct(punch.path, address)
        self.stats.paths_punched += 1
        self.log.info("path is direct", peer=str(punch.peer), address=text_of(address))
