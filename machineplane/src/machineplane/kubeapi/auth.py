"""The API's own small authority: a CA and a server certificate for this machine, and the bearer token; and
kubeconfigs.

Everything lives in ``<state>/api``: ``ca.crt``, ``ca.key``, ``server.crt``, ``server.key``, ``token``;
secrets are 0600 in a directory that is 0700, and files appear whole or not at all. The CA and the token stay;
the server certificate is made anew when it lacks a name or nears its end.
"""

import base64
import ipaddress
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import yaml
from attrs import frozen
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from machineplane.linux.files import replace_file

CA_LIFE: Final = timedelta(days=3650)
SERVER_LIFE: Final = timedelta(days=825)
#: Less than this left, and a new server certificate is made at start.
RENEW_BEFORE: Final = timedelta(days=90)
#: Certificates are valid from a little earlier, for clients whose clock is behind.
_SKEW: Final = timedelta(hours=1)
#: What the server is always called, beside the names given.
LOCAL_NAMES: Final = ("localhost", "127.0.0.1", "::1")


@frozen
class ApiCredentials:
    """What the TLS listener needs (paths and token) and what clients need (CA and token)."""

    ca_pem: bytes
    certificate: Path
    key: Path
    token: str

    def __repr__(self) -> str:
        return f"ApiCredentials(certificate={str(self.certificate)!r})"


def load_credentials(
    directory: Path, names: Sequence[str] = (), *, now: datetime | None = None
) -> ApiCredentials:
    """Load what is in ``directory``, making what is missing. ``names``: host names and addresses of this
    machine.

    Raises OSError if the directory cannot be read or written, ValueError if a file in it is no key or
    certificate.
    """
    now = now or datetime.now(UTC)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)
    ca_key = _key(directory / "ca.key")
    ca = _authority(directory / "ca.crt", ca_key, now)
    server_key = _key(directory / "server.key")
    _server(directory / "server.crt", server_key, ca, ca_key, (*LOCAL_NAMES, *names), now)
    return ApiCredentials(
        ca.public_bytes(serialization.Encoding.PEM),
        directory / "server.crt",
        directory / "server.key",
        _token(directory / "token"),
    )


def kubeconfig(
    server: str, ca_pem: bytes, token: str, name: str = "magik", *, tls_name: str | None = None
) -> str:
    """A kubeconfig (YAML) with one cluster, user and context, all called ``name``, the context being
    current. ``tls_name`` is what the server's certificate is to hold, where that is not the host in ``server``."""
    cluster = {"server": server, "certificate-authority-data": _base64(ca_pem)}
    if tls_name is not None:
        cluster["tls-server-name"] = tls_name
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": name, "cluster": cluster}],
            "users": [{"name": name, "user": {"token": token}}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
            "current-context": name,
        },
        sort_keys=False,
    )


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _token(path: Path) -> str:
    if path.exists() and (text := path.read_text("ascii").strip()):
        return text
    token = secrets.token_urlsafe(32)
    replace_file(path, f"{token}\n".encode())
    return token


def _key(path: Path) -> ec.EllipticCurvePrivateKey:
    if path.exists():
        key = serialization.load_pem_private_key(path.read_bytes(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError(f"{path} is not an elliptic curve key: remove it to have a new one made")
        return key
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    replace_file(path, pem)
    return key


def _load(path: Path, key: ec.EllipticCurvePrivateKey) -> x509.Certificate | None:
    """The certificate in a file, if it is there and belongs to the key."""
    if not path.exists():
        return None
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    return certificate if certificate.public_key() == key.public_key() else None


def _authority(path: Path, key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    found = _load(path, key)
    if found is not None and found.not_valid_after_utc - now > RENEW_BEFORE:
        return found
    # Serial-numbered names keep clients that hold several machines' CAs from mixing them up.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Magik API CA {secrets.token_hex(8)}")])
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        _builder(name, name, key, now, CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA256())
    )
    replace_file(path, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    return certificate


def _server(
    path: Path,
    key: ec.EllipticCurvePrivateKey,
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    names: Sequence[str],
    now: datetime,
) -> None:
    wanted = [_general_name(name) for name in dict.fromkeys(names)]
    if _still_good(_load(path, key), ca, wanted, now):
        return
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Magik API")])
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    certificate = (
        _builder(subject, ca.subject, key, now, SERVER_LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(wanted), critical=False)
        .add_extension(authority, critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    replace_file(path, certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + life)
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _still_good(
    certificate: x509.Certificate | None,
    ca: x509.Certificate,
    wanted: Sequence[x509.GeneralName],
    now: datetime,
) -> bool:
    if certificate is None or certificate.issuer != ca.subject:
        return False
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return set(wanted) <= set(names) and certificate.not_valid_after_utc - now > RENEW_BEFORE
