"""Runs the image store's garbage collection beside the pods."""

from collections.abc import Callable

import structlog
import trio

from machineplane.runtime.images import ImageError
from machineplane.runtime.images.collector import PERIOD_S, Collected, Collector


async def collect_images(collector: Collector, in_use: Callable[[], frozenset[str]]) -> None:
    """Now, and then every five minutes. ``in_use`` gives the digests of the manifests that pods' containers have."""
    log = structlog.get_logger(room="runtime")
    while True:
        try:
            # Left alone when the daemon ends: it may wait for an import, and whatever it is at is safe to be cut short.
            done = await trio.to_thread.run_sync(collector.collect, in_use(), abandon_on_cancel=True)
            _tell(log, done)
        except (ImageError, OSError) as error:
            log.warning("image-gc-failed", error=str(error))
        await trio.sleep(PERIOD_S)


def _tell(log: structlog.typing.FilteringBoundLogger, done: Collected) -> None:
    if done.removed or done.freed:
        log.info(
            "image-gc", removed=list(done.removed), freed=done.freed, disk_used_percent=done.used_percent
        )
    if done.short:
        remedy = (
            "images alone do not free enough: remove other files, or give the state directory a larger disk"
        )
        log.warning("image-gc-short", short=done.short, disk_used_percent=done.used_percent, remedy=remedy)
