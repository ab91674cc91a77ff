"""Brief connections: for the hash table's calls, and those that `Node.ask` makes, with peers to which there is no other.

A lookup asks some dozen machines once. Its connections begin with the call itself instead of a greeting,
carry no gossip, are no news to anybody, and make room for each other: at most `limits.briefs` each way. Of
those the least recently used without a call under way is closed for another; where all are at work, own
calls wait, and a stranger is refused. What is idle for `timings.brief_idle` is closed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import trio
from attrs import define, field

from magik_mesh import codes
from magik_mesh.addresses import Address, text_of
from magik_mesh.clock import Clock
from magik_mesh.config import NodeConfig
from magik_mesh.errors import PeerUnreachable
from magik_mesh.rpc_server import Caller, RpcServer, Slots
from magik_mesh.tls import Admitted
from magik_mesh.workers import Workers
from magik_proto.identity import PeerId
from trio_quic import Connection, Stream

Dial = Callable[[PeerId, Sequence[Address], float], Awaitable[Connection[Admitted]]]

# Calls of one peer at work on a brief connection; one lookup asks a peer once, a record goes to it once. A guess.
_CALLS = 8


@define(eq=False)
class Brief:
    """One of them. `connection` is None until it was dialled, and for ever if that failed."""

    last_used: float
    connection: Connection[Admitted] | None = None
    ready: trio.Event = field(factory=trio.Event)
    slots: Slots = field(factory=lambda: Slots(_CALLS))
    calls: int = 0  # of ours

    @property
    def idle(self) -> bool:
        """Whether nothing is under way on it."""
        return self.ready.is_set() and self.calls == 0 and self.slots.used == 0

    @property
    def ended(self) -> bool:
        """Whether it is of no more use."""
        return self.ready.is_set() and (self.connection is None or self.connection.closed.is_set())

    def close(self, code: int, reason: str) -> None:
        """Close it, if it was ever open."""
        if self.connection is not None:
            self.connection.close_now(code, reason)


@define(eq=False)
class Briefs:
    """All brief connections of a node. `server` serves what may be asked on them."""

    config: NodeConfig
    clock: Clock
    server: RpcServer
    dial: Dial
    _outgoing: dict[PeerId, Brief] = field(factory=dict)
    _incoming: dict[PeerId, Brief] = field(factory=dict)

    def __len__(self) -> int:
        return len(self._outgoing) + len(self._incoming)

    async def reach(self, peer: PeerId, addresses: Sequence[Address]) -> Brief:
        """A connection with `peer`, whose `calls` count one more; `PeerUnreachable` if there is no way."""
        brief = self._outgoing.get(peer)
        if brief is None or brief.ended:
            brief = self._outgoing[peer] = Brief(self.clock.now(), calls=1)
            self._make_room(self._outgoing)
            await self._open(brief, peer, addresses)
        else:
            brief.calls += 1
            await brief.ready.wait()
        if brief.connection is None:
            brief.calls -= 1
            raise PeerUnreachable(peer, "no way to it")
        return brief

    def release(self, brief: Brief) -> None:
        """A call of ours has ended."""
        brief.calls -= 1
        brief.last_used = self.clock.now()

    async def welcome(self, connection: Connection[Admitted], first: Stream, payload: bytes) -> None:
        """Serve a brief connection of another, that began with the request in `payload`, to its end."""
        admitted = connection.peer
        brief = Brief(self.clock.now(), connection)
        brief.ready.set()
        if (before := self._incoming.pop(admitted.peer, None)) is not None:
            before.close(codes.CLOSE_REPLACED, "replaced by a newer connection")
        self._incoming[admitted.peer] = brief
        if not self._make_room(self._incoming, brief):
            del self._incoming[admitted.peer]
            connection.close_now(codes.CLOSE_FULL, "too many brief connections")
            return
        address = text_of(connection.remote_address or ("0.0.0.0", 1))
        serve = partial(self._serve, brief, Caller(admitted.peer, admitted.roles, address))
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_in_scope, serve, first, payload)
                nursery.start_soon(Workers(connection, serve, nursery).work)
                await connection.closed.wait()
                nursery.cancel_scope.cancel()
        finally:
            connection.close_now(codes.CLOSE_GOODBYE, "the node leaves")
            if self._incoming.get(admitted.peer) is brief:
                del self._incoming[admitted.peer]

    def tidy(self) -> None:
        """Close what was idle for long, and forget what has ended."""
        before = self.clock.now() - self.config.timings.brief_idle
        for table in (self._outgoing, self._incoming):
            for peer, brief in list(table.items()):
                if brief.idle and brief.last_used < before:
                    brief.close(codes.CLOSE_OK, "idle")
                if brief.ended and brief.idle:
                    del table[peer]

    def close(self) -> None:
        """The node leaves."""
        for brief in (*self._outgoing.values(), *self._incoming.values()):
            brief.close(codes.CLOSE_GOODBYE, "goodbye")

    async def _serve(
        self,
        brief: Brief,
        caller: Caller,
        stream: Stream,
        scope: trio.CancelScope,
        payload: bytes | None = None,
    ) -> None:
        await self.server.serve(stream, caller, brief.slots, scope, payload)
        brief.last_used = self.clock.now()

    async def _open(self, brief: Brief, peer: PeerId, addresses: Sequence[Address]) -> None:
        try:
            brief.connection = await self.dial(peer, addresses, self.config.timings.dial)
        except BaseException:
            brief.calls -= 1
            self._outgoing.pop(peer, None)
            raise
        finally:
            brief.ready.set()

    def _make_room(self, table: dict[PeerId, Brief], but: Brief | None = None) -> bool:
        """Close the least recently used one while there are too many; False if all others are at work."""
        while len(table) > self.config.limits.briefs:
            idle = [(b.last_used, peer) for peer, b in table.items() if b.idle and b is not but]
            if not idle:
                return False
            peer = min(idle)[1]
            table.pop(peer).close(codes.CLOSE_DROPPED, "dropped: room was needed for another peer")
        return True


async def _in_scope(
    serve: Callable[[Stream, trio.CancelScope, bytes], Awaitable[None]], stream: Stream, payload: bytes
) -> None:
    """Serve one stream as a worker would."""
    with trio.CancelScope() as scope:
        await serve(stream, scope, payload)
