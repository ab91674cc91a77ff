"""Starting the zygote, before the daemon makes threads, and asking it for shims."""

import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from attrs import frozen

from machineplane.runtime.crun.locate import DEFAULT_PREFIX, Libcrun, find_libcrun, find_system_libcrun
from machineplane.runtime.errors import HelperError
from machineplane.runtime.shim.wire import MAX_MESSAGE, WireError, decode
from machineplane.runtime.slices import CGROUPFS

START_TIMEOUT_S = 20.0
"""How long the zygote has to say hello: 0.1 s on an idle machine."""

STOP_TIMEOUT_S = 5.0


@frozen(kw_only=True)
class ZygoteReport:
    """What the zygote found. ``cgroups`` is v2, v1 or none; ``error`` is empty if all went well."""

    cgroups: str
    cgroups_reason: str
    libcrun: Libcrun | None
    error: str
    cgroup_driver: str = CGROUPFS


class Zygote:
    """A running zygote. It ends with :meth:`close`, or when this process does; its shims go on."""

    def __init__(
        self, process: subprocess.Popen[bytes], control: socket.socket, report: ZygoteReport
    ) -> None:
        self._process = process
        self.control = control
        self.report = report

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def close(self) -> None:
        """End the zygote and wait for it (at most 5 s, then it is killed). Idempotent."""
        self.control.close()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def start_zygote(libcrun: Path | None = None, *, cgroup_driver: str = CGROUPFS) -> Zygote:
    """Start the zygote; synchronous, before Trio runs.

    ``libcrun`` is the folder that :mod:`~machineplane.runtime.libcrun_build` filled (default: its own default, then
    the system's library). Without a library the zygote starts all the same and the crun engine says what is missing.
    It says so as well where the ``cgroup_driver`` (one of `slices.DRIVERS`) cannot be had.

    Raises:
        HelperError: the process does not come up.
    """
    library = find_libcrun(libcrun or DEFAULT_PREFIX) or find_system_libcrun()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-I", "-m", "machineplane.runtime.zygote", str(theirs.fileno()), cgroup_driver]
    if library is not None:
        command += [str(library.path), library.version]
    with theirs:
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, cwd="/")
    try:
        report = _hello(ours, library)
    except HelperError:
        ours.close()
        process.kill()
        process.wait()
        raise
    return Zygote(process, ours, report)


def _hello(control: socket.socket, library: Libcrun | None) -> ZygoteReport:
    control.settimeout(START_TIMEOUT_S)
    try:
        raw = control.recv(MAX_MESSAGE + 1)
        hello = decode(raw) if raw else None
    except (OSError, WireError) as error:
        raise HelperError(f"the zygote did not come up: {error}") from error
    if hello is None:
        raise HelperError("the zygote ended at its start; its own message stands above")
    control.settimeout(None)
    return ZygoteReport(
        cgroups=str(hello["cgroups"]),
        cgroups_reason=str(hello["cgroups_reason"]),
        libcrun=library,
        error=str(hello["error"]),
        cgroup_driver=str(hello["cgroup_driver"]),
    )
