"""The sealed inside of an award must be what its outside says."""

from __future__ import annotations

from uuid import UUID

import attrs
import pytest

from magik_proto.awards import MAX_SEALED, Delivery, digest_of, open_award, seal_workload
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
def award(samples: Samples, workload: Workload) -> Delivery:
    found = samples["award"]
    assert isinstance(found, Award)
    return boxed(attrs.evolve(found, manifest_digest=workload.digest), seal_workload(workload, KEY.public))


def boxed(award: Award, sealed: bytes) -> Delivery:
    return Delivery(attrs.evolve(award, sealed_digest=digest_of(sealed)), sealed)


def rule(delivery: Delivery, key: SealingKey = KEY) -> str:
    with pytest.raises(RemoteProtocolError) as caught:
        open_award(delivery, key)
    return caught.value.rule


def test_the_winner_opens_what_was_awarded(award: Delivery, workload: Workload) -> None:
    assert open_award(award, KEY) == workload


def test_nobody_else_does(award: Delivery) -> None:
    assert rule(award, SealingKey.from_seed(b"\x06" * 32)) == "seal.invalid"


def test_the_box_must_be_the_one_that_the_award_names(award: Delivery, workload: Workload) -> None:
    assert rule(attrs.evolve(award, sealed=seal_workload(workload, KEY.public))) == "award.other-box"


@pytest.mark.parametrize(
    "change",
    [
        {"resource": ResourceId("default", "Deployment", "other")},
        {"uid": UUID(int=1)},
        {"generation": 3},
        {"manifest_digest": bytes(32)},
    ],
)
def test_inside_and_outside_must_agree(award: Delivery, change: dict[str, object]) -> None:
    assert rule(attrs.evolve(award, award=attrs.evolve(award.award, **change))) == "award.mismatch"


def test_the_workload_must_be_signed_by_its_author(award: Delivery, workload: Workload) -> None:
    forged = seal_workload(attrs.evolve(workload, replicas=99), KEY.public)
    assert rule(boxed(award.award, forged)) == "signature.invalid"


def test_only_a_workload_can_be_inside(award: Delivery, samples: Samples) -> None:
    inside = encode_message(samples["tender"])
    assert rule(boxed(award.award, seal(KEY.public, inside))) == "message.unknown-type"


def test_a_delivery_is_read_back(award: Delivery) -> None:
    assert Delivery.from_body(award.to_body()) == award
    founding = attrs.evolve(award, founder=True)
    assert Delivery.from_body(founding.to_body()) == founding
    assert not Delivery.from_body({**award.to_body(), "founder": 1}).founder


@pytest.mark.parametrize(
    "change", [{"sealed": b""}, {"sealed": b"\0" * (MAX_SEALED + 1)}, {"sealed": "text"}, {"award": None}]
)
def test_what_is_no_delivery_is_refused(award: Delivery, change: dict[str, object]) -> None:
    with pytest.raises(RemoteProtocolError, match=r"award\.body"):
        Delivery.from_body({**award.to_body(), **change})
