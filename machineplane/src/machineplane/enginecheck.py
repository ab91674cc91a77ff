"""The engines as they judge themselves, without a daemon: a helper is started, asked and ended."""

from functools import partial
from pathlib import Path

import trio

from machineplane.hostcheck import OK, agent_image
from machineplane.privileges import missing_privileges
from machineplane.runtime import EngineStatus, RuntimeFault, Zygote, ZygoteReport, start_zygote
from machineplane.runtime.config import boot_memory
from machineplane.runtime.engine import make_engines
from machineplane.runtime.helper import connected
from machineplane.runtime.images import ImageNotFound
from machineplane.runtime.images.agent import AGENT_REF
from machineplane.runtime.krun.boot import BOOT_TIMEOUT_S
from machineplane.runtime.krun.locate import KrunReport, look_for_krun
from machineplane.runtime.slices import CGROUPFS


def look_at_engines(
    state_dir: Path,
    libkrun: Path | None = None,
    *,
    again: bool = False,
    cgroup_driver: str = CGROUPFS,
    timeout: float = BOOT_TIMEOUT_S,
) -> tuple[ZygoteReport | None, tuple[EngineStatus, ...]]:
    """What a zygote reports (none where it cannot be started), and every engine's own judgement.

    The trial boot of a microVM is remembered where the daemon of ``state_dir`` looks for it; ``again``: what was remembered
    is forgotten before. ``libkrun``, ``cgroup_driver`` and ``timeout`` (seconds of that boot) as the daemon has them.
    """
    if missing_privileges():
        return None, ()
    memory = boot_memory(state_dir)
    if again:
        memory.unlink(missing_ok=True)
    try:
        with start_zygote(cgroup_driver=cgroup_driver) as zygote:
            found = look_for_krun(memory, libkrun, timeout=timeout)
            return zygote.report, trio.run(_ask, zygote, found, state_dir)
    except RuntimeFault as error:
        return None, (EngineStatus(name="crun", available=False, reason=str(error)),)


async def _ask(zygote: Zygote, krun: KrunReport, state_dir: Path) -> tuple[EngineStatus, ...]:
    control = trio.socket.from_stdlib_socket(zygote.control.dup())
    async with connected(control, "the zygote") as helper:
        engines = make_engines(helper, zygote.report, krun, partial(_guests_image, state_dir))
        return tuple(engine.check() for engine in engines.values())


def _guests_image(state_dir: Path) -> Path:
    """Raises ImageNotFound where the daemon of ``state_dir`` would have no image of agents."""
    if agent_image(state_dir).state != OK:
        raise ImageNotFound(AGENT_REF)
    return state_dir / "images"
