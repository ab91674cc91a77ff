"""Has the agent's image in the store before pods are run: what comes without one would have no agent for its whole life."""

import structlog
import trio

from machineplane.runtime.images.agent import AGENT_REF, ensure_agent
from machineplane.runtime.images.errors import ImageError, ImageNotFound
from machineplane.runtime.images.store import ImageStore


async def bring_agent(store: ImageStore, ref: str) -> None:
    """Put the image that came with this distribution into the store, and say where it or another one of the name is missing.

    That takes half a second once for each version. A daemon without one goes on: its pods have no agent.
    """
    began = trio.current_time()
    log = structlog.get_logger(room="runtime")
    try:
        # Abandoned when the daemon ends meanwhile: what an import leaves is safe to be cut short.
        if ref == AGENT_REF and await trio.to_thread.run_sync(ensure_agent, store, abandon_on_cancel=True):
            log.info("agent-image", image=ref, seconds=round(trio.current_time() - began, 3))
    except ImageError as error:
        log.warning("agent-image-failed", image=ref, error=str(error))
    try:
        await trio.to_thread.run_sync(store.resolve, ref)
    except ImageNotFound:
        log.warning("no-agent-image", image=ref, note="pods run without probes, names and traffic")
    except ImageError as error:
        log.warning("agent-image-failed", image=ref, error=str(error))
