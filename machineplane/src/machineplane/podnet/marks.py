"""How our links are named and marked, so that a restarted daemon finds them with no file of its own.

The kernel keeps a free text with each link (its alias). Ours say which pod and address a link belongs to, and
what the machine's ``ip_forward`` was before the bridge; they vanish with the link, so they are never stale.
Pure functions.
"""

import hashlib
import re
from ipaddress import IPv4Address

from attrs import frozen

BRIDGE_MARK = "magik-podnet"
POD_MARK = "magik-pod"
NAME_LIMIT = 15  # IFNAMSIZ less the NUL
UID_LIMIT = 128  # an alias holds 255 bytes

_BRIDGE_NAME = re.compile(r"[a-z][a-z0-9_-]{0,14}")
_UID = re.compile(rf"[A-Za-z0-9._-]{{1,{UID_LIMIT}}}")


@frozen
class PodMark:
    """The alias of a pod's link on the host's side."""

    uid: str
    address: IPv4Address

    def __str__(self) -> str:
        return f"{POD_MARK} {self.uid} {self.address}"

    @classmethod
    def parse(cls, alias: str | None) -> "PodMark | None":
        """The mark in ``alias``; None where there is none of ours."""
        words = (alias or "").split(" ")
        if len(words) != 3 or words[0] != POD_MARK:
            return None
        try:
            return cls(words[1], IPv4Address(words[2]))
        except ValueError:
            return None


@frozen
class BridgeMark:
    """The alias of a pod bridge; ``forwarding_was`` is ``ip_forward`` as found by the first of our bridges."""

    forwarding_was: bool

    def __str__(self) -> str:
        return f"{BRIDGE_MARK} ip_forward={int(self.forwarding_was)}"

    @classmethod
    def parse(cls, alias: str | None) -> "BridgeMark | None":
        """The mark in ``alias``; None where there is none of ours."""
        if alias not in (f"{BRIDGE_MARK} ip_forward=0", f"{BRIDGE_MARK} ip_forward=1"):
            return None
        return cls(alias.endswith("1"))


def link_name(uid: str) -> str:
    """The name of the host's end of a pod's link, 15 characters: 40 bits of a digest, as uids are longer."""
    return "magik" + hashlib.sha256(uid.encode()).hexdigest()[:10]


def is_bridge_name(name: str) -> bool:
    """Whether ``name`` serves as a bridge's and, quoted or not, in nftables."""
    return _BRIDGE_NAME.fullmatch(name) is not None


def is_uid(uid: str) -> bool:
    """Whether ``uid`` fits into a mark unharmed."""
    return _UID.fullmatch(uid) is not None


def bridge_mac(name: str) -> str:
    """A fixed address for the bridge.

    Without one the kernel gives a bridge the lowest address of its ports: it would change as pods come and
    go, and other pods would send to the old one until their neighbour entries age.
    """
    return "02:" + ":".join(f"{byte:02x}" for byte in hashlib.sha256(name.encode()).digest()[:5])


def pod_mac(address: IPv4Address) -> str:
    """A link address that follows from the IP address, so that reuse of the latter leaves no stale neighbour."""
    return "0a:58:" + ":".join(f"{byte:02x}" for byte in address.packed)
