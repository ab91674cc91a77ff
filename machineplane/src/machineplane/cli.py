"""The command line: `machineplane` runs the daemon; its subcommands look after keys, images, and a fabric for trials."""

import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, TextIO

import click

from machineplane import __version__
from machineplane.access_cli import fabric, identity, kubeconfig
from machineplane.check_cli import check
from machineplane.cli_types import (
    BOOT_TIMEOUT,
    CGROUP_DRIVER,
    DIRECTORY,
    LIBKRUN,
    RUN_DIR,
    STATE_DIR,
    LabelType,
    PeerType,
)
from machineplane.config import (
    AGENT_PORTS,
    API_TLS_PORT,
    RUNTIMES,
    Config,
    ConfigError,
    parse_ports,
    parse_subnet,
)
from machineplane.lab.cli import lab
from machineplane.runtime.images.cli import image

INVITE_MAX = 64 * 1024  # characters; a whole invite is shorter by far
_ADDRESS: Mapping[str, Any] = {"metavar": "IP", "default": "0.0.0.0", "show_default": True}
_UDP_PORT = "UDP port of the mesh; 0: any free one."


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="machineplane")
@click.option(
    "--state-dir", type=DIRECTORY, default=STATE_DIR, show_default=True, help="Keys, images, running pods."
)
@click.option(
    "--run-dir", type=DIRECTORY, default=RUN_DIR, show_default=True, help="Sockets and the ready file."
)
@click.option(
    "--node-name",
    metavar="NAME",
    default="",
    help="Name of this machine.  [default: host name and digits of the identity]",
)
@click.option("--rest-api-host", **_ADDRESS, help="Address of the REST API with TLS and a token.")
@click.option(
    "--rest-api-port",
    type=int,
    metavar="PORT",
    default=3000,
    show_default=True,
    help="Plain HTTP, loopback callers only.",
)
@click.option(
    "--rest-api-tls-port",
    type=int,
    metavar="PORT",
    default=API_TLS_PORT,
    show_default=True,
    help="TLS port of the REST API.",
)
@click.option(
    "--runtime",
    type=click.Choice(RUNTIMES),
    default="krun",
    show_default=True,
    help="Engine of pods that name none: microVMs or containers. Not given and no krun here: crun.",
)
@click.option(
    "--libkrun",
    **LIBKRUN,
    help="The libkrun for microVMs.  [default: one below /usr/local/lib/magik, or that the linker knows]",
)
@click.option(
    "--microvm-boot-timeout",
    **BOOT_TIMEOUT,
    help="How long the trial boot of a microVM may take.",
)
@click.option(
    "--mesh-port", "--korium-port", type=int, metavar="PORT", default=0, show_default=True, help=_UDP_PORT
)
@click.option("--mesh-host", "--korium-host", **_ADDRESS, help="Address of the mesh.")
@click.option(
    "--mesh-connections",
    type=int,
    metavar="N",
    default=64,
    show_default=True,
    help="Connections that this machine holds. In a fabric of more machines it asks the others when it has to.",
)
@click.option(
    "--advertise", multiple=True, metavar="IP:PORT", help="Where others reach the mesh, if they see another."
)
@click.option(
    "--relay/--no-relay",
    default=True,
    show_default=True,
    help="Carry encrypted traffic between members that do not reach each other, if this machine can be reached.",
)
@click.option(
    "--bootstrap-peer",
    type=PeerType(),
    multiple=True,
    help="A machine to join by, <identity_hex>@<ip:port>; may be repeated.",
)
@click.option("--invite", type=click.File(), help="File with an invite into a fabric; `-`: standard input.")
@click.option(
    "--open-fabric", is_flag=True, help="Trial: let any machine with a key in. Says so at every start."
)
@click.option(
    "--registry-config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File with mirrors, authorities and credentials of registries, and limits of the image store.",
)
@click.option("--pod-subnet", metavar="CIDR", help="Addresses of pods.  [default: a /24 by the identity]")
@click.option(
    "--agent-ports",
    metavar="FIRST-LAST",
    default=f"{AGENT_PORTS[0]}-{AGENT_PORTS[-1]}",
    show_default=True,
    help="UDP ports of this machine, one for each pod's agent, by which agents on other machines reach it.",
)
@click.option(
    "--cgroup-parent",
    metavar="PATH",
    default="magik",
    show_default=True,
    help="Control group below which pods are.",
)
@click.option(
    "--cgroup-driver",
    **CGROUP_DRIVER,
    help="Who makes them: the daemon's helpers, or systemd (with cgroup v2), as slices and scopes.",
)
@click.option(
    "--label", "labels", type=LabelType(), multiple=True, help="A label of this machine; may be repeated."
)
@click.option("--allow-privileged", is_flag=True, help="Let pods have privileged containers.")
@click.option(
    "--allow-host-path",
    "allow_host_paths",
    multiple=True,
    metavar="PATH",
    help="Let pods mount what lies below PATH of this machine (hostPath volumes); may be repeated.",
)
@click.option(
    "--allow-sysctl",
    "allow_sysctls",
    multiple=True,
    metavar="NAME",
    help="Let pods set this kernel setting of their own namespaces, beside the safe ones; may be repeated.",
)
@click.option(
    "--dht-refresh-interval-secs",
    type=float,
    default=60,
    show_default=True,
    help="How often this machine tells of itself anew.",
)
@click.option("--ephemeral-keys", is_flag=True, help="Keep no key on disk: a new machine at each start.")
@click.option("--signing-ephemeral", is_flag=True, help="Keep no signing key on disk: as above.")
@click.option("--kem-ephemeral", is_flag=True, help="Keep no sealing key on disk.")
@click.option(
    "--log-format",
    type=click.Choice(["auto", "console", "json"]),
    default="auto",
    show_default=True,
    help="auto: for people on a terminal, else JSON lines.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="The least grave that is logged.",
)
@click.pass_context
def main(context: click.Context, /, **options: Any) -> None:
    """A machine of a Magik fabric. Without a command: run its daemon."""
    if context.invoked_subcommand is None:
        sys.exit(run_daemon(_config(context, options), options["log_format"], options["log_level"]))


for _command in (check, fabric, identity, image, kubeconfig, lab):
    main.add_command(_command)


def _config(context: click.Context, options: dict[str, Any]) -> Config:
    given = context.get_parameter_source("runtime")
    subnet, invite = options["pod_subnet"], options["invite"]
    try:
        return Config(
            **{k: options[k] for k in _AS_IS},
            advertise=tuple(options["advertise"]),
            bootstrap_peers=tuple(options["bootstrap_peer"]),
            invite=_read_invite(invite) if invite else None,
            runtime_given=given is not click.core.ParameterSource.DEFAULT,
            pod_subnet=parse_subnet(subnet) if subnet else None,
            agent_ports=parse_ports(options["agent_ports"]),
            dht_refresh_interval=options["dht_refresh_interval_secs"],
            labels=tuple(options["labels"]),
        )
    except ConfigError as error:
        raise click.UsageError(str(error)) from error


def _read_invite(file: TextIO) -> str:
    try:
        return file.read(INVITE_MAX)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--invite {file.name}: cannot be read: {error}") from error


_AS_IS = (
    "state_dir",
    "run_dir",
    "node_name",
    "rest_api_host",
    "rest_api_port",
    "rest_api_tls_port",
    "runtime",
    "libkrun",
    "microvm_boot_timeout",
    "registry_config",
    "mesh_port",
    "mesh_host",
    "mesh_connections",
    "relay",
    "open_fabric",
    "cgroup_parent",
    "cgroup_driver",
    "ephemeral_keys",
    "signing_ephemeral",
    "kem_ephemeral",
    "allow_privileged",
    "allow_host_paths",
    "allow_sysctls",
)


def _leave(*_: object) -> NoReturn:
    """End here and now. An object that this finds half made (netlink sockets have event loops) has nobody to tell of it."""
    sys.unraisablehook = lambda _: None
    sys.exit(0)


def run_daemon(config: Config, log_format: str, log_level: str) -> int:
    """Run until SIGTERM or SIGINT, and give the exit status.

    From here on these signals end the program with status 0, be it still loading; `start.run` takes them over.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    signal.signal(signal.SIGHUP, lambda *_: None)  # what it asks to read again is read at the start anyway

    from machineplane.app import DaemonError  # only now: no other command needs all of it
    from machineplane.logs import configure
    from machineplane.start import run

    configure(log_format, log_level)
    try:
        return run(config)
    except (ConfigError, DaemonError) as error:
        click.echo(f"machineplane: {error}", err=True)
        return 1
