"""Many short schedules of leadership, each from a seed of its own, over all cores.

For each seed that fails a line is printed that replays it alone.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from collections.abc import Iterator
from multiprocessing import get_context
from time import monotonic

import attrs

from magik_proto.testing.elections import broken_by_all, double_votes, overlaps, shared_tokens

BATCH = 200  # schedules for which a process is asked at once


@attrs.define
class Counts:
    """What came out of some schedules."""

    schedules: int = 0
    overlaps: int = 0  # two replicas' leases at one time
    falls: int = 0  # a later lease under a lower token: the storage would refuse its writer
    shared_tokens: int = (
        0  # two replicas' leases under one token: the storage could not tell their writers apart
    )
    double_votes: int = 0
    leaderless: int = 0  # that ended without a leader, though all was well at last; counted where they settle
    leaders: int = 0  # leases under different tokens: that something was tried at all
    votes: int = 0
    events: int = 0
    failed: list[int] = attrs.field(factory=list)  # seeds

    def add(self, other: Counts) -> None:
        for field in attrs.fields(Counts):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


@attrs.frozen
class How:
    """What all schedules of one call have in common."""

    seconds: int
    per_second: int
    twins: bool
    settle: bool

    def replay(self, seed: int) -> str:
        """The arguments that run one schedule again."""
        flags = [f"--{name}" for name in ("twins", "settle") if getattr(self, name)]
        times = f"--seconds {self.seconds} --per-second {self.per_second}"
        return " ".join(["leadership", f"--seed {seed} --schedules 1", times, *flags])


def run_batch(task: tuple[int, int, How]) -> Counts:
    """The schedules of `count` seeds from `first`."""
    first, count, how = task
    gc.freeze()  # what is there stays: only what a schedule leaves is to be looked through
    counts = Counts()
    for seed in range(first, first + count):
        counts.add(run_one(seed, how))
    return counts


def run_one(seed: int, how: How) -> Counts:
    schedule = broken_by_all(seed, twins=how.twins)
    schedule.run(how.seconds, how.per_second)
    leaderless = how.settle and schedule.settle() is None
    world = schedule.world
    wrong, twice, shared = overlaps(world.leases), double_votes(world), shared_tokens(world.leases)
    at_once = sum(a.ordinal != b.ordinal and b.begin < a.end for a, b in wrong)
    return Counts(
        schedules=1,
        overlaps=at_once,
        falls=len(wrong) - at_once,
        shared_tokens=len(shared),
        double_votes=len(twice),
        leaderless=int(leaderless),
        leaders=len({lease.token for lease in world.leases}),
        votes=len(world.votes),
        events=schedule.network.stats.events,
        failed=[seed] if wrong or twice or shared else [],
    )


def _tasks(options: argparse.Namespace, how: How) -> Iterator[tuple[int, int, How]]:
    end = options.seed + options.schedules
    for first in range(options.seed, end, BATCH):
        yield first, min(BATCH, end - first), how


def main(arguments: list[str]) -> int:
    """Run them, print what came out; 1 if leases overlapped or shared a token, or somebody voted twice."""
    options = _options(arguments)
    how = How(options.seconds, options.per_second, options.twins, options.settle)
    total, begin = Counts(), monotonic()
    with get_context("spawn").Pool(options.jobs) as pool:
        for counts in pool.imap_unordered(run_batch, _tasks(options, how)):
            total.add(counts)
            for seed in counts.failed:
                print(f"FAILED: replay with {how.replay(seed)}", flush=True)
    passed = monotonic() - begin
    figures = attrs.asdict(total) | {"failed": sorted(total.failed)[:100], "seed": options.seed}
    figures |= {
        "seconds_each": options.seconds,
        "breaks_per_second": options.per_second,
        "twins": options.twins,
        "settle": options.settle,
    }
    figures |= {"wall_s": round(passed, 1), "ms_per_schedule": round(1000 * passed / total.schedules, 3)}
    print(json.dumps(figures))
    return 1 if total.failed else 0


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="leadership", description=__doc__)
    parser.add_argument("--schedules", type=int, default=10_000, help="how many; the seeds are consecutive")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--seconds", type=int, default=20, help="virtual time of each")
    parser.add_argument("--per-second", type=int, default=2, help="how often something breaks")
    parser.add_argument(
        "--twins",
        action="store_true",
        help="pods are made again while they live on; half of the schedules have one founder",
    )
    parser.add_argument(
        "--settle", action="store_true", help="then 40 s in which all is well; who does not lead is counted"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    options = parser.parse_args(arguments)
    if min(options.schedules, options.seconds, options.per_second, options.jobs) < 1:
        parser.error("--schedules, --seconds, --per-second and --jobs are at least 1")
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
