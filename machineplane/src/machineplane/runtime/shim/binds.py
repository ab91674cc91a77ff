"""Paths inside volumes and below allowed folders of the machine, bound to places of our own without following any link out.

A container may write into a volume, so a path in it may be a link, and become one at any moment. The path is therefore
opened by ``openat2``, which never leaves the volume, and what was opened is what is mounted.
"""

import contextlib
import os
import stat
from collections.abc import Callable

from machineplane.linux import libc

_DIRECTORY_MODE = 0o755
_KINDS: dict[str, Callable[[int], bool]] = {
    "Directory": stat.S_ISDIR,
    "DirectoryOrCreate": stat.S_ISDIR,
    "File": stat.S_ISREG,
    "FileOrCreate": stat.S_ISREG,
    "Socket": stat.S_ISSOCK,
    "CharDevice": stat.S_ISCHR,
    "BlockDevice": stat.S_ISBLK,
}


class BindError(Exception):
    """A path cannot be mounted; names it."""


def bind(root: str, path: str, kind: str, make: bool, target: str) -> None:
    """Bind what is at ``path`` below ``root`` to ``target``, which is made.

    Raises:
        BindError: it is not there, leads out of ``root``, or is not of its kind.
    """
    try:
        base = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise BindError(f"{root}: {error.strerror}") from error
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, base)
        try:
            found = _open(base, path, kind, make)
        except OSError as error:
            raise BindError(f"{path!r} is not there, or leads out of its volume: {error.strerror}") from error
        stack.callback(os.close, found)
        mode = os.fstat(found).st_mode
        if kind and not _KINDS[kind](mode):
            raise BindError(f"{os.path.join(root, path)} is not a {kind}")
        if stat.S_ISDIR(mode):
            os.makedirs(target)
        else:
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        libc.mount(f"/proc/self/fd/{found}", target, "", libc.MS_BIND | libc.MS_REC)


def _open(base: int, path: str, kind: str, make: bool) -> int:
    try:
        return libc.open_beneath(base, path)
    except FileNotFoundError:
        if not make and not kind.endswith("OrCreate"):
            raise
    parts = [part for part in path.split("/") if part not in ("", ".")]
    here = libc.open_beneath(base, ".")
    for number, part in enumerate(parts):
        with contextlib.suppress(FileExistsError):
            if kind == "FileOrCreate" and number == len(parts) - 1:
                os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=here))
            else:
                os.mkdir(part, _DIRECTORY_MODE, dir_fd=here)
        os.close(here)
        here = libc.open_beneath(base, "/".join(parts[: number + 1]))
    return here
