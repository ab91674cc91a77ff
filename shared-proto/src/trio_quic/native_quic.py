"""qh3's connection, fitted for :mod:`trio_quic.native`. Only that module uses this.

qh3 (the extra ``native``) is a fork of aioquic whose packets, streams and recovery are Rust; TLS is Python. Its public
connection takes all events out of the Rust core as they come, and what is taken out is credited to the peer. Here a
:class:`Tap` sits between the two: it takes stream events out only while its owner has room for them.

What is overridden are private methods, so the versions of qh3 that this works with are pinned, and every override has
a test that fails without it.
"""

import ssl
from collections.abc import Callable
from typing import Any, Protocol, TextIO, cast

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from qh3._hazmat import QuicConnectionCore
from qh3.quic.configuration import QuicConfiguration
from qh3.quic.connection import QuicConnection
from qh3.tls import ExtensionType, SignatureAlgorithm

from .interface import CID_LENGTH, Address, CoreConfig, reset_token
from .proof import channel_binding

NativeEvent = tuple[Any, ...]


class Taker(Protocol):
    """Who wants to know what the Rust core has to tell."""

    def has_room(self) -> bool:
        """Whether another event may be taken out. What is left inside is not credited to the peer."""

    def take(self, event: NativeEvent) -> bool:
        """Whether this event, (kind, ...), was one for the taker; others are qh3's own business."""


class Tap:
    """The Rust core with its events diverted; all else goes to it as it is."""

    def __init__(self, core: Any, taker: Taker) -> None:
        self.raw = core
        self._taker = taker

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)

    def next_event(self) -> NativeEvent | None:
        """The next event that is qh3's own business."""
        while self._taker.has_room():
            event: NativeEvent | None = self.raw.next_event()
            if event is None or not self._taker.take(event):
                return event
        return None


class _BindingLog:
    """Takes the place of qh3's log of TLS secrets, which is its only way to tell of them: one is hashed, none kept."""

    def __init__(self, tell: Callable[[bytes], None]) -> None:
        self._tell = tell

    def write(self, line: str) -> None:
        """A line in NSS's format: label, client random, secret."""
        label, _, secret = line.split()
        if label == "CLIENT_TRAFFIC_SECRET_0":
            self._tell(channel_binding(bytes.fromhex(secret)))

    def flush(self) -> None:
        """Nothing is held back."""


class NativeQuic(QuicConnection):
    """qh3's connection over a :class:`Tap`."""

    def __init__(
        self, config: CoreConfig, taker: Taker, original_cid: bytes | None, retry_cid: bytes | None
    ) -> None:
        self._taker = taker
        self._reset_key = config.reset_key
        self.binding = b""
        """The channel's binding, once TLS has come so far."""
        super().__init__(
            configuration=self._configured(config, is_client=original_cid is None),
            original_destination_connection_id=original_cid,
            retry_source_connection_id=retry_cid,
        )

    @property
    def raw(self) -> Any:
        """The Rust core; None before a server's first valid datagram."""
        core: Any = self._core
        return None if core is None else core.raw

    @property
    def handshake_complete(self) -> bool:
        """Whether TLS is done on this side."""
        return bool(self._handshake_complete)

    @property
    def alpn(self) -> str | None:
        """What both ends agreed on."""
        tls = self.tls
        return None if tls is None else tls.alpn_negotiated

    @property
    def peer_reset_token(self) -> bytes:
        """A server's, from its transport parameters; clients have none to tell."""
        parameters = None if self._tls is None else self._tls.remote_transport_parameters
        return b"" if parameters is None else parameters.stateless_reset_token or b""

    @property
    def failure(self) -> tuple[int, str, bool] | None:
        """The (code, reason, whether an application's) with which this side has closed."""
        event = self._close_event
        return None if event is None else (event.error_code, event.reason_phrase, event.frame_type is None)

    def drain(self) -> None:
        """Take out what there is room for."""
        if self._core is not None:
            self._drain_core()

    def _configured(self, config: CoreConfig, *, is_client: bool) -> QuicConfiguration:
        limits = config.limits
        out = QuicConfiguration(
            alpn_protocols=[config.alpn],
            connection_id_length=CID_LENGTH,
            idle_timeout=limits.idle_timeout,
            is_client=is_client,
            max_data=limits.connection_window,
            max_datagram_size=limits.datagram_size,
            max_datagram_frame_size=0,  # unreliable datagrams know no credit, and nobody here reads them
            max_stream_data=limits.stream_window,
            probe_datagram_size=False,
            secrets_log_file=cast(TextIO, _BindingLog(self._note_binding)),
            signature_algorithms=[SignatureAlgorithm.ED25519],
            verify_mode=ssl.CERT_NONE,  # no authority knows our peers: NativeCore judges the certificate
        )
        if not is_client:
            own = config.credentials
            key = own.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            out.load_cert_chain(own.certificate.public_bytes(Encoding.PEM), key)
        return out

    def _note_binding(self, binding: bytes) -> None:
        self.binding = binding

    def _create_core(self, remote_addr: Address, initial_dcid: bytes, now: float) -> None:
        super()._create_core(remote_addr, initial_dcid, now)
        self._core = cast(QuicConnectionCore, Tap(self._core, self._taker))

    def _create_tls(self, remote_source_cid: bytes | None) -> Any:
        bridge = super()._create_tls(remote_source_cid)
        if not self._is_client:
            bridge.stateless_reset_token = reset_token(self._reset_key, self.host_cid)
            parameters = bridge.serialize_transport_parameters()
            bridge.tls.handshake_extensions = [(ExtensionType.QUIC_TRANSPORT_PARAMETERS, parameters)]
        return bridge
