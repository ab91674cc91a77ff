"""The command line: wrong options name themselves, secrets are never overwritten, what is printed can be read back."""

import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from machineplane import cli
from machineplane.config import Config
from machineplane.kubeapi.auth import load_credentials
from magik_proto.identity import Identity
from magik_proto.invites import Invite

SEED_OPTIONS = (  # of the system that this one follows: its users' scripts go on working
    "--rest-api-host",
    "--rest-api-port",
    "--node-name",
    "--runtime",
    "--korium-port",
    "--korium-host",
    "--bootstrap-peer",
    "--dht-refresh-interval-secs",
    "--ephemeral-keys",
    "--signing-ephemeral",
    "--kem-ephemeral",
)
PEER = f"{Identity.from_seed(bytes(32)).peer_id}@192.0.2.1:4001"


def run(*arguments: str | Path, text: str | None = None) -> Result:
    return CliRunner().invoke(cli.main, [str(a) for a in arguments], input=text)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Config]]:
    """What the daemon would have been started with."""
    configs: list[Config] = []

    def record(config: Config, log_format: str, log_level: str) -> int:
        configs.append(config)
        return 0

    monkeypatch.setattr(cli, "run_daemon", record)
    yield configs


def test_help_has_all_options_of_the_seed() -> None:
    text = run("--help").output
    assert all(option in text for option in SEED_OPTIONS)
    assert all(command in text for command in ("fabric", "identity", "image", "kubeconfig", "lab"))


def test_without_a_command_the_daemon_runs_with_defaults(started: list[Config]) -> None:
    assert run().exit_code == 0
    (config,) = started
    assert (config.rest_api_port, config.rest_api_tls_port, config.mesh_port) == (3000, 6443, 0)
    assert (config.runtime, config.runtime_given) == ("krun", False)
    assert config.state_dir == Path("/var/lib/magik")


def test_options_arrive(started: list[Config], tmp_path: Path) -> None:
    invite = tmp_path / "invite"
    invite.write_text("the text")
    library = tmp_path / "libkrun.so"
    library.touch()
    run(
        "--libkrun",
        library,
        "--runtime",
        "krun",
        "--korium-port",
        "7",
        "--bootstrap-peer",
        PEER,
        "--label",
        "a=b",
        "--invite",
        invite,
    )
    (config,) = started
    assert config.runtime_given and config.mesh_port == 7 and config.libkrun == library
    assert [str(p) for p in config.bootstrap_peers] == [PEER]
    assert config.labels == (("a", "b"),) and config.invite == "the text"


def test_an_invite_can_come_by_standard_input(started: list[Config]) -> None:
    run("--invite", "-", text="magik-invite-1.abc\n")
    assert started[0].invite == "magik-invite-1.abc\n"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--rest-api-port", "many"),
        ("--rest-api-port", "70000"),
        ("--rest-api-tls-port", "-1"),
        ("--mesh-port", "65536"),
        ("--mesh-host", "here"),
        ("--rest-api-host", "localhost"),
        ("--runtime", "docker"),
        ("--libkrun", "/no/such/libkrun.so"),
        ("--bootstrap-peer", "nobody"),
        ("--bootstrap-peer", "ab@1.2.3.4:5"),
        ("--advertise", "1.2.3.4"),
        ("--invite", "/nowhere/at/all"),
        ("--pod-subnet", "10.0.0.0/33"),
        ("--pod-subnet", "10.0.0.0/8"),
        ("--agent-ports", "27999-20000"),
        ("--agent-ports", "4000"),
        ("--label", "novalue"),
        ("--label", "a b=c"),
        ("--node-name", "A Name"),
        ("--cgroup-parent", ".."),
        ("--dht-refresh-interval-secs", "0"),
        ("--dht-refresh-interval-secs", "nan"),
        ("--log-format", "xml"),
        ("--log-level", "loud"),
        ("--run-dir", "/" + "r" * 100),
    ],
)
def test_a_wrong_option_names_itself(started: list[Config], option: str, value: str) -> None:
    done = run(option, value)
    assert done.exit_code == 2 and not started
    assert option in done.output and "Traceback" not in done.output


def test_an_invite_that_is_no_text_names_its_option(started: list[Config], tmp_path: Path) -> None:
    (tmp_path / "invite").write_bytes(b"\xff\xfe\x00")
    done = run("--invite", tmp_path / "invite")
    assert done.exit_code == 2 and "--invite" in done.output and not started


# -- fabric


def test_a_root_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    out = tmp_path / "root"
    done = run("fabric", "init", "--out", out)
    assert done.exit_code == 0 and stat.S_IMODE(out.stat().st_mode) == 0o600
    kept = out.read_bytes()
    again = run("fabric", "init", "--out", out)
    assert again.exit_code == 1 and "never overwritten" in again.output and out.read_bytes() == kept
    seed = bytes.fromhex(kept.decode())
    assert str(Identity.from_seed(seed).peer_id) == done.output.strip()


def test_a_root_key_that_cannot_be_put_there_is_said(tmp_path: Path) -> None:
    done = run("fabric", "init", "--out", tmp_path / "no" / "root")
    assert done.exit_code == 1 and "No such file or directory" in done.output


def test_an_invite_is_one_line_that_can_be_read_back(tmp_path: Path) -> None:
    out = tmp_path / "root"
    root = run("fabric", "init", "--out", out).output.strip()
    done = run(
        "fabric", "invite", "--root", out, "--roles", "run", "--expires", "2d", "--bootstrap-peer", PEER
    )
    assert done.stdout.count("\n") == 1
    with Invite.parse(done.stdout) as invite:
        assert str(invite.root) == root and invite.roles == {"run"}
        assert [str(p) for p in invite.bootstrap] == [PEER]
        assert invite.expires - invite.delegation.issued == 2 * 86_400_000


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--expires", "soon"), "--expires"),
        (("--expires", "0h"), "--expires"),
        (("--expires", "²h"), "--expires"),
        (("--expires", "9" * 5000 + "d"), "--expires"),
        (("--roles", "admin"), "--roles"),
        (("--roles", ""), "--roles"),
        (("--bootstrap-peer", "x"), "--bootstrap-peer"),
    ],
)
def test_what_is_wrong_with_an_invite_is_said_by_its_option(
    tmp_path: Path, options: tuple[str, str], named: str
) -> None:
    run("fabric", "init", "--out", tmp_path / "root")
    done = run("fabric", "invite", "--root", tmp_path / "root", *options)
    assert done.exit_code == 2 and named in done.output and not isinstance(done.exception, ValueError)


@pytest.mark.parametrize("content", [b"", b"zz", b"00", b"\xff\xfe"])
def test_a_root_file_that_is_none_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "root").write_bytes(content)
    done = run("fabric", "invite", "--root", tmp_path / "root")
    assert done.exit_code == 1 and f"{tmp_path}/root is not a key" in done.output
    missing = run("fabric", "invite", "--root", tmp_path / "none")
    assert missing.exit_code == 1 and "No such file" in missing.output


# -- identity and kubeconfig


def test_identity(tmp_path: Path) -> None:
    done = run("identity", "--state-dir", tmp_path)
    assert done.exit_code == 1 and "the daemon makes it at its first start" in done.output
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys/identity").write_text(bytes(32).hex() + "\n")
    done = run("identity", "--state-dir", tmp_path)
    assert done.output.strip() == str(Identity.from_seed(bytes(32)).peer_id)


def test_a_kubeconfig_without_a_daemon_says_where_it_looked_and_makes_nothing(tmp_path: Path) -> None:
    done = run("kubeconfig", "--state-dir", tmp_path)
    assert done.exit_code == 1 and f"{tmp_path}/api/token is not there" in done.output
    assert not list(tmp_path.iterdir())


def test_a_kubeconfig_has_what_kubectl_needs_and_only_reads(tmp_path: Path) -> None:
    api = load_credentials(tmp_path / "api", ("m0",))
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "api").iterdir()}
    ready = tmp_path / "machineplane.json"
    ready.write_text(json.dumps({"api": "https://192.0.2.7:6443"}))
    found = yaml.safe_load(run("kubeconfig", "--state-dir", tmp_path, "--run-dir", tmp_path).output)
    assert found["clusters"][0]["cluster"]["server"] == "https://192.0.2.7:6443"
    assert found["users"][0]["user"]["token"] == api.token
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "api").iterdir()} == before


@pytest.mark.parametrize("content", ["", "[]", "{}", "3"])
def test_the_default_server_is_this_machine(tmp_path: Path, content: str) -> None:
    load_credentials(tmp_path / "api")
    (tmp_path / "machineplane.json").write_text(content)
    done = run("kubeconfig", "--state-dir", tmp_path, "--run-dir", tmp_path)
    assert "server: https://127.0.0.1:6443" in done.output
    named = run("kubeconfig", "--state-dir", tmp_path, "--server", "https://example.test:1")
    checked = run("kubeconfig", "--state-dir", tmp_path, "--tls-name", "localhost")
    assert yaml.safe_load(checked.output)["clusters"][0]["cluster"]["tls-server-name"] == "localhost"
    assert "tls-server-name" not in named.output
    assert "server: https://example.test:1" in named.output
