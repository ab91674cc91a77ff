"""Writes the members of a layer below one directory, and nowhere else, in the form that overlayfs reads.

Every step down is an ``openat`` of one name with ``O_NOFOLLOW``: no path of the archive is ever given to
the kernel as a path, so neither ``..`` nor a symbolic link that an earlier member made can lead out. A
whiteout becomes a character device 0:0, an opaque directory gets ``trusted.overlay.opaque=y`` (kernel
documentation, filesystems/overlayfs).
"""

import errno
import os
import stat
from collections.abc import Iterable

from machineplane.runtime.images.errors import StoreUnwritable, UnsafeMember, shown
from machineplane.runtime.images.tarstream import Kind, Member

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OPAQUE = "trusted.overlay.opaque"
_WHITEOUT = b".wh."  # OCI image specification, layer.md, "Whiteouts"
_OPAQUE_MARK = b".wh..wh..opq"
_AUFS_PREFIX = b".wh..wh."  # bookkeeping of aufs that old layers carry; no content
_DEPTH = 128  # directories deep; a guess: the deepest of common images has about 30
_NAME = 255  # NAME_MAX
_PATH = 4095  # PATH_MAX less its NUL

Parts = tuple[bytes, ...]


class LayerTree:
    """The directory of one layer being written. Use as a context manager; it owns descriptors only."""

    def __init__(self, root: str, *, subject: str) -> None:
        self._subject = subject
        self._root = os.open(root, _DIRECTORY)
        self._cached: tuple[Parts, int] = ((), self._root)
        self._times: dict[Parts, int] = {(): 0}
        os.fchmod(self._root, 0o755)

    def __enter__(self) -> "LayerTree":
        return self

    def __exit__(self, *_: object) -> None:
        self._drop_cached()
        os.close(self._root)

    def add(self, member: Member, content: Iterable[bytes]) -> None:
        """Write one member. Raises ``UnsafeMember`` (by rule) or ``StoreUnwritable``."""
        try:
            self._add(member, self._parts(member, member.name), content)
        except OSError as error:
            raise self._unwritable(member, error) from error

    def finish(self) -> None:
        """Set the directories' times, which writing into them had changed."""
        for parts, mtime in self._times.items():
            os.utime(self._open(parts), ns=(mtime, mtime))

    def _add(self, member: Member, parts: Parts, content: Iterable[bytes]) -> None:
        if any(part.startswith(_WHITEOUT) for part in parts):
            return self._add_whiteout(member, parts)
        if not parts:
            return self._root_itself(member)
        parent, name = self._parent(member, parts), parts[-1]
        match member.kind:
            case Kind.DIRECTORY:
                self._add_directory(member, parent, parts)
            case Kind.FILE:
                self._add_file(member, parent, name, content)
            case Kind.SYMLINK:
                self._add_symlink(member, parent, name)
            case Kind.HARDLINK:
                self._add_hardlink(member, parent, parts)
            case Kind.FIFO:
                self._vacate(member, parent, name)
                os.mkfifo(name, 0o600, dir_fd=parent)
                self._dress_name(member, parent, name)
            case Kind.CHAR | Kind.BLOCK:
                raise self._unsafe(
                    member, f"is a {member.kind.value}", "images may bring no devices", rule="type.device"
                )
        return None

    # names ----------------------------------------

    def _parts(self, member: Member, path: bytes) -> Parts:
        """The names of ``path`` below the root; refuses what is not plainly below it."""
        if path.startswith(b"/"):
            raise self._unsafe(member, "has an absolute path", rule="path.absolute")
        if b"\0" in path:
            raise self._unsafe(member, "has a NUL in its path", rule="path.nul")
        parts = tuple(part for part in path.split(b"/") if part not in (b"", b"."))
        if b".." in parts:
            raise self._unsafe(member, "has '..' in its path", rule="path.parent")
        if len(path) > _PATH or len(parts) > _DEPTH or any(len(part) > _NAME for part in parts):
            raise self._unsafe(member, f"has a path too long or deeper than {_DEPTH}", rule="path.long")
        return parts

    def _parent(self, member: Member, parts: Parts) -> int:
        """A descriptor of the directory that is to hold ``parts``, made on the way where missing."""
        wanted = parts[:-1]
        if self._cached[0] == wanted:
            return self._cached[1]
        current = os.dup(self._root)
        try:
            for depth in range(len(wanted)):
                following = self._step(member, current, wanted[: depth + 1])
                os.close(current)
                current = following
        except BaseException:
            os.close(current)
            raise
        self._drop_cached()
        self._cached = (wanted, current)
        return current

    def _step(self, member: Member, parent: int, parts: Parts) -> int:
        name = parts[-1]
        found = _lstat(parent, name)
        if found is None or _is_whiteout(found):
            self._make_directory(parent, name, replaces=found is not None)
            self._times[parts] = 0
        elif stat.S_ISLNK(found.st_mode):
            raise self._unsafe(member, f"leads through the link {shown(name)}", rule="path.through-link")
        elif not stat.S_ISDIR(found.st_mode):
            raise self._unsafe(member, f"leads through {shown(name)}, no directory", rule="path.through-file")
        return os.open(name, _DIRECTORY, dir_fd=parent)

    def _open(self, parts: Parts) -> int:
        """As ``_parent``, for a directory that is known to exist."""
        return self._parent(Member(name=b"/".join(parts), kind=Kind.DIRECTORY), (*parts, b""))

    def _drop_cached(self) -> None:
        if self._cached[1] != self._root:
            os.close(self._cached[1])
        self._cached = ((), self._root)

    # members ----------------------------------------

    def _root_itself(self, member: Member) -> None:
        if member.kind is not Kind.DIRECTORY:
            raise self._unsafe(member, f"would make the root a {member.kind.value}", rule="path.root")
        self._dress(member, self._root)
        self._times[()] = member.mtime_ns

    def _add_directory(self, member: Member, parent: int, parts: Parts) -> None:
        name = parts[-1]
        found = _lstat(parent, name)
        if found is None or _is_whiteout(found):
            self._make_directory(parent, name, replaces=found is not None)
        elif not stat.S_ISDIR(found.st_mode):
            raise self._duplicate(member)
        fd = os.open(name, _DIRECTORY, dir_fd=parent)
        try:
            self._dress(member, fd)
        finally:
            os.close(fd)
        self._times[parts] = member.mtime_ns

    def _make_directory(self, parent: int, name: bytes, *, replaces: bool) -> None:
        """A directory that takes a whiteout's place hides what is below it: it has to be opaque."""
        if replaces:
            os.unlink(name, dir_fd=parent)
        os.mkdir(name, 0o755, dir_fd=parent)
        fd = os.open(name, _DIRECTORY, dir_fd=parent)
        try:
            os.fchmod(fd, 0o755)
            if replaces:
                os.setxattr(fd, _OPAQUE, b"y")
        finally:
            os.close(fd)

    def _add_file(self, member: Member, parent: int, name: bytes, content: Iterable[bytes]) -> None:
        self._vacate(member, parent, name)
        fd = os.open(name, _NEW_FILE, 0o600, dir_fd=parent)
        try:
            for data in content:
                _write_all(fd, data)
            self._dress(member, fd)
            os.utime(fd, ns=(member.mtime_ns, member.mtime_ns))
        finally:
            os.close(fd)

    def _add_symlink(self, member: Member, parent: int, name: bytes) -> None:
        if not 0 < len(member.link) <= _PATH or b"\0" in member.link:
            raise self._unsafe(member, "has an impossible link target", rule="link.target")
        self._vacate(member, parent, name)
        os.symlink(member.link, name, dir_fd=parent)
        os.chown(name, member.uid, member.gid, dir_fd=parent, follow_symlinks=False)
        os.utime(name, ns=(member.mtime_ns, member.mtime_ns), dir_fd=parent, follow_symlinks=False)

    def _add_hardlink(self, member: Member, parent: int, parts: Parts) -> None:
        """A second name for a member that this layer already has, and for nothing else."""
        target = self._parts(member, member.link)
        missing = self._unsafe(
            member, f"links to {shown(member.link)}, which this layer does not have", rule="link.target"
        )
        if not target or target == parts:
            raise missing
        self._vacate(member, parent, parts[-1])
        here = os.dup(parent)  # looking for the target may close the cached descriptor
        try:
            there = self._existing(target[:-1])
            if there is None:
                raise missing
            try:
                found = _lstat(there, target[-1])
                if found is None or stat.S_ISDIR(found.st_mode) or stat.S_ISCHR(found.st_mode):
                    raise missing
                os.link(target[-1], parts[-1], src_dir_fd=there, dst_dir_fd=here, follow_symlinks=False)
            finally:
                os.close(there)
        finally:
            os.close(here)

    def _existing(self, parts: Parts) -> int | None:
        """A descriptor of a directory that is there, its links not followed; None when it is not."""
        current = os.dup(self._root)
        for part in parts:
            try:
                following = os.open(part, _DIRECTORY, dir_fd=current)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    raise
                return None
            finally:
                os.close(current)
            current = following
        return current

    def _add_whiteout(self, member: Member, parts: Parts) -> None:
        name = parts[-1]
        if any(part.startswith(_WHITEOUT) for part in parts[:-1]):
            raise self._unsafe(member, "leads through a whiteout", rule="whiteout.path")
        if member.kind not in (Kind.FILE, Kind.HARDLINK):
            raise self._unsafe(member, f"is a whiteout and a {member.kind.value}", rule="whiteout.type")
        parent = self._parent(member, parts)
        if name == _OPAQUE_MARK:
            os.setxattr(parent, _OPAQUE, b"y")
        elif not name.startswith(_AUFS_PREFIX):
            self._hide(member, parent, name[len(_WHITEOUT) :])

    def _hide(self, member: Member, parent: int, name: bytes) -> None:
        """Hide ``name`` of lower layers; what this layer itself has of that name stays (layer.md)."""
        if name in (b"", b".", b".."):
            raise self._unsafe(member, "is a whiteout of nothing", rule="whiteout.name")
        found = _lstat(parent, name)
        if found is None:
            os.mknod(name, stat.S_IFCHR | 0o600, os.makedev(0, 0), dir_fd=parent)
        elif stat.S_ISDIR(found.st_mode):
            fd = os.open(name, _DIRECTORY, dir_fd=parent)
            try:
                os.setxattr(fd, _OPAQUE, b"y")
            finally:
                os.close(fd)

    def _vacate(self, member: Member, parent: int, name: bytes) -> None:
        """Make sure that ``name`` is free; a whiteout of it gives way, anything else is a duplicate."""
        found = _lstat(parent, name)
        if found is None:
            return
        if not _is_whiteout(found):
            raise self._duplicate(member)
        os.unlink(name, dir_fd=parent)

    # attributes ----------------------------------------

    def _dress(self, member: Member, fd: int) -> None:
        """Owner first: chown clears set-id bits and capabilities."""
        os.fchown(fd, member.uid, member.gid)
        os.fchmod(fd, member.mode)
        for key, value in member.xattrs.items():
            if "\0" in key or key.startswith(("trusted.overlay.", "user.overlay.")):
                raise self._unsafe(member, f"sets the attribute {shown(key)}", rule="xattr.overlay")
            if key == "security.capability" or key.startswith("user."):
                os.setxattr(fd, key, value)
            # others (labels of SELinux, IMA, access lists) belong to the machine that wrote the layer

    def _dress_name(self, member: Member, parent: int, name: bytes) -> None:
        """As ``_dress`` for a fifo just made here, which cannot be opened without a partner."""
        os.chown(name, member.uid, member.gid, dir_fd=parent, follow_symlinks=False)
        os.chmod(name, member.mode, dir_fd=parent)
        os.utime(name, ns=(member.mtime_ns, member.mtime_ns), dir_fd=parent, follow_symlinks=False)

    def _unsafe(self, member: Member, problem: str, remedy: str = "", *, rule: str) -> UnsafeMember:
        return UnsafeMember(f"{self._subject}: member {shown(member.name)}", problem, remedy, rule=rule)

    def _duplicate(self, member: Member) -> UnsafeMember:
        return self._unsafe(member, "comes twice", "save the image again", rule="path.duplicate")

    def _unwritable(self, member: Member, error: OSError) -> StoreUnwritable:
        remedy = {
            errno.EPERM: "run as root",
            errno.EACCES: "run as root",
            errno.ENOSPC: "free some space (`machineplane image prune`)",
            errno.EDQUOT: "free some space (`machineplane image prune`)",
        }.get(error.errno or 0, "see the store's file system")
        subject = f"{self._subject}: member {shown(member.name)}"
        return StoreUnwritable(subject, f"could not be written ({os.strerror(error.errno or 0)})", remedy)


def _lstat(parent: int, name: bytes) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _is_whiteout(found: os.stat_result) -> bool:
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
