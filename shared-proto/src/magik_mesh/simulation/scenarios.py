"""What happens to fabrics, and the figures of it: each scenario is a function of a seeded fabric."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
from attrs import frozen

from magik_mesh.simulation import measure
from magik_mesh.simulation.fabric import Fabric, MachineFactory
from magik_mesh.simulation.hostile import RoutingLiar, Sybil, attack
from magik_mesh.simulation.linking import Knobs
from magik_mesh.simulation.machine import Machine
from magik_mesh.simulation.nearest import Nearest
from magik_proto import dht_types as d
from magik_proto.kademlia import Contact

SETTLE_S = 5.0
HOSTILE = 0.2
SYBILS = 4  # for each honest machine
DYING = 0.3
CHURN_PER_MIN = 0.01

Figures = dict[str, Any]


@frozen
class Effort:
    """How much is measured."""

    tenders: int = 10
    lookups: int = 300
    tender_wait_s: float = 10.0  # after the last one; what is delivered later is not delivered
    lookup_wait_s: float = 20.0  # likewise
    churn_s: float = 60.0
    parted_s: float = 90.0  # longer than `Timings.forget_after`: the sides have forgotten each other


def settled(nodes: int, seed: int, knobs: Knobs | None = None) -> Fabric:
    """Honest machines, well connected."""
    fabric = Fabric(nodes, seed, knobs=knobs)
    fabric.populate()
    fabric.run(SETTLE_S)
    return fabric


def with_liars(nodes: int, seed: int, knobs: Knobs | None = None) -> Fabric:
    """As `settled`, but a fifth of the machines lies about routes."""
    fabric = Fabric(nodes, seed, knobs=knobs)
    liars = dict.fromkeys(contact.peer for contact in fabric.first[: int(HOSTILE * nodes)])
    accomplices = Nearest(contact for contact in fabric.first if contact.peer in liars)

    def liar(around: Fabric, contact: Contact, known: tuple[Any, ...]) -> Machine:
        return RoutingLiar(around, contact, known, accomplices)

    fabric.populate(lambda contact: liar if contact.peer in liars else Machine)
    fabric.run(SETTLE_S)
    return fabric


def with_sybils(nodes: int, seed: int, knobs: Knobs | None = None) -> Fabric:
    """As `settled`, but there are four sybils for each honest machine; half of them lure."""
    fabric = Fabric(nodes, seed, knobs=knobs)
    honest = dict.fromkeys(contact.peer for contact in fabric.first[: nodes // (SYBILS + 1)])
    numbers = {contact.peer: number for number, contact in enumerate(fabric.first)}

    def make(contact: Contact) -> MachineFactory:
        lure = numbers[contact.peer] % 2 == 0
        if contact.peer in honest:
            return Machine
        return lambda around, contact, known: Sybil(around, contact, known, honest, lure=lure)

    fabric.populate(make)
    fabric.run(SETTLE_S)
    return fabric


def honest(fabric: Fabric) -> list[Machine]:
    """Who is no liar and no sybil, and alive."""
    return [machine for machine in fabric.machines() if type(machine) is Machine]


def _tenders(fabric: Fabric, effort: Effort, among: list[Machine]) -> Figures:
    return measure.tenders(fabric, effort.tenders, among, wait_s=effort.tender_wait_s)


def _lookups(fabric: Fabric, effort: Effort) -> Figures:
    return measure.lookups(fabric, effort.lookups, honest(fabric), wait_s=effort.lookup_wait_s)


# -- what happens


def calm(fabric: Fabric, effort: Effort) -> Figures:
    """Nothing."""
    found = _tenders(fabric, effort, honest(fabric))
    return found | _lookups(fabric, effort) | measure.shape(fabric)


def losing(share: float) -> Callable[[Fabric, Effort], Figures]:
    """So large a share of all packets is lost; QUIC sends their content again."""

    def scenario(fabric: Fabric, effort: Effort) -> Figures:
        fabric.network.conditions = attrs.evolve(fabric.network.conditions, loss=share)
        return calm(fabric, effort)

    return scenario


def churn(fabric: Fabric, effort: Effort) -> Figures:
    """1 % of the machines dies and is replaced in a minute; who is new is looked for after two seconds."""
    pause = 60.0 / (CHURN_PER_MIN * len(fabric.first))
    end = fabric.network.now + effort.churn_s
    fresh: list[tuple[Machine, Contact, int]] = []

    def replace() -> None:
        if fabric.network.now >= end:
            return
        alive = honest(fabric)
        victim, guide = fabric.some(2, alive)
        fabric.crash(victim.peer)
        contact = fabric.new_contact()
        fabric.grow(contact, (guide.peer,))
        seeker = fabric.some(1, [m for m in alive if m is not victim])[0]
        fabric.later(fabric.network.now + 2.0, lambda: look(seeker, contact))
        fabric.later(fabric.network.now + pause, replace)

    def look(seeker: Machine, contact: Contact) -> None:
        if fabric.network.actor(seeker.peer) is seeker:
            id = 2_000_000 + len(fresh)
            fresh.append((seeker, contact, id))
            fabric.network.act(seeker.peer, lambda m, now: m.dht_event(d.FindPeer(id, contact.peer), now))

    fabric.later(fabric.network.now + pause, replace)
    fabric.run(fabric.network.now + effort.churn_s / 3)
    found = _tenders(fabric, effort, honest(fabric))
    found |= _lookups(fabric, effort)
    fabric.run(end + 10.0)
    return found | measure.shape(fabric) | _fresh(fabric, fresh)


def _fresh(fabric: Fabric, fresh: list[tuple[Machine, Contact, int]]) -> Figures:
    outputs = [fabric.outcomes.get((seeker.peer, id)) for seeker, _, id in fresh]
    pairs = zip(outputs, fresh, strict=True)
    found = [
        output is not None
        and isinstance(output[0], d.PeerFound)
        and (output[0].record is not None or output[0].contact is not None)
        for output, (seeker, contact, _) in pairs
        if fabric.network.actor(seeker.peer) is seeker and fabric.network.actor(contact.peer) is not None
    ]
    return {"fresh": len(found), "fresh_found": sum(found) / len(found) if found else None}


def liars(fabric: Fabric, effort: Effort) -> Figures:
    """A fifth of the machines answers searches with its accomplices."""
    return calm(fabric, effort)


def sybils(fabric: Fabric, effort: Effort) -> Figures:
    """Four sybils for each honest machine force themselves upon them, and pass nothing on."""
    good = honest(fabric)
    attack(fabric, [m for m in fabric.machines() if isinstance(m, Sybil)], good)
    fabric.run(fabric.network.now + 15.0)
    names = dict.fromkeys(machine.peer for machine in good)
    wires = [sum(peer in names for peer in machine.linking.links.peers()) for machine in good]
    first = _tenders(fabric, effort, good)
    later = _tenders(fabric, effort, good)  # by now scores tell who does not keep its word
    first |= {f"later_{name}": later[name] for name in ("delivery", "s_to_99", "bids", "placed")}
    return first | {"honest_connections": sum(wires) / len(wires), "least_honest_connections": min(wires)}


def dying(fabric: Fabric, effort: Effort) -> Figures:
    """30 % are gone at once: tenders in the very moment, then after the silence was noticed."""
    for machine in fabric.some(int(DYING * len(fabric.first)), fabric.machines()):
        fabric.crash(machine.peer)
    at_once = measure.tenders(fabric, effort.tenders, honest(fabric), apart_s=0.1, wait_s=14.0)
    after = _tenders(fabric, effort, honest(fabric))
    after |= _lookups(fabric, effort)
    return after | {f"at_once_{name}": at_once[name] for name in ("delivery", "s_to_99", "placed")}


def parting(fabric: Fabric, effort: Effort) -> Figures:
    """Half of the machines is cut off until both sides have forgotten each other; then the network heals."""
    everyone = fabric.machines()
    side = fabric.some(len(everyone) // 2, everyone)
    heal = fabric.part([machine.peer for machine in side])
    fabric.run(fabric.network.now + effort.parted_s)
    alone = _tenders(fabric, effort, side)
    heal()
    found: Figures = {"parted_delivery": alone["delivery"]}
    healed_at = fabric.network.now
    for after_s in (1.0, 30.0, 60.0, 90.0):
        fabric.run(healed_at + after_s)
        healed = measure.tenders(fabric, 2, honest(fabric), apart_s=0.5, wait_s=4.0)
        found[f"delivery_{after_s:g}_s_after"] = healed["delivery"]
    last = _tenders(fabric, effort, honest(fabric))
    return found | last | _lookups(fabric, effort) | measure.shape(fabric)


@frozen
class Scenario:
    """`build` makes the fabric, `run` does to it what the scenario is about."""

    build: Callable[[int, int, Knobs | None], Fabric]
    run: Callable[[Fabric, Effort], Figures]


SCENARIOS: Mapping[str, Scenario] = {
    "calm": Scenario(settled, calm),
    "loss-1": Scenario(settled, losing(0.01)),
    "loss-5": Scenario(settled, losing(0.05)),
    "loss-20": Scenario(settled, losing(0.20)),
    "churn": Scenario(settled, churn),
    "dying": Scenario(settled, dying),
    "partition": Scenario(settled, parting),
    "liars": Scenario(with_liars, liars),
    "sybils": Scenario(with_sybils, sybils),
}


def simulate(
    name: str, nodes: int, seed: int, effort: Effort | None = None, knobs: Knobs | None = None
) -> Figures:
    """Run one scenario."""
    scenario = SCENARIOS[name]
    return scenario.run(scenario.build(nodes, seed, knobs), effort or Effort())
