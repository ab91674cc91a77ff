"""Unpacks one layer: decompress, count, hash, parse and write in a single pass over the bytes."""

import os
from pathlib import Path

from machineplane.runtime.images.documents import MODULE_FILE
from machineplane.runtime.images.errors import DigestMismatch, UnsupportedImage
from machineplane.runtime.images.model import StoreLimits
from machineplane.runtime.images.streams import Counted, decompressed
from machineplane.runtime.images.tarstream import CHUNK, TarReader
from machineplane.runtime.images.tree import LayerTree

# WebAssembly core specification, 5.5.16; a component has another version
_WASM_MAGIC = b"\0asm"
_MODULE_START = _WASM_MAGIC + b"\x01\0\0\0"


def unpack_layer(
    blob: Path, into: Path, *, diff_id: str, subject: str, limits: StoreLimits, quota: int
) -> int:
    """Unpack ``blob`` into the new directory ``into``; returns its uncompressed size in bytes.

    Raises an ``ImageError`` for whatever is wrong, more than ``quota`` uncompressed bytes included. The
    caller removes ``into`` then: what a layer with the wrong digest left there must not be used.
    """
    os.mkdir(into, 0o755)
    with blob.open("rb") as file:
        plain = Counted(decompressed(file, subject), limit=quota, subject=subject)
        reader = TarReader(plain, subject=subject, limits=limits, entries=limits.layer_entries)
        with LayerTree(str(into), subject=subject) as tree:
            for member in reader:
                tree.add(member, reader.chunks())
            plain.drain()
            if plain.digest != diff_id:
                raise DigestMismatch(
                    f"{subject}: layer {diff_id}",
                    f"unpacks to content with the digest {plain.digest}",
                    "save the image again",
                )
            tree.finish()
    return plain.count


def unpack_module(
    blob: Path, into: Path, *, diff_id: str, subject: str, limits: StoreLimits, quota: int
) -> int:
    """As :func:`unpack_layer` where the blob is a bare WebAssembly module: a layer with that one file."""
    os.mkdir(into, 0o755)
    with blob.open("rb") as file, (into / MODULE_FILE).open("xb") as out:
        plain = Counted(file, limit=quota, subject=subject)
        while data := plain.read(CHUNK):
            out.write(data)
        os.fchmod(out.fileno(), 0o444)
        os.utime(out.fileno(), (0, 0))
    if plain.digest != diff_id:
        raise DigestMismatch(
            f"{subject}: module {diff_id}", f"has the digest {plain.digest}", "save the image again"
        )
    if not is_core_module(into / MODULE_FILE):
        raise UnsupportedImage(
            f"{subject}: module {diff_id}",
            "is no core WebAssembly module of version 1",
            "build it for WASI preview 1; components are not supported",
        )
    return plain.count


def is_core_module(path: Path) -> bool:
    """Whether a file begins as a module of version 1 does."""
    return _begins(path, _MODULE_START)


def is_wasm(path: Path) -> bool:
    """Whether a file is WebAssembly, a module or a component, be it of any version."""
    return _begins(path, _WASM_MAGIC)


def _begins(path: Path, start: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(start)) == start
