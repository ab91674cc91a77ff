"""Connections in use: at most one per peer."""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

from attrs import define, field

from magik_mesh.addresses import Address, text_of
from magik_mesh.arbitration import Standing
from magik_mesh.pubsub import Outbox
from magik_mesh.rpc_server import Caller, Read, Slots
from magik_mesh.tls import Admitted
from magik_proto.identity import PeerId
from trio_quic import Connection, Stream


@define(eq=False)
class Link:
    """One connection in use, and what belongs to it."""

    admitted: Admitted
    connection: Connection[Admitted]
    standing: Standing
    outbox: Outbox
    slots: Slots
    since: float  # monotonic seconds
    since_ms: int  # ms since the epoch
    last_used: float
    calls: int = 0  # calls of ours that are under way
    ending: str | None = None  # why this side closed it, if it did
    read: dict[Stream, Read] = field(factory=dict)  # calls of the peer that wait for a task
    _caller: Caller | None = None  # as of the following
    _called_from: tuple[Admitted, Address] | None = None

    @property
    def peer(self) -> PeerId:
        """Who is at the other end."""
        return self.admitted.peer

    @property
    def caller(self) -> Caller:
        """The peer as handlers see it."""
        address = self.connection.remote_address or ("0.0.0.0", 1)
        if self._caller is None or self._called_from != (self.admitted, address):
            self._caller = Caller(self.admitted.peer, self.admitted.roles, text_of(address))
            self._called_from = self.admitted, address
        return self._caller

    @property
    def busy(self) -> bool:
        """Whether a call is under way on it, either way."""
        return self.calls > 0 or self.slots.used > 0

    @property
    def useful(self) -> bool:
        """Whether it has ever been the first to bring a gossip message that is good."""
        return self.outbox.useful

    def close(self, code: int, reason: str) -> None:
        """Close from this side; waits for nothing."""
        self.ending = reason
        self.connection.close_now(code, reason)


class Occupant(Protocol):
    """What the policy looks at of a connection."""

    since: float
    last_used: float

    @property
    def peer(self) -> PeerId: ...

    @property
    def busy(self) -> bool: ...

    @property
    def useful(self) -> bool: ...


LinkT = TypeVar("LinkT", bound=Occupant)


@define
class Occupants(Generic[LinkT]):
    """The connections in use, under the policy of `max_connections`.

    - Own dials go on until three quarters of it are in use; the rest is for others who need us.
    - At the limit, a peer that has a call to make (in either direction), and a greeting peer that has less
      than half of the three quarters itself, are still taken: one without a call under way makes room. It is
      one that this node did not choose if there is such, then one that never brought news, then the newest:
      so a crowd of newcomers, and calls to strangers, displace each other and not the connections by which
      gossip comes. All others are answered "full".
    - A dial of ours that comes through at the limit is judged alike: for a call it takes the place of an idle
      connection, as a neighbour that this node chose it takes that of one which it did not choose, else it is
      given up. A connection with a call under way is never cut for another, so when all have one there is no
      room for anybody.
    """

    maximum: int
    kept: frozenset[PeerId] = frozenset()  # whom this node chose: the last to make room
    _links: dict[PeerId, LinkT] = field(factory=dict)

    def __len__(self) -> int:
        return len(self._links)

    def __contains__(self, peer: PeerId) -> bool:
        return peer in self._links

    def get(self, peer: PeerId) -> LinkT | None:
        """The connection with `peer`."""
        return self._links.get(peer)

    def put(self, link: LinkT) -> None:
        """Take `link` into use, in place of another with the same peer."""
        self._links[link.peer] = link

    def remove(self, link: LinkT) -> bool:
        """Take `link` out of use; False if another is in its place already."""
        if self._links.get(link.peer) is not link:
            return False
        del self._links[link.peer]
        return True

    def peers(self) -> tuple[PeerId, ...]:
        """Everyone with whom there is a connection."""
        return tuple(self._links)

    def all(self) -> tuple[LinkT, ...]:
        """All connections in use."""
        return tuple(self._links.values())

    @property
    def target(self) -> int:
        """Up to how many connections this node dials of its own accord."""
        return max(1, self.maximum * 3 // 4)

    def room_for_dials(self, dialing: int) -> int:
        """How many more dials of its own accord, while `dialing` are under way."""
        return self.target - len(self._links) - dialing

    def has_room_for(self, links_of_peer: int) -> bool:
        """Whether a greeting peer, that has `links_of_peer` connections, is to be taken."""
        if len(self._links) < self.maximum:
            return True
        return links_of_peer < self.target // 2 and self.spare() is not None

    def spare(self) -> LinkT | None:
        """What to give up for another: see the class; None while a call is under way on every one."""
        idle = [link for link in self._links.values() if not link.busy]
        return min(idle, key=self._worth, default=None)

    def has_place_for(self, peer: PeerId, *, urgent: bool) -> bool:
        """Whether `peer`, which we have dialled (`urgent`: for a call), is to be taken."""
        return len(self._links) < self.maximum or self.spare_for(peer, urgent=urgent) is not None

    def spare_for(self, peer: PeerId, *, urgent: bool) -> LinkT | None:
        """What to give up for `peer`, which we have dialled (`urgent`: for a call); None if it has to go."""
        spare = self.spare()
        if spare is None or urgent:
            return spare
        return spare if peer in self.kept and spare.peer not in self.kept else None

    def _worth(self, link: LinkT) -> tuple[bool, bool, float, float]:
        return (link.peer in self.kept, link.useful, -link.since, link.last_used)


@define
class LinkTable(Occupants[Link]):
    """The connections of a node: see `Occupants`."""
