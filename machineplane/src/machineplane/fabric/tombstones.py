"""What was disposed of before a daemon started: asked of the first machines that it meets, for it remembers nothing."""

from collections.abc import Awaitable, Callable, Sequence

import structlog

from magik_mesh import Call, CallRefused, MeshError, Node
from magik_proto.errors import RemoteProtocolError
from magik_proto.identity import PeerId

DISPOSED = "/magik/fabric/disposed/1.0.0"
TOLD = "/magik/fabric/told/1.0.0"

TOLD_MAX = 64  # disposals in one call

ASK = 2  # guess: machines that are asked; one of them may have started just now itself
TIMEOUT_S = 30.0  # guess: 10,000 disposals are some 5 MB


class Tombstones:
    """Both ends of the call. ``remembered`` gives encoded disposals, ``learn`` takes a peer's."""

    def __init__(
        self,
        node: Node,
        remembered: Callable[[], list[bytes]],
        learn: Callable[[PeerId, Sequence[bytes]], Awaitable[None]],
    ) -> None:
        self._node = node
        self._remembered = remembered
        self._learn = learn
        self._asked: set[PeerId] = set()
        self._log = structlog.get_logger(room="fabric")
        node.handle(DISPOSED, self._on_disposed)
        node.handle(TOLD, self._on_told, brief=True)

    async def tell(self, peer: PeerId, message: bytes) -> None:
        """Tell one machine of a disposal that it has not heard of. One that is silent is told when it shows it again."""
        try:
            await self._node.ask(peer, TOLD, [message])
        except MeshError as error:
            self._log.info("disposal-not-told", peer=str(peer), error=str(error))

    async def _on_told(self, call: Call) -> object:
        found = call.body
        if (
            not isinstance(found, list)
            or len(found) > TOLD_MAX
            or not all(isinstance(m, bytes) for m in found)
        ):
            raise CallRefused("told.body", f"at most {TOLD_MAX} encoded disposals are expected")
        try:
            await self._learn(call.peer, found)
        except RemoteProtocolError as error:
            raise CallRefused(error.rule, error.detail) from error
        return {}

    async def met(self, peer: PeerId) -> None:
        """A machine is connected: ask it, if it is one of the first. One that does not answer leaves its turn to another."""
        if len(self._asked) >= ASK or peer in self._asked:
            return
        self._asked.add(peer)
        try:
            found = await self._node.call(peer, DISPOSED, {}, timeout=TIMEOUT_S)
            if not isinstance(found, list) or not all(isinstance(message, bytes) for message in found):
                raise RemoteProtocolError("disposed.body", "a list of encoded disposals is expected")
            await self._learn(peer, found)
        except (MeshError, RemoteProtocolError) as error:
            self._asked.discard(peer)
            self._log.info("disposals-not-learnt", peer=str(peer), error=str(error))

    async def _on_disposed(self, call: Call) -> object:
        return self._remembered()
