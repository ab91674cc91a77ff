"""A fabric of simulated machines: how it comes to be, what can happen to it, what is seen of it."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from math import ceil
from random import Random
from typing import Any
from uuid import UUID

import attrs

from magik_mesh.simulation.linking import Knobs
from magik_mesh.simulation.machine import Machine
from magik_mesh.simulation.nearest import Nearest
from magik_proto import codec
from magik_proto import dht_types as d
from magik_proto import gossip as g
from magik_proto.dht_kinds import Kinds, machine_kind
from magik_proto.dht_types import Judged
from magik_proto.errors import ProtocolError
from magik_proto.identity import Identity, PeerId
from magik_proto.kademlia import Contact, K
from magik_proto.machine import shuffled
from magik_proto.messages import Tender, decode_as, encode_message
from magik_proto.records import MachineRecord
from magik_proto.rpc import HEADER_BYTES
from magik_proto.signing import sign, verify
from magik_proto.testing.builders import tender as make_tender
from magik_proto.testing.network import Conditions, Network

EPOCH_MS = 1_700_000_000_000
# One way, in seconds: machines of one continent.  A guess; times in the results scale with it.
CALM = Conditions(latency_s=0.005, jitter_s=0.02, repeat_s=0.2)
_WARM_ROUNDS = 4  # choosing whom to dial, eight at a time, and dialling

MachineFactory = Callable[["Fabric", Contact, tuple[PeerId, ...]], Machine]


@attrs.define
class Reach:
    """Whom a tender reached, and when."""

    owner: PeerId
    published: float
    at: dict[PeerId, float] = attrs.field(factory=dict)

    def delay(self, share: float, wanted: Sequence[PeerId]) -> float | None:
        """Seconds until so large a share of `wanted` had it; None if they never did."""
        times = sorted(self.at[peer] for peer in wanted if peer in self.at)
        index = ceil(share * len(wanted)) - 1
        return times[index] - self.published if index < len(times) else None


class Fabric:
    """All machines, their network, and the world outside of them: clocks, silence, people.

    `seed` decides everything. Identities are real keys; a signature is checked once for each message and
    not once for each machine, by the very code (the answer cannot differ between machines).
    """

    def __init__(
        self, nodes: int, seed: int, conditions: Conditions = CALM, knobs: Knobs | None = None
    ) -> None:
        self.seed = seed
        self.rng = Random(f"fabric {seed}")
        self.knobs = knobs or Knobs()
        self.network: Network[Machine] = Network(seed, conditions, self.rng)
        self.reached: dict[UUID, Reach] = {}
        self.outcomes: dict[tuple[PeerId, int], tuple[d.DhtOutput, float]] = {}
        self.joined = 0
        self._contacts: dict[PeerId, Contact] = {}
        self._seeds: dict[PeerId, bytes] = {}
        self._verdicts: dict[bytes, tuple[g.Verdict, Tender | None]] = {}
        self._kinds = Kinds((machine_kind(),))
        self._judged: dict[bytes, tuple[Judged, float]] = {}
        self._frame: tuple[dict[str, Any] | None, int] = (None, 0)
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self.first = [self.new_contact() for _ in range(nodes)]

    # -- what machines share (`Surroundings`)

    def contact(self, peer: PeerId) -> Contact:
        """Where a peer is."""
        return self._contacts[peer]

    def verdict(self, payload: bytes) -> tuple[g.Verdict, Tender | None]:
        """What a machine's validator says of a message: a tender with a good signature is accepted."""
        known = self._verdicts.get(payload)
        if known is None:
            try:
                tender = decode_as(Tender, payload)
                verify(tender)
                known = (g.Verdict.ACCEPT, tender)
            except ProtocolError:
                known = (g.Verdict.REJECT, None)
            self._verdicts[payload] = known
        return known

    def judge(self, data: bytes, now: float) -> Judged:
        """`Kinds.judge`; what does not depend on the time is found out once for each record."""
        known = self._judged.get(data)
        if known is None or known[1] <= now:
            judged = self._kinds.judge(data, EPOCH_MS + int(now * 1000))
            known = self._judged[data] = (judged, now + judged.life_s)
        return attrs.evolve(known[0], life_s=known[1] - now)

    def frame_bytes(self, frame: dict[str, Any]) -> int:
        """The size of a frame on its stream; gossip sends the same one to several peers in a row."""
        if self._frame[0] is not frame:
            self._frame = (frame, HEADER_BYTES + len(codec.write(frame)))
        return self._frame[1]

    def tender_payload(self, tender_id: UUID, own: PeerId, number: int, sample: int) -> bytes:
        """A tender of a small workload, signed by its owner."""
        tender = make_tender(0, id=tender_id, round=number, bid_sample=sample, nonce=number)
        tender = attrs.evolve(tender, owner=own, timestamp=EPOCH_MS + int(self.network.now * 1000))
        self.reached.setdefault(tender_id, Reach(own, self.network.now))
        return encode_message(sign(tender, self.identity(own)))

    def saw_tender(self, machine: Machine, tender: Tender, now: float) -> None:
        """Called by each machine that a tender reaches."""
        self.reached[tender.id].at.setdefault(machine.peer, now)

    def saw_dht(self, machine: Machine, output: d.DhtOutput, now: float) -> None:
        """Called when a request to a machine's hash table has ended."""
        if isinstance(output, d.Joined):
            self.joined += 1
        elif isinstance(output, d.LookedUp | d.PeerFound | d.Got | d.PutDone):
            self.outcomes[machine.peer, output.id] = (output, now)

    # -- who there is

    def new_contact(self) -> Contact:
        """A machine that did not exist before, with an address of its own."""
        number = len(self._contacts) + 1
        seed = self.rng.randbytes(32)
        peer = Identity.from_seed(seed).peer_id
        self._seeds[peer] = seed
        host = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
        contact = self._contacts[peer] = Contact(peer, (f"{host}:4001",))
        return contact

    def identity(self, peer: PeerId) -> Identity:
        """A machine's keys."""
        return Identity.from_seed(self._seeds[peer])

    def record(self, peer: PeerId) -> bytes:
        """A machine's record, as it would put it now."""
        now_ms = EPOCH_MS + int(self.network.now * 1000)
        addrs = self._contacts[peer].addrs
        record = MachineRecord(peer=peer, addrs=addrs, seq=now_ms, timestamp=now_ms, nonce=1)
        return encode_message(sign(record, self.identity(peer)))

    def machines(self) -> list[Machine]:
        """All that are alive, in the order in which they came."""
        found = (self.network.actor(peer) for peer in self.network.peers)
        return [machine for machine in found if machine is not None]

    def some(self, count: int, among: Sequence[Machine]) -> list[Machine]:
        """So many different ones at random."""
        return self.rng.sample(list(among), count)

    # -- coming to be

    def grow(self, contact: Contact, known: tuple[PeerId, ...], make: MachineFactory = Machine) -> Machine:
        """A machine starts that knows some others."""
        return self.network.add(contact.peer, lambda: make(self, contact, known))

    def populate(self, make: Callable[[Contact], MachineFactory] = lambda contact: Machine) -> None:
        """All of the first machines, as they are long after their start: in each other's tables, and connected
        as the policy of connections has it. Nothing was sent yet: what connections bring follows in `run`.
        """
        for contact in self.first:
            self.grow(contact, (), make(contact))
        self._fill_tables()
        self._connect()

    def _fill_tables(self) -> None:
        """What Kademlia comes to: of each part of the space up to k peers, any of them."""
        everyone = Nearest(self.first)
        for contact in self.first:
            machine = self.network.actor(contact.peer)
            assert machine is not None
            index, chosen = 0, list[Contact]()
            while True:
                low, high = everyone.bucket(contact.place, index)
                chosen += [everyone.at(i) for i in self._pick(low, high)]
                index += 1
                if len(everyone.sharing(contact.place, index)) <= 1:
                    break
            _know(machine, chosen)

    def _pick(self, low: int, high: int) -> Iterable[int]:
        size = high - low
        return range(low, high) if size <= K else self.rng.sample(range(low, high), K)

    def _connect(self) -> None:
        """Dials by plan and policy, without the way there: who is chosen and due dials, who has room takes."""
        for attempt in range(_WARM_ROUNDS):
            for contact in self.first:
                machine = self.network.actor(contact.peer)
                assert machine is not None
                machine.choose(float(attempt))
            dialled = sum(
                self._connect_one(contact.peer, float(attempt)) for contact in shuffled(self.rng, self.first)
            )
            if not dialled:
                break
        for contact in self.first:
            self.network.act(contact.peer, lambda machine, now: machine.linking.greet_all(now))

    def _connect_one(self, peer: PeerId, when: float) -> int:
        machine = self.network.actor(peer)
        assert machine is not None
        links, plan = machine.linking.links, machine.linking.plan
        if links.room_for_dials(0) <= 0:
            return 0
        due = plan.take_due(when, min(self.knobs.limits.dials, links.room_for_dials(0)))
        for to in due:
            other = self.network.actor(to)
            assert other is not None
            plan.finished(to)
            if to in links:
                continue
            if not other.linking.links.has_room_for(len(links)):
                plan.put_off(to, when)
                continue
            self._link(machine, other)
        return len(due)

    def _link(self, machine: Machine, other: Machine) -> None:
        if len(other.linking.links) >= self.knobs.max_connections:
            spare = other.linking.links.spare()
            assert spare is not None
            third = self.network.actor(spare.peer)
            assert third is not None
            other.linking.forget(third.peer, 0.0)
            third.linking.forget(other.peer, 0.0)
        machine.linking.adopt(other.peer, dialled=True)
        other.linking.adopt(machine.peer, dialled=False)

    # -- what happens

    def later(self, when: float, action: Callable[[], None]) -> None:
        """Do something at a point in network time, within `run`."""
        self._count += 1
        heapq.heappush(self._later, (when, self._count, action))

    def run(self, until: float) -> None:
        """Let time pass."""
        while self._later and self._later[0][0] <= until:
            when, _, action = heapq.heappop(self._later)
            self.network.run(max(when, self.network.now))
            action()
        self.network.run(until)

    def crash(self, peer: PeerId) -> None:
        """A machine is gone without a word; its peers notice by its silence."""
        machine = self.network.actor(peer)
        if machine is not None:
            self.network.crash(peer)
            for other in machine.linking.links.peers():
                self._silence(other, peer)

    def part(self, group: Iterable[PeerId]) -> Callable[[], None]:
        """The network parts these from the others; what is returned heals it."""
        one = dict.fromkeys(group)
        self.network.partition(one)
        parted = [True]

        def heal() -> None:
            parted.clear()
            self.network.heal()

        for machine in self.machines():
            for other in machine.linking.links.peers():
                if (machine.peer in one) != (other in one):
                    self._silence(machine.peer, other, lambda: bool(parted))
        return heal

    def _silence(self, peer: PeerId, other: PeerId, still: Callable[[], bool] = lambda: True) -> None:
        """QUIC's idle time-out, after the last keep-alive."""
        timings = self.knobs.timings
        when = self.network.now + timings.idle_timeout - timings.keep_alive * self.rng.random()

        def lose() -> None:
            if still() and self.network.actor(peer) is not None:
                self.network.act(peer, lambda machine, now: machine.linking.lost(other, now))

        self.later(when, lose)


def _know(machine: Machine, contacts: Sequence[Contact]) -> None:
    """Contacts that proved themselves long ago. The own neighbourhood is among them: the first lookup, which
    would find it, is answered with nothing."""
    for contact in contacts[-1:]:
        for output in machine.dht.receive(d.PeerProved(contact), 0.0):
            if isinstance(output, d.Ask):
                machine.dht.receive(d.Answered(output.query, d.Found()), 0.0)
    for contact in contacts:
        machine.dht.table.seen(contact)
