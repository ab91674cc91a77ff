"""What goes into the machine of `magik_proto.dht` and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from magik_proto.identity import PeerId
from magik_proto.kademlia import Contact

# -- records ---------------------------------------------------------------------------------------


@attrs.frozen
class Judged:
    """A record that is genuine and alive: where it belongs, whose it is, what it outranks, and for how
    long.

    `precedence` values of one kind can be compared; `life_s` is what is left, in seconds, above 0.
    """

    kind: str
    key: bytes
    signer: PeerId
    precedence: Any
    life_s: float


Judge = Callable[[bytes, float], Judged]
"""Takes an encoded record and the machine's time; RemoteProtocolError for one that is not to be believed."""


# -- what peers ask each other ---------------------------------------------------------------------


@attrs.frozen
class Find:
    """Who is near `key`, and, with a `kind`, which records of that kind lie under it?

    `after` continues a list of records that was cut: only those of higher signers.
    """

    key: bytes
    kind: str | None = None
    after: PeerId | None = None


@attrs.frozen
class Found:
    """The peers nearest to the key, and the records, by signer; `more` if not all went in."""

    peers: tuple[Contact, ...] = ()
    records: tuple[bytes, ...] = ()
    more: bool = False


@attrs.frozen
class Store:
    """Keep these records."""

    records: tuple[bytes, ...]


@attrs.frozen
class Stored:
    """For each record why it was refused; empty where it is kept."""

    refused: tuple[str, ...]


Request = Find | Store
Answer = Found | Stored

# -- events ----------------------------------------------------------------------------------------


@attrs.frozen
class PeerProved:
    """A peer proved itself on a connection by which it can be reached again."""

    contact: Contact


@attrs.frozen
class PeerFailed:
    """A peer left, or does not answer."""

    peer: PeerId


@attrs.frozen
class RequestReceived:
    """A peer, which proved its identity, asks; `call` comes back in the `Reply`.

    `source` has the addresses at which it may be reached.
    """

    source: Contact
    call: int
    request: Request


@attrs.frozen
class Answered:
    """The answer to an `Ask`."""

    query: int
    answer: Answer


@attrs.frozen
class Unanswered:
    """An `Ask` failed: no connection, no answer, nonsense, or the peer refused."""

    query: int


@attrs.frozen
class LookUp:
    """Find the peers nearest to a position; ends with `LookedUp`. Ids of one machine's requests differ."""

    id: int
    key: bytes


@attrs.frozen
class FindPeer:
    """Find out where a peer is; ends with `PeerFound`."""

    id: int
    peer: PeerId


@attrs.frozen
class Get:
    """Find the records of one kind under a key; ends with `Got`."""

    id: int
    key: bytes
    kind: str


@attrs.frozen
class Put:
    """Have a record kept by the peers nearest to its key; ends with `PutDone`.

    It has to be renewed by another `Put` before its life ends.
    """

    id: int
    record: bytes


@attrs.frozen
class Cancel:
    """Whoever wanted the answer to a request has gone; without effect if it has ended."""

    id: int


DhtEvent = (
    PeerProved | PeerFailed | RequestReceived | Answered | Unanswered | LookUp | FindPeer | Get | Put | Cancel
)

# -- outputs ---------------------------------------------------------------------------------------


@attrs.frozen
class Ask:
    """Ask a peer; then `Answered` or `Unanswered`. The machine does not wait for ever, late answers help."""

    query: int
    to: Contact
    request: Request


@attrs.frozen
class Reply:
    """The answer to a peer's request."""

    call: int
    answer: Answer


@attrs.frozen
class Joined:
    """The own neighbourhood is known: the moment to put own records."""

    closest: tuple[Contact, ...]


@attrs.frozen
class Walked:
    """Peers around a random position, which answered: a fair sample of all there are."""

    peers: tuple[Contact, ...]


@attrs.frozen
class LookedUp:
    """The peers nearest to a position that answered, nearest first, this machine left out."""

    id: int
    closest: tuple[Contact, ...]


@attrs.frozen
class PeerFound:
    """Where a peer is: its record, or, if it answered itself, the contact; neither if it was not found."""

    id: int
    record: bytes | None = None
    contact: Contact | None = None


@attrs.frozen
class Got:
    """The newest record of each signer, by signer; `asked` peers answered."""

    id: int
    records: tuple[bytes, ...]
    asked: int


@attrs.frozen
class PutDone:
    """How many peers keep the record (this machine included), and why others did not."""

    id: int
    stored: int
    refused: tuple[str, ...]


DhtOutput = Ask | Reply | Joined | Walked | LookedUp | PeerFound | Got | PutDone
