"""Finding out whether this machine can be reached, and where others see it: asks peers to probe, and probes for them.

A prober sends to where the asker's connection comes from and nowhere else, three times 23 bytes: nobody can have a
third machine probed.
"""

from __future__ import annotations

from collections.abc import Callable

import trio
from attrs import define, field
from structlog.typing import FilteringBoundLogger

from magik_mesh import codes
from magik_mesh.addresses import Address, parse, plain_host, text_of
from magik_mesh.clock import Bits, Clock, unit_random
from magik_mesh.config import NodeConfig
from magik_mesh.errors import CallRefused, MeshError
from magik_mesh.links import LinkTable
from magik_mesh.reach import ProbeResult, Reach, judge
from magik_mesh.relay_circuit import Calls, entry
from magik_mesh.relay_socket import SwitchSocket
from magik_mesh.relay_wire import NONCE_BYTES, probe, probed_nonce
from magik_mesh.rpc_server import Call
from magik_proto.errors import RemoteProtocolError
from magik_proto.identity import PeerId
from magik_proto.machine import shuffled
from trio_quic import DatagramSocket

# A new socket on a port that nobody has sent anything to.
SideSocket = Callable[[], DatagramSocket]

# Pauses before the probes (s): one may be lost, and two that follow at once.
_PROBES = (0.0, 0.1, 0.2)


@define(eq=False)
class Survey:
    """What this node knows of its own reach. `changed` is replaced whenever the verdict is another one."""

    config: NodeConfig
    clock: Clock
    calls: Calls
    links: LinkTable
    socket: SwitchSocket
    side_socket: SideSocket | None
    nursery: trio.Nursery
    log: FilteringBoundLogger
    reach: Reach = Reach.UNKNOWN
    changed: trio.Event = field(factory=trio.Event)
    observed: tuple[Address, ...] = ()  # where others see us, the latest first
    _answers: int = 0
    _news: trio.Event = field(factory=trio.Event)
    _awaited: dict[bytes, trio.Event] = field(factory=dict)

    # -- asking

    def peer_up(self) -> None:
        """There is a new connection, so perhaps somebody more to ask."""
        self._news.set()

    async def run(self) -> None:
        """Survey when there is news, and from time to time, until cancelled."""
        while True:
            self._news = trio.Event()
            await self._survey()
            limits = self.config.relay
            with trio.move_on_after(limits.survey * (0.75 + unit_random(self.clock) / 2)):
                await self._news.wait()
                if self._answers >= limits.probers:
                    await trio.sleep_forever()
                await trio.sleep(limits.settle)

    async def _survey(self) -> None:
        results: list[ProbeResult] = []
        async with trio.open_nursery() as nursery:
            for peer in self._probers():
                nursery.start_soon(self._ask, peer, results)
        self._answers = len(results)
        # An operator that says where the machine is reached knows better than probes.
        verdict = Reach.OPEN if self.config.advertise else judge(results)
        if verdict not in (self.reach, Reach.UNKNOWN):
            self.log.info(
                "reach", verdict=verdict.value, seen=[text_of(address) for address in self.observed]
            )
            self.reach = verdict
            self.changed.set()
            self.changed = trio.Event()

    def _probers(self) -> list[PeerId]:
        links = self.links.all()
        near = [link.peer for link in links if self.socket.real(link.connection.remote_address) is not None]
        return shuffled(Bits(self.clock), near)[: self.config.relay.probers]

    async def _ask(self, peer: PeerId, results: list[ProbeResult]) -> None:
        nonce = self.clock.random(NONCE_BYTES)
        arrived = self._awaited[nonce] = trio.Event()
        try:
            seen = await self._ask_where(peer, nonce)
            if seen is not None:
                with trio.move_on_after(self.config.relay.probe_wait):
                    await arrived.wait()
                results.append(ProbeResult(seen, arrived.is_set()))
        finally:
            del self._awaited[nonce]

    async def _ask_where(self, peer: PeerId, nonce: bytes) -> Address | None:
        """Have `peer` probe, and say where it sees us; None if it does not."""
        body = {"nonce": nonce}
        try:
            answer = await self.calls.call(peer, codes.PROBE, body, timeout=self.config.timings.dial)
            seen = parse(entry(answer, "seen", str))
        except (MeshError, RemoteProtocolError) as error:
            self.log.debug("no probe", peer=str(peer), error=str(error))
            return None
        others = [other for other in self.observed if other != seen]
        self.observed = (seen, *others)[: self.config.relay.probers]
        return seen

    async def look(self) -> None:
        """Find out where this machine is seen now, of two peers: a NAT may have changed its mind."""
        with trio.move_on_after(self.config.relay.probe_wait):
            async with trio.open_nursery() as nursery:
                for peer in self._probers()[:2]:
                    nursery.start_soon(self._ask_where, peer, self.clock.random(NONCE_BYTES))

    def hear(self, data: bytes) -> bool:
        """A side datagram has come: whether it is a probe."""
        nonce = probed_nonce(data)
        if nonce is None:
            return False
        if (arrived := self._awaited.get(nonce)) is not None:
            arrived.set()
        return True

    # -- probing for others

    async def on_probe(self, call: Call) -> dict[str, str]:
        """Probe the caller, and tell it where it is seen."""
        nonce = entry(call.body, "nonce", bytes, NONCE_BYTES)
        link = self.links.get(call.peer)
        address = None if link is None else self.socket.real(link.connection.remote_address)
        if address is None or self.side_socket is None:
            raise CallRefused(codes.RELAY_OFF, "this machine cannot probe")
        self.nursery.start_soon(self._probe, self.side_socket, nonce, address)
        return {"seen": text_of((plain_host(address[0]), address[1]))}

    async def _probe(self, open_socket: SideSocket, nonce: bytes, address: Address) -> None:
        try:
            socket = open_socket()
        except OSError as error:
            self.log.warning("no port to probe from", error=str(error))
            return
        try:
            for pause in _PROBES:
                await trio.sleep(pause)
                socket.send([(probe(nonce), address)])
        finally:
            socket.close()
