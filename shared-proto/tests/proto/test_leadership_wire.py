"""Leadership's messages and storage as bytes: there and back, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magik_proto import codec
from magik_proto import leadership as lead
from magik_proto.errors import RemoteProtocolError
from magik_proto.leadership_wire import KINDS, from_value, stored_from_bytes, stored_to_bytes, to_value

u64 = st.integers(0, 2**64 - 1)
generations = st.integers(0, 2**63 - 1)
counts = st.integers(1, 99)
incarnations = st.dictionaries(st.integers(0, 98), u64, max_size=99)
MESSAGES = st.one_of(
    st.builds(lead.PreVote, term=u64, generation=generations, since=u64, settled=st.booleans()),
    st.builds(lead.PreVoteReply, term=u64, granted=st.booleans()),
    st.builds(lead.RequestVote, term=u64, generation=generations, since=u64, settled=st.booleans()),
    st.builds(lead.VoteReply, term=u64, granted=st.booleans()),
    st.builds(
        lead.Heartbeat,
        term=u64,
        generation=generations,
        round=u64,
        voters=st.lists(counts, min_size=1, max_size=2).map(tuple),
    ),
    st.builds(lead.HeartbeatReply, term=u64, generation=generations, round=st.none() | u64),
    st.builds(lead.Rejoin, incarnation=u64),
    st.builds(
        lead.RejoinReply,
        incarnation=u64,
        term=u64,
        generation=generations,
        voters=st.lists(counts, max_size=2).map(tuple),
        since=u64,
    ),
)
STORED = st.builds(
    lead.Stored,
    generation=generations,
    voters=st.lists(counts, max_size=2).map(tuple),
    since=u64,
    incarnation=u64,
    term=u64,
    vote=st.none() | st.integers(0, 98),
    incarnations=incarnations,
)


LIVES = st.builds(lead.Life, incarnation=u64, incarnations=incarnations)


@given(MESSAGES, LIVES)
def test_messages_come_back(message: lead.Message, life: lead.Life) -> None:
    assert from_value(codec.decode(codec.encode(to_value(message, life)))) == (message, life)


@given(STORED)
def test_what_is_stored_comes_back(stored: lead.Stored) -> None:
    assert stored_from_bytes(stored_to_bytes(stored)) == stored


def test_every_message_has_a_kind() -> None:
    assert set(KINDS.values()) == set(lead.Message.__args__)


BEAT = to_value(lead.Heartbeat(1, 1, 1, (3,)), lead.Life())
GOOD = to_value(lead.VoteReply(term=1, granted=True), lead.Life(2, {0: 1, 3: 4}))


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {**GOOD, "kind": "veto"},
        {**GOOD, "kind": 1},
        {**GOOD, "term": -1},
        {**GOOD, "term": 2**64},
        {**GOOD, "term": True},
        {**GOOD, "granted": 1},
        {name: value for name, value in GOOD.items() if name != "life"},
        {**BEAT, "round": None},
        {**BEAT, "voters": []},
        {**BEAT, "voters": [0]},
        {**BEAT, "voters": [100]},
        {**BEAT, "voters": [5, 4, 3]},
        {**BEAT, "voters": 3},
        {**to_value(lead.PreVote(1, 1, 0, True), lead.Life()), "settled": None},
        {**GOOD, "lives": {0: 1}},
        {**GOOD, "lives": [[0]]},
        {**GOOD, "lives": [[99, 1]]},
        {**GOOD, "lives": [[3, 1], [0, 1]]},
        {**GOOD, "lives": [[0, 1], [0, 2]]},
        {**GOOD, "lives": [[0, 1]] * 100},
    ],
)
def test_what_is_no_message_is_refused(value: Any) -> None:
    with pytest.raises(RemoteProtocolError, match=r"leadership\.message"):
        from_value(value)


def test_fields_of_a_later_version_are_ignored() -> None:
    assert from_value({**GOOD, "later": 1}) == from_value(GOOD)


@pytest.mark.parametrize(
    "data", [b"", b"\xa0", b"\x80", b"\xff" * 9, stored_to_bytes(lead.new_voter(1, 3))[:-1]]
)
def test_a_damaged_store_counts_as_lost(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        stored_from_bytes(data)
