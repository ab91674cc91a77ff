"""One container of a pod: prepare, create, start, wait, restart. Its state is in the pod's book, so it can be resumed."""

import json
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import trio

from machineplane.runtime.book import PodBook
from machineplane.runtime.bundle import BundleContext, container_config
from machineplane.runtime.errors import MALFORMED, HelperError, HelperLost, PodSpecError
from machineplane.runtime.images import Image, ImageError
from machineplane.runtime.policy import next_backoff, should_restart
from machineplane.runtime.services import Services
from machineplane.runtime.shim_link import Exit, ShimLink
from machineplane.runtime.status import ContainerStatus, Termination

START_ERROR_EXIT = 128
"""The exit code that Kubernetes gives to a container that could not be started."""


class CannotStart(Exception):
    """This attempt ended before the container ran. ``retry`` says whether another may go better."""

    def __init__(self, reason: str, message: str, *, retry: bool) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retry = retry


def log_path(pod_dir: Path, container: str, attempt: int) -> Path:
    """The log file of one run of a container (the older half is beside it, with ``.1`` at the end)."""
    return pod_dir / "logs" / container / f"{attempt}.log"


def new_id() -> str:
    """A container id: 64 hex digits, as other runtimes have them."""
    return secrets.token_hex(32)


class ContainerTask:
    """Runs one container by the pod's restart policy. ``tried`` is called when a first attempt has ended either way."""

    def __init__(
        self,
        services: Services,
        book: PodBook,
        link: ShimLink,
        spec: Mapping[str, Any],
        tried: Callable[[], None],
    ) -> None:
        self._services = services
        self._book = book
        self._link = link
        self._spec = spec
        self._name: str = spec["name"]
        self._tried = tried
        self._backoff: float | None = None

    @property
    def _status(self) -> ContainerStatus:
        return self._book.container(self._name)

    async def run(self) -> None:
        """Until the container has ended and is not to be run again, or can never start.

        Raises:
            HelperLost: the shim is gone.
        """
        while True:
            if self._status.state == "waiting" and not await self._start():
                return
            if self._status.state == "running":
                self._tried()
                await self._wait()
            if self._status.state == "terminated":
                self._tried()
                if not should_restart(self._book.status, self._status):
                    return
                await self._back_off()

    # -- one attempt

    async def _start(self) -> bool:
        """One attempt; false if no other would go better."""
        try:
            image = await self._image()
            await self._launch(image)
        except CannotStart as refusal:
            self._tried()
            if not refusal.retry:
                self._book.update_container(self._name, reason=refusal.reason, message=refusal.message)
                return False
            await self._wait_for_image(refusal)
        return True

    async def _image(self) -> Image:
        try:
            return await trio.to_thread.run_sync(self._services.images.resolve, self._spec["image"])
        except ImageError as error:
            raise CannotStart("ErrImagePull", str(error), retry=True) from error

    async def _wait_for_image(self, refusal: CannotStart) -> None:
        self._book.update_container(self._name, reason=refusal.reason, message=refusal.message)
        self._backoff = next_backoff(self._backoff or 0.0, 0)
        await trio.sleep(self._backoff)
        self._book.update_container(self._name, reason="ImagePullBackOff")

    async def _launch(self, image: Image) -> None:
        container_id = new_id()
        folder = self._book.folder / "containers" / self._name
        bundle = folder / container_id[:12]
        cgroup = f"{self._services.config.pod_cgroup(self._book.status.uid)}/{container_id[:12]}"
        attempt = self._status.restarts
        log = log_path(self._book.folder, self._name, attempt)
        await trio.to_thread.run_sync(self._prepare_folders, bundle, log, attempt)
        layers = self._services.images.layer_paths(image)
        await self._configure(image, layers, bundle, cgroup)
        self._book.update_container(
            self._name, id=container_id, image_id=image.digest, reason="ContainerCreating", message=""
        )
        try:
            pid = await self._link.create(
                container_id,
                name=self._name,
                attempt=attempt,
                bundle=bundle,
                layers=layers,
                log=log,
                cgroup=cgroup,
                stdin=bool(self._spec.get("stdin")),
            )
            started = await self._link.start(container_id)
        except HelperLost:
            raise
        except HelperError as error:
            await self._start_failed(container_id, str(error))
            return
        self._book.update_container(
            self._name,
            state="running",
            reason="",
            message="",
            pid=pid,
            started_at=started,
            finished_at=0,
            exit_code=0,
        )

    def _prepare_folders(self, bundle: Path, log: Path, attempt: int) -> None:
        """The bundle of this attempt, nothing of earlier ones; of logs, this attempt's and the one before."""
        shutil.rmtree(bundle.parent, ignore_errors=True)
        bundle.mkdir(parents=True)
        log.parent.mkdir(parents=True, exist_ok=True)
        for old in log.parent.iterdir():
            if old.name.split(".")[0] not in {str(attempt), str(attempt - 1)}:
                old.unlink()

    async def _configure(self, image: Image, layers: tuple[Path, ...], bundle: Path, cgroup: str) -> None:
        context = BundleContext(
            pod=self._book.status.pod,
            pod_dir=self._book.folder,
            bundle=bundle,
            cgroup=cgroup,
            cgroup_mode=self._services.cgroup_mode,
            image=image.config,
            layers=layers,
            node_name=self._services.config.node_name,
            pod_ip=self._book.status.ip,
            infra_pid=self._book.record.infra_pid,
            pids_limit=self._services.config.pids_limit,
        )
        try:
            configuration = container_config(self._spec, context)
        except PodSpecError as error:
            raise CannotStart("CreateContainerConfigError", str(error), retry=False) from error
        except MALFORMED as error:
            raise CannotStart("CreateContainerConfigError", f"malformed: {error!r}", retry=False) from error
        (bundle / "config.json").write_text(json.dumps(configuration))

    async def _start_failed(self, container_id: str, message: str) -> None:
        """libcrun refused: to the user that is a run that ended at once."""
        listed, _ = await self._link.containers()
        if any(container["id"] == container_id for container in listed):
            await self._link.kill(container_id, 9)
            await self._link.wait_exit(container_id)
            await self._link.delete(container_id)
        self._end(
            Termination(id=container_id, exit_code=START_ERROR_EXIT, reason="StartError", message=message),
            finished=0,
        )

    # -- its end

    async def _wait(self) -> None:
        container_id = self._status.id
        ended = await self._link.wait_exit(container_id)
        self._end(termination(ended), finished=ended.finished_at)
        await self._link.delete(container_id)

    def _end(self, end: Termination, finished: int) -> None:
        self._book.update_container(
            self._name,
            state="terminated",
            reason=end.reason,
            message=end.message,
            exit_code=end.exit_code,
            started_at=end.started_at,
            finished_at=finished,
            pid=0,
        )

    async def _back_off(self) -> None:
        status = self._status
        last = as_termination(status)
        ran_ms = status.finished_at - status.started_at if status.started_at else 0
        self._backoff = next_backoff(self._backoff, ran_ms / 1000)
        waiting = {
            "state": "waiting",
            "last": last,
            "exit_code": 0,
            "started_at": 0,
            "finished_at": 0,
            "id": "",
        }
        if self._backoff:
            message = f"back-off {self._backoff:.0f}s restarting failed container={self._name}"
            self._book.update_container(self._name, **waiting, reason="CrashLoopBackOff", message=message)
            await trio.sleep(self._backoff)
        again = {"restarts": status.restarts + 1, "reason": "ContainerCreating", "message": ""}
        self._book.update_container(self._name, **(waiting | again))


def termination(ended: Exit) -> Termination:
    """A shim's report of an exit, with Kubernetes' reasons."""
    failure = "OOMKilled" if ended.oom else "Error"
    return Termination(
        id=ended.id,
        exit_code=ended.exit_code,
        reason=failure if ended.exit_code else "Completed",
        started_at=ended.started_at,
        finished_at=ended.finished_at,
    )


def as_termination(status: ContainerStatus) -> Termination:
    """A terminated container's state as the ``last`` of its next run."""
    return Termination(
        id=status.id,
        exit_code=status.exit_code,
        reason=status.reason,
        message=status.message,
        started_at=status.started_at,
        finished_at=status.finished_at,
    )
