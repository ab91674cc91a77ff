"""A pod's agent: started beside the infra container, served at its socket, started again alone when it dies."""

import random
import secrets
import shutil
import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog
import trio
from attrs import evolve

from machineplane.runtime.agent_folder import AgentFolder, open_agent_folder
from machineplane.runtime.bundle import BundleContext, agent_config
from machineplane.runtime.changes import PodEvent
from machineplane.runtime.container_task import bundle_path, log_path, new_id
from machineplane.runtime.errors import MALFORMED, HelperError, HelperLost, PodError
from machineplane.runtime.images import ImageError
from machineplane.runtime.live import LivePod
from machineplane.runtime.policy import next_backoff
from machineplane.runtime.record import AgentRecord
from machineplane.runtime.services import Agents
from machineplane.runtime.shim_link import Exit

AGENT = "agent.container"  # no DNS label, so no container of a pod can have this name
END_S = 2.0
"""How long an agent has to part from its peers when its pod ends, after the pod's containers; a guess."""
REDIRECT_PORT = 4702
"""Of the agent in its pod, by TCP, unless the pod has it; a guess: beside the agent's two others."""
OTHER_PORTS = range(20_000, 32_768)
"""Of these one at random, where the pod has that; a guess: below those that Linux gives to connections."""
_CHOICES = 8
_KEPT_LOGS = 2


class AgentTask:
    """The agent of one pod, which has an :class:`AgentRecord`. :meth:`run` is its task."""

    def __init__(self, live: LivePod, agents: Agents) -> None:
        self._live = live
        self._agents = agents
        self._ended = trio.Event()
        self._scope = trio.CancelScope()
        self._ending = False
        self._log = structlog.get_logger(room="runtime", pod=live.book.status.name)

    @property
    def _record(self) -> AgentRecord:
        record = self._live.book.record.agent
        assert record is not None
        return record

    def _update(self, **changes: Any) -> None:
        self._live.book.update(agent=evolve(self._record, **changes))

    async def run(self) -> None:
        """Until :meth:`end`, or the helper is gone. Whatever goes wrong is the agent's trouble, not the pod's."""
        try:
            with (
                self._scope,
                open_agent_folder(self._live.book.folder, await self._live.link.pid()) as folder,
            ):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._serve, folder)
                    await self._keep(folder)
                    nursery.cancel_scope.cancel()
        except HelperLost:
            pass  # the pod's own task says what follows
        finally:
            self._ended.set()

    async def ask_to_end(self) -> None:
        """Have the agent part from its peers and end in order, with the pod's containers; it is not started again."""
        self._ending = True
        with suppress(HelperError):
            if self._record.id:
                await self._live.link.kill(self._record.id, signal.SIGTERM)

    async def end(self) -> None:
        """Wait for its end, :data:`END_S` at most; then it is not served any more."""
        with trio.move_on_after(END_S):
            await self._ended.wait()
        self._scope.cancel()
        await self._ended.wait()

    async def _serve(self, folder: AgentFolder) -> None:
        try:
            listener = folder.listen()
        except OSError as error:
            self._tell("AgentSocket", f"the agent's socket cannot be made: {error}")
            return
        await self._agents.serve(self._live.book.status.uid, lambda: self._record.token, listener)

    async def _keep(self, folder: AgentFolder) -> None:
        backoff: float | None = None
        while not self._ending:
            began = trio.current_time()
            ended = await self._once(folder)
            if self._ending:
                return
            if ended is not None:
                self._tell(
                    "AgentEnded", f"the pod's agent ended with {ended.exit_code}, and is started again"
                )
            backoff = next_backoff(backoff, trio.current_time() - began)
            await trio.sleep(backoff)

    async def _once(self, folder: AgentFolder) -> Exit | None:
        """One run of the agent, or the rest of the one that an earlier daemon began; how it ended, if it ran."""
        link = self._live.link
        if not await self._is_there():
            try:
                await self._start(folder)
            except HelperLost:
                raise
            except (HelperError, ImageError, PodError, OSError, *MALFORMED) as error:
                self._tell("AgentFailed", f"the pod's agent cannot be started: {error}")
                if await self._is_there():
                    await link.kill(self._record.id, signal.SIGKILL)
                    await self._finish()
                return None
        return await self._finish()

    async def _finish(self) -> Exit:
        """Wait for this run's end, and remove what is left of it."""
        container_id = self._record.id
        ended = await self._live.link.wait_exit(container_id)
        await self._live.link.delete(container_id)
        self._live.private.forget(container_id[:12])
        self._update(id="")
        return ended

    async def _is_there(self) -> bool:
        listed, _ = await self._live.link.containers()
        return any(container["id"] == self._record.id for container in listed)

    async def _start(self, folder: AgentFolder) -> None:
        live, config = self._live, self._live.services.config
        container_id, runs = new_id(), self._record.runs
        image = await trio.to_thread.run_sync(live.services.images.resolve, config.agent_image)
        layers = live.services.images.layer_paths(image)
        bundle = bundle_path(live.book.folder, AGENT, container_id)
        log = log_path(live.book.folder, AGENT, runs)
        await trio.to_thread.run_sync(_prepare, bundle, log)
        cgroup = config.container_cgroup(live.book.status.uid, container_id)
        context = BundleContext(
            pod=live.pod,
            pod_dir=live.book.folder,
            bundle=bundle,
            private=live.book.folder / "private" / container_id[:12],
            cgroup=cgroup,
            cgroup_mode=live.services.cgroup_mode,
            image=image.config,
            layers=layers,
            infra_pid=live.book.record.infra_pid,
            agent=True,
        )
        variables = self._agents.environment(live.book.status, await self._redirect())
        live.private.write_config(container_id[:12], agent_config(context, variables))
        # A folder that is made again has lost what an earlier run stored there: that one has founded, and nobody does twice.
        folder.make_state(founder=runs == 0 and self._agents.founds(live.book.status))
        # A new run has a new key, which the machine never sees: so it gets a new token, and may ask for one pass again.
        self._update(id=container_id, runs=runs + 1, token=secrets.token_urlsafe(32), key="")
        folder.hand_over(self._record.token)
        await live.link.create(
            container_id, name=AGENT, attempt=runs, bundle=bundle, layers=layers, log=log, cgroup=cgroup
        )
        await live.link.start(container_id)

    async def _redirect(self) -> int | None:
        """Have TCP to Services come to one port of the agent; None where that is not to be had.

        Only here, while no agent runs: one that was not told of it listens elsewhere.
        """
        book = self._live.book
        ports = redirect_ports(self._live.pod, random.SystemRandom())
        try:
            return await self._live.services.network.redirect(book.status.uid, book.record.infra_pid, ports)
        except Exception as error:  # noqa: BLE001 - another room's: whatever it is, the agent does without
            self._tell(
                "AgentNotRedirected",
                f"the pod's apps cannot listen at ports of Services that they call: {error}",
            )
            return None

    def _tell(self, reason: str, message: str) -> None:
        self._log.warning("agent", reason=reason, message=message)
        self._live.services.changes.publish(PodEvent(self._live.book.status.uid, "Warning", reason, message))


def redirect_ports(pod: Mapping[str, Any], chance: random.Random) -> tuple[int, ...]:
    """Where a pod's agent may listen for what is redirected, the best first: none that a container says it has."""
    spec = pod["spec"]
    containers = [*spec["containers"], *(spec.get("initContainers") or ())]
    declared = {port.get("containerPort") for one in containers for port in one.get("ports") or ()}
    wanted = (REDIRECT_PORT, *chance.sample(OTHER_PORTS, _CHOICES))
    return tuple(port for port in wanted if port not in declared)


def _prepare(bundle: Path, log: Path) -> None:
    """The bundle of this run, and nothing of earlier ones; of logs, this run's and the one before."""
    shutil.rmtree(bundle.parent, ignore_errors=True)
    bundle.mkdir(parents=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    kept = {str(int(log.name.split(".")[0]) - back) for back in range(_KEPT_LOGS)}
    for old in log.parent.iterdir():
        if old.name.split(".")[0] not in kept:
            old.unlink()
