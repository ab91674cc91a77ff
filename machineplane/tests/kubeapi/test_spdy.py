"""SPDY frames: what kubectl sends, however it is cut, and what is refused."""

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machineplane.kubeapi import spdy
from machineplane.kubeapi.spdy import Data, Decoder, Encoder, Opened, Ping, Reset, SpdyError


def control(kind: int, body: bytes, flags: int = 0) -> bytes:
    return struct.pack(">HHI", 0x8003, kind, flags << 24 | len(body)) + body


class Kubectl:
    """Writes frames as a client does: one compressor for all header blocks."""

    def __init__(self) -> None:
        self.deflate = zlib.compressobj(zdict=spdy.DICTIONARY)

    def block(self, headers: dict[str, str]) -> bytes:
        texts = [text.encode() for pair in headers.items() for text in pair]
        plain = struct.pack(">I", len(headers)) + b"".join(struct.pack(">I", len(t)) + t for t in texts)
        return self.deflate.compress(plain) + self.deflate.flush(zlib.Z_SYNC_FLUSH)

    def open(self, stream: int, **headers: str) -> bytes:
        return control(spdy.SYN_STREAM, struct.pack(">IIH", stream, 0, 0) + self.block(headers))


def test_the_dictionary_is_the_specification_s() -> None:
    assert (len(spdy.DICTIONARY), zlib.adler32(spdy.DICTIONARY)) == (1423, 0xE3C6A7C2)


@given(st.integers(1, 60))
def test_frames_survive_any_cutting(step: int) -> None:
    client = Kubectl()
    wire = (
        client.open(1, streamtype="error", port="80", requestid="0")
        + control(spdy.SETTINGS, bytes(4))
        + control(spdy.HEADERS, struct.pack(">I", 1) + client.block({"late": "header"}))
        + client.open(3, streamtype="data", port="80", requestid="0")
        + struct.pack(">II", 1, 1 << 24)
        + struct.pack(">II", 3, 5)
        + b"hello"
        + struct.pack(">II", 3, 1 << 24 | 3)
        + b"end"
        + control(spdy.PING, struct.pack(">I", 9))
        + control(spdy.RST_STREAM, struct.pack(">II", 3, 5))
    )
    decoder = Decoder()
    events = [event for at in range(0, len(wire), step) for event in decoder.feed(wire[at : at + step])]
    parts = [event for event in events if isinstance(event, Data) and event.stream == 3]
    assert b"".join(part.payload for part in parts) == b"helloend"
    assert [part.ended for part in parts] == [False] * (len(parts) - 1) + [True]
    others = [event for event in events if event not in parts]
    assert others == [
        Opened(1, {"streamtype": "error", "port": "80", "requestid": "0"}, False),
        Opened(3, {"streamtype": "data", "port": "80", "requestid": "0"}, False),
        Data(1, b"", True),
        Ping(9),
        Reset(3),
    ]


def test_replies_share_one_compressor() -> None:
    encoder, inflate = Encoder(), zlib.decompressobj(zdict=spdy.DICTIONARY)
    for stream in (1, 3, 5):
        frame = encoder.reply(stream)
        head, length, number = struct.unpack_from(">III", frame)
        assert (head, length, number) == (0x80030002, len(frame) - 8, stream)
        assert inflate.decompress(frame[12:]) == bytes(4)


def test_what_a_server_says_otherwise() -> None:
    encoder = Encoder()
    assert encoder.data(3, b"ab") == bytes.fromhex("00000003 00000002") + b"ab"
    assert encoder.data(3, b"", end=True) == bytes.fromhex("00000003 01000000")
    assert encoder.ping(7) == bytes.fromhex("80030006 00000004 00000007")
    assert encoder.reset(3, spdy.CANCEL) == bytes.fromhex("80030003 00000008 00000003 00000005")


@pytest.mark.parametrize(
    "wire",
    [
        struct.pack(">HHI", 0x8002, spdy.PING, 4) + bytes(4),  # version 2
        struct.pack(">HHI", 0x8003, spdy.SYN_STREAM, 0xFFFFFF),  # too long: refused by its head
        control(spdy.SYN_STREAM, struct.pack(">IIH", 1, 0, 0) + b"not compressed"),
        control(spdy.PING, b"ab"),
        control(spdy.SYN_STREAM, b""),
    ],
)
def test_frames_that_break_the_protocol(wire: bytes) -> None:
    with pytest.raises(SpdyError):
        Decoder().feed(wire)


def test_headers_that_unpack_to_more_than_their_limit_are_refused() -> None:
    bomb = Kubectl().open(1, name="x" * (spdy.MAX_CONTROL * 4))
    assert len(bomb) < spdy.MAX_CONTROL
    with pytest.raises(SpdyError, match="headers of more than"):
        Decoder().feed(bomb)


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_nonsense_is_data_or_an_error_and_never_anything_else(chunks: list[bytes]) -> None:
    decoder = Decoder()
    try:
        for chunk in chunks:
            decoder.feed(chunk)
    except SpdyError:
        pass
