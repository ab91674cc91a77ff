"""Starting and ending the daemon: what must be there first, the helper before Trio, and signals at any moment."""

import signal
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from functools import partial

import structlog
import trio
from attrs import evolve

from machineplane.app import DaemonError, Machine, machine_addresses, wall_ms
from machineplane.config import Config, default_node_name, pod_subnet
from machineplane.keys import Credentials, KeyFileError, load_credentials
from machineplane.kubeapi.errors import PortTaken
from machineplane.linux.nft import NftError
from machineplane.podagents import PodAgents
from machineplane.podnet import PodNetConfig, PodNetworkError, open_pod_network
from machineplane.privileges import missing_privileges
from machineplane.references import References
from machineplane.revocations import RevocationFile
from machineplane.runtime import (
    HostPolicy,
    ImageError,
    RuntimeConfig,
    RuntimeFault,
    Zygote,
    open_runtime,
    start_zygote,
)
from magik_mesh import MeshError, NodeConfig, Timings, open_node
from magik_proto.dht_kinds import holding_kind
from magik_proto.records import HoldingRecord

_ENDING = (signal.SIGTERM, signal.SIGINT)


def run(config: Config) -> int:
    """Run the daemon until SIGTERM or SIGINT; returns the exit status. Raises ConfigError or DaemonError."""
    _require_privileges()
    try:
        _make_directories(config)
        config.ready_file.unlink(missing_ok=True)  # of an earlier daemon: this one is not ready yet
        credentials = load_credentials(config, wall_ms())
    except KeyFileError as error:
        raise DaemonError(str(error)) from error
    peer = credentials.identity.peer_id
    config = evolve(
        config,
        node_name=config.node_name or default_node_name(str(peer)),
        pod_subnet=config.pod_subnet or pod_subnet(peer.raw),
    )
    runtime_config = RuntimeConfig(
        state_dir=config.state_dir,
        run_dir=config.run_dir,
        cgroup_parent=config.cgroup_parent,
        cgroup_driver=config.cgroup_driver,
        default_engine=config.runtime,
        krun_library=config.libkrun,
        krun_boot_s=config.microvm_boot_timeout,
        node_name=config.node_name,
        host_ip=machine_addresses(config)[0],
        policy=HostPolicy(
            privileged=config.allow_privileged,
            host_paths=config.allow_host_paths,
            sysctls=config.allow_sysctls,
            seccomp_dir=config.state_dir / "seccomp",
        ),
        registries=config.registry_config,
    )
    problem = None  # raised after the block: what `except*` raises, some Pythons wrap in a group again
    try:
        with ExitStack() as stack:
            with _signals_held():
                # Before Trio: the helper must come from a process that has one thread.
                zygote = stack.enter_context(start_zygote(cgroup_driver=config.cgroup_driver))
            # Trio's own start is no place for a signal: one that comes now waits until `_serve` can hear it.
            signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
            trio.run(_serve, config, credentials, runtime_config, zygote)
    except* (PortTaken, MeshError, PodNetworkError, NftError, ImageError, RuntimeFault, DaemonError) as group:
        problem = DaemonError(_first(group))
    if problem is not None:
        raise problem
    return 0


@contextmanager
def _signals_held() -> Iterator[None]:
    """A signal that comes within takes effect at the end: nobody leaves a helper that is just saying hello."""
    held: list[int] = []
    before = {number: signal.signal(number, lambda n, _: held.append(n)) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if held:
        signal.raise_signal(held[0])


def _require_privileges() -> None:
    """Refuse before anything is made: half a machine, with files of another user, helps nobody."""
    lacking = missing_privileges()
    if lacking:
        raise DaemonError(
            f"this process lacks {' and '.join(lacking)}: a machine makes links, namespaces and mounts for its "
            "pods: run it as root"
        )


def _make_directories(config: Config) -> None:
    """All that is looked after here lies below these two, so what cannot be written there is found out now."""
    for option, directory in (("--state-dir", config.state_dir), ("--run-dir", config.run_dir)):
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=directory):
                pass
        except OSError as error:
            raise DaemonError(
                f"{option} {directory}: {error.strerror}: give a directory that this user may write"
            ) from error


def _first(group: BaseExceptionGroup[Exception]) -> str:
    """The innermost error's text: one clear line."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error)


async def _serve(
    config: Config, credentials: Credentials, runtime_config: RuntimeConfig, zygote: Zygote
) -> None:
    """Run the machine until a signal, which may come while it is still starting."""
    with trio.open_signal_receiver(*_ENDING, signal.SIGHUP) as signals:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
        # One request waits: what comes meanwhile means the same.
        reload, requests = trio.open_memory_channel[None](1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_run_machine, config, credentials, runtime_config, zygote, requests)
            while (number := await anext(signals)) == signal.SIGHUP:
                with suppress(trio.WouldBlock):
                    reload.send_nowait(None)
            structlog.get_logger().info("stopping", signal=signal.Signals(number).name, note="pods run on")
            nursery.cancel_scope.cancel()


async def _run_machine(
    config: Config,
    credentials: Credentials,
    runtime_config: RuntimeConfig,
    zygote: Zygote,
    reloads: trio.MemoryReceiveChannel[None],
) -> None:
    """Open what the daemon stands on, join the rooms, and go on until cancelled."""
    assert config.pod_subnet is not None
    async with AsyncExitStack() as stack:
        pod_net = PodNetConfig(subnet=config.pod_subnet, ports=config.agent_ports)
        network = await stack.enter_async_context(open_pod_network(pod_net))
        references = References()
        agents = PodAgents(wall_ms)
        runtime = await stack.enter_async_context(
            open_runtime(runtime_config, network, zygote, references.lookup, agents)
        )
        here = {status.uid for status in runtime.pods()}
        for uid in network.held().keys() - here:  # links of pods of which nothing else is left
            await network.detach(uid)
        nursery = await stack.enter_async_context(trio.open_nursery())
        node = await stack.enter_async_context(open_node(_node_config(config, credentials)))
        # No await between these two: nothing is served before every room has registered its handlers.
        machine = Machine(config, credentials, runtime, node, references, agents, nursery)
        revocations = RevocationFile(node, config.state_dir / "keys" if config.keeps_identity else None)
        nursery.start_soon(revocations.run)
        nursery.start_soon(revocations.read_again, reloads)
        await machine.start()
        await trio.sleep_forever()


def _node_config(config: Config, credentials: Credentials) -> NodeConfig:
    return NodeConfig(
        host=config.mesh_host,
        port=config.mesh_port,
        identity=credentials.identity,
        policy=credentials.policy,
        member=credentials.member,
        bootstrap=credentials.bootstrap_peers,
        advertise=config.advertise,
        labels={"node": config.node_name},
        relays_for_others=config.relay,
        kinds=(holding_kind(partial(_admit_holder, credentials)),),
        max_connections=config.mesh_connections,
        timings=Timings(presence=config.dht_refresh_interval),
    )


def _admit_holder(credentials: Credentials, record: HoldingRecord, wall_ms: int) -> None:
    """Raises RemoteProtocolError for a record of who is no member."""
    credentials.policy.admit(record.peer, record.member, wall_ms)
