"""``machineplane lab …``: the commands of a lab. Each takes ``--name`` for a lab other than ``lab``."""

import functools
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click

from machineplane.lab import daemons, enter, fabric, machines, processes, view
from machineplane.lab.errors import LabError, MachineOff
from machineplane.lab.plan import check_count, check_name, machine_names, parse_nats
from machineplane.lab.state import LABS, LabDir, LabState, lab_names
from machineplane.linux.nft import NftError

DEFAULT_NAME = "lab"
# What a machine does not see of this computer, as it has its own there.
_HIDDEN = (Path("/run"), Path("/var/lib/magik"), LABS)


def _say(text: str) -> None:
    click.echo(text, err=True)


def _fail(message: str) -> NoReturn:
    raise click.ClickException(message)


def _command(
    *decorators: Callable[..., Any], group: click.Group | None = None
) -> Callable[[Callable[..., Any]], click.Command]:
    """A command of ``group`` (the lab's own by default) with ``--name``, whose errors are one line and status
    1.
    """

    def wrap(function: Callable[..., Any]) -> click.Command:
        @functools.wraps(function)
        def guarded(**values: Any) -> None:
            try:
                fabric.check_computer()
                function(**values)
            except (LabError, NftError) as error:
                _fail(str(error))
            except OSError as error:
                _fail(str(error))

        wrapped: Any = guarded
        for decorator in reversed(decorators):
            wrapped = decorator(wrapped)
        option = click.option("--name", default=DEFAULT_NAME, show_default=True, help="Which lab.")
        return (group or lab).command(function.__name__.removeprefix("do_"))(option(wrapped))

    return wrap


_machine = click.argument("machine", metavar="M")
_timeout = click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True), default=fabric.READY_LIMIT, show_default=True,
    help="Seconds that one daemon may take until it serves.",
)  # fmt: skip


@click.group()
def lab() -> None:
    """A fabric of several machines on this one computer, for trying out and for tests."""


@_command(
    click.option("--machines", "count", type=int, default=3, show_default=True, help="How many machines."),
    click.option("--json", "as_json", is_flag=True, help="Print one object that tells all."),
    click.option(
        "--nat", metavar="M,M…", default="", help="Machines that are behind a router each, out of reach."
    ),
    click.option(
        "--nat-symmetric",
        metavar="M,M…",
        default="",
        help="Likewise, with another port for each destination.",
    ),
    _timeout,
    click.option("--program", hidden=True, help="What to start in place of the daemon."),
    click.argument("options", nargs=-1, metavar="[-- DAEMON OPTIONS…]"),
)
def do_up(
    name: str,
    count: int,
    as_json: bool,
    nat: str,
    nat_symmetric: str,
    timeout: float,
    program: str | None,
    options: tuple[str, ...],
) -> None:
    """Make a lab and wait until its machines serve. Options after `--` go to each daemon."""
    words = tuple(shlex.split(program)) if program else daemons.default_program()
    nats = parse_nats(nat, nat_symmetric, machine_names(check_count(count)))
    state = fabric.up(fabric.Wanted(name, count, words, options, timeout, nats), _say)
    if as_json:
        click.echo(json.dumps(view.describe(state)))
    else:
        _show(LabDir.of(name), state)


def _show(directory: LabDir, state: LabState) -> None:
    click.echo(view.table(directory, state))
    if parted := view.groups(state):
        click.echo(parted)


@_command()
def do_down(name: str) -> None:
    """Take the lab down: nothing of it is left. There being none is fine."""
    _say(f"lab {name}: {'gone' if fabric.down(name, _say) else 'there was none'}")


@_command(click.option("--json", "as_json", is_flag=True, help="Print one object, as `lab up --json` does."))
def do_ls(name: str, as_json: bool) -> None:
    """Show the lab's machines."""
    directory = LabDir.of(check_name(name))
    others = [other for other in lab_names() if other != name]
    if not directory.path.exists() and others:
        _fail(f"there is no lab named {name}; there are: {', '.join(others)}")
    state = directory.load()
    if as_json:
        click.echo(json.dumps(view.describe(state)))
    else:
        _show(directory, state)


def _inside(name: str, machine: str) -> tuple[LabDir, LabState, int]:
    directory = LabDir.of(check_name(name))
    state = directory.load()
    state.machine(machine)
    return directory, state, machines.init_of(directory, machine)


@_command(_machine, click.argument("words", nargs=-1, required=True, metavar="-- CMD…"))
def do_exec(name: str, machine: str, words: tuple[str, ...]) -> None:
    """Run CMD inside machine M, with this terminal; its status is the command's."""
    _, _, init = _inside(name, machine)
    sys.exit(enter.run(init, words))


@_command(_machine)
def do_kill(name: str, machine: str) -> None:
    """End machine M with its daemon and pods at once, as when its power fails. Its disk stays."""
    fabric.kill(LabDir.of(check_name(name)), machine, _say)


@_command(_machine, _timeout)
def do_start(name: str, machine: str, timeout: float) -> None:
    """Switch machine M on, or start its daemon again where only that has ended."""
    fabric.start(LabDir.of(check_name(name)), machine, timeout, _say)


@_command(_machine)
def do_pause(name: str, machine: str) -> None:
    """Stop every process of machine M where it is (SIGSTOP)."""
    _, _, init = _inside(name, machine)
    _say(f"{machine}: {processes.stop_all(init)} processes stopped")


@_command(_machine)
def do_resume(name: str, machine: str) -> None:
    """Let machine M go on after `pause`."""
    _, _, init = _inside(name, machine)
    _say(f"{machine}: {processes.continue_all(init)} processes go on")


@_command(click.argument("groups", nargs=-1, required=True, metavar="A,B C…"))
def do_partition(name: str, groups: tuple[str, ...]) -> None:
    """Part the machines: what goes between groups is lost without a word, both ways.

    `partition m0,m1 m2` parts m2 from m0 and m1. One group alone is parted from all other machines. With
    several, a machine that is in none goes on hearing all and being heard. A new partition takes the place of
    the one before. This computer reaches all machines throughout.
    """
    _say(view.groups(fabric.partition(LabDir.of(check_name(name)), groups, _say)))


@_command()
def do_heal(name: str) -> None:
    """End the partition."""
    fabric.partition(LabDir.of(check_name(name)), (), _say)


@_command(click.argument("machine", metavar="[M]", required=False))
def do_kubeconfig(name: str, machine: str | None) -> None:
    """Print a kubeconfig for the API of machine M (the first that is on)."""
    directory = LabDir.of(check_name(name))
    state = directory.load()
    running = processes.inits(directory.path)
    chosen = machine or next((each for each in state.names if each in running), state.names[0])
    server = daemons.api_url(state.machine(chosen))
    # A router's address is not in its machine's certificate.
    checked = ("--tls-name", "localhost") if state.machine(chosen).nat else ()
    arguments = ("kubeconfig", "--state-dir", daemons.STATE_DIR, *checked, "--server", server)
    _, _, init = _inside(name, chosen)
    sys.exit(enter.run(init, (*state.program, *arguments)))


@lab.group()
def image() -> None:
    """The machines' images."""


def _import(init: int, words: tuple[str, ...]) -> int:
    """Run ``words`` inside as a program of its own, for :func:`enter.run` can be used once in a process."""
    command = [sys.executable, "-P", "-m", "machineplane.lab.enter", str(init), "--", *words]
    return subprocess.run(command, check=False).returncode


@_command(
    click.argument("file", metavar="FILE", type=click.Path(exists=True, path_type=Path)),
    click.option("--ref", help="The name that the image gets, instead of the one in FILE."),
    group=image,
)
def do_import(name: str, file: Path, ref: str | None) -> None:
    """Import the image archive or layout FILE into every machine that is on."""
    path = file.resolve()
    if any(path.is_relative_to(hidden) for hidden in _HIDDEN):
        raise LabError(
            f"machines do not see {path}, having their own {path.parents[-2]}: copy it elsewhere first"
        )
    directory = LabDir.of(check_name(name))
    state = directory.load()
    running = processes.inits(directory.path)
    if not running:
        raise MachineOff("m0")
    words = (*state.program, "image", "import", str(path), *(("--ref", ref) if ref else ()))
    for machine in (each for each in state.names if each in running):
        with fabric.telling(f"{machine}: importing", _say):
            if code := _import(running[machine], words):
                raise LabError(f"{machine}: the import ended with status {code}, see above")
