"""Unpacks one layer: decompress, count, hash, parse and write in a single pass over the bytes."""

import os
from pathlib import Path

from machineplane.runtime.images.errors import DigestMismatch
from machineplane.runtime.images.model import StoreLimits
from machineplane.runtime.images.streams import Counted, decompressed
from machineplane.runtime.images.tarstream import TarReader
from machineplane.runtime.images.tree import LayerTree


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
