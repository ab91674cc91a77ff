"""The replay filter beside a memory that forgets nothing: no message passes twice, whatever clocks do."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from magik_proto.errors import RemoteProtocolError
from magik_proto.identity import PeerId
from magik_proto.replay import ReplayFilter

SIGNERS = [PeerId(bytes([index]) * 32) for index in range(3)]
STEPS = st.tuples(
    st.sampled_from(SIGNERS),
    st.integers(0, 3),  # nonce
    st.integers(-35, 35),  # timestamp, seconds from the clock's
    st.integers(-400, 400),  # how the clock moves before, seconds
)


@given(st.lists(STEPS, max_size=60))
@settings(max_examples=300)
def test_nothing_passes_twice(steps: list[tuple[PeerId, int, int, int]]) -> None:
    now = 1_700_000_000_000
    filter = ReplayFilter(now, capacity=20, per_signer=10)
    passed: dict[tuple[PeerId, int, int], int] = {}
    messages: list[tuple[PeerId, int, int]] = []
    for signer, nonce, offset, move in steps:
        now += move * 1000
        messages.append((signer, nonce, now + offset * 1000))
        for message in messages:  # the new one, and all old ones again
            try:
                filter.check(message[0], b"", message[1], message[2], now)
            except RemoteProtocolError:
                continue
            passed[message] = passed.get(message, 0) + 1
    assert all(count == 1 for count in passed.values())
    assert len(filter) <= 20
