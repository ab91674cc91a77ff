"""A table, its deltas, and the mirror that follows it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machineplane.fabric import table as table_module
from machineplane.fabric.follow import chunks
from machineplane.fabric.table import Delta, Table
from machineplane.fabric.view import Mirror
from magik_proto.codec import decode, encode


class Counter:
    def __init__(self, value: int = 100) -> None:
        self.value = value

    def __call__(self) -> int:
        self.value += 1
        return self.value


def contents(mirror: Mirror) -> dict[tuple[str, str], object]:
    return {key: entry.value for key, entry in mirror.entries.items()}


def test_the_same_value_again_is_no_change() -> None:
    table = Table(Counter())
    table.put(("pod", "a"), {"x": 1})
    version = table.version
    table.put(("pod", "a"), {"x": 1})
    assert table.version == version
    table.put(("pod", "a"), {"x": 2})
    assert table.version > version


def test_a_follower_gets_only_what_changed() -> None:
    table = Table(Counter())
    for name in "abc":
        table.put(("pod", name), {"x": 1})
    seen = table.version
    table.put(("pod", "b"), {"x": 2})
    table.remove(("pod", "c"))
    delta = table.since(table.epoch, seen)
    assert not delta.reset
    assert [(e.key[1], e.value) for e in delta.entries] == [("b", {"x": 2}), ("c", None)]


@pytest.mark.parametrize("stamp", [0, 10**9])
def test_an_unknown_position_is_answered_with_everything(stamp: int) -> None:
    table = Table(Counter())
    table.put(("pod", "a"), {"x": 1})
    delta = table.since(table.epoch, stamp)
    assert delta.reset and len(delta.entries) == 1


def test_another_epoch_is_answered_with_everything() -> None:
    table = Table(Counter())
    table.put(("pod", "a"), {"x": 1})
    assert table.since(table.epoch - 1, table.version).reset


def test_forgotten_removals_reset_those_who_missed_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_module, "REMOVALS_KEPT", 2)
    table = Table(Counter())
    for number in range(4):
        table.put(("pod", str(number)), {"x": 1})
    mirror = Mirror()
    mirror.apply(table.since(0, 0))
    for number in range(4):
        table.remove(("pod", str(number)))
    delta = table.since(mirror.epoch, mirror.stamp)
    assert delta.reset
    mirror.apply(delta)
    assert contents(mirror) == {}


def test_a_delta_that_does_not_join_on_changes_nothing() -> None:
    table = Table(Counter())
    table.put(("pod", "a"), {"x": 1})
    late = table.since(table.epoch, table.version)
    mirror = Mirror()
    assert mirror.apply(late) == [] and not mirror.entries


steps = st.lists(
    st.tuples(st.sampled_from(["put", "remove", "sync"]), st.sampled_from("abcd"), st.integers(0, 3)),
    max_size=40,
)


@given(steps, st.integers(1, 2000))
def test_a_mirror_that_syncs_at_any_times_ends_with_the_table_s_content(
    script: list[tuple[str, str, int]], chunk: int
) -> None:
    table, mirror = Table(Counter()), Mirror()

    def sync() -> None:
        for part in chunks(table.since(mirror.epoch, mirror.stamp), chunk):
            mirror.apply(Delta.from_wire(decode(encode(part.to_wire()))))

    for action, name, number in script:
        match action:
            case "put":
                table.put(("pod", name), {"n": number})
            case "remove":
                table.remove(("pod", name))
            case "sync":
                sync()
    sync()
    assert contents(mirror) == {e.key: e.value for e in table.entries("pod")}
    assert mirror.stamp == table.version


@pytest.mark.parametrize(
    "wire",
    [
        None,
        {},
        {"epoch": 1, "since": 1, "stamp": -1, "reset": False, "entries": []},
        {"epoch": 1, "since": 1, "stamp": 1, "reset": 1, "entries": []},
        {"epoch": 1, "since": 1, "stamp": 1, "reset": False, "entries": [["pod", "a", 1]]},
        {"epoch": 1, "since": 1, "stamp": 1, "reset": False, "entries": [["pod", "a", 1, 5]]},
        {"epoch": True, "since": 1, "stamp": 1, "reset": False, "entries": []},
    ],
)
def test_malformed_deltas_are_refused(wire: object) -> None:
    with pytest.raises(ValueError, match="delta"):
        Delta.from_wire(wire)
