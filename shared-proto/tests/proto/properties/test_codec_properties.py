"""Any value survives; any bytes give a value with one encoding or a named rule."""

from __future__ import annotations

from typing import Any

import cbor2
from hypothesis import example, given, settings
from hypothesis import strategies as st

from magik_proto import codec
from magik_proto.errors import RemoteProtocolError
from magik_proto.messages import decode_message
from magik_proto.records import decode_record
from magik_proto.rpc import FrameDecoder, encode_frame

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64 - 1)
    | st.binary(max_size=40)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), inner, max_size=5)
    ),
    max_leaves=20,
)


@given(VALUES)
def test_a_value_survives(value: Any) -> None:
    data = codec.encode(value)
    assert codec.decode(data) == value
    assert codec.encode(codec.decode(data)) == data
    assert cbor2.dumps(value, canonical=True) == data, "another implementation agrees"


@given(VALUES)
def test_order_of_insertion_does_not_matter(value: Any) -> None:
    def turned(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: turned(part[key]) for key in reversed(part)}
        return [turned(item) for item in part] if isinstance(part, list) else part

    assert codec.encode(turned(value)) == codec.encode(value)


@given(st.binary(max_size=200))
@example(b"\xa2\x61a\x01\x61a\x02")
@settings(max_examples=500)
def test_any_bytes_are_one_encoding_or_refused(data: bytes) -> None:
    try:
        value = codec.decode(data)
    except RemoteProtocolError as error:
        assert error.rule.startswith("codec.")
    else:
        assert codec.encode(value) == data


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """The encoding of a value with a few bytes changed, inserted or dropped."""
    data = bytearray(codec.encode(draw(VALUES)))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=2))
    return bytes(data)


@given(mutated())
@settings(max_examples=500)
def test_mutated_encodings_are_one_encoding_or_refused(data: bytes) -> None:
    try:
        value = codec.decode(data)
    except RemoteProtocolError:
        return
    assert codec.encode(value) == data


@given(mutated())
def test_any_value_is_a_message_or_refused(data: bytes) -> None:
    for decode in (decode_message, decode_record):
        try:
            decode(data)
        except RemoteProtocolError as error:
            assert error.rule


@given(st.lists(VALUES, max_size=4), st.data())
def test_frames_do_not_depend_on_how_they_are_cut(values: list[Any], data: st.DataObject) -> None:
    stream = b"".join(map(encode_frame, values))
    decoder = FrameDecoder()
    out: list[Any] = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        out += decoder.feed(stream[:size])
        stream = stream[size:]
    assert out == values
