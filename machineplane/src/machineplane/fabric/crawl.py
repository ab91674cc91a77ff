"""From one machine to the next until all have answered: the bookkeeping of one crawl, without I/O."""

from collections.abc import Iterable

from attrs import define, field, frozen

from magik_proto.errors import RemoteProtocolError
from magik_proto.identity import PeerId, parse_address

MACHINES_MAX = 4_096  # of one crawl; a guess: as many objects as anybody reads. More are not asked, and said
NAMED_MAX = 128  # contacts in one answer; a guess: 64 connections and 20 neighbours, and room
_ADDRESSES_MAX = 4


@frozen
class Named:
    """A machine that another has named: where it may be, and whether the other is connected with it."""

    peer: PeerId
    addresses: tuple[str, ...] = ()
    connected: bool = False

    def to_wire(self) -> list[object]:
        return [self.peer.raw, list(self.addresses[:_ADDRESSES_MAX]), self.connected]


def named_from_wire(wire: object) -> tuple[Named, ...]:
    """Raises ValueError where it is no list of machines."""
    if not isinstance(wire, list) or len(wire) > NAMED_MAX:
        raise ValueError(f"contacts: not a list of at most {NAMED_MAX}")
    return tuple(map(_one, wire))


def _one(wire: object) -> Named:
    match wire:
        case [bytes(peer), list(addresses), bool(connected)] if len(addresses) <= _ADDRESSES_MAX:
            try:
                for address in addresses:
                    parse_address(address)
                return Named(PeerId(peer), tuple(addresses), connected)
            except (RemoteProtocolError, TypeError, AttributeError) as error:
                raise ValueError(f"contacts: {error}") from error
    raise ValueError("contacts: one is not [peer, addresses, connected]")


@define
class Crawl:
    """Who was named, who has answered, and who was silent although somebody is connected with it.

    ``known``: machines that answered not long ago; if they do not now, the crawl lacks something.
    """

    own: PeerId
    known: frozenset[PeerId] = frozenset()
    machines_max: int = MACHINES_MAX
    _asked: set[PeerId] = field(factory=set)
    _answered: set[PeerId] = field(factory=set)
    _connected: set[PeerId] = field(factory=set)
    _left_out: set[PeerId] = field(factory=set)

    def fresh(self, named: Iterable[Named]) -> list[Named]:
        """Those of whom nobody has spoken yet: they are to be asked now."""
        found = []
        for one in named:
            if one.connected:
                self._connected.add(one.peer)
            if one.peer == self.own or one.peer in self._asked:
                continue
            if len(self._asked) >= self.machines_max:
                self._left_out.add(one.peer)
                continue
            self._asked.add(one.peer)
            found.append(one)
        return found

    def answered(self, peer: PeerId) -> None:
        """It has told all that it was asked for."""
        self._answered.add(peer)

    @property
    def lacking(self) -> int:
        """Of how many machines that are there the answer may be missing."""
        there = (self._connected | self.known) - {self.own}
        return len((there | self._left_out) - self._answered)

    def warning(self) -> str:
        """What to tell who reads; nothing where nothing is missing."""
        lacking = self.lacking
        if not lacking:
            return ""
        of = len(self._answered) + 1 + lacking
        return f"{lacking} of {of} machines did not answer: what they run may be missing or out of date"
