"""The runtime room's face: run, stop, watch and read pods. Trio; one task a pod."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

import trio

from machineplane.channels import Session
from machineplane.runtime import agent_calls, record
from machineplane.runtime.agent_calls import Words
from machineplane.runtime.agent_image import bring_agent
from machineplane.runtime.attach import open_attach
from machineplane.runtime.bundle import check_pod
from machineplane.runtime.bundle.supported import all_containers, is_sidecar
from machineplane.runtime.changes import Change, Changes
from machineplane.runtime.config import RuntimeConfig, grace_of
from machineplane.runtime.engine import EngineStatus, make_engines
from machineplane.runtime.errors import (
    MALFORMED,
    CannotKeep,
    PodExists,
    PodNotFound,
    PodSpecError,
    StopFailed,
)
from machineplane.runtime.execs import ExecRequest, open_exec
from machineplane.runtime.forward import open_connection
from machineplane.runtime.helper import connected
from machineplane.runtime.image_gc import collect_images
from machineplane.runtime.images import ImageError, ImageStore
from machineplane.runtime.images.agent import agent_root
from machineplane.runtime.images.collector import Collector
from machineplane.runtime.images.desk import SOCKET, serve_pulls
from machineplane.runtime.images.make import ensure_pause
from machineplane.runtime.images.peers import Peers
from machineplane.runtime.images.registry.settings import RegistrySettings, load_settings
from machineplane.runtime.images.service import open_images
from machineplane.runtime.krun.locate import look_for_krun
from machineplane.runtime.logs import LogOptions, read_logs
from machineplane.runtime.network import PodNetwork
from machineplane.runtime.record import AgentRecord, PodRecord
from machineplane.runtime.remains import remove_orphans
from machineplane.runtime.services import Agents, ObjectLookup, Services, no_objects
from machineplane.runtime.status import ContainerStatus, PodStatus
from machineplane.runtime.worker import PodWorker
from machineplane.runtime.zygote_client import Zygote


class Runtime:
    """The machine's pods. Use :func:`open_runtime`."""

    def __init__(self, services: Services, nursery: trio.Nursery) -> None:
        self._services = services
        self._nursery = nursery
        self._workers: dict[str, PodWorker] = {}

    @property
    def images(self) -> ImageStore:
        """The machine's images. Synchronous: call it in a thread."""
        return self._services.images

    @property
    def own_images(self) -> frozenset[str]:
        """Names of the images that every machine brings along."""
        return frozenset((self._services.config.pause_image, self._services.config.agent_image))

    def images_in_use(self) -> frozenset[str]:
        """Digests of the manifests that containers of the pods here were made of."""
        return frozenset(c.image_id for pod in self.pods() for c in pod.containers if c.image_id)

    def join_peers(self, peers: Peers) -> None:
        """From now on, ask other machines for images as well."""
        self._services.pulls.peers = peers

    def engines(self) -> tuple[EngineStatus, ...]:
        """What can run pods here, and what cannot and why."""
        return tuple(engine.check() for engine in self._services.engines.values())

    # -- pods

    async def run_pod(
        self, pod: Mapping[str, Any], attachment: bytes = b"", *, engine: str = "", records: bytes = b""
    ) -> PodStatus:
        """Run a pod; returns when its containers have started, or could not. Never restarted under the same uid.

        ``records`` (the objects that the pod refers to, for ``lookup``) are kept in memory alone; ``attachment`` on disk.

        ``pod`` is a complete v1 Pod with ``metadata.uid``. What is wrong with it or with this machine shows in the
        status (phase Pending or Failed, with reasons). If the caller is cancelled, the pod goes on.

        Raises:
            PodExists: a pod of this uid is here.
            CannotKeep: the disk takes nothing more.
            PodSpecError: it lacks the uid, name or namespace by which it could be recorded.
        """
        name = engine or self._services.config.default_engine
        agent = AgentRecord() if await trio.to_thread.run_sync(self.has_agents) else None
        refusal = self._check(pod, name)
        kept = _new_record(pod, attachment, name, agent)
        uid = kept.status.uid
        if uid in self._workers:
            raise PodExists(f"the pod {kept.status.namespace}/{kept.status.name} ({uid}) is here already")
        worker = PodWorker(self._services, kept, records)
        try:
            worker.book.folder.mkdir(mode=0o700)
            worker.book.save()
        except FileExistsError as error:
            raise PodExists(
                f"the folder {worker.book.folder} is left of an earlier pod; remove it"
            ) from error
        except OSError as error:
            record.discard(worker.book.folder)
            raise CannotKeep(f"the pod's folder {worker.book.folder} cannot be written: {error}") from error
        self._workers[uid] = worker
        if refusal:
            worker.book.fail(*refusal)
        self._nursery.start_soon(self._work, worker, False)
        await worker.settled.wait()
        return worker.book.status

    def has_agents(self) -> bool:
        """Whether pods get an agent: there is somebody behind them, and their image is here."""
        if self._services.agents is None:
            return False
        try:
            self._services.images.resolve(self._services.config.agent_image)
        except ImageError:
            return False
        return True

    def _check(self, pod: Mapping[str, Any], engine: str) -> tuple[str, str] | None:
        """Why this pod cannot run here (reason and message), if so."""
        _require_names(pod)
        if engine not in self._services.engines:
            return (
                "UnknownEngine",
                f"there is no engine {engine!r}; there are {', '.join(self._services.engines)}",
            )
        status = self._services.engines[engine].check()
        if not status.available:
            return "EngineUnavailable", f"{engine}: {status.reason}"
        try:
            check_pod(pod, self._services.config.policy)
        except PodSpecError as error:
            return "UnsupportedPod", str(error)
        except MALFORMED as error:
            return "UnsupportedPod", f"malformed pod: {error!r}"
        return None

    async def _work(self, worker: PodWorker, adopted: bool) -> None:
        await worker.serve(adopted=adopted)
        if not worker.leftovers:
            del self._workers[worker.uid]

    async def stop_pod(self, uid: str, grace_s: float | None = None) -> None:
        """Stop a pod and wait until nothing of it is left. A uid that is not here is fine.

        ``grace_s`` is the time between SIGTERM and SIGKILL; without it the pod's own, or the machine's default.

        Raises:
            StopFailed: something could not be removed; names it.
        """
        worker = self._workers.get(uid)
        if worker is None:
            return
        worker.stop(self._grace(worker) if grace_s is None else grace_s)
        await worker.gone.wait()
        if worker.leftovers:
            self._workers.pop(uid, None)
            raise StopFailed(
                f"pod {worker.book.status.name} is stopped, but these are left: {', '.join(worker.leftovers)}"
            )

    def _grace(self, worker: PodWorker) -> float:
        return grace_of(worker.book.status.pod.get("spec"), self._services.config.grace_s)

    def pods(self) -> tuple[PodStatus, ...]:
        """All pods here, also failed and finished ones that were not stopped yet."""
        return tuple(worker.book.status for worker in self._workers.values())

    def get(self, uid: str) -> PodStatus:
        """One pod.

        Raises:
            PodNotFound: it is not here.
        """
        return self._worker(uid).book.status

    def _worker(self, uid: str) -> PodWorker:
        try:
            return self._workers[uid]
        except KeyError as error:
            raise PodNotFound(f"no pod with the uid {uid} is on this machine") from error

    async def records(self, uid: str) -> bytes:
        """What :meth:`run_pod` was given as ``records``; for an adopted pod as soon as it has been found again."""
        worker = self._worker(uid)
        await worker.recovered.wait()
        return worker.records

    def changes(self) -> trio.MemoryReceiveChannel[Change]:
        """Every pod as it is, then its changes; a slow reader misses states in between, never the latest."""
        return self._services.changes.subscribe(self.pods())

    def logs(self, uid: str, container: str, options: LogOptions | None = None) -> AsyncIterator[bytes]:
        """A container's output, as chunks of whole lines.

        Raises:
            PodNotFound: there is no such pod here.
            LogsUnavailable: no such container, or it has no log.
        """
        return read_logs(self._worker(uid).book, container, options or LogOptions())

    def execute(self, uid: str, container: str, request: ExecRequest) -> AbstractAsyncContextManager[Session]:
        """Run one more process in a running container; leaving the context ends it.

        Raises:
            PodNotFound: there is no such pod here.
            SessionUnavailable: on entering: no such container, it does not run, or the command cannot be run.
        """
        return open_exec(self._services.config, self._worker(uid), container, request)

    def attach(
        self, uid: str, container: str, wanted: frozenset[int]
    ) -> AbstractAsyncContextManager[Session]:
        """The ``wanted`` channels of a running container's own process; leaving the context leaves it alone.

        Raises:
            PodNotFound: there is no such pod here.
            SessionUnavailable: on entering: no such container, it does not run, or has no stdin.
        """
        return open_attach(self._worker(uid), container, wanted)

    def connect(self, uid: str, port: int) -> AbstractAsyncContextManager[trio.SocketStream]:
        """A connection to a port inside a pod, closed with the context.

        Raises:
            PodNotFound: there is no such pod here.
            SessionUnavailable: on entering: the pod does not run, or nothing listens there.
        """
        return open_connection(self._worker(uid), port)

    # -- for the pods' agents

    def report(self, uid: str, words: Words) -> None:
        """Take in what a pod's agent says.

        Raises:
            PodNotFound: there is no such pod here.
        """
        agent_calls.report(self._worker(uid), words)

    def claim_key(self, uid: str, key: str) -> bool:
        """Bind this run of a pod's agent to a public key (hex); false where it has another one.

        Raises:
            PodNotFound: there is no such pod here, or it has no agent.
        """
        return agent_calls.claim_key(self._worker(uid), key)

    def restart_container(self, uid: str, container: str, reason: str) -> None:
        """Begin to end a container within the pod's grace, as its liveness probe wants; its restart policy does the rest.

        Raises:
            PodNotFound: there is no such pod here.
            SessionUnavailable: no such container, or it does not run.
        """
        worker = self._worker(uid)
        self._nursery.start_soon(agent_calls.begin_restart(worker, container, reason))

    # -- after a restart

    def adopt(self) -> None:
        """Resume the pods that an earlier daemon left running."""
        for folder in sorted(self._services.config.pods_dir.iterdir()):
            kept = record.load(folder)
            if kept is None or kept.status.uid != folder.name:
                kept = _broken_record(folder.name)
            worker = PodWorker(self._services, kept)
            self._workers[worker.uid] = worker
            worker.settled.set()
            self._nursery.start_soon(self._work, worker, True)


def _require_names(pod: Mapping[str, Any]) -> None:
    metadata = pod.get("metadata")
    for key in ("uid", "name", "namespace"):
        value = metadata.get(key) if isinstance(metadata, Mapping) else None
        if (
            not isinstance(value, str)
            or not value
            or len(value) > 253
            or "/" in value
            or value in {".", ".."}
        ):
            raise PodSpecError(f"metadata.{key} is missing or unusable: {value!r}")
    if len(pod["metadata"]["uid"]) > 36:
        raise PodSpecError(f"metadata.uid {pod['metadata']['uid']!r} is longer than a UUID")


def _new_record(
    pod: Mapping[str, Any], attachment: bytes, engine: str, agent: AgentRecord | None
) -> PodRecord:
    metadata = pod["metadata"]
    try:
        containers = tuple(
            ContainerStatus(
                name=str(c["name"]),
                image=str(c["image"]),
                init=init,
                sidecar=init and is_sidecar(c),
                reason="ContainerCreating",
            )
            for c, init in all_containers(pod)
        )
    except MALFORMED:
        containers = ()  # the pod is refused for it
    status = PodStatus(
        uid=metadata["uid"],
        name=metadata["name"],
        namespace=metadata["namespace"],
        pod=pod,
        attachment=attachment,
        engine=engine,
        containers=containers,
    )
    return PodRecord(status=status, agent=agent)


def _broken_record(uid: str) -> PodRecord:
    """For a folder whose record cannot be read: a failed pod, so that it is seen and can be stopped."""
    pod = {"metadata": {"uid": uid, "name": uid, "namespace": "default"}, "spec": {"containers": []}}
    status = PodStatus(
        uid=uid,
        name=uid,
        namespace="default",
        pod=pod,
        phase="Failed",
        reason="RecordLost",
        message="the record of this pod cannot be read; stop it to remove what it left",
    )
    return PodRecord(status=status, verdict="Failed")


def _prepare_folders(config: RuntimeConfig) -> ImageStore:
    for path in (config.pods_dir, config.run_dir / "pods"):
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.chmod(0o700)
    images = ImageStore(config.state_dir / "images")
    ensure_pause(images)
    return images


@asynccontextmanager
async def open_runtime(
    config: RuntimeConfig,
    network: PodNetwork,
    zygote: Zygote,
    lookup: ObjectLookup = no_objects,
    agents: Agents | None = None,
) -> AsyncIterator[Runtime]:
    """The runtime, with the pods of an earlier daemon adopted. Leaving it stops no pod."""
    images = await trio.to_thread.run_sync(_prepare_folders, config)
    control = trio.socket.from_stdlib_socket(zygote.control.dup())
    look = partial(look_for_krun, config.boot_memory, config.krun_library, timeout=config.krun_boot_s)
    krun = await trio.to_thread.run_sync(look)
    settings = load_settings(config.registries) if config.registries else RegistrySettings()
    async with (
        open_images(images, settings) as pulls,
        connected(control, "the zygote") as helper,
        trio.open_nursery() as nursery,
    ):
        services = Services(
            config=config,
            images=images,
            pulls=pulls,
            network=network,
            engines=make_engines(helper, zygote.report, krun, partial(agent_root, images)),
            cgroup_mode=zygote.report.cgroups,
            zygote=helper,
            changes=Changes(nursery),
            lookup=lookup,
            agents=agents,
        )
        runtime = Runtime(services, nursery)
        if agents is not None or not krun.reason:  # microVMs have its init
            await bring_agent(images, config.agent_image)
        await remove_orphans(services)
        runtime.adopt()
        collector = Collector(
            store=images,
            settings=settings.garbage,
            pinned=runtime.own_images,
        )
        nursery.start_soon(collect_images, collector, runtime.images_in_use)
        nursery.start_soon(serve_pulls, config.run_dir / SOCKET, pulls)
        yield runtime
        nursery.cancel_scope.cancel()
