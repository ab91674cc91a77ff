"""Replicas elect a leader while the network parts, machines crash and disks are lost: leases never overlap."""

from __future__ import annotations

import os

import pytest

from magik_proto import leadership as lead
from magik_proto.testing.elections import Schedule, double_votes, overlaps, voters_of

SEEDS = int(os.environ.get("MAGIK_SIM_SEEDS", "200"))


@pytest.mark.parametrize("part", range(10))
def test_leases_never_overlap_and_tokens_never_fall(part: int) -> None:
    led = 0
    for seed in range(part, SEEDS, 10):
        schedule = Schedule(seed, voters_of(seed))
        schedule.run(60)
        assert overlaps(schedule.world.leases) == [], f"seed {seed}"
        led += len({lease.token for lease in schedule.world.leases})
        assert schedule.settle() is not None or schedule.stuck(), f"seed {seed}: all is well, nobody leads"
        assert overlaps(schedule.world.leases) == [], f"seed {seed}, after settling"
        assert double_votes(schedule.world) == [], f"seed {seed}"
    assert led > SEEDS // 10, "hardly anybody was elected: the schedules test nothing"


# Overlaps and falling tokens while replicas took every manifest for settled, each by itself; the last two while only
# those did that a manifest had added.
FOUND = (16489, 36577, 54242, 54824, 55070, 79885, 6352, 12378)


@pytest.mark.parametrize("seed", FOUND)
def test_what_was_wrong_once(seed: int) -> None:
    schedule = Schedule(seed, voters_of(seed))
    schedule.run(20, 2)
    assert (overlaps(schedule.world.leases), double_votes(schedule.world)) == ([], [])


def test_the_check_finds_overlaps_where_clocks_are_worse_than_allowed() -> None:
    """Clocks that are off by half, believed to be exact: the bound is what keeps leases apart."""
    config = lead.LeadershipConfig(max_drift=0.0, election_s=0.1)
    found = 0
    for seed in range(60):
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
