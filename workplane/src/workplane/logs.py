"""Logging: structlog, JSON lines to standard error, each with the replica and its role; a call's id comes by context.

Who handles a call binds ``correlation_id`` in `structlog.contextvars`, so that all lines about it can be found.
"""

import logging
import sys
from collections.abc import Callable

import structlog


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
