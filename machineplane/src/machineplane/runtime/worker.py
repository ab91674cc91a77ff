"""One pod's task in the daemon: brings the pod up, keeps it, takes it down. A restarted daemon resumes it."""

import signal
from collections.abc import Callable
from typing import Any

import structlog
import trio

from machineplane.runtime import podfiles
from machineplane.runtime.agent_task import AgentTask
from machineplane.runtime.book import PodBook, now_ms
from machineplane.runtime.bundle import BundleContext, infra_config
from machineplane.runtime.bundle.supported import is_sidecar
from machineplane.runtime.changes import PodEvent
from machineplane.runtime.config import grace_of
from machineplane.runtime.container_task import ContainerTask, log_path, new_id
from machineplane.runtime.ending import end_gently, kill_all
from machineplane.runtime.errors import (
    MALFORMED,
    TROUBLES,
    HelperLost,
    NetworkFailed,
    single_fault,
    told,
)
from machineplane.runtime.helper import connect, connected
from machineplane.runtime.limits import refresh_volumes, watch_deadline, watch_storage
from machineplane.runtime.live import LivePod
from machineplane.runtime.private import PrivateFolder, open_private
from machineplane.runtime.record import PodRecord
from machineplane.runtime.remains import remove_files, sweep
from machineplane.runtime.services import Services
from machineplane.runtime.shim_link import Exit, ShimLink
from machineplane.runtime.status import PodGone, has_initialized

INFRA = "infra.container"  # no DNS label, so no container of a pod can have this name

AGENT_PORT = 4701  # the agent's UDP port in its pod; a guess: nothing is known to use it

KILL_TIMEOUT_S = 10.0
"""How long a killed process may take to go (it may hang in the kernel, on a dead disk for instance)."""

UNKNOWN_EXIT = 137
"""The code that Kubernetes gives to a container whose end nobody saw."""


class PodWorker:
    """One pod. :meth:`serve` is its task."""

    def __init__(self, services: Services, kept: PodRecord, records: bytes = b"") -> None:
        self._services = services
        self.uid = kept.status.uid
        self._folder = services.config.pod_dir(self.uid)
        self.book = PodBook(self._folder, kept, services.changes.publish)
        self._untried = {container.name for container in kept.status.app_containers}
        self._stop = trio.Event()
        self._grace = trio.CancelScope()
        self.settled = trio.Event()
        self.gone = trio.Event()
        self.records = records
        self.recovered = trio.Event()  # `records` are what they are going to be
        self.leftovers: list[str] = []
        self._link: ShimLink | None = None
        self._live_pod: LivePod | None = None
        self._agent: AgentTask | None = None
        self._sidecars: dict[str, Callable[[], None]] = {}
        self.being_restarted: set[str] = set()

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

    @property
    def live(self) -> LivePod:
        """The pod with its helper.

        Raises:
            HelperLost: there is none at present.
        """
        if self._live_pod is None or self.link is not self._live_pod.link:
            raise HelperLost(f"pod {self.book.status.name} has no helper process at present")
        return self._live_pod

    def reported(self) -> None:
        """The pod's agent has told of its containers: sidecars that are waited for may have started."""
        for look in tuple(self._sidecars.values()):
            look()

    def publish(self, event: PodEvent) -> None:
        """Tell of something that happened to the pod."""
        self._services.changes.publish(event)

    # -- the task

    async def serve(self, *, adopted: bool) -> None:
        """Run the pod until it is stopped and gone."""
        if self.book.status.stopping:
            self.stop(self.book.record.grace_s or 0.0)
        if adopted or not self.book.record.verdict:  # a pod that was refused never had a shim
            await self._guarded(adopted=adopted)
        self.recovered.set()
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
        except TROUBLES as error:  # this pod's, not the daemon's
            self.book.fail("CannotRun", told(error))
            self.leftovers = await self._sweep()

    def _settle(self) -> None:
        self.settled.set()

    async def _with_shim(self, *, adopted: bool) -> None:
        path = str(self._services.config.socket_path(self.uid))
        if not adopted:
            engine = self._services.engines[self.book.status.engine]
            await engine.spawn(self.uid, str(self._folder), path)
        try:
            sock = await connect(path)
        except HelperLost:
            if not adopted or (self.book.record.infra_id and not self.book.record.verdict):
                raise
            await self._sweep()
            if self.book.record.verdict:  # it had failed for good already: nothing was to be done but this
                return
            await self._with_shim(adopted=False)  # the daemon died before the pod had begun: it begins now
            return
        async with connected(sock, f"the shim of pod {self.book.status.name}") as client:
            link = ShimLink(client)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(link.listen)
                self._link = link
                with open_private(self._folder, await link.pid()) as private:
                    live = self._live_pod = self._enter(link, private)
                    if not self.book.record.verdict:
                        await self._live(live, nursery, adopted=adopted)
                    await self._take_down(live)
                nursery.cancel_scope.cancel()

    def _enter(self, link: ShimLink, private: PrivateFolder) -> LivePod:
        """What came with the pod is kept in its memory; after a restart of the daemon it is found there."""
        if self.records:
            private.save_records(self.records)
        else:
            self.records = private.records()
        self.recovered.set()
        return LivePod(
            services=self._services, book=self.book, link=link, private=private, records=self.records
        )

    async def _live(self, live: LivePod, outer: trio.Nursery, *, adopted: bool) -> None:
        """Bring the pod up (or resume it) and keep its containers until a stop, or the infra container's end.

        The agent, in ``outer``, goes on while they end.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cancel_on_stop, nursery.cancel_scope)

            def fail(reason: str, message: str) -> None:
                self.book.fail(reason, message)
                nursery.cancel_scope.cancel()

            try:
                if adopted:
                    await self._resume(live.link)
                if not self.book.record.infra_id:
                    await self._make_infra(live)
            except HelperLost:
                raise
            except (*TROUBLES, *MALFORMED) as error:
                fail("CreatePodSandboxError", told(error))
                return
            if self.book.record.agent and self._services.agents:
                self._agent = AgentTask(live, self._services.agents)
                outer.start_soon(self._agent.run)
            nursery.start_soon(self._containers, live)
            nursery.start_soon(watch_deadline, live, fail)
            nursery.start_soon(watch_storage, live, fail)
            nursery.start_soon(refresh_volumes, live)
            await live.link.wait_exit(self.book.record.infra_id)
            fail("InfraContainerEnded", "the pod's infra container ended, and with it the pod's network")

    async def _cancel_on_stop(self, scope: trio.CancelScope) -> None:
        await self._stop.wait()
        scope.cancel()

    # -- up

    async def _make_infra(self, live: LivePod) -> None:
        """The infra container, its network namespace wired up, and the pod's own files."""
        pod, link, agent = self.book.status.pod, live.link, self.book.record.agent is not None
        in_memory = await trio.to_thread.run_sync(podfiles.make_folders, self._folder, pod)
        if agent:
            in_memory += podfiles.make_agent_folders(self._folder)
        for path, size in in_memory:
            await link.tmpfs(path, size)
        infra_id, pid = await self._create_infra(live)
        address = await self._network("attach", self.uid, pid)
        podfiles.write_etc(self._folder, pod, address.ip, agent=agent)
        await link.start(infra_id)
        self.book.update(infra_id=infra_id, infra_pid=pid)
        self.book.update_status(ip=address.ip, started_at=now_ms())
        await self._open_port()

    async def _open_port(self) -> None:
        """Have a port of the machine lead to the agent's; without one the pod is on its own machine only."""
        agent = self.book.record.agent
        if agent is None:
            return
        try:
            port = int(await self._network("forward", self.uid, AGENT_PORT))
        except NetworkFailed as error:
            structlog.get_logger(room="runtime").warning(
                "agent-not-reachable", pod=self.book.status.name, error=str(error)
            )
            port = 0
        self.book.update_status(agent_port=port)

    async def _network(self, what: str, *arguments: Any) -> Any:
        """Ask the network room; whatever it raises is this pod's failure alone."""
        try:
            return await getattr(self._services.network, what)(*arguments)
        except Exception as error:
            raise NetworkFailed(f"network {what}: {error}") from error

    async def _create_infra(self, live: LivePod) -> tuple[str, int]:
        images, config = self._services.images, self._services.config
        image = await trio.to_thread.run_sync(images.resolve, config.pause_image)
        layers = images.layer_paths(image)
        infra_id = new_id()
        bundle = self._folder / "containers" / INFRA
        bundle.mkdir(exist_ok=True)
        log = log_path(self._folder, INFRA, 0)
        log.parent.mkdir(exist_ok=True)
        cgroup = config.container_cgroup(self.uid, infra_id)
        context = BundleContext(
            pod=self.book.status.pod,
            pod_dir=self._folder,
            bundle=bundle,
            private=self._folder / "private" / infra_id[:12],
            cgroup=cgroup,
            cgroup_mode=self._services.cgroup_mode,
            image=image.config,
            layers=layers,
        )
        live.private.write_config(infra_id[:12], infra_config(context))
        pid = await live.link.create(
            infra_id, name=INFRA, attempt=0, bundle=bundle, layers=layers, log=log, cgroup=cgroup
        )
        return infra_id, pid

    async def _containers(self, live: LivePod) -> None:
        """Init containers one after the other, then all others at once; sidecars go on beside them and end after them."""
        spec = self.book.status.pod["spec"]
        async with trio.open_nursery() as sidecars:
            for container in spec.get("initContainers") or []:
                if is_sidecar(container):
                    await self._start_sidecar(live, container, sidecars)
                    continue
                await ContainerTask(live, container, lambda: None).run()
                if not self._succeeded(container["name"]):
                    self._settle()
                    break
            else:
                await self._apps(live, spec["containers"])
            sidecars.cancel_scope.cancel()
        await self._end_sidecars(live)

    async def _apps(self, live: LivePod, containers: list[Any]) -> None:
        async with trio.open_nursery() as nursery:
            for container in containers:
                nursery.start_soon(ContainerTask(live, container, self._tried(container["name"])).run)

    async def _start_sidecar(self, live: LivePod, container: Any, nursery: trio.Nursery) -> None:
        """Begin a sidecar and wait until it has started, however many attempts that takes."""
        started = trio.Event()

        def tried() -> None:
            if has_initialized(self.book.container(container["name"])):
                started.set()
            else:
                self._settle()  # nobody waits for a pod whose sidecar does not come up

        self._sidecars[container["name"]] = tried
        nursery.start_soon(ContainerTask(live, container, tried).run)
        await started.wait()
        del self._sidecars[container["name"]]

    async def _end_sidecars(self, live: LivePod) -> None:
        """All else has ended: the sidecars are ended too, within the grace, and the pod's result stands."""
        if not any(status.sidecar for status in self.book.status.containers):
            return
        with trio.move_on_after(self._own_grace()):
            await end_gently(live)
        await kill_all(live, spare=self.book.record.infra_id)

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
            await self._open_port()
        wanted = {container.id for container in self.book.status.containers if container.id} | {
            record.infra_id,
            record.agent.id if record.agent else "",
        }
        for container_id, container in known.items():
            if container_id not in wanted or (
                container["status"] == "created" and container_id != record.infra_id
            ):
                await self._discard(link, container_id)
        for status in self.book.status.containers:
            self._reconcile(link, status.name, known)
            self.book.update_container(
                status.name
            )  # an earlier version may have judged its standing otherwise

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

    async def _take_down(self, live: LivePod) -> None:
        """End all containers, the apps with grace, the infra container last; then the network and the shim."""
        grace = self._grace if self._stop.is_set() else trio.move_on_after(self._own_grace())
        if self._agent is not None:
            await self._agent.ask_to_end()
        with grace:
            await end_gently(live)
        if self._agent is not None:
            await self._agent.end()
        with trio.move_on_after(KILL_TIMEOUT_S) as scope:
            await kill_all(live, spare=self.book.record.infra_id)
            await kill_all(live, spare="")
            await self._network("detach", self.uid)
            await live.link.shutdown()
        if scope.cancelled_caught:
            self.leftovers = await self._sweep()

    def _own_grace(self) -> float:
        """How long the containers of a pod that failed have to end."""
        return grace_of(self.book.status.pod["spec"], self._services.config.grace_s)

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
