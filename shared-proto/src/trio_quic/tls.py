"""Who is at the other end: self-signed Ed25519 certificates, demanded and proven on both sides.

aioquic can ask a client for a certificate only through a private switch meant for its own tests, takes an
empty certificate for an answer, and checks no signature in it. :class:`MutualContext` closes that: it is
aioquic's TLS state machine with every door but one shut. The rules, for both sides alike:

- exactly one certificate, with an Ed25519 key, signed with Ed25519 by that very key (nothing else is in the
  chain);
- possession of the key proven by CertificateVerify with Ed25519, the only algorithm offered or accepted;
- the application's ``check`` accepts the certificate; it runs after the proof and before TLS goes on, and
  thus before the keys for application data are installed;
- no session tickets, no resumption, no early data: every handshake proves everything anew.

Dates in a certificate are not looked at: there is no authority that dates would bind, and machines' clocks
differ. An application whose identities expire checks so in ``verify_peer``.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime

import attrs
from aioquic import tls
from aioquic._buffer import Buffer
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import NameOID, SignatureAlgorithmOID

from .errors import PeerRejected

logger = logging.getLogger("trio_quic")

CertificateCheck = Callable[[x509.Certificate], object]

# A reason travels in a CONNECTION_CLOSE frame, which has to fit one datagram beside its handshake packets.
MAX_REASON_BYTES = 200


@attrs.frozen
class Credentials:
    """What an endpoint shows of itself. The private key is never printed."""

    certificate: x509.Certificate
    private_key: Ed25519PrivateKey = attrs.field(repr=False)

    def __attrs_post_init__(self) -> None:
        """Refuse at start what every peer would refuse later."""
        if self.certificate.public_key() != self.private_key.public_key():
            raise ValueError("the certificate is not for this private key")
        check_certificate(self.certificate)


def make_certificate(
    private_key: Ed25519PrivateKey,
    *,
    common_name: str,
    uri_names: Iterable[str] = (),
    extensions: Mapping[str, bytes] | None = None,
) -> x509.Certificate:
    """A certificate for this key, signed by this key, without an end date (RFC 5280 §4.1.2.5).

    ``extensions`` maps dotted object identifiers to the DER or other bytes of extensions of your own (not
    critical). Raises ValueError for a name or identifier that X.509 does not allow.
    """
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    builder = (
        x509.CertificateBuilder(subject_name=name, issuer_name=name)
        .public_key(private_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime(1970, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC))
    )
    uris = [x509.UniformResourceIdentifier(uri) for uri in uri_names]
    if uris:
        builder = builder.add_extension(x509.SubjectAlternativeName(uris), critical=False)
    for oid, value in (extensions or {}).items():
        unrecognised = x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value)
        builder = builder.add_extension(unrecognised, critical=False)
    return builder.sign(private_key, None)


def check_certificate(certificate: x509.Certificate) -> None:
    """Raise :class:`PeerRejected` unless this is an Ed25519 certificate signed with its own key."""
    try:
        key = certificate.public_key()
    except (UnsupportedAlgorithm, ValueError) as exc:
        raise PeerRejected("the certificate's key is of an unknown kind") from exc
    if not isinstance(key, Ed25519PublicKey):
        raise PeerRejected("the certificate's key is not Ed25519")
    if certificate.signature_algorithm_oid != SignatureAlgorithmOID.ED25519:
        raise PeerRejected("the certificate is not signed with Ed25519")
    try:
        key.verify(certificate.signature, certificate.tbs_certificate_bytes)
    except InvalidSignature as exc:
        raise PeerRejected("the certificate is not signed by its own key") from exc


class CheckFailed(PeerRejected):
    """The application's check fell over a certificate."""


def ask_application(check: CertificateCheck, certificate: x509.Certificate) -> object:
    """What ``check`` returns for a certificate whose key is proven. Raises PeerRejected whatever it raises."""
    try:
        return check(certificate)
    except PeerRejected:
        raise
    except ValueError as exc:
        raise PeerRejected(str(exc)) from exc
    except Exception as exc:
        # A stranger's certificate has found a mistake in the application: closed, and loud on our side only.
        logger.exception("verify_peer failed; the peer is refused")
        raise CheckFailed("verify_peer failed") from exc


class CertificateRequired(tls.Alert):
    """The client showed no certificate (RFC 8446 §4.4.2.4)."""

    description = tls.AlertDescription.certificate_required


class AccessDenied(tls.Alert):
    """The application refused a certificate that is valid in itself (RFC 8446 §6.2)."""

    description = tls.AlertDescription.access_denied


# Alerts by which a peer says that it does not want *us*, in difference to "we do not understand each other".
REJECTING_ALERTS = frozenset(
    {
        tls.AlertDescription.access_denied,
        tls.AlertDescription.bad_certificate,
        tls.AlertDescription.certificate_required,
        tls.AlertDescription.certificate_unknown,
        tls.AlertDescription.unsupported_certificate,
    }
)


def short_reason(text: str) -> str:
    """``text`` cut to what may travel in a CONNECTION_CLOSE frame, at a character's edge."""
    return text.encode("utf-8", "replace")[:MAX_REASON_BYTES].decode("utf-8", "ignore")


class MutualContext(tls.Context):
    """aioquic's TLS 1.3 state machine, cut down to proven Ed25519 identities on both sides."""

    def __init__(self, base: tls.Context, *, is_client: bool, alpn: str, check: CertificateCheck) -> None:
        """Take over the transport parameters and callbacks that aioquic's QUIC core has put into ``base``."""
        super().__init__(is_client=is_client, alpn_protocols=[alpn], verify_mode=0)
        self.certificate = base.certificate
        self.certificate_private_key = base.certificate_private_key
        self.handshake_extensions = base.handshake_extensions
        self.alpn_cb = base.alpn_cb
        self.update_traffic_key_cb = base.update_traffic_key_cb
        self._request_client_certificate = True
        self._signature_algorithms: list[int] = [tls.SignatureAlgorithm.ED25519]
        # One group: a ClientHello carries a key share for each, and each costs both sides time.
        self._supported_groups: list[tls.Group] = [tls.Group.X25519]
        self._check = check
        self.verified: object = None
        """What ``check`` returned."""
        self.proven = False
        """Whether the peer has proven its certificate and ``check`` accepted it."""
        self.failure: PeerRejected | None = None
        """Why we refused the peer, if we did."""

    def _handle_reassembled_message(
        self, message_type: int, input_buf: Buffer, output_buf: dict[tls.Epoch, Buffer]
    ) -> None:
        if self.failure is not None:
            # Messages may stand behind the one that failed: nothing may go on from there.
            raise tls.AlertUnexpectedMessage(self.failure.reason)
        super()._handle_reassembled_message(message_type, input_buf, output_buf)

    def _server_handle_certificate(self, input_buf: Buffer) -> None:
        super()._server_handle_certificate(input_buf)
        if self._peer_certificate is None:
            raise self._refuse(CertificateRequired, PeerRejected("the client showed no certificate"))

    def _set_peer_certificate(self, certificate: tls.Certificate) -> None:
        if len(certificate.certificates) != 1:
            raise self._refuse(tls.AlertBadCertificate, PeerRejected("more than one certificate was shown"))
        try:
            super()._set_peer_certificate(certificate)
        except (tls.AlertBadCertificate, x509.InvalidVersion) as exc:
            rejected = PeerRejected("the certificate cannot be parsed")
            raise self._refuse(tls.AlertBadCertificate, rejected) from exc

    def _check_certificate_verify_signature(self, verify: tls.CertificateVerify) -> None:
        """Called on both sides with the peer's CertificateVerify, before its Finished."""
        certificate = self._peer_certificate
        assert certificate is not None
        try:
            check_certificate(certificate)
        except PeerRejected as exc:
            raise self._refuse(tls.AlertBadCertificate, exc) from exc
        try:
            super()._check_certificate_verify_signature(verify)
        except tls.AlertDecryptError as exc:
            rejected = PeerRejected("the certificate's key was not proven")
            raise self._refuse(tls.AlertDecryptError, rejected) from exc
        self._ask_application(certificate)

    def _ask_application(self, certificate: x509.Certificate) -> None:
        try:
            self.verified = ask_application(self._check, certificate)
        except CheckFailed as exc:
            raise self._refuse(tls.AlertInternalError, exc) from exc
        except PeerRejected as exc:
            raise self._refuse(AccessDenied, exc) from exc
        self.proven = True

    def _refuse(self, alert: type[tls.Alert], rejected: PeerRejected) -> tls.Alert:
        """Remember why, and make the alert that tells the peer."""
        self.failure = rejected
        return alert(short_reason(rejected.reason))
