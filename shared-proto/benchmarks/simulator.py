"""What an event costs in the simulator itself: actors that do nothing but answer and set timers.

Run it with ``python shared-proto/benchmarks/simulator.py``; the last line is one JSON object. An event is a
message delivered or a timer that rang; `events_per_s` is of processor time on one core, the best of several
rounds. `deep` has as many messages under way at once as a large fabric.
"""

from __future__ import annotations

import json
import sys
from random import Random
from time import process_time

from magik_proto.identity import PeerId
from magik_proto.testing.network import Conditions, Network, Send
from magik_proto.testing.seeded import SeededRandom

ROUNDS, EVENTS, LEAST = 5, 200_000, 100_000


class Echo:
    """Answers every message; rings every second and does nothing then."""

    def __init__(self, other: PeerId) -> None:
        self.other, self.alarm = other, 1.0

    def start(self, now: float) -> list[Send]:
        return []

    def receive(self, source: PeerId, message: object, now: float) -> list[Send]:
        return [Send(source, message)]

    def poll(self, now: float) -> list[Send]:
        self.alarm = now + 1.0
        return []

    def next_timeout(self) -> float | None:
        return self.alarm


def build(nodes: int, balls: int, *, lossy: bool, seeded: bool) -> Network[Echo]:
    """Pairs of actors that play with so many balls a pair."""
    chance = SeededRandom(1) if seeded else Random(1)
    bad = Conditions(loss=0.01, duplication=0.01) if lossy else Conditions()
    network: Network[Echo] = Network(1, bad, chance)
    peers = [PeerId(number.to_bytes(32, "big")) for number in range(nodes)]
    for number, peer in enumerate(peers):
        network.add(peer, lambda other=peers[number ^ 1]: Echo(other))  # type: ignore[misc]
    for number in range(0, nodes, 2):
        network.act(peers[number], lambda actor, now: [Send(actor.other, "ball")] * balls)
    return network


def events_per_s(network: Network[Echo]) -> float:
    """Events a second of processor time, best of the rounds."""
    best = 0.0
    for _ in range(ROUNDS):
        before, begin = network.stats.events, process_time()
        while network.stats.events - before < EVENTS:
            network.run(network.now + 0.01)
        best = max(best, (network.stats.events - before) / (process_time() - begin))
    return best


def main() -> int:
    figures = {
        "plain": events_per_s(build(1000, 2, lossy=False, seeded=False)),
        "lossy": events_per_s(build(1000, 20, lossy=True, seeded=False)),
        "deep": events_per_s(build(10_000, 100, lossy=False, seeded=False)),
        "seeded_random": events_per_s(build(1000, 2, lossy=False, seeded=True)),
    }
    rounded = {name: round(value) for name, value in figures.items()}
    print(json.dumps({"name": "simulator", "events_per_s": rounded, "target": LEAST}))
    return 0 if min(rounded["plain"], rounded["deep"]) >= LEAST else 1


if __name__ == "__main__":
    sys.exit(main())
