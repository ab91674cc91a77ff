"""The agent's command line as a user calls it."""

import base64
from pathlib import Path

import pytest
from attrs import evolve
from click.testing import CliRunner, Result

from workplane.cli import main, read_config
from workplane.config import Config

KEY = base64.b64encode(bytes(range(32))).decode()
NEEDED = ["--workload", "nginx", "--pod", "nginx-0", "--privkey", KEY]


def run(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(main, arguments, env=environment)


def config_of(*arguments: str) -> Config:
    context = main.make_context("workplane", [*NEEDED, *arguments])
    return read_config(context.params)


def test_variables_stand_for_options(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORKLOAD_NAME": "nginx", "POD_NAME": "nginx-0", "PRIVATE_KEY_B64": KEY}.items():
        monkeypatch.setenv(f"BEE_{name}", value)
    config, expected = read_config(main.make_context("workplane", []).params), config_of()
    assert config.identity is not None and expected.identity is not None
    assert config.identity.peer_id == expected.identity.peer_id
    assert evolve(config, identity=None) == evolve(expected, identity=None)


def test_without_a_machine_a_key_is_needed(tmp_path: Path) -> None:
    result = run(*NEEDED[:-2], "--credentials", str(tmp_path / "none"))
    assert result.exit_code == 2
    assert "--privkey" in result.output


def test_defaults_are_those_of_the_specification() -> None:
    config = config_of()
    assert (config.namespace, config.workload_kind, config.replicas) == ("default", "Deployment", 1)
    assert config.machine_api == "http://localhost:8080"
    assert (config.dht_ttl, config.dht_heartbeat) == (15, 5)
    assert (config.health_interval, config.health_timeout, config.replica_check_interval) == (10, 5, 30)
    assert not config.allow_cross_namespace
    assert config.redirect_port is None


def test_the_redirect_port_is_the_machine_s_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEE_REDIRECT_PORT", "4702")
    assert config_of().redirect_port == 4702
    monkeypatch.setenv("BEE_REDIRECT_PORT", "")
    assert config_of().redirect_port is None


def test_the_ordinal_of_a_stateful_pod() -> None:
    assert config_of("--workload-kind", "StatefulSet").ordinal == 0
    assert config_of().ordinal is None


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--namespace", "Not A Label"], "--namespace"),
        (["--replicas", "0"], "--replicas"),
        (["--redirect-port", "0"], "--redirect-port"),
        (["--replicas", "many"], "--replicas"),
        (["--workload-kind", "DaemonSet"], "--workload-kind"),
        (["--workload-kind", "StatefulSet", "--pod", "web"], "--pod"),
        (["--liveness-url", "http://10.0.0.1/health"], "--liveness-url"),
        (["--readiness-url", "gopher://127.0.0.1/"], "--readiness-url"),
        (["--bootstrap-peers", "somebody@127.0.0.1:1"], "--bootstrap-peers"),
        (["--listen-addrs", "127.0.0.1"], "--listen-addrs"),
        (["--listen-addrs", "127.0.0.1:1,127.0.0.1:2"], "--listen-addrs"),
        (["--machine-api", "machine.sock"], "--machine-api"),
        (["--allow-workloads", "a b"], "--allow-workloads"),
        (["--dht-ttl-secs", "0"], "--dht-ttl-secs"),
        (["--dht-heartbeat-secs", "20"], "--dht-heartbeat-secs"),
    ],
)
def test_a_wrong_value_fails_with_the_name_of_the_option(arguments: list[str], named: str) -> None:
    result = run(*NEEDED, *arguments)
    assert result.exit_code == 2
    assert named in result.output


def test_a_wrong_key_is_not_repeated() -> None:
    result = run("--workload", "w", "--pod", "p", "--privkey", "c2VjcmV0")
    assert result.exit_code == 2
    assert "--privkey" in result.output and "c2VjcmV0" not in result.output


def test_the_key_is_not_in_the_configuration_s_text() -> None:
    assert KEY not in repr(config_of()) and "identity" not in repr(config_of())
