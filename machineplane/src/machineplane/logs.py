"""Logging: structlog to standard error, for people on a terminal and as JSON lines everywhere else."""

import logging
import sys

import structlog


def configure(log_format: str, level: str) -> None:
    """``log_format``: auto, console or json; ``level``: debug, info, warning or error. To be called once, at start."""
    as_json = log_format == "json" or (log_format == "auto" and not sys.stderr.isatty())
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer()
    )
    # The QUIC core reports what peers send wrongly as warnings; what matters of it the mesh says itself.
    logging.getLogger("quic").setLevel(logging.ERROR)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
