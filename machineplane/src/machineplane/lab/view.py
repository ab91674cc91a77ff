"""How a lab looks: what ``lab ls`` and ``lab up --json`` show."""

from collections.abc import Sequence
from typing import Any

from machineplane.lab import daemons, processes
from machineplane.lab.plan import MESH_PORT, netns_name
from machineplane.lab.state import LabDir, LabState, MachineState

_COLUMNS = ("NAME", "STATE", "IDENTITY", "MESH", "API", "PID", "NETNS")
_IDENTITY_SHOWN = 16


def describe(state: LabState) -> dict[str, Any]:
    """The one object of ``lab up --json``: ``pid`` is the daemon's as this computer sees it, null without a
    daemon.
    """
    return {"name": state.name, "machines": [describe_machine(state, machine) for machine in state.machines]}


def describe_machine(state: LabState, machine: MachineState) -> dict[str, Any]:
    """One machine of it; ``netns`` is a path that can be entered while the machine is on."""
    alive = daemons.is_alive(machine.daemon)
    return {
        "name": machine.name,
        "identity": machine.identity,
        "mesh": f"{machine.address}:{MESH_PORT}",
        "api": daemons.api_url(machine),
        "pid": machine.daemon.pid if machine.daemon and alive else None,
        "netns": netns_name(state.name, machine.name),
        "nat": machine.nat,
    }


def condition(lab: LabDir, machine: MachineState, inits: dict[str, int]) -> str:
    """``off``, ``no daemon``, ``paused``, ``starting`` or ``running``."""
    if machine.name not in inits:
        return "off"
    if machine.daemon is None or not daemons.is_alive(machine.daemon):
        return "no daemon"
    process = processes.look(machine.daemon.pid)
    if process is not None and process.state == "T":
        return "paused"
    return "running" if daemons.read_ready(lab, machine.name) else "starting"


def table(lab: LabDir, state: LabState) -> str:
    """The lab's machines, one a line, under a heading."""
    inits = processes.inits(lab.path)
    rows = [_COLUMNS, *(_row(lab, state, machine, inits) for machine in state.machines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    return "\n".join(_line(row, widths) for row in rows)


def _row(lab: LabDir, state: LabState, machine: MachineState, inits: dict[str, int]) -> tuple[str, ...]:
    shown = describe_machine(state, machine)
    identity = (machine.identity or "-")[:_IDENTITY_SHOWN]
    pid = "-" if shown["pid"] is None else str(shown["pid"])
    here = (machine.name, condition(lab, machine, inits).replace(" ", "-"), identity)
    mesh = shown["mesh"] + (f"({machine.nat})" if machine.nat else "")
    return (*here, mesh, shown["api"], pid, shown["netns"])


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    return "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def groups(state: LabState) -> str:
    """The partition in force, in words; empty without one."""
    if not state.groups:
        return ""
    sides = " | ".join(",".join(sorted(group)) for group in state.groups)
    rest = sorted(set(state.names) - {name for group in state.groups for name in group})
    return f"partition: {sides}" + (f" ({','.join(rest)} hear all)" if rest else "")
