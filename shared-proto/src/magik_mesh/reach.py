"""Whether this machine can be reached by those who know only its address. Decides by what probes told; no I/O.

A prober sends its datagrams from a port that we never sent anything to, so that what a NAT or a firewall lets in
as an answer does not count. It says at which address it sees us. For each address at which we are seen the majority of
the probers decides, so that a lost probe or a single liar does not; being out of reach at one of them is enough to need
a relay, as there are machines that see us only there.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

from attrs import frozen

from magik_mesh.addresses import Address


class Reach(enum.Enum):
    """The verdict."""

    UNKNOWN = "unknown"  # nobody could be asked yet
    OPEN = "open"  # strangers reach us
    CLOSED = "closed"  # only those reach us whom we called first


@frozen
class ProbeResult:
    """What came of one probe: where the prober saw us, and whether its datagrams arrived."""

    seen: Address
    arrived: bool


def judge(results: Iterable[ProbeResult]) -> Reach:
    """The verdict on all results of one survey."""
    by_host: dict[str, list[bool]] = {}
    for result in results:
        by_host.setdefault(result.seen[0], []).append(result.arrived)
    if not by_host:
        return Reach.UNKNOWN
    is_open = all(2 * sum(arrived) > len(arrived) for arrived in by_host.values())
    return Reach.OPEN if is_open else Reach.CLOSED
