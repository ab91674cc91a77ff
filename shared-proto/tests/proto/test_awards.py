"""The sealed inside of an award must be what its outside says."""

from __future__ import annotations

from uuid import UUID

import attrs
import pytest

from magik_proto.awards import open_award, seal_workload
from magik_proto.errors import RemoteProtocolError
from magik_proto.identity import SealingKey, seal
from magik_proto.messages import Award, ResourceId
from magik_proto.records import Workload
from magik_proto.wire import SignedMessage, encode_message

KEY = SealingKey.from_seed(b"\x05" * 32)
Samples = dict[str, SignedMessage]


@pytest.fixture
def workload(samples: Samples) -> Workload:
    found = samples["workload"]
    assert isinstance(found, Workload)
    return found


@pytest.fixture
def award(samples: Samples, workload: Workload) -> Award:
    found = samples["award"]
    assert isinstance(found, Award)
    sealed = seal_workload(workload, KEY.public)
    return attrs.evolve(found, manifest_digest=workload.digest, sealed_manifest=sealed)


def rule(award: Award, key: SealingKey = KEY) -> str:
    with pytest.raises(RemoteProtocolError) as caught:
        open_award(award, key)
    return caught.value.rule


def test_the_winner_opens_what_was_awarded(award: Award, workload: Workload) -> None:
    assert open_award(award, KEY) == workload


def test_nobody_else_does(award: Award) -> None:
    assert rule(award, SealingKey.from_seed(b"\x06" * 32)) == "seal.invalid"


@pytest.mark.parametrize(
    "change",
    [
        {"resource": ResourceId("default", "Deployment", "other")},
        {"uid": UUID(int=1)},
        {"generation": 3},
        {"manifest_digest": bytes(32)},
    ],
)
def test_inside_and_outside_must_agree(award: Award, change: dict[str, object]) -> None:
    assert rule(attrs.evolve(award, **change)) == "award.mismatch"


def test_the_workload_must_be_signed_by_its_author(award: Award, workload: Workload) -> None:
    forged = attrs.evolve(workload, replicas=99)
    assert rule(attrs.evolve(award, sealed_manifest=seal_workload(forged, KEY.public))) == "signature.invalid"


def test_only_a_workload_can_be_inside(award: Award, samples: Samples) -> None:
    inside = encode_message(samples["tender"])
    assert rule(attrs.evolve(award, sealed_manifest=seal(KEY.public, inside))) == "message.unknown-type"
