"""Writes images out of the store: as an OCI layout directory, an OCI archive, or what ``docker load`` reads.

The same images always give the same bytes. Blobs are hashed again on the way, so that no damage is handed on.
"""

import io
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from attrs import frozen

from machineplane.runtime.images.documents import (
    OCI_INDEX,
    OCI_MANIFEST,
    WASM_ARCHITECTURE,
    Descriptor,
    Fields,
    Manifest,
    encode,
    parse_manifest,
    sha256,
)
from machineplane.runtime.images.errors import StoreDamaged, StoreUnwritable, UnsupportedImage
from machineplane.runtime.images.formats import blob_name
from machineplane.runtime.images.intake import hex_of
from machineplane.runtime.images.model import Image
from machineplane.runtime.images.names import parse_reference
from machineplane.runtime.images.store import ImageStore
from machineplane.runtime.images.streams import Counted, decompressed
from machineplane.runtime.images.tarstream import Readable

OCI_ARCHIVE, DOCKER_ARCHIVE, OCI_LAYOUT = "oci-archive", "docker-archive", "oci-layout"
FORMS = (OCI_ARCHIVE, DOCKER_ARCHIVE, OCI_LAYOUT)
_EVERYTHING = 1 << 62  # no limit: these blobs were measured when they came
_NAMES = ("io.containerd.image.name", "org.opencontainers.image.ref.name")


@frozen
class _File:
    """A file to be written: its size is known before its content is read."""

    size: int
    open: Callable[[], Readable]


@frozen
class _Chosen:
    """An image with its documents."""

    image: Image
    data: bytes
    manifest: Manifest


def export_archive(store: ImageStore, refs: Sequence[str], out: BinaryIO, form: str) -> None:
    """Write the images named ``refs`` as a tar to ``out``, which need not be seekable.

    Raises ``ImageNotFound``, ``BadReference`` or ``StoreDamaged``.
    """
    with store.held():
        chosen = [_choose(store, ref) for ref in refs]
        files = _docker_files(store, chosen) if form == DOCKER_ARCHIVE else _layout_files(store, chosen)
        with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar:
            for name, file in files:
                info = tarfile.TarInfo(name)
                info.size, info.mode = file.size, 0o644
                tar.addfile(info, _Whole(file.open()))


def export_layout(store: ImageStore, refs: Sequence[str], folder: Path) -> None:
    """Write the images as an OCI layout into ``folder``, which must be new or empty. Raises as ``export_archive``."""
    with store.held():
        chosen = [_choose(store, ref) for ref in refs]
        try:
            folder.mkdir(exist_ok=True)
            if any(folder.iterdir()):
                raise StoreUnwritable(str(folder), "is not empty", "give a new directory")
            for name, file in _layout_files(store, chosen):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                with (folder / name).open("xb") as out:
                    for data in _chunks(file.open()):
                        out.write(data)
        except OSError as error:
            problem = f"cannot be written ({os.strerror(error.errno or 0)})"
            raise StoreUnwritable(str(folder), problem, "give a directory with room") from error


def _choose(store: ImageStore, ref: str) -> _Chosen:
    image = store.resolve(ref)
    data = store.document(image.digest)
    if data is None:
        raise StoreDamaged(f"image store {store.path}", f"lacks {image.digest}", "import the image again")
    return _Chosen(image, data, parse_manifest(data, image.ref, layers=store.limits.layers))


# -- OCI


def _layout_files(store: ImageStore, chosen: Sequence[_Chosen]) -> Iterator[tuple[str, _File]]:
    """Small files first, then each blob once."""
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [_entry(each) for each in chosen]}
    yield "oci-layout", _small(encode({"imageLayoutVersion": "1.0.0"}))
    yield "index.json", _small(encode(index))
    blobs: dict[str, int] = {}
    for each in chosen:
        blobs[each.image.digest] = len(each.data)
        blobs.update({blob.digest: blob.size for blob in (each.manifest.config, *each.manifest.layers)})
    for digest, size in blobs.items():
        yield blob_name(digest), _stored(store, digest, size)


def _entry(each: _Chosen) -> dict[str, object]:
    """The manifest for one architecture; an index that led to it names others that are not here."""
    return {
        "mediaType": Fields.parse(each.data, each.image.ref).text("mediaType") or OCI_MANIFEST,
        "digest": each.image.digest,
        "size": len(each.data),
        "platform": {
            "os": "wasip1" if each.image.architecture == WASM_ARCHITECTURE else "linux",
            "architecture": each.image.architecture,
        },
        "annotations": dict.fromkeys(_NAMES, each.image.ref),
    }


# -- Docker


def _docker_files(store: ImageStore, chosen: Sequence[_Chosen]) -> Iterator[tuple[str, _File]]:
    """Layers are written uncompressed and named by their diff ids, as ``docker save`` does."""
    files: dict[str, _File] = {}
    listed = []
    for each in chosen:
        if each.manifest.module:
            raise UnsupportedImage(
                each.image.ref, "is a bare WebAssembly module", "export it as an OCI archive"
            )
        config = each.manifest.config
        layers = [f"{hex_of(diff_id)}.tar" for diff_id in each.image.layers]
        files[f"{hex_of(config.digest)}.json"] = _stored(store, config.digest, config.size)
        for name, diff_id, layer in zip(layers, each.image.layers, each.manifest.layers, strict=True):
            if name not in files:
                files[name] = _plain_layer(store, layer, diff_id)
        tags = [each.image.ref] if parse_reference(each.image.ref).digest is None else []
        listed.append({"Config": f"{hex_of(config.digest)}.json", "RepoTags": tags, "Layers": layers})
    yield from files.items()
    yield "manifest.json", _small(encode(listed))


def _plain_layer(store: ImageStore, layer: Descriptor, diff_id: str) -> _File:
    """Decompressed twice: once for the size, which a tar tells first, and once to be written."""

    def plain() -> Readable:
        return decompressed(_stored(store, layer.digest, layer.size).open(), layer.digest)

    counted = Counted(plain(), limit=_EVERYTHING, subject=layer.digest)
    counted.drain()
    return _File(counted.count, lambda: _Checked(plain(), diff_id, counted.count))


# -- content


def _small(data: bytes) -> _File:
    return _File(len(data), lambda: _Checked(io.BytesIO(data), sha256(data), len(data)))


def _stored(store: ImageStore, digest: str, size: int) -> _File:
    def opened() -> Readable:
        try:
            return _Checked(store.blob_path(digest).open("rb"), digest, size)
        except FileNotFoundError:
            raise StoreDamaged(
                f"image store {store.path}", f"lacks {digest}", "import the image again"
            ) from None

    return _File(size, opened)


class _Checked:
    """Content that is to have a digest and a size; the last read raises ``StoreDamaged`` where it has not."""

    def __init__(self, source: Readable, digest: str, size: int) -> None:
        self._counted = Counted(source, limit=_EVERYTHING, subject=digest)
        self._source = source
        self._digest = digest
        self._size = size
        self._over = False

    def read(self, size: int, /) -> bytes:
        if self._over:
            return b""
        data = self._counted.read(size)
        self._over = not data or self._counted.count >= self._size
        if self._over and isinstance(self._source, io.BufferedReader):
            self._source.close()
        if self._over and (self._counted.count, self._counted.digest) != (self._size, self._digest):
            raise StoreDamaged(self._digest, "is damaged in the store", "import the image again")
        return data


class _Whole(io.RawIOBase):
    """A reader as ``tarfile`` wants it: a read gives all that was asked for."""

    def __init__(self, source: Readable) -> None:
        self._source = source

    def read(self, size: int = -1, /) -> bytes:
        parts = []
        while size > 0 and (data := self._source.read(size)):
            parts.append(data)
            size -= len(data)
        return b"".join(parts)


def _chunks(source: Readable) -> Iterator[bytes]:
    while data := source.read(256 * 1024):
        yield data
