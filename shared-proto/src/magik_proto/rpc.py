"""Frames, requests and responses on a stream (protocol.md, "number" table: frame 16 MiB).

A frame is a 4-byte big-endian length and that many bytes of canonical CBOR. A call sends one `Request` frame
and gets one `Response` frame; what follows on the stream belongs to the method.
"""

from __future__ import annotations

from typing import Any, Final, Self, TypeVar

from attrs import field, frozen

from magik_proto import codec, fields
from magik_proto.errors import InvalidField, LocalProtocolError, RemoteProtocolError

MAX_FRAME: Final = codec.MAX_SIZE
"""Bytes of a frame's content. At it: `RemoteProtocolError` (``rpc.frame-size``) before any memory is
taken."""
MAX_DEADLINE_MS: Final = 24 * 3600 * 1000
"""The longest time that a call may ask for (guess: a log stream of a day)."""
MAX_METHOD: Final = 128
MAX_ERROR_TEXT: Final = 4096
HEADER_BYTES: Final = 4

BID: Final = "/magik/bid/1.0.0"
AWARD: Final = "/magik/award/1.0.0"
EVENT: Final = "/magik/event/1.0.0"

_METHOD = r"(?:/[a-z0-9](?:[-a-z0-9_.]{0,62}[a-z0-9])?){1,8}"
_CODE = r"[a-z0-9](?:[-a-z0-9_.]{0,62}[a-z0-9])?"

R = TypeVar("R", bound="Request | Response | RpcError")


@frozen(kw_only=True)
class Request:
    """A call of `method` (like ``/magik/bid/1.0.0``); the caller waits `deadline_ms` milliseconds from when
    it sent this.

    A duration, not a point in time, so that it needs no agreement of clocks.
    """

    method: str = field(validator=fields.matching_up_to(_METHOD, MAX_METHOD, "like /magik/bid/1.0.0"))
    deadline_ms: int = field(validator=fields.integer(1, MAX_DEADLINE_MS))
    body: Any = None

    def to_value(self) -> dict[str, Any]:
        """The CBOR map of this request."""
        return {"method": self.method, "deadline_ms": self.deadline_ms, "body": self.body}

    @classmethod
    def from_value(cls, value: Any) -> Self:
        """The request in a decoded frame; `RemoteProtocolError` (``rpc.request``) when it is none."""
        return _build(cls, value, "rpc.request", ("method", "deadline_ms", "body"))


@frozen(kw_only=True)
class RpcError:
    """Why a call failed: `code` for programs (a slug like ``not-found`` or ``replay.seen``), `message` for
    people."""

    code: str = field(validator=fields.matching_up_to(_CODE, 64, "a slug like not-found"))
    message: str = field(default="", validator=fields.text(MAX_ERROR_TEXT))


@frozen(kw_only=True)
class Response:
    """The answer to a request: `body` when `ok`, else `error`."""

    ok: bool = field(validator=fields.boolean)
    error: RpcError | None = None
    body: Any = None

    def __attrs_post_init__(self) -> None:
        if self.ok == (self.error is not None):
            raise InvalidField("error", "there exactly when ok is false")

    @classmethod
    def success(cls, body: Any = None) -> Self:
        """The call did what it should."""
        return cls(ok=True, body=body)

    @classmethod
    def failure(cls, code: str, message: str = "") -> Self:
        """The call failed; a message that is too long is cut."""
        return cls(ok=False, error=RpcError(code=code, message=message[:MAX_ERROR_TEXT]))

    def to_value(self) -> dict[str, Any]:
        """The CBOR map of this response."""
        error = None if self.error is None else {"code": self.error.code, "message": self.error.message}
        return {"ok": self.ok, "error": error, "body": self.body}

    @classmethod
    def from_value(cls, value: Any) -> Self:
        """The response in a decoded frame; `RemoteProtocolError` (``rpc.response``) when it is none."""
        if type(value) is dict and value.get("error") is not None:
            error = _build(RpcError, value["error"], "rpc.response", ("code", "message"))
            value = {**value, "error": error}
        return _build(cls, value, "rpc.response", ("ok", "error", "body"))


def _build(cls: type[R], value: Any, rule: str, keys: tuple[str, ...]) -> R:
    """An object of `cls` from the map `value`, which must have all of `keys`; other keys are for later
    versions."""
    try:
        if type(value) is not dict:
            raise KeyError
        picked = {key: value[key] for key in keys}
    except KeyError:
        raise RemoteProtocolError(rule, f"expected a map with {', '.join(keys)}") from None
    try:
        return cls(**picked)
    except InvalidField as error:
        raise RemoteProtocolError(rule, str(error)) from error


def encode_frame(value: Any) -> bytes:
    """A frame with `value`; `LocalProtocolError` when it has no encoding or is over `MAX_FRAME`."""
    if type(value) is Request:
        content = _request_content(value)
    elif type(value) is Response and value.ok:
        content = _OK + codec.encode_inside(value.body, 1, _MAP_OF_THREE) + _NO_ERROR
    else:
        content = codec.encode(value.to_value() if isinstance(value, Request | Response) else value)
    if len(content) > MAX_FRAME:
        raise LocalProtocolError(f"cannot be encoded: {len(content)} bytes, allowed {MAX_FRAME}")
    return len(content).to_bytes(HEADER_BYTES, "big") + content


# The encodings of the parts that are the same in all requests and answers, in canonical order.
_BODY: Final = b"\xa3" + codec.encode("body")
_METHOD_KEY: Final = codec.encode("method")
_DEADLINE: Final = codec.encode("deadline_ms")
_OK: Final = b"\xa3" + codec.encode("ok") + codec.encode(True) + codec.encode("body")
_NO_ERROR: Final = codec.encode("error") + codec.encode(None)
_MAP_OF_THREE: Final = 7
"""Items: the map, and its keys and values."""


def _request_content(request: Request) -> bytes:
    return b"".join(
        (
            _BODY,
            codec.encode_inside(request.body, 1, _MAP_OF_THREE),
            _METHOD_KEY,
            codec.write(request.method),
            _DEADLINE,
            codec.write(request.deadline_ms),
        )
    )


class FrameDecoder:
    """Bytes in, decoded values out, in time linear in the bytes however they are cut.

    With `max_frames`, decoding stops after so many frames; `trailing` then has the bytes that came after
    them, which belong to whoever takes the stream over. After an error the decoder is of no more use: the
    stream must be closed.
    """

    def __init__(self, *, max_frame: int = MAX_FRAME, max_frames: int | None = None) -> None:
        self._buffer = bytearray()
        self._max_frame = max_frame
        self._frames_left = max_frames
        self._error: RemoteProtocolError | None = None

    @property
    def done(self) -> bool:
        """Whether `max_frames` frames have come."""
        return self._frames_left == 0

    @property
    def trailing(self) -> bytes:
        """What came after the last frame; complete only when `done`."""
        return bytes(self._buffer)

    def feed(self, data: bytes) -> list[Any]:
        """The values of the frames that `data` completes.

        Raises `RemoteProtocolError` (``rpc.frame-size``, ``rpc.frame-empty`` or a rule of the codec), and the
        same again on each later call. Values of frames before the bad one in the same call are lost with the
        stream.
        """
        if self._error is not None:
            raise self._error
        if self.done:
            raise LocalProtocolError("the decoder has all its frames; what follows is not for it")
        self._buffer += data
        try:
            return self._take_frames()
        except RemoteProtocolError as error:
            self._error = error
            self._buffer.clear()
            raise

    def end(self) -> None:
        """The stream has ended: `RemoteProtocolError` (``rpc.truncated``) when that was inside a frame."""
        if self._buffer and not self.done:
            raise RemoteProtocolError(
                "rpc.truncated", f"the stream ended {len(self._buffer)} bytes into a frame"
            )

    def _take_frames(self) -> list[Any]:
        values: list[Any] = []
        start = 0
        with memoryview(self._buffer) as view:
            while not self.done and (length := self._length_at(start)) is not None:
                end = start + HEADER_BYTES + length
                # A copy, for a view kept alive by a traceback would forbid changing the buffer.
                content = bytes(view[start + HEADER_BYTES : end])
                values.append(codec.decode(content, max_size=self._max_frame))
                start = end
                if self._frames_left is not None:
                    self._frames_left -= 1
        del self._buffer[:start]
        return values

    def _length_at(self, start: int) -> int | None:
        """The length of the frame at `start` if all of it is there; checked as soon as its four bytes are."""
        available = len(self._buffer) - start
        if available < HEADER_BYTES:
            return None
        length = int.from_bytes(self._buffer[start : start + HEADER_BYTES], "big")
        if length > self._max_frame:
            raise RemoteProtocolError(
                "rpc.frame-size", f"a frame of {length} bytes, allowed {self._max_frame}"
            )
        if length == 0:
            raise RemoteProtocolError("rpc.frame-empty", "a frame holds one value, so at least one byte")
        return length if available >= HEADER_BYTES + length else None
