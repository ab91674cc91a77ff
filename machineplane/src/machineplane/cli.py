"""The command line: `machineplane` runs the daemon; its subcommands look after keys, images, and a fabric for trials."""

import sys
from pathlib import Path
from typing import Any

import click

from machineplane import __version__
from machineplane.access_cli import fabric, identity, kubeconfig
from machineplane.cli_types import LabelType, PeerType
from machineplane.config import API_TLS_PORT, Config, ConfigError, parse_subnet
from machineplane.lab.cli import lab
from machineplane.runtime.images.cli import image

STATE_DIR = Path("/var/lib/magik")
RUN_DIR = Path("/run/magik")
_DIRECTORY = click.Path(file_okay=False, path_type=Path)


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="machineplane")
@click.option(
    "--state-dir", type=_DIRECTORY, default=STATE_DIR, show_default=True, help="Keys, images, running pods."
)
@click.option(
    "--run-dir", type=_DIRECTORY, default=RUN_DIR, show_default=True, help="Sockets and the ready file."
)
@click.option(
    "--node-name", default="", help="Name of this machine.  [default: host name and digits of the identity]"
)
@click.option(
    "--rest-api-host", default="0.0.0.0", show_default=True, help="Address of the REST API (TLS, token)."
)
@click.option(
    "--rest-api-port",
    type=int,
    default=3000,
    show_default=True,
    help="Plain HTTP, for loopback callers only.",
)
@click.option(
    "--rest-api-tls-port", type=int, default=API_TLS_PORT, show_default=True, help="TLS port of the REST API."
)
@click.option(
    "--runtime",
    type=click.Choice(["krun", "crun"]),
    default="krun",
    show_default=True,
    help="Default engine.",
)
@click.option(
    "--mesh-port",
    "--korium-port",
    type=int,
    default=0,
    show_default=True,
    help="UDP port of the mesh; 0: any.",
)
@click.option(
    "--mesh-host", "--korium-host", default="0.0.0.0", show_default=True, help="Address of the mesh."
)
@click.option(
    "--advertise", multiple=True, metavar="IP:PORT", help="Where others reach the mesh, if they see another."
)
@click.option(
    "--bootstrap-peer", type=PeerType(), multiple=True, help="A machine to join by; may be repeated."
)
@click.option(
    "--invite",
    type=click.File(),
    default=None,
    help="File with an invite into a fabric; `-`: standard input.",
)
@click.option(
    "--open-fabric", is_flag=True, help="Trial: let any machine with a key in. Says so at every start."
)
@click.option(
    "--pod-subnet", default=None, metavar="CIDR", help="Addresses of pods.  [default: a /24 by the identity]"
)
@click.option(
    "--cgroup-parent", default="magik", show_default=True, help="Control group below which pods are."
)
@click.option(
    "--label", "labels", type=LabelType(), multiple=True, help="A label of this machine; may be repeated."
)
@click.option("--dht-refresh-interval-secs", type=click.FloatRange(1), default=60, show_default=True)
@click.option("--ephemeral-keys", is_flag=True, help="Keep no key on disk: a new machine at each start.")
@click.option("--signing-ephemeral", is_flag=True, help="Keep no signing key on disk.")
@click.option("--kem-ephemeral", is_flag=True, help="Keep no sealing key on disk.")
@click.option(
    "--log-format", type=click.Choice(["auto", "console", "json"]), default="auto", show_default=True
)
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
@click.pass_context
def main(context: click.Context, /, **options: Any) -> None:
    """A machine of a Magik fabric. Without a command: run its daemon."""
    if context.invoked_subcommand is None:
        sys.exit(run_daemon(_config(context, options), options["log_format"], options["log_level"]))


for _command in (fabric, identity, image, kubeconfig, lab):
    main.add_command(_command)


def _config(context: click.Context, options: dict[str, Any]) -> Config:
    given = context.get_parameter_source("runtime")
    subnet, invite = options["pod_subnet"], options["invite"]
    try:
        return Config(
            **{k: options[k] for k in _AS_IS},
            advertise=tuple(options["advertise"]),
            bootstrap_peers=tuple(options["bootstrap_peer"]),
            invite=invite.read() if invite else None,
            runtime_given=given is not click.core.ParameterSource.DEFAULT,
            pod_subnet=parse_subnet(subnet) if subnet else None,
            dht_refresh_interval=options["dht_refresh_interval_secs"],
            labels=tuple(options["labels"]),
        )
    except ConfigError as error:
        raise click.UsageError(str(error)) from error


_AS_IS = (
    "state_dir",
    "run_dir",
    "node_name",
    "rest_api_host",
    "rest_api_port",
    "rest_api_tls_port",
    "runtime",
    "mesh_port",
    "mesh_host",
    "open_fabric",
    "cgroup_parent",
    "ephemeral_keys",
    "signing_ephemeral",
    "kem_ephemeral",
)


def run_daemon(config: Config, log_format: str, log_level: str) -> int:
    """Run until a signal; the exit status. The helper is started first: it must come from a process without threads."""
    from machineplane.app import DaemonError, run
    from machineplane.logs import configure

    configure(log_format, log_level)
    try:
        return run(config)
    except (ConfigError, DaemonError) as error:
        click.echo(f"machineplane: {error}", err=True)
        return 1
