"""What a lab remembers on disk, and the locks that keep two commands from working on it at once.

    /var/lib/magik-lab/            locked (flock) while networks are chosen and labs come and go
        .made.json                 directories outside that the first lab made, removed with the last
        <lab>/                     locked (flock) by every command that changes the lab
            lab.json               this module's LabState, replaced atomically
            root.key               the fabric's root key
            m0/state  m0/run       /var/lib/magik and /run/magik of machine m0
            m0/daemon.log

Which processes run is not remembered but looked up (``processes``), so that it cannot be wrong.
"""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

from machineplane.lab.errors import LabError, NoSuchLab
from machineplane.lab.plan import check_machine, own_inside
from machineplane.linux.files import replace_file

LABS = Path("/var/lib/magik-lab")


@frozen
class DaemonRecord:
    """A daemon that was started: its process id on the computer and its start time (clock ticks since boot)."""

    pid: int
    started: int


@frozen
class MachineState:
    """One machine: ``identity`` (64 hex digits) is known once its daemon was ready for the first time.

    ``address`` is where others see it. With ``nat`` (of :data:`~machineplane.lab.plan.NATS`) that is its router's, and
    ``inside`` the network between the two.
    """

    name: str
    address: IPv4Address
    pods: IPv4Network
    identity: str | None = None
    daemon: DaemonRecord | None = None
    nat: str | None = None
    inside: IPv4Network | None = None

    @property
    def own_address(self) -> IPv4Address:
        """The address that the machine itself has."""
        return self.address if self.inside is None else own_inside(self.inside)


@frozen
class LabState:
    """One lab. ``program`` starts a daemon (options follow), ``options`` are those given at ``lab up``."""

    name: str
    subnet: IPv4Network
    program: tuple[str, ...]
    options: tuple[str, ...]
    machines: tuple[MachineState, ...]
    groups: tuple[frozenset[str], ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The machines' names in order."""
        return tuple(machine.name for machine in self.machines)

    def machine(self, name: str) -> MachineState:
        """The machine called ``name``; :class:`~machineplane.lab.errors.NoSuchMachine` if there is none."""
        return self.machines[self.names.index(check_machine(name, self.names))]

    def with_machine(self, changed: MachineState) -> "LabState":
        """The same lab with one machine replaced."""
        return evolve(self, machines=tuple(changed if m.name == changed.name else m for m in self.machines))


@frozen
class LabDir:
    """Where a lab's files are."""

    path: Path

    @classmethod
    def of(cls, name: str, labs: Path = LABS) -> "LabDir":
        """The directory of the lab called ``name``, there or not."""
        return cls(labs / name)

    @property
    def name(self) -> str:
        """The lab's name."""
        return self.path.name

    @property
    def root_key(self) -> Path:
        """The file of the fabric's root key."""
        return self.path / "root.key"

    def machine(self, name: str) -> Path:
        """The directory of a machine."""
        return self.path / name

    def state_dir(self, name: str) -> Path:
        """What the machine sees as ``/var/lib/magik``."""
        return self.path / name / "state"

    def run_dir(self, name: str) -> Path:
        """What the machine sees as ``/run/magik``."""
        return self.path / name / "run"

    def log(self, name: str) -> Path:
        """What the machine's daemon printed."""
        return self.path / name / "daemon.log"

    def load(self) -> LabState:
        """The lab's state; :class:`NoSuchLab` if there is none, :class:`LabError` if it cannot be read."""
        try:
            return _structure(json.loads((self.path / "lab.json").read_text()))
        except FileNotFoundError:
            raise NoSuchLab(self.name) from None
        except (ValueError, KeyError, TypeError) as error:
            raise LabError(
                f"{self.path}/lab.json cannot be read ({error}): remove the lab with "
                f"`machineplane lab down --name {self.name}`"
            ) from error

    def save(self, state: LabState) -> None:
        """Replace the lab's state atomically."""
        replace_file(self.path / "lab.json", json.dumps(_unstructure(state), indent=1).encode() + b"\n")

    def make_machine(self, name: str) -> None:
        """Make a machine's directories, and empty what a machine loses when its power fails."""
        self.state_dir(name).mkdir(parents=True, exist_ok=True, mode=0o700)
        shutil.rmtree(self.run_dir(name), ignore_errors=True)
        self.run_dir(name).mkdir(mode=0o755)


def lab_names(labs: Path = LABS) -> list[str]:
    """The labs that have a directory, half-made ones among them."""
    if not labs.is_dir():
        return []
    return sorted(entry.name for entry in labs.iterdir() if entry.is_dir())


@contextmanager
def locked(directory: Path, say: Callable[[str], None], *, create: bool = False) -> Iterator[None]:
    """Hold the lock on ``directory``; ``say`` is told when that has to wait for another command.

    With ``create`` the directory is made if need be; without, :class:`NoSuchLab` where it is not there.
    """
    while True:
        fd = _open_directory(directory, create)
        try:
            _flock(fd, directory, say)
            if _is_same(fd, directory):
                yield
                return
        finally:
            os.close(fd)


def _open_directory(directory: Path, create: bool) -> int:
    if create:
        directory.mkdir(parents=True, exist_ok=True, mode=0o711)
    try:
        return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NoSuchLab(directory.name) from None


def _flock(fd: int, directory: Path, say: Callable[[str], None]) -> None:
    told = time.monotonic() + 1
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > told:
                say(f"waiting for another lab command that works on {directory} …")
                fcntl.flock(fd, fcntl.LOCK_EX)
                return
            time.sleep(0.02)


def _is_same(fd: int, directory: Path) -> bool:
    """Whether the lock that we got is still on the directory of that name: its last holder may have removed
    it.
    """
    try:
        there = os.stat(directory)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (os.fstat(fd).st_dev, os.fstat(fd).st_ino)


def _unstructure(state: LabState) -> dict[str, Any]:
    return {
        "version": 1,
        "name": state.name,
        "subnet": str(state.subnet),
        "program": list(state.program),
        "options": list(state.options),
        "groups": [sorted(group) for group in state.groups],
        "machines": [
            {
                "name": machine.name,
                "address": str(machine.address),
                "pods": str(machine.pods),
                "identity": machine.identity,
                "daemon": machine.daemon and [machine.daemon.pid, machine.daemon.started],
                "nat": machine.nat,
                "inside": machine.inside and str(machine.inside),
            }
            for machine in state.machines
        ],
    }


def _structure(data: dict[str, Any]) -> LabState:
    if data["version"] != 1:
        raise ValueError(f"version {data['version']} is of another Magik")
    return LabState(
        name=data["name"],
        subnet=IPv4Network(data["subnet"]),
        program=tuple(data["program"]),
        options=tuple(data["options"]),
        groups=tuple(frozenset(group) for group in data["groups"]),
        machines=tuple(
            MachineState(
                name=item["name"],
                address=IPv4Address(item["address"]),
                pods=IPv4Network(item["pods"]),
                identity=item["identity"],
                daemon=DaemonRecord(*item["daemon"]) if item["daemon"] else None,
                nat=item.get("nat"),
                inside=IPv4Network(item["inside"]) if item.get("inside") else None,
            )
            for item in data["machines"]
        ),
    )
