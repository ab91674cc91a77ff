"""The engines as they judge themselves, without a daemon: a helper is started, asked and ended."""

import trio

from machineplane.privileges import missing_privileges
from machineplane.runtime import EngineStatus, RuntimeFault, Zygote, ZygoteReport, start_zygote
from machineplane.runtime.engine import make_engines
from machineplane.runtime.helper import connected


def look_at_engines() -> tuple[ZygoteReport | None, tuple[EngineStatus, ...]]:
    """What a zygote reports (none where it cannot be started), and every engine's own judgement."""
    if missing_privileges():
        return None, ()
    try:
        with start_zygote() as zygote:
            return zygote.report, trio.run(_ask, zygote)
    except RuntimeFault as error:
        return None, (EngineStatus(name="crun", available=False, reason=str(error)),)


async def _ask(zygote: Zygote) -> tuple[EngineStatus, ...]:
    control = trio.socket.from_stdlib_socket(zygote.control.dup())
    async with connected(control, "the zygote") as helper:
        return tuple(engine.check() for engine in make_engines(helper, zygote.report).values())
