"""A container's root file system: overlay mount, and the check that its working directory lies inside."""

import contextlib
import os

from machineplane.linux import libc

_MAX_OPTIONS = 4095
"""Bytes of mount options that the kernel takes: one page with its end."""
_LOOK = os.O_PATH | os.O_DIRECTORY


class RootError(Exception):
    """The root file system cannot be made, or the container's working directory leaves it."""


def _escape(path: str) -> str:
    """A path inside overlay's options, where colons and commas separate."""
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


def mount_overlay(layers: list[str], bundle: str) -> None:
    """Mount ``layers`` (lowest first) with a fresh writable one at ``<bundle>/rootfs``.

    Layers are named relative to their common folder, from which the mount is made, so that many fit the kernel's page.
    """
    upper, work, root = (os.path.join(bundle, name) for name in ("upper", "work", "rootfs"))
    for path in (upper, work, root):
        os.makedirs(path, mode=0o755, exist_ok=True)
    if not layers:
        raise RootError("the image has no layers")
    base = os.path.commonpath([os.path.dirname(layer) for layer in layers])
    lower = ":".join(_escape(os.path.relpath(layer, base)) for layer in reversed(layers))
    options = f"lowerdir={lower},upperdir={_escape(upper)},workdir={_escape(work)}"
    if len(os.fsencode(options)) > _MAX_OPTIONS:
        raise RootError(f"the image has {len(layers)} layers, too many for one overlay mount; squash it")
    back = os.getcwd()
    os.chdir(base)
    try:
        libc.mount("overlay", root, "overlay", 0, options)
    except OSError as error:
        raise RootError(f"overlay at {root} over {len(layers)} layers: {error.strerror}") from error
    finally:
        os.chdir(back)


def check_cwd(pid: int, path: str) -> None:
    """Refuse a created process whose working directory is not ``path`` inside its own root.

    libcrun before 1.14.1 leaks directory descriptors into the first process, so that a path or symbolic link to
    /proc/self/fd/<n> leads out of the container (the class of CVE-2024-21626). The process still waits for its start.
    """
    with contextlib.ExitStack() as stack:
        root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, root)
        try:
            wanted = libc.openat2(root, path, _LOOK, libc.RESOLVE_IN_ROOT | libc.RESOLVE_NO_MAGICLINKS)
        except OSError as error:
            raise RootError(f"the working directory {path!r} is not one inside the container") from error
        stack.callback(os.close, wanted)
        inside, actual = os.fstat(wanted), os.stat(f"/proc/{pid}/cwd")
    if (inside.st_dev, inside.st_ino) != (actual.st_dev, actual.st_ino):
        raise RootError(f"the working directory {path!r} leads out of the container")
