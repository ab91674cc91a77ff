"""Takes images in: verified and unpacked under a private directory, and moved into place together."""

from collections.abc import Callable, Mapping
from pathlib import Path

from attrs import frozen

from machineplane.runtime.images.archive import Bundle, Staged
from machineplane.runtime.images.disk import flush_file_system, move_in
from machineplane.runtime.images.documents import (
    WASM_ARCHITECTURE,
    WASM_SYSTEMS,
    Configuration,
    Manifest,
    configuration_of,
    parse_manifest,
)
from machineplane.runtime.images.errors import (
    NotAnImage,
    QuotaExceeded,
    StoreDamaged,
    UnnamedImage,
    UnsupportedImage,
    shown,
)
from machineplane.runtime.images.formats import FoundImage, check_content
from machineplane.runtime.images.model import StoreLimits
from machineplane.runtime.images.names import normalise
from machineplane.runtime.images.refs import Entry
from machineplane.runtime.images.unpack import unpack_layer, unpack_module


def hex_of(digest: str) -> str:
    """The name that a digest's content has in the store."""
    return digest.removeprefix("sha256:")


@frozen(kw_only=True)
class Shelf:
    """What an intake has to know of its store."""

    limits: StoreLimits
    architecture: str
    has_layer: Callable[[str], bool]


@frozen(kw_only=True)
class Origin:
    """When an image came (ms since the epoch), whether it was pulled, and whether credentials were shown for it."""

    at: int
    pulled: bool = False
    private: bool = False


@frozen
class Downloaded:
    """A ``Bundle`` of blobs that were downloaded, or were in the store already; files are named by their digests."""

    subject: str
    blobs: Mapping[str, Staged]

    def has(self, name: str) -> bool:
        return name in self.blobs

    def stage(self, name: str) -> Staged:
        staged = self.blobs[name]
        if not staged.path.exists():
            raise StoreDamaged(self.subject, f"lost {name} while it was taken in", "pull it again")
        return staged


class Unpacker:
    """Unpacks layers of one import under its staging directory, within one quota an image."""

    def __init__(self, subject: str, staging: Path, limits: StoreLimits) -> None:
        self._subject = subject
        self._limits = limits
        self._ready: dict[str, Path] = {}
        self._staging = staging / "layers"
        self._staging.mkdir()
        self._quota = limits.image_bytes

    def new_image(self) -> None:
        """The quota is each image's own."""
        self._quota = self._limits.image_bytes

    def unpack(self, blob: Path, diff_id: str, *, module: bool) -> None:
        if diff_id not in self._ready:
            into = self._staging / hex_of(diff_id)
            unpack = unpack_module if module else unpack_layer
            size = unpack(
                blob, into, diff_id=diff_id, subject=self._subject, limits=self._limits, quota=self._quota
            )
            self._quota -= size
            self._ready[diff_id] = into

    def publish(self, layers: Path) -> None:
        if self._ready:
            flush_file_system(layers)
        for diff_id, path in self._ready.items():
            move_in(path, layers / hex_of(diff_id))


class Intake:
    """The images of one import, verified and unpacked, until they are published together."""

    def __init__(self, shelf: Shelf, bundle: Bundle, staging: Path, origin: Origin) -> None:
        self._shelf = shelf
        self._origin = origin
        self._bundle = bundle
        self._staging = staging
        self._blobs: dict[str, Path] = {}
        self._unpacker = Unpacker(bundle.subject, staging, shelf.limits)

    def take(self, found: FoundImage) -> Entry:
        subject, limits = self._bundle.subject, self._shelf.limits
        manifest = parse_manifest(found.manifest, f"{subject}: manifest", layers=limits.layers)
        for descriptor in (manifest.config, *manifest.layers):
            staged = self._bundle.stage(found.files[descriptor.digest])
            check_content(staged, descriptor, subject)
            self._blobs[descriptor.digest] = staged.path
        configuration = self._configuration(manifest)
        self._unpacker.new_image()
        for layer, diff_id in zip(manifest.layers, configuration.diff_ids, strict=True):
            if not self._shelf.has_layer(diff_id):
                self._unpacker.unpack(self._blobs[layer.digest], diff_id, module=manifest.module)
        self._add_document(found.manifest_digest, found.manifest)
        for digest, data in found.indexes.items():
            self._add_document(digest, data)
        return Entry(
            digest=found.manifest_digest,
            index_digest=found.index_digest or "",
            indexes=tuple(found.indexes.keys()),
            size=len(found.manifest) + manifest.config.size + sum(layer.size for layer in manifest.layers),
            created=configuration.created,
            architecture=configuration.architecture or self._shelf.architecture,
            pulled=self._origin.pulled,
            private=self._origin.private,
            stored=self._origin.at,
        )

    def publish(self, blobs: Path, layers: Path) -> None:
        """Move everything into place: layers and blobs; the caller then writes the names."""
        self._unpacker.publish(layers)
        flush_file_system(blobs)
        for digest, path in self._blobs.items():
            move_in(path, blobs / hex_of(digest))

    def _configuration(self, manifest: Manifest) -> Configuration:
        subject = f"{self._bundle.subject}: configuration"
        if manifest.config.size > self._shelf.limits.document_bytes:
            raise QuotaExceeded(subject, f"has {manifest.config.size} bytes, too many", "it is refused")
        data = self._blobs[manifest.config.digest].read_bytes()
        configuration = configuration_of(manifest, data, subject)
        if len(configuration.diff_ids) != len(manifest.layers):
            problem = f"names {len(configuration.diff_ids)} layers, the manifest {len(manifest.layers)}"
            raise NotAnImage(subject, problem, "save the image again")
        self._check_platform(configuration)
        return configuration

    def _check_platform(self, configuration: Configuration) -> None:
        here = self._shelf.architecture
        if configuration.architecture in ("", here) and configuration.os in ("", "linux"):
            return
        if configuration.architecture == WASM_ARCHITECTURE and configuration.os in WASM_SYSTEMS:
            return
        raise UnsupportedImage(
            self._bundle.subject,
            f"is for {shown(f'{configuration.os}/{configuration.architecture}')}, not linux/{here}",
            "save the image for this machine's architecture",
        )

    def _add_document(self, digest: str, data: bytes) -> None:
        path = self._staging / f"document-{hex_of(digest)}"
        path.write_bytes(data)
        self._blobs[digest] = path


def named(
    found: list[FoundImage], name: str | None, subject: str
) -> list[tuple[FoundImage, tuple[str, ...]]]:
    """Each image with its complete names. Raises ``UnnamedImage`` or ``BadReference``."""
    if name is None:
        named = [(image, tuple(normalise(own) for own in image.names)) for image in found]
    elif len(found) == 1:
        named = [(found[0], (name,))]
    else:
        raise UnnamedImage(subject, f"holds {len(found)} images", "import it without --ref")
    if any(not names for _, names in named):
        raise UnnamedImage(subject, "does not name its image", "give it a name with --ref")
    return named
