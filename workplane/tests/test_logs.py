"""Ids that lines bear, and lines that come by the thousand."""

from typing import Any

import structlog

from workplane.logs import BURST, SPAN_S, Sparing, correlated, correlation_id


def test_an_id_is_kept_where_it_is_one_and_made_where_it_is_none() -> None:
    assert correlation_id() is None
    with correlated("a-1_B"):
        assert correlation_id() == "a-1_B"
    for wrong in (None, "", "x" * 65, "a\nb", 5, b"a"):
        with correlated(wrong):
            made = correlation_id()
            assert made is not None and len(made) == 16
    assert correlation_id() is None


def test_of_many_lines_some_are_said_and_the_rest_is_counted() -> None:
    said: list[dict[str, Any]] = []

    def keep(_: object, __: str, event: Any) -> Any:
        said.append(dict(event))
        raise structlog.DropEvent

    now = [100.0]
    log = structlog.wrap_logger(
        None, processors=[keep], wrapper_class=structlog.make_filtering_bound_logger(0)
    )
    sparing = Sparing(log, lambda: now[0])
    for _ in range(BURST + 7):
        sparing.info("lost", x=1)
    assert said == [{"event": "lost", "x": 1}] * BURST
    now[0] += SPAN_S
    sparing.info("lost", x=2)
    sparing.info("lost", x=3)
    assert said[BURST:] == [{"event": "lost", "x": 2, "left_out": 7}, {"event": "lost", "x": 3}]
