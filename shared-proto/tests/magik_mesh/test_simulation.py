"""Fabrics of up to a thousand machines by the daemons' own code; larger ones by `nox -s simulate -- scale`.

A seed that fails is in the message, and `simulate(name, nodes, seed, effort)` runs it again.
"""

import gc
from collections.abc import Iterator
from math import log2
from typing import Any

import pytest
from attrs import evolve

from magik_mesh.simulation import measure
from magik_mesh.simulation.fabric import Fabric
from magik_mesh.simulation.measure import growth
from magik_mesh.simulation.nearest import Nearest
from magik_mesh.simulation.scenarios import SCENARIOS, Effort, simulate
from magik_mesh.simulation.trace import Trace
from magik_proto.testing.seeded import SeededRandom

SEED = 11
FEW = Effort(tenders=2, lookups=60, tender_wait_s=5.0, lookup_wait_s=6.0, churn_s=30.0, parted_s=75.0)


@pytest.fixture(scope="module", autouse=True)
def no_garbage() -> Iterator[None]:
    """Nothing of a fabric is garbage before its end: to look for it takes a third of the time."""
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(scope="module")
def calm() -> dict[int, dict[str, Any]]:
    """A fabric in peace, by size."""
    return {nodes: simulate("calm", nodes, SEED, FEW) for nodes in (150, 400, 1000)}


def test_all_is_well_in_a_thousand_machines(calm: dict[int, dict[str, Any]]) -> None:
    figures = calm[1000]
    assert figures["delivery"] == figures["right"] == 1.0, f"seed {SEED}: {figures}"
    assert figures["placed"] == FEW.tenders
    assert figures["s_to_99"] < 0.25  # a bid has to be back within the owner's window
    assert 3 <= figures["bids"] <= 30  # a sample answers, not a thousand
    assert figures["most_connections"] <= 64


@pytest.mark.parametrize(
    "figure", ["frames_per_node", "bytes_per_node", "connections", "hops", "queries", "bids"]
)
def test_what_a_machine_pays_grows_no_faster_than_the_logarithm(
    calm: dict[int, dict[str, Any]], figure: str
) -> None:
    values = [figures[figure] for figures in calm.values()]
    as_log_n = 1 / log2(min(calm))  # what a · log N grows by with each doubling
    slack = 0.02  # of the samples
    assert growth(list(calm), values) <= as_log_n + slack, f"seed {SEED}: {figure} {values}"


def test_lookups_are_right_though_a_fifth_of_the_machines_lies() -> None:
    figures = simulate("liars", 300, SEED, evolve(FEW, tenders=1, lookups=240))
    assert figures["lookups"] == 240
    assert figures["right"] >= 0.99, f"seed {SEED}: {figures}"


def test_honest_machines_hear_each_other_among_four_times_as_many_sybils() -> None:
    figures = simulate("sybils", 150, SEED, evolve(FEW, tender_wait_s=15.0))
    assert figures["delivery"] >= 0.999, f"seed {SEED}: {figures}"
    assert figures["placed"] == FEW.tenders


def test_tenders_arrive_in_the_moment_when_30_percent_die_and_after() -> None:
    figures = simulate("dying", 200, SEED, FEW)
    assert min(figures["at_once_delivery"], figures["delivery"], figures["right"]) >= 0.999, (
        f"seed {SEED}: {figures}"
    )


def test_a_partition_heals_though_both_sides_have_forgotten_each_other() -> None:
    figures = simulate("partition", 100, SEED, FEW)
    assert figures["parted_delivery"] == 1.0, f"seed {SEED}: {figures}"
    assert min(figures["delivery"], figures["right"]) >= 0.999, f"seed {SEED}: {figures}"


def test_who_comes_is_found_within_two_seconds_under_churn_and_heavy_loss() -> None:
    figures = simulate("churn", 200, SEED, evolve(FEW, churn_s=60.0))
    assert figures["fresh"] >= 1
    assert figures["fresh_found"] == 1.0, f"seed {SEED}: {figures}"
    assert figures["delivery"] == 1.0
    lossy = simulate("loss-20", 100, SEED, FEW)
    assert min(lossy["delivery"], lossy["right"]) >= 0.99, f"seed {SEED}: {lossy}"


def test_the_same_seed_gives_the_same_figures_by_the_same_messages() -> None:
    def run(seed: int) -> tuple[dict[str, Any], str]:
        scenario = SCENARIOS["loss-20"]
        fabric = scenario.build(80, seed, None)
        trace = Trace(fabric)
        nothing = trace.hexdigest()
        figures = scenario.run(fabric, Effort(tenders=1, lookups=6, tender_wait_s=1.0, lookup_wait_s=1.0))
        assert trace.hexdigest() != nothing
        return figures, trace.hexdigest()

    first = run(SEED)
    assert run(SEED) == first
    other = run(SEED + 1)
    assert (other[0] != first[0], other[1] != first[1]) == (True, True)


def test_the_truth_that_lookups_are_measured_by() -> None:
    fabric = Fabric(200, 5)
    truth, rng = Nearest(fabric.first), SeededRandom(3)
    for _ in range(50):
        place = rng.getrandbits(256)
        by_hand = sorted(fabric.first, key=lambda contact: contact.place ^ place)
        assert truth.of(place, 20) == by_hand[:20]


def test_lookups_are_not_wrong_because_machines_died_before_they_began() -> None:
    fabric = SCENARIOS["calm"].build(100, SEED, None)
    machines = fabric.machines()
    for machine in fabric.some(40, machines):
        fabric.later(fabric.network.now + 1.0, lambda peer=machine.peer: fabric.crash(peer))  # type: ignore[misc]
    figures = measure.lookups(fabric, 60, machines, wait_s=30.0)
    assert (figures["lookups"], figures["right"]) == (60, 1.0), f"seed {SEED}: {figures}"
