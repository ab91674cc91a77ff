"""Reading other machines' tables where nobody follows anybody: both ends of the call, and crawls (spec: "Large fabrics")."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import structlog
import trio

from machineplane.fabric.crawl import Crawl, Named, named_from_wire
from machineplane.fabric.follow import chunks, visible
from machineplane.fabric.scope import Scope
from machineplane.fabric.table import Delta, Table
from machineplane.fabric.view import View
from magik_mesh import Call, CallRefused, MeshError, Node
from magik_mesh.addresses import parse
from magik_proto.errors import RemoteProtocolError
from magik_proto.identity import PeerId

READ = "/magik/fabric/read/1.0.0"

READ_TIMEOUT_S = 5.0
CRAWL_S = 20.0  # guess: a thousand machines take about ten, for each costs a handshake
AT_ONCE = 16  # guess: as many as the mesh calls briefly at once
PAGES_MAX = 64  # of one reading, about 4 MiB each: who sends more is not read on
KEPT_S = 300.0  # guess: how long what was read is remembered without being read again


class Reader:
    """Serves the own table to who asks, and reads others' into the view.

    ``heard`` is told of each machine that answers, ``silent`` of each that does not.
    """

    def __init__(
        self, node: Node, table: Table, view: View, followed: Callable[[], Iterable[PeerId]] = lambda: ()
    ) -> None:
        self._node = node
        self._table = table
        self._view = view
        self._followed = followed
        self._read_at: dict[PeerId, float] = {}
        self.heard: Callable[[PeerId], None] = lambda peer: None
        self.silent: Callable[[PeerId], None] = lambda peer: None
        self.needed: Callable[[PeerId], bool] = lambda peer: False  # what it told is not to be forgotten
        self._log = structlog.get_logger(room="fabric")
        node.handle(READ, self._on_read, brief=True)

    # -- asking

    async def read(
        self,
        peer: PeerId,
        scope: Scope,
        *,
        named: Named | None = None,
        contacts: bool = False,
        timeout: float = READ_TIMEOUT_S,
    ) -> tuple[Named, ...]:
        """Bring the view up to date with what a machine has of a scope; whom it names, if ``contacts`` are asked for.

        Raises MeshError, RemoteProtocolError or ValueError; what came before that is in the view.
        """
        try:
            found = await self._pages(peer, scope, named, contacts, timeout)
        except (MeshError, RemoteProtocolError, ValueError):
            self.silent(peer)
            raise
        self._read_at[peer] = trio.current_time()
        self.heard(peer)
        return found

    async def _pages(
        self, peer: PeerId, scope: Scope, named: Named | None, contacts: bool, timeout: float
    ) -> tuple[Named, ...]:
        at = [parse(address) for address in named.addresses] if named else []
        found: tuple[Named, ...] = ()
        for _ in range(PAGES_MAX):
            epoch, stamp = self._view.position(peer, scope)
            body = {"scope": scope.to_wire(), "epoch": epoch, "stamp": stamp, "contacts": contacts}
            answer = await self._node.ask(peer, READ, body, at=at, timeout=timeout)
            if not isinstance(answer, Mapping):
                raise RemoteProtocolError("read.answer", "a map is expected")
            if contacts:
                found, contacts = named_from_wire(answer.get("contacts")), False
            self._view.apply_read(peer, scope, Delta.from_wire(answer.get("delta")))
            if answer.get("more") is not True:
                return found
        raise RemoteProtocolError("read.too-much", f"more than {PAGES_MAX} parts")

    async def read_all(
        self, peers: Iterable[PeerId], scope: Scope, *, max_age: float = 0.0, timeout: float = READ_TIMEOUT_S
    ) -> None:
        """Read from several, at most ``AT_ONCE`` at a time; who does not answer is passed over.

        Who was read less than ``max_age`` seconds ago is not read again.
        """
        limiter = trio.CapacityLimiter(AT_ONCE)

        async def one(peer: PeerId) -> None:
            async with limiter:
                await self.try_read(peer, scope, timeout=timeout)

        now = trio.current_time()
        async with trio.open_nursery() as nursery:
            for peer in set(peers) - {self._node.id}:
                if not max_age or now - self._read_at.get(peer, float("-inf")) >= max_age:
                    nursery.start_soon(one, peer)

    async def try_read(self, peer: PeerId, scope: Scope, *, timeout: float = READ_TIMEOUT_S) -> bool:
        """As `read`; False where that failed."""
        try:
            await self.read(peer, scope, timeout=timeout)
        except MeshError as error:
            self._log.debug("not-read", peer=str(peer), error=str(error))
            return False
        except (RemoteProtocolError, ValueError) as error:
            self._log.warning("read-malformed", peer=str(peer), error=str(error))
            return False
        return True

    async def crawl(self, scope: Scope, within: float = CRAWL_S) -> str:
        """Read from all machines that there are; what to warn of, nothing where all have answered."""
        crawl = Crawl(self._node.id, frozenset(self._view.mirrors))
        limiter = trio.CapacityLimiter(AT_ONCE)
        with trio.move_on_after(within):
            async with trio.open_nursery() as nursery:

                async def visit(named: Named) -> None:
                    async with limiter:
                        try:
                            found = await self.read(named.peer, scope, named=named, contacts=True)
                        except (MeshError, RemoteProtocolError, ValueError) as error:
                            self._log.debug("not-read", peer=str(named.peer), error=str(error))
                            return
                    crawl.answered(named.peer)
                    ask(found)

                def ask(named: Sequence[Named]) -> None:
                    for one in crawl.fresh(named):
                        nursery.start_soon(visit, one)

                ask(self._contacts())
                ask([Named(peer) for peer in self._view.mirrors])
        return crawl.warning()

    def read_at(self, peer: PeerId) -> float:
        """When a machine was read last; long ago if never."""
        return self._read_at.get(peer, float("-inf"))

    def tidy(self) -> None:
        """Forget what was read, or followed, long ago and nothing depends on."""
        now = trio.current_time()
        followed = {self._node.id, *self._followed()}
        for peer in [peer for peer in self._view.mirrors if peer not in followed]:
            if now - self._read_at.setdefault(peer, now) >= KEPT_S and not self.needed(peer):
                del self._read_at[peer]
                self._view.forget(peer)
        for peer in [peer for peer in self._read_at if peer not in self._view.mirrors or peer in followed]:
            del self._read_at[peer]

    def lost(self, peer: PeerId) -> None:
        """It is gone, as far as one can tell."""
        self._read_at.pop(peer, None)
        self._view.drop(peer)

    # -- answering

    def _contacts(self) -> list[Named]:
        linked = {info.id for info in self._node.peers() if info.connected}
        return [Named(c.peer, c.addrs, c.peer in linked) for c in self._node.contacts()]

    async def _on_read(self, call: Call) -> object:
        body = call.body if isinstance(call.body, Mapping) else {}
        epoch, stamp = body.get("epoch"), body.get("stamp")
        if type(epoch) is not int or type(stamp) is not int:
            raise CallRefused("read.body", "epoch and stamp are missing")
        try:
            scope = Scope.from_wire(body.get("scope"))
        except ValueError as error:
            raise CallRefused("read.body", str(error)) from error
        delta = visible(part_of(self._table.since(epoch, stamp), scope), call.roles)
        part = next(iter(chunks(delta)))
        answer: dict[str, object] = {"delta": part.to_wire(), "more": part.stamp < delta.stamp}
        if body.get("contacts") is True:
            answer["contacts"] = [named.to_wire() for named in self._contacts()]
        return answer


def part_of(delta: Delta, scope: Scope) -> Delta:
    """The part of a delta that a scope covers."""
    entries = tuple(entry for entry in delta.entries if scope.covers(entry.key, entry.value))
    return Delta(delta.epoch, delta.since, delta.stamp, delta.reset, entries)
