"""An endpoint: one UDP socket, three tasks, and any number of connections in both directions.

One task receives, one sends what connections have queued, and one minds the time. A connection has no task.
"""

import hmac
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import Any, Generic, TypeVar

import attrs
import trio
from cryptography import x509

from .census import Census, Guest
from .clock import Clock
from .connection import Connection
from .core import AioquicCore
from .errors import EndpointFull, HandshakeFailed
from .interface import Address, Core, CoreConfig, Datagram, MakeCore
from .limits import Limits
from .strangers import (
    INVALID_TOKEN,
    AddressValidation,
    InvalidToken,
    Proof,
    destination_cid,
    is_initial,
    possible_reset,
    refusal,
    stateless_reset,
)
from .tls import Credentials
from .udp import DatagramSocket, open_udp_socket

T = TypeVar("T")
U = TypeVar("U")

VerifyPeer = Callable[[x509.Certificate], T]

# Closed connections whose farewell is repeated for a while, should it have been lost (RFC 9000 §10.2). At the
# limit the oldest is dropped: that peer then notices by its idle time-out.
MAX_FAREWELLS = 256
FAREWELL_SECONDS = 3.0

# Stateless resets are answers to anybody: so many seconds apart, with bursts of so many. At it, peers of a
# restarted endpoint wait for their next datagram, or their idle time-out. Guesses.
RESET_INTERVAL = 0.01
RESET_BURST = 100

# Passes of Trio's scheduler for which a connection's sending waits while tasks are between two calls on its
# streams, so that an answer written in several calls, its end of stream and our acknowledgements share datagrams.
# Measured: an echo of 200 bytes takes 2.0 datagrams with 4, and 2.9 with 1. At it, what there is goes out.
PATIENCE = 4


@attrs.define
class _Farewell:
    datagrams: list[Datagram]
    until: float
    heard: int = 0


class Endpoint(Generic[T]):
    """See :func:`open_endpoint`."""

    def __init__(
        self,
        socket: DatagramSocket,
        config: CoreConfig,
        verify_peer: VerifyPeer[T],
        core: MakeCore,
    ) -> None:
        self._socket = socket
        self._make_core = core
        self._config = config
        self._limits = config.limits
        self._verify_peer = verify_peer
        self._routes: dict[bytes, Connection[Any]] = {}
        self._cids: dict[Connection[Any], set[bytes]] = {}
        self._unaccepted: set[Connection[Any]] = set()
        self._accepted: deque[Connection[T]] = deque()
        self._accept_news = trio.Event()
        self._farewells: OrderedDict[bytes, _Farewell] = OrderedDict()
        self._closed = False
        self._dirty: dict[Connection[Any], None] = {}
        self._dirty_news = trio.Event()
        self._tokens: dict[bytes, Connection[Any]] = {}
        self._next_reset = float("-inf")
        self._validation = AddressValidation()
        self._census = Census(config.limits)
        self._guests: dict[Connection[Any], Guest] = {}
        self._clock = Clock()

    @property
    def local_address(self) -> Address:
        """Where this endpoint receives, as (host, port)."""
        return self._socket.address

    @property
    def connections(self) -> int:
        """How many connections there are, half-open ones included."""
        return len(self._cids)

    async def connect(
        self,
        address: Address,
        *,
        verify_peer: VerifyPeer[U] | None = None,
        timeout: float = 10.0,
    ) -> Connection[Any]:
        """Connect to the endpoint at ``address``, an (IP address, port) pair.

        Returns when *both* sides have proven and accepted each other: a peer that refuses us raises here.
        Raises :class:`PeerRejected` (by either side), :class:`HandshakeFailed` (no answer in ``timeout``
        seconds, no common protocol, …), :class:`EndpointFull`, or ValueError if the host is not an IP address.
        """
        self._check_open()
        # Datagrams are matched with the peer by the address as the kernel writes it; names are not resolved.
        address = (str(ip_address(address[0])), address[1])
        if self.connections >= self._limits.max_connections:
            raise EndpointFull(f"there are already {self.connections} connections")
        now = trio.current_time()
        core = self._make_core(self._config, verify_peer or self._verify_peer)
        core.connect(address, now)
        connection = self._start(core, is_client=True, give_up_at=now + timeout)
        try:
            await connection.settled.wait()
        except trio.Cancelled:
            connection.close_now(0, "")
            raise
        if not connection.ready:
            raise connection.close_error or HandshakeFailed("the endpoint was closed during the handshake")
        return connection

    async def accept(self) -> Connection[T]:
        """The next incoming connection whose peer is proven and accepted. It may already have ended again."""
        await trio.lowlevel.checkpoint()
        while not self._accepted:
            self._check_open()
            self._accept_news = trio.Event() if self._accept_news.is_set() else self._accept_news
            await self._accept_news.wait()
        connection = self._accepted.popleft()
        self._unaccepted.discard(connection)
        return connection

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this endpoint was closed")

    # -- for connections

    def send(self, datagrams: list[Datagram]) -> None:
        """Put datagrams on the wire."""
        self._socket.send(datagrams)

    def add_cid(self, cid: bytes, connection: Connection[Any]) -> None:
        """Route datagrams with this id to the connection."""
        self._routes[cid] = connection
        self._cids[connection].add(cid)

    def remove_cid(self, cid: bytes) -> None:
        """Route them no more."""
        connection = self._routes.pop(cid, None)
        if connection is not None:
            self._cids[connection].discard(cid)

    def note_token(self, old: bytes, new: bytes, connection: Connection[Any]) -> None:
        """By what the peer would disown a connection."""
        if old:
            self._tokens.pop(self._blind(old), None)
        if new:
            self._tokens[self._blind(new)] = connection

    def wake(self, connection: Connection[Any]) -> None:
        """Have the connection flushed soon."""
        self._dirty[connection] = None
        self._dirty_news.set()

    def arm(self, connection: Connection[Any]) -> None:
        """Note when the connection wants to be looked at."""
        if connection in self._cids:
            self._clock.arm(connection, len(self._cids))

    def on_ready(self, connection: Connection[Any]) -> None:
        """Both sides are proven."""
        if not connection.is_client:
            self._accepted.append(connection)
            self._accept_news.set()

    def on_over(self, connection: Connection[Any], farewell: list[Datagram]) -> None:
        """Forget a connection, but repeat its farewell for a while."""
        if not connection.ready:
            self._unaccepted.discard(connection)
        if (guest := self._guests.pop(connection, None)) is not None:
            self._census.leave(guest)
        self.note_token(connection.reset_token, b"", connection)
        until = trio.current_time() + FAREWELL_SECONDS
        for cid in self._cids.pop(connection, ()):
            self._routes.pop(cid, None)
            if farewell:
                self._farewells[cid] = _Farewell(farewell, until)
        while len(self._farewells) > MAX_FAREWELLS:
            self._farewells.popitem(last=False)

    # -- sending, and the time

    async def transmit(self) -> None:
        """The endpoint's second task: flush the connections that have something to send."""
        while True:
            await self._dirty_news.wait()
            now = trio.current_time()
            for connection in tuple(self._dirty):
                if connection.busy and connection.waited < PATIENCE:
                    connection.waited += 1
                else:
                    connection.waited = 0
                    del self._dirty[connection]
                    connection.flush(now)
            if not self._dirty:
                self._dirty_news = trio.Event()

    async def mind_the_time(self) -> None:
        """The endpoint's third task: call connections when they are due."""
        while True:
            now, due = await self._clock.next_due()
            for connection in due:
                if connection.due() <= now:
                    connection.on_time(now)
                else:
                    self.arm(connection)

    # -- receiving

    async def receive(self) -> None:
        """The endpoint's task: take in what has arrived, a batch at a time."""
        while True:
            self.take_in(await self._socket.receive())

    def take_in(self, batch: list[Datagram]) -> None:
        """Take in datagrams with their senders, as if the socket had received them: for ways beside it."""
        now = trio.current_time()
        touched: dict[Connection[Any], None] = {}
        for data, address in batch:
            connection = self._dispatch(data, address, now)
            if connection is not None:
                touched[connection] = None
        for connection in touched:
            connection.digest(now)

    def _dispatch(self, data: bytes, address: Address, now: float) -> Connection[Any] | None:
        """Bring a datagram to the connection that it is for, and return that one."""
        cid = destination_cid(data)
        if cid is None:
            return None
        connection = self._routes.get(cid)
        if connection is not None:
            connection.feed(data, address, now)
        elif cid in self._farewells:
            self._repeat_farewell(cid, now)
        elif is_initial(data):
            connection = self._greet(data, cid, address, now)
        else:
            self._on_unknown(data, cid, address, now)
        return connection

    def _on_unknown(self, data: bytes, cid: bytes, address: Address, now: float) -> None:
        """A peer disowns a connection of ours, or still has one that we lost by a restart (RFC 9000 §10.3)."""
        token = possible_reset(data)
        connection = None if token is None else self._tokens.get(self._blind(token))
        if connection is not None:
            connection.disowned()
        elif now >= self._next_reset:
            self._next_reset = max(self._next_reset + RESET_INTERVAL, now - RESET_BURST * RESET_INTERVAL)
            self._answer(stateless_reset(data, cid, self._config.reset_key), address)

    def _blind(self, token: bytes) -> bytes:
        """What a token is looked up by, so that the time it takes tells nothing of tokens (RFC 9000 §10.3.1)."""
        return hmac.digest(self._config.reset_key, token, "sha256")

    def _repeat_farewell(self, cid: bytes, now: float) -> None:
        """Say it again after 1, 2, 4, 8 … datagrams, so that two ends cannot keep each other talking."""
        farewell = self._farewells[cid]
        if now > farewell.until:
            del self._farewells[cid]
            return
        farewell.heard += 1
        if farewell.heard & (farewell.heard - 1) == 0:
            self.send(farewell.datagrams)

    def _greet(self, data: bytes, cid: bytes, address: Address, now: float) -> Connection[Any] | None:
        """A stranger's first datagram: refused, asked to prove its address, or the start of a connection."""
        if len(self._unaccepted) >= self._limits.max_handshakes:
            return None
        try:
            proof = self._validation.check(data, address, now)
        except InvalidToken:
            self._answer(refusal(data, INVALID_TOKEN), address)
            return None
        if self.connections >= self._limits.max_connections or self._census.is_crowded(address):
            self._answer(refusal(data), address)
            return None
        if proof is None and len(self._unaccepted) >= self._limits.retry_above:
            self._answer(self._validation.retry(data, address, now), address)
            return None
        return self._admit(data, cid, address, now, proof)

    def _answer(self, datagram: bytes | None, address: Address) -> None:
        if datagram is not None:
            self.send([(datagram, address)])

    def _admit(
        self, data: bytes, cid: bytes, address: Address, now: float, proof: Proof | None
    ) -> Connection[Any]:
        """The server's side of a new connection."""
        guest = self._census.enter(address)
        core = self._make_core(
            self._config,
            guest.checked_by(self._verify_peer),
            original_cid=cid if proof is None else proof.original_cid,
            retry_cid=None if proof is None else proof.retry_cid,
        )
        connection = self._start(core, is_client=False, give_up_at=now + self._limits.handshake_timeout)
        self._unaccepted.add(connection)
        self._guests[connection] = guest
        self.add_cid(cid, connection)
        connection.feed(data, address, now)
        if not connection.is_known():
            # Nobody who knows QUIC sent this: keep nothing of it.
            connection.abandon()
        return connection

    def _start(self, core: Core, *, is_client: bool, give_up_at: float) -> Connection[Any]:
        connection: Connection[Any] = Connection(
            self, core, self._limits, is_client=is_client, give_up_at=give_up_at
        )
        self._cids[connection] = set()
        self.add_cid(core.cid, connection)
        self.wake(connection)
        return connection

    def close_now(self) -> None:
        """Close all connections, each with a farewell; waits for nothing."""
        self._closed = True
        for connection in list(self._cids):
            connection.close_now(0, "the endpoint is closing")
        self._accept_news.set()


def _reset_key(credentials: Credentials, address: Address) -> bytes:
    """The same after a restart on the same port, and for nobody else."""
    secret = credentials.private_key.private_bytes_raw()
    return hmac.digest(secret, b"trio_quic stateless reset %d" % address[1], "sha256")


@asynccontextmanager
async def open_endpoint(
    host: str,
    port: int,
    *,
    credentials: Credentials,
    alpn: str,
    verify_peer: VerifyPeer[T],
    limits: Limits | None = None,
    socket: DatagramSocket | None = None,
    core: MakeCore = AioquicCore,
) -> AsyncIterator[Endpoint[T]]:
    """An endpoint on a UDP address of this machine (port 0: any free one), for connections in both
    directions.

    ``verify_peer`` gets the certificate of every peer after its possession of the key was proven and before
    any application data is handled, on both sides. What it returns is the connection's ``peer``; to refuse,
    it raises :class:`PeerRejected` (or another ValueError). It runs inside the handshake: it must be quick
    and cannot wait.

    Leaving the context closes all connections, telling the peers, and ends all tasks, also when cancelled.
    Raises OSError if the address cannot be bound. ``socket`` replaces the UDP socket, for tests and other
    transports. ``core`` is the QUIC state machine of its connections (:mod:`trio_quic.interface`); both ends of a
    connection need the same.
    """
    limits = limits or Limits()
    if socket is None:
        socket = open_udp_socket(host, port, limits.socket_buffer)
    config = CoreConfig(credentials, alpn, limits, _reset_key(credentials, socket.address))
    try:
        async with trio.open_nursery() as nursery:
            endpoint = Endpoint(socket, config, verify_peer, core)
            for task in (endpoint.receive, endpoint.transmit, endpoint.mind_the_time):
                nursery.start_soon(task)
            try:
                yield endpoint
            finally:
                endpoint.close_now()
                nursery.cancel_scope.cancel()
    finally:
        socket.close()
