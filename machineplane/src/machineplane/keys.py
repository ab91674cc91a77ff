"""What a machine keeps on disk of itself: its keys and its membership. All files are 0600, written atomically.

<state-dir>/keys/identity   Ed25519 seed, hex        <state-dir>/keys/member   encoded membership
<state-dir>/keys/sealing    X25519 seed, hex         <state-dir>/keys/fabric   the fabric's root, hex
<state-dir>/keys/revocations   the newest list of revocations, encoded
<state-dir>/keys/fabric-root   only where this machine founded the fabric: to be moved away by its operator
"""

from pathlib import Path
from typing import TypeVar

import structlog
from attrs import evolve, frozen

from machineplane.config import Config, ConfigError
from machineplane.linux.files import replace_file
from magik_proto.credentials import Revocations
from magik_proto.errors import ProtocolError
from magik_proto.identity import BootstrapPeer, Identity, PeerId, SealingKey
from magik_proto.invites import Invite, RootKey
from magik_proto.membership import MembershipError, MembershipPolicy
from magik_proto.wire import decode_as, encode_message

REVOCATIONS = "revocations"
_NO_LIST = "is no list of revocations: remove it (the machine learns the newest one from others)"
K = TypeVar("K", Identity, SealingKey, RootKey)


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
    ``now_ms`` is in milliseconds since the epoch.
    """
    keys = config.state_dir / "keys"
    ephemeral = config.ephemeral_keys
    identity = _key(Identity, None if ephemeral or config.signing_ephemeral else keys / "identity")
    sealing = _key(SealingKey, None if ephemeral or config.kem_ephemeral else keys / "sealing")
    found = Credentials(identity, sealing, MembershipPolicy(None), None, config.bootstrap_peers)
    return _membership(config, keys, found, now_ms)


def _key(cls: type[K], path: Path | None) -> K:
    """The key at ``path``, made now if there is none; a new one that is kept nowhere if ``path`` is None."""
    if path is None:
        return cls.generate()
    if not _exists(path):
        _write(path, cls.generate().seed().hex().encode() + b"\n")
    try:
        return cls.from_seed(bytes.fromhex(_read(path).decode()))
    except (ValueError, ProtocolError) as error:
        raise KeyFileError(
            f"{path} is not a key: restore it, or remove it to have a new one made, which makes this a new machine"
        ) from error


def _membership(config: Config, keys: Path, own: Credentials, now_ms: int) -> Credentials:
    """An open fabric if asked for; else the invite; else the membership on disk; else, with nobody to join, a new fabric."""
    if config.open_fabric:
        return own
    kept = _kept(keys, own) if config.keeps_identity else None
    if config.invite is not None:
        return _join(config, keys, own, kept, now_ms)
    if kept is not None:
        return _still_good(kept, keys, now_ms)
    if config.bootstrap_peers:
        raise ConfigError(
            "this machine is not a member of any fabric: pass --invite FILE with an invite made by "
            "`machineplane fabric invite`, or --open-fabric to join a trial fabric that is open to all"
        )
    return _found(config, keys, own, now_ms)


def _kept(keys: Path, own: Credentials) -> Credentials | None:
    """The membership on disk, unchecked; None if there is none."""
    path = keys / "fabric"
    if not _exists(keys / "member") or not _exists(path):
        return None
    try:
        root = PeerId.parse(_read(path).decode())
    except (ValueError, ProtocolError) as error:
        raise KeyFileError(f"{path} names no fabric: remove it and join again with --invite FILE") from error
    return evolve(own, policy=_policy(root, keys), member=_read(keys / "member", strip=False))


def _policy(root: PeerId, keys: Path) -> MembershipPolicy:
    """Who is admitted by the root, with the list of revocations that was kept."""
    policy = MembershipPolicy(root)
    if (known := read_revocations(keys)) is not None and known.root == root:
        try:
            policy.revoke(known)
        except MembershipError as error:
            raise KeyFileError(f"{keys / REVOCATIONS} {_NO_LIST}: {error}") from error
    return policy


def read_revocations(keys: Path) -> Revocations | None:
    """The list that is kept in the directory of keys, its signature unchecked; None without one. Raises KeyFileError."""
    path = keys / REVOCATIONS
    if not _exists(path):
        return None
    try:
        return decode_as(Revocations, _read(path, strip=False))
    except ProtocolError as error:
        raise KeyFileError(f"{path} {_NO_LIST}: {error}") from error


def write_revocations(keys: Path, revocations: Revocations) -> None:
    """Keep a list beside the membership. Raises KeyFileError."""
    _write(keys / REVOCATIONS, encode_message(revocations))


def _still_good(kept: Credentials, keys: Path, now_ms: int) -> Credentials:
    """What the other members will ask of the membership is asked here first: the answer is clearer at home."""
    try:
        kept.policy.admit(kept.identity.peer_id, kept.member, now_ms)
    except MembershipError as error:
        raise ConfigError(
            f"the membership in {keys / 'member'} does not hold: {error}: join again with --invite FILE"
        ) from error
    return kept


def _join(config: Config, keys: Path, own: Credentials, kept: Credentials | None, now_ms: int) -> Credentials:
    """By the invite; one that is over does no harm to a machine that has joined that fabric before."""
    invite = _parse_invite(config.invite or "")
    peers = tuple(dict.fromkeys((*own.bootstrap_peers, *invite.bootstrap)))
    peers = tuple(p for p in peers if p.peer != own.identity.peer_id)
    try:
        return evolve(_accept(config, keys, own, invite, now_ms), bootstrap_peers=peers)
    except MembershipError as error:
        if kept is None or kept.policy.root != invite.root:
            raise ConfigError(
                f"--invite: {error}: ask for a new one (`machineplane fabric invite`)"
            ) from error
        structlog.get_logger().warning(
            "invite-over", reason=str(error), note="this machine is a member already"
        )
        return evolve(_still_good(kept, keys, now_ms), bootstrap_peers=peers)
    finally:
        invite.wipe()


def _parse_invite(text: str) -> Invite:
    try:
        return Invite.parse(text)
    except ProtocolError as error:
        raise ConfigError(
            f"--invite: {error}: pass the one line that `machineplane fabric invite` prints"
        ) from error


def _accept(config: Config, keys: Path, own: Credentials, invite: Invite, now_ms: int) -> Credentials:
    """Sign the own membership with the invite and keep it. Raises MembershipError."""
    member = invite.accept(own.identity, now_ms).encode()
    if config.keeps_identity:
        _write(keys / "fabric", str(invite.root).encode() + b"\n")
        _write(keys / "member", member)
    policy = _policy(invite.root, keys) if config.keeps_identity else MembershipPolicy(invite.root)
    return evolve(own, policy=policy, member=member)


def _found(config: Config, keys: Path, own: Credentials, now_ms: int) -> Credentials:
    """The first machine of a new fabric makes the root key; it belongs on its operator's stick, not here.

    A root key that lies here already is taken, never overwritten: others may have been invited with it.
    """
    path = None if config.ephemeral_keys else keys / "fabric-root"
    with _key(RootKey, path) as root, root.invite(now_ms) as invite:
        structlog.get_logger().warning("fabric-founded", root=str(root.peer_id), **_advice(path))
        return _accept(config, keys, own, invite, now_ms)


def _advice(path: Path | None) -> dict[str, str]:
    if path is None:
        text = "no other machine can join: --ephemeral-keys keeps no root key; --open-fabric is for trials"
        return {"advice": text}
    text = f"move {path} to a safe place; `machineplane fabric invite --root FILE` lets others in"
    return {"key": str(path), "advice": text}


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise _unusable(path, error) from error


def _read(path: Path, *, strip: bool = True) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unusable(path, error) from error
    return data.strip() if strip else data


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(path, data)
    except OSError as error:
        raise _unusable(path, error) from error


def _unusable(path: Path, error: OSError) -> KeyFileError:
    return KeyFileError(
        f"{path}: {error.strerror}: give --state-dir a directory that this user may read and write"
    )
