"""The rule in a pod's namespace that brings TCP to Services' addresses to the pod's agent. Blocking.

It is in a table of its own: what a pod with ``NET_ADMIN`` makes in its namespace is not touched.
"""

import socket
from collections.abc import Iterable
from contextlib import suppress
from functools import partial

from machineplane.linux import nft
from machineplane.podnet.errors import PodNetworkError
from machineplane.podnet.links import enter_pod

SERVICES = "127.64.0.0/10"
"""Where agents give names addresses (workplane-spec, "Traffic")."""
TABLE = "magik-agent"
_DSTNAT = -100  # the priority by this name, which nft knows for other hooks


def redirect_services(uid: str, pid: int, ports: Iterable[int]) -> int:
    """Have TCP from the pod to any port of :data:`SERVICES` come to one port there: the first of ``ports`` that nobody in
    the pod has now, which is returned. Done again, nothing changes, unless that one was taken since.

    The address stays: with one for all, clients would share the 64 Ki ports that can lead to it, and a port rests for two
    minutes (measured: new connections stall after 35,000; as it is, 100,000 at 3,700 a second did not).

    Connections that are open go on. Raises :class:`~machineplane.podnet.errors.PodNetworkError` (where the pod is gone, or
    has all of the ports), or :class:`~machineplane.linux.nft.NftError`: then nothing is redirected.
    """
    return enter_pod(uid, pid, partial(_redirect, uid, tuple(ports)))


def _redirect(uid: str, ports: tuple[int, ...]) -> int:
    port = next(filter(_is_free, ports), None)
    if port is None:
        with suppress(nft.NftError):
            nft.delete_table("ip", TABLE)
        raise PodNetworkError(
            f"pod {uid} listens itself at all ports to which Services could be redirected: {ports}"
        )
    _install(port)
    return port


def _is_free(port: int) -> bool:
    """Whether the agent could listen there: it asks the kernel as the agent does, save for the interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("0.0.0.0", port))
            sock.listen(1)
        except OSError:
            return False
    return True


def _install(port: int) -> None:
    try:
        nft.run(
            f"add table ip {TABLE}\n"
            f"add chain ip {TABLE} output {{ type nat hook output priority {_DSTNAT}; policy accept; }}\n"
            f"flush chain ip {TABLE} output\n"
            f"add rule ip {TABLE} output ip daddr {SERVICES} meta l4proto tcp dnat to :{port}"
        )
    except nft.NftError:
        with suppress(nft.NftError):  # where there is no nftables, there is no table either
            nft.delete_table("ip", TABLE)
        raise
