"""Removing what a pod leaves: processes and control groups of a dead shim, files, the socket."""

import contextlib
import json
import shutil
from pathlib import Path

import structlog
import trio

from machineplane.linux import libc
from machineplane.runtime.config import RuntimeConfig
from machineplane.runtime.errors import HelperError
from machineplane.runtime.services import Services


def known_processes(config: RuntimeConfig, uid: str) -> list[tuple[int, int]]:
    """(process id, start time in clock ticks) of a pod's shim and containers, as the shim last wrote them."""
    try:
        state = json.loads((config.pod_dir(uid) / "shim.json").read_text())
        found = [(int(c["pid"]), int(c["pid_start"])) for c in state["containers"] if c["status"] != "exited"]
        return [*found, (int(state["pid"]), int(state["pid_start"]))]
    except (OSError, ValueError, KeyError, TypeError):
        return []


async def sweep(services: Services, uid: str) -> list[str]:
    """End what a pod's dead or stuck shim left running and remove its control groups; answers what would not go."""
    config = services.config
    try:
        answer = await services.zygote.request(
            "sweep", cgroup=config.pod_cgroup(uid), processes=known_processes(config, uid)
        )
    except HelperError as error:
        return [f"processes and control groups of pod {uid} ({error})"]
    return [str(name) for name in answer["left"]]


def remove_files(config: RuntimeConfig, uid: str) -> list[str]:
    """Remove a pod's folder and socket; answers what would not go. Blocks: run it in a thread."""
    left: list[str] = []
    shutil.rmtree(config.pod_dir(uid), onerror=lambda _call, path, _error: left.append(str(path)))
    for path in (config.socket_path(uid), *config.run_dir.glob(f"pods/{uid}.tty*")):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
    return left[:10] if config.pod_dir(uid).exists() else []


async def remove_orphans(services: Services) -> None:
    """Remove, and say, what belongs to no pod whose folder is here: processes, control groups, mounts, sockets."""
    config, log = services.config, structlog.get_logger(room="runtime")
    known = [folder.name for folder in config.pods_dir.iterdir()]
    removed = await trio.to_thread.run_sync(_stray_files, config, frozenset(known))
    left: list[str] = []
    try:
        parent = config.pods_cgroup
        answer = await services.zygote.request(
            "orphans", parent=parent, pods_dir=str(config.pods_dir), known=known
        )
        removed += [str(name) for name in answer["removed"]]
        left = [str(name) for name in answer["left"]]
    except HelperError as error:
        left = [f"whatever there is ({error})"]
    if removed or left:
        log.warning("orphans-removed", removed=removed, left=left)


def _stray_files(config: RuntimeConfig, known: frozenset[str]) -> list[str]:
    """Sockets, and mounts below the pods' folder in the machine's own namespace."""
    removed = []
    for path in (config.run_dir / "pods").iterdir():
        if path.name.partition(".")[0] not in known:
            path.unlink(missing_ok=True)
            removed.append(str(path))
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        target = line.split(" ")[4]
        uid = target.removeprefix(f"{config.pods_dir}/").partition("/")[0]
        if target.startswith(f"{config.pods_dir}/") and uid not in known:
            with contextlib.suppress(OSError):
                libc.umount(target, libc.MNT_DETACH)
                removed.append(f"mount {target}")
    return removed
