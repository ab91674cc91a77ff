"""Revocations: how a root's newest list gets to every machine, be it here now or not.

- Who has a newer list says so at once: a list that fits goes by gossip as it is, for a larger one each connected
  peer is told its serial. Whoever then lacks it fetches it.
- Every hello tells the serial, and from time to time a random peer is asked: a machine that was away learns of
  the list from the first it meets, and what got lost is made up for.

A list is taken in only under the root's signature, and at once all connections are judged by it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import Any

import trio
from attrs import define, field
from structlog.typing import FilteringBoundLogger

from magik_mesh.errors import MeshError
from magik_mesh.policy import Policy
from magik_mesh.rpc_server import Call
from magik_proto.credentials import Revocations
from magik_proto.errors import RemoteProtocolError
from magik_proto.gossip_frames import MAX_PAYLOAD
from magik_proto.gossip_types import Accept, Judgement, Verdict
from magik_proto.identity import PeerId
from magik_proto.membership import MembershipError
from magik_proto.wire import decode_as, encode_message

FETCH_TIMEOUT_S = 30.0  # a guess: a list of 1 MiB over a line of 0.3 Mbit/s

Fetch = Callable[[PeerId, Any, float], Awaitable[Any]]
"""Calls a peer's `codes.REVOCATIONS` with a body and a time-out in seconds; raises `MeshError`."""


@define(eq=False)
class Revoking:
    """The newest list of one node. `news` is called with each that is taken in, in the order of their serials."""

    own: PeerId
    policy: Policy
    nursery: trio.Nursery
    log: FilteringBoundLogger
    call: Fetch
    publish: Callable[[bytes], None]
    connected: Callable[[], Collection[PeerId]]
    recheck: Callable[[], None]
    news: list[Callable[[Revocations], None]] = field(factory=list)
    _fetching: set[PeerId] = field(factory=set)

    @property
    def serial(self) -> int:
        """That of the list in force; 0 without one."""
        known = self.policy.revocations
        return 0 if known is None else known.serial

    def take(self, revocations: Revocations) -> bool:
        """Put a list in force and spread it; False if it is no news. Raises `MembershipError`."""
        if not self.policy.revoke(revocations):
            return False
        self.log.warning("revocations", serial=self.serial, issued=revocations.issued)
        if self.own in revocations.peers:
            self.log.error(
                "this machine was revoked", advice="it can join again with a new key and a new invite"
            )
        for listener in self.news:
            listener(revocations)
        self.recheck()
        self._spread(encode_message(revocations))
        return True

    def _spread(self, encoded: bytes) -> None:
        if len(encoded) <= MAX_PAYLOAD:
            self.publish(encoded)
            return
        for peer in self.connected():
            self.nursery.start_soon(self._ask, peer)

    async def judge(self, source: PeerId, payload: bytes) -> Judgement:
        """The validator of the topic: a list is signed by the root, so the root is its origin."""
        try:
            revocations = decode_as(Revocations, payload)
            known = self.serial
            news = self.take(revocations)
        except RemoteProtocolError as error:
            self.log.warning("revocations refused", source=str(source), error=str(error))
            return Verdict.IGNORE if error.rule == "membership.revocations-conflict" else Verdict.REJECT
        return Accept(revocations.root) if news or revocations.serial == known else Verdict.IGNORE

    def heard(self, peer: PeerId, serial: int) -> None:
        """`peer` said at its hello which list it has."""
        if serial > self.serial and not self.policy.open:
            self.nursery.start_soon(self._ask, peer)

    async def exchange(self, peer: PeerId) -> None:
        """Make up for what got lost."""
        if not self.policy.open:
            await self._ask(peer)

    async def _ask(self, peer: PeerId) -> None:
        """Ask for a newer list, and in the same call tell which one is here."""
        if peer in self._fetching:
            return
        self._fetching.add(peer)
        try:
            found = await self.call(peer, {"serial": self.serial}, FETCH_TIMEOUT_S)
            encoded = found.get("list") if isinstance(found, dict) else None
            if isinstance(encoded, bytes):
                self.take(decode_as(Revocations, encoded))
        except MeshError as error:
            self.log.debug("revocations not fetched", peer=str(peer), error=str(error))
        except RemoteProtocolError as error:
            self.log.warning("revocations refused", source=str(peer), error=str(error))
        finally:
            self._fetching.discard(peer)

    async def answer(self, call: Call) -> Any:
        """Serve `codes.REVOCATIONS`: the list if it is newer than the caller's; and ask back if it is older."""
        serial = call.body.get("serial") if isinstance(call.body, dict) else None
        if not isinstance(serial, int) or isinstance(serial, bool):
            raise MembershipError("membership.malformed", "a serial is expected")
        known = self.policy.revocations
        self.heard(call.peer, serial)
        return {"list": encode_message(known) if known is not None and known.serial > serial else None}
