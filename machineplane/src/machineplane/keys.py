"""What a machine keeps on disk of itself: its keys and its membership. All files are 0600, written atomically.

<state-dir>/keys/identity   Ed25519 seed, hex        <state-dir>/keys/member   encoded membership
<state-dir>/keys/sealing    X25519 seed, hex         <state-dir>/keys/fabric   the fabric's root, hex
<state-dir>/keys/fabric-root   only where this machine founded the fabric: to be moved away by its operator
"""

from pathlib import Path
from typing import TypeVar

import structlog
from attrs import evolve, frozen

from machineplane.config import Config, ConfigError
from machineplane.linux.files import replace_file
from magik_proto.errors import ProtocolError
from magik_proto.identity import BootstrapPeer, Identity, PeerId, SealingKey
from magik_proto.invites import Invite, RootKey
from magik_proto.membership import MembershipPolicy

K = TypeVar("K", Identity, SealingKey)


class KeyFileError(Exception):
    """A key file cannot be read or written; the text names the file and what to do."""


@frozen
class Credentials:
    """Who this machine is and by what right it is in its fabric. ``member`` is None in an open fabric."""

    identity: Identity
    sealing_key: SealingKey
    policy: MembershipPolicy
    member: bytes | None
    bootstrap_peers: tuple[BootstrapPeer, ...]


def load_credentials(config: Config, now_ms: int) -> Credentials:
    """Keys from the state directory, made where they are not there yet; and the membership, by the order of `_membership`.

    Raises ConfigError where the machine has no right to be in a fabric, KeyFileError where a file is unreadable.
    """
    keys = config.state_dir / "keys"
    ephemeral = config.ephemeral_keys
    identity = _key(Identity, None if ephemeral or config.signing_ephemeral else keys / "identity")
    sealing = _key(SealingKey, None if ephemeral or config.kem_ephemeral else keys / "sealing")
    found = Credentials(identity, sealing, MembershipPolicy(None), None, config.bootstrap_peers)
    return _membership(config, keys, found, now_ms)


def _key(cls: type[K], path: Path | None) -> K:
    if path is None:
        return cls.generate()
    try:
        if not path.exists():
            _make_directory(path.parent)
            replace_file(path, cls.generate().seed().hex().encode() + b"\n")
        return cls.from_seed(bytes.fromhex(path.read_text().strip()))
    except OSError as error:
        raise KeyFileError(
            f"{path}: {error.strerror}: give --state-dir a directory that this user may write"
        ) from error
    except (ValueError, ProtocolError) as error:
        raise KeyFileError(
            f"{path} is not a key: restore it, or remove it to become a new machine"
        ) from error


def _membership(config: Config, keys: Path, own: Credentials, now_ms: int) -> Credentials:
    """An open fabric if asked for; else the invite; else the membership on disk; else, with nobody to join, a new fabric."""
    if config.open_fabric:
        return own
    if config.invite is not None:
        return _accept(config, keys, own, _parse_invite(config.invite), now_ms)
    if config.keeps_identity and (keys / "member").exists():
        root = PeerId.parse((keys / "fabric").read_text().strip())
        return evolve(own, policy=MembershipPolicy(root), member=(keys / "member").read_bytes())
    if config.bootstrap_peers:
        raise ConfigError(
            "this machine is not a member of any fabric: pass --invite FILE with an invite made by "
            "`machineplane fabric invite`, or --open-fabric to join a trial fabric that is open to all"
        )
    return _found(config, keys, own, now_ms)


def _parse_invite(text: str) -> Invite:
    try:
        return Invite.parse(text.strip())
    except ProtocolError as error:
        raise ConfigError(f"--invite: {error}") from error


def _accept(config: Config, keys: Path, own: Credentials, invite: Invite, now_ms: int) -> Credentials:
    """Sign the own membership with the invite, keep it, and throw the invite's key away."""
    try:
        member = invite.accept(own.identity, now_ms).encode()
    except ProtocolError as error:
        raise ConfigError(f"--invite: {error}: ask for a new one (`machineplane fabric invite`)") from error
    peers = tuple(dict.fromkeys((*own.bootstrap_peers, *invite.bootstrap)))
    peers = tuple(p for p in peers if p.peer != own.identity.peer_id)
    joined = evolve(own, policy=MembershipPolicy(invite.root), member=member, bootstrap_peers=peers)
    invite.wipe()
    if config.keeps_identity:
        _write(keys / "fabric", str(invite.root).encode() + b"\n")
        _write(keys / "member", member)
    return joined


def _found(config: Config, keys: Path, own: Credentials, now_ms: int) -> Credentials:
    """The first machine of a new fabric makes the root key; it belongs on its operator's stick, not here."""
    path = keys / "fabric-root"
    with RootKey.generate() as root:
        _write(path, root.seed().hex().encode() + b"\n")
        invite = root.invite(now_ms)
    structlog.get_logger().warning(
        "fabric-founded",
        root=str(invite.root),
        key=str(path),
        advice=f"move {path} to a safe place; `machineplane fabric invite --root FILE` lets others in",
    )
    return _accept(config, keys, own, invite, now_ms)


def _write(path: Path, data: bytes) -> None:
    try:
        _make_directory(path.parent)
        replace_file(path, data)
    except OSError as error:
        raise KeyFileError(
            f"{path}: {error.strerror}: give --state-dir a directory that this user may write"
        ) from error


def _make_directory(path: Path) -> None:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
