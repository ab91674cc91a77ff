"""What an agent asks: from a request to a checked call, or a refusal that says what is wrong.

Pure, and the one place that parses.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

from attrs import field, frozen

from magik_proto.errors import ProtocolError
from magik_proto.identity import PeerId

MAX_CONTAINERS: Final = 256
"""Of one status; a shim knows at most 64. A guess. At it: 400."""
MAX_WORDS: Final = 1024
"""Of a command; a guess. At it: 400."""
MAX_TEXT: Final = 1024
"""Characters of a reason or a message that are kept; the rest is cut off, for an app's answer may be anything."""
MAX_TIMEOUT_S: Final = 3600.0
"""Of an exec; a guess. A longer one is taken for this."""
_MAX_INT: Final = (1 << 63) - 1
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")

T = TypeVar("T")


class Refusal(Exception):
    """A call that is not carried out: HTTP's status, Kubernetes' reason, and what is wrong."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message

    def body(self) -> bytes:
        """As a Kubernetes ``Status``."""
        status = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        }
        return json.dumps(status).encode()


def not_found(what: str) -> Refusal:
    """There is no such thing, or none that this agent may know of."""
    return Refusal(404, "NotFound", what)


def bad_request(what: str) -> Refusal:
    """What was sent is not what the specification says."""
    return Refusal(400, "BadRequest", what)


@frozen
class Standing:
    """What an agent says of a container. ``message``: what the last failing probe said."""

    ready: bool
    started: bool
    message: str = ""


@frozen
class LeaderSaid:
    """The pod holds its workload's lease, in this term of this generation."""

    generation: int
    term: int


@frozen(kw_only=True)
class StatusReport:
    """What an agent says of its pod: containers by name, its key and UDP port, and whether it leads."""

    containers: Mapping[str, Standing] = field(factory=dict)
    peer: PeerId | None = None
    port: int = 0
    leader: LeaderSaid | None = None


@frozen
class PassCall:
    """A pass for this key is wanted."""

    key: PeerId


@frozen
class StateCall:
    """What is newer than this version is wanted."""

    since: int


@frozen
class RestartCall:
    """A container is to be restarted."""

    container: str
    reason: str


@frozen
class ExecCall:
    """A command is to be run in a container."""

    container: str
    command: tuple[str, ...]
    timeout_s: float


@frozen
class ServiceCall:
    """A Service is looked for."""

    namespace: str
    name: str


@frozen
class HealCall:
    """So many replicas are missing, as the agent sees it."""

    missing: int
    generation: int


Call = PassCall | StateCall | StatusReport | RestartCall | ExecCall | ServiceCall | HealCall


def parse_call(method: str, target: str, body: bytes) -> Call:
    """The call of a request. Raises Refusal: 404 for what is no call, 400 where its parts are wrong."""
    try:
        url = urlsplit(target)
        parts = tuple(unquote(part, errors="strict") for part in url.path.split("/")[1:])
    except ValueError:  # also UnicodeDecodeError
        raise not_found("there is no such path") from None
    match method, *parts:
        case "POST", "v1", "pass":
            return PassCall(_field(_object(body), "key", _peer))
        case "GET", "v1", "state":
            return StateCall(_since(url.query))
        case "PUT", "v1", "status":
            return _status(_object(body))
        case "POST", "v1", "containers", str(name), "restart":
            return RestartCall(_name(name), _field(_object(body), "reason", _prose))
        case "POST", "v1", "containers", str(name), "exec":
            sent = _object(body)
            return ExecCall(
                _name(name), _field(sent, "command", _command), _field(sent, "timeout_s", _seconds)
            )
        case "GET", "v1", "services", str(namespace), str(name):
            return ServiceCall(_name(namespace), _name(name))
        case "POST", "v1", "heal":
            sent = _object(body)
            return HealCall(_field(sent, "missing", _whole), _field(sent, "generation", _whole))
    raise not_found(f"there is no call {method} {url.path[:MAX_TEXT]}")


def _status(sent: Mapping[str, Any]) -> StatusReport:
    agent = _maybe(sent, "agent", _mapping) or {}
    return StatusReport(
        containers=_field(sent, "containers", _standings) if sent.get("containers") is not None else {},
        peer=_maybe(agent, "peer", _peer),
        port=_maybe(agent, "port", _port) or 0,
        leader=_maybe(sent, "leader", _leader),
    )


def _object(body: bytes) -> Mapping[str, Any]:
    try:
        return _mapping(json.loads(body))
    except (ValueError, RecursionError):
        raise bad_request("the body is not a JSON object") from None


def _field(sent: Mapping[str, Any], name: str, read: Callable[[object], T]) -> T:
    try:
        return read(sent.get(name))
    except (ValueError, ProtocolError) as error:
        raise bad_request(f"{name}: {error}"[:MAX_TEXT]) from None


def _maybe(sent: Mapping[str, Any], name: str, read: Callable[[object], T]) -> T | None:
    return None if sent.get(name) is None else _field(sent, name, read)


# -- single values: each raises ValueError (or ProtocolError) with what is expected


def _mapping(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("expected an object")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("expected text")
    return value


def _prose(value: object) -> str:
    return "".join(c if c.isprintable() else " " for c in _text(value)[:MAX_TEXT])


def _bool(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("expected true or false")
    return value


def _whole(value: object) -> int:
    if type(value) is not int or not 0 <= value <= _MAX_INT:
        raise ValueError("expected a whole number from 0 on")
    return value


def _port(value: object) -> int:
    if type(value) is not int or not 0 < value < 65536:
        raise ValueError("expected a port from 1 to 65535")
    return value


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ValueError("expected seconds above 0")
    return min(float(value), MAX_TIMEOUT_S) if value < MAX_TIMEOUT_S else MAX_TIMEOUT_S


def _peer(value: object) -> PeerId:
    return PeerId.parse(_text(value))


def _command(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not 0 < len(value) <= MAX_WORDS:
        raise ValueError(f"expected a list of 1 to {MAX_WORDS} words")
    words = tuple(_text(word) for word in value)
    if any("\0" in word or not _is_unicode(word) for word in words):
        raise ValueError("expected words without NUL, in Unicode")
    return words


def _is_unicode(word: str) -> bool:
    """JSON can spell halves of surrogate pairs, which no program's argument can be."""
    return not any("\ud800" <= char <= "\udfff" for char in word)


def _standings(value: object) -> Mapping[str, Standing]:
    sent = _mapping(value)
    if len(sent) > MAX_CONTAINERS:
        raise ValueError(f"expected at most {MAX_CONTAINERS} containers")
    return {_text(name)[:MAX_TEXT]: _standing(_mapping(one)) for name, one in sent.items()}


def _standing(sent: Mapping[str, Any]) -> Standing:
    message = sent.get("message")
    return Standing(
        _bool(sent.get("ready")), _bool(sent.get("started")), "" if message is None else _prose(message)
    )


def _leader(value: object) -> LeaderSaid:
    sent = _mapping(value)
    return LeaderSaid(_whole(sent.get("generation")), _whole(sent.get("term")))


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise not_found("there is nothing of such a name")
    return text


def _since(query: str) -> int:
    try:
        found = parse_qs(query, max_num_fields=8).get("since", ["0"])[-1]
    except ValueError:
        found = ""
    if not re.fullmatch("[0-9]{1,19}", found):
        raise bad_request("since: expected a whole number from 0 on")
    return int(found)
