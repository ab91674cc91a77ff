"""Replicas that elect a leader over a network in memory, under a clock that jumps: storage, partitions, restarts."""

import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from magik_proto import leadership as lead
from workplane.election import Election, FileStorage, Standing


class Disk:
    """Storage in memory, with an order of what happened; ``broken`` fails to write."""

    def __init__(self) -> None:
        self.stored: lead.Stored | None = None
        self.broken = False
        self.done: list[str] = []

    async def read(self) -> lead.Stored | None:
        return self.stored

    async def write(self, stored: lead.Stored) -> None:
        await trio.sleep(0.005)
        if self.broken:
            raise OSError(28, "No space left on device")
        self.stored = stored
        self.done.append(f"stored term {stored.term}")


class Group:
    """Replicas that reach each other unless they are ``away``."""

    def __init__(self, size: int) -> None:
        self.size = self.founders = size
        self.disks = [Disk() for _ in range(size)]
        self.replicas: dict[int, Election] = {}
        self.away: set[int] = set()
        self.seen: list[tuple[int, Standing]] = []
        self._scopes: dict[int, trio.CancelScope] = {}

    def start(self, ordinal: int, nursery: trio.Nursery, *, fresh: bool) -> None:
        founder = ordinal < self.founders
        begin = lead.new_voter(1, self.founders) if founder else lead.new_learner()

        async def transmit(to: int, message: lead.Message, life: lead.Life) -> None:
            self.disks[ordinal].done.append(f"sent {type(message).__name__}")
            await trio.sleep(0.01)
            if not {ordinal, to} & self.away and to in self.replicas:
                self.replicas[to].receive(ordinal, message, life)

        election = Election(
            ordinal,
            self.disks[ordinal],
            transmit,
            random.Random(ordinal),
            on_change=lambda standing: self.seen.append((ordinal, standing)),
            clock=trio.current_time,
        )
        self.replicas[ordinal] = election
        self._scopes[ordinal] = trio.CancelScope()

        async def run() -> None:
            with self._scopes[ordinal]:
                await election.run(1, self.size, fresh=begin if fresh else None)

        nursery.start_soon(run)

    def stop(self, ordinal: int) -> None:
        self._scopes[ordinal].cancel()
        del self.replicas[ordinal]

    def holders(self) -> list[int]:
        return [n for n, election in self.replicas.items() if election.standing.token is not None]


@asynccontextmanager
async def running(size: int) -> AsyncIterator[tuple[Group, trio.Nursery]]:
    group = Group(size)
    async with trio.open_nursery() as nursery:
        for ordinal in range(size):
            group.start(ordinal, nursery, fresh=True)
        yield group, nursery
        nursery.cancel_scope.cancel()


async def one_holder(group: Group, within: float = 15.0) -> int:
    """The holder, as soon as there is one; never more than one on the way."""
    with trio.fail_after(within):
        while not (holders := group.holders()):  # noqa: ASYNC110 - virtual time
            await trio.sleep(0.05)
    assert len(holders) == 1
    return holders[0]


async def test_a_leader_is_elected_and_all_know_it(autojump_clock: MockClock) -> None:
    async with running(3) as (group, _):
        leader = await one_holder(group)
        await trio.sleep(2)
        assert {election.standing.leader for election in group.replicas.values()} == {leader}
        assert group.holders() == [leader]


async def test_what_is_promised_is_stored_before_it_is_said(autojump_clock: MockClock) -> None:
    async with running(3) as (group, _):
        leader = await one_holder(group)
        voter = next(n for n in range(3) if n != leader and "sent VoteReply" in group.disks[n].done)
        done = group.disks[voter].done
        assert done.index("stored term 1") < done.index("sent VoteReply")
        assert group.disks[leader].done.index("stored term 1") < group.disks[leader].done.index(
            "sent RequestVote"
        )


async def test_a_leader_that_is_cut_off_stops_before_another_begins(autojump_clock: MockClock) -> None:
    async with running(3) as (group, _):
        first = await one_holder(group)
        group.away = {first}
        with trio.fail_after(15):
            while first in group.holders() or not group.holders():
                assert len(group.holders()) <= 1
                await trio.sleep(0.02)
        second = await one_holder(group)
        assert second != first
        tokens = [standing.token for _, standing in group.seen if standing.token]
        assert max(tokens) == tokens[-1] > tokens[0]


async def test_a_minority_has_no_leader(autojump_clock: MockClock) -> None:
    async with running(3) as (group, _):
        await one_holder(group)
        group.away = {0, 1, 2}
        await trio.sleep(10)
        assert group.holders() == []
        await trio.sleep(60)
        assert group.holders() == []


async def test_a_replica_that_restarts_remembers(autojump_clock: MockClock) -> None:
    async with running(3) as (group, nursery):
        leader = await one_holder(group)
        term = group.disks[leader].stored.term  # type: ignore[union-attr]
        group.stop(leader)
        group.start(leader, nursery, fresh=False)
        await trio.sleep(0.1)
        assert group.disks[leader].stored.term >= term  # type: ignore[union-attr]
        await one_holder(group)


async def test_a_replica_that_lost_its_storage_comes_back_by_the_others(autojump_clock: MockClock) -> None:
    async with running(3) as (group, nursery):
        leader = await one_holder(group)
        lost = next(n for n in range(3) if n != leader)
        group.stop(lost)
        group.disks[lost].stored = None
        group.start(lost, nursery, fresh=False)
        await trio.sleep(10)
        stored = group.disks[lost].stored
        assert stored is not None and stored.incarnation > 0
        assert len(group.holders()) == 1


async def test_a_replica_whose_storage_fails_does_not_go_on(autojump_clock: MockClock) -> None:
    group = Group(1)
    group.disks[0].broken = True
    with pytest.raises(ExceptionGroup) as raised:
        async with trio.open_nursery() as nursery:
            group.start(0, nursery, fresh=True)
            await trio.sleep(30)
    assert raised.group_contains(OSError, match="No space left")
    assert not any(standing.token for _, standing in group.seen)


async def test_the_number_of_voters_can_change(autojump_clock: MockClock) -> None:
    async with running(3) as (group, nursery):
        await one_holder(group)
        group.disks += [Disk(), Disk()]
        group.size = 5
        for ordinal in (3, 4):
            group.start(ordinal, nursery, fresh=True)
        for election in group.replicas.values():
            election.changed(2, 5)
        await trio.sleep(20)
        await one_holder(group)
        assert {disk.stored.voters for disk in group.disks if disk.stored} == {(5,)}
        tokens = [standing.token for _, standing in group.seen if standing.token]
        assert [token.generation for token in tokens] == [1, 2], "the same leader, under the next generation"


async def test_a_lease_ends_by_the_clock_even_if_nobody_looks() -> None:
    now = [0.0]
    election = Election(0, Disk(), None, random.Random(0), clock=lambda: now[0])  # type: ignore[arg-type]
    election._standing, election._until = Standing(0, lead.Token(1, 1)), 3.0
    now[0] = 2.9
    assert election.standing.token
    now[0] = 3.0
    assert election.standing == Standing(0)


async def test_a_file_is_read_back_and_a_damaged_one_counts_as_lost(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path / "vote")
    assert await storage.read() is None
    stored = lead.Stored(generation=3, voters=(3,), term=7, vote=1)
    await storage.write(stored)
    assert await storage.read() == stored
    assert os.listdir(tmp_path) == ["vote"]
    (tmp_path / "vote").write_bytes(b"\xff")
    assert await storage.read() is None
