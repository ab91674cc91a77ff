"""Deleting: a signed disposal, told by gossip to those who are here and by the table to those who come within its life."""

from collections.abc import Awaitable, Callable
from uuid import UUID

import structlog
import trio

from machineplane.fabric.holdings import Holdings
from machineplane.fabric.table import Table
from machineplane.fabric.view import View
from magik_proto.errors import RemoteProtocolError
from magik_proto.identity import Identity, PeerId
from magik_proto.messages import Disposal, decode_as, encode_message
from magik_proto.records import Workload
from magik_proto.signing import new_nonce, sign, verify

SWEEP_S = 10.0  # guess: how late after its life a disposal is forgotten


class Disposals:
    """``stop`` ends a workload's pods here; ``publish`` gossips; ``roles`` gives a member's roles, None if unknown."""

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
    ) -> None:
        self._identity = identity
        self._wall = wall
        self._holdings = holdings
        self._table = table
        self._view = view
        self._stop = stop
        self._publish = publish
        self._roles = roles
        self._log = structlog.get_logger(room="fabric")
        view.on_disposal = self.read

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
                timestamp=self._wall(),
                nonce=new_nonce(),
            ),
            self._identity,
        )
        self.obey(disposal)
        await self._publish(disposal)

    def obey(self, disposal: Disposal) -> None:
        """Carry out a disposal whose signature and sender's role have been checked. Once is as good as often."""
        if not self._holdings.dispose(disposal, trio.current_time()):
            return
        uid = str(disposal.uid)
        self._log.info("disposed", resource=str(disposal.resource), uid=uid)
        self._table.put(("disposal", uid), {"message": encode_message(disposal)})
        self._table.remove(("workload", uid))
        self._view.dispose(uid)
        self._stop(disposal.uid)

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
            kept = {str(d.uid) for d in self._holdings.disposals(trio.current_time())}
            for entry in self._table.entries("disposal"):
                if entry.key[1] not in kept:
                    self._table.remove(entry.key)
                    self._view.forget_disposed(entry.key[1])
