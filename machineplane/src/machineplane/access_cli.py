"""`machineplane fabric …`, `identity`, `kubeconfig`: who may be in a fabric, and who may use its API."""

import json
import time
from pathlib import Path

import click

from machineplane.cli_types import PeerType
from machineplane.config import API_TLS_PORT
from machineplane.kubeapi.auth import kubeconfig as render_kubeconfig
from machineplane.kubeapi.auth import load_credentials
from machineplane.linux.files import replace_file
from magik_proto.credentials import ALL_ROLES
from magik_proto.errors import ProtocolError
from magik_proto.identity import BootstrapPeer, Identity
from magik_proto.invites import RootKey

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Duration(click.ParamType[int]):
    """``30m``, ``1h``, ``7d``: gives milliseconds."""

    name = "DURATION"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        text = str(value)
        if not text[:-1].isdigit() or text[-1:] not in _UNITS or not int(text[:-1]):
            self.fail(f"{text!r}: expected a number with s, m, h or d, like 30m", param, ctx)
        return int(text[:-1]) * _UNITS[text[-1]] * 1000


@click.group()
def fabric() -> None:
    """Make a fabric's root key, and invites into it."""


@fabric.command()
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="Where to put the root key."
)
def init(out: Path) -> None:
    """Make the root key of a new fabric. Keep the file offline: whoever has it can let machines in."""
    if out.exists():
        raise click.ClickException(f"{out} exists already: a root key is never overwritten")
    with RootKey.generate() as root:
        try:
            replace_file(out, root.seed().hex().encode() + b"\n")
        except OSError as error:
            raise click.ClickException(f"{out}: {error.strerror}") from error
        click.echo(f"{root.peer_id}")


@fabric.command()
@click.option(
    "--root", "root_file", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True
)
@click.option(
    "--roles", default=",".join(sorted(ALL_ROLES)), show_default=True, help="What the machine may do."
)
@click.option(
    "--expires", type=Duration(), default="1h", show_default=True, help="How long the invite can be used."
)
@click.option(
    "--bootstrap-peer", type=PeerType(), multiple=True, help="Machines to join by; travel in the invite."
)
def invite(root_file: Path, roles: str, expires: int, bootstrap_peer: tuple[BootstrapPeer, ...]) -> None:
    """Print an invite: one line that lets machines join until it expires. Treat it like a password."""
    try:
        with RootKey.from_seed(bytes.fromhex(root_file.read_text().strip())) as root:
            made = root.invite(
                time.time_ns() // 1_000_000,
                roles=frozenset(r.strip() for r in roles.split(",")),
                life_ms=expires,
                bootstrap=bootstrap_peer,
            )
    except (ProtocolError, ValueError) as error:
        raise click.ClickException(f"{root_file}: {error}") from error
    click.echo(made.text())


@click.command()
@click.option("--state-dir", type=click.Path(file_okay=False, path_type=Path), default=Path("/var/lib/magik"))
def identity(state_dir: Path) -> None:
    """Print this machine's identity, as --bootstrap-peer of others wants it."""
    path = state_dir / "keys" / "identity"
    try:
        click.echo(str(Identity.from_seed(bytes.fromhex(path.read_text().strip())).peer_id))
    except (OSError, ValueError, ProtocolError) as error:
        raise click.ClickException(f"{path}: {error}: the daemon makes it at its first start") from error


@click.command()
@click.option("--state-dir", type=click.Path(file_okay=False, path_type=Path), default=Path("/var/lib/magik"))
@click.option("--run-dir", type=click.Path(file_okay=False, path_type=Path), default=Path("/run/magik"))
@click.option(
    "--server", default=None, metavar="URL", help="The API's address as the reader of the file sees it."
)
@click.option("--name", default="magik", show_default=True, help="Name of the cluster, user and context.")
def kubeconfig(state_dir: Path, run_dir: Path, server: str | None, name: str) -> None:
    """Print a kubeconfig for this machine's API. It contains the token: treat it like a password."""
    if not (state_dir / "api" / "token").exists():
        raise click.ClickException(
            f"{state_dir}/api: no token there yet: the daemon makes it at its first start"
        )
    try:
        credentials = load_credentials(state_dir / "api")
    except (OSError, ValueError) as error:
        raise click.ClickException(f"{state_dir}/api: {error}") from error
    url = server or _server_of(run_dir / "machineplane.json")
    click.echo(render_kubeconfig(url, credentials.ca_pem, credentials.token, name), nl=False)


def _server_of(ready_file: Path) -> str:
    """The URL that the running daemon says; else that of a daemon on this machine with its default port."""
    try:
        return str(json.loads(ready_file.read_text())["api"])
    except (OSError, ValueError, KeyError):
        return f"https://127.0.0.1:{API_TLS_PORT}"
