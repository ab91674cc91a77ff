"""How a pull is shown: to a terminal, to a file, and in a log."""

import io

import structlog.testing

from machineplane.runtime.images.download import Progress
from machineplane.runtime.images.progress import LOG_PERIOD_S, Account, Display

A, B = ("sha256:" + letter * 64 for letter in "ab")
STEPS = [
    Progress(A, 10, 100, "registry a.test: app"),
    Progress(B, 50, 50, "machine 0011"),
    Progress(A, 60, 100, "registry a.test: app"),
    Progress(A, 100, 100, "registry a.test: app"),
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_file_gets_a_line_for_the_beginning_and_the_end_of_a_blob() -> None:
    out = io.StringIO()
    with Display(out, "app:1") as display:
        for step in STEPS:
            display.watch(step)
    assert out.getvalue().splitlines() == [
        f"app:1: {A[:19]} begun, 100 bytes from registry a.test: app",
        f"app:1: {B[:19]} done, 50 bytes from machine 0011",
        f"app:1: {A[:19]} done, 100 bytes from registry a.test: app",
    ]


def test_a_terminal_gets_a_bar_of_all_blobs() -> None:
    out = Terminal()
    with Display(out, "app:1") as display:
        for step in STEPS[:2]:
            display.watch(step)
        assert "app:1" in out.getvalue() and "40%" in out.getvalue().splitlines()[-1]
        for step in STEPS[2:]:
            display.watch(step)
    assert "100%" in out.getvalue()


def test_a_log_gets_a_line_now_and_then_and_the_sources() -> None:
    now = 0.0
    with structlog.testing.capture_logs() as lines:
        account = Account("app:1", structlog.get_logger(), lambda: now)
        account.watch(STEPS[0])
        assert lines == []
        now = LOG_PERIOD_S
        for step in STEPS[1:3]:
            account.watch(step)
        assert lines == [
            {"event": "image-pulling", "log_level": "info", "image": "app:1", "done": 60, "size": 150}
        ]
        account.watch(STEPS[3])
    assert account.sources == {"registry a.test: app": 1, "machine 0011": 1}
