"""Helpers for files that several processes share: locks, replacement, private directories, flushing."""

import ctypes
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold ``flock(2)`` on ``path``. Each call opens the file anew, so it works between threads as well."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@contextmanager
def private_directory(parent: Path) -> Iterator[Path]:
    """A directory that nobody else uses; gone with all that is still in it when the block ends."""
    path = Path(tempfile.mkdtemp(dir=parent))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def flush_file_system(path: Path) -> None:
    """``syncfs(2)``: what was written on this file system is on the disk before it is renamed into place."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(ctypes.c_int(fd)) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(path))
    finally:
        os.close(fd)


def move_in(source: Path, target: Path) -> None:
    """Rename to a content-addressed name; when another importer was faster, theirs is as good as ours."""
    if target.exists():
        return
    try:
        os.rename(source, target)
    except OSError:
        if not target.exists():
            raise


def disk_usage(path: Path) -> int:
    """Bytes that a file or a tree takes on the disk; a file of several names counts once."""
    seen: set[int] = set()
    total = 0
    for directory, _, names in os.walk(path):
        for name in (".", *names):
            found = os.lstat(os.path.join(directory, name))
            if found.st_ino not in seen:
                seen.add(found.st_ino)
                total += found.st_blocks * 512
    return total if path.is_dir() else os.lstat(path).st_blocks * 512
