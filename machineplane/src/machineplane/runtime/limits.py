"""What a pod may not outlive or outgrow: ``activeDeadlineSeconds``, and limits of local storage."""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import trio

from machineplane.runtime.book import now_ms
from machineplane.runtime.bundle.objects import MissingReference
from machineplane.runtime.bundle.quantity import byte_count
from machineplane.runtime.bundle.supported import all_containers
from machineplane.runtime.bundle.volumes import volumes
from machineplane.runtime.errors import PodSpecError
from machineplane.runtime.live import LivePod

STORAGE_LOOK_S = 10.0
"""How often a pod with limits of storage is measured, as Kubernetes' agent does."""

REFRESH_S = 30.0
"""How often volumes of ConfigMaps and Secrets are brought up to date; Kubernetes takes up to a minute or two."""

Fail = Callable[[str, str], None]
_BLOCK = 512  # st_blocks counts in these, stat(2)


async def watch_deadline(live: LivePod, fail: Fail) -> None:
    """Fail the pod when it has been active for longer than its spec lets it."""
    seconds = live.pod["spec"].get("activeDeadlineSeconds")
    if not seconds:
        return
    left = live.book.status.started_at / 1000 + seconds - now_ms() / 1000
    await trio.sleep(max(left, 0))
    fail("DeadlineExceeded", "Pod was active on the node longer than the specified deadline")


def folder_bytes(folder: Path) -> int:
    """Bytes of disk below a folder, on its own file system. What goes meanwhile is not counted. Blocks."""
    total, seen = 0, set[int]()
    try:
        device = folder.stat().st_dev
    except OSError:
        return 0
    for parent, folders, names in os.walk(folder):
        kept = []
        for name in (*names, *folders):
            try:
                found = os.lstat(os.path.join(parent, name))
            except OSError:
                continue
            if found.st_dev != device:
                continue
            if name in folders:
                kept.append(name)
            if found.st_nlink == 1 or found.st_ino not in seen:
                total += found.st_blocks * _BLOCK
                seen.add(found.st_ino)
        folders[:] = kept
    return total


def storage_limits(pod: Mapping[str, Any]) -> list[tuple[str, tuple[str, ...], int]]:
    """For each limit: what it is of, the folders below the pod's that count, and its bytes."""
    found, total = list[tuple[str, tuple[str, ...], int]](), 0
    limited = True
    for container, init in all_containers(pod):
        limit = ((container.get("resources") or {}).get("limits") or {}).get("ephemeral-storage")
        if limit is None:
            limited = limited and init
            continue
        size = byte_count(limit, f"{container['name']}.resources.limits.ephemeral-storage")
        folders = tuple(f"{kind}/{container['name']}" for kind in ("containers", "logs"))
        found.append(
            (f"Container {container['name']} exceeded its local ephemeral storage limit", folders, size)
        )
        total += 0 if init else size
    for volume in volumes(pod["spec"]).values():
        if volume.kind == "emptyDir" and volume.size and not volume.memory:
            text = f'Usage of EmptyDir volume "{volume.name}" exceeds the limit'
            found.append((text, (f"volumes/{volume.name}",), volume.size))
    if limited and total:
        text = "Pod ephemeral local storage usage exceeds the total limit of containers"
        found.append((text, ("containers", "logs", "volumes"), total))
    return found


def overgrown(pod_dir: Path, limits: list[tuple[str, tuple[str, ...], int]]) -> str:
    """The first limit that is exceeded, as a text; empty if none. Blocks."""
    for text, folders, size in limits:
        if sum(folder_bytes(pod_dir / folder) for folder in folders) > size:
            return f'{text} "{size}".'
    return ""


async def watch_storage(live: LivePod, fail: Fail) -> None:
    """Evict the pod when it takes more of the machine's disk than it may. Measured, so a burst may pass the limit."""
    limits = storage_limits(live.pod)
    while limits:
        await trio.sleep(STORAGE_LOOK_S)
        if reason := await trio.to_thread.run_sync(overgrown, live.book.folder, limits):
            fail("Evicted", reason)
            return


async def refresh_volumes(live: LivePod) -> None:
    """Bring volumes that are made of objects up to date, again and again. What is gone meanwhile stays as it was."""
    while found := live.object_volumes():
        await trio.sleep(REFRESH_S)
        for volume in found:
            with suppress(MissingReference, PodSpecError, OSError):
                await live.write_volume(volume)
