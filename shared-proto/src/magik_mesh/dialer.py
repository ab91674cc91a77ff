"""Carries the dial plan out: races a peer's addresses, greets, and reports what came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio
from attrs import define, field
from cryptography import x509
from structlog.typing import FilteringBoundLogger

from magik_mesh.addresses import Address, parse, source_towards, text_of
from magik_mesh.clock import Clock
from magik_mesh.config import NodeConfig
from magik_mesh.connections import Connections
from magik_mesh.errors import PeerUnreachable, WrongIdentity
from magik_mesh.links import Link
from magik_mesh.neighbours import Attic
from magik_mesh.relaying import Relaying
from magik_mesh.tls import Admitted, peer_id_of
from magik_proto.identity import PeerId
from trio_quic import Connection, Endpoint, PeerRejected, QuicError

# An address, or the relay to go through.
_Way = Address | PeerId


@define(eq=False)
class _Dial:
    """One dial under way, for those who wait for it."""

    urgent: bool = False  # for a call
    addresses: tuple[Address, ...] = ()  # beside those in the directory
    done: trio.Event = field(factory=trio.Event)
    stir: trio.Event = field(factory=trio.Event)  # an attempt has ended, or there may be another way to try
    error: PeerUnreachable | None = None
    callers: int = 0
    link: Link | None = None  # held for the callers

    async def wait(self) -> None:
        """Until it has come to an end. The caller's call has to begin before the next checkpoint."""
        self.callers += 1
        try:
            await self.done.wait()
        finally:
            self.callers -= 1
            if self.link is not None:
                self.link.calls -= 1

    def hold(self, link: Link | None) -> None:
        """The dial has brought this connection: it counts as busy until those who wait have begun their calls, so that
        it does not make room for the next before it was of use.
        """
        self.link = link
        if link is not None:
            link.calls += self.callers


@define(eq=False)
class Dialer:
    """Dials of one node. At most `limits.dials` at a time of its own accord; those for calls come on top."""

    config: NodeConfig
    clock: Clock
    endpoint: Endpoint[Admitted]
    connections: Connections
    relaying: Relaying
    admission: Callable[[x509.Certificate], Admitted]
    log: FilteringBoundLogger
    _dials: dict[PeerId, _Dial] = field(factory=dict)
    _wake: trio.Event = field(factory=trio.Event)
    _attic: Attic = field(init=False)
    _told: set[tuple[PeerId, str, PeerId]] = field(factory=set)

    def __attrs_post_init__(self) -> None:
        self._attic = Attic(self.config.timings.retry_lost)

    def retry_lost(self) -> None:
        """Try one of those that were given up, if it is time: after a long partition it is the way back."""
        due = self._attic.take_due(self.clock.now())
        if due is None:
            return
        peer, addresses = due
        if peer in self.connections.links:
            self._attic.remove(peer)
        elif peer not in self._dials and self._room() > 0:
            self._start(peer, addresses=addresses)

    def wake(self) -> None:
        """The plan has changed, or what is known of peers that are being dialled."""
        self._wake.set()
        for dial in self._dials.values():
            dial.stir.set()

    async def run(self) -> None:
        """Dial whoever is due, until cancelled."""
        plan = self.connections.plan
        while True:
            self._wake = trio.Event()
            room = min(self.config.limits.dials - len(self._dials), self._room())
            for peer in plan.take_due(self.clock.now(), room):
                # One that was not in the plan may be dialled already, for a call, when news of it comes.
                if peer not in self._dials:
                    self._start(peer)
            due = plan.next_due() if room > 0 else None
            with trio.move_on_at(float("inf") if due is None else due):
                await self._wake.wait()

    async def reach(self, peer: PeerId) -> None:
        """Return when there is a connection with `peer`; `PeerUnreachable` after one dial that failed."""
        if peer in self.connections.links:
            return
        if peer not in self._dials:
            if not self._ways(peer):
                raise PeerUnreachable(peer, "nobody has told its address (yet)")
            if self._is_full() and not self.connections.make_room():
                raise PeerUnreachable(peer, self.connections.full)
            self._start(peer, urgent=True)
        dial = self._dials[peer]
        dial.urgent = True
        await dial.wait()
        if dial.error is not None and peer not in self.connections.links:
            raise PeerUnreachable(peer, dial.error.reason) from dial.error

    def _room(self) -> int:
        return self.connections.links.room_for_dials(len(self._dials))

    def _is_full(self) -> bool:
        return len(self.connections.links) >= self.config.max_connections

    def _start(self, peer: PeerId, *, urgent: bool = False, addresses: tuple[Address, ...] = ()) -> None:
        self._dials[peer] = _Dial(urgent, addresses)
        self.connections.plan.begin(peer)
        self.connections.nursery.start_soon(self._dial, peer, self._dials[peer])

    async def _dial(self, peer: PeerId, dial: _Dial) -> None:
        try:
            await self._try(peer, dial)
            dial.hold(self.connections.links.get(peer))
        except PeerUnreachable as error:
            dial.error = error
        finally:
            del self._dials[peer]
            self.connections.plan.finished(peer)
            dial.done.set()
            self.wake()
        if dial.error is not None and peer not in self.connections.links:
            self._failed(peer, dial.error)

    async def _try(self, peer: PeerId, dial: _Dial) -> None:
        timings = self.config.timings
        seconds = timings.redial if self.connections.is_doubtful(peer) else timings.dial
        connection, way = await self._race(peer, dial, seconds, lambda: (*self._ways(peer), *dial.addresses))
        if not isinstance(way, PeerId) and (source := source_towards(way)):
            self.connections.presence.reached_from(source)
        with trio.move_on_after(timings.dial):
            await self.connections.greet(connection, urgent=dial.urgent)
            self.relaying.greeted(connection)
            return
        raise PeerUnreachable(peer, f"no answer to the greeting within {timings.dial:g} s")

    async def connect(
        self, peer: PeerId, addresses: Sequence[Address], seconds: float
    ) -> Connection[Admitted]:
        """A connection with `peer` that nobody has greeted, at these addresses or through its relays;
        `PeerUnreachable` if none answers in time."""
        ways: tuple[_Way, ...] = (*addresses, *self.relaying.client.relays_of(peer))
        return (await self._race(peer, _Dial(), seconds, lambda: ways))[0]

    def _ways(self, peer: PeerId) -> tuple[_Way, ...]:
        """How `peer` may be reached, the best first: at its addresses, then through its relays."""
        return (*self.connections.presence.directory.addresses(peer), *self.relaying.client.relays_of(peer))

    async def _race(
        self, peer: PeerId, dial: _Dial, seconds: float, ways: Callable[[], tuple[_Way, ...]]
    ) -> tuple[Connection[Admitted], _Way]:
        """Try the ways to the peer, each a little after the one before, and those that are heard of meanwhile.

        The first that answers wins.
        """
        won: list[tuple[Connection[Admitted], _Way]] = []
        errors: list[PeerUnreachable] = []

        async def attempt(way: _Way, ended: trio.Event, others: trio.CancelScope) -> None:
            try:
                connection = await self._go(peer, way, seconds)
            except PeerUnreachable as error:
                errors.append(error)
                ended.set()
                dial.stir.set()
                return
            if won:
                connection.close_now()
                return
            won.append((connection, way))
            others.cancel()

        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                tried: set[_Way] = set()
                while len(errors) < len(tried) or set(ways()) - tried:
                    dial.stir = trio.Event()
                    for way in [way for way in ways() if way not in tried]:
                        tried.add(way)
                        ended = trio.Event()
                        nursery.start_soon(attempt, way, ended, nursery.cancel_scope)
                        with trio.move_on_after(self.config.timings.stagger):
                            await ended.wait()
                    await dial.stir.wait()
        if won:
            return won[0]
        wrong = [error for error in errors if isinstance(error, WrongIdentity)]
        raise [*wrong, *errors, PeerUnreachable(peer, f"no answer within {seconds:g} s")][0]

    async def _go(self, peer: PeerId, way: _Way, seconds: float) -> Connection[Admitted]:
        if isinstance(way, PeerId):
            return await self.relaying.client.connect(peer, way, lambda a: self._connect(peer, a, seconds))
        return await self._connect(peer, way, seconds)

    async def _connect(self, peer: PeerId, address: Address, seconds: float) -> Connection[Admitted]:
        actual: list[PeerId] = []

        def verify_peer(certificate: x509.Certificate) -> Admitted:
            actual.append(peer_id_of(certificate))
            if actual[0] != peer:
                raise PeerRejected(f"{peer} was expected here, not {actual[0]}")
            return self.admission(certificate)

        try:
            return await self.endpoint.connect(address, verify_peer=verify_peer, timeout=seconds)
        except (QuicError, OSError) as error:
            if actual and actual[0] != peer:
                raise WrongIdentity(peer, actual[0], text_of(address)) from error
            by_whom = "it refused us: " if isinstance(error, PeerRejected) and error.by_remote else ""
            raise PeerUnreachable(peer, f"{by_whom}{error} ({text_of(address)})") from error

    def _failed(self, peer: PeerId, error: PeerUnreachable) -> None:
        now = self.clock.now()
        failure = self.connections.plan.put_off(peer, now)
        self.connections.gave_up(peer)
        known = self.connections.presence.directory.get(peer)
        bootstrap = known is not None and bool(known.configured)
        if isinstance(error, WrongIdentity):
            self._wrong_identity(error, bootstrap=bootstrap)
        elif bootstrap and failure.worth_logging:
            again = None if failure.retry_in is None else round(failure.retry_in, 1)
            self.log.warning(
                "bootstrap peer does not answer",
                peer=str(peer),
                reason=error.reason,
                attempt=failure.attempt,
                again_in_s=again,
            )
        elif failure.retry_in is None:
            self._give_up(peer, error)
        else:
            self.log.debug("dial failed", peer=str(peer), reason=error.reason, again_in_s=failure.retry_in)

    def _give_up(self, peer: PeerId, error: PeerUnreachable) -> None:
        """Not in the plan any more: into the attic, if it was ever there."""
        if peer in self._attic:
            return
        self.log.info("peer forgotten", peer=str(peer), reason=error.reason)
        if addresses := self.connections.presence.directory.addresses(peer):
            self._attic.put(peer, addresses, self.clock.now())

    def _wrong_identity(self, error: WrongIdentity, *, bootstrap: bool) -> None:
        """Say it once for each combination: it does not change by itself."""
        self.connections.presence.directory.misled(error.expected, parse(error.address))
        key = (error.expected, error.address, error.actual)
        if key in self._told:
            return
        if len(self._told) < self.config.limits.known_peers:
            self._told.add(key)
        if not bootstrap:
            self.log.info("another machine answered", expected=str(error.expected), actual=str(error.actual))
            return
        self.log.warning(
            f"bootstrap peer {error.expected} at {error.address} answered as {error.actual}: "
            "correct the --bootstrap-peer, or find out who took its address",
            expected=str(error.expected),
            actual=str(error.actual),
            address=error.address,
        )
