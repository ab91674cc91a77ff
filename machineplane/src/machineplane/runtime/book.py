"""A pod's status in the daemon: every change is kept on disk, then told."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog
from attrs import evolve

from machineplane.runtime import policy, record
from machineplane.runtime.record import PodRecord
from machineplane.runtime.status import ContainerStatus, PodStatus, with_conditions


def now_ms() -> int:
    """Wall clock, ms since the epoch."""
    return time.time_ns() // 1_000_000


class PodBook:
    """The one place where a pod's record changes."""

    def __init__(self, folder: Path, kept: PodRecord, publish: Callable[[PodStatus], None]) -> None:
        self.folder = folder
        self._record = kept
        self._publish = publish

    @property
    def record(self) -> PodRecord:
        """All that is kept."""
        return self._record

    @property
    def status(self) -> PodStatus:
        """What others see."""
        return self._record.status

    def container(self, name: str) -> ContainerStatus:
        """One container's status."""
        return next(container for container in self.status.containers if container.name == name)

    def update(self, **changes: Any) -> None:
        """Change the record (``status`` through the methods below)."""
        self._commit(evolve(self._record, **changes))

    def update_status(self, **changes: Any) -> None:
        """Change the pod's status."""
        self._commit(evolve(self._record, status=evolve(self.status, **changes)))

    def update_container(self, name: str, **changes: Any) -> ContainerStatus:
        """Change one container; answers its new status. What the agent said of an earlier run does not count."""
        before = self.container(name)
        fresh = evolve(before, **changes)
        if fresh.id != before.id:
            fresh = evolve(fresh, said_ready=None, said_started=None)
        probes = policy.probes_of(self.status.pod, name) if self._record.agent else frozenset[str]()
        fresh = policy.with_standing(fresh, probes)
        self.update_status(containers=tuple(fresh if c.name == name else c for c in self.status.containers))
        return fresh

    def fail(self, reason: str, message: str) -> None:
        """The pod has failed for good, whatever its containers do."""
        status = evolve(self.status, reason=reason, message=message)
        self._commit(evolve(self._record, verdict="Failed", status=status))

    def _commit(self, fresh: PodRecord) -> None:
        before = self.status
        phase = fresh.verdict or policy.phase(fresh.status)
        status = with_conditions(evolve(fresh.status, phase=phase), before, now_ms())
        fresh = evolve(fresh, status=status)
        if fresh == self._record:
            return
        self._record = fresh
        self._keep()
        if status != before:
            self._publish(status)

    def _keep(self) -> None:
        """Write the record. Where the disk takes nothing the pod goes on, and the next change writes it again."""
        try:
            record.save(self.folder, self._record)
        except OSError as error:
            log = structlog.get_logger(room="runtime")
            log.error(
                "pod-record-not-written", pod=self.status.name, folder=str(self.folder), error=str(error)
            )

    def save(self) -> None:
        """Write the record as it is (once, when the pod is new) and tell of it. Raises OSError."""
        record.save(self.folder, self._record)
        self._publish(self.status)
