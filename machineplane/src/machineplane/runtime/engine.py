"""Engines: what runs a pod's containers. ``crun`` by libcrun in a shim, ``wasm`` in such containers; ``krun`` (microVMs) is
looked for, not yet run.
"""

import ctypes
import ctypes.util
import fcntl
import os
from collections.abc import Callable
from functools import partial
from typing import Protocol

from attrs import frozen

from machineplane.runtime.crun.locate import DEFAULT_PREFIX
from machineplane.runtime.errors import EngineUnavailable, HelperLost
from machineplane.runtime.helper import HelperClient
from machineplane.runtime.wasm.config import WASM, missing_wasmtime
from machineplane.runtime.zygote_client import ZygoteReport

KVM_DEVICE = "/dev/kvm"
_KVM_GET_API_VERSION = 0xAE00  # <linux/kvm.h>: _IO(0xAE, 0x00)
_KVM_API_VERSION = 12  # the only version there has been since Linux 2.6.22; programs must refuse others
_KRUN_NAMES = ("libkrun.so.1", "libkrun.so.2", "libkrun.so")


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


def load_libkrun() -> str:
    """Load libkrun to see that it is whole; empty if it loads, else why not."""
    found = ctypes.util.find_library("krun")
    candidates = (
        [str(DEFAULT_PREFIX / name) for name in _KRUN_NAMES] + ([found] if found else []) + list(_KRUN_NAMES)
    )
    reasons = []
    for name in dict.fromkeys(candidates):
        if name.startswith("/") and not os.path.exists(name):
            continue
        try:
            # Lazily bound: builds of it leave graphics symbols undefined that nothing here calls.
            library = ctypes.CDLL(name, mode=os.RTLD_LAZY)
        except OSError as error:
            reasons.append(str(error))
            continue
        if hasattr(library, "krun_start_enter"):
            return ""
        reasons.append(f"{name} has no krun_start_enter")
    return f"no libkrun library found ({reasons[0]})" if reasons else "no libkrun library found"


def probe_kvm(device: str = KVM_DEVICE) -> str:
    """Open KVM and ask for its version; empty if it answers as it must, else why not."""
    try:
        fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return f"{device} cannot be opened: {error.strerror}"
    try:
        version = fcntl.ioctl(fd, _KVM_GET_API_VERSION)
    except OSError as error:
        return f"{device} does not answer as KVM: {error.strerror}"
    finally:
        os.close(fd)
    return (
        ""
        if version == _KVM_API_VERSION
        else f"{device} has the API version {version}, not {_KVM_API_VERSION}"
    )


class KrunEngine:
    """MicroVMs by libkrun: this version only finds out what the machine has for them."""

    name = "krun"

    def __init__(self, library: Callable[[], str] = load_libkrun, kvm: Callable[[], str] = probe_kvm) -> None:
        self._library = library
        self._kvm = kvm

    def check(self) -> EngineStatus:
        """Always unavailable in this version, with everything that stands in the way here."""
        reasons = [reason for reason in (self._library(), self._kvm()) if reason]
        reasons.append("microVM pods are not supported by this version yet")
        return EngineStatus(name=self.name, available=False, reason="; ".join(reasons))

    async def spawn(self, uid: str, pod_dir: str, socket: str) -> int:
        """Refuse, with the reason of :meth:`check`."""
        raise EngineUnavailable(f"krun: {self.check().reason}")


def make_engines(zygote: HelperClient, report: ZygoteReport) -> dict[str, Engine]:
    """All engines by name: for the daemon, and for who only asks what works here."""
    crun = CrunEngine(zygote, report)
    engines: tuple[Engine, ...] = (crun, KrunEngine(), WasmEngine(crun))
    return {engine.name: engine for engine in engines}
