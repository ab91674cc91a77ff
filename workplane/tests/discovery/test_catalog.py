"""The catalogue of replicas: life, order, limits and visibility."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magik_proto.identity import PeerId
from magik_proto.records import SERVICE_LIFE_MS, ServiceRecord
from workplane.catalog import CLOCK_SKEW_MS, GRACE_MS, Catalog, Visibility

NOW = 1_700_000_000_000
OWN = Visibility(namespace="default")


def record(peer: int = 1, workload: str = "default/Deployment/web", **changes: Any) -> ServiceRecord:
    namespace, kind, name = workload.split("/")
    given: dict[str, Any] = {
        "workload_id": workload,
        "namespace": namespace,
        "workload_kind": kind,
        "workload_name": name,
        "peer_id": PeerId(bytes([peer]) * 32),
        "pod_name": f"{name}-{peer}",
        "version": 1,
        "ts": NOW,
        "ready": True,
        "healthy": True,
        "nonce": 1,
    }
    return ServiceRecord(**{**given, **changes})


def names(found: tuple[ServiceRecord, ...]) -> list[str]:
    return [one.pod_name for one in found]


def test_replicas_are_listed_while_their_records_live() -> None:
    catalog = Catalog(OWN)
    assert len(catalog.take([record(2), record(1), record(3, "default/Deployment/db")], NOW)) == 3
    assert names(catalog.replicas("default/Deployment/web", NOW)) == ["web-1", "web-2"]
    end = NOW + SERVICE_LIFE_MS
    assert len(catalog.replicas("default/Deployment/web", end - 1)) == 2
    assert catalog.replicas("default/Deployment/web", end) == ()
    catalog.expire(end - 1)
    assert catalog.workloads() == ("default/Deployment/db", "default/Deployment/web")
    catalog.expire(end + GRACE_MS)
    assert catalog.workloads() == ()


def test_where_all_records_are_over_those_that_were_ready_lately_are_hoped_for() -> None:
    catalog, web, end = Catalog(OWN), "default/Deployment/web", NOW + SERVICE_LIFE_MS
    catalog.take([record(1), record(2), record(3, ready=False)], NOW)
    assert names(catalog.hoped(web, NOW)) == ["web-1", "web-2"]
    catalog.expire(end)
    assert catalog.ready(web, end) == () and names(catalog.hoped(web, end)) == ["web-1", "web-2"]
    catalog.forget(record(1).peer_id, web)  # as who is lost, or leaves
    assert names(catalog.hoped(web, end + GRACE_MS - 1)) == ["web-2"]
    assert catalog.hoped(web, end + GRACE_MS) == ()
    catalog.take([record(4, ts=end, ready=False)], end)  # one that lives and says that it is not ready
    assert catalog.hoped(web, end) == ()


def test_only_news_of_higher_precedence_counts() -> None:
    catalog = Catalog(OWN)
    first, later = record(), record(version=2, ready=False)
    assert catalog.take([first], NOW) == [first] and catalog.take([first], NOW) == []
    assert catalog.take([later], NOW) == [later] and catalog.take([first], NOW) == []
    assert catalog.ready("default/Deployment/web", NOW) == ()


@pytest.mark.parametrize(("ready", "healthy"), [(False, True), (True, False), (False, False)])
def test_traffic_goes_to_who_is_ready_and_healthy(ready: bool, healthy: bool) -> None:
    catalog = Catalog(OWN)
    catalog.take([record(1), record(2, ready=ready, healthy=healthy)], NOW)
    assert names(catalog.ready("default/Deployment/web", NOW)) == ["web-1"]


def test_the_leader_is_the_one_of_the_latest_epoch() -> None:
    catalog, db = Catalog(OWN), "default/StatefulSet/db"
    assert catalog.leader(db, NOW) is None
    claims = [(1, 5, True), (2, 7, True), (3, 9, False)]
    catalog.take(
        [
            record(n, db, caps={"leader": True, "leader_epoch": epoch}, ready=ready)
            for n, epoch, ready in claims
        ],
        NOW,
    )
    leader = catalog.leader(db, NOW)
    assert leader is not None and leader.pod_name == "db-2"


@pytest.mark.parametrize("ts", [NOW - SERVICE_LIFE_MS, NOW + CLOCK_SKEW_MS + 1])
def test_what_is_over_or_from_the_future_is_not_taken(ts: int) -> None:
    assert Catalog(OWN).take([record(ts=ts)], NOW) == []


def test_a_signer_that_is_no_replica_is_forgotten() -> None:
    catalog, one = Catalog(OWN), record()
    catalog.take([one], NOW)
    catalog.forget(one.peer_id, one.workload_id)
    assert catalog.of_peer(one.peer_id, one.workload_id) is None
    catalog.forget(one.peer_id, "default/Deployment/none")


@pytest.mark.parametrize(
    ("visibility", "seen"),
    [
        (OWN, {"default/Deployment/web", "default/StatefulSet/db"}),
        (Visibility(namespace="default", deny=("*/db",)), {"default/Deployment/web"}),
        (Visibility(namespace="default", allow=("default/StatefulSet/*",)), {"default/StatefulSet/db"}),
        (Visibility(namespace="default", allow=("*",), deny=("*",)), set()),
        (Visibility(namespace="default", allow=("other/*",)), set()),
        (Visibility(namespace="default", cross_namespace=True, allow=("other/*",)), {"other/Deployment/web"}),
        (
            Visibility(namespace="default", cross_namespace=True, deny=("default/*",)),
            {"other/Deployment/web"},
        ),
    ],
)
def test_visibility(visibility: Visibility, seen: set[str]) -> None:
    catalog = Catalog(visibility)
    workloads = ("default/Deployment/web", "default/StatefulSet/db", "other/Deployment/web")
    assert {one.workload_id for one in catalog.take([record(1, w) for w in workloads], NOW)} == seen


def test_limits_drop_the_oldest() -> None:
    catalog = Catalog(OWN, max_workloads=2, max_replicas=2)
    catalog.take([record(n, ts=NOW - n) for n in (3, 1, 2)], NOW)
    assert names(catalog.replicas("default/Deployment/web", NOW)) == ["web-1", "web-2"]
    catalog.take([record(1, f"default/Deployment/w{n}", ts=NOW + n) for n in (1, 2)], NOW)
    assert catalog.workloads() == ("default/Deployment/w1", "default/Deployment/w2")


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 3), st.integers(-2, 2)), max_size=30), st.randoms()
)
def test_the_order_of_arrival_does_not_matter(rows: list[tuple[int, int, int]], random: Any) -> None:
    given_ = [record(peer, version=version, ts=NOW + ts) for peer, version, ts in rows]
    one, other = Catalog(OWN), Catalog(OWN)
    one.take(given_, NOW)
    random.shuffle(given_)
    other.take(given_, NOW)
    found = one.replicas("default/Deployment/web", NOW)
    assert [r.precedence for r in found] == [
        r.precedence for r in other.replicas("default/Deployment/web", NOW)
    ]
