"""Which manifests are held, and how a delete stays one."""

import pytest
from fabric_support import deployment, identity, record

from machineplane.fabric.holdings import TOMBSTONE_LIFE_S, Holdings, HoldingsFull
from magik_proto.messages import Disposal
from magik_proto.records import Workload
from magik_proto.signing import sign

ME = identity(1)


def disposal_of(workload: Workload) -> Disposal:
    return sign(
        Disposal(
            signer=ME.peer_id,
            namespace=workload.resource.namespace,
            kind=workload.resource.kind,
            name=workload.resource.name,
            uid=workload.uid,
            generation=workload.generation,
            timestamp=1,
            nonce=1,
        ),
        ME,
    )


def test_the_newer_manifest_wins_in_any_order() -> None:
    first = record(deployment(), ME)
    later = record(deployment(replicas=5), ME, uid=first.uid, stamp=2)
    for order in ((first, later), (later, first)):
        holdings = Holdings()
        for workload in order:
            holdings.offer(workload, 0.0)
        assert holdings.get(first.uid) == later


def test_the_same_manifest_again_is_no_news() -> None:
    holdings, workload = Holdings(), record(deployment(), ME)
    assert holdings.offer(workload, 0.0)
    assert not holdings.offer(workload, 0.0)


def test_a_disposed_workload_stays_away_for_its_life() -> None:
    holdings, workload = Holdings(), record(deployment(), ME)
    holdings.offer(workload, 0.0)
    assert holdings.dispose(disposal_of(workload), 0.0)
    assert holdings.get(workload.uid) is None
    assert not holdings.offer(workload, TOMBSTONE_LIFE_S - 1)
    assert not holdings.dispose(disposal_of(workload), 1.0)
    assert holdings.offer(workload, TOMBSTONE_LIFE_S + 1)


def test_a_namesake_of_a_disposed_workload_is_another() -> None:
    holdings, old = Holdings(), record(deployment(), ME)
    holdings.dispose(disposal_of(old), 0.0)
    assert holdings.offer(record(deployment(), ME), 0.0)


def test_at_the_cap_a_new_workload_is_refused_and_a_newer_manifest_is_not() -> None:
    holdings = Holdings(manifests_max=1)
    workload = record(deployment(), ME)
    holdings.offer(workload, 0.0)
    with pytest.raises(HoldingsFull):
        holdings.offer(record(deployment("other"), ME), 0.0)
    assert holdings.offer(record(deployment(replicas=1), ME, uid=workload.uid, generation=2), 0.0)


def test_at_the_cap_the_oldest_disposal_is_forgotten() -> None:
    holdings = Holdings(disposals_max=2)
    disposed = [record(deployment(f"w{i}"), ME) for i in range(3)]
    for number, workload in enumerate(disposed):
        holdings.dispose(disposal_of(workload), float(number))
    assert [d.uid for d in holdings.disposals(3.0)] == [w.uid for w in disposed[1:]]
