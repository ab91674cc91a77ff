"""Healing's decisions, by script; and fabrics of machines and agents in which a machine dies."""

from __future__ import annotations

from typing import Any

import pytest
from attrs import define, field

from magik_proto.identity import PeerId
from magik_proto.records import ServiceRecord
from magik_proto.testing.seeded import SeededRandom
from workplane.healing import (
    Answered,
    Ask,
    End,
    Failed,
    Healing,
    Leading,
    Looked,
    Wanted,
    surplus,
)


def record(
    number: int, *, healthy: bool = True, ordinal: int | None = None, version: int = 1
) -> ServiceRecord:
    kind = "Deployment" if ordinal is None else "StatefulSet"
    return ServiceRecord(
        workload_id=f"default/{kind}/web",
        namespace="default",
        workload_kind=kind,
        workload_name="web",
        peer_id=PeerId(number.to_bytes(32, "big")),
        pod_name=f"web-{number}",
        ordinal=ordinal,
        version=version,
        ts=0,
        ready=healthy,
        healthy=healthy,
        nonce=1,
    )


def of(*numbers: int, **changes: Any) -> Looked:
    return Looked(tuple(record(number, **changes) for number in numbers))


def healing(own: int = 1, *, stateful: bool = False, replicas: int = 4) -> Healing:
    return Healing(PeerId(own.to_bytes(32, "big")), stateful, Wanted(1, replicas))


def test_a_deficit_has_to_last() -> None:
    machine = healing()
    assert machine.receive(of(1, 2), 0.0) == []
    assert machine.next_timeout() == 10.0
    assert machine.receive(of(1, 2), 9.9) == []
    assert machine.receive(of(1, 2, 3, 4), 9.95) == []
    assert machine.receive(of(1, 2), 10.0) == [], "it begins anew"
    assert machine.receive(of(1, 2), 20.0) == [Ask(2, 1)]


def test_what_is_on_its_way_is_not_asked_for_again() -> None:
    machine = healing()
    machine.receive(of(1, 2), 0.0)
    assert machine.receive(of(1, 2), 10.0) == [Ask(2, 1)]
    assert machine.receive(of(1, 2), 10.1) == [], "one question at a time"
    machine.receive(Answered(False), 11.0)
    for now in range(12, 71):
        assert machine.receive(of(1, 2), float(now)) == []
    assert machine.receive(of(1), 71.0) == [Ask(3, 1)], "after a minute all counts as missing"


def test_more_that_goes_missing_is_asked_for_alone() -> None:
    machine = healing()
    machine.receive(of(1, 2, 3), 0.0)
    assert machine.receive(of(1, 2, 3), 10.0) == [Ask(1, 1)]
    machine.receive(Answered(False), 10.0)
    machine.receive(of(1), 12.0)
    assert machine.receive(of(1), 22.0) == [Ask(2, 1)]


def test_one_acts_the_lowest_of_the_healthy_or_the_leader() -> None:
    second = healing(2)
    second.receive(of(1, 2), 0.0)
    assert second.receive(of(1, 2), 20.0) == []
    second.receive(Looked((record(1, healthy=False), record(2))), 21.0)
    assert second.receive(Looked((record(1, healthy=False), record(2))), 31.0) == [Ask(2, 1)]
    replica = healing(2, stateful=True)
    looked = Looked((record(1, ordinal=0), record(2, ordinal=1)))
    replica.receive(looked, 0.0)
    assert replica.receive(looked, 20.0) == []
    replica.receive(Leading(True), 20.0)
    replica.receive(looked, 20.0)
    assert replica.receive(looked, 30.0) == [Ask(2, 1)]


def test_a_starting_replica_is_there_and_one_that_never_gets_well_is_not() -> None:
    machine = healing(replicas=2)
    looked = Looked((record(1), record(2, healthy=False)))
    assert [machine.receive(looked, now) for now in (0.0, 30.0, 59.0, 60.0)] == [[]] * 4
    assert machine.receive(looked, 70.0) == [Ask(1, 1)]


def test_a_machine_that_does_not_answer_is_asked_again() -> None:
    machine = healing()
    machine.receive(of(1), 0.0)
    now, pauses = 10.0, []
    for _ in range(7):
        assert machine.receive(of(1), now) == [Ask(3, 1)]
        machine.receive(Failed(), now)
        assert machine.receive(of(1), now + 0.01) == []
        pauses.append(round(machine.next_timeout() - now, 3))
        now = machine.next_timeout()
    assert pauses == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def test_a_workload_that_is_disposed_of_ends_its_replica() -> None:
    machine = healing()
    machine.receive(of(1), 0.0)
    machine.receive(of(1), 10.0)
    assert machine.receive(Answered(True), 10.0) == [End()]


def test_too_many_are_told_without_asking_for_any() -> None:
    machine = healing(replicas=1)
    machine.receive(of(1, 2), 0.0)
    assert machine.receive(of(1, 2), 10.0) == [Ask(0, 1)]


def test_a_newer_manifest_counts() -> None:
    machine = healing()
    machine.receive(Wanted(2, 2), 0.0)
    machine.receive(Wanted(1, 9), 0.0)
    assert [machine.receive(of(1, 2), float(now)) for now in range(0, 40, 10)] == [[]] * 4


def test_who_is_too_many() -> None:
    a, b, c = (record(n, version=n) for n in (1, 2, 3))
    sick = record(4, healthy=False, version=0)
    assert list(surplus([c, a, b, sick], 2)) == [sick, c]
    assert list(surplus([a, b], 2)) == []
    old, new = record(1, ordinal=0, version=1), record(2, ordinal=0, version=2)
    beyond = record(3, ordinal=2, version=0)
    assert list(surplus([new, old, beyond], 2)) == [new, beyond]


# -- in a fabric


@define
class Fabric:
    """Machines with replicas of one workload; agents look at their records, and one machine acts, as guardians do.

    The acting machine sees a death later than it happens, tenders what its own view lacks, and looks again when it is asked.
    ``blind``: it never notices by itself.
    """

    seed: int
    machines: int = 50
    replicas: int = 20
    blind: bool = False
    now: float = 0.0
    agents: dict[int, Healing] = field(factory=dict)
    at: dict[int, int] = field(factory=dict)  # the machine of each agent
    born: dict[int, float] = field(factory=dict)
    starting: list[tuple[float, int]] = field(factory=list)  # when it is up, and where
    dead: dict[int, float] = field(factory=dict)  # agents, and since when
    asked: int = 0
    tendered: int = 0
    busy: float = 0.0
    rng: SeededRandom = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.rng = SeededRandom(self.seed)

    def start(self, machine: int) -> None:
        number = len(self.born) + 1 + (self.rng.getrandbits(31) << 20)
        own = PeerId(number.to_bytes(32, "big"))
        self.agents[number] = Healing(own, False, Wanted(1, self.replicas), check_s=30.0)
        self.at[number], self.born[number] = machine, self.now

    def seen_by(self, number: int) -> tuple[ServiceRecord, ...]:
        """Records live for 15 s after their owner; a new replica's are there at once, and it is healthy 2 s later."""
        there = [n for n in self.agents if n not in self.dead or self.now < self.dead[n] + 15.0]
        return tuple(
            record(n, healthy=self.now - self.born[n] >= 2.0, version=int(1000 * self.born[n])) for n in there
        )

    def kill(self, machine: int) -> int:
        lost = [n for n, where in self.at.items() if where == machine and n not in self.dead]
        self.dead |= dict.fromkeys(lost, self.now)
        return len(lost)

    def alive(self) -> list[int]:
        return [n for n in self.agents if n not in self.dead]

    def machine_looks(self) -> None:
        """Its view: what runs, what was awarded, and the dead for 13 s more."""
        if self.now < self.busy:
            return
        running = [n for n in self.agents if n not in self.dead or self.now < self.dead[n] + 13.0]
        for _ in range(self.replicas - len(running) - len(self.starting)):
            self.tendered += 1
            where = 1 + self.rng.getrandbits(16) % (self.machines - 1)
            self.starting.append((self.now + 2.0 + 6.0 * self.rng.random(), where))
        self.busy = self.now + 0.5

    def step(self) -> None:
        self.now = round(self.now + 0.1, 1)
        for due, where in [item for item in self.starting if item[0] <= self.now]:
            self.starting.remove((due, where))
            self.start(where)
        if not self.blind:
            self.machine_looks()
        for number in self.alive():
            machine = self.agents[number]
            if self.now >= machine.next_timeout():
                self._carry_out(machine, machine.receive(Looked(self.seen_by(number)), self.now))

    def _carry_out(self, machine: Healing, outputs: list[Any]) -> None:
        for output in outputs:
            self.asked += output.missing
            if self.rng.getrandbits(2) == 0:
                machine.receive(Failed(), self.now)
                self.asked -= output.missing  # nobody has heard it
            else:
                machine.receive(Answered(False), self.now)
                self.machine_looks()

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            self.step()


@pytest.mark.parametrize("blind", [False, True], ids=["machines heal", "agents alone see it"])
@pytest.mark.parametrize("seed", range(20))
def test_a_machine_with_ten_replicas_dies(seed: int, blind: bool) -> None:
    """1 of 50 machines, with 10 replicas of one workload: at most 1.2 times the deficit, and no surplus after 60 s."""
    fabric = Fabric(seed, blind=blind)
    for number in range(20):
        fabric.start(0 if number < 10 else number)
    fabric.run(60.0 + (seed % 7))
    assert (fabric.asked, fabric.tendered) == (0, 0), "nobody asks while all is well"
    deficit = fabric.kill(0)
    fabric.run(60.0 if not blind else 120.0)
    assert deficit == 10
    assert fabric.asked <= 1.2 * deficit
    assert fabric.tendered <= 1.2 * deficit
    assert len(fabric.alive()) == 20 and fabric.starting == []
    if not blind:
        assert fabric.asked == 0, "the machines were there before"
