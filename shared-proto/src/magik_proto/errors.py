"""The errors of `magik_proto`: ours (`LocalProtocolError`) or the peer's (`RemoteProtocolError`)."""

from __future__ import annotations


class ProtocolError(Exception):
    """Base of all errors of this package."""


class LocalProtocolError(ProtocolError):
    """This program broke the protocol: a bug on our side, never caused by what a peer sent."""


class InvalidField(LocalProtocolError, ValueError):
    """A field of a message does not hold a value that the protocol allows.

    Raised by constructors; decoding turns it into a `RemoteProtocolError` with the rule ``message.field``.
    """

    def __init__(self, field: str, detail: str) -> None:
        super().__init__(field, detail)
        self.field = field
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.field}: {self.detail}"


class RemoteProtocolError(ProtocolError):
    """A peer broke the protocol.

    `rule` is a short stable slug (``codec.duplicate-key``, ``signature.invalid``) for programs and metrics;
    `detail` is for people: what was wrong with what.
    """

    def __init__(self, rule: str, detail: str = "") -> None:
        super().__init__(rule, detail)
        self.rule = rule
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.rule}: {self.detail}" if self.detail else self.rule
