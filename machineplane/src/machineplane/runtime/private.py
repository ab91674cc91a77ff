"""What of a pod must not be on disk: variables, Secrets. It lies in a file system in memory that the pod's helper mounts.

That mount is in the helper's own mount namespace, so it is gone when the pod's last process is. The daemon reaches it
through /proc/<helper>/root, once, and holds it open; every path is then below the descriptor.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from machineplane.runtime.bundle.contents import File
from machineplane.runtime.errors import HelperLost
from machineplane.runtime.shim.state import PRIVATE

RECORDS = "records"
_DATA, _FRESH = "..data", "..data.new"


class PrivateFolder:
    """The folder. Use :func:`open_private`. Blocking, but for memory only."""

    def __init__(self, fd: int) -> None:
        self._path = Path(f"/proc/self/fd/{fd}")

    def write_config(
        self, container: str, config: Mapping[str, Any], files: Mapping[str, str] | None = None
    ) -> None:
        """The configuration of a container, and other ``files`` by name, in a folder for it that is new."""
        self.forget(container)
        folder = self._path / container
        folder.mkdir(mode=0o700)
        for name, text in {"config.json": json.dumps(config), **(files or {})}.items():
            (folder / name).write_text(text)

    def forget(self, container: str) -> None:
        """Remove a container's folder. It is never entered deeper: places for mounts are in it."""
        folder = self._path / container
        if not folder.is_dir():
            return
        for entry in os.scandir(folder):
            (os.rmdir if entry.is_dir(follow_symlinks=False) else os.unlink)(entry.path)
        folder.rmdir()

    def save_records(self, raw: bytes) -> None:
        """Keep what came with the pod."""
        (self._path / RECORDS).write_bytes(raw)

    def records(self) -> bytes:
        """What :meth:`save_records` kept; empty if nothing."""
        try:
            return (self._path / RECORDS).read_bytes()
        except FileNotFoundError:
            return b""

    def write_volume(self, name: str, files: Mapping[str, File], group: int | None) -> bool:
        """Make a volume's files what ``files`` says, all at once for who reads them; false if they are so already.

        As Kubernetes has it, names are links into a folder that is exchanged as a whole. With ``group`` (fsGroup) files
        belong to it and it may read them.
        """
        volume = self._path / "volumes" / name
        volume.mkdir(parents=True, exist_ok=True)
        volume.chmod(0o755)
        if _content(volume / _DATA) == {
            path: (file.content, _mode(file, group)) for path, file in files.items()
        }:
            return False
        old = os.readlink(volume / _DATA) if (volume / _DATA).is_symlink() else ""
        fresh = "..1" if old != "..1" else "..2"
        shutil.rmtree(volume / fresh, ignore_errors=True)
        (volume / fresh).mkdir(mode=0o755)
        for path, file in files.items():
            _write(volume / fresh / path, file, group)
        _exchange(volume, fresh, {path.partition("/")[0] for path in files})
        if old:
            shutil.rmtree(volume / old, ignore_errors=True)
        return True


def _mode(file: File, group: int | None) -> int:
    return file.mode if group is None else file.mode | 0o440


def _write(path: Path, file: File, group: int | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(fd, "wb") as out:
        out.write(file.content)
        if group is not None:
            os.fchown(fd, -1, group)
        os.fchmod(fd, _mode(file, group))


def _content(folder: Path) -> dict[str, tuple[bytes, int]]:
    found = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            found[str(path.relative_to(folder))] = (path.read_bytes(), path.stat().st_mode & 0o777)
    return found if folder.exists() else {"/": (b"", 0)}


def _exchange(volume: Path, fresh: str, names: set[str]) -> None:
    (volume / _FRESH).unlink(missing_ok=True)
    (volume / _FRESH).symlink_to(fresh)
    (volume / _FRESH).replace(volume / _DATA)
    there = {path.name for path in volume.iterdir() if not path.name.startswith("..")}
    for name in sorted(names - there):
        (volume / name).symlink_to(f"{_DATA}/{name}")
    for name in sorted(there - names):
        (volume / name).unlink()


@contextmanager
def open_private(pod_dir: Path, helper_pid: int) -> Iterator[PrivateFolder]:
    """The private folder of a pod whose helper is the process ``helper_pid``.

    Raises:
        HelperLost: that process is gone, or has no such file system: what should stay in memory is never written to disk.
    """
    path = Path(f"/proc/{helper_pid}/root{pod_dir}") / PRIVATE
    try:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise HelperLost(f"the helper's private folder cannot be entered ({error.strerror})") from error
    try:
        if os.fstat(fd).st_dev == pod_dir.stat().st_dev:
            raise HelperLost("the helper has no private file system in memory")
        yield PrivateFolder(fd)
    finally:
        os.close(fd)
