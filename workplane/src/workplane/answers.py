"""What the machine's answers hold, checked by hand.

The machine may be of another version, so fields that are not known are left aside.
Every fault is an `AnswerError` that names the field and what was expected.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar
from uuid import UUID

from attrs import field, frozen

from magik_proto.credentials import Revocations
from magik_proto.errors import ProtocolError
from magik_proto.identity import BootstrapPeer, PeerId, parse_address
from magik_proto.wire import decode_as

MAX_ITEMS: Final = 10_000
"""Of a list or map in an answer: as many as a workload has replicas. At it the answer is refused."""

T = TypeVar("T")


class AnswerError(Exception):
    """An answer that cannot be what the specification says; the text names the field."""


@frozen(kw_only=True)
class Passport:
    """What the machine says of the pod when it signs a pass for it (``POST /v1/pass``).

    `shown` is the encoded pass, None in an open fabric without one; `pod` the v1 Pod.
    """

    shown: bytes | None = field(repr=False)
    root: PeerId | None
    advertise: tuple[str, ...]
    pod: Mapping[str, Any] = field(repr=False)
    uid: UUID
    generation: int
    replicas: int
    zone: str | None = None

    @classmethod
    def of(cls, value: object) -> Passport:
        """Raises `AnswerError`."""
        fields = Fields(value)
        return cls(
            shown=fields.maybe("pass", octets),
            root=fields.maybe("root", peer),
            advertise=fields.list("advertise", address),
            pod=fields.one("pod", pod),
            uid=fields.one("uid", uuid),
            generation=fields.one("generation", whole),
            replicas=fields.one("replicas", whole),
            zone=fields.maybe("zone", text),
        )


@frozen(kw_only=True)
class State:
    """The pod and its workload as the machine sees them (``GET /v1/state``).

    `containers` are those that run, with their ids.
    """

    version: int
    containers: Mapping[str, str]
    generation: int
    replicas: int
    disposed: bool = False
    terminating: bool = False
    services: tuple[Mapping[str, Any], ...] = ()
    revocations: Revocations | None = field(default=None, repr=False)
    bootstrap: tuple[BootstrapPeer, ...] = ()

    @classmethod
    def of(cls, value: object) -> State:
        """Raises `AnswerError`."""
        fields = Fields(value)
        return cls(
            version=fields.one("version", whole),
            containers=fields.one("containers", texts),
            generation=fields.one("generation", whole),
            replicas=fields.one("replicas", whole),
            disposed=fields.maybe("disposed", boolean) or False,
            terminating=fields.maybe("terminating", boolean) or False,
            services=fields.list("services", mapping),
            revocations=fields.maybe("revocations", revocations),
            bootstrap=fields.list("bootstrap", bootstrap),
        )


@frozen
class Executed:
    """What a command in a container came to; `output` is its beginning."""

    exit_code: int
    output: str

    @classmethod
    def of(cls, value: object) -> Executed:
        """Raises `AnswerError`."""
        fields = Fields(value)
        return cls(fields.one("exit_code", integer), fields.maybe("output", text) or "")


class Fields:
    """The fields of one JSON object."""

    def __init__(self, value: object) -> None:
        self._value = mapping(value)

    def one(self, name: str, read: Callable[[object], T]) -> T:
        """A field that has to be there."""
        try:
            return read(self._value.get(name))
        except AnswerError as error:
            raise AnswerError(f"{name}: {error}") from error

    def maybe(self, name: str, read: Callable[[object], T]) -> T | None:
        """A field that may be missing, or null."""
        return None if self._value.get(name) is None else self.one(name, read)

    def list(self, name: str, read: Callable[[object], T]) -> tuple[T, ...]:
        """A list, empty where there is none."""

        def read_all(value: object) -> tuple[T, ...]:
            if not isinstance(value, list) or len(value) > MAX_ITEMS:
                raise AnswerError(f"expected a list of at most {MAX_ITEMS}")
            return tuple(read(item) for item in value)

        return self.maybe(name, read_all) or ()


# -- single values


def mapping(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict) or len(value) > MAX_ITEMS:
        raise AnswerError("expected an object")
    return value


def text(value: object) -> str:
    if not isinstance(value, str):
        raise AnswerError("expected text")
    return value


def texts(value: object) -> Mapping[str, str]:
    return {name: text(item) for name, item in mapping(value).items()}


def boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise AnswerError("expected true or false")
    return value


def integer(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise AnswerError("expected a whole number")
    return value


def whole(value: object) -> int:
    number = integer(value)
    if not 0 <= number < 1 << 63:
        raise AnswerError("expected a whole number from 0 on")
    return number


def octets(value: object) -> bytes:
    try:
        return base64.b64decode(text(value), validate=True)
    except (binascii.Error, ValueError) as error:
        raise AnswerError("expected base64") from error


def uuid(value: object) -> UUID:
    try:
        return UUID(text(value))
    except ValueError as error:
        raise AnswerError("expected a UUID") from error


def peer(value: object) -> PeerId:
    try:
        return PeerId.parse(text(value))
    except ProtocolError as error:
        raise AnswerError(str(error)) from error


def address(value: object) -> str:
    try:
        parse_address(text(value))
    except ProtocolError as error:
        raise AnswerError(str(error)) from error
    return text(value)


def bootstrap(value: object) -> BootstrapPeer:
    try:
        return BootstrapPeer.parse(text(value))
    except ProtocolError as error:
        raise AnswerError(str(error)) from error


def revocations(value: object) -> Revocations:
    """An encoded list; its signature is the policy's to check."""
    try:
        return decode_as(Revocations, octets(value))
    except ProtocolError as error:
        raise AnswerError(str(error)) from error


def pod(value: object) -> Mapping[str, Any]:
    """A v1 Pod, as far as the agent relies on it."""
    found = mapping(value)
    containers = mapping(found.get("spec")).get("containers")
    if not isinstance(containers, list) or not all(
        isinstance(container, dict) and isinstance(container.get("name"), str) for container in containers
    ):
        raise AnswerError("expected spec.containers, each with a name")
    mapping(found.get("metadata"))
    return found
