"""The pods' network of one machine: a bridge, and a link and an address for each pod."""

import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from typing import TypeVar

import trio
from attrs import field, frozen

from machineplane.linux import nft
from machineplane.podnet.addresses import AddressPool
from machineplane.podnet.bridge import Bridge, lower_bridge, raise_bridge
from machineplane.podnet.errors import PodGone, PodNetworkError
from machineplane.podnet.links import connect_pod, disconnect_pod, pod_address
from machineplane.podnet.marks import PodMark, is_bridge_name, is_uid, link_name
from machineplane.podnet.ports import Forward, PortPool
from machineplane.podnet.redirect import redirect_services
from machineplane.podnet.rules import add_forward, remove_forward

T = TypeVar("T")

DEFAULT_SUBNET = "10.88.0.0/16"

# How many pods are wired at a time. Guess: more only queue at the kernel's one lock for links (rtnl).
ATTACH_LIMIT = 4


@frozen
class PodNetConfig:
    """``bridge``: its name; ``subnet``: the pods' addresses, the first being the bridge's.

    ``mtu`` in bytes (None: that of the link of the machine's default route); ``masquerade``: whether pods
    reach the world under the machine's address; ``ports``: UDP ports of the machine, one of which a pod can
    be reached by from other machines (None: by none).
    """

    bridge: str = "magik0"
    subnet: IPv4Network = field(factory=lambda: IPv4Network(DEFAULT_SUBNET))
    mtu: int | None = None
    masquerade: bool = True
    ports: range | None = None


@frozen
class PodAddress:
    """Where a pod is on the network."""

    ip: str
    gateway: str
    prefix: int
    interface: str  # the host's end of its link


class BridgedPodNetwork:
    """Attaches pods to a bridge; made by :func:`open_pod_network`.

    Addresses come from the subnet in a ring; at its end :class:`SubnetExhausted` is raised and nothing is
    changed.
    """

    def __init__(self, config: PodNetConfig, bridge: Bridge) -> None:
        self._config = config
        self._bridge = bridge
        self._pool = AddressPool(config.subnet)
        self._limit = trio.CapacityLimiter(ATTACH_LIMIT)
        self._ports = PortPool(config.ports) if config.ports else None
        self._turn = trio.Lock()  # of forwarding
        for mark in bridge.pods:
            self._pool.restore(mark.uid, mark.address)
        for uid, found in bridge.forwards.items():
            if self._ports:
                self._ports.hold(uid, found)

    def held(self) -> dict[str, IPv4Address]:
        """Pods (by uid) and their addresses, those of an earlier daemon among them."""
        return self._pool.held()

    async def attach(self, pod_uid: str, pid: int) -> PodAddress:
        """Wire the network namespace of process ``pid``: ``lo``, ``eth0``, an address, a default route.

        A pod that was attached before is wired anew under the address that it had. Raises
        :class:`SubnetExhausted`, :class:`PodGone` or :class:`LinkFailed`, leaving no link behind.
        """
        if not is_uid(pod_uid):
            raise PodNetworkError(
                f"pod uid {pod_uid!r} is not one: letters, digits, '.', '_' and '-', at most 128"
            )
        known = self._pool.get(pod_uid) is not None
        mark = PodMark(pod_uid, self._pool.take(pod_uid))
        # Shielded, as it takes milliseconds and a half-made link is worth nothing.
        with trio.CancelScope(shield=True):
            try:
                if known:
                    await self._work(partial(disconnect_pod, pod_uid))
                await self._work(partial(connect_pod, self._bridge, self._config.subnet, mark, pid))
            except PodNetworkError:
                await self._close(pod_uid)
                self._pool.release(pod_uid)
                raise
        return self._describe(mark)

    async def detach(self, pod_uid: str) -> None:
        """Remove the pod's link, its port of the machine, and its address; nothing happens for an unknown pod."""
        with trio.CancelScope(shield=True):
            await self._work(partial(disconnect_pod, pod_uid))
            await self._close(pod_uid)
        self._pool.release(pod_uid)

    async def forward(self, pod_uid: str, udp_port: int) -> int:
        """The UDP port of the machine (any of its addresses) that leads to ``udp_port`` of an attached pod.

        A pod has one, the same until it is detached, under later daemons too. Raises :class:`PortsExhausted`,
        which leaves the pod's other network as it is, :class:`PodGone` for a pod that is not attached, or
        :class:`~machineplane.linux.nft.NftError`.
        """
        if self._ports is None:
            raise PodNetworkError(f"pod {pod_uid}: this network was opened without ports for pods")
        async with self._turn:
            return await self._open(self._ports, pod_uid, udp_port)

    async def redirect(self, pod_uid: str, pid: int, tcp_ports: Sequence[int]) -> int:
        """Have TCP from within a pod to Services' addresses come to one port of them: the first of ``tcp_ports`` that is
        free in the pod, which is returned.

        It lasts as long as the network namespace of process ``pid``. Raises :class:`PodNetworkError`, or
        :class:`~machineplane.linux.nft.NftError`: then nothing is redirected.
        """
        return await self._work(partial(redirect_services, pod_uid, pid, tcp_ports))

    async def _open(self, ports: PortPool, pod_uid: str, udp_port: int) -> int:
        address = self._pool.get(pod_uid)
        if address is None:
            raise PodGone(f"pod {pod_uid} is not attached to the network, so no port can lead to it")
        had = ports.get(pod_uid)
        wanted = Forward(had.port if had else ports.find(pod_uid, _is_free), address, udp_port)
        if had != wanted:
            with trio.CancelScope(shield=True):
                if had:
                    await self._work(partial(remove_forward, self._bridge.name, had))
                await self._work(partial(add_forward, self._bridge.name, wanted))
            ports.hold(pod_uid, wanted)
        return wanted.port

    async def _close(self, pod_uid: str) -> None:
        async with self._turn:
            if self._ports and (had := self._ports.get(pod_uid)):
                await self._work(partial(remove_forward, self._bridge.name, had))
                self._ports.release(pod_uid)

    async def recover(self, pod_uid: str, pid: int) -> PodAddress:
        """Take over a pod of an earlier daemon under the address that it has; wire it anew only where that is
        lost.

        Raises :class:`PodGone` where ``pid`` has ended: its address is then free again.
        """
        address = self._pool.get(pod_uid)
        try:
            inside = await self._work(partial(pod_address, pod_uid, pid))
        except PodGone:
            await self.detach(pod_uid)
            raise
        if address is None or inside != address:
            return await self.attach(pod_uid, pid)
        return self._describe(PodMark(pod_uid, address))

    def _describe(self, mark: PodMark) -> PodAddress:
        return PodAddress(
            ip=str(mark.address),
            gateway=str(self._pool.gateway),
            prefix=self._config.subnet.prefixlen,
            interface=link_name(mark.uid),
        )

    async def _work(self, function: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(function, limiter=self._limit)


def _is_free(port: int) -> bool:
    """Whether no program of the machine has UDP port ``port``: a forwarded one would take its datagrams away."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


@asynccontextmanager
async def open_pod_network(config: PodNetConfig) -> AsyncIterator[BridgedPodNetwork]:
    """Raise the bridge (or adopt that of an earlier daemon, with the pods on it), and give the network.

    At the end everything is removed, unless pods are still wired: then all stays for the next daemon. Raises
    :class:`BridgeConflict`, :class:`LinkFailed`, or :class:`~machineplane.linux.nft.NftError` (with
    :class:`~machineplane.linux.nft.NftUnavailable`: what to install) and changes nothing that it does not
    undo.
    """
    if not is_bridge_name(config.bridge):
        raise PodNetworkError(
            f"bridge name {config.bridge!r} is not one: a-z, then a-z, 0-9, '-', '_', at most 15"
        )
    AddressPool(config.subnet)  # refuses a subnet without room before anything is made
    masquerade, forwards = config.masquerade, config.ports is not None
    if masquerade or forwards:
        nft.check()
    make = partial(
        raise_bridge, config.bridge, config.subnet, config.mtu, masquerade=masquerade, forwards=forwards
    )
    try:
        network = BridgedPodNetwork(config, await trio.to_thread.run_sync(make))
        yield network
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(lower_bridge, config.bridge)
