"""The errors of this package: what happened, to which peer or stream, and what the other side said.

::

    QuicError
    ├── HandshakeFailed            no authenticated connection came about
    │   └── PeerRejected           … because one side refused the other's certificate
    ├── EndpointFull               our own cap on connections is reached
    ├── ConnectionClosed           the peer closed the connection on purpose (also a BrokenResourceError)
    ├── ConnectionLost             silence, a dead path, or a breach of the protocol (also a
    BrokenResourceError) └── StreamReset                the peer abandoned one stream (also a
    BrokenResourceError)

Using what *this* side has closed raises :class:`trio.ClosedResourceError`, as Trio's own resources do.
"""

import trio


class QuicError(Exception):
    """Base of all errors of this package."""


class HandshakeFailed(QuicError):
    """The handshake with a peer did not lead to an authenticated connection."""


class PeerRejected(HandshakeFailed):
    """One side refused the other's certificate.

    A ``verify_peer`` callback raises ``PeerRejected(reason)`` to refuse a peer. The first 200 bytes of the
    reason are sent to the refused peer, whose ``connect()`` raises this error with :attr:`by_remote` set; so
    keep secrets out.
    """

    def __init__(self, reason: str, *, by_remote: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.by_remote = by_remote


class EndpointFull(QuicError):
    """The endpoint already has ``Limits.max_connections`` connections: close one, or raise the limit."""


class ConnectionClosed(QuicError, trio.BrokenResourceError):
    """The peer closed the connection with an application ``code`` and a ``reason`` (possibly empty)."""

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(
            f"the peer closed the connection with code {code}" + (f": {reason}" if reason else "")
        )
        self.code = code
        self.reason = reason


class ConnectionLost(QuicError, trio.BrokenResourceError):
    """The connection ended without the peer's closing it: idle time-out, dead path, or a breach of the
    protocol.
    """


class StreamReset(QuicError, trio.BrokenResourceError):
    """The peer abandoned a stream: it will send no more on it, or wants no more of it. ``code`` is the
    peer's.
    """

    def __init__(self, code: int) -> None:
        super().__init__(f"the peer reset the stream with code {code}")
        self.code = code
