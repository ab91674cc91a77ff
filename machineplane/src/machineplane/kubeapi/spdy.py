"""SPDY/3.1 frames as far as port-forward needs them: pure, bytes in and events out (the SPDY Protocol, draft 3.1).

kubectl tunnels them through a WebSocket. It keeps no flow-control windows, so none are kept here: who forwards must stop
reading the socket where it cannot take more.
"""

import struct
import zlib
from collections.abc import Mapping
from typing import Final

from attrs import frozen

VERSION: Final = 3
SYN_STREAM, SYN_REPLY, RST_STREAM, SETTINGS, PING, GOAWAY, HEADERS, WINDOW_UPDATE = 1, 2, 3, 4, 6, 7, 8, 9
FIN: Final = 1
#: Codes of a reset: 2.6.3.
PROTOCOL_ERROR, REFUSED_STREAM, CANCEL = 1, 3, 5
#: Bytes of a control frame, and of its headers unpacked; kubectl's have about 100.
MAX_CONTROL: Final = 16 * 1024

_CONTROL: Final = 1 << 31
_WORDS: Final = (
    "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age allow "
    "authorization cache-control connection content-base content-encoding content-language content-length "
    "content-location content-md5 content-range content-type date etag expect expires from host if-match "
    "if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma "
    "proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade "
    "user-agent vary via warning www-authenticate method get status"
)
_REST: Final = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 Non-Authoritative "
    "Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not Found500 "
    "Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec "
    "00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,"
    "application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8"
    "charset=iso-8859-1,utf-,*,enq=0."
)


def _text(value: str) -> bytes:
    return len(value).to_bytes(4, "big") + value.encode("latin-1")


#: What header blocks are compressed with: 2.6.10.1. Its Adler-32 is 0xe3c6a7c2.
DICTIONARY: Final = (
    b"".join(
        _text(word)
        for word in (
            *_WORDS.split(),
            "200 OK",
            "version",
            "HTTP/1.1",
            "url",
            "public",
            "set-cookie",
            "keep-alive",
            "origin",
        )
    )
    + _REST.encode()
)


class SpdyError(Exception):
    """The client's frames break the protocol; the connection is of no more use."""


@frozen
class Opened:
    """The client opens a stream."""

    stream: int
    headers: Mapping[str, str]
    ended: bool


@frozen
class Data:
    """Some bytes of a stream (a frame may give several); ``ended``: the client sends no more on it."""

    stream: int
    payload: bytes
    ended: bool


@frozen
class Reset:
    """The client breaks a stream off."""

    stream: int


@frozen
class Ping:
    """To be echoed."""

    number: int


Event = Opened | Data | Reset | Ping


class Decoder:
    """Bytes of one connection, however they are cut, to events. Keeps at most one control frame."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)
        self._stream = 0
        self._left = 0  # bytes still to come of a data frame
        self._fin = False

    def feed(self, data: bytes) -> list[Event]:
        """The events that ``data`` completes. Raises SpdyError."""
        self._buffer += data
        events: list[Event] = []
        while (self._left and self._buffer) or len(self._buffer) >= 8:
            event = self._part() if self._left else self._frame()
            if event is None:
                break
            events += event
        return events

    def _part(self) -> list[Event]:
        payload = bytes(self._buffer[: self._left])
        del self._buffer[: len(payload)]
        self._left -= len(payload)
        return [Data(self._stream, payload, self._fin and not self._left)]

    def _frame(self) -> list[Event] | None:
        """One control frame, or the head of a data frame; None if it is not all there."""
        first, second = struct.unpack_from(">II", self._buffer)
        flags, length = second >> 24, second & 0xFFFFFF
        if not first & _CONTROL:
            del self._buffer[:8]
            self._stream, self._left, self._fin = first, length, bool(flags & FIN)
            return [] if length else [Data(first, b"", self._fin)]
        if length > MAX_CONTROL or first >> 16 & 0x7FFF != VERSION:
            raise SpdyError("a control frame that is too long, or of another version than 3")
        if len(self._buffer) < 8 + length:
            return None
        body = bytes(self._buffer[8 : 8 + length])
        del self._buffer[: 8 + length]
        return self._control(first & 0xFFFF, flags, body)

    def _control(self, kind: int, flags: int, body: bytes) -> list[Event]:
        try:
            if kind == SYN_STREAM:
                return [Opened(_id(body), self._headers(body[10:]), bool(flags & FIN))]
            if kind in (SYN_REPLY, HEADERS):
                self._headers(body[4:])  # else the next block could not be unpacked
            if kind == RST_STREAM:
                return [Reset(_id(body))]
            if kind == PING:
                return [Ping(struct.unpack_from(">I", body)[0])]
        except (struct.error, zlib.error, UnicodeError) as error:
            raise SpdyError(f"a frame of type {kind} that cannot be read: {error}") from error
        return []  # settings, windows, goodbyes and what is unknown ask for nothing

    def _headers(self, block: bytes) -> dict[str, str]:
        plain = self._inflate.decompress(block, MAX_CONTROL)
        if self._inflate.unconsumed_tail:
            raise SpdyError(f"headers of more than {MAX_CONTROL} bytes")
        (count,), at = struct.unpack_from(">I", plain), 4
        texts = []
        for _ in range(2 * min(count, MAX_CONTROL)):
            (length,) = struct.unpack_from(">I", plain, at)
            texts.append(plain[at + 4 : at + 4 + length].decode("latin-1"))
            at += 4 + length
        return dict(zip(texts[::2], texts[1::2], strict=True))


def _id(body: bytes) -> int:
    return int(struct.unpack_from(">I", body)[0]) & ~_CONTROL


class Encoder:
    """What a server says, as bytes."""

    def __init__(self) -> None:
        self._deflate = zlib.compressobj(zdict=DICTIONARY)

    def reply(self, stream: int) -> bytes:
        """Take a stream that the client opened. Replies must be sent in the order in which they were made."""
        block = self._deflate.compress(bytes(4)) + self._deflate.flush(zlib.Z_SYNC_FLUSH)
        return _control(SYN_REPLY, struct.pack(">I", stream) + block)

    def data(self, stream: int, payload: bytes, *, end: bool = False) -> bytes:
        """Bytes on a stream, fewer than 16 MiB; ``end``: they are the last."""
        return struct.pack(">II", stream, (FIN if end else 0) << 24 | len(payload)) + payload

    def reset(self, stream: int, code: int) -> bytes:
        """Break a stream off."""
        return _control(RST_STREAM, struct.pack(">II", stream, code))

    def ping(self, number: int) -> bytes:
        """Answer a ping."""
        return _control(PING, struct.pack(">I", number))


def _control(kind: int, body: bytes, flags: int = 0) -> bytes:
    return struct.pack(">II", _CONTROL | VERSION << 16 | kind, flags << 24 | len(body)) + body
