"""One container of a pod: prepare, create, start, wait, restart. Its state is in the pod's book, so it can be resumed."""

import os
import secrets
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio

from machineplane.runtime.bundle import Bundle, BundleContext, MissingReference, container_bundle
from machineplane.runtime.bundle.config import termination_log
from machineplane.runtime.errors import (
    MALFORMED,
    TROUBLES,
    HelperError,
    HelperLost,
    PodSpecError,
    RuntimeFault,
    told,
)
from machineplane.runtime.hooks import hook_of, run_hook
from machineplane.runtime.image_task import ImageTask
from machineplane.runtime.images import Image
from machineplane.runtime.images.documents import WASM_ARCHITECTURE
from machineplane.runtime.lastwords import last_words
from machineplane.runtime.live import LivePod
from machineplane.runtime.policy import next_backoff, should_restart
from machineplane.runtime.shim_link import Exit
from machineplane.runtime.status import ContainerStatus, Termination
from machineplane.runtime.wasm.config import WASM

START_ERROR_EXIT = 128
"""The exit code that Kubernetes gives to a container that could not be started."""

TROUBLE_RETRY_S = 10.0
"""After a start for which the machine had no disk, descriptors or memory; a guess, the kubelet's first back-off."""

REFERENCE_RETRY_S = 2.0
"""How soon a missing ConfigMap or Secret is looked for again: it costs a look into a table. A guess."""

_MAX_CONSOLE = 1_000_000_000


class CannotStart(Exception):
    """This attempt ended before the container ran. ``retry``: seconds until another may go better; none: never."""

    def __init__(self, reason: str, message: str, *, retry: float | None) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retry = retry


@contextmanager
def _troubles() -> Iterator[None]:
    """A machine that is full or worn out, or an image that is damaged, does not end the pod: its others run on."""
    try:
        yield
    except RuntimeFault:
        raise
    except TROUBLES as error:
        raise CannotStart("CreateContainerError", told(error), retry=TROUBLE_RETRY_S) from error


def log_path(pod_dir: Path, container: str, attempt: int) -> Path:
    """The log file of one run of a container (the older half is beside it, with ``.1`` at the end)."""
    return pod_dir / "logs" / container / f"{attempt}.log"


def bundle_path(pod_dir: Path, container: str, container_id: str) -> Path:
    """The folder of one run of a container."""
    return pod_dir / "containers" / container / container_id[:12]


def new_id() -> str:
    """A container id: 64 hex digits, as other runtimes have them."""
    return secrets.token_hex(32)


class ContainerTask:
    """Runs one container by its restart policy. ``tried`` is called when a first attempt has ended either way."""

    def __init__(self, live: LivePod, spec: Mapping[str, Any], tried: Callable[[], None]) -> None:
        self._live = live
        self._book = live.book
        self._link = live.link
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
                await finished(self._live, self._spec, self._status.id)
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
            with _troubles():
                await self._launch(image)
        except CannotStart as refusal:
            self._tried()
            self._book.update_container(self._name, reason=refusal.reason, message=refusal.message)
            if refusal.retry is None:
                return False
            await trio.sleep(refusal.retry)
        return True

    async def _image(self) -> Image:
        task = ImageTask(
            service=self._live.services.pulls,
            book=self._book,
            spec=self._spec,
            lookup=self._live.lookup,
            tell=self._live.services.changes.publish,
        )
        return await task.get(self._tried)

    async def _launch(self, image: Image) -> None:
        services, container_id = self._live.services, new_id()
        bundle = bundle_path(self._book.folder, self._name, container_id)
        cgroup = services.config.container_cgroup(self._book.status.uid, container_id)
        attempt = self._status.restarts
        log = log_path(self._book.folder, self._name, attempt)
        await trio.to_thread.run_sync(self._prepare_folders, bundle, log, attempt)
        layers = await trio.to_thread.run_sync(services.images.layer_paths, image)
        made = await self._configure(container_id, image, layers, cgroup)
        self._book.update_container(
            self._name, id=container_id, image_id=image.digest, reason="ContainerCreating", message=""
        )
        console = services.config.console_path(self._book.status.uid, secrets.randbelow(_MAX_CONSOLE))
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
                binds=made.binds,
                console=str(console) if self._spec.get("tty") else "",
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
        await self._post_start(container_id)

    async def _post_start(self, container_id: str) -> None:
        """The hook after the start; where it fails, the container is ended, and its restart policy decides."""
        hook = hook_of(self._spec, "postStart")
        if hook is None:
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cancel_at_end, container_id, nursery.cancel_scope)
            problem = await run_hook(self._live, self._spec, container_id, hook)
            if problem:
                self._book.update_container(self._name, message=f"PostStartHookError: {problem}")
                await self._link.kill(container_id, signal.SIGKILL)
            nursery.cancel_scope.cancel()

    async def _cancel_at_end(self, container_id: str, scope: trio.CancelScope) -> None:
        await self._link.wait_exit(container_id)
        scope.cancel()

    def _prepare_folders(self, bundle: Path, log: Path, attempt: int) -> None:
        """The bundle of this attempt, nothing of earlier ones; of logs, this attempt's and the one before."""
        if bundle.parent.exists():
            for old in bundle.parent.iterdir():
                self._live.private.forget(old.name)
        shutil.rmtree(bundle.parent, ignore_errors=True)
        bundle.mkdir(parents=True)
        fd = os.open(termination_log(bundle), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        os.fchmod(fd, 0o666)  # whoever the container runs as
        os.close(fd)
        log.parent.mkdir(parents=True, exist_ok=True)
        for old in log.parent.iterdir():
            if old.name.split(".")[0] not in {str(attempt), str(attempt - 1)}:
                old.unlink()

    async def _configure(
        self, container_id: str, image: Image, layers: tuple[Path, ...], cgroup: str
    ) -> Bundle:
        try:
            await self._write_volumes()
            context = self._context(container_id, image, layers, cgroup)
            engine = self._live.services.engines[self._book.status.engine]
            if image.architecture == WASM_ARCHITECTURE and engine.name != WASM:
                raise PodSpecError(
                    f"{image.ref} is a WebAssembly module; annotate the workload magik.io/runtime: wasm"
                )
            plain = container_bundle(self._spec, context)
            # In a thread: a microVM's init comes of an image, whose layer may have to be unpacked first.
            made = await trio.to_thread.run_sync(engine.adapt, plain, self._spec, context)
        except MissingReference as error:
            raise CannotStart("CreateContainerConfigError", str(error), retry=REFERENCE_RETRY_S) from error
        except PodSpecError as error:
            raise CannotStart("CreateContainerConfigError", str(error), retry=None) from error
        except MALFORMED as error:
            raise CannotStart("CreateContainerConfigError", f"malformed: {error!r}", retry=None) from error
        await trio.to_thread.run_sync(
            self._live.private.write_config, container_id[:12], made.config, made.files
        )
        return made

    async def _write_volumes(self) -> None:
        mounted = {mount["name"] for mount in self._spec.get("volumeMounts") or ()}
        for volume in self._live.object_volumes():
            if volume.name in mounted:
                try:
                    await self._live.write_volume(volume)
                except MissingReference as error:
                    why = f'MountVolume.SetUp failed for volume "{volume.name}" : {error}'
                    raise CannotStart("ContainerCreating", why, retry=REFERENCE_RETRY_S) from error

    def _context(
        self, container_id: str, image: Image, layers: tuple[Path, ...], cgroup: str
    ) -> BundleContext:
        services, folder = self._live.services, self._book.folder
        return BundleContext(
            pod=self._book.status.pod,
            pod_dir=folder,
            bundle=bundle_path(folder, self._name, container_id),
            private=folder / "private" / container_id[:12],
            cgroup=cgroup,
            cgroup_mode=services.cgroup_mode,
            image=image.config,
            layers=layers,
            place=self._live.place(),
            lookup=self._live.lookup,
            policy=services.config.policy,
            infra_pid=self._book.record.infra_pid,
            pids_limit=services.config.pids_limit,
            agent=self._book.record.agent is not None,
        )

    async def _start_failed(self, container_id: str, message: str) -> None:
        """libcrun refused: to the user that is a run that ended at once."""
        listed, _ = await self._link.containers()
        if any(container["id"] == container_id for container in listed):
            await self._link.kill(container_id, signal.SIGKILL)
            await self._link.wait_exit(container_id)
            await self._link.delete(container_id)
        self._live.private.forget(container_id[:12])
        end = Termination(id=container_id, exit_code=START_ERROR_EXIT, reason="StartError", message=message)
        note_end(self._live, self._name, end)

    # -- its end

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


async def finished(live: LivePod, spec: Mapping[str, Any], container_id: str) -> None:
    """Wait for a container's end, note it with its last words, and remove what is left of it."""
    ended = await live.link.wait_exit(container_id)
    status, name = live.book.container(spec["name"]), str(spec["name"])
    if status.id == container_id and status.state != "terminated":
        bundle = bundle_path(live.book.folder, name, container_id)
        log = log_path(live.book.folder, name, status.restarts)
        words = await trio.to_thread.run_sync(last_words, spec, termination_log(bundle), log, ended.exit_code)
        note_end(live, name, termination(ended, words or status.message))
    await live.link.delete(container_id)
    live.private.forget(container_id[:12])


def note_end(live: LivePod, name: str, end: Termination) -> None:
    """A container has ended."""
    live.book.update_container(
        name,
        state="terminated",
        reason=end.reason,
        message=end.message,
        exit_code=end.exit_code,
        started_at=end.started_at,
        finished_at=end.finished_at,
        pid=0,
    )


def termination(ended: Exit, message: str = "") -> Termination:
    """A shim's report of an exit, with Kubernetes' reasons."""
    failure = "OOMKilled" if ended.oom else "Error"
    return Termination(
        id=ended.id,
        exit_code=ended.exit_code,
        reason=failure if ended.exit_code else "Completed",
        message=message,
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
