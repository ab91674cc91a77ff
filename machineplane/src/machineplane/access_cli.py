"""`machineplane fabric …`, `identity`, `kubeconfig`: who may be in a fabric, and who may use its API."""

import json
import os
import time
from pathlib import Path

import click

from machineplane.cli_types import DIRECTORY, FILE, RUN_DIR, STATE_DIR, Duration, IdType, PeerType, RolesType
from machineplane.config import API_TLS_PORT
from machineplane.kubeapi.auth import kubeconfig as render_kubeconfig
from machineplane.revoke_cli import apply, revoke
from magik_proto.credentials import ALL_ROLES
from magik_proto.identity import BootstrapPeer, Identity, PeerId
from magik_proto.invites import RootKey


@click.group()
def fabric() -> None:
    """Make a fabric's root key and invites into it, and revoke them."""


@fabric.command()
@click.option("--out", type=FILE, required=True, help="Where to put the root key.")
def init(out: Path) -> None:
    """Make the root key of a new fabric. Keep the file offline: whoever has it can let machines in."""
    with RootKey.generate() as root:
        try:
            descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "wb") as file:
                file.write(root.seed().hex().encode() + b"\n")
        except FileExistsError as error:
            raise click.ClickException(f"{out} exists already: a root key is never overwritten") from error
        except OSError as error:
            raise click.ClickException(f"{out}: {error.strerror}") from error
        click.echo(f"{root.peer_id}")


@fabric.command()
@click.option("--root", "root_file", type=FILE, required=True, help="The root key that `fabric init` made.")
@click.option(
    "--roles",
    type=RolesType(),
    default=",".join(sorted(ALL_ROLES)),
    show_default=True,
    help="What the machine may do.",
)
@click.option(
    "--expires", type=Duration(), default="1h", show_default=True, help="How long the invite can be used."
)
@click.option(
    "--bootstrap-peer", type=PeerType(), multiple=True, help="Machines to join by; travel in the invite."
)
def invite(
    root_file: Path, roles: frozenset[str], expires: int, bootstrap_peer: tuple[BootstrapPeer, ...]
) -> None:
    """Print an invite: one line that lets machines join until it expires. Treat it like a password."""
    now_ms = time.time_ns() // 1_000_000
    seed = _seed(root_file, "`machineplane fabric init` makes one")
    with (
        RootKey.from_seed(seed) as root,
        root.invite(now_ms, roles=roles, life_ms=expires, bootstrap=bootstrap_peer) as made,
    ):
        click.echo(made.text())
        click.echo(
            f"invite {made.id}: keep this id, `machineplane fabric revoke --invite` wants it", err=True
        )


@fabric.command("revoke")
@click.option("--root", "root_file", type=FILE, required=True, help="The root key that `fabric init` made.")
@click.option(
    "--list",
    "list_file",
    type=FILE,
    required=True,
    help="The list: all that was ever revoked. Added to, or made.",
)
@click.option("--peer", "peers", type=IdType(), multiple=True, help="A machine's identity; may be repeated.")
@click.option(
    "--invite",
    "invites",
    type=IdType(),
    multiple=True,
    help="An invite's id, with all that it let in; may be repeated.",
)
def revoke_command(
    root_file: Path, list_file: Path, peers: tuple[PeerId, ...], invites: tuple[PeerId, ...]
) -> None:
    """Add machines, or invites with all that joined by them, to the fabric's list of revocations.

    Keep the list with the root key: it is complete, and stands alone. `machineplane fabric apply` puts it in force.
    """
    if not peers and not invites:
        raise click.UsageError("name a machine (--peer ID) or an invite (--invite ID) to revoke")
    with RootKey.from_seed(_seed(root_file, "`machineplane fabric init` makes one")) as root:
        made = revoke(root, list_file, peers, invites)
    click.echo(f"serial {made.serial}: {len(made.peers)} machines, {len(made.invites)} invites")


fabric.add_command(apply)


def _seed(path: Path, where_from: str) -> bytes:
    """The 32 bytes that a key file holds."""
    try:
        seed = bytes.fromhex(path.read_text().strip())
    except OSError as error:
        raise click.ClickException(f"{path}: {error.strerror}: {where_from}") from error
    except ValueError:
        seed = b""
    if len(seed) != 32:
        raise click.ClickException(f"{path} is not a key: {where_from}")
    return seed


@click.command()
@click.option("--state-dir", type=DIRECTORY, default=STATE_DIR, show_default=True)
def identity(state_dir: Path) -> None:
    """Print this machine's identity, as --bootstrap-peer of others wants it."""
    seed = _seed(state_dir / "keys" / "identity", "the daemon makes it at its first start")
    with Identity.from_seed(seed) as own:
        click.echo(str(own.peer_id))


@click.command()
@click.option("--state-dir", type=DIRECTORY, default=STATE_DIR, show_default=True)
@click.option("--run-dir", type=DIRECTORY, default=RUN_DIR, show_default=True)
@click.option(
    "--server", default=None, metavar="URL", help="The API's address as the reader of the file sees it."
)
@click.option(
    "--tls-name",
    default=None,
    metavar="NAME",
    help="The certificate's name to check; localhost is in all of them.",
)
@click.option("--name", default="magik", show_default=True, help="Name of the cluster, user and context.")
def kubeconfig(state_dir: Path, run_dir: Path, server: str | None, tls_name: str | None, name: str) -> None:
    """Print a kubeconfig for this machine's API. It contains the token: treat it like a password."""
    token, ca = (_api_file(state_dir / "api" / file) for file in ("token", "ca.crt"))
    url = server or _server_of(run_dir / "machineplane.json")
    words = token.decode("ascii", "replace").strip()
    click.echo(render_kubeconfig(url, ca, words, name, tls_name=tls_name), nl=False)


def _api_file(path: Path) -> bytes:
    """Read only: making them is the daemon's, which knows the names that belong into its certificate."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise click.ClickException(
            f"{path} is not there: the daemon makes it at its first start; give its --state-dir"
        ) from error
    except OSError as error:
        raise click.ClickException(f"{path}: {error.strerror}") from error


def _server_of(ready_file: Path) -> str:
    """The URL that the running daemon says; else that of a daemon on this machine with its default port."""
    try:
        return str(json.loads(ready_file.read_text())["api"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"https://127.0.0.1:{API_TLS_PORT}"
