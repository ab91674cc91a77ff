"""The image store: a directory of content-addressed blobs and layers, and an index of names.

    <path>/blobs/<hex>    manifests, configurations and layers as they came, named by their SHA-256
    <path>/layers/<hex>   unpacked layers, named by diff id, in the form overlayfs takes as ``lowerdir``
    <path>/index.json     reference → digests (replaced atomically under ``index.lock``)
    <path>/partial/<hex>  blobs being downloaded, and what broken downloads have left to go on from
    <path>/tmp/…          imports under way; what an import that died left there goes with the next ``prune``
    <path>/gc.lock        held shared by imports and unpacking, exclusively by ``prune``

Any number of threads and processes may use one store. An import is prepared under ``tmp`` as a whole,
flushed to disk, and only then moved into place: content first, the name last. What fails leaves nothing.
"""

import errno
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from machineplane.runtime.images.archive import Bundle, open_bundle
from machineplane.runtime.images.disk import (
    disk_usage,
    locked,
    private_directory,
)
from machineplane.runtime.images.documents import (
    Configuration,
    Manifest,
    configuration_of,
    parse_manifest,
    sha256,
)
from machineplane.runtime.images.errors import (
    ImageNotFound,
    NotAnImage,
    StoreDamaged,
    StoreUnwritable,
    UnsupportedImage,
)
from machineplane.runtime.images.formats import FoundImage, find_images
from machineplane.runtime.images.garbage import mounted_layers, remove_others, remove_tree
from machineplane.runtime.images.intake import Downloaded, Intake, Origin, Shelf, Unpacker, hex_of, named
from machineplane.runtime.images.model import Image, ImageInfo, StoreLimits
from machineplane.runtime.images.names import Reference, normalise, parse_reference
from machineplane.runtime.images.partial import remove_partials
from machineplane.runtime.images.refs import Entry, RefIndex

# what uname says → what OCI calls it (Go's GOARCH)
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}

FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the operating system says of a disk without room."""


def machine_architecture() -> str:
    """This machine's architecture as OCI names it."""
    machine = platform.machine()
    return _ARCHITECTURES.get(machine, machine)


def wall_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


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
        self.partials = path / "partial"
        with writing(path):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            for directory in (self._blobs, self._layers, self._tmp, self.partials):
                directory.mkdir(mode=0o700, exist_ok=True)

    def import_file(self, source: Path | BinaryIO, ref: str | None = None) -> list[ImageInfo]:
        """Take in an OCI layout directory, an OCI archive or a docker archive, plain, gzip or zstd.

        ``ref`` names the image in place of the archive's own name; then the archive must hold one image only.
        Of images for several architectures this machine's is taken. Layers are unpacked and verified here.
        """
        name = normalise(ref) if ref is not None else None
        with self._staging() as staging, open_bundle(source, staging, self.limits) as bundle:
            found = find_images(bundle, self.architecture, self.limits)
            images = named(found, name, bundle.subject)
            return self._take(images, bundle, staging, Origin(at=wall_ms()))

    def import_pulled(self, found: FoundImage, bundle: Downloaded, origin: Origin) -> ImageInfo:
        """Take in an image whose blobs were downloaded and verified; its layers are unpacked and verified here."""
        with self._staging() as staging:
            (info,) = self._take([(found, found.names)], bundle, staging, origin)
            return info

    def _take(
        self,
        images: Iterable[tuple[FoundImage, tuple[str, ...]]],
        bundle: Bundle,
        staging: Path,
        origin: Origin,
    ) -> list[ImageInfo]:
        shelf = Shelf(limits=self.limits, architecture=self.architecture, has_layer=self.has_layer)
        intake = Intake(shelf, bundle, staging, origin)
        entries: dict[str, Entry] = {}
        for image, names in images:
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

    def entries(self) -> dict[str, Entry]:
        """All names and what they stand for."""
        return self._refs.all()

    def use(self, image: Image) -> None:
        """Note that a container of it starts now, for the sake of :meth:`last_used`."""
        with suppress(FileNotFoundError):
            os.utime(self.blob_path(image.digest))

    def last_used(self, digest: str) -> float:
        """When the image of that manifest was last used or taken in (s since the epoch); 0 where it is not here."""
        try:
            return self.blob_path(digest).stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def blob_path(self, digest: str) -> Path:
        """Where a blob is, if it is here."""
        return self._blobs / hex_of(digest)

    def document(self, digest: str) -> bytes | None:
        """A manifest or an index that is here; None if it is not."""
        try:
            data = self.blob_path(digest).read_bytes()
        except FileNotFoundError:
            return None
        return data if sha256(data) == digest else None

    def remove(self, ref: str) -> None:
        """Forget a name; what it held goes with the next :meth:`prune`. Raises ``ImageNotFound``."""
        with writing(self.path):
            self._refs.delete(normalise(ref))

    def prune(self, in_use: Iterable[str] = (), *, partials_before: float = math.inf) -> int:
        """Free what no name and no digest of ``in_use`` (manifests' or layers') needs; returns bytes freed.

        Layers that are mounted anywhere on this machine stay in any case, and downloads under way; of broken ones, what
        was written before ``partials_before`` (s since the epoch) goes. Waits for imports under way.
        """
        with writing(self.path), locked(self.path / "gc.lock"):
            used = frozenset(in_use)
            entries = self._refs.all().values()
            wanted = {entry.digest for entry in entries} | {d for d in used if self._is_manifest(d)}
            blobs, layers = self._needed(wanted)
            blobs |= {hex_of(digest) for entry in entries for digest in entry.indexes}
            freed = self._clear_tmp() + remove_partials(self.partials, older_than=partials_before)
            with private_directory(self._tmp) as graveyard:
                freed += remove_others(self._blobs, blobs, graveyard)
                keep = layers | {hex_of(digest) for digest in used} | self._mounted()
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
        return self._layers / hex_of(diff_id)

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
        return manifest, configuration_of(manifest, self._blob(config), f"configuration {config}")

    def _blob(self, digest: str) -> bytes:
        try:
            return (self._blobs / hex_of(digest)).read_bytes()
        except OSError as error:
            raise StoreDamaged(
                f"image store {self.path}", f"lacks {digest}", "import the image again"
            ) from error

    def _unpack_missing(self, image: Image) -> None:
        """From the compressed layers, verified when they came; their diff ids are verified again."""
        with self._staging() as staging:
            manifest, configuration = self._documents(image.digest)
            unpacker = Unpacker(image.ref, staging, self.limits)
            for layer, diff_id in zip(manifest.layers, configuration.diff_ids, strict=True):
                blob = self._blobs / hex_of(layer.digest)
                if not self.has_layer(diff_id):
                    if not blob.exists():
                        raise StoreDamaged(
                            f"image store {self.path}", f"lacks {layer.digest}", "import the image again"
                        )
                    unpacker.unpack(blob, diff_id, module=manifest.module)
            unpacker.publish(self._layers)

    def _needed(self, manifests: Iterable[str]) -> tuple[set[str], set[str]]:
        """Hexadecimal names of the blobs and of the layers that these images are made of."""
        blobs: set[str] = set()
        layers: set[str] = set()
        for digest in manifests:
            if not (self._blobs / hex_of(digest)).exists():
                continue  # lost, which ``resolve`` reports
            manifest, configuration = self._documents(digest)
            blobs |= {
                hex_of(digest),
                hex_of(manifest.config.digest),
                *(hex_of(d.digest) for d in manifest.layers),
            }
            layers |= {hex_of(diff_id) for diff_id in configuration.diff_ids}
        return blobs, layers

    def _is_manifest(self, digest: str) -> bool:
        """A layer that came uncompressed is a blob too, of the same digest; it needs no look inside if large."""
        try:
            if (self._blobs / hex_of(digest)).stat().st_size > self.limits.document_bytes:
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
    def held(self) -> Iterator[None]:
        """While this lasts no ``prune`` takes anything away."""
        with writing(self.path), locked(self.path / "gc.lock", shared=True):
            yield

    @contextmanager
    def _staging(self) -> Iterator[Path]:
        """A private directory on the store's file system that no ``prune`` touches while it is used."""
        with writing(self.path), locked(self.path / "gc.lock", shared=True):  # noqa: SIM117 -- lock first
            with private_directory(self._tmp) as path:
                yield path


def _by_digest(entries: Mapping[str, Entry], wanted: Reference) -> Entry | None:
    """An image of that repository whose manifest, or the index that it came from, has the digest."""
    for ref, entry in sorted(entries.items()):
        if wanted.digest in (entry.digest, entry.index_digest) and _same_repository(ref, wanted):
            return entry
    return None


def _same_repository(ref: str, wanted: Reference) -> bool:
    return parse_reference(ref).repository == wanted.repository


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an operating system's refusal into an error with a remedy."""
    try:
        yield
    except OSError as error:
        full = error.errno in FULL
        remedy = (
            "free some space (`machineplane image prune`)" if full else "run as root on a local file system"
        )
        problem = f"cannot be written ({os.strerror(error.errno or 0)}: {error.filename})"
        raise StoreUnwritable(f"image store {path}", problem, remedy) from error
