"""Events, outputs and limits of `magik_proto.gossip`: data only.  Import the names from there."""

from __future__ import annotations

import enum
from typing import Any, Literal, NamedTuple

import attrs

from magik_proto.gossip_score import ScoreConfig
from magik_proto.identity import PeerId


class Verdict(enum.Enum):
    """What validation says of a message."""

    ACCEPT = "accept"  # deliver and forward
    IGNORE = "ignore"  # neither, and nobody is to blame
    REJECT = "reject"  # neither, and the sender is to blame
    LATER = "later"  # not judged, for want of room: forgotten, so that it may come again


@attrs.frozen
class Accept:
    """A message is good, and `origin` signed it.  Nobody accepts a message without knowing who made it."""

    origin: PeerId


Judgement = Accept | Literal[Verdict.IGNORE, Verdict.REJECT]
"""What whoever validates messages answers."""


@attrs.frozen
class GossipConfig:
    """Times in seconds.  Numbers are GossipSub v1.1's and v1.2's where their specifications have them."""

    degree: int = 6
    degree_low: int = 4  # below: graft at the heartbeat
    degree_high: int = 12  # the most: a graft at it is answered by a prune, unless we dialled the peer
    degree_score: int = 4  # of a mesh above the most, so many stay for their score (v1.1, D_score)
    degree_out: int = (
        2  # peers of the mesh that we dialled, at least (v1.1, D_out: below degree_low, D/2 at most)
    )
    degree_lazy: int = 6  # peers outside the mesh that hear ids at a heartbeat; if there are more, in turn
    heartbeat_s: float = 1.0
    history: int = (
        10  # heartbeats for which messages are kept to be sent again (v1.1: 5): some liars may be asked first
    )
    history_told: int = 3  # heartbeats whose ids are told; within them all peers have their turn
    seen_life_s: float = 120.0
    max_seen: int = 100_000  # protocol.md "replay entries"; at it the oldest is forgotten
    max_cache_bytes: int = 16 * 1024 * 1024  # a guess; at it the oldest message is forgotten
    max_pending: int = 1024  # messages under validation, a guess; at it new ones are dropped
    prune_backoff_s: float = 60.0
    unsubscribe_backoff_s: float = 10.0
    graft_flood_s: float = 10.0  # a graft so soon after a prune counts twice (v1.1, GRAFT flood)
    max_backoffs: int = 4096  # a guess; at it the oldest is forgotten
    opportunistic_beats: int = 60  # heartbeats between looks at a mesh's median score (v1.1)
    opportunistic_peers: int = 2  # so many better ones are grafted then (v1.1)
    ask_again_s: float = 0.25  # after so long the next who has an id is asked for it; a guess
    alone_s: float = 0.25  # after so long without an echo from the mesh all others hear of a message; a guess
    echoes: float = 0.25  # so large a share of the mesh that has it too is an echo; a guess
    promise_s: float = 3.0  # after so long the one that was asked has broken its word (v1.1, IWANT follow-up)
    max_open: int = 1000  # ids asked of one peer and not come; a guess; at it: its ids are not asked for
    max_served: int = 3  # times that a message is sent to one peer on its asking; at it: silence
    max_asked: int = 5000  # ids asked of one peer between heartbeats; at it: its ids are not asked for
    max_ihaves: int = 10  # frames with ids from one peer between heartbeats (v1.1); at it: not looked at
    large: int = (
        4096  # bytes of a message whose coming is told to the mesh at once; a guess (go-libp2p: 1024)
    )
    unwanted_beats: int = 3  # for so long it is remembered that a peer has a message (go-libp2p)
    max_unwanted: int = 1000  # such ids of one peer (go-libp2p); at it: not remembered
    max_rejected: int = 1000  # ids of invalid messages remembered; a guess; at it the oldest is forgotten
    score: ScoreConfig = attrs.field(factory=ScoreConfig)


# Those of which there is one for each frame or message are tuples: they are made in a fifth of the time.


# -- events ----------------------------------------------------------------------------------------


@attrs.frozen
class PeerConnected:
    """`outbound`: we dialled it.  `address` is its host as we see it, None where many honest peers share it."""

    peer: PeerId
    outbound: bool = False
    address: str | None = None


@attrs.frozen
class PeerGone:
    peer: PeerId


class FrameReceived(NamedTuple):
    """A decoded frame from a connected peer; of one that is not connected (any more) it has no effect."""

    peer: PeerId
    frame: Any


@attrs.frozen
class Publish:
    """To all connected subscribers; own subscription is not needed."""

    topic: str
    payload: bytes


@attrs.frozen
class Subscribe:
    topic: str


@attrs.frozen
class Unsubscribe:
    topic: str


class Validated(NamedTuple):
    """The answer to `Validate`; of an id that is not (any more) under validation it has no effect.

    `origin` is who signed a message that is accepted; without it the message is no measure of the mesh.
    """

    id: bytes
    verdict: Verdict
    origin: PeerId | None = None


@attrs.frozen
class Appraise:
    """What the application thinks of a peer, in points, until it says otherwise (v1.1, P5)."""

    peer: PeerId
    score: float


@attrs.frozen
class Malformed:
    """A peer sent a frame for which `FrameReceived` raised: it is held against it."""

    peer: PeerId


@attrs.frozen
class FramesDropped:
    """Frames with messages or ids for a peer were dropped on the way: it hears the ids at the next heartbeat."""

    peer: PeerId


GossipEvent = (
    PeerConnected
    | PeerGone
    | FrameReceived
    | Publish
    | Subscribe
    | Unsubscribe
    | Validated
    | Appraise
    | Malformed
    | FramesDropped
)


# -- outputs ---------------------------------------------------------------------------------------


class SendFrame(NamedTuple):
    """Send a plain value to a peer.  Sends of one message share one value, so that it is encoded once: it is not
    to be changed.
    """

    peer: PeerId
    frame: dict[str, Any]


class Validate(NamedTuple):
    """Judge a message, then say `Validated(id, ...)`; until then it is neither delivered nor forwarded."""

    id: bytes
    topic: str
    payload: bytes
    source: PeerId


@attrs.frozen
class Deliver:
    """A validated message; `source` is the peer that it came from, not who wrote it."""

    topic: str
    payload: bytes
    source: PeerId


@attrs.frozen
class Misbehaved:
    """A peer sent what no honest peer sends."""

    peer: PeerId
    reason: str


GossipOutput = SendFrame | Validate | Deliver | Misbehaved
