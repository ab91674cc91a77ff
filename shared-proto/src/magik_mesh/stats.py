"""Counters of what a node saw, for metrics and tests."""

from __future__ import annotations

from attrs import define


@define
class Stats:
    """Each only grows. One per node; `Node.stats` shows it."""

    calls_sent: int = 0
    calls_served: int = 0
    calls_busy: int = 0  # answered "busy"
    calls_failed: int = 0  # a handler raised something unforeseen: answered "internal"
    frames_malformed: int = 0  # streams reset for what they carried
    connections_refused: int = 0  # a hello answered "duplicate" or "full"
    gossip_dropped: int = 0  # frames that a slow peer's full queue lost
    gossip_rejected: int = 0  # gossip frames that broke the protocol
    validations_dropped: int = 0  # messages ignored because a topic's validator was too far behind
    circuits_relayed: int = 0  # that this node carried for others
    circuits_ended: int = 0  # of these
    bytes_relayed: int = 0  # and what went through them
    paths_punched: int = 0  # relayed connections of this node that found a direct way
    records_refused: int = 0  # peer records that did not verify
