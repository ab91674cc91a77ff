"""Opens what an image may come in: a directory, or a tar archive (gzip, zstd or plain) that need not be
seekable.

Both become a :class:`Bundle`, from which named files are taken. An archive is read once, from front to
back; each file in it goes to a numbered file in the staging directory, so names of the archive never name
anything on disk.
"""

import os
import posixpath
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from attrs import frozen

from machineplane.runtime.images.errors import NotAnImage, QuotaExceeded, UnsafeMember, shown
from machineplane.runtime.images.model import StoreLimits
from machineplane.runtime.images.streams import Counted, decompressed
from machineplane.runtime.images.tarstream import CHUNK, Kind, Member, Readable, TarReader

_LINK_HOPS = 8  # `docker save` links a repeated layer to its first copy: one hop


@frozen
class Staged:
    """A file taken out of a bundle: where it is now, and what it turned out to be."""

    path: Path
    digest: str
    size: int


class Bundle(Protocol):
    """Files of an image that came in some form; ``subject`` names it in errors."""

    @property
    def subject(self) -> str: ...

    def has(self, name: str) -> bool: ...

    def stage(self, name: str) -> Staged:
        """The file as a private copy, hashed. Raises ``NotAnImage`` when there is none of that name."""
        ...


def read_document(bundle: Bundle, name: str, limits: StoreLimits) -> tuple[bytes, str]:
    """The content of a small file and its digest. Raises ``QuotaExceeded`` above ``document_bytes``."""
    staged = bundle.stage(name)
    if staged.size > limits.document_bytes:
        raise QuotaExceeded(
            f"{bundle.subject}: {shown(name)}", f"has {staged.size} bytes, too many", "it is refused"
        )
    return staged.path.read_bytes(), staged.digest


@contextmanager
def open_bundle(source: Path | BinaryIO, staging: Path, limits: StoreLimits) -> Iterator[Bundle]:
    """The bundle in ``source``. Its staged files live in ``staging``, which the caller removes."""
    if not isinstance(source, Path):
        yield _read_archive(source, str(getattr(source, "name", "archive")), staging, limits)
        return
    if source.is_dir():
        with _LayoutDirectory(source, staging, limits) as layout:
            yield layout
        return
    try:
        file = source.open("rb")
    except OSError as error:
        raise NotAnImage(str(source), f"cannot be read ({error.strerror})") from error
    with file:
        yield _read_archive(file, str(source), staging, limits)


def copy_hashed(source: Readable, target: Path, *, limit: int, subject: str) -> Staged:
    """Copy a stream to a new file while hashing it; more than ``limit`` bytes raise ``QuotaExceeded``."""
    counted = Counted(source, limit=limit, subject=subject)
    with target.open("xb") as out:
        while data := counted.read(CHUNK):
            out.write(data)
    return Staged(target, counted.digest, counted.count)


def _missing(subject: str, name: str) -> NotAnImage:
    return NotAnImage(subject, f"lacks {shown(name)}", "save the image again")


class _LayoutDirectory:
    """An OCI image layout on disk. Links in it are not followed, and only regular files are read."""

    def __init__(self, path: Path, staging: Path, limits: StoreLimits) -> None:
        self.subject = str(path)
        self._staging = staging
        self._limits = limits
        self._root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._staged: dict[str, Staged] = {}

    def __enter__(self) -> "_LayoutDirectory":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._root)

    def has(self, name: str) -> bool:
        fd = self._open(name)
        if fd is not None:
            os.close(fd)
        return fd is not None

    def stage(self, name: str) -> Staged:
        if name not in self._staged:
            fd = self._open(name)
            if fd is None:
                raise _missing(self.subject, name)
            target = self._staging / str(len(self._staged))
            with open(fd, "rb") as source:
                self._staged[name] = copy_hashed(
                    source, target, limit=self._limits.archive_bytes, subject=self.subject
                )
        return self._staged[name]

    def _open(self, name: str) -> int | None:
        """A descriptor of a regular file; None if there is none, or something else has its place."""
        *directories, last = name.split("/")
        current = os.dup(self._root)
        try:
            for part in directories:
                following = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=current)
                os.close(current)
                current = following
            fd = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=current)
        except OSError:
            return None
        finally:
            os.close(current)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            return None
        return fd


class _Archive:
    """Files of an archive that has been read to its end."""

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.files: dict[str, Staged] = {}
        self.links: dict[str, str] = {}

    def has(self, name: str) -> bool:
        return self._followed(name) in self.files

    def stage(self, name: str) -> Staged:
        staged = self.files.get(self._followed(name))
        if staged is None:
            raise _missing(self.subject, name)
        return staged

    def _followed(self, name: str) -> str:
        for _ in range(_LINK_HOPS):
            if name not in self.links:
                break
            name = self.links[name]
        return name


class _MemberStream:
    """The current member's content as a ``Readable``."""

    def __init__(self, reader: TarReader) -> None:
        self._chunks = reader.chunks()

    def read(self, size: int, /) -> bytes:
        """The next piece; ``size`` is not below a chunk's in this module."""
        return next(self._chunks, b"")


def _read_archive(file: Readable, subject: str, staging: Path, limits: StoreLimits) -> _Archive:
    plain = Counted(decompressed(file, subject), limit=limits.archive_bytes, subject=subject)
    reader = TarReader(plain, subject=subject, limits=limits, entries=limits.archive_entries)
    archive = _Archive(subject)
    for member in reader:
        _take_member(archive, reader, member, staging, limits)
    plain.drain()
    if plain.count == 0:
        raise NotAnImage(subject, "is empty", "give an OCI layout, an OCI archive or a docker archive")
    return archive


def _take_member(
    archive: _Archive, reader: TarReader, member: Member, staging: Path, limits: StoreLimits
) -> None:
    if member.kind is Kind.DIRECTORY:
        return
    name = _member_name(archive.subject, member.name)
    if name in archive.files or name in archive.links:
        raise _refused(archive.subject, member, "comes twice", rule="path.duplicate")
    if member.kind is Kind.FILE:
        target = staging / str(len(archive.files))
        archive.files[name] = copy_hashed(
            _MemberStream(reader), target, limit=limits.archive_bytes, subject=archive.subject
        )
    elif member.kind in (Kind.SYMLINK, Kind.HARDLINK):
        base = posixpath.dirname(name) if member.kind is Kind.SYMLINK else ""
        archive.links[name] = _link_target(archive.subject, member, base)
    else:
        raise _refused(archive.subject, member, f"is a {member.kind.value}", rule="type.device")


def _member_name(subject: str, raw: bytes) -> str:
    name = posixpath.normpath(raw.decode("utf-8", "surrogateescape"))
    if name.startswith(("/", "../")) or name == "..":
        raise UnsafeMember(f"{subject}: member {shown(raw)}", "lies outside the archive", rule="path.parent")
    return name


def _link_target(subject: str, member: Member, base: str) -> str:
    """What a link means inside the archive; it is looked up there only, never on disk."""
    target = posixpath.normpath(posixpath.join(base, member.link.decode("utf-8", "surrogateescape")))
    if target.startswith(("/", "../")) or target == "..":
        raise _refused(
            subject, member, f"links outside the archive, to {shown(member.link)}", rule="link.target"
        )
    return target


def _refused(subject: str, member: Member, problem: str, *, rule: str) -> UnsafeMember:
    return UnsafeMember(f"{subject}: member {shown(member.name)}", problem, rule=rule)
