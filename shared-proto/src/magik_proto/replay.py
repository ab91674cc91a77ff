"""Freshness and replay: a signed message is acted on once, and only near the time that it names.

Numbers are protocol.md's. All times are wall-clock milliseconds, given by the caller. Every check takes
constant time: a dictionary in order of arrival is both the lookup and the expiry queue, and each check
expires at most `_EXPIRE_PER_CHECK`.

Why nothing once accepted is accepted again: an entry stays for `window_ms` after it was seen, longer than its
timestamp stays within `skew_ms` of the clock; and should the clock have jumped ahead and back, timestamps
below `_floor` (the highest that an expired entry can have had) are refused. Over a restart: what is older
than the start is refused. A sender whose clock is ahead by d ≤ `skew_ms` could be replayed for d after a
restart; the receivers of such messages hold nothing from before the start that they could act on twice
(tenders, bids and awards are forgotten, a disposal names a uid).
"""

from __future__ import annotations

from typing import Final

from magik_proto.errors import RemoteProtocolError
from magik_proto.identity import PeerId

SKEW_MS: Final = 30_000
WINDOW_MS: Final = 300_000
CAPACITY: Final = 100_000
PER_SIGNER: Final = 10_000
"""Messages of one signer in the window: 33 a second, sustained (guess). At it: that signer is refused, nobody
else."""
_EXPIRE_PER_CHECK: Final = 8
"""A check adds at most one entry, so more than one expiry a check drains any backlog."""


class ReplayFilter:
    """Remembers (signer, id, nonce) for a window and refuses to see one twice. Bounded; full means
    refused."""

    def __init__(
        self,
        started_ms: int,
        capacity: int = CAPACITY,
        per_signer: int = PER_SIGNER,
        *,
        skew_ms: int = SKEW_MS,
        window_ms: int = WINDOW_MS,
    ) -> None:
        if window_ms < 2 * skew_ms:
            raise ValueError("a window under twice the skew forgets messages that are still fresh")
        self._started = started_ms
        self._capacity = capacity
        self._per_signer = per_signer
        self._skew = skew_ms
        self._window = window_ms
        self._seen: dict[tuple[PeerId, bytes, int], int] = {}
        self._counts: dict[PeerId, int] = {}
        self._clock = started_ms
        self._floor = started_ms

    def __len__(self) -> int:
        return len(self._seen)

    def check(self, signer: PeerId, id: bytes, nonce: int, timestamp: int, now_ms: int) -> None:
        """Return and remember if the message is fresh and new.

        `id` is the message's `replay_id`. Call this only after the signature was verified, or anyone could
        fill a signer's quota. Raises `RemoteProtocolError`: ``freshness.skew``, ``replay.before-start``,
        ``replay.seen``, ``replay.quota`` (this signer has too many) or ``replay.full`` (all have together).
        """
        self._clock = max(self._clock, now_ms)
        self._expire()
        self._check_fresh(timestamp, now_ms)
        key = (signer, id, nonce)
        if key in self._seen:
            raise RemoteProtocolError("replay.seen", f"nonce {nonce:016x} of {signer.short} was seen before")
        count = self._counts.get(signer, 0)
        if count >= self._per_signer:
            raise RemoteProtocolError("replay.quota", f"{signer.short} has {count} messages in the window")
        if len(self._seen) >= self._capacity:
            raise RemoteProtocolError(
                "replay.full", f"{self._capacity} messages in the window: try again later"
            )
        self._seen[key] = self._clock
        self._counts[signer] = count + 1

    def _check_fresh(self, timestamp: int, now_ms: int) -> None:
        if abs(now_ms - timestamp) > self._skew:
            detail = f"timestamp is {timestamp - now_ms:+} ms from our clock, allowed ±{self._skew}"
            raise RemoteProtocolError("freshness.skew", detail)
        if timestamp < self._floor:
            detail = f"timestamp {timestamp} is from before {self._floor}, of which nothing is remembered"
            raise RemoteProtocolError("replay.before-start", detail)

    def _expire(self) -> None:
        """Forget the oldest entries that are past the window, and never trust a timestamp that they may have
        had."""
        for _ in range(_EXPIRE_PER_CHECK):
            oldest = next(iter(self._seen), None)
            if oldest is None or self._seen[oldest] + self._window > self._clock:
                return
            self._floor = max(self._floor, self._seen.pop(oldest) + self._skew + 1)
            self._release(oldest[0])

    def _release(self, signer: PeerId) -> None:
        count = self._counts[signer] - 1
        if count:
            self._counts[signer] = count
        else:
            del self._counts[signer]
