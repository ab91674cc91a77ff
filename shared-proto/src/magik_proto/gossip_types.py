"""Events, outputs and limits of `magik_proto.gossip`: data only.  Import the names from there."""

from __future__ import annotations

import enum
from typing import Any

import attrs

from magik_proto.identity import PeerId


class Verdict(enum.Enum):
    """What validation says of a message."""

    ACCEPT = "accept"  # deliver and forward
    IGNORE = "ignore"  # neither, and nobody is to blame
    REJECT = "reject"  # neither, and the sender is to blame


@attrs.frozen
class GossipConfig:
    """Times in seconds.  Numbers are GossipSub v1.1's where its specification has them."""

    degree: int = 6
    degree_low: int = 4  # below: graft at the heartbeat
    degree_high: int = 12  # the most: a graft at it is answered by a prune
    degree_lazy: int = 6  # peers outside the mesh that hear ids at a heartbeat, at least
    lazy_share: int = 4  # or one in so many of them, if that is more
    heartbeat_s: float = 1.0
    history: int = 5  # heartbeats for which messages are kept to be sent again
    history_told: int = 3  # heartbeats whose ids are told
    seen_life_s: float = 120.0
    max_seen: int = 100_000  # protocol.md "replay entries"; at it the oldest is forgotten
    max_cache_bytes: int = 16 * 1024 * 1024  # a guess; at it the oldest message is forgotten
    max_pending: int = 1024  # messages under validation, a guess; at it new ones are dropped
    prune_backoff_s: float = 60.0
    unsubscribe_backoff_s: float = 10.0
    ask_again_s: float = 1.0  # after so long the next who has an id is asked for it; a guess (v1.1: 3 s)
    max_served: int = 3  # times that a message is sent to one peer on its asking; at it: silence
    max_asked: int = 5000  # ids asked of one peer between heartbeats; at it: its ids are not asked for


# -- events ----------------------------------------------------------------------------------------


@attrs.frozen
class PeerConnected:
    peer: PeerId


@attrs.frozen
class PeerGone:
    peer: PeerId


@attrs.frozen
class FrameReceived:
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


@attrs.frozen
class Validated:
    """The answer to `Validate`; of an id that is not (any more) under validation it has no effect."""

    id: bytes
    verdict: Verdict


GossipEvent = PeerConnected | PeerGone | FrameReceived | Publish | Subscribe | Unsubscribe | Validated


# -- outputs ---------------------------------------------------------------------------------------


@attrs.frozen
class SendFrame:
    """Send a plain value to a peer."""

    peer: PeerId
    frame: dict[str, Any]


@attrs.frozen
class Validate:
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
