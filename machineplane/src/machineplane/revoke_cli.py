"""`machineplane fabric revoke` and `apply`: put machines and invites out of a fabric."""

import json
import os
import signal
import time
from pathlib import Path

import click

from machineplane.cli_types import DIRECTORY, FILE, RUN_DIR, STATE_DIR
from machineplane.keys import KeyFileError, read_revocations, write_revocations
from machineplane.linux.files import replace_file
from magik_proto.credentials import Revocations
from magik_proto.errors import ProtocolError
from magik_proto.identity import PeerId
from magik_proto.invites import RootKey
from magik_proto.membership import MembershipError, MembershipPolicy
from magik_proto.wire import decode_as, encode_message


def revoke(
    root: RootKey, list_file: Path, peers: tuple[PeerId, ...], invites: tuple[PeerId, ...]
) -> Revocations:
    """Add to the list in ``list_file``, made if it is not there; raises click.ClickException.

    Serials are seconds since the epoch, or one above the last, so that a list begun anew is not taken for an old one.
    """
    old = _read_list(list_file) if list_file.exists() else None
    if old is not None:
        _check(old, root.peer_id, list_file)
    now_ms = time.time_ns() // 1_000_000
    serial = max(now_ms // 1000, old.serial + 1 if old else 1)
    try:
        made = root.revoke(
            serial,
            now_ms,
            peers=(*(old.peers if old else ()), *peers),
            invites=(*(old.invites if old else ()), *invites),
        )
        replace_file(list_file, encode_message(made), mode=0o644)
    except OSError as error:
        raise click.ClickException(f"{list_file}: {error.strerror}") from error
    except ProtocolError as error:
        raise click.ClickException(f"the list has no room for these: {error}: begin a new fabric") from error
    return made


def _read_list(path: Path) -> Revocations:
    try:
        return decode_as(Revocations, path.read_bytes())
    except OSError as error:
        raise click.ClickException(f"{path}: {error.strerror}") from error
    except ProtocolError as error:
        raise click.ClickException(
            f"{path} is no list of revocations ({error}): give the file that `machineplane fabric revoke` wrote"
        ) from error


def _check(revocations: Revocations, root: PeerId, path: Path) -> None:
    try:
        MembershipPolicy(root).revoke(revocations)
    except MembershipError as error:
        raise click.ClickException(f"{path}: {error}: it is not a list of this fabric's root") from error


@click.command()
@click.argument("list_file", type=FILE, metavar="LIST")
@click.option("--state-dir", type=DIRECTORY, default=STATE_DIR, show_default=True)
@click.option("--run-dir", type=DIRECTORY, default=RUN_DIR, show_default=True)
def apply(list_file: Path, state_dir: Path, run_dir: Path) -> None:
    """Put a list of revocations in force in the fabric of this machine; one machine is enough.

    The list goes beside the membership, and the daemon, if it runs, is told to read it (SIGHUP). All other machines get it
    from this one, those that are away when they come back.
    """
    made, keys = _read_list(list_file), state_dir / "keys"
    try:
        _check(made, PeerId.parse((keys / "fabric").read_text().strip()), list_file)
        old = read_revocations(keys)
        if old is not None and old.root == made.root and old.serial > made.serial:
            raise click.ClickException(
                f"{list_file} has the serial {made.serial}, this machine has {old.serial}: revoke with the newest list, "
                f"which is {keys / 'revocations'}"
            )
        write_revocations(keys, made)
    except (OSError, ProtocolError) as error:
        raise click.ClickException(
            f"{keys / 'fabric'}: {error}: this machine is in no fabric with a root; give its --state-dir"
        ) from error
    except KeyFileError as error:
        raise click.ClickException(str(error)) from error
    told = _tell_daemon(run_dir / "machineplane.json")
    click.echo(
        f"serial {made.serial}: "
        + ("in force" if told else "kept; the daemon does not run, and takes it at its start")
    )


def _tell_daemon(ready_file: Path) -> bool:
    """SIGHUP to the daemon that wrote this file; False where it does not run."""
    try:
        pid = int(json.loads(ready_file.read_text())["pid"])
        # A daemon that was killed leaves its file behind, and its number may be another's by now.
        if b"machineplane" not in Path(f"/proc/{pid}/cmdline").read_bytes():
            return False
        os.kill(pid, signal.SIGHUP)
    except (FileNotFoundError, ProcessLookupError):
        return False
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise click.ClickException(f"{ready_file}: {error}: send SIGHUP to the daemon yourself") from error
    return True
