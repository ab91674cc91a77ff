"""What is measured of a simulated fabric."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from statistics import fmean, median
from typing import Any
from uuid import UUID

import attrs

from magik_mesh.simulation.fabric import Fabric
from magik_mesh.simulation.machine import Machine, Trace
from magik_mesh.simulation.nearest import Nearest
from magik_proto import dht_types as d
from magik_proto.identity import PeerId
from magik_proto.kademlia import Contact, K, position

REPLICAS = 3


def tenders(
    fabric: Fabric, count: int, honest: Sequence[Machine], *, apart_s: float = 1.0, wait_s: float = 10.0
) -> dict[str, Any]:
    """Place `count` small workloads, one after the other, and see whom the tenders reach and at what cost.

    `delivery` is the share of all (tender, machine) pairs of honest machines that were alive all the time.
    """
    before = [(machine.frames_sent, machine.bytes_sent) for machine in honest]
    ids = [UUID(int=fabric.rng.getrandbits(128)) for _ in range(count)]
    for tender_id, machine in zip(ids, fabric.some(count, honest), strict=True):
        fabric.network.act(machine.peer, lambda m, now, of=tender_id: m.place(of, REPLICAS, now))  # type: ignore[misc]
        fabric.run(fabric.network.now + apart_s)
    fabric.run(fabric.network.now + wait_s)
    alive = _alive(fabric, honest)
    costs = [
        (machine.frames_sent - frames, machine.bytes_sent - size)
        for machine, (frames, size) in zip(honest, before, strict=True)
    ]
    return _reach(fabric, ids, [machine.peer for machine in alive]) | {
        "frames_per_node": round(fmean(frames for frames, _ in costs) / count, 2),
        "bytes_per_node": round(fmean(size for _, size in costs) / count, 1),
        "bytes_of_busiest": max(size for _, size in costs) // count,
        **_market(fabric, ids),
    }


def _reach(fabric: Fabric, ids: list[UUID], alive: list[PeerId]) -> dict[str, Any]:
    reached = [fabric.reached[tender_id] for tender_id in ids]
    shares = [sum(peer in reach.at for peer in alive) / len(alive) for reach in reached]
    times = [reach.delay(0.99, alive) for reach in reached]
    known = [time for time in times if time is not None]
    return {
        "tenders": len(ids),
        "delivery": round(fmean(shares), 6),
        "worst_delivery": round(min(shares), 6),
        "s_to_99": round(median(known), 4) if len(known) == len(times) else None,
        "worst_s_to_99": round(max(known), 4) if len(known) == len(times) else None,
    }


def _market(fabric: Fabric, ids: list[UUID]) -> dict[str, Any]:
    bids, placed = [], 0
    for tender_id in ids:
        owner = fabric.network.actor(fabric.reached[tender_id].owner)
        if owner is None:
            continue
        bids.append(owner.trading.bids.get(tender_id, 0))
        ended = owner.trading.finished.get(tender_id)
        placed += ended is not None and ended.unplaced == 0
    return {"bids": round(fmean(bids), 1) if bids else 0, "most_bids": max(bids, default=0), "placed": placed}


# -- lookups


@attrs.frozen
class _Quest:
    id: int
    machine: Machine
    trace: Trace
    wanted: Contact
    record: bytes | None
    begun: float


def lookups(fabric: Fabric, count: int, honest: Sequence[Machine], *, wait_s: float = 20.0) -> dict[str, Any]:
    """Searches of three kinds, by different machines: who is nearest to a random position, where is a machine,
    and what is a machine's record. One is right that finds the nearest live honest machine, that machine, or
    the very record that it had put before. A search does not count whose machine died before it ended, or if
    the nearest that was to be found died meanwhile.
    """
    authors = fabric.some(max(1, count // 3), _alive(fabric, honest))
    records = {machine.peer: fabric.record(machine.peer) for machine in authors}
    for machine in authors:
        _request(fabric, machine, d.Put(-1_000_001, records[machine.peer]))
    fabric.run(fabric.network.now + wait_s)
    alive = _alive(fabric, honest)
    truth = Nearest(machine.contact for machine in alive)
    quests = [
        _begin(fabric, number, machine, truth, authors, records)
        for number, machine in enumerate(fabric.some(min(count, len(alive)), alive))
    ]
    fabric.run(fabric.network.now + wait_s)
    return _results(fabric, [quest for quest in quests if _counts(fabric, quest)])


def _alive(fabric: Fabric, machines: Sequence[Machine]) -> list[Machine]:
    return [machine for machine in machines if fabric.network.actor(machine.peer) is machine]


def _counts(fabric: Fabric, quest: _Quest) -> bool:
    """Whether there was somebody to find it, and somebody to be found."""
    ended = (quest.machine.peer, quest.id) in fabric.outcomes
    if not ended and fabric.network.actor(quest.machine.peer) is not quest.machine:
        return False
    return quest.id % 1_000_000 % 3 != 0 or fabric.network.actor(quest.wanted.peer) is not None


def _request(fabric: Fabric, machine: Machine, event: d.DhtEvent) -> None:
    fabric.network.act(machine.peer, lambda m, now: m.dht_event(event, now))


def _begin(
    fabric: Fabric,
    number: int,
    machine: Machine,
    truth: Nearest,
    authors: Sequence[Machine],
    records: dict[PeerId, bytes],
) -> _Quest:
    id = 1_000_000 + number
    record: bytes | None = None
    others = [author for author in (authors[number % len(authors)], authors[0]) if author is not machine]
    wanted = others[0].contact if others else machine.contact
    event: d.DhtEvent = d.FindPeer(id, wanted.peer)
    key = position(wanted.peer)
    match number % 3:
        case 0:
            key = fabric.rng.randbytes(32)
            nearest = truth.of(int.from_bytes(key, "big"), 2)
            wanted = nearest[0] if nearest[0].peer != machine.peer else nearest[1]
            event = d.LookUp(id, key)
        case 1:
            record = records[wanted.peer]
            event = d.Get(id, key, "machine")
    machine.trace = trace = Trace(key)
    _request(fabric, machine, event)
    return _Quest(id, machine, trace, wanted, record, fabric.network.now)


def _results(fabric: Fabric, quests: list[_Quest]) -> dict[str, Any]:
    kinds = ("nearest", "record", "peer")
    right: dict[str, list[bool]] = {kind: [] for kind in kinds}
    hops, queries, times = [], [], []
    for quest in quests:
        output, when = fabric.outcomes.get((quest.machine.peer, quest.id), (None, fabric.network.now))
        found = _is_right(output, quest)
        right[kinds[quest.id % 1_000_000 % 3]].append(found)
        quest.machine.trace = None
        queries.append(len(quest.trace.queries))
        times.append(when - quest.begun)
        if found and quest.wanted.peer in quest.trace.depth:
            hops.append(quest.trace.depth[quest.wanted.peer])
    flat = [one for several in right.values() for one in several]
    return {
        "lookups": len(flat),
        "right": round(fmean(flat), 5),
        **{f"right_{kind}": round(fmean(several), 5) for kind, several in right.items() if several},
        "hops": round(fmean(hops), 3) if hops else None,
        "queries": round(fmean(queries), 1),
        "s": round(median(times), 3),
        "worst_s": round(max(times), 3),
    }


def _is_right(output: d.DhtOutput | None, quest: _Quest) -> bool:
    match output:
        case d.LookedUp(_, closest):
            return any(contact.peer == quest.wanted.peer for contact in closest)
        case d.PeerFound(_, record, contact):
            return record is not None or (contact is not None and contact.peer == quest.wanted.peer)
        case d.Got(_, records, _):
            return quest.record in records
    return False


def shape(fabric: Fabric) -> dict[str, Any]:
    """Connections, mesh and table of the machines that are alive."""
    machines = fabric.machines()
    links = [len(machine.linking.links) for machine in machines]
    return {
        "connections": round(fmean(links), 2),
        "most_connections": max(links),
        "known_peers": round(fmean(len(machine.dht.table) for machine in machines), 1),
        "nearest_k": K,
    }


def growth(sizes: Sequence[int], values: Sequence[float]) -> float:
    """How a figure grows with the fabric: the least squares of value = a + b·log2 N, as b in shares of a figure
    at the smallest size for each doubling. 0 is no growth; what grows as log N has a constant b."""
    logs = [log(size, 2) for size in sizes]
    middle = fmean(logs)
    slope = sum((x - middle) * y for x, y in zip(logs, values, strict=True)) / sum(
        (x - middle) ** 2 for x in logs
    )
    return slope / values[0]


__all__ = ["growth", "lookups", "shape", "tenders"]
