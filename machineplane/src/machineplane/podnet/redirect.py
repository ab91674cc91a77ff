"""The rule in a pod's namespace that brings TCP to Services' addresses to the pod's agent. Blocking.

It is in a table of its own: what a pod with ``NET_ADMIN`` makes in its namespace is not touched.
"""

from contextlib import suppress
from functools import partial

from machineplane.linux import nft
from machineplane.podnet.links import enter_pod

SERVICES = "127.64.0.0/10"
"""Where agents give names addresses (workplane-spec, "Traffic")."""
TABLE = "magik-agent"
_DSTNAT = -100  # the priority by this name, which nft knows for other hooks


def redirect_services(uid: str, pid: int, port: int) -> None:
    """Have TCP from the pod to any port of :data:`SERVICES` come to ``port`` there; done again, nothing changes.

    The address stays: with one for all, clients would share the 64 Ki ports that can lead to it, and a port rests for two
    minutes (measured: new connections stall after 35,000; as it is, 100,000 at 3,700 a second did not).

    Connections that are open go on. Raises :class:`~machineplane.podnet.errors.PodGone`, or
    :class:`~machineplane.linux.nft.NftError`: then nothing is redirected.
    """
    enter_pod(uid, pid, partial(_install, port))


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
