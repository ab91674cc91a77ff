"""Removing what a pod leaves: processes and control groups of a dead shim, files, the socket."""

import contextlib
import json
import shutil

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
