"""What applications see of peers: who is there, and news of it."""

from __future__ import annotations

from collections.abc import Mapping

import trio
from attrs import define, field, frozen

from magik_mesh.addresses import Address
from magik_proto.identity import PeerId


@frozen
class PeerInfo:
    """A known peer.

    `roles` are those of the connection (empty without one); `since` is ms since the epoch.
    """

    id: PeerId
    address: Address | None
    roles: frozenset[str]
    connected: bool
    since: int
    labels: Mapping[str, str] = field(factory=dict)


@frozen
class PeerUp:
    """A peer was admitted and is connected."""

    info: PeerInfo


@frozen
class PeerDown:
    """A peer is not connected any more.

    `reason` begins with one of: "lost" (silence, and a redial failed), "goodbye" (it left), "restarted"
    (its PeerUp follows at once), "refused" (its membership is no longer good), "dropped" (given up for
    room: it may well be alive).
    """

    id: PeerId
    reason: str


PeerEvent = PeerUp | PeerDown


@define
class Roster:
    """Who is up, and the subscribers to that.

    A subscriber that leaves `capacity` events unread is cut off.
    """

    capacity: int
    _up: dict[PeerId, PeerInfo] = field(factory=dict)
    _subscribers: list[trio.MemorySendChannel[PeerEvent]] = field(factory=list)

    def subscribe(self) -> trio.MemoryReceiveChannel[PeerEvent]:
        """A channel with a `PeerUp` for everyone who is up now, then all changes.

        It ends when the node ends, or when its reader has fallen too far behind and has to start anew.
        """
        sender, receiver = trio.open_memory_channel[PeerEvent](self.capacity + len(self._up))
        for info in self._up.values():
            sender.send_nowait(PeerUp(info))
        self._subscribers.append(sender)
        return receiver

    def up(self, info: PeerInfo) -> None:
        """`info.id` is connected; news unless it was before."""
        known = info.id in self._up
        self._up[info.id] = info
        if not known:
            self._tell(PeerUp(info))

    def down(self, peer: PeerId, reason: str) -> None:
        """`peer` is not connected any more; news if it was."""
        if self._up.pop(peer, None) is not None:
            self._tell(PeerDown(peer, reason))

    def close(self) -> None:
        """End all subscribers' channels."""
        while self._subscribers:
            self._subscribers.pop().close()

    def _tell(self, event: PeerEvent) -> None:
        for subscriber in list(self._subscribers):
            try:
                subscriber.send_nowait(event)
            except (trio.WouldBlock, trio.BrokenResourceError):
                subscriber.close()
                self._subscribers.remove(subscriber)
