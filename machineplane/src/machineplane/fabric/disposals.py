"""Deleting: a signed disposal, told by gossip to those who are here, and by the table to those who come later.

The table has it for ``DISPOSAL_LIFE_S``, and again for as long when a machine shows what was disposed of: it was away, and
has not heard. A daemon that starts asks the first peers that it meets for all that they remember, so that memory outlives
restarts as long as not all machines restart at once.
"""

from collections.abc import Awaitable, Callable, Sequence
from uuid import UUID

import structlog
import trio

from machineplane.fabric.holdings import DISPOSAL_LIFE_S, TOMBSTONE_LIFE_S, Holdings
from machineplane.fabric.table import Table
from machineplane.fabric.view import View
from magik_proto.errors import RemoteProtocolError
from magik_proto.identity import Identity, PeerId
from magik_proto.messages import Disposal, decode_as, encode_message
from magik_proto.records import Workload
from magik_proto.signing import new_nonce, sign, verify

SWEEP_S = 10.0  # guess: how late after its life a disposal is forgotten
_PAUSE_EVERY = 64  # disposals taken in without letting others run: each costs a signature's check


class Disposals:
    """``stop`` ends a workload's pods here; ``publish`` gossips; ``roles`` gives a member's roles, None if unknown;
    ``member`` this machine's membership, where others may not know it."""

    def __init__(
        self,
        *,
        identity: Identity,
        wall: Callable[[], int],
        holdings: Holdings,
        table: Table,
        view: View,
        stop: Callable[[UUID], None],
        publish: Callable[[Disposal], Awaitable[None]],
        roles: Callable[[PeerId], frozenset[str] | None],
        member: Callable[[], bytes | None] = lambda: None,
    ) -> None:
        self._identity = identity
        self._wall = wall
        self._holdings = holdings
        self._table = table
        self._view = view
        self._stop = stop
        self._publish = publish
        self._roles = roles
        self._member = member
        # In a large fabric nobody follows this table: who shows something is told so.
        self.tell: Callable[[PeerId, bytes], None] = lambda peer, message: None
        self._told_until: dict[str, float] = {}  # of the entries in the table, monotonic
        self._log = structlog.get_logger(room="fabric")
        view.on_disposal = self.read
        view.on_revival = self.remind

    async def dispose(self, workload: Workload) -> None:
        """Delete a workload everywhere."""
        disposal = sign(
            Disposal(
                signer=self._identity.peer_id,
                namespace=workload.resource.namespace,
                kind=workload.resource.kind,
                name=workload.resource.name,
                uid=workload.uid,
                generation=workload.generation,
                member=self._member(),
                timestamp=self._wall(),
                nonce=new_nonce(),
            ),
            self._identity,
        )
        self.obey(disposal)
        await self._publish(disposal)

    def obey(self, disposal: Disposal) -> None:
        """Carry out a disposal whose signature and sender's role have been checked. Once is as good as often."""
        age_s = (self._wall() - disposal.timestamp) / 1000
        if not self._holdings.dispose(disposal, trio.current_time(), TOMBSTONE_LIFE_S - max(0.0, age_s)):
            return
        uid = str(disposal.uid)
        self._log.info("disposed", resource=str(disposal.resource), uid=uid)
        self._tell(uid, disposal)
        self._table.remove(("workload", uid))
        self._view.dispose(uid)
        self._stop(disposal.uid)

    def _tell(self, uid: str, disposal: Disposal) -> None:
        self._told_until[uid] = trio.current_time() + DISPOSAL_LIFE_S
        self._table.put(("disposal", uid), {"message": encode_message(disposal)})

    def remind(self, peer: PeerId, uid: str) -> None:
        """A machine shows a workload that is disposed of, or pods of it: tell it so, unless everyone is told right now."""
        disposal = self._holdings.tombstone(UUID(uid), trio.current_time())
        if disposal is not None:
            self.tell(peer, encode_message(disposal))
        if disposal is not None and uid not in self._told_until:
            self._log.info("disposed-before", resource=str(disposal.resource), uid=uid)
            self._tell(uid, disposal)

    def remembered(self) -> list[bytes]:
        """All disposals that are remembered here, encoded; for a machine that has just started."""
        return [encode_message(d) for d in self._holdings.disposals(trio.current_time())]

    async def learn(self, peer: PeerId, messages: Sequence[bytes]) -> None:
        """What a peer remembers. Raises RemoteProtocolError at the first that is not to be believed."""
        for number, message in enumerate(messages, 1):
            self.read(peer, message)
            if number % _PAUSE_EVERY == 0:
                await trio.lowlevel.checkpoint()

    def read(self, peer: PeerId, message: bytes) -> None:
        """A disposal in a peer's table. Its age is not that of a fresh message: for its whole life it may still be news.

        Raises RemoteProtocolError where it is not a disposal, or from a member that may not dispose.
        """
        disposal = decode_as(Disposal, message)
        if self._holdings.is_disposed(disposal.uid, trio.current_time()):
            return
        verify(disposal)
        roles = self._roles(disposal.signer)
        roles = (
            roles if roles is not None else self._roles(peer)
        )  # its signer is away: then who passes it on counts
        if "submit" not in (roles or ()):
            raise RemoteProtocolError("membership.role", f"{disposal.signer} may not dispose of workloads")
        self.obey(disposal)

    async def run(self) -> None:
        """Forget disposals whose life is over; until cancelled."""
        while True:
            await trio.sleep(SWEEP_S)
            self.sweep()

    def sweep(self) -> None:
        """End what was told for long enough, and let go of what nobody remembers here any more."""
        now = trio.current_time()
        for uid in [uid for uid, until in self._told_until.items() if now >= until]:
            del self._told_until[uid]
            self._table.remove(("disposal", uid))
        for uid in [uid for uid in self._view.disposed if not self._holdings.is_disposed(UUID(uid), now)]:
            self._view.forget_disposed(uid)
