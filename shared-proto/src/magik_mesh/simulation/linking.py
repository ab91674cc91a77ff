"""The connections of a simulated machine: `magik_mesh.connections` and `magik_mesh.dialer` without sockets.

Who is chosen, who is dialled when, who is taken, who goes for another and which of two connections stays is
decided by the same code as there: `Neighbours`, `DialPlan`, `Occupants` and `answer_hello`. Brief
connections (`magik_mesh.briefs`) cost the dialler a handshake and last until they are idle; the limit that
the other side has for them is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Any

from attrs import define, field, frozen

from magik_mesh.arbitration import Answer, Standing, answer_hello
from magik_mesh.config import MeshLimits, Timings
from magik_mesh.dialing import DialPlan
from magik_mesh.links import Occupants
from magik_mesh.neighbours import Neighbours
from magik_mesh.simulation.says import Accepted, Closed, Dial, Greet, Greeted
from magik_proto.identity import PeerId
from magik_proto.machine import below
from magik_proto.testing.network import Send


@frozen
class Knobs:
    """What of `NodeConfig` the simulation uses."""

    max_connections: int = 64
    timings: Timings = field(factory=Timings)
    limits: MeshLimits = field(factory=lambda: MeshLimits(peers_per_exchange=16))


@define(eq=False)
class Wire:
    """One connection in use."""

    peer: PeerId
    standing: Standing
    since: float
    last_used: float
    dialled: bool = False
    useful: bool = False
    calls: int = 0

    @property
    def busy(self) -> bool:
        """Whether a call is under way on it."""
        return self.calls > 0


@define(eq=False)
class _Dialing:
    deadline: float
    urgent: bool
    greeted: bool = False
    waiting: list[Any] = field(factory=list)  # to be sent when connected
    early: list[Any] = field(factory=list)  # came before the answer to our hello


@define(eq=False)
class _Brief:
    """A brief connection: being opened while there is a `deadline`."""

    last_used: float
    deadline: float | None = None
    waiting: list[Any] = field(factory=list)


class Linking:
    """Connections of one machine.

    `up(peer, dialled, now)` and `down(peer, now)` tell of them, `failed(peer, messages, now)` of what could
    not be sent; `again(peer, message, now)` takes in what came before the connection was in use.
    """

    __slots__ = (
        "_again",
        "_briefs",
        "_count",
        "_dials",
        "_down",
        "_failed",
        "_incarnation",
        "_knobs",
        "_own",
        "_up",
        "due",
        "links",
        "neighbours",
        "plan",
    )

    def __init__(
        self,
        own: PeerId,
        knobs: Knobs,
        random: Random,
        *,
        up: Callable[[PeerId, bool, float], list[Send]],
        down: Callable[[PeerId, float], list[Send]],
        failed: Callable[[PeerId, list[Any], float], list[Send]],
        again: Callable[[PeerId, Any, float], list[Send]],
    ) -> None:
        self._own = own
        self._knobs = knobs
        self._up, self._down, self._failed, self._again = up, down, failed, again
        self._incarnation = random.getrandbits(63)
        self._count = 0
        self._dials: dict[PeerId, _Dialing] = {}  # in the order of their deadlines
        self.links: Occupants[Wire] = Occupants(knobs.max_connections)
        self._briefs: dict[PeerId, _Brief] = {}  # the longest not used first
        self.plan = DialPlan(knobs.timings, random.random)
        self.neighbours = Neighbours(knobs.max_connections, lambda n: below(random, n))
        self.due: float | None = None  # when to call `poll`

    # -- what is wanted

    def learn(self, peers: Iterable[PeerId], now: float) -> None:
        """Machines that exist: to be dialled, if they are chosen or the fabric is small."""
        for peer in peers:
            if peer is not self._own:
                self.plan.want(peer, now)

    def choose(self, known: int, nearest: Sequence[PeerId], sample: Iterable[PeerId], now: float) -> None:
        """`magik_mesh.tending`: whom to be connected with from now on; `known` are known to be alive."""
        self.neighbours.observe(known)
        chosen = self.neighbours.choose(nearest, sample, self.links.peers())
        self.plan.narrow(chosen, now)
        if chosen is None:
            self.learn(sample, now)
        self.links.kept = chosen or frozenset()

    def let_go(self, now: float) -> list[Send]:
        """Part with those whom this machine dialled, does not use and did not choose."""
        sends: list[Send] = []
        before = now - self._knobs.timings.spare
        for link in self.links.all() if self.neighbours.large else ():
            if (
                link.dialled
                and not link.busy
                and link.last_used < before
                and link.peer not in self.links.kept
            ):
                self._let_go(link, sends, now)
        return sends

    def ask(self, to: PeerId, message: Any, now: float) -> list[Send]:
        """A call of the hash table: over the connection that there is, or a brief one."""
        if to in self.links:
            return self.send(to, message, now, call=True)
        brief = self._briefs.pop(to, None)
        if (
            brief is not None
            and brief.deadline is None
            and now - brief.last_used < self._knobs.timings.brief_idle
        ):
            brief.last_used = now
            self._briefs[to] = brief
            return [Send(to, message, True)]
        if brief is not None and brief.deadline is not None:
            brief.waiting.append(message)
            self._briefs[to] = brief
            return []
        while len(self._briefs) >= self._knobs.limits.briefs:
            del self._briefs[next(iter(self._briefs))]
        deadline = now + self._knobs.timings.dial
        self._briefs[to] = _Brief(now, deadline, [message])
        self._wake_by(deadline)
        return [Send(to, Dial(True), True)]

    def send(self, to: PeerId, message: Any, now: float, *, call: bool = False) -> list[Send]:
        """Send to a machine, dialling it if there is no connection."""
        link = self.links.get(to)
        if link is not None:
            link.last_used = now
            link.calls += call
            return [Send(to, message, True)]
        dial = self._dials.get(to)
        if dial is not None:
            dial.urgent = True
            dial.waiting.append((message, call))
            return []
        sends: list[Send] = []
        if len(self.links) >= self._knobs.max_connections and not self._make_room(sends, now):
            return self._failed(to, [message], now)
        sends += self._dial(to, now, urgent=True)
        self._dials[to].waiting.append((message, call))
        return sends

    def poll(self, now: float) -> list[Send]:
        """Give up dials that are not answered, and dial who is due."""
        sends: list[Send] = []
        while self._dials and (first := next(iter(self._dials.items())))[1].deadline <= now:
            sends += self._gave_up(first[0], now)
        dialing = len(self._dials)
        room = min(self._knobs.limits.dials - dialing, self.links.room_for_dials(dialing))
        if room > 0:
            for peer in self.plan.take_due(now, room):
                sends += self._dial(peer, now, urgent=False)
                room -= 1
        for peer, brief in list(self._briefs.items()):
            if brief.deadline is not None and brief.deadline <= now:
                del self._briefs[peer]
                sends += self._failed(peer, brief.waiting, now)
        first_dial = next(iter(self._dials.values()), None)
        times = [
            None if first_dial is None else first_dial.deadline,
            self.plan.next_due() if room > 0 else None,
        ]
        self.due = min((time for time in times if time is not None), default=None)
        return sends

    # -- what happens

    def receive(self, source: PeerId, message: Any, now: float) -> list[Send]:
        """Take one of `says`' words of connections in."""
        match message:
            case Dial(brief):
                return [Send(source, Accepted(brief), True)]
            case Accepted(True):
                return self._on_brief(source, now)
            case Accepted(False):
                return self._greet(source, now)
            case Greet():
                return self._on_greet(source, message, now)
            case Greeted():
                return self._on_greeted(source, message, now) + self.poll(now)
            case Closed():
                return self.lost(source, now, said=True)
        return []

    def _on_brief(self, peer: PeerId, now: float) -> list[Send]:
        brief = self._briefs.get(peer)
        if brief is None:
            return []
        waiting, brief.waiting, brief.deadline = brief.waiting, [], None
        return [Send(peer, message, True) for message in waiting]

    def stranger(self, source: PeerId, message: Any) -> list[Send]:
        """Something came over a connection that is not in use here: too early, or too late."""
        dial = self._dials.get(source)
        if dial is not None and dial.greeted:
            dial.early.append(message)
            return []
        return [Send(source, Closed(), True)]

    def is_greeting(self, peer: PeerId) -> bool:
        """Whether our hello to a peer is under way."""
        dial = self._dials.get(peer)
        return dial is not None and dial.greeted

    def answered(self, peer: PeerId) -> None:
        """A call of ours has ended."""
        link = self.links.get(peer)
        if link is not None and link.calls:
            link.calls -= 1

    def lost(self, peer: PeerId, now: float, *, said: bool = False) -> list[Send]:
        """A connection is gone: by silence, or because the peer said so."""
        link = self.links.get(peer)
        if link is None:
            return []
        self.links.remove(link)
        self.plan.lost(peer, now, lasted=0.0 if said else now - link.since)
        return self._down(peer, now) + self.poll(now)

    # -- greeting

    def _dial(self, peer: PeerId, now: float, *, urgent: bool) -> list[Send]:
        self._dials[peer] = _Dialing(now + self._knobs.timings.dial, urgent)
        self.plan.begin(peer)
        self._wake_by(now + self._knobs.timings.dial)
        return [Send(peer, Dial(), True)]

    def _wake_by(self, when: float) -> None:
        self.due = when if self.due is None else min(self.due, when)

    def _greet(self, peer: PeerId, now: float) -> list[Send]:
        dial = self._dials.get(peer)
        if dial is None or dial.greeted:
            return []
        if peer in self.links:
            self._ended(peer)
            return []
        dial.greeted = True
        links = len(self.links)
        return [Send(peer, Greet(self._incarnation, self._count, links, dial.urgent, self._some()), True)]

    def _on_greet(self, peer: PeerId, hello: Greet, now: float) -> list[Send]:
        current, dial = self.links.get(peer), self._dials.get(peer)
        offered = Standing(hello.incarnation, hello.taken)
        answer = answer_hello(
            self._own,
            peer,
            offered,
            None if current is None else current.standing,
            my_hello_sent=dial is not None and dial.greeted,
            room=self.links.has_room_for(0 if hello.urgent else hello.links),
        )
        self.learn(hello.peers, now)
        taken = answer in (Answer.TAKE, Answer.TAKE_RESTARTED)
        after = self._take(peer, offered, now, dialled=False) if taken else []
        word = "take" if taken else answer.value
        return [Send(peer, Greeted(word, self._incarnation, self._count, self._some()), True), *after]

    def _on_greeted(self, peer: PeerId, hello: Greeted, now: float) -> list[Send]:
        self.learn(hello.peers, now)
        dial = self._dials.get(peer)
        if hello.answer == Answer.TAKE.value:
            standing = Standing(hello.incarnation, hello.taken)
            if peer in self.links:
                return []
            if not self.links.has_place_for(peer, urgent=dial is not None and dial.urgent):
                return [Send(peer, Closed(), True), *self._gave_up(peer, now)]
            return self._take(peer, standing, now, dialled=True)
        if dial is None or hello.answer == Answer.DUPLICATE.value:
            return []  # another connection with it is there, or about to be
        return self._gave_up(peer, now)

    def _take(self, peer: PeerId, standing: Standing, now: float, *, dialled: bool) -> list[Send]:
        sends: list[Send] = []
        if peer not in self.links and len(self.links) >= self._knobs.max_connections:
            self._make_room(sends, now)
        self._count += 1
        self.links.put(Wire(peer, standing, now, now, dialled))
        self.plan.linked(peer, now)
        dial = self._ended(peer)
        sends += self._up(peer, dialled, now)
        if dial is not None:
            for message, call in dial.waiting:
                sends += self.send(peer, message, now, call=call)
            for message in dial.early:
                sends += self._again(peer, message, now)
        return sends

    def _ended(self, peer: PeerId) -> _Dialing | None:
        self.plan.finished(peer)
        return self._dials.pop(peer, None)

    def _gave_up(self, peer: PeerId, now: float) -> list[Send]:
        dial = self._ended(peer)
        if dial is None or peer in self.links:
            return []
        self.plan.put_off(peer, now)
        return self._failed(peer, [message for message, _ in dial.waiting], now)

    def _make_room(self, sends: list[Send], now: float) -> bool:
        spare = self.links.spare()
        if spare is None:
            return False
        self._let_go(spare, sends, now)
        return True

    def _let_go(self, link: Wire, sends: list[Send], now: float) -> None:
        self.links.remove(link)
        self.plan.lost(link.peer, now, lasted=0.0)
        sends.append(Send(link.peer, Closed(), True))
        sends += self._down(link.peer, now)

    # -- as if it had been so for long

    def adopt(self, peer: PeerId, *, dialled: bool) -> None:
        """A connection from the beginning; `greet_all` tells of it."""
        self._count += 1
        self.links.put(Wire(peer, Standing(0, 0), 0.0, 0.0, dialled=dialled))
        self.plan.linked(peer, 0.0)

    def forget(self, peer: PeerId, now: float) -> None:
        """Such a connection made room for another."""
        link = self.links.get(peer)
        if link is not None:
            self.links.remove(link)
            self.plan.lost(peer, now, lasted=0.0)

    def greet_all(self, now: float) -> list[Send]:
        """Tell of all connections that were adopted."""
        return [send for link in self.links.all() for send in self._up(link.peer, link.dialled, now)]

    def _some(self) -> tuple[PeerId, ...]:
        """Machines to tell a peer of: those we are connected with come first, as their records are fresh."""
        return self.links.peers()[: self._knobs.limits.peers_per_exchange]
