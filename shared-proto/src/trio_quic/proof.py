"""How a client proves itself inside a channel whose server TLS has proven, for cores whose server cannot ask for a
client's certificate. The argument, and the attacks that it has to meet, are in ``specs/technical-spec.md`` §12.2.

On the server's first bidirectional stream:

=========  ================================================================================
server     a nonce of 32 random bytes, fresh for each connection
client     certificate length (2 bytes, big-endian), certificate (DER), signature (64 bytes), end of stream
server     one byte 1, end of stream; or it closes the connection with the TLS alert that says why
=========  ================================================================================

The signature is Ed25519 over ``DOMAIN ‖ SHA-256(server's certificate) ‖ SHA-256(client's certificate) ‖ nonce ‖
channel binding``. All parts have fixed lengths. :class:`Prover` is the client's side, :class:`Examiner` the server's; no I/O
and no QUIC in here.
"""

import hashlib
import hmac

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding

from .errors import PeerRejected
from .tls import CertificateCheck, Credentials, ask_application, check_certificate

DOMAIN = b"trio_quic client proof 1\x00"
"""Begins nothing else that an endpoint's key signs: TLS signs 64 spaces first, X.509 a DER sequence (0x30)."""

NONCE_BYTES = 32
ACCEPTED = b"\x01"

# A certificate with 4 KiB of extensions fits several times. At it, the client is refused.
MAX_CERTIFICATE = 16 * 1024
MAX_PROOF = 2 + MAX_CERTIFICATE + 64

_BINDING = b"trio_quic channel binding 1\x00"
_SIGNATURE_BYTES = 64


def channel_binding(secret: bytes) -> bytes:
    """What only the two ends of one TLS channel know, and what tells nothing of ``secret``.

    ``secret`` is the client's first application traffic secret (RFC 8446 §7.1), which depends on both ends' key shares
    and on the whole handshake, the server's certificate included. TLS itself feeds it only into HKDF-Expand-Label,
    whose inputs begin with a length below 256 in two bytes; this one begins with a letter.
    """
    return hmac.digest(secret, _BINDING, "sha256")


def signed_bytes(server: x509.Certificate, client: x509.Certificate, nonce: bytes, binding: bytes) -> bytes:
    """What the client signs."""
    return DOMAIN + _digest(server) + _digest(client) + nonce + binding


def make_proof(own: Credentials, server: x509.Certificate, nonce: bytes, binding: bytes) -> bytes:
    """The client's message. Raises ValueError if the own certificate is too long for one."""
    certificate = own.certificate.public_bytes(Encoding.DER)
    if len(certificate) > MAX_CERTIFICATE:
        raise ValueError(f"the certificate has {len(certificate)} bytes, more than {MAX_CERTIFICATE}")
    signature = own.private_key.sign(signed_bytes(server, own.certificate, nonce, binding))
    return len(certificate).to_bytes(2, "big") + certificate + signature


def check_proof(message: bytes, own: x509.Certificate, nonce: bytes, binding: bytes) -> x509.Certificate:
    """The certificate that a client has proven to a server with the certificate ``own``. Raises PeerRejected."""
    encoded, signature = _parts(message)
    certificate = load_certificate(encoded)
    check_certificate(certificate)
    key = certificate.public_key()
    assert isinstance(key, Ed25519PublicKey), "checked by check_certificate"
    try:
        key.verify(signature, signed_bytes(own, certificate, nonce, binding))
    except InvalidSignature as exc:
        raise PeerRejected("the certificate's key was not proven for this channel") from exc
    return certificate


def load_certificate(encoded: bytes) -> x509.Certificate:
    """A certificate from its DER encoding. Raises PeerRejected."""
    try:
        return x509.load_der_x509_certificate(encoded)
    except (ValueError, x509.InvalidVersion) as exc:
        raise PeerRejected("the certificate cannot be parsed") from exc


def _parts(message: bytes) -> tuple[bytes, bytes]:
    size = int.from_bytes(message[:2], "big")
    if not size:
        raise PeerRejected("the client showed no certificate")
    if len(message) != 2 + size + _SIGNATURE_BYTES:
        raise PeerRejected("the client's proof is not as long as it says")
    return message[2 : 2 + size], message[2 + size :]


def _digest(certificate: x509.Certificate) -> bytes:
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).digest()


class Prover:
    """The client's side. Methods return what is to be sent on the proof's stream, which then ends; mostly nothing."""

    def __init__(self, own: Credentials) -> None:
        self._own = own
        self._server: x509.Certificate | None = None
        self._binding = b""
        self._heard = bytearray()
        self.sent = False
        """Whether the proof is on its way."""
        self.accepted = False
        """Whether the server has said that it accepts us."""

    def on_server(self, certificate: x509.Certificate, binding: bytes) -> bytes:
        """TLS has proven the server's certificate, and we accept it."""
        self._server, self._binding = certificate, binding
        return self._prove()

    def on_data(self, data: bytes) -> bytes:
        """Bytes of the proof's stream. Raises ValueError if they are not what a server says."""
        self._heard += data
        out = self._prove()
        said = bytes(self._heard[NONCE_BYTES:])
        if said and (said != ACCEPTED or not self.sent):
            raise ValueError("the server's word is not a nonce and then an acceptance")
        self.accepted = said == ACCEPTED
        return out

    def on_other_stream(self) -> bool:
        """The server has spoken on another stream. Honest ones accept us first, so that its word was overtaken; returns
        whether this can be.
        """
        self.accepted = self.sent
        return self.sent

    def _prove(self) -> bytes:
        if self.sent or self._server is None or len(self._heard) < NONCE_BYTES:
            return b""
        self.sent = True
        return make_proof(self._own, self._server, bytes(self._heard[:NONCE_BYTES]), self._binding)


class Examiner:
    """The server's side. ``nonce``: fresh random bytes, to be sent first."""

    def __init__(self, own: x509.Certificate, check: CertificateCheck, nonce: bytes) -> None:
        self._own = own
        self._check = check
        self._nonce = nonce
        self._heard = bytearray()
        self.verified: object = None
        """What ``check`` returned."""
        self.accepted = False
        """Whether the client is proven, and ``check`` has accepted it."""

    def on_data(self, data: bytes, fin: bool, binding: bytes) -> bytes:
        """Bytes of the proof's stream; returns the acceptance, once. Raises PeerRejected."""
        self._heard += data
        if len(self._heard) > MAX_PROOF:
            raise PeerRejected("the client's proof does not end")
        if not fin:
            return b""
        certificate = check_proof(bytes(self._heard), self._own, self._nonce, binding)
        self.verified = ask_application(self._check, certificate)
        self.accepted = True
        return ACCEPTED
