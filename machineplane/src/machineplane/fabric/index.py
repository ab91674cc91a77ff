"""The index in the hash table: who has something of what (machineplane-spec, "The index")."""

import random
from collections.abc import Callable, Iterable, Mapping

import structlog
import trio
from attrs import define, field, frozen

from magik_mesh import Node
from magik_proto.dht_kinds import holding_key
from magik_proto.errors import ProtocolError
from magik_proto.identity import Identity, PeerId
from magik_proto.kademlia import closest
from magik_proto.records import HoldingRecord
from magik_proto.signing import new_nonce, sign

WORKLOAD, IMAGE = "workload", "image"
AT_ONCE = 4
PAUSE_S = 0.5  # between looks at what there is: pods of one award come together
LOOKUP_S = 10.0  # after which what a search has not found is not there
THINGS_MAX = 4_096  # guess: pods, images; what is more is not told


@frozen
class Life:
    """How long a record of a kind holds, and when it is renewed, in seconds."""

    life_s: int
    renewed_s: float


LIVES: Mapping[str, Life] = {WORKLOAD: Life(300, 100.0), IMAGE: Life(3600, 1200.0)}

Thing = tuple[str, str]  # what `HoldingRecord` calls `holds` and `id`


@define
class Agenda:
    """When which record is due; without I/O. ``chance()`` is from 0 up to 1."""

    chance: Callable[[], float]
    _due: dict[Thing, float] = field(factory=dict)

    def have(self, things: Iterable[Thing], now: float) -> None:
        """These are there now and no others; what is new is due at once."""
        wanted = dict.fromkeys(things)
        for thing in [t for t in self._due if t not in wanted]:
            del self._due[thing]
        for thing in wanted:
            if thing not in self._due and len(self._due) < THINGS_MAX:
                self._due[thing] = now

    def take_due(self, now: float) -> list[Thing]:
        """What to tell now; it is due again after its time, a quarter more or less."""
        found = [thing for thing, at in self._due.items() if at <= now]
        for thing in found:
            self._due[thing] = now + LIVES[thing[0]].renewed_s * (0.75 + self.chance() / 2)
        return found

    def clear(self) -> None:
        """All is due when it is there the next time."""
        self._due.clear()


class Index:
    """Tells what this machine has while the fabric is large, and finds who has something.

    ``things`` gives what there is to tell.
    """

    def __init__(
        self,
        node: Node,
        identity: Identity,
        wall: Callable[[], int],
        rng: random.Random,
        things: Callable[[], Iterable[Thing]],
    ) -> None:
        self._node = node
        self._identity = identity
        self._wall = wall
        self._things = things
        self._agenda = Agenda(rng.random)
        self._log = structlog.get_logger(room="fabric")

    async def run(self) -> None:
        """Until cancelled."""
        limiter = trio.CapacityLimiter(AT_ONCE)
        async with trio.open_nursery() as nursery:
            while True:
                if self._node.large:
                    now = trio.current_time()
                    self._agenda.have(self._things(), now)
                    for thing in self._agenda.take_due(now):
                        nursery.start_soon(self._put, thing, limiter)
                else:
                    self._agenda.clear()
                await trio.sleep(PAUSE_S)

    async def _put(self, thing: Thing, limiter: trio.CapacityLimiter) -> None:
        async with limiter:
            try:
                record = self.record_of(thing)
            except ProtocolError as error:
                self._log.warning("cannot-tell", thing=thing, error=str(error))
                return
            done = await self._node.put(record)
        self._log.debug("told", thing=thing, kept_by=done.stored, refused=done.refused)

    def record_of(self, thing: Thing) -> HoldingRecord:
        """The signed record of a thing. Raises ProtocolError for a name that cannot be told."""
        record = HoldingRecord(
            peer=self._node.id,
            holds=thing[0],
            id=thing[1],
            life=LIVES[thing[0]].life_s,
            member=self._node.shown(self._node.id),
            timestamp=self._wall(),
            nonce=new_nonce(),
        )
        return sign(record, self._identity)

    async def holders(self, holds: str, ident: str) -> tuple[PeerId, ...]:
        """Who tells to have something of a thing, this machine left out; nobody where nobody is found in time."""
        with trio.move_on_after(LOOKUP_S):
            records = await self._node.records("holding", holding_key(holds, ident))
            fitting = [
                r for r in records if isinstance(r, HoldingRecord) and (r.holds, r.id) == (holds, ident)
            ]
            return tuple(r.peer for r in fitting if r.peer != self._node.id)
        return ()

    async def nearest(self, holds: str, ident: str) -> tuple[PeerId, ...]:
        """The live machines nearest to a thing's key, nearest first, this one among them where it is as near."""
        key = holding_key(holds, ident)
        with trio.move_on_after(LOOKUP_S):
            return by_distance(key, (*await self._node.closest(key), self._node.id))
        return ()


def by_distance(key: bytes, peers: Iterable[PeerId]) -> tuple[PeerId, ...]:
    """Peers by the distance of their positions from a key."""
    found = list(peers)
    return tuple(closest(found, key, len(found)))
