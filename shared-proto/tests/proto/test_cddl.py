"""The CDDL of specs/technical-spec.md, read by another implementation, takes and refuses what the code does."""

from __future__ import annotations

import base64
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pycddl
import pytest

from magik_proto import leadership_wire

SPECS = Path(__file__).parents[3] / "specs"
VECTORS = SPECS / "vectors"
MESSAGES = json.loads((VECTORS / "messages.json").read_text())
MEMBERSHIP = json.loads((VECTORS / "membership.json").read_text())
RPC = json.loads((VECTORS / "rpc.json").read_text())


def cddl() -> str:
    """All of the specification's CDDL. This tool looks for a regexp anywhere in a text, the RFC means all of
    it."""
    blocks = re.findall(r"```cddl\n(.*?)```", (SPECS / "technical-spec.md").read_text(), re.DOTALL)
    return re.sub(r'\.regexp "([^"]*)"', r'.regexp "^(\1)$"', "\n".join(blocks))


@cache
def schema(root: str) -> pycddl.Schema:
    return pycddl.Schema(f"root = {root}\n{cddl()}")


def fits(root: str, data: bytes) -> bool:
    try:
        schema(root).validate_cbor(data)
    except pycddl.ValidationError:
        return False
    return True


@pytest.mark.parametrize("row", MESSAGES["accepted"], ids=lambda row: row["type"])
def test_messages_and_records_fit_their_own_rule_only(row: Any) -> None:
    data = bytes.fromhex(row["encoding"])
    rules = {vector["type"].partition("/")[0] for vector in MESSAGES["accepted"]}
    rules |= {"delegation", "member", "revocations"}
    assert {rule for rule in rules if fits(rule, data)} == {row["type"].partition("/")[0]}


@pytest.mark.parametrize("row", MESSAGES["refused_as_bid"], ids=lambda row: row["what"])
def test_what_is_refused_by_form_does_not_fit(row: Any) -> None:
    assert fits("bid", bytes.fromhex(row["encoding"])) != row["by_form"]


@pytest.mark.parametrize("name", ["delegation", "member", "revocations"])
def test_credentials(name: str) -> None:
    assert fits(name, bytes.fromhex(MEMBERSHIP[name]))
    assert not fits(name, bytes.fromhex(MEMBERSHIP[name])[:-1])


def test_the_invite() -> None:
    body = MEMBERSHIP["invite"].removeprefix("magik-invite-1.")
    assert fits("invite", base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))


def test_all_members_and_lists_that_are_read_at_all() -> None:
    for row in MEMBERSHIP["admissions"]:
        readable = row["rule"] not in ("membership.missing", "membership.malformed")
        assert fits("member", bytes.fromhex(row["member"])) == readable, row["what"]
    for row in MEMBERSHIP["passes"]:
        readable = row["rule"] not in ("pass.missing", "pass.malformed")
        assert fits("pass", bytes.fromhex(row["pass"])) == readable, row["what"]
    assert all(
        fits("revocations", bytes.fromhex(row["revocations"])) for row in MEMBERSHIP["revocation_lists"]
    )


def test_frames_and_calls() -> None:
    for row in RPC["frames"]:
        assert fits(row["kind"], bytes.fromhex(row["frame"])[4:])
    for row in RPC["calls"]:
        # Each choice of maps by itself: of two together, this tool takes a map that fits neither.
        choices = {
            "gossip": ("gossip-frame",),
            "response": ("success", "failure"),
            "leadership": tuple(leadership_wire.KINDS),
        }
        roots = choices.get(row["kind"], (row["kind"],))
        data = bytes.fromhex(row["encoding"])
        assert any(fits(root, data) for root in roots) == (row["rule"] == "accepted"), row["what"]


def test_bids_tenders_and_awards_of_the_auctions() -> None:
    auction = json.loads((VECTORS / "auction.json").read_text())
    bids = {data for row in auction["winners"] for data in row["bids"]}
    assert all(fits("bid", bytes.fromhex(data)) for data in bids)
    assert fits("tender", bytes.fromhex(auction["awards"]["tender"]))
    awards = {data for story in auction["awards"]["stories"] for data in story["awards"]}
    assert all(fits("award", bytes.fromhex(data)) for data in awards)


def test_values_have_the_form_of_the_codec() -> None:
    codec = json.loads((VECTORS / "codec.json").read_text())
    assert all(fits("value", bytes.fromhex(row["encoding"])) for row in codec["values"])
    for row in codec["refused"]:
        if row["rule"] == "codec.float":  # other encodings of a value are no matter of CDDL
            assert not fits("value", bytes.fromhex(row["bytes"])), row["what"]
