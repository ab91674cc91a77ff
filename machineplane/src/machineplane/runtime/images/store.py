"""The image store: a directory of content-addressed blobs and layers, and an index of names.

    <path>/blobs/<hex>    manifests, configurations and layers as they came, named by their SHA-256
    <path>/layers/<hex>   unpacked layers, named by diff id, in the form overlayfs takes as ``lowerdir``
    <path>/index.json     reference → digests (replaced atomically under ``index.lock``)
    <path>/tmp/…          imports under way; what an import that died left there goes with the next ``prune``
    <path>/gc.lock        held shared by imports and unpacking, exclusively by ``prune``

Any number of threads and processes may use one store. An import is prepared under ``tmp`` as a whole,
flushed to disk, and only then moved into place: content first, the name last. What fails leaves nothing.
"""

import errno
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from machineplane.runtime.images.archive import Bundle, open_bundle
from machineplane.runtime.images.disk import (
    disk_usage,
    flush_file_system,
    locked,
    move_in,
    private_directory,
)
from machineplane.runtime.images.documents import (
    Configuration,
    Manifest,
    parse_configuration,
    parse_manifest,
)
from machineplane.runtime.images.errors import (
    ImageNotFound,
    NotAnImage,
    QuotaExceeded,
    StoreDamaged,
    StoreUnwritable,
    UnnamedImage,
    UnsupportedImage,
    shown,
)
from machineplane.runtime.images.formats import FoundImage, check_content, find_images
from machineplane.runtime.images.garbage import mounted_layers, remove_others, remove_tree
from machineplane.runtime.images.model import Image, ImageInfo, StoreLimits
from machineplane.runtime.images.names import Reference, normalise, parse_reference
from machineplane.runtime.images.refs import Entry, RefIndex
from machineplane.runtime.images.unpack import unpack_layer

# what uname says → what OCI calls it (Go's GOARCH)
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


def machine_architecture() -> str:
    """This machine's architecture as OCI names it."""
    machine = platform.machine()
    return _ARCHITECTURES.get(machine, machine)


class ImageStore:
    """Images on this machine. Every method may raise a subclass of ``ImageError``."""

    def __init__(
        self,
        path: Path,
        *,
        limits: StoreLimits | None = None,
        architecture: str | None = None,
        mounted: Callable[[], frozenset[str]] = mounted_layers,
    ) -> None:
        """``architecture`` (OCI's name) is this machine's unless given. Makes the directory when missing."""
        self.path = path
        self.limits = limits or StoreLimits()
        self.architecture = architecture or machine_architecture()
        self._mounted = mounted
        self._refs = RefIndex(path)
        self._blobs = path / "blobs"
        self._layers = path / "layers"
        self._tmp = path / "tmp"
        with _writing(path):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            for directory in (self._blobs, self._layers, self._tmp):
                directory.mkdir(mode=0o700, exist_ok=True)

    def import_file(self, source: Path | BinaryIO, ref: str | None = None) -> list[ImageInfo]:
        """Take in an OCI layout directory, an OCI archive or a docker archive, plain, gzip or zstd.

        ``ref`` names the image in place of the archive's own name; then the archive must hold one image only.
        Of images for several architectures this machine's is taken. Layers are unpacked and verified here.
        """
        name = normalise(ref) if ref is not None else None
        with self._staging() as staging, open_bundle(source, staging, self.limits) as bundle:
            found = find_images(bundle, self.architecture, self.limits)
            named = _named(found, name, bundle.subject)
            intake = _Intake(self, bundle, staging)
            entries: dict[str, Entry] = {}
            for image, names in named:
                entry = intake.take(image)
                entries.update(dict.fromkeys(names, entry))
            intake.publish(self._blobs, self._layers)
            self._refs.set(entries)
        return [entry.info(at) for at, entry in sorted(entries.items())]

    def resolve(self, ref: str) -> Image:
        """The image of that name, or by digest. Raises ``ImageNotFound`` or ``BadReference``."""
        wanted = parse_reference(ref)
        name = str(wanted)
        entries = self._refs.all()
        entry = _by_digest(entries, wanted) if wanted.digest else entries.get(name)
        if entry is None:
            raise ImageNotFound(name)
        return self._image(name, entry)

    def ls(self) -> list[ImageInfo]:
        """Every named image, by name."""
        return [entry.info(ref) for ref, entry in sorted(self._refs.all().items())]

    def remove(self, ref: str) -> None:
        """Forget a name; what it held goes with the next :meth:`prune`. Raises ``ImageNotFound``."""
        with _writing(self.path):
            self._refs.delete(normalise(ref))

    def prune(self, in_use: Iterable[str] = ()) -> int:
        """Free what no name and no digest of ``in_use`` (manifests' or layers') needs; returns bytes freed.

        Layers that are mounted anywhere on this machine stay in any case. Waits for imports under way.
        """
        with _writing(self.path), locked(self.path / "gc.lock"):
            used = frozenset(in_use)
            named = {entry.digest for entry in self._refs.all().values()}
            blobs, layers = self._needed(named | {digest for digest in used if self._is_manifest(digest)})
            freed = self._clear_tmp()
            with private_directory(self._tmp) as graveyard:
                freed += remove_others(self._blobs, blobs, graveyard)
                keep = layers | {_hex(digest) for digest in used} | self._mounted()
                freed += remove_others(self._layers, keep, graveyard)
        return freed

    def layer_paths(self, image: Image) -> tuple[Path, ...]:
        """The image's unpacked layers, lowest first, each unpacked now if it is not yet."""
        paths = tuple(self._layer(diff_id) for diff_id in image.layers)
        if not all(path.is_dir() for path in paths):
            self._unpack_missing(image)
        return paths

    def has_layer(self, diff_id: str) -> bool:
        """Whether this layer is unpacked here."""
        return self._layer(diff_id).is_dir()

    def _layer(self, diff_id: str) -> Path:
        return self._layers / _hex(diff_id)

    def _image(self, ref: str, entry: Entry) -> Image:
        manifest, configuration = self._documents(entry.digest)
        return Image(
            ref=ref,
            digest=entry.digest,
            index_digest=entry.index_digest or None,
            config=configuration.config,
            config_digest=manifest.config.digest,
            architecture=entry.architecture,
            layers=configuration.diff_ids,
            size=entry.size,
        )

    def _documents(self, digest: str) -> tuple[Manifest, Configuration]:
        manifest = parse_manifest(self._blob(digest), f"manifest {digest}", layers=self.limits.layers)
        config = manifest.config.digest
        return manifest, parse_configuration(self._blob(config), f"configuration {config}")

    def _blob(self, digest: str) -> bytes:
        try:
            return (self._blobs / _hex(digest)).read_bytes()
        except OSError as error:
            raise StoreDamaged(
                f"image store {self.path}", f"lacks {digest}", "import the image again"
            ) from error

    def _unpack_missing(self, image: Image) -> None:
        """From the compressed layers, verified when they came; their diff ids are verified again."""
        with self._staging() as staging:
            manifest, configuration = self._documents(image.digest)
            unpacker = _Unpacker(image.ref, staging, self.limits)
            for layer, diff_id in zip(manifest.layers, configuration.diff_ids, strict=True):
                blob = self._blobs / _hex(layer.digest)
                if not self.has_layer(diff_id):
                    if not blob.exists():
                        raise StoreDamaged(
                            f"image store {self.path}", f"lacks {layer.digest}", "import the image again"
                        )
                    unpacker.unpack(blob, diff_id)
            unpacker.publish(self._layers)

    def _needed(self, manifests: Iterable[str]) -> tuple[set[str], set[str]]:
        """Hexadecimal names of the blobs and of the layers that these images are made of."""
        blobs: set[str] = set()
        layers: set[str] = set()
        for digest in manifests:
            if not (self._blobs / _hex(digest)).exists():
                continue  # lost, which ``resolve`` reports
            manifest, configuration = self._documents(digest)
            blobs |= {_hex(digest), _hex(manifest.config.digest), *(_hex(d.digest) for d in manifest.layers)}
            layers |= {_hex(diff_id) for diff_id in configuration.diff_ids}
        return blobs, layers

    def _is_manifest(self, digest: str) -> bool:
        """A layer that came uncompressed is a blob too, of the same digest; it needs no look inside if large."""
        try:
            if (self._blobs / _hex(digest)).stat().st_size > self.limits.document_bytes:
                return False
            self._documents(digest)
        except (FileNotFoundError, NotAnImage, UnsupportedImage):
            return False
        return True

    def _clear_tmp(self) -> int:
        freed = 0
        for path in self._tmp.iterdir():
            freed += disk_usage(path)
            remove_tree(path)
        return freed

    @contextmanager
    def _staging(self) -> Iterator[Path]:
        """A private directory on the store's file system that no ``prune`` touches while it is used."""
        with _writing(self.path), locked(self.path / "gc.lock", shared=True):  # noqa: SIM117 -- lock first
            with private_directory(self._tmp) as path:
                yield path


class _Unpacker:
    """Unpacks layers of one import under its staging directory, within one quota an image."""

    def __init__(self, subject: str, staging: Path, limits: StoreLimits) -> None:
        self._subject = subject
        self._limits = limits
        self._ready: dict[str, Path] = {}
        self._staging = staging / "layers"
        self._staging.mkdir()
        self._quota = limits.image_bytes

    def new_image(self) -> None:
        self._quota = self._limits.image_bytes

    def unpack(self, blob: Path, diff_id: str) -> None:
        if diff_id not in self._ready:
            into = self._staging / _hex(diff_id)
            size = unpack_layer(
                blob, into, diff_id=diff_id, subject=self._subject, limits=self._limits, quota=self._quota
            )
            self._quota -= size
            self._ready[diff_id] = into

    def publish(self, layers: Path) -> None:
        if self._ready:
            flush_file_system(layers)
        for diff_id, path in self._ready.items():
            move_in(path, layers / _hex(diff_id))


class _Intake:
    """The images of one import, verified and unpacked, until they are published together."""

    def __init__(self, store: ImageStore, bundle: Bundle, staging: Path) -> None:
        self._store = store
        self._bundle = bundle
        self._staging = staging
        self._blobs: dict[str, Path] = {}
        self._unpacker = _Unpacker(bundle.subject, staging, store.limits)

    def take(self, found: FoundImage) -> Entry:
        subject, limits = self._bundle.subject, self._store.limits
        manifest = parse_manifest(found.manifest, f"{subject}: manifest", layers=limits.layers)
        for descriptor in (manifest.config, *manifest.layers):
            staged = self._bundle.stage(found.files[descriptor.digest])
            check_content(staged, descriptor, subject)
            self._blobs[descriptor.digest] = staged.path
        configuration = self._configuration(manifest)
        self._unpacker.new_image()
        for layer, diff_id in zip(manifest.layers, configuration.diff_ids, strict=True):
            if not self._store.has_layer(diff_id):
                self._unpacker.unpack(self._blobs[layer.digest], diff_id)
        self._add_manifest(found)
        return Entry(
            digest=found.manifest_digest,
            index_digest=found.index_digest or "",
            size=len(found.manifest) + manifest.config.size + sum(layer.size for layer in manifest.layers),
            created=configuration.created,
            architecture=configuration.architecture or self._store.architecture,
        )

    def publish(self, blobs: Path, layers: Path) -> None:
        """Move everything into place: layers and blobs; the caller then writes the names."""
        self._unpacker.publish(layers)
        flush_file_system(blobs)
        for digest, path in self._blobs.items():
            move_in(path, blobs / _hex(digest))

    def _configuration(self, manifest: Manifest) -> Configuration:
        subject = f"{self._bundle.subject}: configuration"
        if manifest.config.size > self._store.limits.document_bytes:
            raise QuotaExceeded(subject, f"has {manifest.config.size} bytes, too many", "it is refused")
        configuration = parse_configuration(self._blobs[manifest.config.digest].read_bytes(), subject)
        if len(configuration.diff_ids) != len(manifest.layers):
            problem = f"names {len(configuration.diff_ids)} layers, the manifest {len(manifest.layers)}"
            raise NotAnImage(subject, problem, "save the image again")
        self._check_platform(configuration)
        return configuration

    def _check_platform(self, configuration: Configuration) -> None:
        here = self._store.architecture
        if configuration.architecture in ("", here) and configuration.os in ("", "linux"):
            return
        raise UnsupportedImage(
            self._bundle.subject,
            f"is for {shown(f'{configuration.os}/{configuration.architecture}')}, not linux/{here}",
            "save the image for this machine's architecture",
        )

    def _add_manifest(self, found: FoundImage) -> None:
        path = self._staging / f"manifest-{_hex(found.manifest_digest)}"
        path.write_bytes(found.manifest)
        self._blobs[found.manifest_digest] = path


def _named(
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


def _by_digest(entries: Mapping[str, Entry], wanted: Reference) -> Entry | None:
    """An image of that repository whose manifest, or the index that it came from, has the digest."""
    for ref, entry in sorted(entries.items()):
        if wanted.digest in (entry.digest, entry.index_digest) and _same_repository(ref, wanted):
            return entry
    return None


def _same_repository(ref: str, wanted: Reference) -> bool:
    return parse_reference(ref).repository == wanted.repository


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turns an operating system's refusal into an error with a remedy."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = (
            "free some space (`machineplane image prune`)" if full else "run as root on a local file system"
        )
        problem = f"cannot be written ({os.strerror(error.errno or 0)}: {error.filename})"
        raise StoreUnwritable(f"image store {path}", problem, remedy) from error
