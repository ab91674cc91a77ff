"""aioquic's connection, with the habits overridden that do not suit us. Only :mod:`trio_quic.core` uses this.

What is overridden are private methods, so the versions of aioquic that this works with are pinned, and every
override has a test that fails without it.
"""

from aioquic._buffer import Buffer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection, QuicConnectionError, QuicReceiveContext
from aioquic.quic.packet import QuicErrorCode, QuicProtocolVersion

from .interface import CID_LENGTH, CoreConfig, reset_token
from .tls import CertificateCheck, MutualContext

VERSION = QuicProtocolVersion.VERSION_1

# All that TLS says in one packet number space. Certificates of 50 KB would fit; ours have some hundred bytes.
MAX_CRYPTO_BYTES = 64 * 1024

# Gaps in one stream's received data. A full window in datagrams of 1200 bytes has 220; more is an attack on
# our time.
MAX_GAPS = 1024


def quic_configuration(config: CoreConfig, *, is_client: bool) -> QuicConfiguration:
    """What an endpoint's connections have in common, in aioquic's words."""
    return QuicConfiguration(
        alpn_protocols=[config.alpn],
        certificate=config.credentials.certificate,
        connection_id_length=CID_LENGTH,
        idle_timeout=config.limits.idle_timeout,
        is_client=is_client,
        max_data=config.limits.connection_window,
        max_datagram_size=config.limits.datagram_size,
        max_stream_data=config.limits.first_window,
        private_key=config.credentials.private_key,
        supported_versions=[VERSION],
    )


class HardenedConnection(QuicConnection):
    """aioquic's connection with the overrides that :mod:`trio_quic.core` explains."""

    def __init__(
        self,
        config: CoreConfig,
        check: CertificateCheck,
        original_cid: bytes | None = None,
        retry_cid: bytes | None = None,
    ) -> None:
        super().__init__(
            configuration=quic_configuration(config, is_client=original_cid is None),
            original_destination_connection_id=original_cid,
            retry_source_connection_id=retry_cid,
        )
        self._alpn = config.alpn
        self._check = check
        self._reset_key = config.reset_key
        if not self._is_client:
            self._host_cids[0].stateless_reset_token = reset_token(self._reset_key, self.host_cid)
        self._local_max_streams_bidi.value = self._local_max_streams_bidi.sent = config.limits.max_streams
        self._local_max_streams_uni.value = self._local_max_streams_uni.sent = 0
        self.allowed_streams = config.limits.max_streams
        """How many streams the peer may open in all, from the beginning."""
        self.context: MutualContext | None = None

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        self.tls = self.context = MutualContext(
            self.tls, is_client=self._is_client, alpn=self._alpn, check=self._check
        )

    def hold_stream_limit(self) -> None:
        """Take back what aioquic grants by itself for each stream that is over on the wire."""
        self._local_max_streams_bidi.value = self.allowed_streams

    def _handle_crypto_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        start = buf.tell()
        end = buf.pull_uint_var() + buf.pull_uint_var()
        buf.seek(start)
        if end > MAX_CRYPTO_BYTES:
            raise QuicConnectionError(
                QuicErrorCode.CRYPTO_BUFFER_EXCEEDED, frame_type, "too many bytes of handshake"
            )
        super()._handle_crypto_frame(context, frame_type, buf)

    def _replenish_connection_ids(self) -> None:
        super()._replenish_connection_ids()
        for connection_id in self._host_cids:
            if not connection_id.was_sent:
                connection_id.stateless_reset_token = reset_token(self._reset_key, connection_id.cid)

    def seek_reset_token(self) -> None:
        """A client's first connection id has no reset token: send to another one, so that we notice its restart."""
        if not self._peer_cid.stateless_reset_token and self._handshake_confirmed:
            self.change_connection_id()

    def _probe_preferred_address(self) -> None:
        # A server could make us send to addresses of its choice; our peers have none to prefer.
        self._remote_preferred_address = None
