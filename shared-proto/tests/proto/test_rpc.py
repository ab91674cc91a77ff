"""Frames however they are cut; requests and responses checked."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest

from magik_proto import codec
from magik_proto.errors import InvalidField, LocalProtocolError, RemoteProtocolError
from magik_proto.rpc import MAX_FRAME, FrameDecoder, Request, Response, RpcError, encode_frame


def rule_of(decoder: FrameDecoder, data: bytes) -> str:
    with pytest.raises(RemoteProtocolError) as caught:
        decoder.feed(data)
    return caught.value.rule


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 1000])
def test_frames_come_out_however_they_are_cut(size: int) -> None:
    values = [1, "two", {"three": [3]}, b"four" * 100, None]
    stream = b"".join(encode_frame(value) for value in values)
    decoder = FrameDecoder()
    out = [v for at in range(0, len(stream), size) for v in decoder.feed(stream[at : at + size])]
    assert out == values
    decoder.end()


def test_a_frame_is_a_length_and_a_value() -> None:
    assert encode_frame([1]) == b"\x00\x00\x00\x02\x81\x01"


def test_what_follows_the_last_frame_is_left_to_the_caller() -> None:
    decoder = FrameDecoder(max_frames=1)
    assert not decoder.done
    assert decoder.feed(encode_frame(1) + b"raw bytes") == [1]
    assert decoder.done
    assert decoder.trailing == b"raw bytes"
    decoder.end()
    with pytest.raises(LocalProtocolError):
        decoder.feed(b"more")


def test_a_claimed_length_is_refused_before_it_costs_anything() -> None:
    tracemalloc.start()
    for length in (MAX_FRAME + 1, 0xFFFFFFFF):
        assert rule_of(FrameDecoder(), length.to_bytes(4, "big")) == "rpc.frame-size"
    decoder = FrameDecoder()
    assert decoder.feed(MAX_FRAME.to_bytes(4, "big")) == []
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000


def test_empty_and_malformed_frames_are_refused_for_good() -> None:
    assert rule_of(FrameDecoder(), bytes(4)) == "rpc.frame-empty"
    decoder = FrameDecoder()
    assert rule_of(decoder, b"\0\0\0\x01\xff") == "codec.indefinite"
    assert rule_of(decoder, encode_frame(1)) == "codec.indefinite"
    assert rule_of(FrameDecoder(max_frame=3), encode_frame("text")) == "rpc.frame-size"


def test_a_stream_that_ends_inside_a_frame_is_noticed() -> None:
    decoder = FrameDecoder()
    decoder.feed(encode_frame("text")[:-1])
    with pytest.raises(RemoteProtocolError, match=r"rpc\.truncated"):
        decoder.end()


def through(value: Request | Response) -> Any:
    return FrameDecoder().feed(encode_frame(value))[0]


def test_requests_and_responses_survive() -> None:
    request = Request(method="/magik/bid/1.0.0", deadline_ms=30_000, body={"a": [1, b"x"]})
    assert Request.from_value(through(request)) == request
    for response in (Response.success([1]), Response.success(), Response.failure("not-found", "no such pod")):
        assert Response.from_value(through(response)) == response
    assert Response.from_value(through(Response.failure("a"))).error == RpcError(code="a")


def test_later_fields_are_ignored() -> None:
    value = {**Request(method="/a", deadline_ms=1).to_value(), "trace": "x"}
    assert Request.from_value(value) == Request(method="/a", deadline_ms=1)


@pytest.mark.parametrize(
    "change",
    [
        {"method": "magik"},
        {"method": "/"},
        {"method": "/A"},
        {"method": "/a/../b"},
        {"method": "/" + "a" * 200},
        {"method": 1},
        {"deadline_ms": 0},
        {"deadline_ms": 10**9},
        {"deadline_ms": True},
    ],
)
def test_bad_requests_are_refused(change: dict[str, Any]) -> None:
    good = Request(method="/magik/bid/1.0.0", deadline_ms=1).to_value()
    with pytest.raises(RemoteProtocolError, match=r"rpc\.request"):
        Request.from_value({**good, **change})


@pytest.mark.parametrize("value", [None, [], {}, {"method": "/a", "deadline_ms": 1}])
def test_other_values_are_no_request(value: Any) -> None:
    with pytest.raises(RemoteProtocolError, match=r"rpc\.request"):
        Request.from_value(value)


@pytest.mark.parametrize(
    "value",
    [
        None,
        {"ok": True, "body": 1},
        {"ok": True, "error": {"code": "a", "message": ""}, "body": None},
        {"ok": False, "error": None, "body": None},
        {"ok": 1, "error": None, "body": None},
        {"ok": False, "error": {"code": "A b", "message": ""}, "body": None},
        {"ok": False, "error": {"code": "a"}, "body": None},
        {"ok": False, "error": "failed", "body": None},
        {"ok": False, "error": {"code": "a", "message": "x" * 4097}, "body": None},
    ],
)
def test_other_values_are_no_response(value: Any) -> None:
    with pytest.raises(RemoteProtocolError, match=r"rpc\.response"):
        Response.from_value(value)


def test_our_own_mistakes_are_ours() -> None:
    with pytest.raises(InvalidField):
        Request(method="bid", deadline_ms=1)
    with pytest.raises(LocalProtocolError):
        encode_frame(Response.success(1.5))
    assert len(Response.failure("a", "x" * 10_000).error.message) == 4096  # type: ignore[union-attr]


def nested(depth: int) -> Any:
    """A value of so many containers inside each other."""
    value: Any = None
    for number in range(depth):
        value = [value] if number % 2 else {"in": value}
    return value


@pytest.mark.parametrize(
    "body",
    [
        *(
            None,
            True,
            0,
            -1,
            1 << 63,
            "text",
            "ü" * 300,
            b"",
            b"x" * 70_000,
            [],
            {},
            [[1], {"b": 1, "a": [2]}],
        ),
        {"longer": 1, "b": {"z": 0, "a": b"1"}},
        nested(codec.MAX_DEPTH - 1),
    ],
)
def test_a_frame_holds_what_the_codec_makes_of_the_whole(body: Any) -> None:
    """Frames of requests and answers are put together from pieces."""
    for method, deadline in (("/a", 1), ("/" + "m" * 60 + "/1.0.0", 70_000), ("/magik/bid/1.0.0", 24)):
        request = Request(method=method, deadline_ms=deadline, body=body)
        assert encode_frame(request)[4:] == codec.encode(request.to_value())
    response = Response.success(body)
    assert encode_frame(response)[4:] == codec.encode(response.to_value())
    assert Response.from_value(codec.decode(encode_frame(response)[4:])) == response


@pytest.mark.parametrize(
    "body",
    [
        1.5,
        {1: 2},
        1 << 64,
        nested(codec.MAX_DEPTH),
        [None] * codec.MAX_ITEMS,
        b"x" * (MAX_FRAME - 10),
        {"a": {2}},
        "\ud800",
    ],
    ids=["float", "key", "integer", "depth", "items", "size", "set", "surrogate"],
)
def test_a_frame_takes_nothing_that_the_codec_would_not(body: Any) -> None:
    for value in (Request(method="/a", deadline_ms=1, body=body), Response.success(body)):
        with pytest.raises(LocalProtocolError):
            codec.encode(value.to_value())
        with pytest.raises(LocalProtocolError):
            encode_frame(value)
