"""QUIC for Trio: mutually authenticated endpoints, connections and streams over aioquic's sans-IO core.

::

    key = Ed25519PrivateKey.generate()
    credentials = Credentials(make_certificate(key, common_name="alice"), key)

    def verify_peer(certificate):            # runs on both sides, before any application byte
        name = certificate.subject.rfc4514_string()
        if name != "CN=bob":
            raise PeerRejected(f"I only talk to bob, not to {name}")
        return name

    alice = open_endpoint("127.0.0.1", 0, credentials=credentials, alpn="chat/1", verify_peer=verify_peer)
    async with alice as me:
        connection = await me.connect(("127.0.0.1", 4433))    # connection.peer == "CN=bob"
        async with await connection.open_stream() as stream:
            await stream.send_all(b"hello")
            await stream.send_eof()
            async for chunk in stream:
                ...

The other side runs ``connection = await endpoint.accept()`` and ``stream = await
connection.accept_stream()``. One endpoint does both at once, on one UDP port.

- *Identity*: TLS 1.3, one self-signed Ed25519 certificate on each side, proven on every handshake; no
  resumption, no early data. ``connect()`` returns when the other side has accepted us, not before.
- *Streams* are :class:`trio.abc.HalfCloseableStream`, with back-pressure in both directions. Close them, all.
- *Ends* are told apart: :class:`ConnectionClosed` (the peer said so), :class:`ConnectionLost` (silence, or a
  breach of the protocol), :class:`StreamReset` (one stream). See :mod:`trio_quic.errors`.
- *Bounds*: everything that a peer can make us hold has a limit and an answer at it. See :class:`Limits`.
- *The core* that makes and reads the packets can be exchanged: aioquic's, or a native one
  (:mod:`trio_quic.native`, behind the extra ``native``) that is faster and keeps some rules less strictly.
- *Tests* run without a network or a wall clock: see :mod:`trio_quic.testing`.
"""

from .connection import Connection
from .core import AioquicCore
from .endpoint import Endpoint, open_endpoint
from .errors import (
    ConnectionClosed,
    ConnectionLost,
    EndpointFull,
    HandshakeFailed,
    PeerRejected,
    QuicError,
    StreamReset,
)
from .interface import MakeCore
from .limits import Limits
from .stream import Stream
from .tls import Credentials, make_certificate
from .udp import DatagramSocket, open_udp_socket

__all__ = [
    "AioquicCore",
    "Connection",
    "ConnectionClosed",
    "ConnectionLost",
    "Credentials",
    "DatagramSocket",
    "Endpoint",
    "EndpointFull",
    "HandshakeFailed",
    "Limits",
    "MakeCore",
    "PeerRejected",
    "QuicError",
    "Stream",
    "StreamReset",
    "make_certificate",
    "open_endpoint",
    "open_udp_socket",
]
