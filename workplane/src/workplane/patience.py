"""Trying again: from 200 ms to 5 s (protocol.md), with a log that grows by a logarithm."""

from __future__ import annotations

import structlog
import trio
from attrs import define, field
from structlog.typing import FilteringBoundLogger

from magik_mesh.clock import SystemClock, unit_random
from magik_mesh.config import Timings
from magik_mesh.dialing import backoff


def _log() -> FilteringBoundLogger:
    log: FilteringBoundLogger = structlog.get_logger(part="machine")
    return log


@define
class Patience:
    """How often in a row something failed."""

    failures: int = 0
    _log: FilteringBoundLogger = field(factory=_log)

    async def failed(self, error: Exception) -> None:
        """Wait before the next try."""
        self.failures += 1
        if self.failures & (self.failures - 1) == 0:
            self._log.warning("machine-does-not-answer", attempt=self.failures, error=str(error))
        await trio.sleep(backoff(self.failures, Timings(), unit_random(SystemClock())))

    def succeeded(self) -> bool:
        """It worked; whether it had failed before."""
        failed, self.failures = self.failures > 0, 0
        if failed:
            self._log.info("machine-answers-again")
        return failed
