"""The bytes of relaying (machineplane-spec, "Reaching machines behind NAT"): datagrams on a circuit's stream, and the
datagrams that are no QUIC. No I/O.

A *circuit* carries each datagram behind its length, two bytes, big-endian. *Side datagrams* go beside QUIC through
the same UDP port; their first byte is 0, which no QUIC packet has (RFC 9443):

    00 "magik" 00 nonce(16)                     probe: the receiver can be reached
    00 "magik" 01 id(8) nonce(8) proof(16)      ping: do you hear me from here?
    00 "magik" 02 id(8) nonce(8) proof(16)      pong: yes

`id` and `proof` come from a key that the two ends told each other over their encrypted connection; the proof is the
first half of HMAC-SHA256(key, kind ‖ role ‖ nonce), with role 0 for the end that asked for the punch and 1 for the
other, so that nobody can answer in its name, nor send it its own words back.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from hashlib import sha256

from attrs import define, field, frozen

from magik_proto.errors import RemoteProtocolError

# Bytes of one relayed datagram: QUIC as we send it fits 1200, Ethernet 1500. A guess with room for more.
MAX_DATAGRAM = 2048
_LENGTH = 2

MAGIC = b"\x00magik"
PROBE, PING, PONG = 0, 1, 2
NONCE_BYTES = 16
KEY_BYTES = 32
_PROOF = 16
_HALF = 8
_PROBE_SIZE = len(MAGIC) + 1 + NONCE_BYTES
_PING_SIZE = len(MAGIC) + 1 + 2 * _HALF + _PROOF


def pack(datagrams: Iterable[bytes]) -> bytes:
    """Datagrams as bytes of a circuit."""
    return b"".join(len(data).to_bytes(_LENGTH, "big") + data for data in datagrams)


@define
class Unpacker:
    """Datagrams out of a circuit's bytes, however these are cut. Keeps less than one datagram."""

    _rest: bytes = b""

    def feed(self, data: bytes | bytearray) -> list[bytes]:
        """The datagrams that `data` completes.

        Raises `RemoteProtocolError` for a length of 0 or above `MAX_DATAGRAM`: the circuit is of no more use.
        """
        buffer = self._rest + data
        found: list[bytes] = []
        start = 0
        while len(buffer) - start >= _LENGTH:
            size = int.from_bytes(buffer[start : start + _LENGTH], "big")
            if not 0 < size <= MAX_DATAGRAM:
                raise RemoteProtocolError(
                    "relay.frame", f"a datagram of {size} bytes, 1 to {MAX_DATAGRAM} are allowed"
                )
            end = start + _LENGTH + size
            if len(buffer) < end:
                break
            found.append(buffer[start + _LENGTH : end])
            start = end
        self._rest = buffer[start:]
        return found


def probe(nonce: bytes) -> bytes:
    """A probe with the nonce that its receiver asked for."""
    return MAGIC + bytes([PROBE]) + nonce


def probed_nonce(data: bytes) -> bytes | None:
    """The nonce of a probe; None for another datagram."""
    if len(data) != _PROBE_SIZE or data[: len(MAGIC) + 1] != MAGIC + bytes([PROBE]):
        return None
    return data[len(MAGIC) + 1 :]


@frozen
class Ping:
    """A ping or pong as it came, not proven yet."""

    kind: int
    id: bytes
    nonce: bytes
    proof: bytes


def parse_ping(data: bytes) -> Ping | None:
    """The ping or pong in a side datagram; None for another one."""
    head = len(MAGIC)
    if len(data) != _PING_SIZE or data[head] not in (PING, PONG):
        return None
    at = head + 1
    return Ping(data[head], data[at : at + _HALF], data[at + _HALF : at + 2 * _HALF], data[at + 2 * _HALF :])


@define
class PunchKey:
    """What two ends prove themselves to each other by, outside of QUIC. `asked`: this end asked for the punch."""

    key: bytes = field(repr=False)
    asked: bool

    @property
    def id(self) -> bytes:
        """By what a side datagram finds its key."""
        return sha256(b"magik/punch" + self.key).digest()[:_HALF]

    def ping(self, nonce: bytes) -> bytes:
        """A ping; `nonce` is 8 random bytes."""
        return self._written(PING, nonce)

    def pong(self, nonce: bytes) -> bytes:
        """The answer to the ping with `nonce`."""
        return self._written(PONG, nonce)

    def proves(self, ping: Ping) -> bool:
        """Whether the other end wrote it."""
        return hmac.compare_digest(ping.proof, self._proof(ping.kind, ping.nonce, asked=not self.asked))

    def _written(self, kind: int, nonce: bytes) -> bytes:
        return MAGIC + bytes([kind]) + self.id + nonce + self._proof(kind, nonce, asked=self.asked)

    def _proof(self, kind: int, nonce: bytes, *, asked: bool) -> bytes:
        role = 0 if asked else 1
        return hmac.digest(self.key, bytes([kind, role]) + nonce, "sha256")[:_PROOF]
