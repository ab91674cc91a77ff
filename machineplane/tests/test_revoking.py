"""Revoking by the command line, and what a machine keeps of it."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner, Result
from trio.testing import MockClock

from machineplane.cli import main
from machineplane.config import Config, ConfigError
from machineplane.keys import KeyFileError, load_credentials, read_revocations
from machineplane.revocations import RevocationFile
from magik_mesh.testing import EPOCH_MS, MemoryFabric, config_of, identity_of
from magik_proto.credentials import Revocations
from magik_proto.identity import Identity, PeerId
from magik_proto.invites import RootKey
from magik_proto.membership import MembershipPolicy
from magik_proto.wire import decode_as, encode_message

NOW = 1_800_000_000_000
ROOT = RootKey.from_seed(bytes(range(32)))
BAD = Identity.from_seed(b"b" * 32).peer_id
WORSE = Identity.from_seed(b"w" * 32).peer_id


def run(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def root_file(directory: Path, root: RootKey = ROOT) -> Path:
    path = directory / "root"
    path.write_text(root.seed().hex())
    return path


def revoke(tmp_path: Path, *options: object, root: RootKey = ROOT) -> Result:
    return run("fabric", "revoke", "--root", root_file(tmp_path, root), "--list", tmp_path / "list", *options)


def list_in(path: Path) -> Revocations:
    return decode_as(Revocations, path.read_bytes())


def joined(state: Path) -> None:
    load_credentials(Config(state_dir=state, run_dir=Path("/run/magik"), invite=ROOT.invite(NOW).text()), NOW)


def apply(tmp_path: Path) -> Result:
    return run("fabric", "apply", tmp_path / "list", "--state-dir", tmp_path, "--run-dir", tmp_path)


# -- the operator


def test_a_list_is_made_and_added_to(tmp_path: Path) -> None:
    assert revoke(tmp_path, "--peer", BAD).exit_code == 0
    first = list_in(tmp_path / "list")
    done = revoke(tmp_path, "--peer", WORSE, "--peer", BAD, "--invite", BAD)
    assert done.exit_code == 0, done.output
    second = list_in(tmp_path / "list")
    assert (first.peers, first.invites) == ((BAD,), ())
    assert (set(second.peers), second.invites) == ({BAD, WORSE}, (BAD,)), (
        "nothing that was revoked comes back"
    )
    assert second.serial > first.serial
    assert f"serial {second.serial}: 2 machines, 1 invites" in done.output


def test_a_list_is_not_added_to_by_another_root(tmp_path: Path) -> None:
    revoke(tmp_path, "--peer", BAD)
    before = (tmp_path / "list").read_bytes()
    done = revoke(tmp_path, "--peer", WORSE, root=RootKey.from_seed(b"x" * 32))
    assert done.exit_code == 1
    assert "membership.other-fabric" in done.output
    assert (tmp_path / "list").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "says"), [((), "--peer ID"), (("--peer", "abc"), "64"), (("--invite", "x" * 64), "64")]
)
def test_what_is_wrong_is_said(tmp_path: Path, options: tuple[str, ...], says: str) -> None:
    done = revoke(tmp_path, *options)
    assert done.exit_code == 2
    assert says in done.output
    assert not (tmp_path / "list").exists()


# -- a machine


def test_a_list_is_kept_beside_the_membership_and_holds_from_the_next_start_on(tmp_path: Path) -> None:
    joined(tmp_path)
    revoke(tmp_path, "--peer", BAD)
    done = apply(tmp_path)
    assert done.exit_code == 0, done.output
    assert "daemon does not run" in done.output
    loaded = load_credentials(Config(state_dir=tmp_path, run_dir=Path("/run/magik")), NOW)
    assert loaded.policy.revocations == list_in(tmp_path / "list")


def test_an_older_list_and_one_of_another_fabric_are_refused(tmp_path: Path) -> None:
    joined(tmp_path)
    (tmp_path / "list").write_bytes(encode_message(ROOT.revoke(7, NOW, peers=(BAD,))))
    assert apply(tmp_path).exit_code == 0
    for wrong, says in (
        (ROOT.revoke(6, NOW), "revoke with the newest list"),
        (RootKey.from_seed(b"x" * 32).revoke(9, NOW), "membership.other-fabric"),
    ):
        (tmp_path / "list").write_bytes(encode_message(wrong))
        done = apply(tmp_path)
        assert done.exit_code == 1
        assert says in done.output
    kept = read_revocations(tmp_path / "keys")
    assert kept is not None
    assert kept.serial == 7


def test_a_machine_that_is_revoked_itself_does_not_start(tmp_path: Path) -> None:
    joined(tmp_path)
    own = PeerId.parse(run("identity", "--state-dir", tmp_path).output.strip())
    revoke(tmp_path, "--peer", own)
    apply(tmp_path)
    with pytest.raises(ConfigError, match=r"membership\.revoked"):
        load_credentials(Config(state_dir=tmp_path, run_dir=Path("/run/magik")), NOW)


def test_a_broken_list_names_itself(tmp_path: Path) -> None:
    joined(tmp_path)
    (tmp_path / "keys/revocations").write_bytes(b"x")
    with pytest.raises(KeyFileError, match="keys/revocations is no list of revocations: remove it"):
        load_credentials(Config(state_dir=tmp_path, run_dir=Path("/run/magik")), NOW)


@pytest.mark.parametrize(("name", "told"), [("machineplane", True), ("another", False)])
def test_the_running_daemon_is_told_and_no_other_process(tmp_path: Path, name: str, told: bool) -> None:
    joined(tmp_path)
    revoke(tmp_path, "--peer", BAD)
    waits = (
        "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP]);"
        "print('up', flush=True); print(int(signal.sigwait([signal.SIGHUP])))"
    )
    with subprocess.Popen([sys.executable, "-c", waits, name], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (tmp_path / "machineplane.json").write_text(f'{{"pid": {process.pid}}}')
        assert ("in force" in apply(tmp_path).output) == told
        if told:
            assert int(process.stdout.readline()) == signal.SIGHUP
        process.kill()


async def test_the_daemon_reads_the_list_again_and_all_keep_what_comes(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    configs = []
    for n in (1, 2):
        member = ROOT.invite(EPOCH_MS).accept(identity_of(n), EPOCH_MS).encode()
        configs.append(config_of(n, policy=MembershipPolicy(ROOT.peer_id), member=member))
    fabric, keys = MemoryFabric(), [tmp_path / "1", tmp_path / "2"]
    reload, requests = trio.open_memory_channel[None](1)
    async with fabric.open(configs[0]) as a, fabric.open(configs[1]) as b, trio.open_nursery() as nursery:
        files = [RevocationFile(node, directory) for node, directory in zip((a, b), keys, strict=True)]
        for file in files:
            nursery.start_soon(file.run)
        nursery.start_soon(files[0].read_again, requests)
        await fabric.connected()
        keys[0].mkdir()
        (keys[0] / "revocations").write_bytes(b"nonsense")
        await reload.send(None)
        await trio.sleep(1)
        (keys[0] / "revocations").write_bytes(encode_message(ROOT.revoke(3, NOW, peers=(BAD,))))
        await reload.send(None)
        # A thread writes it, and takes real time, of which the clock here knows nothing.
        until = time.monotonic() + 30
        while (found := read_revocations(keys[1])) is None and time.monotonic() < until:  # noqa: ASYNC110
            await trio.sleep(0.1)
        assert found is not None and found.serial == 3
        nursery.cancel_scope.cancel()
