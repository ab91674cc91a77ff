"""A store in a temporary directory, and archives made member by member, honest and hostile."""

import gzip
import hashlib
import io
import json
import ssl
import sys
import tarfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from machineplane.runtime.images import ImageStore, StoreLimits

sys.path.insert(0, str(Path(__file__).parent))  # for the support module beside this file

MIB = 1 << 20
LIMITS = StoreLimits(
    archive_bytes=64 * MIB, image_bytes=8 * MIB, layer_entries=500, archive_entries=50, header_bytes=64 * 1024
)


def member(name: str, data: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    """A tar member; ``fields`` are attributes of ``TarInfo`` (``type``, ``linkname``, ``mode`` …)."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def tar(*members: tuple[tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    """The bytes of a tar; names and types go in as they are."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def sha(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def descriptor(data: bytes, media_type: str) -> dict[str, object]:
    return {"mediaType": media_type, "digest": sha(data), "size": len(data)}


class OciImage:
    """The parts of an OCI image, each of which a test may spoil before ``layout`` puts them together."""

    def __init__(
        self, layers: Sequence[bytes], *, plain: Sequence[bytes] = (), architecture: str = "amd64"
    ) -> None:
        kind = "application/vnd.oci.image.layer.v1.tar"
        self.layers = list(layers)
        self.config = {
            "architecture": architecture,
            "os": "linux",
            "created": "2024-02-03T04:05:06Z",
            "config": {"Cmd": ["/run"], "Env": ["A=b"], "ExposedPorts": {"80/tcp": {}}, "User": "7"},
            "rootfs": {"type": "layers", "diff_ids": [sha(layer) for layer in plain or layers]},
        }
        self.descriptors = [descriptor(layer, kind) for layer in layers]
        self.annotations = {"org.opencontainers.image.ref.name": "example.test/app:1"}

    def files(self) -> dict[str, bytes]:
        config = json.dumps(self.config).encode()
        config_type = "application/vnd.oci.image.config.v1+json"
        manifest = json.dumps(
            {"schemaVersion": 2, "config": descriptor(config, config_type), "layers": self.descriptors}
        ).encode()
        entry = descriptor(manifest, "application/vnd.oci.image.manifest.v1+json")
        entry |= {
            "annotations": self.annotations,
            "platform": {"os": "linux", "architecture": self.config["architecture"]},
        }
        files = {f"blobs/sha256/{sha(blob)[7:]}": blob for blob in (config, manifest)}
        for stated, layer in zip(self.descriptors, self.layers, strict=True):
            files[f"blobs/sha256/{str(stated['digest'])[7:]}"] = layer
        files["oci-layout"] = b'{"imageLayoutVersion":"1.0.0"}'
        files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
        return files

    def archive(self) -> bytes:
        return tar(*(member(name, data) for name, data in self.files().items()))


def oci(*layers: bytes) -> bytes:
    """An OCI archive of plain layers."""
    return OciImage(layers).archive()


def write_layout(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def snapshot(root: Path) -> dict[str, tuple[object, ...]]:
    """All that can be seen of a tree, links not followed, access times left out."""
    seen = {}
    for path in sorted([root, *root.rglob("*")]):
        found = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        seen[str(path)] = (
            found.st_mode,
            found.st_uid,
            found.st_nlink,
            found.st_ino,
            found.st_mtime_ns,
            content,
        )
    return seen


class Kit:
    """What the tests build archives with (a fixture, so that test modules need not import this file)."""

    member = staticmethod(member)
    tar = staticmethod(tar)
    sha = staticmethod(sha)
    descriptor = staticmethod(descriptor)
    oci = staticmethod(oci)
    image = OciImage
    gzip = staticmethod(gzip.compress)
    write_layout = staticmethod(write_layout)
    snapshot = staticmethod(snapshot)


@pytest.fixture(scope="session")
def kit() -> type[Kit]:
    return Kit


@pytest.fixture
def new_store(tmp_path: Path) -> Callable[..., ImageStore]:
    """Makes stores on the same directory: each as another process would open it."""

    def make(limits: StoreLimits = LIMITS, architecture: str = "amd64") -> ImageStore:
        path = tmp_path / "state" / "images"
        return ImageStore(path, limits=limits, architecture=architecture, mounted=frozenset)

    return make


@pytest.fixture
def store(new_store: Callable[..., ImageStore]) -> ImageStore:
    return new_store()


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    """A server's context for 127.0.0.1, and the file of the authority to trust."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "registry.test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    ca, private = folder / "ca.pem", folder / "key.pem"
    ca.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ca, private)
    return context, ca
