"""A mesh node: the one place where its parts meet. `magik_mesh.opening.open_node` makes one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import trio
from structlog.typing import FilteringBoundLogger

from magik_mesh import codes
from magik_mesh.addresses import Address, OwnAddresses, text_of
from magik_mesh.alarm import Alarm
from magik_mesh.briefs import Brief, Briefs
from magik_mesh.calls import Use, give_back, open_stream
from magik_mesh.clock import Clock, unit_random
from magik_mesh.config import NodeConfig
from magik_mesh.connections import Connections
from magik_mesh.dht import HashTable
from magik_mesh.dialer import Dialer
from magik_mesh.dialing import DialPlan
from magik_mesh.directory import Directory
from magik_mesh.errors import MeshError, PeerUnreachable, RpcFailed, RpcTimeout
from magik_mesh.hello import parse_records
from magik_mesh.links import Link, LinkTable
from magik_mesh.presence import Presence
from magik_mesh.pubsub import PubSub, Validator
from magik_mesh.reach import Reach
from magik_mesh.relay_socket import SwitchSocket
from magik_mesh.relaying import Relaying
from magik_mesh.revoking import Revoking
from magik_mesh.roster import PeerEvent, PeerInfo, Roster
from magik_mesh.rpc_client import ReplyStream, ask, ask_by, calling, milliseconds_until
from magik_mesh.rpc_server import Answerer, Call, Handler, RpcServer
from magik_mesh.stats import Stats
from magik_mesh.streams import STREAM_ERRORS
from magik_mesh.survey import SideSocket
from magik_mesh.tending import Tending
from magik_mesh.tls import Admitted, admission
from magik_proto.credentials import Revocations
from magik_proto.dht_frames import FIND, STORE
from magik_proto.dht_frames import MAX_FRAME as MAX_TABLE_FRAME
from magik_proto.dht_types import PutDone
from magik_proto.errors import RemoteProtocolError
from magik_proto.identity import BootstrapPeer, PeerId
from magik_proto.kademlia import Contact, K
from magik_proto.records import decode_record
from magik_proto.rpc import MAX_FRAME
from magik_proto.wire import SignedMessage, encode_message
from trio_quic import Connection, Endpoint

_RESERVED = ("/magik/mesh/", "/magik/relay/", "/magik/dht/")


class Node:
    """See `open_node`."""

    def __init__(
        self,
        config: NodeConfig,
        clock: Clock,
        endpoint: Endpoint[Admitted],
        socket: SwitchSocket,
        side_socket: SideSocket | None,
        nursery: trio.Nursery,
        log: FilteringBoundLogger,
    ) -> None:
        self.id: PeerId = config.identity.peer_id
        self.address: Address = endpoint.local_address
        self.stats = Stats()
        self._config = config
        self._clock = clock
        self._endpoint = endpoint
        self._socket = socket
        self._nursery = nursery
        self._log = log
        self._handlers: dict[str, Handler] = {}
        self._brief_handlers: dict[str, Handler] = {}
        self._plain: dict[str, Answerer] = {}
        self._asks = trio.CapacityLimiter(max(1, config.limits.briefs // 2))
        self._alarm = Alarm()
        self._links = LinkTable(config.max_connections)
        self._roster = Roster(config.limits.events)
        self._pubsub = PubSub(self.id, clock, config, self.stats, log)
        self._presence = self._make_presence()
        self._briefs = self._make_briefs()
        self._revoking = self._make_revoking()
        self._connections = self._make_connections()
        self._relaying = Relaying(
            config=config,
            clock=clock,
            calls=self,
            links=self._links,
            presence=self._presence,
            roster=self._roster,
            socket=socket,
            side_socket=side_socket,
            stats=self.stats,
            nursery=nursery,
            log=log,
        )
        self._dialer = Dialer(
            config, clock, endpoint, self._connections, self._relaying, admission(config, clock), log
        )
        self._table = HashTable(config, clock, nursery, self._presence, self._links, self._briefs, log)
        self._tending = Tending(config, clock, self._connections, self._dialer, self._briefs, self._table)

    # -- calls

    def handle(self, method: str, handler: Handler, *, brief: bool = False) -> None:
        """Serve calls of `method` with `handler`; see `Call`. `brief`: of machines as well that only `ask`.

        Register before the first await: what comes earlier is answered "unimplemented".
        """
        if method.startswith(_RESERVED) or method in self._handlers:
            raise ValueError(f"{method} has a handler already")
        self._handlers[method] = handler
        if brief:
            self._brief_handlers[method] = handler

    def answer(self, method: str, function: Answerer, *, brief: bool = False) -> None:
        """As `handle`, for a method that waits for nothing: `function` is plain, and is called without a task in the very
        pass that has brought the request, while all other connections wait. So it must be quick.
        """
        self.handle(method, _handler_of(function), brief=brief)
        self._plain[method] = function

    async def call(self, peer: PeerId, method: str, body: Any = None, *, timeout: float = 30.0) -> Any:
        """Ask `peer`, connecting first if need be; the answer's body.

        `timeout` (s) is for all of it and travels to the handler. Raises `RpcFailed`, `PeerUnreachable` or
        `RpcTimeout`.
        """
        at = trio.current_time() + timeout
        try:
            link = self._links.get(peer)
            if link is None:
                with trio.fail_at(at):
                    link = await self._reach(peer)
            with Use(link, self.stats, self._clock):
                return await ask_by(self._alarm, at, await open_stream(link, at), method, body)
        except trio.TooSlowError:
            raise RpcTimeout(peer, method, timeout) from None

    async def ask(
        self, peer: PeerId, method: str, body: Any = None, *, at: Sequence[Address] = (), timeout: float = 5.0
    ) -> Any:
        """As `call`, of a method that is served briefly: without a connection in use where there is none.

        `at` are addresses that the caller has heard of. Many such calls wait for each other: as many are under way
        as half of the brief connections.
        """
        if peer in self._links:
            return await self.call(peer, method, body, timeout=timeout)
        if peer == self.id:
            raise PeerUnreachable(peer, "it is this node itself")
        try:
            async with self._asks:
                with trio.fail_after(timeout) as scope:
                    return await self._ask(peer, method, body, at, scope)
        except trio.TooSlowError:
            raise RpcTimeout(peer, method, timeout) from None

    async def _ask(
        self, peer: PeerId, method: str, body: Any, at: Sequence[Address], scope: trio.CancelScope
    ) -> Any:
        brief = await self._brief(peer, at)
        try:
            assert brief.connection is not None
            stream = await brief.connection.open_stream()
            self.stats.calls_sent += 1
            return await ask(stream, method, body, milliseconds_until(scope.deadline))
        except STREAM_ERRORS as error:
            raise PeerUnreachable(peer, str(error)) from error
        except RemoteProtocolError as error:
            text = f"the answer of {peer} cannot be understood: {error}"
            raise RpcFailed(codes.MALFORMED, text) from error
        finally:
            self._briefs.release(brief)

    async def _brief(self, peer: PeerId, at: Sequence[Address]) -> Brief:
        """A brief connection: by what was heard, by what is known, by what the hash table finds."""
        addresses = tuple(dict.fromkeys((*at, *self._presence.directory.addresses(peer))))
        if addresses or self._relaying.client.relays_of(peer):
            try:
                return await self._briefs.reach(peer, addresses)
            except PeerUnreachable:
                if not await self._find(peer):
                    raise
        elif not await self._find(peer):
            raise PeerUnreachable(peer, "nobody has told its address (yet)")
        return await self._briefs.reach(peer, self._presence.directory.addresses(peer))

    @asynccontextmanager
    async def open_call(
        self, peer: PeerId, method: str, body: Any = None, *, timeout: float = 30.0
    ) -> AsyncIterator[tuple[Any, ReplyStream]]:
        """Ask `peer`, and keep the stream: the answer's body, and raw bytes both ways.

        `timeout` (s) is for the answer; the stream after it has none. Leaving before the peer has ended its
        half of the stream cancels its handler; read to the end to be sure that all was taken. Errors as in
        `call` until the answer; later the stream raises `trio_quic` errors (all of them
        `trio.BrokenResourceError`).
        """
        async with AsyncExitStack() as stack:
            with trio.move_on_after(timeout) as scope:
                opened = await self._open(stack, peer, method, body, scope)
            if scope.cancelled_caught:
                raise RpcTimeout(peer, method, timeout)
            yield opened

    async def _open(
        self, stack: AsyncExitStack, peer: PeerId, method: str, body: Any, scope: trio.CancelScope
    ) -> tuple[Any, ReplyStream]:
        link = await self._reach(peer)
        with Use(link, self.stats, self._clock):
            stream = await open_stream(link, scope.deadline)
            milliseconds = milliseconds_until(scope.deadline)
            opened = await stack.enter_async_context(calling(stream, method, body, milliseconds))
            link.calls += 1
            stack.callback(give_back, link)
            return opened

    async def _reach(self, peer: PeerId) -> Link:
        """The connection with `peer`, made first if there is none."""
        if peer == self.id:
            raise PeerUnreachable(peer, "it is this node itself")
        try:
            await self._dialer.reach(peer)
        except PeerUnreachable:
            if not await self._find(peer):
                raise
            await self._dialer.reach(peer)
        link = self._links.get(peer)
        if link is None:
            raise PeerUnreachable(peer, "the connection was lost again")
        return link

    # -- the hash table

    async def find_peer(self, peer: PeerId) -> tuple[Address, ...]:
        """Where `peer` is, the best address first, asking the fabric's hash table; nothing if nobody knows.

        `call` does so by itself for a peer of which no address is known.
        """
        return await self._table.find_peer(peer)

    async def put(self, record: SignedMessage) -> PutDone:
        """Have a signed record of one of the hash table's kinds kept by the machines nearest to its key.

        It has to be put again, newly signed, before its life ends. Says how many keep it (none, perhaps),
        and for which reasons others do not.
        """
        return await self._table.put(encode_message(record))

    async def records(self, kind: str, key: bytes) -> tuple[SignedMessage, ...]:
        """The living records of a kind under a 32-byte key, one of each signer, in the order of signers.

        All are genuine, and of whom may have such; none need be the newest, and some may be missing.
        """
        return tuple(decode_record(data) for data in await self._table.records(kind, key))

    async def closest(self, key: bytes) -> tuple[PeerId, ...]:
        """The machines nearest to a 32-byte position, nearest first, at most 20, this one left out."""
        return await self._table.closest(key)

    def size_estimate(self) -> int:
        """How many machines the fabric has, this one included.

        Those that are connected, in a fabric of no more than `max_connections`; in a larger one an estimate by
        the hash table, with an error of about 10 % after some minutes and 25 % before.
        """
        connected = len(self._links) + 1
        return max(connected, self._table.machine.size_estimate()) if self._presence.large else connected

    @property
    def large(self) -> bool:
        """Whether the fabric has more machines than a node has connections: then nobody knows everybody."""
        return self._presence.large

    def contacts(self) -> tuple[Contact, ...]:
        """The machines that this one is connected with, and then those that are nearest to it by position."""
        linked = {peer: self._connections.info(peer).address for peer in self._links.peers()}
        own = [Contact(peer, () if a is None else (text_of(a),)) for peer, a in linked.items()]
        near = [contact for contact in self._table.nearest(K) if contact.peer not in linked]
        return (*own, *near)

    async def _find(self, peer: PeerId) -> bool:
        """Whether the hash table knows how to reach a peer of which we have no record, a hint of an address at most."""
        known = self._presence.directory.get(peer)
        if known is not None and known.record is not None:
            return False
        return bool(await self._table.find_peer(peer) or self._relaying.client.relays_of(peer))

    # -- topics

    async def publish(self, topic: str, payload: bytes) -> None:
        """Hand `payload` (at most 64 KiB) to the gossip of `topic`. Own subscribers do not get it.

        Returns when it stands in the outboxes of the peers; the same payload once more is not sent again.
        """
        self._pubsub.publish(topic, payload)
        await trio.lowlevel.checkpoint()

    def subscribe(self, topic: str, validate: Validator) -> None:
        """Have `validate(source, payload)` judge each message of `topic`, one at a time, in order.

        `source` is the peer that handed it on, not who wrote it. `Accept` forwards it, and names who signed
        it: a validator has to check that signature, and to refuse what it cannot tell the origin of. IGNORE
        and REJECT do not forward; REJECT also blames the source, which two of those nearly cut off, so it is
        for what no honest machine would have handed on. One validator a topic; what it takes in, it passes on
        itself.
        """
        self._pubsub.subscribe(topic, validate)

    # -- peers

    def peers(self) -> tuple[PeerInfo, ...]:
        """All machines that are known, in the order of their ids."""
        known = {*self._presence.directory.peers(), *self._links.peers()}
        return tuple(self._connections.info(peer) for peer in sorted(known))

    def introduce(self, peer: BootstrapPeer) -> None:
        """Somebody has told of a peer: dial it, unless it is connected or this node itself.

        It is forgotten like any other that is away for long; tell again then. As for every peer, its handshake
        shows whether it is who it is said to be.
        """
        if peer.peer == self.id or peer.peer in self._links:
            return
        now = self._clock.now()
        presence = self._presence
        presence.directory.tell(peer.peer, [(peer.host, peer.port)], now, self._links.peers())
        presence.plan.want(peer.peer, now)
        presence.plan.hurry(peer.peer, now)
        self._dialer.wake()

    def subscribe_peers(self) -> trio.MemoryReceiveChannel[PeerEvent]:
        """`PeerUp` for everyone connected now, then all changes.

        Ends with the node, or when not read in time.
        """
        return self._roster.subscribe()

    @property
    def member_to_show(self) -> bytes | None:
        """Our membership, for messages that reach machines which may not know it; None where all know it."""
        return self._config.member if self._presence.large else None

    def roles(self, peer: PeerId, shown: bytes | None = None) -> frozenset[str] | None:
        """What `peer` may do:

        By its connection, else by the membership in its published record, else by the one that is `shown` with
        its message; None if unknown.
        """
        link = self._links.get(peer)
        if link is not None:
            return link.admitted.roles
        try:
            return self._config.policy.admit(peer, self.shown(peer) or shown, self._clock.timestamp())
        except RemoteProtocolError:
            return None

    def shown(self, peer: PeerId) -> bytes | None:
        """The membership, or the pass, that `peer` shows: in its connection, else in its published record."""
        if peer == self.id:
            return self._config.member
        link, known = self._links.get(peer), self._presence.directory.get(peer)
        if link is not None:
            return link.admitted.member
        return known.record.member if known and known.record else None

    @property
    def reach(self) -> Reach:
        """Whether strangers reach this machine, as of the last survey."""
        return self._relaying.reach

    @property
    def relays(self) -> tuple[PeerId, ...]:
        """By whom this machine can be reached, while it cannot be reached by itself."""
        return self._relaying.client.kept

    def is_relayed(self, peer: PeerId) -> bool:
        """Whether a relay carries the connection with `peer` now; False as well if there is none."""
        link = self._links.get(peer)
        return link is not None and self._socket.real(link.connection.remote_address) is None

    def recheck(self) -> None:
        """Judge all connected peers again, after the policy has changed.

        Happens by itself from time to time.
        """
        self._connections.recheck()

    def revoke(self, revocations: Revocations) -> bool:
        """Put the root's list in force here, part from whom it names, and spread it; False if it is no news.

        Raises `MembershipError` where the fabric's root has not signed it.
        """
        return self._revoking.take(revocations)

    def on_revocations(self, listener: Callable[[Revocations], None]) -> None:
        """Call `listener` with every list that is put in force, whoever brought it, for it to be kept."""
        self._revoking.news.append(listener)

    # -- tasks

    def start(self) -> None:
        """Start all tasks; they run from the next checkpoint on."""
        self._handlers[codes.GOSSIP] = self._pubsub.read_frames
        self._handlers[codes.REVOCATIONS] = self._revoking.answer
        self._handlers.update(self._relaying.handlers)
        table: dict[str, Answerer] = {FIND: self._table.on_find, STORE: self._table.on_store}
        plain = {codes.PEERS: self._on_exchange, **table}
        self._plain |= plain
        self._handlers |= {method: _handler_of(function) for method, function in plain.items()}
        self._brief_handlers |= {method: self._handlers[method] for method in table}
        self._pubsub.subscribe(codes.PRESENCE_TOPIC, self._presence.judge)
        if not self._config.policy.open:
            self._pubsub.subscribe(codes.REVOCATIONS_TOPIC, self._revoking.judge)
        now = self._clock.now()
        for peer in self._config.bootstrap:
            self._presence.directory.configure(peer.peer, (peer.host, peer.port), now)
            self._connections.plan.want(peer.peer, now, permanent=True)
        tasks = (
            self._pubsub.run,
            self._accept,
            self._dialer.run,
            self._exchange,
            self._renew,
            self._tending.run,
            self._alarm.run,
        )
        for task in (*tasks, self._relaying.run):
            self._nursery.start_soon(task)
        self._nursery.start_soon(self._table.run, self._roster)

    def stop(self) -> None:
        """Say goodbye and end all tasks."""
        self._connections.say_goodbye()
        self._roster.close()
        self._nursery.cancel_scope.cancel()

    async def _accept(self) -> None:
        while True:
            connection = await self._endpoint.accept()
            self._nursery.start_soon(self._connections.welcome, connection)

    async def _exchange(self) -> None:
        """From time to time: who else is there, says a random peer? And are all still members?"""
        while True:
            await trio.sleep(self._config.timings.exchange * (0.75 + unit_random(self._clock) / 2))
            self._connections.recheck()
            peers = self._links.peers()
            if not peers:
                continue
            peer = peers[int(unit_random(self._clock) * len(peers))]
            try:
                answer = await self.call(
                    peer, codes.PEERS, self._records(), timeout=self._config.timings.dial
                )
                self._presence.hear_records(peer, parse_records(answer))
            except (MeshError, RemoteProtocolError) as error:
                self._log.debug("peer exchange failed", peer=str(peer), error=str(error))
            await self._revoking.exchange(peer)
            self._dialer.wake()

    def _on_exchange(self, call: Call) -> Any:
        self._presence.hear_records(call.peer, parse_records(call.body))
        return self._records()

    def _records(self) -> list[bytes]:
        return [self._presence.own_record(), *self._presence.some_records()]

    async def _renew(self) -> None:
        while True:
            await trio.sleep(self._config.timings.presence * (0.75 + unit_random(self._clock) / 2))
            record = self._presence.renew()
            self._announce(record)
            self._table.announce(record)
            self._presence.expire()

    def _announce(self, record: bytes) -> None:
        """Tell everybody, where that is no flood: in a large fabric the hash table has to do."""
        if not self._presence.large:
            self._pubsub.publish(codes.PRESENCE_TOPIC, record)

    # -- parts

    def _make_presence(self) -> Presence:
        config = self._config
        listen = (config.host, self.address[1])
        return Presence(
            config=config,
            clock=self._clock,
            addresses=OwnAddresses(listen, config.advertised()),
            directory=Directory(self.id, config.limits),
            plan=DialPlan(config.timings, lambda: unit_random(self._clock)),
            stats=self.stats,
            log=self._log,
            connected=self._links.peers,
            announce=self._announce,
            store=lambda record: self._table.announce(record),
            on_news=lambda: self._dialer.wake(),
        )

    def _make_briefs(self) -> Briefs:
        async def dial(peer: PeerId, addresses: Sequence[Address], seconds: float) -> Connection[Admitted]:
            return await self._dialer.connect(peer, addresses, seconds)

        return Briefs(
            self._config, self._clock, self._make_server(self._brief_handlers, MAX_TABLE_FRAME), dial
        )

    def _make_server(self, handlers: Mapping[str, Handler], most: int = MAX_FRAME) -> RpcServer:
        config = self._config
        return RpcServer(
            handlers=handlers,
            plain=self._plain,
            alarm=self._alarm,
            stats=self.stats,
            log=self._log,
            header_timeout=config.timings.header,
            longest_deadline=config.limits.handler_deadline,
            max_request=most,
        )

    def _make_revoking(self) -> Revoking:
        return Revoking(
            own=self.id,
            policy=self._config.policy,
            nursery=self._nursery,
            log=self._log,
            call=lambda peer, body, seconds: self.call(peer, codes.REVOCATIONS, body, timeout=seconds),
            publish=lambda encoded: self._pubsub.publish(codes.REVOCATIONS_TOPIC, encoded),
            connected=self._links.peers,
            recheck=self.recheck,
        )

    def _make_connections(self) -> Connections:
        config = self._config
        return Connections(
            config=config,
            clock=self._clock,
            nursery=self._nursery,
            links=self._links,
            plan=self._presence.plan,
            presence=self._presence,
            pubsub=self._pubsub,
            revoking=self._revoking,
            roster=self._roster,
            server=self._make_server(self._handlers),
            briefs=self._briefs,
            stats=self.stats,
            log=self._log,
            wake_dialer=lambda: self._dialer.wake(),
            incarnation=int.from_bytes(self._clock.random(8), "big"),
        )


def _handler_of(function: Answerer) -> Handler:
    async def handler(call: Call) -> Any:
        return function(call)

    return handler
