"""Starting a machine's daemon and knowing when it serves."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import trio
from attrs import frozen

from machineplane.lab import processes
from machineplane.lab.errors import LabError
from machineplane.lab.plan import API_PORT, MESH_PORT, cgroup_parent
from machineplane.lab.state import DaemonRecord, LabDir, MachineState
from machineplane.linux.files import replace_file

RUN_DIR = "/run/magik"
STATE_DIR = "/var/lib/magik"
READY_FILE = "machineplane.json"
INVITE_FILE = "invite"
# More known machines than these do not make joining surer. Guess.
BOOTSTRAP_LIMIT = 3
# A log of an earlier run that is larger (bytes) is put aside, replacing the one put aside before.
LOG_LIMIT = 8 << 20
LOG_LINES_SHOWN = 15

_LOOK_EVERY = 0.05  # seconds


@frozen
class Ready:
    """What a daemon says of itself once it serves."""

    identity: str
    mesh: str
    api: str


def default_program() -> tuple[str, ...]:
    """The ``machineplane`` program that belongs to this interpreter, else the one on the search path."""
    beside = Path(sys.executable).with_name("machineplane")
    found = str(beside) if beside.exists() else shutil.which("machineplane")
    if found is None:
        raise LabError(
            "there is no `machineplane` program beside this Python nor on PATH: install magik-machineplane"
        )
    return (found,)


def command(
    program: Sequence[str], lab: str, machine: MachineState, options: Sequence[str], bootstrap: Sequence[str]
) -> tuple[str, ...]:
    """The daemon's command line on ``machine``; the later of two equal options counts, so ``options`` win."""
    address = str(machine.own_address)
    named = {
        "--node-name": machine.name,
        "--state-dir": STATE_DIR,
        "--run-dir": RUN_DIR,
        "--rest-api-host": address,
        "--mesh-host": address,
        "--mesh-port": str(MESH_PORT),
        "--cgroup-parent": cgroup_parent(lab, machine.name),
        "--pod-subnet": str(machine.pods),
        "--invite": f"{RUN_DIR}/{INVITE_FILE}",
    }
    pairs = [word for pair in named.items() for word in pair]
    peers = [word for peer in bootstrap for word in ("--bootstrap-peer", peer)]
    return (*program, *pairs, *peers, *options)


def bootstrap_for(machine: str, machines: Sequence[MachineState]) -> tuple[str, ...]:
    """Whom ``machine`` may ask to join: machines that it can reach and that have been ready once, those with a daemon
    first.
    """
    reachable = [other for other in machines if other.name != machine and other.nat is None]
    known = [other for other in reachable if other.identity is not None]
    known.sort(key=lambda other: other.daemon is None)
    return tuple(f"{other.identity}@{other.address}:{MESH_PORT}" for other in known[:BOOTSTRAP_LIMIT])


def api_url(machine: MachineState) -> str:
    """Where the machine's API is reached from the computer."""
    return f"https://{machine.address}:{API_PORT}"


def read_ready(lab: LabDir, machine: str) -> Ready | None:
    """What the machine's daemon wrote when it was ready; None before, and for what is not such a file."""
    try:
        data = json.loads((lab.run_dir(machine) / READY_FILE).read_text())
        return Ready(str(data["identity"]), str(data["mesh"]), str(data["api"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_alive(record: DaemonRecord | None) -> bool:
    """Whether the daemon that was started still runs."""
    if record is None:
        return False
    process = processes.look(record.pid)
    return process is not None and process.started == record.started and process.state not in "ZX"


def start(lab: LabDir, machine: str, init: int, words: Sequence[str], invite: str) -> DaemonRecord:
    """Start a daemon inside the machine (blocking); it lives on by itself."""
    (lab.run_dir(machine) / READY_FILE).unlink(missing_ok=True)
    replace_file(lab.run_dir(machine) / INVITE_FILE, invite.encode() + b"\n")
    log = lab.log(machine)
    if log.exists() and log.stat().st_size > LOG_LIMIT:
        log.replace(log.with_suffix(".log.1"))
    enter = [sys.executable, "-P", "-m", "machineplane.lab.enter", "--detach", str(log), str(init), "--"]
    done = subprocess.run(
        [*enter, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, cwd="/"
    )
    if done.returncode != 0:
        raise LabError(f"machine {machine}: its daemon cannot be started: {done.stderr.strip()}")
    process = processes.find_inside(init, int(done.stdout))
    if process is None:
        raise LabError(ended_early(lab, machine))
    return DaemonRecord(process.pid, process.started)


async def wait_ready(lab: LabDir, machine: str, record: DaemonRecord, limit: float) -> Ready:
    """Wait until the daemon serves; :class:`LabError` with its last words if it ends, or after ``limit``
    seconds.
    """
    with trio.move_on_after(limit):
        while True:
            ready = read_ready(lab, machine)
            if ready is not None:
                return ready
            if not is_alive(record):
                raise LabError(ended_early(lab, machine))
            await trio.sleep(_LOOK_EVERY)
    raise LabError(
        f"machine {machine}: its daemon was not ready within {limit:g} s{last_words(lab, machine)}"
    )


def ended_early(lab: LabDir, machine: str) -> str:
    """One line for a daemon that ended before it served, with its last words below."""
    return f"machine {machine}: its daemon ended before it was ready{last_words(lab, machine)}"


def last_words(lab: LabDir, machine: str) -> str:
    """The end of the daemon's log, to follow a message."""
    try:
        lines = lab.log(machine).read_bytes()[-64 << 10 :].decode(errors="replace").splitlines()
    except FileNotFoundError:
        lines = []
    if not lines:
        return ", and it printed nothing"
    return "; the last lines of its log:\n" + "\n".join(f"  {line}" for line in lines[-LOG_LINES_SHOWN:])
