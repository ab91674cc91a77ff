"""`machineplane check`: what this machine can do, and what to install."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from machineplane.cli_types import BOOT_TIMEOUT, CGROUP_DRIVER, DIRECTORY, LIBKRUN, RUN_DIR, STATE_DIR
from machineplane.config import API_TLS_PORT

if TYPE_CHECKING:
    from machineplane.hostcheck import Finding

_MARKS = {"ok": "ok", "warn": "WARN", "missing": "MISSING"}


@click.command()
@click.option("--state-dir", type=DIRECTORY, default=STATE_DIR, show_default=True, help="The daemon's.")
@click.option("--run-dir", type=DIRECTORY, default=RUN_DIR, show_default=True, help="The daemon's.")
@click.option(
    "--rest-api-port", type=int, metavar="PORT", default=3000, show_default=True, help="The daemon's."
)
@click.option(
    "--rest-api-tls-port",
    type=int,
    metavar="PORT",
    default=API_TLS_PORT,
    show_default=True,
    help="The daemon's.",
)
@click.option("--mesh-port", type=int, metavar="PORT", default=0, show_default=True, help="The daemon's.")
@click.option(
    "--libkrun",
    **LIBKRUN,
    help="The daemon's.",
)
@click.option(
    "--microvm-boot-timeout",
    **BOOT_TIMEOUT,
    help="The daemon's.",
)
@click.option(
    "--cgroup-driver",
    **CGROUP_DRIVER,
    help="The daemon's.",
)
@click.option(
    "--again", is_flag=True, help="Boot a microVM even where the answer of an earlier boot is known."
)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def check(
    *,
    state_dir: Path,
    run_dir: Path,
    rest_api_port: int,
    rest_api_tls_port: int,
    mesh_port: int,
    libkrun: Path | None,
    microvm_boot_timeout: float,
    cgroup_driver: str,
    again: bool,
    as_json: bool,
) -> None:
    """Say what this machine can do for pods, and what to install. Status 1 where no pod could run.

    Nothing is changed; a helper is started and ended again, and a microVM once after each start of the machine, or with
    --again. A daemon that runs goes by what it knew when it started.
    """
    from machineplane import hostcheck  # only now: no other command needs all of it
    from machineplane.enginecheck import look_at_engines

    report, engines = look_at_engines(
        state_dir, libkrun, again=again, cgroup_driver=cgroup_driver, timeout=microvm_boot_timeout
    )
    ports = (
        (rest_api_port, False, "plain HTTP"),
        (rest_api_tls_port, False, "the API"),
        (mesh_port, True, "the mesh"),
    )
    serving = (run_dir / "machineplane.json").exists()
    found = hostcheck.everything(state_dir, report=report, engines=engines, ports=ports, serving=serving)
    if as_json:
        items = [{"name": f.name, "state": f.state, "detail": f.detail, "advice": f.advice} for f in found]
        click.echo(json.dumps({"runs_pods": _runs(found), "findings": items}, indent=1))
    else:
        _table(found)
    sys.exit(0 if _runs(found) else 1)


def _runs(found: "list[Finding]") -> bool:
    return all(finding.state != "missing" for finding in found)


def _table(found: "list[Finding]") -> None:
    width = max(len(finding.name) for finding in found)
    for finding in found:
        click.echo(f"{finding.name:{width}}  {_MARKS[finding.state]:7}  {finding.detail}")
        if finding.advice and finding.state != "ok":
            click.echo(f"{'':{width}}           → {finding.advice}")
    click.echo("pods can run here" if _runs(found) else "no pods can run here: see MISSING")
