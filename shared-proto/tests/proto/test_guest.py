"""Frames between a microVM's init and the machine's side."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magik_proto import guest as wire

KINDS = (wire.STDIN, wire.SIGNAL, wire.RESIZE, wire.STARTED, wire.TAKEN, wire.STDOUT, wire.STDERR, wire.EXIT)
frames = st.lists(st.tuples(st.sampled_from(KINDS), st.binary(max_size=300)), max_size=20)


@given(frames, st.lists(st.integers(1, 50), min_size=1))
def test_frames_come_out_as_they_went_in_however_they_are_cut(
    sent: list[tuple[bytes, bytes]], cuts: list[int]
) -> None:
    data, taker, got, turn = b"".join(wire.frame(*one) for one in sent), wire.Frames(), [], 0
    while data:
        size = cuts[turn % len(cuts)]
        got += taker.feed(data[:size])
        data, turn = data[size:], turn + 1
    assert got == sent


@given(st.binary(max_size=200))
def test_any_bytes_are_frames_or_broken(data: bytes) -> None:
    try:
        wire.Frames().feed(data)
    except wire.BrokenProtocol:
        assert len(data) >= 5


def test_a_long_frame_is_refused_before_it_has_come() -> None:
    header = wire.frame(wire.STDOUT, b"x" * (wire.MAX_PAYLOAD + 1))[:5]
    with pytest.raises(wire.BrokenProtocol, match="65537"):
        wire.Frames().feed(header)
    assert wire.Frames().feed(wire.frame(wire.SPAWN, b"x" * (wire.MAX_PAYLOAD + 1)))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b"{}",
        b'{"args": []}',
        b'{"args": [1]}',
        b"{",
        b'{"args": 5}',
        b'{"args": ["x"], "grace": -1}',
        b'{"args": ["x"], "grace": NaN}',
        b'{"args": ["x"], "grace": []}',
        b'{"args": ["x"], "size": [1]}',
        b'{"args": ["x"], "size": ["a", 1]}',
        b'{"args": ["x"], "size": [70000, 1]}',
    ],
)
def test_what_cannot_be_a_process_is_refused(payload: bytes) -> None:
    with pytest.raises(wire.BrokenProtocol):
        wire.wanted(payload)


def test_what_is_said_is_understood() -> None:
    process: dict[str, Any] = {"args": ["sh"], "env": ["A=b"], "size": [40, 120]}
    ((_, spawn), (_, size), (_, count)) = wire.Frames().feed(
        wire.spawn(process) + wire.resize(40, 120) + wire.taken(70000)
    )
    assert (wire.wanted(spawn), wire.size_of(size), wire.count_of(count)) == (process, (40, 120), 70000)
    for parse in (wire.size_of, wire.count_of, wire.ending):
        with pytest.raises(wire.BrokenProtocol):
            parse(b"")  # type: ignore[operator]
