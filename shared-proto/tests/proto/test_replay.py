"""The replay filter: once, near its time, within quotas, over restarts and clock jumps."""

from __future__ import annotations

import pytest

from magik_proto.errors import RemoteProtocolError
from magik_proto.identity import PeerId
from magik_proto.replay import SKEW_MS, WINDOW_MS, ReplayFilter

START = 1_700_000_000_000
A, B = PeerId(b"\x0a" * 32), PeerId(b"\x0b" * 32)


def rule(filter: ReplayFilter, signer: PeerId, nonce: int, timestamp: int, now: int) -> str | None:
    """The rule by which the filter refuses, or None."""
    try:
        filter.check(signer, b"id", nonce, timestamp, now)
    except RemoteProtocolError as error:
        return error.rule
    return None


def test_a_message_passes_once() -> None:
    filter = ReplayFilter(START)
    assert rule(filter, A, 1, START, START) is None
    assert rule(filter, A, 1, START, START) == "replay.seen"
    assert rule(filter, A, 2, START, START) is None
    assert rule(filter, B, 1, START, START) is None
    filter.check(A, b"other id", 1, START, START)
    assert len(filter) == 4


def test_a_message_far_from_our_time_is_refused() -> None:
    filter = ReplayFilter(START)
    now = START + 100_000
    assert rule(filter, A, 1, now - SKEW_MS, now) is None
    assert rule(filter, A, 2, now + SKEW_MS, now) is None
    assert rule(filter, A, 3, now - SKEW_MS - 1, now) == "freshness.skew"
    assert rule(filter, A, 4, now + SKEW_MS + 1, now) == "freshness.skew"
    assert len(filter) == 2


def test_what_is_from_before_the_start_is_refused() -> None:
    filter = ReplayFilter(START)
    assert rule(filter, A, 1, START - 1, START) == "replay.before-start"
    assert rule(filter, A, 1, START, START) is None


def test_nothing_passes_twice_at_any_time_of_its_life() -> None:
    filter = ReplayFilter(START)
    stamp = START + SKEW_MS
    assert rule(filter, A, 1, stamp, START) is None
    for now in range(START, START + 2 * WINDOW_MS, 1_000):
        assert rule(filter, A, 1, stamp, now) in ("replay.seen", "freshness.skew")


def test_a_clock_that_jumps_ahead_and_back_forgets_nothing() -> None:
    filter = ReplayFilter(START)
    stamp = START + SKEW_MS
    assert rule(filter, A, 1, stamp, START) is None
    ahead = START + 3_600_000
    assert rule(filter, B, 1, ahead, ahead) is None
    assert rule(filter, B, 2, ahead, ahead) is None
    assert len(filter) == 2, "the first entry has expired"
    assert rule(filter, A, 1, stamp, START + 1) == "replay.before-start"


def test_a_signers_quota_is_its_own() -> None:
    filter = ReplayFilter(START, capacity=100, per_signer=3)
    for nonce in range(3):
        assert rule(filter, A, nonce, START, START) is None
    assert rule(filter, A, 3, START, START) == "replay.quota"
    assert rule(filter, A, 0, START, START) == "replay.seen"
    assert rule(filter, B, 3, START, START) is None


def test_a_full_filter_refuses_and_forgets_nobody() -> None:
    filter = ReplayFilter(START, capacity=4, per_signer=3)
    for nonce in range(3):
        assert rule(filter, A, nonce, START, START) is None
    assert rule(filter, B, 0, START, START) is None
    assert rule(filter, B, 1, START, START) == "replay.full"
    assert rule(filter, A, 0, START, START) == "replay.seen"
    assert rule(filter, B, 0, START, START) == "replay.seen"


def test_room_comes_back_after_the_window() -> None:
    filter = ReplayFilter(START, capacity=100, per_signer=100)
    for nonce in range(100):
        assert rule(filter, A, nonce, START, START) is None
    later = START + WINDOW_MS - 1
    assert rule(filter, A, 100, later, later) == "replay.quota"
    later += 1
    for nonce in range(100, 200):
        assert rule(filter, A, nonce, later, later) is None
    assert len(filter) == 100


def test_counts_of_signers_go_with_their_entries() -> None:
    filter = ReplayFilter(START)
    assert rule(filter, A, 1, START, START) is None
    later = START + WINDOW_MS
    assert rule(filter, B, 1, later, later) is None
    assert filter._counts == {B: 1}


def test_a_check_expires_a_bounded_number() -> None:
    filter = ReplayFilter(START)
    for nonce in range(1000):
        filter.check(A, b"", nonce, START, START)
    later = START + WINDOW_MS
    assert rule(filter, B, 1, later, later) is None
    assert len(filter) > 900, "one check must not pay for all"


def test_refused_messages_take_no_room() -> None:
    filter = ReplayFilter(START)
    for nonce in range(10):
        rule(filter, A, nonce, START - 1, START)
        rule(filter, A, nonce, START + 100_000, START)
    assert len(filter) == 0


def test_a_window_that_cannot_protect_is_refused() -> None:
    with pytest.raises(ValueError, match="skew"):
        ReplayFilter(START, window_ms=2 * SKEW_MS - 1)
