"""One pod's task in the daemon: brings the pod up, keeps it, takes it down. A restarted daemon resumes it."""

import json
import signal
from typing import Any

import trio

from machineplane.runtime import podfiles
from machineplane.runtime.book import PodBook, now_ms
from machineplane.runtime.bundle import BundleContext, infra_config
from machineplane.runtime.container_task import ContainerTask, log_path, new_id
from machineplane.runtime.errors import (
    MALFORMED,
    HelperError,
    HelperLost,
    NetworkFailed,
    PodError,
    RuntimeFault,
    single_fault,
)
from machineplane.runtime.helper import connect, connected
from machineplane.runtime.images import ImageError
from machineplane.runtime.record import PodRecord
from machineplane.runtime.remains import remove_files, sweep
from machineplane.runtime.services import Services
from machineplane.runtime.shim_link import Exit, ShimLink
from machineplane.runtime.status import PodGone

INFRA = "infra.container"  # no DNS label, so no container of a pod can have this name

KILL_TIMEOUT_S = 10.0
"""How long a killed process may take to go (it may hang in the kernel, on a dead disk for instance)."""

UNKNOWN_EXIT = 137
"""The code that Kubernetes gives to a container whose end nobody saw."""


class PodWorker:
    """One pod. :meth:`serve` is its task."""

    def __init__(self, services: Services, kept: PodRecord) -> None:
        self._services = services
        self.uid = kept.status.uid
        self._folder = services.config.pod_dir(self.uid)
        self.book = PodBook(self._folder, kept, services.changes.publish)
        self._untried = {container.name for container in kept.status.app_containers}
        self._stop = trio.Event()
        self._grace = trio.CancelScope()
        self.settled = trio.Event()
        self.gone = trio.Event()
        self.leftovers: list[str] = []
        self._link: ShimLink | None = None

    # -- what others ask

    def stop(self, grace_s: float) -> None:
        """Ask for the pod's end; asked again, the shorter grace counts."""
        self._grace.deadline = min(self._grace.deadline, trio.current_time() + grace_s)
        self._stop.set()
        if not self.book.status.stopping:
            self.book.update(grace_s=grace_s)
            self.book.update_status(stopping=True)

    @property
    def link(self) -> ShimLink:
        """The way to the pod's shim.

        Raises:
            HelperLost: there is none at present.
        """
        if self._link is None or self._link.lost.is_set():
            raise HelperLost(f"pod {self.book.status.name} has no helper process at present")
        return self._link

    # -- the task

    async def serve(self, *, adopted: bool) -> None:
        """Run the pod until it is stopped and gone."""
        if self.book.status.stopping:
            self.stop(self.book.record.grace_s or 0.0)
        if adopted or not self.book.record.verdict:  # a pod that was refused never had a shim
            await self._guarded(adopted=adopted)
        self._settle()
        await self._stop.wait()
        await self._remove()

    async def _guarded(self, *, adopted: bool) -> None:
        """Live with the shim; whatever goes wrong with it becomes the pod's failure, and its remains are removed."""
        try:
            with single_fault():
                await self._with_shim(adopted=adopted)
        except HelperLost as error:
            if not self._stop.is_set():
                said = f"the helper process of this pod is gone ({error}); its containers were ended"
                self.book.fail("ShimLost", said)
            self.leftovers = await self._sweep()
        except RuntimeFault as error:
            self.book.fail("CannotRun", str(error))
            self.leftovers = await self._sweep()

    def _settle(self) -> None:
        self.settled.set()

    async def _with_shim(self, *, adopted: bool) -> None:
        path = str(self._services.config.socket_path(self.uid))
        if not adopted:
            engine = self._services.engines[self.book.status.engine]
            await engine.spawn(self.uid, str(self._folder), path)
        elif self.book.record.verdict:
            await self._adopt_failed(path)
            return
        async with connected(await connect(path), f"the shim of pod {self.book.status.name}") as client:
            link = ShimLink(client)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(link.listen)
                self._link = link
                await self._live(link, adopted=adopted)
                await self._take_down(link)
                nursery.cancel_scope.cancel()

    async def _adopt_failed(self, path: str) -> None:
        """A pod that had failed for good already: its shim, if it is still there, has nothing to do."""
        try:
            sock = await connect(path)
        except HelperLost:
            await self._sweep()
            return
        async with connected(sock, "a failed pod's shim") as client:
            link = ShimLink(client)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(link.listen)
                await self._take_down(link)
                nursery.cancel_scope.cancel()

    async def _live(self, link: ShimLink, *, adopted: bool) -> None:
        """Bring the pod up (or resume it) and keep its containers until a stop, or the infra container's end."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cancel_on_stop, nursery.cancel_scope)
            try:
                if adopted:
                    await self._resume(link)
                if not self.book.record.infra_id:
                    await self._make_infra(link)
            except HelperLost:
                raise
            except (HelperError, ImageError, PodError, OSError, *MALFORMED) as error:
                self.book.fail("CreatePodSandboxError", str(error))
                nursery.cancel_scope.cancel()
                return
            nursery.start_soon(self._containers, link)
            await link.wait_exit(self.book.record.infra_id)
            self.book.fail(
                "InfraContainerEnded", "the pod's infra container ended, and with it the pod's network"
            )
            nursery.cancel_scope.cancel()

    async def _cancel_on_stop(self, scope: trio.CancelScope) -> None:
        await self._stop.wait()
        scope.cancel()

    # -- up

    async def _make_infra(self, link: ShimLink) -> None:
        """The infra container, its network namespace wired up, and the pod's own files."""
        pod = self.book.status.pod
        for path, size in await trio.to_thread.run_sync(podfiles.make_folders, self._folder, pod):
            await link.tmpfs(path, size)
        infra_id, pid = await self._create_infra(link)
        address = await self._network("attach", self.uid, pid)
        podfiles.write_etc(self._folder, pod, address.ip)
        await link.start(infra_id)
        self.book.update(infra_id=infra_id, infra_pid=pid)
        self.book.update_status(ip=address.ip, started_at=now_ms())

    async def _network(self, what: str, *arguments: Any) -> Any:
        """Ask the network room; whatever it raises is this pod's failure alone."""
        try:
            return await getattr(self._services.network, what)(*arguments)
        except Exception as error:
            raise NetworkFailed(f"network {what}: {error}") from error

    async def _create_infra(self, link: ShimLink) -> tuple[str, int]:
        images, config = self._services.images, self._services.config
        image = await trio.to_thread.run_sync(images.resolve, config.pause_image)
        layers = images.layer_paths(image)
        infra_id = new_id()
        bundle = self._folder / "containers" / INFRA
        bundle.mkdir(exist_ok=True)
        log = log_path(self._folder, INFRA, 0)
        log.parent.mkdir(exist_ok=True)
        cgroup = f"{config.pod_cgroup(self.uid)}/{infra_id[:12]}"
        context = BundleContext(
            pod=self.book.status.pod,
            pod_dir=self._folder,
            bundle=bundle,
            cgroup=cgroup,
            cgroup_mode=self._services.cgroup_mode,
            image=image.config,
            layers=layers,
        )
        (bundle / "config.json").write_text(json.dumps(infra_config(context)))
        pid = await link.create(
            infra_id, name=INFRA, attempt=0, bundle=bundle, layers=layers, log=log, cgroup=cgroup
        )
        return infra_id, pid

    async def _containers(self, link: ShimLink) -> None:
        """Init containers one after the other, then all others at once."""
        spec = self.book.status.pod["spec"]
        for container in spec.get("initContainers") or []:
            await ContainerTask(self._services, self.book, link, container, lambda: None).run()
            if not self._succeeded(container["name"]):
                self._settle()
                return
        async with trio.open_nursery() as nursery:
            for container in spec["containers"]:
                task = ContainerTask(
                    self._services, self.book, link, container, self._tried(container["name"])
                )
                nursery.start_soon(task.run)

    def _succeeded(self, name: str) -> bool:
        status = self.book.container(name)
        return status.state == "terminated" and status.exit_code == 0

    def _tried(self, name: str) -> Any:
        def tried() -> None:
            self._untried.discard(name)
            if not self._untried:
                self._settle()

        return tried

    # -- again

    async def _resume(self, link: ShimLink) -> None:
        """Bring the record up to what the shim knows, after a time without a daemon."""
        listed, _ = await link.containers()
        known = {str(container["id"]): container for container in listed}
        record = self.book.record
        if record.infra_id:
            if record.infra_id not in known:
                raise HelperLost("it does not know the pod's infra container")
            await self._network("recover", self.uid, record.infra_pid)
        wanted = {container.id for container in self.book.status.containers if container.id} | {
            record.infra_id
        }
        for container_id, container in known.items():
            if container_id not in wanted or (
                container["status"] == "created" and container_id != record.infra_id
            ):
                await self._discard(link, container_id)
        for status in self.book.status.containers:
            self._reconcile(link, status.name, known)

    def _reconcile(self, link: ShimLink, name: str, known: dict[str, Any]) -> None:
        status = self.book.container(name)
        found = known.get(status.id)
        if status.state == "running" and found is None:
            lost = Exit(
                id=status.id,
                exit_code=UNKNOWN_EXIT,
                oom=False,
                started_at=status.started_at,
                finished_at=now_ms(),
            )
            link.note(lost)
        elif status.state == "waiting" and found is not None and found["status"] in {"running", "exited"}:
            self.book.update_container(
                name, state="running", reason="", message="", pid=found["pid"], started_at=found["started_at"]
            )

    async def _discard(self, link: ShimLink, container_id: str) -> None:
        await link.kill(container_id, signal.SIGKILL)
        await link.wait_exit(container_id)
        await link.delete(container_id)

    # -- down

    async def _take_down(self, link: ShimLink) -> None:
        """End all containers, the apps with grace, the infra container last; then the network and the shim."""
        record = self.book.record
        with self._grace if self._stop.is_set() else trio.move_on_after(0):
            await self._end_all(link, signal.SIGTERM, spare=record.infra_id)
        with trio.move_on_after(KILL_TIMEOUT_S) as scope:
            await self._end_all(link, signal.SIGKILL, spare=record.infra_id)
            await self._end_all(link, signal.SIGKILL, spare="")
            await self._network("detach", self.uid)
            await link.shutdown()
        if scope.cancelled_caught:
            self.leftovers = await self._sweep()

    async def _end_all(self, link: ShimLink, number: int, *, spare: str) -> None:
        """Signal every container but ``spare``, wait for their ends, note them, and delete what is left."""
        while True:
            listed, creating = await link.containers()
            ids = [str(container["id"]) for container in listed if container["id"] != spare]
            if not ids and not creating:
                return
            for container in listed:
                if container["id"] in ids:
                    # A container that was never started cannot act on a signal: it has no program yet.
                    await link.kill(
                        container["id"], signal.SIGKILL if container["status"] == "created" else number
                    )
            for container_id in ids:
                self._note_end(await link.wait_exit(container_id))
                await link.delete(container_id)
            if not ids:
                await trio.sleep(0.02)  # one is being made: it will be listed soon

    def _note_end(self, ended: Exit) -> None:
        for status in self.book.status.containers:
            if status.id == ended.id and status.state != "terminated":
                self.book.update_container(
                    status.name,
                    state="terminated",
                    reason="Completed" if ended.exit_code == 0 else "Error",
                    exit_code=ended.exit_code,
                    finished_at=ended.finished_at,
                    pid=0,
                )

    async def _sweep(self) -> list[str]:
        """Remove what a shim that is gone, or stuck, has left; answers what would not go."""
        left = await sweep(self._services, self.uid)
        try:
            await self._network("detach", self.uid)
        except NetworkFailed as error:
            left.append(str(error))
        for status in self.book.status.containers:
            if status.state == "running":
                self.book.update_container(
                    status.name,
                    state="terminated",
                    reason="Error",
                    exit_code=UNKNOWN_EXIT,
                    finished_at=now_ms(),
                    pid=0,
                )
        return left

    async def _remove(self) -> None:
        """The last step: files and socket."""
        self.leftovers += await trio.to_thread.run_sync(remove_files, self._services.config, self.uid)
        self.gone.set()
        self._services.changes.publish(PodGone(self.uid))
