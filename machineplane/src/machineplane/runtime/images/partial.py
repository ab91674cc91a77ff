"""A blob that is being downloaded: a file that outlives a broken download, so that the next one goes on where it ended."""

import fcntl
import hashlib
import os
import secrets
from pathlib import Path

from machineplane.runtime.images.archive import Staged
from machineplane.runtime.images.disk import disk_usage

_READ = 1 << 20


class PartialBlob:
    """``<folder>/<hex>``, locked while it is open; whoever finds it locked gets a file of another name, to be removed.

    Synchronous. What is in it when it is opened was written by others: it is hashed again, and nothing else is trusted.
    """

    def __init__(self, folder: Path, digest: str, size: int) -> None:
        self.digest = digest
        self.wanted = size
        name = digest.removeprefix("sha256:")
        self.path, self._fd, self._shared = _open(folder, name)
        self.size = 0
        self._hash = hashlib.sha256()
        self._take_over()

    def _take_over(self) -> None:
        found = os.fstat(self._fd).st_size
        if found > self.wanted:
            os.ftruncate(self._fd, 0)
            return
        while data := os.read(self._fd, _READ):
            self._hash.update(data)
            self.size += len(data)

    @property
    def complete(self) -> bool:
        return self.size == self.wanted and f"sha256:{self._hash.hexdigest()}" == self.digest

    @property
    def found_digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"

    def write(self, data: bytes) -> None:
        """Append. Raises ``OSError`` where the disk is full."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
        self._hash.update(data)
        self.size += len(data)

    def restart(self) -> None:
        """Forget all that is there."""
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self.size = 0
        self._hash = hashlib.sha256()

    def staged(self) -> Staged:
        """The finished file."""
        return Staged(self.path, self.digest, self.size)

    def close(self, *, keep: bool) -> None:
        """Give it up; ``keep`` leaves what is there to the next download of this blob."""
        if not (keep and self._shared and self.size) and _same(self._fd, self.path):
            self.path.unlink()
        os.close(self._fd)


def _open(folder: Path, name: str) -> tuple[Path, int, bool]:
    """The file of that name if it is free and still in its place when locked, else one of our own."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    path = folder / name
    fd = os.open(path, flags, 0o600)
    if _lock(fd) and _same(fd, path):
        return path, fd, True
    os.close(fd)
    path = folder / f"{name}.{secrets.token_hex(4)}"
    fd = os.open(path, flags | os.O_EXCL, 0o600)
    _lock(fd)
    return path, fd, False


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _same(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def remove_partials(folder: Path, older_than: float) -> int:
    """Remove what no download holds and none has written to since ``older_than`` (s since the epoch); bytes freed."""
    freed = 0
    for path in folder.iterdir():
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            if os.fstat(fd).st_mtime <= older_than and _lock(fd):
                freed += disk_usage(path)
                path.unlink(missing_ok=True)
        finally:
            os.close(fd)
    return freed
