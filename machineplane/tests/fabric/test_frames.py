"""Frames of sessions: whatever comes in comes out, however it is cut; what breaks the rules is named."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machineplane import channels
from machineplane.fabric.frames import FROM_POD, TO_POD, FrameDecoder, encode_frame
from magik_proto.errors import RemoteProtocolError

frames = st.lists(st.tuples(st.sampled_from(sorted(FROM_POD)), st.binary(max_size=300)), max_size=8)


@given(frames, st.integers(1, 50))
def test_frames_survive_any_cutting(sent: list[channels.Frame], step: int) -> None:
    wire = b"".join(encode_frame(*frame) for frame in sent)
    decoder = FrameDecoder(FROM_POD)
    got = [frame for at in range(0, len(wire), step) for frame in decoder.feed(wire[at : at + step])]
    decoder.end()
    assert got == sent


def test_the_form_on_the_wire() -> None:
    assert encode_frame(channels.STDERR, b"ab") == b"\x02\x00\x00\x00\x02ab"
    assert encode_frame(*channels.END_OF_STDIN) == b"\xff\x00\x00\x00\x01\x00"
    assert encode_frame(*channels.resize(99, 33)) == b"\x04\x00\x00\x00\x04\x00\x63\x00\x21"


def test_what_is_longer_than_a_frame_becomes_several() -> None:
    data = bytes(range(256)) * 1000
    got = FrameDecoder(TO_POD).feed(encode_frame(channels.STDIN, data))
    assert all(len(payload) <= channels.MAX_PAYLOAD for _, payload in got)
    assert b"".join(payload for _, payload in got) == data


@pytest.mark.parametrize(
    ("allowed", "wire", "rule"),
    [
        (TO_POD, b"\x01\x00\x00\x00\x00", "session.channel"),
        (FROM_POD, b"\x00\x00\x00\x00\x00", "session.channel"),
        (TO_POD, b"\x07\x00\x00\x00\x00", "session.channel"),
        (TO_POD, b"\x00\x00\x01\x00\x01", "session.frame-size"),
        (TO_POD, b"\x00\xff\xff\xff\xff", "session.frame-size"),
    ],
)
def test_a_frame_that_breaks_a_rule_is_refused_by_its_head(
    allowed: frozenset[int], wire: bytes, rule: str
) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        FrameDecoder(allowed).feed(wire)
    assert caught.value.rule == rule


def test_an_end_inside_a_frame_is_noticed() -> None:
    decoder = FrameDecoder(TO_POD)
    decoder.feed(b"\x00\x00\x00\x00\x05ab")
    with pytest.raises(RemoteProtocolError, match=r"session.truncated"):
        decoder.end()


def test_results() -> None:
    assert channels.parse_result(channels.exited(137)[1]) == 137
    for payload, said in (
        (channels.failed("gone")[1], "gone"),
        (b"{", "cannot be understood"),
        (b"[]", "cannot be understood"),
        (b'{"exit": "1"}', "cannot be understood"),
        (b'{"exit": true}', "cannot be understood"),
    ):
        with pytest.raises(channels.SessionRefused, match=said):
            channels.parse_result(payload)
