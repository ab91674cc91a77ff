"""Readers that count, hash and decompress what flows through them."""

import gzip
import hashlib
import zlib
from typing import BinaryIO, cast

import zstandard

from machineplane.runtime.images.errors import (
    DamagedArchive,
    QuotaExceeded,
    TruncatedArchive,
    UnsupportedImage,
)
from machineplane.runtime.images.tarstream import CHUNK, Readable

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_REFUSED = {b"BZh": "bzip2", b"\xfd7zXZ\0": "xz"}
_MAGIC_LENGTH = 6
_ZSTD_WINDOW = 128 << 20  # bytes of memory that a frame may ask for; zstd's own default limit (--long=27)


class Counted:
    """Hashes and counts; more than ``limit`` bytes raise ``QuotaExceeded`` before they are handed on."""

    def __init__(self, source: Readable, *, limit: int, subject: str) -> None:
        self._source = source
        self._limit = limit
        self._subject = subject
        self._hash = hashlib.sha256()
        self.count = 0

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"

    def read(self, size: int, /) -> bytes:
        data = self._source.read(size)
        self.count += len(data)
        if self.count > self._limit:
            raise QuotaExceeded(
                self._subject,
                f"is larger than the {self._limit} bytes that are allowed",
                "use a smaller image, or raise the store's limits",
            )
        self._hash.update(data)
        return data

    def drain(self) -> None:
        """Read to the end, for the sake of hash, count and limit."""
        while self.read(CHUNK):
            pass


class _Peeked:
    """A stream whose first bytes have been looked at."""

    def __init__(self, source: Readable) -> None:
        self._source = source
        self.start = _read_full(source, _MAGIC_LENGTH)
        self._pending = self.start

    def read(self, size: int, /) -> bytes:
        if self._pending:
            data, self._pending = self._pending[:size], self._pending[size:]
            return data
        return self._source.read(size)


def _read_full(source: Readable, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := source.read(size - len(data))):
        data += more
    return data


class _Decompressed:
    """A decompressor whose several exceptions become this package's."""

    def __init__(self, source: Readable, subject: str) -> None:
        self._source = source
        self._subject = subject

    def read(self, size: int, /) -> bytes:
        try:
            return self._source.read(size)
        except EOFError:
            raise TruncatedArchive(
                self._subject, "is cut off in the middle", "copy or save it again"
            ) from None
        except (gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
            raise DamagedArchive(
                self._subject, f"does not decompress ({error})", "copy or save it again"
            ) from None


def decompressed(source: Readable, subject: str) -> Readable:
    """Plain bytes of a plain, gzip or zstd stream, told by its first bytes; refuses other compressions."""
    peeked = _Peeked(source)
    for magic, name in _REFUSED.items():
        if peeked.start.startswith(magic):
            raise UnsupportedImage(subject, f"is compressed with {name}", "use gzip, zstd or no compression")
    stream = cast(BinaryIO, peeked)  # both decompressors only ever read
    if peeked.start.startswith(_GZIP):
        return _Decompressed(gzip.GzipFile(fileobj=stream, mode="rb"), subject)
    if peeked.start.startswith(_ZSTD):
        reader = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
        return _Decompressed(reader.stream_reader(stream, read_across_frames=True), subject)
    return peeked
