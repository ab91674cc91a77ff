"""Bringing a whole lab up and down, and starting machines in it. Trio drives it; what blocks runs in threads."""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import trio
from attrs import Factory, evolve, frozen

from machineplane.lab import daemons, machines, membership, network, plan, processes
from machineplane.lab.errors import LabError
from machineplane.lab.state import LABS, LabDir, LabState, MachineState, lab_names, locked
from machineplane.linux import nft
from machineplane.linux.files import replace_file

# Each daemon's start is half a second to two of processor time: more at a time only delays the first.
STARTS_AT_A_TIME = 2
READY_LIMIT = 60.0  # seconds for one daemon

# Directories outside the lab's own that have to be there, with what they are for.
_OUTSIDE = (Path("/var/lib/magik"), network.NETNS_DIR)
_MADE_FILE = ".made.json"

Say = Callable[[str], None]


@frozen
class Wanted:
    """What ``lab up`` was asked for. ``program`` and ``options``: as in :class:`LabState`; ``limit`` in
    seconds; ``nats``: which machines are behind a router, and of which kind.
    """

    name: str
    count: int
    program: tuple[str, ...]
    options: tuple[str, ...] = ()
    limit: float = READY_LIMIT
    nats: Mapping[str, str] = Factory(dict)


def check_computer() -> None:
    """Refuse, with what to do, on a computer where no lab can be."""
    if os.geteuid() != 0:
        raise LabError("a lab needs root, for namespaces and interfaces: run it with sudo")
    missing = [
        kind for kind in ("net", "mnt", "pid", "uts", "ipc") if not Path(f"/proc/self/ns/{kind}").exists()
    ]
    if missing:
        raise LabError(f"this kernel has no {missing[0]} namespaces: a lab needs them")
    nft.check()


def up(wanted: Wanted, say: Say) -> LabState:
    """Make the lab and wait until every daemon serves; a failure takes down again what was made.

    Raises :class:`LabError`, with the last lines of a daemon's log where it was that which failed.
    """
    lab = LabDir.of(plan.check_name(wanted.name))
    plan.check_count(wanted.count)
    state = _found(lab, wanted, say)
    try:
        with locked(lab.path, say):
            say(f"lab {lab.name}: {wanted.count} machines on {state.subnet}, this computer is {_host(state)}")
            network.make_hub(machines.hub_name(lab.name), plan.host_link(lab.name), state.subnet)
            membership.make_root(lab.root_key)
            return trio.run(_start_all, lab, state, wanted.limit, say)
    except BaseException:
        say(f"lab {lab.name}: taking down what was made")
        down(lab.name, say)
        raise


def _host(state: LabState) -> str:
    return str(plan.host_address(state.subnet))


def _found(lab: LabDir, wanted: Wanted, say: Say) -> LabState:
    """Choose the lab's network and take its directory, before any other lab does."""
    with locked(LABS, say, create=True):
        try:
            _refuse_taken_names(lab, plan.machine_names(wanted.count))
            _make_outside()
            state = _planned(wanted, plan.free_subnet([*network.taken_networks(), *_other_subnets()]))
        except LabError:
            _remove_outside()
            raise
        lab.path.mkdir(mode=0o700)
        lab.save(state)
        return state


def _planned(wanted: Wanted, subnet: IPv4Network) -> LabState:
    made = tuple(
        MachineState(
            name,
            plan.machine_address(subnet, index),
            plan.pod_subnet(index),
            nat=wanted.nats.get(name),
            inside=plan.inside_subnet(index) if name in wanted.nats else None,
        )
        for index, name in enumerate(plan.machine_names(wanted.count))
    )
    return LabState(wanted.name, subnet, wanted.program, wanted.options, made)


def _refuse_taken_names(lab: LabDir, names: Sequence[str]) -> None:
    """Before anything is made: what is undone after a failure then is surely the lab's own."""
    if lab.path.exists():
        raise LabError(
            f"there is a lab named {lab.name} already: `machineplane lab down --name {lab.name}` removes it, "
            "or give this one another --name"
        )
    network.refuse_taken_link(plan.host_link(lab.name))
    for name in (network.HUB, *names):
        network.refuse_taken_namespace(plan.netns_name(lab.name, name))
        network.refuse_taken_namespace(machines.router_name(lab.name, name))


def _other_subnets() -> list[IPv4Network]:
    """Subnets of labs that have not set up their interface yet."""
    found = []
    for name in lab_names():
        with suppress(LabError):
            found.append(LabDir.of(name).load().subnet)
    return found


def _make_outside() -> None:
    made = [str(path) for path in _OUTSIDE if not path.exists()]
    for path in made:
        Path(path).mkdir(parents=True, mode=0o755)
    if made:
        replace_file(LABS / _MADE_FILE, json.dumps(sorted({*made, *_made_outside()})).encode())


def _made_outside() -> list[str]:
    try:
        return [str(path) for path in json.loads((LABS / _MADE_FILE).read_text())]
    except (OSError, ValueError):
        return []


async def _start_all(lab: LabDir, state: LabState, limit: float, say: Say) -> LabState:
    """All machines on, one after the other; ``m0``'s daemon first, then the others' a few at a time."""
    for machine in state.machines:
        with telling(f"making machine {machine.name}", say):
            await trio.to_thread.run_sync(machines.power_on, lab, state, machine)
    box = _Current(lab, state)
    first, *others = state.names
    await _start_daemon(box, first, limit, say)
    limiter = trio.CapacityLimiter(STARTS_AT_A_TIME)

    async def one(name: str) -> None:
        async with limiter:
            await _start_daemon(box, name, limit, say)

    await _together([partial(one, name) for name in others])
    return box.state


class _Current:
    """The lab's state as several tasks move it on; each step is on disk at once."""

    def __init__(self, lab: LabDir, state: LabState) -> None:
        self.lab = lab
        self.state = state

    def change(self, name: str, **values: Any) -> None:
        self.state = self.state.with_machine(evolve(self.state.machine(name), **values))
        self.lab.save(self.state)


async def _together(tasks: Sequence[Callable[[], object]]) -> None:
    """Run all; the first failure ends the others and is raised by itself, not in a group."""
    failures: list[LabError] = []

    async def guarded(task: Callable[[], object], scope: trio.CancelScope) -> None:
        try:
            await task()  # type: ignore[misc]
        except LabError as error:
            failures.append(error)
            scope.cancel()

    async with trio.open_nursery() as nursery:
        for task in tasks:
            nursery.start_soon(guarded, task, nursery.cancel_scope)
    if failures:
        raise failures[0]


async def _start_daemon(current: _Current, name: str, limit: float, say: Say) -> None:
    lab, state = current.lab, current.state
    began = time.monotonic()
    peers = daemons.bootstrap_for(name, state.machines)
    words = daemons.command(state.program, lab.name, state.machine(name), state.options, peers)
    init = machines.init_of(lab, name)
    text = membership.invite(lab.root_key)
    record = await trio.to_thread.run_sync(daemons.start, lab, name, init, words, text)
    current.change(name, daemon=record)
    ready = await daemons.wait_ready(lab, name, record, limit)
    current.change(name, identity=ready.identity)
    api = daemons.api_url(current.state.machine(name))
    say(f"{name}: daemon ready after {time.monotonic() - began:.1f} s, {api}")


def start(lab: LabDir, name: str, limit: float, say: Say) -> None:
    """Switch a machine on if it is off, and start its daemon if it has none. Its disk is as it was.

    A daemon that runs is left alone.
    """
    with locked(lab.path, say):
        state = lab.load()
        machine = state.machine(name)
        if name not in processes.inits(lab.path):
            machines.power_off(lab, name)  # what an end from outside may have left
            machines.power_on(lab, state, machine)
        elif daemons.is_alive(machine.daemon):
            say(f"{name}: its daemon runs already")
            return
        trio.run(_start_daemon, _Current(lab, state), name, limit, say)


def kill(lab: LabDir, name: str, say: Say) -> None:
    """End a machine's daemon and pods at once, as when its power fails."""
    with locked(lab.path, say):
        state = lab.load()
        state.machine(name)
        machines.power_off(lab, name)
        lab.save(state.with_machine(evolve(state.machine(name), daemon=None)))


def partition(lab: LabDir, words: Sequence[str], say: Say) -> LabState:
    """Let the groups of ``words`` lose each other's packets, in place of any partition before; none: heal."""
    with locked(lab.path, say):
        state = lab.load()
        state = evolve(state, groups=plan.parse_groups(words, state.names) if words else ())
        lab.save(state)
        for name in processes.inits(lab.path):
            machines.apply_partition(lab, state, name)
        return state


def down(name: str, say: Say) -> bool:
    """Remove the lab, whatever is left of it; False where there was none."""
    lab = LabDir.of(plan.check_name(name))
    existed = lab.path.exists()
    if existed:
        with locked(lab.path, say), telling(f"taking lab {name} down", say):
            _remove(lab)
    if LABS.exists():
        with suppress(LabError), locked(LABS, say):
            _remove_outside()
    return existed


def _remove(lab: LabDir) -> None:
    """Each step works whether or not what it removes is there; the directory goes last, so that a retry finds
    it.
    """
    names = {entry.name for entry in lab.path.iterdir() if entry.is_dir()} | set(processes.marked(lab.path))
    for name in sorted(names):
        machines.power_off(lab, name)
    network.remove_host_link(plan.host_link(lab.name))
    network.forget_namespace(machines.hub_name(lab.name))
    shutil.rmtree(lab.path)


def _remove_outside() -> None:
    """With the last lab goes what the first one made; not before, as others' machines stand on it."""
    if lab_names():
        return
    for path in _made_outside():
        with suppress(OSError):  # in use by others meanwhile
            Path(path).rmdir()
    (LABS / _MADE_FILE).unlink(missing_ok=True)
    LABS.rmdir()


@contextmanager
def telling(what: str, say: Say, patience: float = 1.0) -> Iterator[None]:
    """Say what is being done, once it has taken longer than ``patience`` seconds."""
    timer = threading.Timer(patience, say, (f"{what} …",))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
