"""Which blobs and layers something still needs, and removing the others."""

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from machineplane.runtime.images.disk import disk_usage

_HEX_DIGEST = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


def mounted_layers(proc: Path = Path("/proc")) -> frozenset[str]:
    """Diff ids (hexadecimal) named by any overlay mount of any process on this machine.

    Pods mount in namespaces of their own, so every process's view is read, each mount namespace once.
    """
    found: set[str] = set()
    seen: set[str] = set()
    for process in proc.iterdir():
        if not process.name.isdigit():
            continue
        try:
            namespace = os.readlink(process / "ns" / "mnt")
            if namespace not in seen:
                found.update(_overlay_layers((process / "mountinfo").read_text(errors="replace")))
                seen.add(namespace)
        except OSError:
            continue  # it ended while we looked, or it is a zombie: neither holds a mount
    return frozenset(found)


def _overlay_layers(mountinfo: str) -> Iterable[str]:
    for line in mountinfo.splitlines():
        if " - overlay " in line:
            yield from _HEX_DIGEST.findall(line)


def remove_others(directory: Path, keep: Iterable[str], graveyard: Path) -> int:
    """Remove all entries of ``directory`` but those named in ``keep``; returns the bytes freed.

    An entry is renamed to ``graveyard`` first, so that no reader finds half of it.
    """
    kept = frozenset(keep)
    freed = 0
    for path in directory.iterdir():
        if path.name not in kept:
            freed += disk_usage(path)
            gone = graveyard / path.name
            os.rename(path, gone)
            remove_tree(gone)
    return freed


def remove_tree(path: Path) -> None:
    """Remove a file or a tree; links in it are removed, not followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
