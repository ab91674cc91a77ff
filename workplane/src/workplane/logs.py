"""Logging: structlog, JSON lines to standard error, each with the replica and its role; a call's id comes by context.

Who handles a call or a connection binds its id by `correlated`, and sends it along, so that all lines about it are found, at
both agents.
"""

from __future__ import annotations

import logging
import re
import secrets
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Final

import structlog
from attrs import define, field

BURST: Final = 20
"""Lines of one kind in `SPAN_S`; what is more is counted, and told with the next line. A guess."""
SPAN_S: Final = 10.0
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


def correlated(id: object = None) -> AbstractContextManager[None]:
    """Lines written within it, and in tasks begun there, bear this id; a new one where it is none."""
    known = id if isinstance(id, str) and _ID.fullmatch(id) else secrets.token_hex(8)
    return structlog.contextvars.bound_contextvars(correlation_id=known)


def correlated_by(body: object) -> AbstractContextManager[None]:
    """As `correlated`, by the id that the caller's agent has sent in a call's body."""
    return correlated(body.get("id") if isinstance(body, dict) else None)


def correlation_id() -> str | None:
    """The id of the call or connection that this task works for."""
    found = structlog.contextvars.get_contextvars().get("correlation_id")
    return found if isinstance(found, str) else None


@define
class Sparing:
    """Lines that may come by the thousand: of one kind `BURST` in `SPAN_S` seconds, the rest is counted."""

    log: structlog.typing.FilteringBoundLogger
    clock: Callable[[], float] = time.monotonic
    _began: float = field(default=float("-inf"))
    _said: int = 0
    _left_out: int = 0

    def info(self, event: str, **fields: Any) -> None:
        """Say it, if there is room."""
        now = self.clock()
        if now - self._began >= SPAN_S:
            self._began, self._said = now, 0
        if self._said >= BURST:
            self._left_out += 1
            return
        self._said += 1
        more = {"left_out": self._left_out} if self._left_out else {}
        self._left_out = 0
        self.log.info(event, **fields, **more)


def configure(replica: str, role: Callable[[], str], level: int = logging.INFO) -> None:
    """To be called once, at start."""

    def who(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event["replica"], event["role"] = replica, role()
        return event

    # The QUIC core reports what peers send wrongly as warnings; what matters of it the mesh says itself.
    logging.getLogger("quic").setLevel(logging.ERROR)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            who,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
