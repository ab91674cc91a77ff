"""Keys and membership on disk: founding, joining, coming back, and what is wrong with files."""

from pathlib import Path
from typing import Any

import pytest

from machineplane.config import Config, ConfigError
from machineplane.keys import Credentials, KeyFileError, load_credentials
from magik_proto.identity import BootstrapPeer, Identity
from magik_proto.invites import Invite, RootKey
from magik_proto.membership import ALL_ROLES

NOW = 1_800_000_000_000
HOUR, YEAR = 3_600_000, 365 * 24 * 3_600_000
ROOT = RootKey.from_seed(bytes(range(32)))
PEER = BootstrapPeer(Identity.from_seed(bytes(32)).peer_id, "192.0.2.1", 4001)


def load(state: Path, now: int = NOW, **options: Any) -> Credentials:
    return load_credentials(Config(state_dir=state, run_dir=Path("/run/magik"), **options), now)


def invite(now: int = NOW, root: RootKey = ROOT, **more: Any) -> str:
    return root.invite(now, **more).text() + "\n"


def admitted(machine: Credentials, by: Credentials, now: int = NOW) -> frozenset[str]:
    return by.policy.admit(machine.identity.peer_id, machine.member, now)


def files(state: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (state / "keys").iterdir()} if (state / "keys").exists() else {}


# -- founding


def test_the_first_machine_founds_a_fabric_that_others_can_join(tmp_path: Path) -> None:
    first = load(tmp_path / "a")
    with RootKey.from_seed(bytes.fromhex((tmp_path / "a/keys/fabric-root").read_text())) as root:
        second = load(tmp_path / "b", invite=invite(root=root))
    assert admitted(first, second) == admitted(second, first) == ALL_ROLES


def test_secrets_are_for_their_owner_alone(tmp_path: Path) -> None:
    load(tmp_path)
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700
    kept = {p.name: p.stat().st_mode & 0o777 for p in (tmp_path / "keys").iterdir()}
    assert kept == dict.fromkeys(("identity", "sealing", "fabric", "fabric-root", "member"), 0o600)


def test_a_root_key_is_never_overwritten(tmp_path: Path) -> None:
    """Others may have been invited with it: the machine that lost its membership founds the same fabric again."""
    before = load(tmp_path)
    (tmp_path / "keys/member").unlink()
    after = load(tmp_path)
    assert after.policy.root == before.policy.root


def test_the_machine_is_the_same_after_a_restart(tmp_path: Path) -> None:
    before, kept = load(tmp_path), files(tmp_path)
    after = load(tmp_path, NOW + HOUR)
    assert (after.identity.peer_id, after.sealing_key.public, after.member) == (
        before.identity.peer_id,
        before.sealing_key.public,
        before.member,
    )
    assert files(tmp_path) == kept


# -- joining


def test_an_invite_brings_roles_and_machines_to_join_by(tmp_path: Path) -> None:
    joined = load(tmp_path, invite=invite(roles={"run"}, bootstrap=(PEER,)))
    assert admitted(joined, joined) == {"run"} and joined.bootstrap_peers == (PEER,)


def test_a_machine_does_not_join_by_itself(tmp_path: Path) -> None:
    own = load(tmp_path).identity.peer_id
    peers = (BootstrapPeer(own, "192.0.2.9", 1), PEER)
    assert load(tmp_path, invite=invite(bootstrap=peers)).bootstrap_peers == (PEER,)


def test_without_an_invite_nobody_joins_anything(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--invite FILE"):
        load(tmp_path, bootstrap_peers=(PEER,))


def test_an_expired_invite_is_refused_by_its_option(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--invite: membership.invite-expired.*ask for a new one"):
        load(tmp_path, NOW + 2 * HOUR, invite=invite())
    assert "member" not in files(tmp_path)


def test_a_member_comes_back_with_the_invite_of_that_time(tmp_path: Path) -> None:
    """The option stays in the unit file of whoever starts the daemon at boot."""
    before = load(tmp_path, invite=invite(bootstrap=(PEER,)))
    after = load(tmp_path, NOW + 5 * HOUR, invite=invite(bootstrap=(PEER,)))
    assert after.member == before.member and after.bootstrap_peers == (PEER,)


def test_an_expired_invite_into_another_fabric_is_refused(tmp_path: Path) -> None:
    load(tmp_path)
    with pytest.raises(ConfigError, match="invite-expired"):
        load(tmp_path, NOW + 5 * HOUR, invite=invite())


def test_a_fresh_invite_moves_a_machine_to_another_fabric(tmp_path: Path) -> None:
    load(tmp_path)
    assert load(tmp_path, invite=invite()).policy.root == ROOT.peer_id
    assert load(tmp_path).policy.root == ROOT.peer_id


@pytest.mark.parametrize("text", ["", "rubbish", "magik-invite-1.", "magik-invite-1.AAAA", "x" * 100_000])
def test_what_is_no_invite_says_what_one_is_and_nothing_of_itself(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--invite: .*machineplane fabric invite") as caught:
        load(tmp_path, invite=text)
    assert not text or text not in str(caught.value).replace("magik-invite-1.", "")


def test_an_invite_is_for_its_fabric_even_when_tampered_with(tmp_path: Path) -> None:
    text = invite()
    changed = text[:60] + ("A" if text[60] != "A" else "B") + text[61:]
    with pytest.raises(ConfigError, match=r"^--invite"):
        load(tmp_path, invite=changed)


# -- a membership that does not hold


def test_a_membership_that_has_ended_says_so_at_home(tmp_path: Path) -> None:
    load(tmp_path)
    with pytest.raises(ConfigError, match=r"membership.expired.*--invite FILE"):
        load(tmp_path, NOW + 2 * YEAR)


def test_the_membership_of_another_identity_is_not_used(tmp_path: Path) -> None:
    load(tmp_path)
    (tmp_path / "keys/identity").unlink()
    with pytest.raises(ConfigError, match=r"membership.other-identity.*--invite FILE"):
        load(tmp_path)


# -- ephemeral


def test_ephemeral_keys_leave_nothing_on_disk(tmp_path: Path) -> None:
    one, two = load(tmp_path, ephemeral_keys=True), load(tmp_path, ephemeral_keys=True)
    assert one.identity.peer_id != two.identity.peer_id and one.sealing_key.public != two.sealing_key.public
    assert admitted(one, one) == ALL_ROLES
    assert files(tmp_path) == {}


def test_one_key_can_be_ephemeral_and_the_other_not(tmp_path: Path) -> None:
    one, two = load(tmp_path, kem_ephemeral=True), load(tmp_path, kem_ephemeral=True)
    assert one.identity.peer_id == two.identity.peer_id and one.sealing_key.public != two.sealing_key.public
    assert "sealing" not in files(tmp_path)
    other = tmp_path / "other"
    one, two = load(other, signing_ephemeral=True), load(other, signing_ephemeral=True)
    assert one.identity.peer_id != two.identity.peer_id and one.sealing_key.public == two.sealing_key.public
    assert one.policy.root == two.policy.root
    assert set(files(other)) == {"sealing", "fabric-root"}


def test_an_open_fabric_needs_no_membership(tmp_path: Path) -> None:
    found = load(tmp_path, open_fabric=True, bootstrap_peers=(PEER,))
    assert found.policy.open and found.member is None and found.bootstrap_peers == (PEER,)
    assert set(files(tmp_path)) == {"identity", "sealing"}


# -- files


@pytest.mark.parametrize("name", ["identity", "sealing"])
@pytest.mark.parametrize("content", [b"", b"zz", b"00", b"\xff\xfe", b"0" * 66])
def test_a_key_file_that_is_none_is_named_and_kept(tmp_path: Path, name: str, content: bytes) -> None:
    load(tmp_path)
    (tmp_path / "keys" / name).write_bytes(content)
    with pytest.raises(KeyFileError, match=f"keys/{name} is not a key: restore it"):
        load(tmp_path)
    assert (tmp_path / "keys" / name).read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"zz", b"\xff"])
def test_a_fabric_file_that_names_none_is_named(tmp_path: Path, content: bytes) -> None:
    load(tmp_path)
    (tmp_path / "keys/fabric").write_bytes(content)
    with pytest.raises(KeyFileError, match="keys/fabric names no fabric"):
        load(tmp_path)


def test_a_member_file_that_is_none_is_named(tmp_path: Path) -> None:
    load(tmp_path)
    (tmp_path / "keys/member").write_bytes(b"rubbish")
    with pytest.raises(ConfigError, match=r"keys/member does not hold: membership.malformed"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["identity", "sealing", "member", "fabric"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    load(tmp_path)
    (tmp_path / "keys" / name).unlink()
    (tmp_path / "keys" / name).mkdir()
    with pytest.raises(KeyFileError, match=rf"keys/{name}: Is a directory: give --state-dir"):
        load(tmp_path)


def test_a_state_directory_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("")
    with pytest.raises(KeyFileError, match="give --state-dir"):
        load(tmp_path)


def test_the_invites_secret_is_wiped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wiped: list[Invite] = []
    monkeypatch.setattr(Invite, "wipe", lambda self: wiped.append(self))
    load(tmp_path, invite=invite())
    with pytest.raises(ConfigError):
        load(tmp_path / "b", NOW + 5 * HOUR, invite=invite())
    assert len(wiped) == 2
