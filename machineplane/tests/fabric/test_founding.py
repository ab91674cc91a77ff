"""Marks of sets that nobody has founded: taken once, over restarts, and never twice."""

from pathlib import Path
from uuid import UUID

import pytest

from machineplane.fabric import founding
from machineplane.fabric.founding import Foundings

A, B, C = (UUID(int=n) for n in (1, 2, 3))


def test_a_mark_is_taken_once_in_all_lives(tmp_path: Path) -> None:
    marks = Foundings(tmp_path / "foundings")
    marks.put(A)
    marks.put(B)
    again = Foundings(tmp_path / "foundings")
    mark = again.of(A)
    assert mark is not None and mark.take() and not mark.take()
    assert again.of(A) is None and again.of(B) is not None and again.of(C) is None
    last = Foundings(tmp_path / "foundings")
    assert (last.of(A), last.take(A), last.take(B)) == (None, False, True)


def test_a_mark_that_was_not_used_is_there_again(tmp_path: Path) -> None:
    marks = Foundings(tmp_path)
    marks.put(A)
    mark = marks.of(A)
    assert mark is not None and mark.take()
    mark.give_back()
    assert Foundings(tmp_path).take(A)


def test_a_mark_that_the_disk_keeps_is_not_given_away(tmp_path: Path) -> None:
    """It would be there in the next life, and found a second time."""
    marks = Foundings(tmp_path)
    (tmp_path / str(A)).mkdir()  # what cannot be unlinked
    marks.put(A)
    assert not marks.take(A)


def test_at_the_limit_the_oldest_goes_and_other_files_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(founding, "MARKS_MAX", 2)
    (tmp_path / "notes").touch()
    marks = Foundings(tmp_path)
    for uid in (A, B, C):
        marks.put(uid)
    assert {path.name for path in tmp_path.iterdir()} == {"notes", str(B), str(C)}
