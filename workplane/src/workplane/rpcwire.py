"""What travels in a call of `/workplane/rpc/1.0.0`, and how it can fail: workplane-spec, "RPC". No I/O."""

from __future__ import annotations

import re
from typing import Any, Final, Self

from attrs import field, frozen

from magik_proto.leadership_types import Token

RPC: Final = "/workplane/rpc/1.0.0"
MAX_BODY: Final = 1 << 20
"""Bytes of a call's and of an answer's body. At it: `too-large`."""
MAX_METHOD: Final = 128
MAX_TYPE: Final = 128
MAX_ID: Final = 64

_SEGMENT = r"[A-Za-z0-9_][-A-Za-z0-9_.]{0,62}"
_METHOD = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT}){{0,7}}")
_TYPE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,126}[\x21-\x7e])?")
_WORKLOAD = re.compile(r"[-a-z0-9]{1,63}/[A-Za-z0-9]{1,63}/[-a-z0-9.]{1,253}")
_POD = re.compile(r"[-a-z0-9.]{1,253}")
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class CallFailed(Exception):
    """A call that has no answer: ``code`` for programs, ``message`` for people."""

    def __init__(self, code: str, message: str) -> None:
        self.code, self.message = code, message
        super().__init__(f"{code}: {message}")


@frozen
class CallerName:
    """For whom a call is made: its workload's id and its pod."""

    workload: str
    pod: str


@frozen(kw_only=True)
class RpcRequest:
    """``forwarded`` names the first caller where a follower hands the call on to the leader; there it ends, in any case."""

    method: str
    body: bytes = field(default=b"", repr=False)
    type: str = "application/json"
    leader_only: bool = False
    id: str = "-"
    forwarded: CallerName | None = None

    def __attrs_post_init__(self) -> None:
        if not _METHOD.fullmatch(self.method) or len(self.method) > MAX_METHOD:
            raise CallFailed(
                "request", "method: like NAME or NAME/NAME, at most 128 letters, digits, _, - and ."
            )
        if len(self.body) > MAX_BODY:
            raise CallFailed("too-large", f"a body of {len(self.body)} bytes, allowed {MAX_BODY}")
        if not _TYPE.fullmatch(self.type):
            raise CallFailed("request", "type: a media type in ASCII, at most 128 characters")
        if not _ID.fullmatch(self.id):
            raise CallFailed("request", "id: 1 to 64 letters, digits, _ and -")

    def to_value(self) -> dict[str, Any]:
        """As it travels."""
        value: dict[str, Any] = {
            "method": self.method,
            "body": self.body,
            "type": self.type,
            "leader_only": self.leader_only,
            "id": self.id,
        }
        if self.forwarded is not None:
            value["forwarded"] = {"workload": self.forwarded.workload, "pod": self.forwarded.pod}
        return value

    @classmethod
    def from_value(cls, value: Any) -> Self:
        """The request in a call's body. Raises CallFailed; keys that are not known are ignored."""
        if not isinstance(value, dict):
            raise CallFailed("request", "a call's body is a map")
        return cls(
            method=_of(value, "method", str, ""),
            body=_of(value, "body", bytes, b""),
            type=_of(value, "type", str, "application/json"),
            leader_only=_of(value, "leader_only", bool, False),
            id=_of(value, "id", str, "-"),
            forwarded=_caller(value.get("forwarded")),
        )


@frozen(kw_only=True)
class RpcAnswer:
    """What the app of the replica ``pod`` answered, or its agent; ``token`` is that of the leader who handed the call on."""

    pod: str
    status: int = 200
    type: str = "application/json"
    body: bytes = field(default=b"", repr=False)
    token: Token | None = None

    def to_value(self) -> dict[str, Any]:
        """As it travels."""
        value: dict[str, Any] = {"pod": self.pod, "status": self.status, "type": self.type, "body": self.body}
        if self.token is not None:
            value["token"] = [self.token.generation, self.token.term]
        return value

    @classmethod
    def from_value(cls, value: Any) -> Self:
        """The answer that a replica gave. Raises CallFailed."""
        if not isinstance(value, dict):
            raise CallFailed("answer", "the replica's answer is no map")
        return cls(
            pod=_of(value, "pod", str, ""),
            status=_of(value, "status", int, 200),
            type=_of(value, "type", str, "application/json"),
            body=_of(value, "body", bytes, b""),
            token=_token(value.get("token")),
        )


def _of(value: dict[Any, Any], name: str, kind: type, default: Any) -> Any:
    found = value.get(name, default)
    if type(found) is not kind:
        raise CallFailed("request", f"{name} is no {kind.__name__}")
    return found


def _caller(value: Any) -> CallerName | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise CallFailed("request", "forwarded is a map")
    workload, pod = _of(value, "workload", str, ""), _of(value, "pod", str, "")
    if not _WORKLOAD.fullmatch(workload) or not _POD.fullmatch(pod):
        raise CallFailed("request", "forwarded names a workload and a pod")
    return CallerName(workload, pod)


def _token(value: Any) -> Token | None:
    if not (isinstance(value, list) and len(value) == 2 and all(type(part) is int for part in value)):
        return None
    return Token(*value)
