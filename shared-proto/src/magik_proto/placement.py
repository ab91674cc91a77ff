"""Placement: what fits where, how well, and who wins.  Pure functions, no state.

All scores are integers in parts per million (ppm), so that NaN and infinity cannot be said and two machines
with different floating-point units agree.  All functions are deterministic: the same arguments always give
the same result, whatever the order in which bids, labels or taints were collected.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterable, Mapping
from uuid import UUID

import attrs

from magik_proto.identity import PeerId
from magik_proto.messages import Bid, Expression, Requirements, SelectorTerm, Toleration

PPM = 1_000_000

# Weights of a score, protocol.md "Score".  In ppm of the whole; they add up to one.
WEIGHT_RESOURCE_FIT = 500_000
WEIGHT_NETWORK_LOCALITY = 300_000
WEIGHT_RELIABILITY = 100_000
WEIGHT_ECONOMY = 100_000

# By how much a sample of bidders widens from one round to the next.  A guess: three rounds of 4 cover
# sixteen times the first sample.  The simulator's tender-to-placed time over the share of eligible machines
# would settle it.
SAMPLE_GROWTH = 4

# Taint effects that keep a pod off a machine; PreferNoSchedule only lowers wishes and is not a reason to
# refuse.
_REFUSING_EFFECTS = ("NoSchedule", "NoExecute")


@attrs.frozen
class Capacity:
    """An amount of a machine: CPU in millicores, memory and storage in bytes, and pods.

    May go negative (a machine on which more runs than it admits to has a negative rest).
    """

    cpu_millis: int = 0
    memory_bytes: int = 0
    storage_bytes: int = 0
    pods: int = 0

    def __add__(self, other: Capacity) -> Capacity:
        return Capacity(*(a + b for a, b in zip(self.amounts(), other.amounts(), strict=True)))

    def __sub__(self, other: Capacity) -> Capacity:
        return Capacity(*(a - b for a, b in zip(self.amounts(), other.amounts(), strict=True)))

    def __mul__(self, count: int) -> Capacity:
        return Capacity(*(amount * count for amount in self.amounts()))

    def amounts(self) -> tuple[int, int, int, int]:
        """CPU, memory, storage, pods: in this order everywhere."""
        return (self.cpu_millis, self.memory_bytes, self.storage_bytes, self.pods)

    def covers(self, need: Capacity) -> bool:
        """Whether `need` fits into this amount, every resource of it."""
        return all(have >= want for have, want in zip(self.amounts(), need.amounts(), strict=True))

    def times(self, need: Capacity) -> int | None:
        """How often `need` fits, not below 0; None if `need` asks for nothing at all."""
        pairs = zip(self.amounts(), need.amounts(), strict=True)
        counts = [have // want for have, want in pairs if want > 0]
        return max(0, min(counts)) if counts else None


@attrs.frozen
class Taint:
    """A machine's reason to keep pods away that do not tolerate it, as in Kubernetes."""

    key: str
    value: str = ""
    effect: str = "NoSchedule"


@attrs.frozen
class MachineFacts:
    """What a machine is: slow-changing, other than what runs on it now."""

    peer: PeerId
    capacity: Capacity
    architecture: str
    runtimes: frozenset[str] = frozenset()
    labels: Mapping[str, str] = attrs.field(factory=dict)
    taints: tuple[Taint, ...] = ()


@attrs.frozen
class Readings:
    """A bidder's own readings for its score, each in ppm; half where it knows nothing."""

    network_locality: int = PPM // 2
    reliability: int = PPM // 2
    economy: int = PPM // 2


@attrs.frozen
class Score:
    """A score and the two parts that a bid shows, in ppm."""

    total: int
    resource_fit: int
    network_locality: int


def needs(requirements: Requirements) -> Capacity:
    """What one replica takes."""
    return Capacity(requirements.cpu_millis, requirements.memory_bytes, requirements.storage_bytes, 1)


# -- eligibility -----------------------------------------------------------------------------------


def eligible(requirements: Requirements, facts: MachineFacts) -> list[str]:
    """The reasons why this machine may never run such a pod; none means that it may.

    Looks at what the machine is, not at what is free on it now (see `slots`).
    """
    return [
        *_platform_reasons(requirements, facts),
        *_size_reasons(requirements, facts.capacity),
        *_label_reasons(requirements, facts.labels),
        *_taint_reasons(requirements.tolerations, facts.taints),
    ]


def _platform_reasons(requirements: Requirements, facts: MachineFacts) -> list[str]:
    reasons = []
    if facts.peer in requirements.avoid:
        reasons.append("the tender asks to avoid this machine")
    if requirements.architecture is not None and requirements.architecture != facts.architecture:
        reasons.append(
            f"needs architecture {requirements.architecture}, this machine is {facts.architecture}"
        )
    if requirements.runtime not in facts.runtimes:
        have = ", ".join(sorted(facts.runtimes)) or "none"
        reasons.append(f"needs runtime {requirements.runtime}, this machine has {have}")
    return reasons


def _size_reasons(requirements: Requirements, capacity: Capacity) -> list[str]:
    names = ("cpu (millicores)", "memory (bytes)", "storage (bytes)", "pods")
    triples = zip(names, needs(requirements).amounts(), capacity.amounts(), strict=True)
    return [f"needs {want} {name}, this machine has {have}" for name, want, have in triples if want > have]


def _label_reasons(requirements: Requirements, labels: Mapping[str, str]) -> list[str]:
    reasons = [
        f"node selector {key}={value} is not met"
        for key, value in sorted(requirements.node_selector.items())
        if labels.get(key) != value
    ]
    terms = requirements.affinity
    if terms and not any(_matches_term(term, labels) for term in terms):
        reasons.append("no term of the required node affinity is met")
    return reasons


def _matches_term(term: SelectorTerm, labels: Mapping[str, str]) -> bool:
    # Kubernetes: a term without expressions selects nothing.
    return bool(term.expressions) and all(matches_expression(e, labels) for e in term.expressions)


def _integer(text: str | None) -> int | None:
    try:
        return None if text is None else int(text)
    except ValueError:
        return None


def _greater(left: str | None, right: tuple[str, ...]) -> bool:
    have, bound = _integer(left), _integer(right[0] if len(right) == 1 else None)
    return have is not None and bound is not None and have > bound


def _less(left: str | None, right: tuple[str, ...]) -> bool:
    have, bound = _integer(left), _integer(right[0] if len(right) == 1 else None)
    return have is not None and bound is not None and have < bound


# Kubernetes' NodeSelectorRequirement: a label that is absent is NotIn every list.
_OPERATORS: Mapping[str, Callable[[str | None, tuple[str, ...]], bool]] = {
    "In": lambda have, values: have is not None and have in values,
    "NotIn": lambda have, values: have is None or have not in values,
    "Exists": lambda have, values: have is not None,
    "DoesNotExist": lambda have, values: have is None,
    "Gt": _greater,
    "Lt": _less,
}


def matches_expression(expression: Expression, labels: Mapping[str, str]) -> bool:
    """Whether labels meet one expression; an operator that is not known is met by nothing."""
    operator = _OPERATORS.get(expression.operator)
    return operator is not None and operator(labels.get(expression.key), tuple(expression.values))


def tolerates(toleration: Toleration, taint: Taint) -> bool:
    """Whether one toleration covers one taint, as in Kubernetes (empty key with Exists covers every
    taint).
    """
    if toleration.effect and toleration.effect != taint.effect:
        return False
    if toleration.operator == "Exists":
        return not toleration.key or toleration.key == taint.key
    return toleration.key == taint.key and toleration.value == taint.value


def _taint_reasons(tolerations: tuple[Toleration, ...], taints: tuple[Taint, ...]) -> list[str]:
    return [
        f"taint {taint.key}={taint.value}:{taint.effect} is not tolerated"
        for taint in taints
        if taint.effect in _REFUSING_EFFECTS and not any(tolerates(t, taint) for t in tolerations)
    ]


# -- size and score --------------------------------------------------------------------------------


def slots(requirements: Requirements, free: Capacity, wanted: int) -> int:
    """How many replicas fit into `free`, at most `wanted`, at least 0.

    A pod always takes a pod's place, so even one without requests fits only a bounded number of times.
    """
    fits = free.times(needs(requirements))
    return 0 if fits is None else min(max(0, wanted), fits)


def resource_fit(requirements: Requirements, free: Capacity, total: Capacity) -> int:
    """How much of the machine would be free after one replica: the mean over its resources, in ppm.

    The least loaded machine wins, which spreads load (Kubernetes' LeastAllocated).
    """
    rest = free - needs(requirements)
    pairs = zip(rest.amounts(), total.amounts(), strict=True)
    shares = [min(PPM, max(0, left) * PPM // whole) for left, whole in pairs if whole > 0]
    return sum(shares) // len(shares) if shares else 0


def score(
    requirements: Requirements, free: Capacity, total: Capacity, readings: Readings | None = None
) -> Score:
    """A bidder's score for one replica with `free` of `total` left."""
    read = readings if readings is not None else Readings()
    fit = resource_fit(requirements, free, total)
    locality = _clamp(read.network_locality)
    parts = (
        fit * WEIGHT_RESOURCE_FIT,
        locality * WEIGHT_NETWORK_LOCALITY,
        _clamp(read.reliability) * WEIGHT_RELIABILITY,
        _clamp(read.economy) * WEIGHT_ECONOMY,
    )
    return Score(sum(parts) // PPM, fit, locality)


def _clamp(ppm: int) -> int:
    return min(PPM, max(0, ppm))


# -- who answers a tender --------------------------------------------------------------------------


def in_sample(
    tender_id: UUID, node_id: PeerId, bid_sample: int, fabric_size_estimate: int, round: int
) -> bool:
    """Whether a machine is among the about `bid_sample` that should answer this round.

    Rounds count from 1.  By a hash of (tender id, node id), before any connection is opened.  The sample of a
    round contains the samples of the rounds before it, each SAMPLE_GROWTH times as wide; a fabric not larger
    than the sample answers whole.
    """
    wide = sample_width(bid_sample, round)
    if fabric_size_estimate <= wide:
        return True
    digest = hashlib.sha256(tender_id.bytes + node_id.raw).digest()
    return int.from_bytes(digest[:8], "big") * fabric_size_estimate < wide << 64


def sample_width(bid_sample: int, round: int) -> int:
    """How many machines a round asks, about."""
    rounds_before: int = min(max(0, round - 1), 32)  # 32: beyond any fabric
    return max(0, bid_sample) * int(SAMPLE_GROWTH**rounds_before)


# -- winners ---------------------------------------------------------------------------------------


def rank(bid: Bid) -> tuple[int, PeerId, int, int]:
    """The order of bids: score descending, then node id (then what tells two bids of one node apart)."""
    return (-bid.score, bid.node_id, -bid.slots, bid.nonce)


def choose_winners(
    bids: Iterable[Bid], replicas: int, taken: Mapping[PeerId, int] | None = None
) -> list[tuple[Bid, int]]:
    """Who runs how many of `replicas`, in the order of `rank`; fewer in sum if the slots do not suffice.

    Machines with the fewest replicas (those of `taken`, which count what already runs there, and those
    given here) come first, so that replicas spread over machines before they double up.  The same bids in
    any order give the same list.  Of two bids of one node the better ranked counts.
    """
    already = taken if taken is not None else {}
    ranked = _best_per_node(bids)
    heap = [(already.get(bid.node_id, 0), place) for place, bid in enumerate(ranked) if bid.slots > 0]
    heapq.heapify(heap)
    given = [0] * len(ranked)
    for _ in range(replicas):
        if not heap:
            break
        load, place = heapq.heappop(heap)
        given[place] += 1
        if given[place] < ranked[place].slots:
            heapq.heappush(heap, (load + 1, place))
    return [(bid, count) for bid, count in zip(ranked, given, strict=True) if count]


def _best_per_node(bids: Iterable[Bid]) -> list[Bid]:
    best: dict[PeerId, Bid] = {}
    for bid in sorted(bids, key=rank):
        best.setdefault(bid.node_id, bid)
    return list(best.values())
