"""The life of connections: greeted, taken into use, served, lost.

Every connection begins with the dialler's hello; until it is answered no other byte is handled (but for
`magik_mesh.briefs`, which begin with their first call). Who keeps
which connection is decided in `magik_mesh.arbitration`, how many there may be in
`magik_mesh.links.LinkTable`, who is dialled when in `magik_mesh.dialing`; here is what they have in common
with sockets.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from functools import partial

import trio
from attrs import define, field
from structlog.typing import FilteringBoundLogger

from magik_mesh import codes
from magik_mesh.addresses import text_of
from magik_mesh.arbitration import Answer, Standing, answer_hello
from magik_mesh.briefs import Briefs
from magik_mesh.clock import Clock
from magik_mesh.config import NodeConfig
from magik_mesh.dialing import DialPlan
from magik_mesh.errors import PeerUnreachable, RpcFailed
from magik_mesh.hello import MAX_HELLO, Hello, parse_hello
from magik_mesh.links import Link, LinkTable
from magik_mesh.presence import Presence
from magik_mesh.pubsub import PubSub
from magik_mesh.revoking import Revoking
from magik_mesh.roster import PeerInfo, Roster
from magik_mesh.rpc_client import ask, start_call
from magik_mesh.rpc_server import RpcServer, Slots
from magik_mesh.stats import Stats
from magik_mesh.streams import STREAM_ERRORS, FramedStream
from magik_mesh.tls import Admitted, admit
from magik_mesh.workers import Workers
from magik_proto import codec
from magik_proto.errors import RemoteProtocolError
from magik_proto.identity import PeerId
from magik_proto.rpc import Request, Response, encode_frame
from trio_quic import Connection, ConnectionClosed, PeerRejected, Stream

# Closes by which a peer says that it leaves: its node's own goodbye, and its endpoint's when the node was
# cancelled.
_FAREWELLS = frozenset({codes.CLOSE_OK, codes.CLOSE_GOODBYE})
# Closes by which it says that others need the connection more.
_NO_ROOM = frozenset({codes.CLOSE_DROPPED, codes.CLOSE_FULL})
# Seconds for a peer that ended its gossip to end the connection too, and so to say why: the tasks of one that leaves
# end in any order. A guess, some round trips and a busy machine's delay.
_PARTING = 0.5


@define(eq=False)
class Connections:
    """All connections of a node. Everything runs in `nursery`, which the node owns."""

    config: NodeConfig
    clock: Clock
    nursery: trio.Nursery
    links: LinkTable
    plan: DialPlan
    presence: Presence
    pubsub: PubSub
    revoking: Revoking
    roster: Roster
    server: RpcServer
    briefs: Briefs
    stats: Stats
    log: FilteringBoundLogger
    wake_dialer: Callable[[], None]
    incarnation: int
    _count: int = 0
    _leaving: bool = False
    _greeting: set[PeerId] = field(factory=set)  # our hello is under way to these
    _doubtful: dict[PeerId, Standing] = field(factory=dict)  # lost, and PeerDown not told yet

    # -- the dialler's side

    async def greet(self, connection: Connection[Admitted], *, urgent: bool) -> None:
        """Say hello on a connection that we dialled, and take it into use if the peer does.

        Raises `PeerUnreachable` if it does not, and closes the connection then; not if there is another one
        by now.
        """
        peer = connection.peer.peer
        if peer in self.links:
            connection.close_now(codes.CLOSE_DUPLICATE, "there is another connection")
            return
        self._greeting.add(peer)
        taken = False
        try:
            answer = await self._say_hello(connection, urgent=urgent)
            self.presence.hear_hello(peer, answer, connection.remote_address or ("0.0.0.0", 0))
            if answer.answer == Answer.TAKE.value:
                if peer not in self.links and not self.links.has_place_for(peer, urgent=urgent):
                    connection.close_now(codes.CLOSE_FULL, "full: a call is under way on every connection")
                    raise PeerUnreachable(peer, self.full)
                self._take(connection, Standing(answer.incarnation, answer.count))
                self.revoking.heard(peer, answer.revoked)
                taken = True
            elif peer not in self.links:
                raise PeerUnreachable(peer, f"it refused the connection: {answer.answer}")
        except (*STREAM_ERRORS, RemoteProtocolError, RpcFailed) as error:
            raise PeerUnreachable(peer, f"the greeting failed: {error}") from error
        finally:
            self._greeting.discard(peer)
            if not taken:
                # The peer may have taken it already: if we are leaving, it has to hear so.
                code = codes.CLOSE_GOODBYE if self._leaving else codes.CLOSE_DUPLICATE
                connection.close_now(code, "not in use")

    async def _say_hello(self, connection: Connection[Admitted], *, urgent: bool) -> Hello:
        stream = await connection.open_stream()
        deadline_ms = int(self.config.timings.dial * 1000)
        hello = self._hello(connection, urgent=urgent)
        return parse_hello(await ask(stream, codes.HELLO, hello.to_value(), deadline_ms))

    def _hello(self, connection: Connection[Admitted], answer: str = "", *, urgent: bool = False) -> Hello:
        return Hello(
            incarnation=self.incarnation,
            count=self._count,
            links=len(self.links),
            urgent=urgent,
            record=self.presence.own_record(),
            seen=text_of(connection.remote_address or ("0.0.0.0", 1)),
            peers=self.presence.some_records(),
            answer=answer,
            revoked=self.revoking.serial,
        )

    # -- the acceptor's side

    async def welcome(self, connection: Connection[Admitted]) -> None:
        """Wait for the first call on a connection that was dialled to us: it says what the connection is
        for.
        """
        try:
            with trio.fail_after(self.config.timings.header):
                stream = await connection.accept_stream()
                payload = await FramedStream(stream).read_frame(MAX_HELLO)
                request = _first_call(payload, self.briefs.server.handlers)
                if request.method == codes.HELLO:
                    await self._answer_hello(connection, stream, parse_hello(request.body))
                    return
            await self.briefs.welcome(connection, stream, payload or b"")
        except (*STREAM_ERRORS, trio.TooSlowError) as error:
            connection.close_now(codes.CLOSE_MISBEHAVED, "no hello in time")
            self.log.debug("no greeting", peer=str(connection.peer.peer), error=str(error))
        except RemoteProtocolError as error:
            self.stats.frames_malformed += 1
            connection.close_now(codes.CLOSE_MISBEHAVED, f"bad hello: {error.rule}")
            self.log.warning("bad greeting", peer=str(connection.peer.peer), error=str(error))

    async def _answer_hello(self, connection: Connection[Admitted], stream: Stream, hello: Hello) -> None:
        answer = self._decide(connection, hello)
        reply = self._hello(connection, "take" if answer is Answer.TAKE_RESTARTED else answer.value)
        await stream.send_all(encode_frame(Response.success(reply.to_value())))
        await stream.aclose()

    def _decide(self, connection: Connection[Admitted], hello: Hello) -> Answer:
        """The answer to a hello. If it is to take the connection, it is in use when this returns."""
        peer = connection.peer.peer
        offered = Standing(hello.incarnation, hello.count)
        current = self.links.get(peer)
        self.presence.hear_hello(peer, hello, connection.remote_address or ("0.0.0.0", 0))
        answer = answer_hello(
            self.config.identity.peer_id,
            peer,
            offered,
            None if current is None else current.standing,
            my_hello_sent=peer in self._greeting,
            room=self.links.has_room_for(0 if hello.urgent else hello.links),
        )
        if answer in (Answer.TAKE, Answer.TAKE_RESTARTED):
            self._take(connection, offered)
            self.revoking.heard(peer, hello.revoked)
        else:
            self.stats.connections_refused += 1
        return answer

    # -- in use

    def _take(self, connection: Connection[Admitted], standing: Standing) -> None:
        """Take a connection into use for which there is room, or one to give up: who decides that has looked."""
        peer = connection.peer.peer
        before = self.links.get(peer)
        known = self._doubtful.pop(peer, None) if before is None else before.standing
        if before is not None:
            before.close(codes.CLOSE_REPLACED, "replaced by a newer connection")
        elif len(self.links) >= self.config.max_connections:
            self.make_room()
        if known is not None and known.incarnation != standing.incarnation:
            self.roster.down(peer, "restarted")
        self._count += 1
        now = self.clock.now()
        link = Link(
            admitted=connection.peer,
            connection=connection,
            standing=standing,
            outbox=self.pubsub.attach(peer, connection.is_client, connection.remote_address),
            slots=Slots(self.config.limits.calls_per_peer, self.config.limits.unread_answers),
            since=now,
            since_ms=self.clock.timestamp(),
            last_used=now,
        )
        self.links.put(link)
        self.plan.linked(peer, now)
        self.roster.up(self.info(peer))
        self.log.info("peer connected", peer=str(peer), dialled=connection.is_client)
        connection.take_streams(partial(self._answer_at_once, link))
        self.nursery.start_soon(self._serve, link)

    def _answer_at_once(self, link: Link, stream: Stream) -> bool:
        """Whether a stream that has just come is done with; else a worker goes on with it."""
        link.last_used = self.clock.now()
        read = self.server.answer_at_once(stream, link.caller)
        if read is None:
            return True
        if read.request is not None:
            link.read[stream] = read
        return False

    @property
    def full(self) -> str:
        """Why a peer is not dialled, or its connection given up again."""
        return f"all {self.config.max_connections} connections are in use"

    def make_room(self) -> bool:
        """Give the least used connection up; False if none can be spared."""
        spare = self.links.spare()
        if spare is None:
            return False
        self._drop(spare, codes.CLOSE_DROPPED, "dropped: room was needed for another peer")
        return True

    async def _serve(self, link: Link) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send_gossip, link)
                nursery.start_soon(Workers(link.connection, partial(self._answer_call, link), nursery).work)
                await link.connection.closed.wait()
                nursery.cancel_scope.cancel()
        finally:
            link.connection.close_now(codes.CLOSE_GOODBYE, "the node leaves")
            self.pubsub.detach(link.peer, link.outbox)
        self._ended(link)

    async def _answer_call(self, link: Link, stream: Stream, scope: trio.CancelScope) -> None:
        await self.server.serve(stream, link.caller, link.slots, scope, read=link.read.pop(stream, None))

    async def _send_gossip(self, link: Link) -> None:
        """Carry the outbox to the peer.

        Without its gossip a connection is of no use: the two end together.
        """
        try:
            stream = await link.connection.open_stream()
            await start_call(stream, codes.GOSSIP)
            while not link.outbox.overflowed:
                await stream.send_all(await link.outbox.take())
            reason = "it does not read its gossip"
        except (*STREAM_ERRORS, RemoteProtocolError) as error:
            reason = f"gossip broke: {error}"
            with trio.move_on_after(_PARTING):
                await link.connection.closed.wait()
        if not link.connection.closed.is_set():
            self.log.warning("connection given up", peer=str(link.peer), reason=reason)
            link.connection.close_now(codes.CLOSE_MISBEHAVED, reason)

    # -- the end

    def _ended(self, link: Link) -> None:
        if not self.links.remove(link) or link.ending is not None:
            return
        error = link.connection.close_error
        now = self.clock.now()
        if isinstance(error, ConnectionClosed) and error.code in _FAREWELLS:
            self.plan.left(link.peer, now)
            self._down(link.peer, "goodbye")
        elif isinstance(error, ConnectionClosed) and error.code in _NO_ROOM:
            self.plan.lost(link.peer, now, lasted=0.0)
            self._down(link.peer, "dropped: the peer needed the room")
        else:
            self._doubtful[link.peer] = link.standing
            self.plan.lost(link.peer, now, lasted=now - link.since)
            self.log.info("connection lost", peer=str(link.peer), error=str(error))
        self.wake_dialer()

    def is_doubtful(self, peer: PeerId) -> bool:
        """Whether `peer` was lost, and the one dial that decides is still to come."""
        return peer in self._doubtful

    def gave_up(self, peer: PeerId) -> None:
        """A dial to `peer` failed: whoever was in doubt is down."""
        if self._doubtful.pop(peer, None) is not None:
            self._down(peer, "lost: silent, and a new connection failed")

    def _drop(self, link: Link, code: int, reason: str) -> None:
        link.close(code, reason)
        if self.links.remove(link):
            self.plan.lost(link.peer, self.clock.now(), lasted=0.0)
            self._down(link.peer, reason)

    def _down(self, peer: PeerId, reason: str) -> None:
        self.log.info("peer down", peer=str(peer), reason=reason)
        self.roster.down(peer, reason)

    def let_go(self, link: Link) -> None:
        """Close a connection that nobody needs."""
        self._drop(link, codes.CLOSE_DROPPED, "dropped: not needed")

    def recheck(self) -> None:
        """Judge all connected peers by the policy as it is now, and part from those that are refused."""
        for link in self.links.all():
            try:
                link.admitted = admit(self.config.policy, link.peer, link.admitted.member, self.clock)
            except PeerRejected as error:
                self.log.warning("peer refused", peer=str(link.peer), reason=error.reason)
                self._drop(link, codes.CLOSE_MISBEHAVED, f"refused: {error.reason}")

    def say_goodbye(self) -> None:
        """Close all connections with a clean farewell."""
        self._leaving = True
        self.briefs.close()
        for link in self.links.all():
            link.close(codes.CLOSE_GOODBYE, "goodbye")

    def info(self, peer: PeerId) -> PeerInfo:
        """What applications are told of `peer`."""
        link = self.links.get(peer)
        known = self.presence.directory.get(peer)
        addresses = self.presence.directory.addresses(peer)
        return PeerInfo(
            id=peer,
            address=addresses[0] if addresses else None,
            roles=frozenset() if link is None else link.admitted.roles,
            connected=link is not None,
            since=0 if link is None else link.since_ms,
            labels={} if known is None or known.record is None else known.record.labels,
        )


def _first_call(payload: bytes | None, brief: Container[str]) -> Request:
    if payload is None:
        raise RemoteProtocolError("mesh.hello", "the first stream ended without a hello")
    request = Request.from_value(codec.decode(payload))
    if request.method != codes.HELLO and request.method not in brief:
        raise RemoteProtocolError("mesh.hello", f"the first call is {request.method} instead of the hello")
    return request
