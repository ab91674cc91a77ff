"""Certificates of mesh nodes: how an identity and its membership are shown, and how they are checked.

A node's certificate is made from its Ed25519 identity at start and signed by itself; nobody issues it. It
carries

- the identity as the certificate's own key, which TLS proves: this alone is believed;
- the membership (the bytes of a `Member`, deterministic CBOR) in the extension `MEMBERSHIP_OID`, if there
  is one; on the plane of pods a `Pass` stands there;
- a SPIFFE URI name, `spiffe://<fabric root or "open">/<plane>/<subject, if any>/<peer id>`, for tools that read
  certificates. It must not contradict the key.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import frozen
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from magik_mesh.clock import Clock
from magik_mesh.config import NodeConfig
from magik_mesh.policy import Policy
from magik_proto.errors import RemoteProtocolError
from magik_proto.identity import PeerId
from trio_quic import Credentials, PeerRejected, make_certificate

# 2.25 is the arc of UUIDs as integers (ITU-T X.667): this one was drawn at random for the purpose.
MEMBERSHIP_OID = "2.25.124176656263431800701766534344656565355"
# A membership is a few hundred bytes; what is longer is not looked at.
MAX_MEMBERSHIP = 4096


@frozen
class Admitted:
    """A peer that proved its identity and was let in, with what it showed, so that it can be judged again."""

    peer: PeerId
    roles: frozenset[str]
    member: bytes | None


def make_credentials(config: NodeConfig) -> Credentials:
    """The node's certificate and key for its endpoint."""
    key = Ed25519PrivateKey.from_private_bytes(config.identity.seed())
    peer = config.identity.peer_id
    extensions = {} if config.member is None else {MEMBERSHIP_OID: config.member}
    certificate = make_certificate(
        key, common_name=peer.short, uri_names=[_spiffe_name(config)], extensions=extensions
    )
    return Credentials(certificate, key)


def peer_id_of(certificate: x509.Certificate) -> PeerId:
    """The identity that a certificate's key is. Raises `PeerRejected` for another kind of key."""
    key = certificate.public_key()
    if not isinstance(key, Ed25519PublicKey):
        raise PeerRejected("the certificate's key is not Ed25519")
    return PeerId(key.public_bytes(Encoding.Raw, PublicFormat.Raw))


def admission(config: NodeConfig, clock: Clock) -> Callable[[x509.Certificate], Admitted]:
    """The check that both sides of every handshake run, before any application byte.

    The result raises `PeerRejected` with the reason, which the refused peer gets to see.
    """

    def verify_peer(certificate: x509.Certificate) -> Admitted:
        peer = peer_id_of(certificate)
        if peer == config.identity.peer_id:
            raise PeerRejected("this is the same identity on both ends: a machine cannot be its own peer")
        _check_names(certificate, peer)
        return admit(config.policy, peer, _membership(certificate), clock)

    return verify_peer


def admit(policy: Policy, peer: PeerId, member: bytes | None, clock: Clock) -> Admitted:
    """Judge a membership by the policy as it is now. Raises `PeerRejected`."""
    try:
        roles = policy.admit(peer, member, clock.timestamp())
    except RemoteProtocolError as error:
        raise PeerRejected(f"not admitted to this fabric: {error}") from error
    return Admitted(peer, roles, member)


def _spiffe_name(config: NodeConfig) -> str:
    root = config.policy.root
    domain = "open" if root is None else str(root)
    plane = config.plane.partition("/")[0]
    path = (plane, *filter(None, [config.subject]), str(config.identity.peer_id))
    return f"spiffe://{domain}/{'/'.join(path)}"


def _check_names(certificate: x509.Certificate, peer: PeerId) -> None:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return
    for uri in names.get_values_for_type(x509.UniformResourceIdentifier):
        if uri.startswith("spiffe://") and not uri.endswith(f"/{peer}"):
            raise PeerRejected("the certificate's SPIFFE name is not that of its key")


def _membership(certificate: x509.Certificate) -> bytes | None:
    try:
        extension = certificate.extensions.get_extension_for_oid(x509.ObjectIdentifier(MEMBERSHIP_OID))
    except x509.ExtensionNotFound:
        return None
    value = extension.value
    if not isinstance(value, x509.UnrecognizedExtension) or len(value.value) > MAX_MEMBERSHIP:
        raise PeerRejected("the certificate's membership is too long")
    return value.value
