"""What pods need of other machines is read while they need it, in large fabrics alone."""

from collections import Counter

import pytest
import trio
from trio.testing import MockClock

from machineplane.upkeep import WANTED_MAX, Upkeep, Wanted

CONFIG = Wanted("shop", "ConfigMap", "settings")
SPACE = Wanted("shop")


class Bench:
    """Counts what is read; ``machines`` of 0 is a small fabric."""

    def __init__(self, machines: int = 100, *wanted: Wanted) -> None:
        self.machines = machines
        self.wanted = list(wanted)
        self.read: Counter[Wanted] = Counter()
        self.upkeep = Upkeep(self, lambda: self.machines, lambda: self.wanted)

    async def one(self, kind: str, namespace: str | None, name: str) -> None:
        self.read[Wanted(namespace or "", kind, name)] += 1

    async def everything_in(self, namespace: str) -> None:
        self.read[Wanted(namespace)] += 1
        await trio.sleep(1)

    async def run_for(self, seconds: float) -> Counter[Wanted]:
        self.read.clear()
        with trio.move_on_after(seconds):
            await self.upkeep.run()
        return self.read


async def test_what_is_wanted_is_read_at_once_and_again_and_then_no_more(autojump_clock: MockClock) -> None:
    bench = Bench(100, CONFIG, CONFIG, SPACE)
    assert await bench.run_for(0.5) == {CONFIG: 1, SPACE: 1}
    assert await bench.run_for(119) == {CONFIG: 3, SPACE: 1}
    bench.wanted.clear()
    assert await bench.run_for(120) == {}


async def test_a_namespace_is_read_more_seldom_the_more_machines_there_are(autojump_clock: MockClock) -> None:
    assert (await Bench(4_000, SPACE).run_for(990))[SPACE] == 2


async def test_nothing_is_read_where_everything_is_followed(autojump_clock: MockClock) -> None:
    bench = Bench(0, CONFIG, SPACE)
    assert await bench.run_for(120) == {}
    await bench.upkeep.service("shop", "web")
    assert bench.read == {}
    bench.machines = 100
    assert await bench.run_for(0.5) == {CONFIG: 1, SPACE: 1}, "what was read is forgotten"


async def test_a_service_is_read_when_it_is_asked_for_and_its_namespace_now_and_then(
    autojump_clock: MockClock,
) -> None:
    bench = Bench()
    for _ in range(3):
        await bench.upkeep.service("shop", "web")
    assert bench.read == {Wanted("shop", "Service", "web"): 3, SPACE: 1}


@pytest.mark.parametrize("more", [1, 50])
async def test_there_is_a_limit(autojump_clock: MockClock, more: int) -> None:
    bench = Bench(100, *(Wanted("shop", "Secret", f"s{n:04}") for n in range(WANTED_MAX + more)))
    assert len(await bench.run_for(0.5)) == WANTED_MAX
