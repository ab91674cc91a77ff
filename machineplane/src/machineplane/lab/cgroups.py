"""The control groups that a machine's pods leave when their machine loses its power: nobody inside removes
them.
"""

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath

CGROUPS = Path("/sys/fs/cgroup")
# Every control group that Magik makes has this in its path; nothing else is ever removed here.
OURS = "magik"

_PATIENCE = 1.0  # seconds; the kernel lets go of a group a moment after its last process


def of_processes(pids: Iterable[int]) -> set[str]:
    """The paths of our groups, within whatever hierarchy, that these processes are in."""
    paths: set[str] = set()
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
            paths.update(line.split(":", 2)[2] for line in lines)
    return {path for path in paths if OURS in path}


def hierarchies(root: Path = CGROUPS) -> list[Path]:
    """The mounted hierarchies: the one of cgroup2, or the directories of version 1 (and of both mixed)."""
    if (root / "cgroup.controllers").exists():
        return [root]
    return (
        [path for path in sorted(root.iterdir()) if path.is_dir() and not path.is_symlink()]
        if root.is_dir()
        else []
    )


def remove(paths: Iterable[str], root: Path = CGROUPS) -> list[str]:
    """Remove the groups at ``paths`` with all below them, then those above that are ours and empty.

    Returns what could not be removed: groups that still have processes after a second.
    """
    end = time.monotonic() + _PATIENCE
    left = sorted(set(paths))
    while left := [path for path in left if not _remove(path, root)]:
        if time.monotonic() > end:
            return left
        time.sleep(0.02)
    return []


def _remove(path: str, root: Path) -> bool:
    gone = True
    for hierarchy in hierarchies(root):
        top = hierarchy / path.strip("/")
        for folder, _, _ in os.walk(top, topdown=False):
            with suppress(OSError):
                os.rmdir(folder)
        gone = gone and not top.exists()
        for parent in PurePosixPath(path).parents:
            if OURS in parent.name:
                with suppress(OSError):  # other pods are in it
                    (hierarchy / str(parent).strip("/")).rmdir()
    return gone
