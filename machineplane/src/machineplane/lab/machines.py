"""Switching machines of a lab on and off. Blocking; the caller holds the lab's lock."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from machineplane.lab import cgroups, nat, network, processes
from machineplane.lab.errors import LabError, MachineOff
from machineplane.lab.plan import cgroup_parent, cut_off_from, netns_name
from machineplane.lab.state import LabDir, LabState, MachineState

_BOX_PATIENCE = 30.0  # seconds; it takes 0.1 s on an idle computer


def hub_name(lab: str) -> str:
    """The name of the hub's network namespace."""
    return netns_name(lab, network.HUB)


def router_name(lab: str, machine: str) -> str:
    """The name of the network namespace of a machine's router, where it has one."""
    return netns_name(lab, f"{machine}-nat")


def netns_path(lab: str, machine: str) -> Path:
    """Where a machine's network namespace can be entered."""
    return network.NETNS_DIR / netns_name(lab, machine)


def init_of(lab: LabDir, machine: str) -> int:
    """The first process of a machine that is on, else :class:`MachineOff`."""
    init = processes.inits(lab.path).get(machine)
    if init is None:
        raise MachineOff(machine)
    return init


def power_on(lab: LabDir, state: LabState, machine: MachineState) -> int:
    """Make the machine's namespaces, plug it into the hub, apply a partition in force; return its first
    process.
    """
    lab.make_machine(machine.name)
    _make_box(lab, machine.name)
    init = init_of(lab, machine.name)
    name = netns_name(lab.name, machine.name)
    netns = network.name_namespace(name, f"/proc/{init}/ns/net")
    _plug(lab, state, machine, netns)
    apply_partition(lab, state, machine.name)
    return init


def _plug(lab: LabDir, state: LabState, machine: MachineState, netns: Path) -> None:
    hub = hub_name(lab.name)
    if machine.nat is None or machine.inside is None:
        network.plug(hub, machine.name, netns, machine.address, state.subnet)
        return
    router = router_name(lab.name, machine.name)
    nat.plug(hub, router, machine.name, netns, machine.address, state.subnet, machine.inside, machine.nat)


def _make_box(lab: LabDir, machine: str) -> None:
    command = [
        sys.executable,
        "-P",
        "-m",
        "machineplane.lab.box",
        processes.INIT_MARK,
        str(lab.path),
        machine,
    ]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_BOX_PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise LabError(
            f"machine {machine}: no namespaces within {_BOX_PATIENCE:.0f} s; is the computer busy?"
        ) from None
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise LabError(f"machine {machine} cannot be made: {last[0]}")


def power_off(lab: LabDir, machine: str) -> None:
    """End all of the machine's processes at once and remove what the kernel kept of it; its disk stays.

    Works on machines that were half made or are off already.
    """
    pids = processes.marked(lab.path).get(machine, [])
    inside = [process.pid for pid in pids for process in processes.below(pid) if _is_apart(pid)]
    groups = cgroups.of_processes(inside) - cgroups.of_processes(pids) | {
        f"/{cgroup_parent(lab.name, machine)}"
    }
    stuck = [pid for pid in pids if not processes.kill(pid)]
    if stuck:
        raise LabError(
            f"machine {machine}: process {stuck[0]} does not end on SIGKILL; look at /proc/{stuck[0]}/stack"
        )
    network.unplug(hub_name(lab.name), machine)
    network.forget_namespace(netns_name(lab.name, machine))
    nat.remove(router_name(lab.name, machine))
    left = cgroups.remove(groups)
    if left:
        raise LabError(
            f"machine {machine}: control group {left[0]} still has processes that are not this lab's"
        )
    shutil.rmtree(lab.run_dir(machine), ignore_errors=True)


def _is_apart(pid: int) -> bool:
    """Whether ``pid`` has process ids of its own, so that what shares them belongs to the machine."""
    return len(processes.namespace_ids(pid)) > len(processes.namespace_ids(os.getpid()))


def apply_partition(lab: LabDir, state: LabState, machine: str) -> None:
    """Let the machine hear those only that the lab's groups let it hear."""
    addresses = tuple(state.machine(name).address for name in cut_off_from(machine, state.groups))
    network.set_deaf(netns_path(lab.name, machine), addresses)
