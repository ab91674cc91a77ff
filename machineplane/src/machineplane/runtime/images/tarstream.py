"""A strict reader of tar streams.

Python's ``tarfile`` is not used on foreign archives: versions that we run on read an extended header of any
length into memory, recurse once per chained header (RecursionError), keep sparse maps of any length, and
have a quadratic header pattern (CVE-2024-6232, fixed only in 3.11.10). Formats: ustar and pax
(POSIX.1-2017, pax, "ustar Interchange Format" and "pax Extended Header"), and GNU's long names and base-256
numbers (GNU tar manual, "Basic Tar Format").
"""

import re
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Protocol

from attrs import field, frozen

from machineplane.runtime.images.errors import (
    DamagedArchive,
    QuotaExceeded,
    TruncatedArchive,
    UnsafeMember,
    shown,
)
from machineplane.runtime.images.model import StoreLimits

BLOCK = 512
CHUNK = 256 * 1024
_NS = 1_000_000_000
_ID_LIMIT = 0xFFFF_FFFE  # 0xFFFFFFFF would mean "leave as it is" to chown(2)
_MTIME_RANGE = (-(1 << 31), (1 << 34) - 1)  # what ext4 can hold; others are brought to the nearer end
_OCTAL = re.compile(rb"[0-7]*")
_DECIMAL = re.compile(rb"[0-9]{1,19}")
_PAX_TIME = re.compile(rb"(-?)([0-9]{1,18})(?:\.([0-9]{0,30}))?")
_XATTR_PREFIX = b"SCHILY.xattr."


class Readable(Protocol):
    """What bytes come from; a read returns fewer than asked only at the end or as a pipe does."""

    def read(self, size: int, /) -> bytes: ...


class Kind(Enum):
    FILE = "file"
    HARDLINK = "hard link"
    SYMLINK = "symbolic link"
    CHAR = "character device"
    BLOCK = "block device"
    DIRECTORY = "directory"
    FIFO = "fifo"


_KINDS: Mapping[bytes, Kind] = {
    b"0": Kind.FILE,
    b"\0": Kind.FILE,
    b"7": Kind.FILE,
    b"1": Kind.HARDLINK,
    b"2": Kind.SYMLINK,
    b"3": Kind.CHAR,
    b"4": Kind.BLOCK,
    b"5": Kind.DIRECTORY,
    b"6": Kind.FIFO,
}
_EXTENSIONS = (b"x", b"g", b"L", b"K")


@frozen(kw_only=True)
class Member:
    """One member as the archive tells it; nothing about it has been checked but its form."""

    name: bytes
    kind: Kind
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    size: int = 0  # of the content that follows; 0 for all but files
    mtime_ns: int = 0
    link: bytes = b""
    xattrs: Mapping[str, bytes] = field(factory=dict)


@frozen
class _Extension:
    """What the extended headers before a member said of it."""

    records: Mapping[bytes, bytes]
    long_name: bytes | None
    long_link: bytes | None


class TarReader:
    """Members of a stream in order; ``chunks`` reads the content of the one last given."""

    def __init__(self, source: Readable, *, subject: str, limits: StoreLimits, entries: int) -> None:
        self._source = source
        self._subject = subject
        self._limits = limits
        self._entries_left = entries
        self._entries = entries
        self._headers_left = limits.headers_bytes
        self._content_left = 0
        self._padding = 0

    def __iter__(self) -> Iterator[Member]:
        while (member := self._next()) is not None:
            yield member

    def chunks(self) -> Iterator[bytes]:
        """The rest of the current member's content, in pieces of at most 256 KiB."""
        while self._content_left:
            data = self._source.read(min(CHUNK, self._content_left))
            if not data:
                raise self._truncated()
            self._content_left -= len(data)
            yield data

    def _next(self) -> Member | None:
        for _ in self.chunks():
            pass
        self._exactly(self._padding)
        self._padding = 0
        none = extension = _Extension({}, None, None)
        while (block := self._header()) is not None:
            typeflag = block[156:157]
            if typeflag not in _EXTENSIONS:
                return self._start(block, extension)
            extension = self._extend(extension, typeflag, block)
        if extension is not none:
            raise self._truncated()
        return None

    def _header(self) -> bytes | None:
        """The next header block, or None at the end (two zero blocks, or no more bytes)."""
        block = self._read_up_to(BLOCK)
        if not block:
            return None
        if len(block) < BLOCK:
            raise self._truncated()
        if block.count(0) == BLOCK:
            following = self._read_up_to(BLOCK)
            if following.count(0) != len(following):
                raise DamagedArchive(self._subject, "has data after an empty header")
            return None
        _check_sum(block, self._subject)
        return block

    def _start(self, block: bytes, extension: _Extension) -> Member:
        self._entries_left -= 1
        if self._entries_left < 0:
            raise QuotaExceeded(self._subject, f"has more than {self._entries} members", "it is refused")
        member = _Parser(self._subject, block, extension).member()
        self._content_left = member.size
        self._padding = -member.size % BLOCK
        return member

    def _extend(self, known: _Extension, typeflag: bytes, block: bytes) -> _Extension:
        size = _number(block[124:136], "size", self._subject)
        if size < 0:
            raise DamagedArchive(self._subject, "has an extended header of negative size")
        if size > self._limits.header_bytes or size > self._headers_left:
            raise QuotaExceeded(
                self._subject, f"has extended headers too long ({size} bytes)", "it is refused"
            )
        self._headers_left -= size + BLOCK
        data = self._exactly(size)
        self._exactly(-size % BLOCK)
        if typeflag == b"L":
            return _Extension(known.records, data.rstrip(b"\0"), known.long_link)
        if typeflag == b"K":
            return _Extension(known.records, known.long_name, data.rstrip(b"\0"))
        if typeflag == b"x":
            records = {**known.records, **_pax_records(data, self._subject)}
            return _Extension(records, known.long_name, known.long_link)
        return known  # a global header: carries comments; like other runtimes we take nothing from it

    def _exactly(self, size: int) -> bytes:
        data = self._read_up_to(size)
        if len(data) < size:
            raise self._truncated()
        return data

    def _read_up_to(self, size: int) -> bytes:
        parts = []
        while size and (data := self._source.read(size)):
            parts.append(data)
            size -= len(data)
        return b"".join(parts)

    def _truncated(self) -> TruncatedArchive:
        return TruncatedArchive(self._subject, "is cut off in the middle", "copy or save it again")


def _check_sum(block: bytes, subject: str) -> None:
    """The sum of all bytes, the sum's own field taken as blanks; some writers sum signed bytes."""
    stated = _number(block[148:156], "checksum", subject)
    counted = block[:148] + b" " * 8 + block[156:]
    unsigned = sum(counted)
    if stated not in (unsigned, unsigned - 256 * sum(byte > 127 for byte in counted)):
        raise DamagedArchive(
            subject, "has a header with a wrong checksum", "it is no tar archive, or damaged"
        )


def _number(raw: bytes, what: str, subject: str) -> int:
    """Octal digits, or GNU's base-256 form for what octal cannot hold."""
    if raw[0] == 0x80:
        return int.from_bytes(raw[1:], "big")
    if raw[0] == 0xFF:
        return int.from_bytes(raw, "big", signed=True)
    digits = raw.strip(b" \0").partition(b"\0")[0].rstrip(b" ")
    if not _OCTAL.fullmatch(digits):
        raise DamagedArchive(subject, f"has a header whose {what} is not a number")
    return int(digits or b"0", 8)


def _pax_records(data: bytes, subject: str) -> dict[bytes, bytes]:
    """``<length> <key>=<value>\\n`` …; the length counts the whole record, itself included."""
    records: dict[bytes, bytes] = {}
    position = 0
    while position < len(data):
        digits = data[position : position + 20].partition(b" ")[0]
        length = int(digits) if _DECIMAL.fullmatch(digits) else 0
        record = data[position : position + length]
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if len(record) != length or not record.endswith(b"\n") or not equals or not key:
            raise DamagedArchive(subject, "has a malformed extended header")
        records[key] = value
        position += length
    return records


def _text(raw: bytes) -> bytes:
    return raw.partition(b"\0")[0]


class _Parser:
    """Turns one header block and the extended headers before it into a :class:`Member`."""

    def __init__(self, subject: str, block: bytes, extension: _Extension) -> None:
        self._subject = subject
        self._block = block
        self._extension = extension

    def member(self) -> Member:
        name = self._name()
        kind = self._kind(name)
        return Member(
            name=name,
            kind=kind,
            mode=self._field(b"", slice(100, 108), "mode") & 0o7777,
            uid=self._owner(b"uid", slice(108, 116)),
            gid=self._owner(b"gid", slice(116, 124)),
            size=self._size() if kind is Kind.FILE else 0,
            mtime_ns=self._mtime(),
            link=self._link(),
            xattrs=self._xattrs(),
        )

    def _name(self) -> bytes:
        if path := self._extension.records.get(b"path"):
            return path
        if self._extension.long_name:
            return self._extension.long_name
        name = _text(self._block[:100])
        prefix = _text(self._block[345:500]) if self._block[257:263] == b"ustar\0" else b""
        return prefix + b"/" + name if prefix else name

    def _link(self) -> bytes:
        return (
            self._extension.records.get(b"linkpath")
            or self._extension.long_link
            or _text(self._block[157:257])
        )

    def _kind(self, name: bytes) -> Kind:
        typeflag = self._block[156:157]
        if typeflag == b"S" or any(key.startswith(b"GNU.sparse.") for key in self._extension.records):
            raise self._refused(name, "is sparse", "save it again without --sparse", rule="type.sparse")
        if typeflag not in _KINDS:
            raise self._refused(name, f"has the unknown type {shown(typeflag)}", rule="type.unknown")
        if typeflag == b"\0" and name.endswith(b"/"):  # as before POSIX
            return Kind.DIRECTORY
        return _KINDS[typeflag]

    def _size(self) -> int:
        size = self._field(b"size", slice(124, 136), "size")
        if size < 0:
            raise DamagedArchive(self._subject, "has a member of negative size")
        return size

    def _owner(self, key: bytes, place: slice) -> int:
        owner = self._field(key, place, key.decode())
        if not 0 <= owner <= _ID_LIMIT:
            raise DamagedArchive(self._subject, f"has a member with the impossible {key.decode()} {owner}")
        return owner

    def _field(self, key: bytes, place: slice, what: str) -> int:
        value = self._extension.records.get(key)
        if not value:
            return _number(self._block[place], what, self._subject)
        if not _DECIMAL.fullmatch(value):
            raise DamagedArchive(self._subject, f"has an extended header whose {what} is not a number")
        return int(value)

    def _mtime(self) -> int:
        value = self._extension.records.get(b"mtime")
        if not value:
            return _clamp(_number(self._block[136:148], "time", self._subject)) * _NS
        match = _PAX_TIME.fullmatch(value)
        if match is None:
            raise DamagedArchive(self._subject, "has an extended header whose time is not a number")
        sign, seconds, fraction = match.groups()
        whole = _clamp(int(sign + seconds))
        part = int((fraction or b"")[:9].ljust(9, b"0"))
        return whole * _NS + (-part if sign else part)

    def _xattrs(self) -> dict[str, bytes]:
        records = self._extension.records.items()
        return {
            key[len(_XATTR_PREFIX) :].decode("utf-8", "surrogateescape"): value
            for key, value in records
            if key.startswith(_XATTR_PREFIX)
        }

    def _refused(self, name: bytes, problem: str, remedy: str = "", *, rule: str) -> UnsafeMember:
        return UnsafeMember(f"{self._subject}: member {shown(name)}", problem, remedy, rule=rule)


def _clamp(seconds: int) -> int:
    return max(_MTIME_RANGE[0], min(_MTIME_RANGE[1], seconds))
