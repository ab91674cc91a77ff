"""An endpoint: one UDP socket, one task that receives, and any number of connections in both directions."""

from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import Any, Generic, TypeVar

import attrs
import trio
from cryptography import x509

from .connection import Connection
from .core import Address, Core, Datagram, destination_cid, is_initial, refusal
from .errors import EndpointFull, HandshakeFailed
from .hardened import CoreConfig
from .limits import Limits
from .tls import Credentials
from .udp import DatagramSocket, open_udp_socket

T = TypeVar("T")
U = TypeVar("U")

VerifyPeer = Callable[[x509.Certificate], T]

# Closed connections whose farewell is repeated for a while, should it have been lost (RFC 9000 §10.2). At the
# limit the oldest is dropped: that peer then notices by its idle time-out.
MAX_FAREWELLS = 256
FAREWELL_SECONDS = 3.0


@attrs.define
class _Farewell:
    datagrams: list[Datagram]
    until: float
    heard: int = 0


class Endpoint(Generic[T]):
    """See :func:`open_endpoint`."""

    def __init__(
        self,
        nursery: trio.Nursery,
        socket: DatagramSocket,
        config: CoreConfig,
        verify_peer: VerifyPeer[T],
    ) -> None:
        self._nursery = nursery
        self._socket = socket
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
        core = Core(self._config, verify_peer or self._verify_peer)
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

    def on_ready(self, connection: Connection[Any]) -> None:
        """Both sides are proven."""
        if not connection.is_client:
            self._accepted.append(connection)
            self._accept_news.set()

    def on_over(self, connection: Connection[Any], farewell: list[Datagram]) -> None:
        """Forget a connection, but repeat its farewell for a while."""
        if not connection.ready:
            self._unaccepted.discard(connection)
        until = trio.current_time() + FAREWELL_SECONDS
        for cid in self._cids.pop(connection, ()):
            self._routes.pop(cid, None)
            if farewell:
                self._farewells[cid] = _Farewell(farewell, until)
        while len(self._farewells) > MAX_FAREWELLS:
            self._farewells.popitem(last=False)

    # -- receiving

    async def receive(self) -> None:
        """The endpoint's task: take in what has arrived, a batch at a time."""
        while True:
            batch = await self._socket.receive()
            now = trio.current_time()
            touched: dict[Connection[Any], None] = {}
            for data, address in batch:
                connection = self._dispatch(data, address, now)
                if connection is not None:
                    touched[connection] = None
            for connection in touched:
                connection.digest()

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
        return connection

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
        """A stranger's first datagram. A later address validation by Retry belongs here (RFC 9000 §8.1.2)."""
        if len(self._unaccepted) >= self._limits.max_handshakes:
            return None
        if self.connections >= self._limits.max_connections:
            answer = refusal(data)
            if answer is not None:
                self.send([(answer, address)])
            return None
        core = Core(self._config, self._verify_peer, original_cid=cid)
        connection = self._start(core, is_client=False, give_up_at=now + self._limits.handshake_timeout)
        self._unaccepted.add(connection)
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
        self._nursery.start_soon(connection.run)
        return connection

    def close_now(self) -> None:
        """Close all connections, each with a farewell; waits for nothing."""
        self._closed = True
        for connection in list(self._cids):
            connection.close_now(0, "the endpoint is closing")
        self._accept_news.set()


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
) -> AsyncIterator[Endpoint[T]]:
    """An endpoint on a UDP address of this machine (port 0: any free one), for connections in both
    directions.

    ``verify_peer`` gets the certificate of every peer after its possession of the key was proven and before
    any application data is handled, on both sides. What it returns is the connection's ``peer``; to refuse,
    it raises :class:`PeerRejected` (or another ValueError). It runs inside the handshake: it must be quick
    and cannot wait.

    Leaving the context closes all connections, telling the peers, and ends all tasks, also when cancelled.
    Raises OSError if the address cannot be bound. ``socket`` replaces the UDP socket, for tests and other
    transports.
    """
    config = CoreConfig(credentials, alpn, limits or Limits())
    if socket is None:
        socket = open_udp_socket(host, port, config.limits.socket_buffer)
    try:
        async with trio.open_nursery() as nursery:
            endpoint = Endpoint(nursery, socket, config, verify_peer)
            nursery.start_soon(endpoint.receive)
            try:
                yield endpoint
            finally:
                endpoint.close_now()
                nursery.cancel_scope.cancel()
    finally:
        socket.close()
