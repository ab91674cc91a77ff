"""The agent's command line: the options and ``BEE_*`` variables of the specification, with their defaults."""

import sys
from pathlib import Path
from typing import Any

import click

from workplane import __version__
from workplane.config import (
    WORKLOAD_KINDS,
    Config,
    ConfigError,
    parse_addresses,
    parse_dns,
    parse_door,
    parse_key,
    parse_machine,
    parse_patterns,
    parse_peers,
    parse_url,
)
from workplane.credentials import CREDENTIALS, CredentialsError, take
from workplane.lean import importing


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="workplane")
@click.option("--namespace", envvar="BEE_NAMESPACE", default="default", show_default=True)
@click.option("--workload", envvar="BEE_WORKLOAD_NAME", required=True, help="Name of the workload.")
@click.option("--pod", envvar="BEE_POD_NAME", required=True, help="Name of this pod.")
@click.option(
    "--workload-kind",
    envvar="BEE_WORKLOAD_KIND",
    type=click.Choice(WORKLOAD_KINDS),
    default="Deployment",
    show_default=True,
)
@click.option("--replicas", envvar="BEE_REPLICAS", type=int, default=1, show_default=True)
@click.option("--liveness-url", envvar="BEE_LIVENESS_URL", default=None)
@click.option("--readiness-url", envvar="BEE_READINESS_URL", default=None)
@click.option("--machine-api", envvar="BEE_MACHINE_API", default="http://localhost:8080", show_default=True)
@click.option(
    "--privkey", envvar="BEE_PRIVATE_KEY_B64", default=None, help="Ed25519 key, base64; for manual use."
)
@click.option(
    "--credentials",
    envvar="BEE_CREDENTIALS",
    default=str(CREDENTIALS),
    show_default=True,
    help="File that the machine has put there; it is read once and removed.",
)
@click.option("--bootstrap-peers", envvar="BEE_BOOTSTRAP_PEERS", default=None)
@click.option("--listen-addrs", envvar="BEE_LISTEN_ADDRS", default=None)
@click.option("--allow-workloads", envvar="BEE_ALLOW_WORKLOADS", default=None)
@click.option("--deny-workloads", envvar="BEE_DENY_WORKLOADS", default=None)
@click.option(
    "--allow-cross-namespace/--no-allow-cross-namespace", envvar="BEE_ALLOW_CROSS_NAMESPACE", default=False
)
@click.option("--dns-addr", envvar="BEE_DNS_ADDR", default="127.0.0.1:53", show_default=True)
@click.option(
    "--redirect-port",
    envvar="BEE_REDIRECT_PORT",
    type=click.IntRange(1, 65535),
    default=None,
    help="Where a rule redirects TCP to 127.64.0.0/10; without one each service's port is bound.",
)
@click.option(
    "--dht-ttl-secs", envvar="BEE_DHT_TTL_SECS", type=click.FloatRange(0, min_open=True), default=15
)
@click.option(
    "--dht-heartbeat-secs",
    envvar="BEE_DHT_HEARTBEAT_SECS",
    type=click.FloatRange(0, min_open=True),
    default=5,
)
@click.option(
    "--health-interval-secs",
    envvar="BEE_HEALTH_INTERVAL_SECS",
    type=click.FloatRange(0, min_open=True),
    default=10,
)
@click.option(
    "--health-timeout-secs",
    envvar="BEE_HEALTH_TIMEOUT_SECS",
    type=click.FloatRange(0, min_open=True),
    default=5,
)
@click.option(
    "--replica-check-interval-secs",
    envvar="BEE_REPLICA_CHECK_INTERVAL_SECS",
    type=click.FloatRange(0, min_open=True),
    default=30,
)
@click.option(
    "--local-api",
    envvar="BEE_LOCAL_API",
    default="127.0.0.1:4700",
    show_default=True,
    help="Where the pod's app finds its agent.",
)
@click.option(
    "--run-folder",
    envvar="BEE_RUN_FOLDER",
    default="/run/magik",
    show_default=True,
    help="Has app/, shared with the pod's containers, and agent/state/, which outlives the agent.",
)
def main(**options: Any) -> None:
    """The agent of one pod. Started by the machine; by hand for trials."""
    try:
        credentials = take(Path(options["credentials"]))
        config = read_config(options)
        if credentials is None and config.identity is None:
            raise ConfigError(
                f"--privkey (BEE_PRIVATE_KEY_B64): needed where no machine has put {options['credentials']} there"
            )
    except (ConfigError, CredentialsError) as error:
        raise click.UsageError(str(error)) from error
    with importing():  # only now: a wrong value is told at once
        import trio

        from workplane.app import run
    sys.exit(trio.run(run, config, credentials))


def read_config(options: dict[str, Any]) -> Config:
    """The configuration that the options give. Raises ConfigError."""
    return Config(
        namespace=options["namespace"],
        workload=options["workload"],
        pod=options["pod"],
        workload_kind=options["workload_kind"],
        replicas=options["replicas"],
        identity=parse_key(options["privkey"]) if options["privkey"] else None,
        liveness_url=parse_url("--liveness-url", options["liveness_url"]),
        readiness_url=parse_url("--readiness-url", options["readiness_url"]),
        machine_api=parse_machine(options["machine_api"]),
        bootstrap_peers=parse_peers(options["bootstrap_peers"]),
        listen_addrs=parse_addresses(options["listen_addrs"]),
        allow_workloads=parse_patterns("--allow-workloads", options["allow_workloads"]),
        deny_workloads=parse_patterns("--deny-workloads", options["deny_workloads"]),
        allow_cross_namespace=options["allow_cross_namespace"],
        dns_addr=parse_dns(options["dns_addr"]),
        redirect_port=options["redirect_port"],
        dht_ttl=options["dht_ttl_secs"],
        dht_heartbeat=options["dht_heartbeat_secs"],
        health_interval=options["health_interval_secs"],
        health_timeout=options["health_timeout_secs"],
        replica_check_interval=options["replica_check_interval_secs"],
        local_api=parse_door(options["local_api"]),
        run_folder=Path(options["run_folder"]),
    )
