"""Records: digests, order of precedence, lifetimes."""

from __future__ import annotations

import hashlib
from typing import Any

import attrs
import pytest

from magik_proto.errors import LocalProtocolError, RemoteProtocolError
from magik_proto.identity import PeerId
from magik_proto.records import SERVICE_LIFE_MS, ServiceRecord, Workload, canonical_json
from magik_proto.wire import SignedMessage

Samples = dict[str, SignedMessage]


def test_a_workloads_digest_is_its_manifests(samples: Samples) -> None:
    workload = samples["workload"]
    assert isinstance(workload, Workload)
    assert workload.digest == hashlib.sha256(workload.manifest).digest()


def test_the_later_workload_counts(samples: Samples) -> None:
    workload = samples["workload"]
    assert isinstance(workload, Workload)
    newer = attrs.evolve(workload, generation=3, stamp=0)
    later = attrs.evolve(workload, stamp=workload.stamp + 1)
    assert newer.precedence > later.precedence > workload.precedence


def test_service_records_conflict_by_version_then_time_then_peer(samples: Samples) -> None:
    record = samples["service"]
    assert isinstance(record, ServiceRecord)
    order = [
        record,
        attrs.evolve(record, peer_id=PeerId(b"\xff" * 32)),
        attrs.evolve(record, ts=record.ts + 1, peer_id=PeerId(bytes(32))),
        attrs.evolve(record, version=2, ts=0),
    ]
    assert sorted([order[2], order[0], order[3], order[1]], key=lambda r: r.precedence) == order


def test_service_records_live_fifteen_seconds(samples: Samples) -> None:
    record = samples["service"]
    assert isinstance(record, ServiceRecord)
    assert not record.expired(record.ts + SERVICE_LIFE_MS - 1)
    assert record.expired(record.ts + SERVICE_LIFE_MS)


def test_canonical_json_has_one_form() -> None:
    assert canonical_json({"b": [1, None], "a": "ü"}) == '{"a":"ü","b":[1,null]}'.encode()


@pytest.mark.parametrize("value", [float("nan"), b"x", {1: 2, "a": 3}, "\ud800", object()])
def test_what_json_cannot_say_is_our_error(value: Any) -> None:
    with pytest.raises(LocalProtocolError):
        canonical_json({"value": value})


def test_a_service_record_names_its_workload_once(samples: dict[str, SignedMessage]) -> None:
    record = samples["service"]
    assert isinstance(record, ServiceRecord)
    assert record.timestamp == record.ts
    record.check()
    with pytest.raises(RemoteProtocolError, match=r"signature\.identity-mismatch"):
        attrs.evolve(record, workload_name="other").check()
