"""Engines: what runs a pod's containers. ``crun`` by libcrun in a shim; ``krun`` (microVMs) and ``wasm`` inside such."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

from attrs import frozen

from machineplane.runtime.bundle import Bundle, BundleContext
from machineplane.runtime.config import grace_of
from machineplane.runtime.errors import EngineUnavailable, HelperLost, PodSpecError
from machineplane.runtime.helper import HelperClient
from machineplane.runtime.images import ImageError
from machineplane.runtime.krun.config import KRUN, Surroundings, as_machine
from machineplane.runtime.krun.locate import KrunReport
from machineplane.runtime.wasm.config import WASM, as_module, missing_wasmtime
from machineplane.runtime.zygote_client import ZygoteReport

NO_EXEC: Final[Mapping[str, str]] = {
    WASM: "a WebAssembly module has no other programs that could be run in it",
}
"""Engines that cannot put a process into what runs, and why."""


UNTRIED: Final = (
    "guests boot and run programs; exec, terminals and hooks have been tried on a stand-in for libkrun only"
)
"""What of ``krun`` no real guest has run yet, to be said wherever the engine is."""


@frozen(kw_only=True)
class EngineStatus:
    """Whether an engine can run pods here, and the true reason if it cannot (or what it does without)."""

    name: str
    available: bool
    reason: str
    version: str = ""


class Engine(Protocol):
    """What the pods' side needs of an engine."""

    name: str

    def check(self) -> EngineStatus:
        """Look at this machine; cheap enough to ask at every start."""
        ...

    async def spawn(self, uid: str, pod_dir: str, socket: str) -> int:
        """Start the helper of one pod, listening at ``socket``; its process id.

        Raises:
            EngineUnavailable: with the reason of :meth:`check`.
            HelperError: it did not start.
        """
        ...

    def adapt(self, made: Bundle, container: Mapping[str, Any], context: BundleContext) -> Bundle:
        """What an ordinary container's bundle, made in this context, becomes.

        Raises:
            PodSpecError: the container's spec asks for what this engine cannot do.
        """
        ...


class CrunEngine:
    """Containers by libcrun, in shims that the zygote forks."""

    name = "crun"

    def __init__(self, zygote: HelperClient, report: ZygoteReport) -> None:
        self._zygote = zygote
        self._report = report

    def check(self) -> EngineStatus:
        """By what the zygote said when it started, and whether it still lives."""
        report = self._report
        version = report.libcrun.version if report.libcrun else ""
        if report.error:
            return EngineStatus(name=self.name, available=False, reason=report.error, version=version)
        if report.libcrun is None:
            missing = "no shared libcrun found; build one with `python -m machineplane.runtime.libcrun_build`"
            return EngineStatus(name=self.name, available=False, reason=missing)
        if self._zygote.lost.is_set():
            gone = "the zygote process has ended; restart the daemon (running pods are not touched)"
            return EngineStatus(name=self.name, available=False, reason=gone, version=version)
        return EngineStatus(name=self.name, available=True, reason=report.cgroups_reason, version=version)

    async def spawn(self, uid: str, pod_dir: str, socket: str) -> int:
        """Have the zygote fork a shim."""
        status = self.check()
        if not status.available:
            raise EngineUnavailable(f"crun: {status.reason}")
        ask = partial(self._zygote.request, "shim", uid=uid, pod_dir=pod_dir, socket=socket)
        try:
            answer = await ask()
        except HelperLost:
            if self._zygote.lost.is_set():
                raise
            answer = await ask()  # it was killed, and there is another one
        return int(answer["pid"])

    def adapt(self, made: Bundle, container: Mapping[str, Any], context: BundleContext) -> Bundle:
        """As it is."""
        return made


class WasmEngine:
    """WebAssembly modules: containers of ``crun`` in which wasmtime runs them."""

    name = WASM

    def __init__(self, containers: CrunEngine, missing: Callable[[], str] = missing_wasmtime) -> None:
        self._containers = containers
        self._missing = missing

    def check(self) -> EngineStatus:
        """Whether containers run here, and the package wasmtime is there."""
        containers, missing = self._containers.check(), self._missing()
        if containers.available and not missing:
            return EngineStatus(name=self.name, available=True, reason=containers.reason)
        why = missing if containers.available else f"it needs crun: {containers.reason}"
        return EngineStatus(name=self.name, available=False, reason=why)

    async def spawn(self, uid: str, pod_dir: str, socket: str) -> int:
        """The same helper that any container gets."""
        status = self.check()
        if not status.available:
            raise EngineUnavailable(f"wasm: {status.reason}")
        return await self._containers.spawn(uid, pod_dir, socket)

    def adapt(self, made: Bundle, container: Mapping[str, Any], context: BundleContext) -> Bundle:
        """Run the image's module in Python."""
        return as_module(made, container)


class KrunEngine:
    """MicroVMs by libkrun, one for each container of a pod: containers of ``crun`` in which their monitors run."""

    name = KRUN

    def __init__(self, containers: CrunEngine, found: KrunReport, init: Callable[[], Path]) -> None:
        self._containers = containers
        self._found = found
        self._init = init

    def check(self) -> EngineStatus:
        """Whether a guest has booted here, an init for guests is there, and containers run."""
        containers = self._containers.check()
        reasons = [self._found.reason, "" if containers.available else f"it needs crun: {containers.reason}"]
        if not self._found.reason:  # else nobody needs it, and to look for it reads the store
            try:
                self._init()
            except ImageError as error:
                reasons.append(f"the agents' image, whose init guests have, is missing: {error}")
        why = "; ".join(filter(None, reasons))
        without = "; ".join(filter(None, (UNTRIED, containers.reason)))
        return EngineStatus(name=self.name, available=not why, reason=why or without)

    async def spawn(self, uid: str, pod_dir: str, socket: str) -> int:
        """The same helper that any container gets."""
        status = self.check()
        if not status.available:
            raise EngineUnavailable(f"krun: {status.reason}")
        return await self._containers.spawn(uid, pod_dir, socket)

    def adapt(self, made: Bundle, container: Mapping[str, Any], context: BundleContext) -> Bundle:
        """Run the image in a machine. Refused where no guest boots (any more): never with less isolation than asked."""
        if self._found.reason:
            raise PodSpecError(f"krun: {self._found.reason}")
        try:
            init = self._init()
        except ImageError as error:
            raise PodSpecError(f"krun: {error}") from error
        around = Surroundings(
            library=self._found.library,
            init=init,
            private=context.private,
            devices=context.bundle / "devices",
            grace=grace_of(context.spec),
        )
        return as_machine(made, container, around)


def make_engines(
    zygote: HelperClient, report: ZygoteReport, krun: KrunReport, init: Callable[[], Path]
) -> dict[str, Engine]:
    """All engines by name: for the daemon, and for who only asks what works here.

    ``init`` gives the folder of the agents' image, or raises ``ImageError``.
    """
    crun = CrunEngine(zygote, report)
    engines: tuple[Engine, ...] = (crun, KrunEngine(crun, krun, init), WasmEngine(crun))
    return {engine.name: engine for engine in engines}
