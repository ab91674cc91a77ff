"""What simulated machines send each other, in place of QUIC's packets and the frames of calls.

Gossip frames go as they are: plain maps. A handshake is `Dial` and `Accepted` (one round trip), the hello
`Greet` and `Greeted` (another), as on the wire.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from uuid import UUID

from magik_proto.identity import PeerId


class Dial(NamedTuple):
    """The dialler's part of a handshake; `brief`: for calls alone (`magik_mesh.briefs`)."""

    brief: bool = False


class Accepted(NamedTuple):
    """The other part."""

    brief: bool = False


class Greet(NamedTuple):
    """See `magik_mesh.hello`."""

    incarnation: int
    taken: int  # connections so far: `count` there
    links: int
    urgent: bool
    peers: tuple[PeerId, ...]


class Greeted(NamedTuple):
    """The answer, one of `magik_mesh.arbitration.Answer`'s values."""

    answer: str
    incarnation: int
    taken: int  # connections so far: `count` there
    peers: tuple[PeerId, ...]


class Closed(NamedTuple):
    """The connection is closed, or there is none."""


Word = Dial | Accepted | Greet | Greeted | Closed
"""What is said to make and unmake connections; all else needs one."""


class Asked(NamedTuple):
    """A request of the hash table."""

    query: int
    request: Any


class Told(NamedTuple):
    """Its answer."""

    query: int
    answer: Any


class Declined(NamedTuple):
    """The owner of a tender does not want our bid."""

    tender_id: UUID


class Answered(NamedTuple):
    """The answer to an award."""

    tender_id: UUID
    reason: str  # empty: accepted
