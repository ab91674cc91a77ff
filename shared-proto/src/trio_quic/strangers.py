"""What is said to datagrams that belong to no connection, without keeping anything of them (RFC 9000 §8.1.2, §10.3).

Beside :mod:`trio_quic.core`, the other module that knows aioquic's packet formats.
"""

import os

import attrs
from aioquic._buffer import Buffer
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import (
    QuicErrorCode,
    QuicFrameType,
    QuicHeader,
    QuicPacketType,
    encode_quic_retry,
    pull_quic_header,
)
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.retry import QuicRetryTokenHandler

from .hardened import VERSION
from .interface import CID_LENGTH, Address, reset_token

INVALID_TOKEN = int(QuicErrorCode.INVALID_TOKEN)

# RFC 9000 §10.3: 5 unpredictable bytes and the token; and about as long as the shortest packets of ours.
SMALLEST_RESET = 21
LARGEST_RESET = 42


def is_initial(data: bytes) -> bool:
    """Whether a datagram may be the first of a client that speaks our version (RFC 9000 §14.1, §17.2)."""
    return len(data) >= 1200 and data[0] & 0xF0 == 0xC0 and int.from_bytes(data[1:5], "big") == VERSION


@attrs.frozen
class Proof:
    """A client's proof, by the token of our Retry, that it receives at its address."""

    original_cid: bytes
    """Where its very first datagram was addressed to."""
    retry_cid: bytes
    """Where our Retry told it to send instead."""


class InvalidToken(ValueError):
    """A client's first datagram carries a token that is not ours, too old, or for another address."""


class AddressValidation:
    """Retry and its tokens (RFC 9000 §8.1.2). No state but a key: tokens die with the endpoint, or after 30 s."""

    def __init__(self) -> None:
        self._tokens = QuicRetryTokenHandler()

    def check(self, data: bytes, address: Address, now: float) -> Proof | None:
        """What the token in a client's first datagram proves; None if there is none. Raises InvalidToken."""
        header = _first_header(data)
        if header is None or not header.token:
            return None
        try:
            original = self._tokens.validate_token(
                address=address, destination_cid=header.destination_cid, token=header.token, now=now
            )
        except ValueError as exc:
            raise InvalidToken(str(exc)) from exc
        return Proof(original, header.destination_cid)

    def retry(self, data: bytes, address: Address, now: float) -> bytes | None:
        """The Retry that answers a client's first datagram; far shorter than that."""
        header = _first_header(data)
        if header is None:
            return None
        cid = os.urandom(CID_LENGTH)
        token = self._tokens.create_token(
            address=address,
            original_destination_connection_id=header.destination_cid,
            retry_source_connection_id=cid,
            now=now,
        )
        return encode_quic_retry(
            version=VERSION,
            source_cid=cid,
            destination_cid=header.source_cid,
            original_destination_cid=header.destination_cid,
            retry_token=token,
        )


def _first_header(data: bytes) -> QuicHeader | None:
    try:
        return pull_quic_header(Buffer(data=data), host_cid_length=CID_LENGTH)
    except ValueError:
        return None


def refusal(data: bytes, code: int = QuicErrorCode.CONNECTION_REFUSED) -> bytes | None:
    """The answer to a client's first datagram that says CONNECTION_REFUSED, or another ``code``, and costs no state
    (RFC 9000 §5.2.2).

    None if the datagram is none. The answer is not longer than the question, so it amplifies nothing.
    """
    header = _first_header(data)
    if header is None:
        return None
    crypto = CryptoPair()
    crypto.setup_initial(cid=header.destination_cid, is_client=False, version=VERSION)
    builder = QuicPacketBuilder(
        host_cid=header.destination_cid,
        is_client=False,
        max_datagram_size=1200,
        peer_cid=header.source_cid,
        version=VERSION,
    )
    builder.start_packet(QuicPacketType.INITIAL, crypto)
    frame = builder.start_frame(QuicFrameType.TRANSPORT_CLOSE, capacity=8)
    for value in (code, QuicFrameType.PADDING, 0):
        frame.push_uint_var(value)
    datagrams, _ = builder.flush()
    return datagrams[0]


def possible_reset(data: bytes) -> bytes | None:
    """The token in a datagram that may be a stateless reset (RFC 9000 §10.3), else None."""
    return data[-16:] if len(data) >= SMALLEST_RESET and not data[0] & 0x80 else None


def stateless_reset(data: bytes, cid: bytes, key: bytes) -> bytes | None:
    """The answer to a datagram of a connection that we do not know: we do not, and never will again.

    It is shorter than the question by a third, so that two of us cannot go on like that (RFC 9000 §10.3.3); None if
    there is no room for that, or if it is no packet of an established connection.
    """
    size = max(SMALLEST_RESET, min(LARGEST_RESET, len(data) * 2 // 3))
    if data[0] & 0x80 or size >= len(data):
        return None
    noise = bytearray(os.urandom(size - 16))
    noise[0] = 0x40 | (noise[0] & 0x3F)
    return bytes(noise) + reset_token(key, cid)


def destination_cid(data: bytes) -> bytes | None:
    """The connection id to which a datagram is addressed, or None if it is no QUIC packet (RFC 9000 §17)."""
    if len(data) < CID_LENGTH + 1:
        return None
    if not data[0] & 0x80:
        return data[1 : 1 + CID_LENGTH]
    length = data[5]
    if length > 20 or len(data) < 6 + length:
        return None
    return data[6 : 6 + length]
