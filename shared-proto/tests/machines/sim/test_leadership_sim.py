"""Replicas elect a leader while the network parts, machines crash and disks are lost: leases never overlap."""

from __future__ import annotations

import os
from typing import Any

import pytest

from magik_proto import leadership as lead
from magik_proto.testing.elections import (
    Schedule,
    Twins,
    TwinsOfVoters,
    broken_by_all,
    double_votes,
    overlaps,
    shared_tokens,
    voters_of,
)

SEEDS = int(os.environ.get("MAGIK_SIM_SEEDS", "200"))


def wrong(schedule: Schedule) -> tuple[list[Any], list[Any], list[Any]]:
    leases = schedule.world.leases
    return overlaps(leases), shared_tokens(leases), double_votes(schedule.world)


@pytest.mark.parametrize("part", range(10))
def test_leases_never_overlap_and_tokens_never_fall(part: int) -> None:
    led = 0
    for seed in range(part, SEEDS, 10):
        schedule = Schedule(seed, voters_of(seed))
        schedule.run(60)
        assert wrong(schedule) == ([], [], []), f"seed {seed}"
        led += len({lease.token for lease in schedule.world.leases})
        assert schedule.settle() is not None or schedule.stuck(), f"seed {seed}: all is well, nobody leads"
        assert wrong(schedule) == ([], [], []), f"seed {seed}, after settling"
    assert led > SEEDS // 10, "hardly anybody was elected: the schedules test nothing"


@pytest.mark.parametrize("part", range(5))
def test_pods_that_are_made_again_while_earlier_ones_live_share_no_lease(part: int) -> None:
    led = 0
    for seed in range(part, SEEDS, 5):
        schedule = Twins(seed, voters_of(seed))
        schedule.run(60)
        assert wrong(schedule) == ([], [], []), f"seed {seed}"
        led += len({lease.token for lease in schedule.world.leases})
    assert led > SEEDS // 5, "hardly anybody was elected: the schedules test nothing"


# Two leases while earlier pods were heard.
TWINS_FOUND = (12, 16, 105, 133, 150, 159, 175)


@pytest.mark.parametrize("seed", TWINS_FOUND)
def test_what_was_wrong_with_twins(seed: int) -> None:
    schedule = Twins(seed, voters_of(seed))
    schedule.run(30, 2)
    assert wrong(schedule) == ([], [], [])


# While who had lost its storage forgot whose later lives it had recorded; the third, while one of two let the other in; the
# last two, while earlier lives could let others in: two families of lives, each a majority, voted side by side.
TWINS_FOUND_LATER = (510001279, 510001489, 510004632, 510007838, 510010041, 520003547)


@pytest.mark.parametrize("seed", TWINS_FOUND_LATER)
def test_what_was_wrong_with_twins_then(seed: int) -> None:
    schedule = Twins(seed, voters_of(seed))
    schedule.run(60)
    assert wrong(schedule) == ([], [], [])


def test_twins_of_one_ordinal_come_to_rest_when_one_goes() -> None:
    """Three vote, one is made again while it lives on: with one pod of each ordinal left, there is a leader."""
    led = 0
    for seed in range(20):
        schedule = Twins(seed, 3)
        schedule.network.run(15.0)
        if all(schedule.joined(number) for number in range(3)):
            schedule.twin()
            schedule.network.run(40.0)
            led += schedule.settle() is not None
    assert led >= 17, "but for schedules in which a replica died in its first writes"


@pytest.mark.parametrize("twins", [False, True])
def test_all_that_can_happen_at_once(twins: bool) -> None:
    """Pauses, too, and two families of pods, one on each side of a partition."""
    led = 0
    for seed in range(SEEDS):
        schedule = broken_by_all(seed, twins=twins)
        schedule.run(30)
        assert wrong(schedule) == ([], [], []), f"seed {seed}"
        led += len({lease.token for lease in schedule.world.leases})
    assert led > SEEDS // 2, "hardly anybody was elected: the schedules test nothing"


def test_two_families_of_two_share_no_lease() -> None:
    """Overlaps in one of thirty, if each of two could let in the other."""
    for seed in range(SEEDS):
        schedule = TwinsOfVoters(seed, 2)
        schedule.network.run(6.0)
        schedule.run(36)
        assert wrong(schedule) == ([], [], []), f"seed {seed}"


def test_of_two_the_second_may_lose_its_disk() -> None:
    for seed in range(10):
        schedule = Schedule(seed, 2)
        schedule.network.run(15.0)
        del schedule.world.disks[1]
        schedule.restart(1)
        assert schedule.settle() is not None, f"seed {seed}"
        assert wrong(schedule) == ([], [], [])


# Overlaps and falling tokens while replicas took every manifest for settled, each by itself; the last two while only
# those did that a manifest had added.
FOUND = (16489, 36577, 54242, 54824, 55070, 79885, 6352, 12378)


@pytest.mark.parametrize("seed", FOUND)
def test_what_was_wrong_once(seed: int) -> None:
    schedule = Schedule(seed, voters_of(seed))
    schedule.run(20, 2)
    assert wrong(schedule) == ([], [], [])


def test_the_check_finds_overlaps_where_clocks_are_worse_than_allowed() -> None:
    """Clocks that are off by half, believed to be exact: the bound is what keeps leases apart."""
    config = lead.LeadershipConfig(max_drift=0.0, election_s=0.1)
    found = 0
    for seed in range(80, 180):
        schedule = Schedule(seed, voters=3, config=config, drift=0.5)
        schedule.run(60)
        found += bool(overlaps(schedule.world.leases))
    assert found > 0


class _Amnesiac(Schedule):
    """Disks that come back as they were at the beginning, and say nothing of it."""

    def restart(self, ordinal: int) -> None:
        self.world.disks[ordinal] = lead.new_voter(1, 3)
        super().restart(ordinal)


def test_the_check_finds_double_votes_where_disks_lie() -> None:
    config = lead.LeadershipConfig(lease_s=0.3, heartbeat_s=0.1, election_s=0.2)
    found = 0
    for seed in range(60):
        schedule = _Amnesiac(seed, voters=3, config=config)
        schedule.run(30)
        found += len(double_votes(schedule.world))
    assert found > 0
