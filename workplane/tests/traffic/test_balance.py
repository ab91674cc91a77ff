"""Which replica is next: turns, weights, nearness, avoidance, stickiness."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magik_proto.identity import PeerId
from magik_proto.records import ServiceRecord
from workplane.balance import AVOID_S, KIND, MAX_AVOID_S, MAX_KEYS, WEIGHTS, Balancer, Rule
from workplane.services import Service

ROUND, LEAST, NEAR = (Rule(kind) for kind in ("round-robin", "least-connections", "locality"))


def replica(number: int, **caps: str) -> ServiceRecord:
    return ServiceRecord(
        workload_id="default/Deployment/web",
        namespace="default",
        workload_kind="Deployment",
        workload_name="web",
        peer_id=PeerId(bytes([number]) * 32),
        pod_name=f"web-{number}",
        caps=caps,
        version=1,
        ts=1_700_000_000_000,
        ready=True,
        healthy=True,
        nonce=1,
    )


def balancer(seed: int = 1, **where: str) -> Balancer:
    return Balancer(random.Random(seed).random, **where)


def first(b: Balancer, rule: Rule, replicas: list[ServiceRecord], count: int) -> Counter[str]:
    return Counter(b.order("web", rule, replicas, 0.0)[0].pod_name for _ in range(count))


FOUR = [replica(n) for n in (1, 2, 3, 4)]


@given(st.integers(1, 12), st.integers(0, 99), st.sampled_from([ROUND, LEAST, NEAR]))
def test_turns_are_even(count: int, seed: int, rule: Rule) -> None:
    replicas = [replica(n) for n in range(1, count + 1)]
    assert set(first(balancer(seed), rule, replicas, 3 * count).values()) == {3}


def test_services_take_turns_of_their_own_and_pods_begin_anywhere() -> None:
    b = balancer()
    for _ in range(3):
        assert first(b, ROUND, FOUR, 1) and b.order("other", ROUND, FOUR, 0.0)
    assert len({b.order(f"s{n}", ROUND, FOUR, 0.0)[0].pod_name for n in range(40)}) == 4


@given(
    st.sets(st.integers(1, 20), max_size=8),
    st.sets(st.integers(1, 20)),
    st.sampled_from([ROUND, LEAST, NEAR, Rule(weights={"v1": 1}), Rule(sticky_s=60.0)]),
)
def test_every_replica_is_there_once_and_those_that_failed_come_last(
    numbers: set[int], failed: set[int], rule: Rule
) -> None:
    b = balancer()
    replicas = [replica(n, app_version=f"v{n % 3}") for n in sorted(numbers)]
    for number in failed:
        b.failed(PeerId(bytes([number]) * 32), 0.0)
    for now in (0.0, AVOID_S / 2):
        found = b.order("web", rule, replicas, now)
        assert sorted(r.pod_name for r in found) == sorted(r.pod_name for r in replicas)
        bad = [r.peer_id.raw[0] in failed for r in found]
        assert bad == sorted(bad)
    assert not any(b.avoids(r.peer_id, AVOID_S) for r in replicas)


def test_who_fails_again_is_avoided_longer_and_forgiven_when_it_serves() -> None:
    b, peer, now = balancer(), FOUR[0].peer_id, 0.0
    for times in range(8):
        b.failed(peer, now)
        b.failed(peer, now)  # at the same time: counts once
        wait = min(MAX_AVOID_S, AVOID_S * 2**times)
        assert b.avoids(peer, now + wait - 0.01) and not b.avoids(peer, now + wait)
        now += wait
    b.opened("web", peer, 0.0)
    b.failed(peer, now)
    assert not b.avoids(peer, now + AVOID_S)


def test_those_with_fewest_connections_come_first() -> None:
    b = balancer()
    for record in (FOUR[0], FOUR[0], FOUR[1], FOUR[3]):
        b.opened("web", record.peer_id, 0.0)
    ordered = b.order("web", LEAST, FOUR, 0.0)
    assert (ordered[0], ordered[-1]) == (FOUR[2], FOUR[0])
    b.closed(FOUR[3].peer_id)
    assert set(first(b, LEAST, FOUR, 4)) == {"web-3", "web-4"}


def test_the_own_machine_then_the_own_zone_come_first() -> None:
    near = [
        replica(1, machine="m1", zone="east"),
        replica(2, machine="m2", zone="east"),
        replica(3, machine="m3", zone="west"),
    ]
    b = balancer(machine="m1", zone="east")
    assert [r.pod_name for r in b.order("web", NEAR, near, 0.0)] == ["web-1", "web-2", "web-3"]
    b.failed(near[0].peer_id, 0.0)
    assert [r.pod_name for r in b.order("web", NEAR, near, 0.0)] == ["web-2", "web-3", "web-1"]
    assert [r.pod_name for r in b.order("web", NEAR, near[2:], 0.0)] == ["web-3"]  # spills over
    assert set(first(balancer(), NEAR, near, 9).values()) == {
        3
    }  # who does not know where it is has no near ones


@settings(max_examples=20)
@given(st.integers(0, 100), st.integers(0, 99))
def test_weights_part_connections_between_versions(percent: int, seed: int) -> None:
    replicas = [replica(n, app_version="v1") for n in (1, 2, 3)] + [replica(4, app_version="v2"), replica(5)]
    rule = Rule.of(
        Service(
            name="web",
            namespace="default",
            annotations={WEIGHTS: f"v1={percent}, v2={100 - percent}"},
        )
    )
    found = first(balancer(seed), rule, replicas, 1000)
    assert abs(found["web-4"] - 10 * (100 - percent)) < 100
    assert found["web-5"] == 0  # of no version that has a weight: only where no other is left
    shares = [found[f"web-{n}"] for n in (1, 2, 3)]
    assert max(shares) - min(shares) < 100
    assert first(balancer(seed), rule, replicas[4:], 2) == {"web-5": 2}


def test_a_sticky_client_stays_until_its_replica_fails_or_goes() -> None:
    b, rule = balancer(), Rule(sticky_s=60.0)
    chosen = b.order("web", rule, FOUR, 0.0)[0]
    b.opened("web", chosen.peer_id, 0.0)
    assert first(b, rule, FOUR, 8) == {chosen.pod_name: 8}
    b.failed(chosen.peer_id, 0.0)
    other = b.order("web", rule, FOUR, 0.0)[0]
    b.opened("web", other.peer_id, 0.0)
    assert other != chosen and first(b, rule, FOUR, 8) == {other.pod_name: 8}
    assert {b.order("web", rule, FOUR, 59.9)[0] for _ in range(8)} == {other}
    assert len({b.order("web", rule, FOUR, 60.0)[0] for _ in range(8)}) == 4  # no connection for too long
    assert other not in b.order("web", rule, [r for r in FOUR if r is not other], 0.0)


@pytest.mark.parametrize(
    "annotations",
    [
        {KIND: "fastest"},
        {WEIGHTS: "v1"},
        {WEIGHTS: "v1=-1"},
        {WEIGHTS: "=5"},
        {WEIGHTS: "v1=0"},
        {WEIGHTS: "v1=²"},
    ],
)
def test_annotations_that_say_nothing_are_named(annotations: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=next(iter(annotations)).replace(".", r"\.")):
        Rule.of(Service(name="web", namespace="default", annotations=annotations))


def test_what_is_remembered_is_bounded() -> None:
    b = balancer()
    for n in range(MAX_KEYS + 10):
        b.order(f"s{n}", ROUND, FOUR, 0.0)
        b.opened(f"s{n}", FOUR[0].peer_id, 0.0)
        b.closed(FOUR[0].peer_id)
    assert len(b._turns) == len(b._stuck) == MAX_KEYS and not b._open
