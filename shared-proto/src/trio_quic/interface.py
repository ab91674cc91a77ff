"""What an endpoint sees of a QUIC core: one connection's state machine, without I/O.

:class:`~trio_quic.core.AioquicCore` is one (:mod:`trio_quic.core`), :class:`~trio_quic.native.NativeCore` another; which one
an endpoint has is an argument of :func:`~trio_quic.open_endpoint`. Times are readings of one monotonic clock in
seconds, passed in; datagrams go in and come out; nothing here waits.

What every core holds to:

- *Nobody unproven is heard.* ``events`` tells of streams only once ``established`` is true, and ``established`` is true
  only when the peer has proven its certificate's key and the check has accepted the certificate.
- *Credit follows consumption*: what a peer has sent and the application has not read is bounded.
- *Streams count until the application has let go of them.*
- *To an unproven address* a server's core sends at most three times what came from there (RFC 9000 §8.1).
"""

import hmac
import os
from collections.abc import Iterator
from typing import Protocol

import attrs

from .errors import PeerRejected
from .limits import Limits
from .tls import CertificateCheck, Credentials

Address = tuple[str, int]
Datagram = tuple[bytes, Address]

CID_LENGTH = 8
"""Bytes of our own connection ids."""

CALM = 0.020
"""Seconds in which a calm connection's ``next_timeout`` cannot come: see :meth:`Core.is_calm`."""

_CRYPTO_ERROR = 0x100  # RFC 9000 §20.1: these codes carry a TLS alert
_RESET_TOKEN_BYTES = 16  # RFC 9000 §10.3


class CoreFault(Exception):
    """The core fell over a datagram or its own state. This connection cannot go on; others can."""


@attrs.define
class Data:
    """Bytes of a stream, in order, each once. ``fin``: no more will come."""

    stream_id: int
    data: bytes
    fin: bool


@attrs.frozen
class Reset:
    """The peer abandoned its sending side of a stream."""

    stream_id: int
    code: int


@attrs.frozen
class Stopped:
    """The peer wants no more of what we send on a stream."""

    stream_id: int
    code: int


@attrs.frozen
class CidIssued:
    """Datagrams may from now on carry this connection id."""

    cid: bytes


@attrs.frozen
class CidRetired:
    """Datagrams will no longer carry this connection id."""

    cid: bytes


Event = Data | Reset | Stopped | CidIssued | CidRetired


@attrs.frozen
class Termination:
    """How a connection ended. ``by`` is "us", "peer" or "silence"; ``code`` an application's if
    ``application``.
    """

    by: str
    code: int
    reason: str
    application: bool

    @property
    def alert(self) -> int | None:
        """The TLS alert that ended the handshake, if one did (RFC 9001 §4.8)."""
        if not self.application and 0 <= self.code - _CRYPTO_ERROR <= 0xFF:
            return self.code - _CRYPTO_ERROR
        return None


@attrs.frozen
class CoreConfig:
    """What all connections of an endpoint have in common."""

    credentials: Credentials
    alpn: str
    limits: Limits
    reset_key: bytes = attrs.field(factory=lambda: os.urandom(32), repr=False)
    """From this the tokens are made by which a restarted endpoint disowns connections (RFC 9000 §10.3.2). The same
    after a restart if a restart is to be noticed.
    """


def reset_token(key: bytes, cid: bytes) -> bytes:
    """The stateless reset token of one of our connection ids."""
    return hmac.digest(key, cid, "sha256")[:_RESET_TOKEN_BYTES]


class Core(Protocol):
    """One connection's state machine. See the module's text for the rules that it keeps."""

    # -- who is there

    @property
    def cid(self) -> bytes:
        """Our first connection id."""

    @property
    def is_known(self) -> bool:
        """Whether any packet of the peer could be decrypted yet."""

    @property
    def address_proven(self) -> bool:
        """Whether the peer has shown that it receives where it says it is (RFC 9000 §8.1)."""

    @property
    def established(self) -> bool:
        """Both sides are proven, accepted, and know it of each other."""

    @property
    def verified(self) -> object:
        """What the certificate check returned."""

    @property
    def rejection(self) -> PeerRejected | None:
        """Why we refused the peer, if we did."""

    @property
    def remote_address(self) -> Address | None:
        """Where the peer was heard last."""

    @property
    def peer_reset_token(self) -> bytes:
        """By what the peer would disown the connection after a restart; empty while unknown."""

    # -- datagrams and time

    def connect(self, address: Address, now: float) -> None:
        """Start a client's handshake."""

    def receive(self, data: bytes, address: Address, now: float) -> None:
        """Take in one datagram. Raises CoreFault if the core cannot go on."""

    def timer(self, now: float) -> None:
        """To be called when ``next_timeout`` has come. Raises CoreFault."""

    def next_timeout(self) -> float | None:
        """When to call ``timer`` and ``datagrams``, if nothing happens before."""

    @property
    def is_calm(self) -> bool:
        """Whether what happens now makes ``next_timeout`` no sooner than CALM seconds from now, but for probes that need
        not be on time: then who looks again by then need not ask for it meanwhile. False is always right.
        """

    def datagrams(self, now: float) -> list[Datagram]:
        """What is to be sent now; best asked for once a batch. Raises CoreFault."""

    def wants_to_send(self, now: float) -> bool:
        """Whether ``datagrams`` is worth a call before ``next_timeout``."""

    @property
    def has_news(self) -> bool:
        """Whether streams have something to say to the peer."""

    @property
    def has_events(self) -> bool:
        """Whether ``events`` has any."""

    def events(self) -> Iterator[Event]:
        """What has happened since the last call."""

    def seek_reset_token(self) -> None:
        """See to it that the peer can disown the connection after a restart, where the core can."""

    def ping(self) -> None:
        """Make the peer answer."""

    def close(self, code: int, reason: str) -> None:
        """Close for the application's reasons; ``datagrams`` then has the farewell."""

    @property
    def termination(self) -> Termination | None:
        """How the connection ended, as soon as nothing more can be sent or received on it."""

    # -- streams

    def can_open(self) -> bool:
        """Whether a stream more is allowed by the peer's limit and by ours."""

    def open_stream(self) -> int:
        """A new bidirectional stream's id; the peer learns of it with its first byte, FIN or reset."""

    def buffered(self, stream_id: int) -> int:
        """Bytes of a stream that were written and still take up memory of the core's."""

    def send(self, stream_id: int, data: bytes, *, fin: bool = False) -> None:
        """Queue bytes of a stream whose sending side is open."""

    def reset(self, stream_id: int, code: int) -> None:
        """Abandon our sending side of a stream; what was not yet delivered may be lost."""

    def stop(self, stream_id: int, code: int) -> None:
        """Ask the peer to send no more on a stream, unless it has sent all."""

    def consumed(self, stream_id: int, count: int) -> bool:
        """The application has read ``count`` bytes. Returns whether there is something to send or to hand on."""

    def let_go(self, stream_id: int) -> None:
        """The application is done with a stream; its slot is free when the wire is done with it, too."""

    def is_let_go(self, stream_id: int) -> bool:
        """Whether the application is done with a stream."""


class MakeCore(Protocol):
    """A kind of core, such as :class:`~trio_quic.core.AioquicCore`: what makes one for each connection."""

    def __call__(
        self,
        config: CoreConfig,
        check: CertificateCheck,
        *,
        original_cid: bytes | None = None,
        retry_cid: bytes | None = None,
    ) -> Core:
        """A client's side, or with the ``original_cid`` of a client's first datagram, a server's. ``retry_cid`` is
        what our Retry told the client to use instead, if there was one.
        """
