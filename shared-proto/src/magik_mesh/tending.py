"""Carries the policy of `magik_mesh.neighbours` out: who is dialled, who may go, who may be back."""

from __future__ import annotations

import trio
from attrs import define, field

from magik_mesh.addresses import is_dialable, parse
from magik_mesh.briefs import Briefs
from magik_mesh.clock import Clock, unit_random
from magik_mesh.config import NodeConfig
from magik_mesh.connections import Connections
from magik_mesh.dht import HashTable
from magik_mesh.dialer import Dialer
from magik_mesh.neighbours import Neighbours
from magik_proto.identity import PeerId
from magik_proto.kademlia import Contact


@define(eq=False)
class Tending:
    """From time to time: is the fabric large, whom does it take, who may go, who may be back?"""

    config: NodeConfig
    clock: Clock
    connections: Connections
    dialer: Dialer
    briefs: Briefs
    table: HashTable
    neighbours: Neighbours = field(init=False)

    def __attrs_post_init__(self) -> None:
        maximum = self.config.max_connections
        self.neighbours = Neighbours(maximum, lambda n: int(unit_random(self.clock) * n))

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await trio.sleep(self.config.timings.tend * (0.75 + unit_random(self.clock) / 2))
            self.briefs.tidy()
            self.tend()
            self.dialer.retry_lost()
            self.dialer.wake()

    def tend(self) -> None:
        """Think it over, and let go what is not needed."""
        connections = self.connections
        # By their records, or by the hash table: in a large fabric few records come by themselves.
        known = max(connections.presence.known_alive(), len(self.table.machine.table))
        self.neighbours.observe(known)
        connections.presence.large = self.neighbours.large
        chosen = self._choose()
        connections.plan.narrow(chosen, self.clock.now())
        connections.links.kept = chosen or frozenset()
        if chosen is not None:
            self._let_go(chosen)

    def _choose(self) -> frozenset[PeerId] | None:
        if not self.neighbours.large:
            return None
        links = self.connections.links
        near = self.table.nearest(self.neighbours.close)
        sample = [*self.table.sampled, *self.table.machine.table.all()]
        contacts = {contact.peer: contact for contact in (*sample, *near)}
        chosen = self.neighbours.choose([c.peer for c in near], [c.peer for c in sample], links.peers())
        assert chosen is not None
        for peer in sorted(chosen - set(links.peers())):
            if peer in contacts:
                self._tell(contacts[peer])
        if len(links) < self.neighbours.close:
            chosen |= {peer.peer for peer in self.config.bootstrap}
        return chosen

    def _tell(self, contact: Contact) -> None:
        addresses = [a for a in map(parse, contact.addrs) if is_dialable(a)]
        directory = self.connections.presence.directory
        directory.tell(contact.peer, addresses, self.clock.now(), self.connections.links.peers())

    def _let_go(self, chosen: frozenset[PeerId]) -> None:
        """Connections that this side dialled, for a call or an earlier choice, and that nobody uses."""
        before = self.clock.now() - self.config.timings.spare
        for link in self.connections.links.all():
            idle = not link.busy and link.last_used < before
            if idle and link.connection.is_client and link.peer not in chosen:
                self.connections.let_go(link)
