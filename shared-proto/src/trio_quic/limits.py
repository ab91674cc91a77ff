"""What an endpoint may use, and what happens when it would use more."""

import attrs
from attrs import validators

KIB = 1024
MIB = 1024 * KIB


@attrs.frozen
class Limits:
    """Bounds of one endpoint. Times are in seconds, sizes in bytes.

    The sizes are guesses between the memory of an endpoint and the bandwidth-delay product of a datacentre
    link (1 Gbit/s at 2 ms is 250 KB); a measurement over a real long-distance link would settle them.
    """

    idle_timeout: float = attrs.field(default=10.0, validator=validators.gt(0))
    """A connection whose peer has been silent for so long is lost (RFC 9000 §10.1: the smaller of both sides'
    values counts, it starts anew with the first packet sent after a silence, and it is at least three probe
    time-outs). With keep-alive a dead peer is thus noticed at most ``idle_timeout + keep_alive`` after its
    last datagram."""

    keep_alive: float | None = 3.0
    """A connection silent for so long gets a PING, so that it lives while the peer lives. None: no pings."""

    handshake_timeout: float = attrs.field(default=10.0, validator=validators.gt(0))
    """A client that has not proven itself in this time is dropped."""

    max_connections: int = attrs.field(default=1024, validator=validators.ge(1))
    """Connections of the endpoint, both directions together. At it, incoming ones are refused with
    CONNECTION_REFUSED, and ``connect()`` raises :class:`EndpointFull`."""

    max_handshakes: int = attrs.field(default=128, validator=validators.ge(1))
    """Incoming connections that are half open, or waiting for ``accept()``. At it, the first datagrams of new
    clients are dropped without an answer; clients repeat them."""

    retry_above: int = attrs.field(default=32, validator=validators.ge(0))
    """Incoming connections that are half open, or waiting for ``accept()``, above which a new client has to prove
    its address by a Retry (RFC 9000 §8.1.2) before anything is kept of it: one round trip more. A guess: a quarter
    of ``max_handshakes``, so that a flood under false addresses cannot fill the rest."""

    max_per_address: int = attrs.field(default=256, validator=validators.ge(1))
    """Incoming connections from one IPv4 address or IPv6 /64 network. At it, further ones are refused with
    CONNECTION_REFUSED. Above ``retry_above``, so that nobody is shut out under a borrowed address; a guess that
    lets a fabric live behind one NAT."""

    max_per_identity: int = attrs.field(default=16, validator=validators.ge(1))
    """Incoming connections whose peers have proven one and the same key. At it, a further one is refused like a
    certificate (PeerRejected, with the reason). A guess: one is in use; a peer that dials several addresses of ours at
    once, or restarts within our idle time-out, has a few for a moment."""

    max_streams: int = attrs.field(default=128, validator=validators.ge(1))
    """Streams of one connection, for each side that opens. At it, the peer waits by QUIC's own limit, and
    ``open_stream()`` waits. A stream counts until both its directions are over *and* the application let go
    of it."""

    stream_window: int = attrs.field(default=256 * KIB, validator=validators.ge(1024))
    """Received bytes of one stream that the application has not read. At it, the peer's stream waits. A stream begins
    with ``first_window`` and gets more as it is read."""

    connection_window: int = attrs.field(default=4 * MIB, validator=validators.ge(1024))
    """Received bytes of all streams of a connection that were not read. The streams' windows share it: streams that
    nobody reads never use up what others need. At it, streams get no more than ``first_window``.
    """

    send_buffer: int = attrs.field(default=256 * KIB, validator=validators.ge(1024))
    """Bytes of one stream that the peer has not acknowledged. At it, ``send_all`` waits."""

    datagram_size: int = attrs.field(default=1200, validator=[validators.ge(1200), validators.le(65527)])
    """UDP payload that we send first. 1200 passes everywhere (RFC 9000 §14)."""

    largest_datagram: int = attrs.field(default=8952, validator=[validators.ge(1200), validators.le(16383)])
    """UDP payload up to which a connection with bulk probes what its path takes (RFC 8899): 1452, then 8952. No more than
    ``datagram_size``: it does not."""

    socket_buffer: int = attrs.field(default=2 * MIB, validator=validators.ge(4 * KIB))
    """Receive and send buffers asked of the kernel for a UDP socket that the endpoint opens; the kernel may
    give less. At it, the kernel drops datagrams, which QUIC repeats."""

    @property
    def first_window(self) -> int:
        """The window of a stream of which nothing was read yet: all streams that may be open take up half of the
        connection's. (At least 1 KiB; with so small a connection's window the streams may wait for each other.)
        """
        return max(1024, min(self.stream_window, self.connection_window // (4 * self.max_streams)))

    def __attrs_post_init__(self) -> None:
        if self.keep_alive is not None and not 0 < self.keep_alive < self.idle_timeout:
            raise ValueError(f"keep_alive ({self.keep_alive}) must lie between 0 and idle_timeout")
