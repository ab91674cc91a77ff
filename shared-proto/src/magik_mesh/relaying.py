"""Reaching machines that cannot be reached: the parts of a node that have to do with relays, joined."""

from __future__ import annotations

from collections.abc import Mapping

import trio
from attrs import define, field
from structlog.typing import FilteringBoundLogger

from magik_mesh import codes
from magik_mesh.addresses import Address
from magik_mesh.clock import Clock
from magik_mesh.config import NodeConfig
from magik_mesh.links import LinkTable
from magik_mesh.presence import Presence
from magik_mesh.punching import Puncher
from magik_mesh.reach import Reach
from magik_mesh.relay_circuit import Calls
from magik_mesh.relay_client import RelayClient
from magik_mesh.relay_server import RelayServer
from magik_mesh.relay_socket import Path, SwitchSocket
from magik_mesh.roster import PeerUp, Roster
from magik_mesh.rpc_server import Handler
from magik_mesh.stats import Stats
from magik_mesh.survey import SideSocket, Survey
from magik_mesh.tls import Admitted
from trio_quic import Connection


@define(eq=False)
class Relaying:
    """One per node; `socket` is the one below its endpoint. Without a `side_socket` it takes no part in surveys."""

    config: NodeConfig
    clock: Clock
    calls: Calls
    links: LinkTable
    presence: Presence
    roster: Roster
    socket: SwitchSocket
    side_socket: SideSocket | None
    stats: Stats
    nursery: trio.Nursery
    log: FilteringBoundLogger
    survey: Survey = field(init=False)
    server: RelayServer = field(init=False)
    client: RelayClient = field(init=False)
    _puncher: Puncher = field(init=False)

    def __attrs_post_init__(self) -> None:
        config, clock, calls, links, socket = self.config, self.clock, self.calls, self.links, self.socket
        presence, stats, nursery, log = self.presence, self.stats, self.nursery, self.log
        survey = Survey(config, clock, calls, links, socket, self.side_socket, nursery, log)
        self.survey = survey
        self.server = RelayServer(config, calls, links, socket, lambda: survey.reach, stats, log)
        self.client = RelayClient(config, clock, calls, links, presence, socket, survey, nursery, log)
        self._puncher = Puncher(config, clock, links, presence, socket, survey, stats, nursery, log)
        socket.on_side = self._hear
        socket.on_over = self._over

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """The calls that are served."""
        return {
            codes.PROBE: self.survey.on_probe,
            codes.RESERVE: self.server.on_reserve,
            codes.OPEN: self.server.on_open,
            codes.ACCEPT: self.client.on_accept,
            codes.PUNCH: self._puncher.on_punch,
        }

    @property
    def reach(self) -> Reach:
        """Whether this machine can be reached."""
        return self.survey.reach

    async def run(self) -> None:
        """All tasks, until cancelled."""
        async with trio.open_nursery() as nursery:
            if self.side_socket is not None:
                nursery.start_soon(self.survey.run)
            nursery.start_soon(self.client.run)
            nursery.start_soon(self._watch)

    async def _watch(self) -> None:
        while True:
            async for event in self.roster.subscribe():
                if isinstance(event, PeerUp):
                    self.survey.peer_up()
            await trio.lowlevel.checkpoint()

    def _hear(self, data: bytes, source: Address) -> None:
        if not self.survey.hear(data):
            self._puncher.hear(data, source)

    def _over(self, path: Path) -> None:
        """Do not wait for the idle time-out of a connection that has lost its circuit: look for another way at once."""
        for link in self.links.all():
            if link.connection.remote_address == path.address:
                link.connection.close_now(codes.CLOSE_OK, "its circuit is gone")

    def greeted(self, connection: Connection[Admitted]) -> None:
        """A connection that we dialled is in use: if it is relayed, look for a direct way."""
        path = self.socket.path_of(connection.remote_address)
        if path is not None:
            self.nursery.start_soon(self._puncher.upgrade, connection, path)
