"""One replica's part in electing a leader: drives `magik_proto.leadership` with its clock, its storage and its peers.

Events are taken in one after the other, and what each leads to is carried out in order: what is to be stored is on stable
storage before the message that rests on it leaves. Messages are one-way; one that is lost is not repeated.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, Protocol

import structlog
import trio
from attrs import frozen

from magik_proto import leadership as lead
from magik_proto.errors import RemoteProtocolError
from magik_proto.leadership_wire import MAX_STORED, stored_from_bytes, stored_to_bytes
from magik_proto.machine import RandomSource

INBOX: Final = 256
"""Messages that wait while something is being stored; at it a message is lost, as on the network. A guess."""

Transmit = Callable[[int, lead.Message, lead.Life], Awaitable[None]]
"""Sends a message to the replica of an ordinal, with the life of ours that says it; swallows what goes wrong with it."""


def boot_time() -> float:
    """Seconds of a clock that also counts while the machine sleeps: a lease must end in its sleep."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Storage(Protocol):
    """Where a replica keeps what it must not forget."""

    async def read(self) -> lead.Stored | None:
        """What was written last; None if that is lost, or damaged. Raises OSError."""
        ...

    async def write(self, stored: lead.Stored) -> None:
        """Returns when it is on stable storage. Raises OSError."""
        ...


@frozen
class FileStorage:
    """A file that is replaced as a whole."""

    path: Path

    async def read(self) -> lead.Stored | None:
        return await trio.to_thread.run_sync(self._read)

    async def write(self, stored: lead.Stored) -> None:
        # Not given up once begun, whoever is cancelled: half a step is worse than a late one.
        await trio.to_thread.run_sync(self._write, stored)

    def _read(self) -> lead.Stored | None:
        try:
            with self.path.open("rb") as file:
                return stored_from_bytes(file.read(MAX_STORED + 1))
        except (FileNotFoundError, RemoteProtocolError):
            return None

    def _write(self, stored: lead.Stored) -> None:
        descriptor, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
        try:
            with open(descriptor, "wb") as file:
                file.write(stored_to_bytes(stored))
                file.flush()
                os.fsync(descriptor)
            os.replace(temporary, self.path)
        except BaseException:
            os.unlink(temporary)
            raise
        _sync_folder(self.path.parent)


def _sync_folder(folder: Path) -> None:
    """The new name, too, is on the disk only then (fsync(2))."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@frozen
class Standing:
    """Who leads as far as this replica knows; `token` is its own while it leads, and None otherwise."""

    leader: int | None = None
    token: lead.Token | None = None


class Election:
    """Run it with `run`; hand it what peers send with `receive`."""

    def __init__(
        self,
        ordinal: int,
        storage: Storage,
        transmit: Transmit,
        rng: RandomSource,
        *,
        on_change: Callable[[Standing], None] = lambda standing: None,
        config: lead.LeadershipConfig | None = None,
        clock: Callable[[], float] = boot_time,
    ) -> None:
        self._ordinal = ordinal
        self._storage = storage
        self._transmit = transmit
        self._rng = rng
        self._on_change = on_change
        self._config = config
        self._clock = clock
        self._until = 0.0
        self._standing = Standing()
        self._machine: lead.Leadership | None = None
        self._send, self._inbox = trio.open_memory_channel[lead.LeadershipEvent](INBOX)
        self._log = structlog.get_logger(part="election", ordinal=ordinal)
        self.lost_messages = 0

    @property
    def standing(self) -> Standing:
        """As things are now: a lease that has ended is none, whatever was said before."""
        if self._standing.token is not None and self._clock() >= self._until:
            return Standing(self._standing.leader)
        return self._standing

    def receive(self, source: int, message: lead.Message, life: lead.Life) -> None:
        """A message of the replica whose connection proved that ordinal, and which of its lives says it."""
        self._put(lead.MessageReceived(source, message, life))

    def changed(self, generation: int, voters: int) -> None:
        """The workload's author signed a manifest of a later generation: whoever leads brings it about."""
        self._put(lead.NewGeneration(generation, voters))

    def _put(self, event: lead.LeadershipEvent) -> None:
        try:
            self._send.send_nowait(event)
        except trio.WouldBlock:
            self.lost_messages += 1

    async def run(self, generation: int, voters: int, *, fresh: lead.Stored | None = None) -> None:
        """Take part until cancelled; ``generation`` and ``voters`` are of the newest manifest known.

        ``fresh``: what to begin with on empty storage, only where this ordinal has certainly never run before, so that
        empty is no loss: `lead.new_voter` of the workload's first generation for an ordinal of that, `lead.new_learner`
        for one that was added later. Raises OSError when the storage fails: a replica that cannot remember must not go on.
        """
        stored = await self._storage.read() or fresh
        self._machine = lead.Leadership(self._ordinal, generation, voters, stored, self._rng, self._config)
        try:
            async with trio.open_nursery() as nursery:
                machine = self._machine
                await self._carry_out(machine, machine.receive(lead.Start(), self._clock()), nursery)
                while True:
                    await self._turn(machine, nursery)
        finally:
            self._show(Standing())

    async def _turn(self, machine: lead.Leadership, nursery: trio.Nursery) -> None:
        due = machine.next_timeout()
        event: lead.LeadershipEvent | None = None
        with trio.move_on_after(float("inf") if due is None else max(0.0, due - self._clock())):
            event = await self._inbox.receive()
        if event is not None:
            await self._take(machine, event, nursery)
        await self._carry_out(machine, machine.poll(self._clock()), nursery)

    async def _take(
        self, machine: lead.Leadership, event: lead.LeadershipEvent, nursery: trio.Nursery
    ) -> None:
        try:
            outputs = machine.receive(event, self._clock())
        except RemoteProtocolError as error:
            self._log.info("message-refused", rule=error.rule, detail=error.detail)
        else:
            await self._carry_out(machine, outputs, nursery)

    async def _carry_out(
        self, machine: lead.Leadership, outputs: list[lead.LeadershipOutput], nursery: trio.Nursery
    ) -> None:
        life = machine.stored.life
        for output in outputs:
            match output:
                case lead.Persist(stored, then):
                    await self._storage.write(stored)
                    for send in then:
                        nursery.start_soon(self._transmit, send.to, send.message, life)
                case lead.Send(to, message):
                    nursery.start_soon(self._transmit, to, message, life)
                case lead.LeaderChanged(leader):
                    self._show(Standing(leader, self._standing.token))
                case lead.LeaseHeld(token, until):
                    self._until = until
                    self._show(Standing(self._standing.leader, token))
                case lead.LeaseLost():
                    self._show(Standing(self._standing.leader))

    def _show(self, standing: Standing) -> None:
        if standing != self._standing:
            self._standing = standing
            self._on_change(standing)
