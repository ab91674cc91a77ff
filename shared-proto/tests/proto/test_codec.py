"""The codec: one encoding for each value, and a named rule for every other sequence of bytes."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import cbor2
import pytest

from magik_proto import codec
from magik_proto.errors import LocalProtocolError, RemoteProtocolError

REFUSED = [
    ("codec.truncated", ""),
    ("codec.length", "82"),
    ("codec.truncated", "19 01"),
    ("codec.truncated", "1b 00000001000000"),
    ("codec.length", "42 01"),
    ("codec.length", "62 61"),
    ("codec.length", "5b 7fffffffffffffff 00"),
    ("codec.length", "9b ffffffffffffffff 00"),
    ("codec.length", "ba 80000000 6161"),
    ("codec.truncated", "a1 6161"),
    ("codec.trailing", "01 02"),
    ("codec.trailing", "80 00"),
    ("codec.non-shortest", "18 17"),
    ("codec.non-shortest", "19 00ff"),
    ("codec.non-shortest", "1a 0000ffff"),
    ("codec.non-shortest", "1b 00000000ffffffff"),
    ("codec.non-shortest", "38 00"),
    ("codec.non-shortest", "58 01 00"),
    ("codec.non-shortest", "78 01 61"),
    ("codec.non-shortest", "98 01 00"),
    ("codec.non-shortest", "b8 01 6161 00"),
    ("codec.indefinite", "9f 01 ff"),
    ("codec.indefinite", "bf 6161 01 ff"),
    ("codec.indefinite", "5f 41 00 ff"),
    ("codec.indefinite", "7f 6161 ff"),
    ("codec.indefinite", "ff"),
    ("codec.reserved", "1c"),
    ("codec.reserved", "fd"),
    ("codec.reserved", "5e"),
    ("codec.tag", "c2 41 01"),
    ("codec.tag", "d8 20 60"),
    ("codec.tag", "c0 60"),
    ("codec.float", "f9 3c00"),
    ("codec.float", "fa 47c35000"),
    ("codec.float", "fb 3ff0000000000000"),
    ("codec.float", "81 f9 7e00"),
    ("codec.simple", "f7"),
    ("codec.simple", "e0"),
    ("codec.simple", "f8 20"),
    ("codec.key-type", "a1 01 02"),
    ("codec.key-type", "a1 41 61 02"),
    ("codec.key-type", "a1 80 02"),
    ("codec.duplicate-key", "a2 6161 01 6161 02"),
    ("codec.unsorted-key", "a2 6162 01 6161 02"),
    ("codec.unsorted-key", "a2 626161 01 6162 02"),
    ("codec.unsorted-key", "a3 6161 01 6162 02 6161 03"),
    ("codec.unsorted-key", "a1 6161 a2 6162 01 6161 02"),
    ("codec.utf8", "61 ff"),
    ("codec.utf8", "63 eda080"),
    ("codec.utf8", "62 c080"),
    ("codec.utf8", "a1 61 ff 00"),
]


def nested(levels: int) -> Any:
    value: Any = []
    for _ in range(levels - 1):
        value = [value]
    return value


@pytest.mark.parametrize(("rule", "text"), REFUSED, ids=lambda value: str(value))
def test_other_bytes_are_refused_by_the_rule_they_break(rule: str, text: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        codec.decode(bytes.fromhex(text))
    assert caught.value.rule == rule


def test_values_survive_and_have_the_bytes_of_the_standard() -> None:
    value = {
        "b": [0, 23, 24, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**64 - 1, -1, -25, -(2**64)],
        "aa": {"ü": "é", "": b"", "x": b"\x00" * 300},
        "a": [True, False, None, [], {}, "t" * 70000],
    }
    data = codec.encode(value)
    assert codec.decode(data) == value
    assert data == cbor2.dumps(value, canonical=True)
    assert list(codec.decode(data)) == ["a", "b", "aa"]


def test_tuples_are_written_as_arrays() -> None:
    assert codec.encode((1, (2,))) == codec.encode([1, [2]])


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_can_be_decoded(kind: Any) -> None:
    assert codec.decode(kind(b"\x81\x01")) == [1]


def test_nesting_is_allowed_to_sixteen_and_no_deeper() -> None:
    assert codec.decode(codec.encode(nested(16))) == nested(16)
    with pytest.raises(RemoteProtocolError) as caught:
        codec.decode(b"\x81" * 16 + b"\x80")
    assert caught.value.rule == "codec.depth"
    with pytest.raises(LocalProtocolError, match="deeper than 16"):
        codec.encode(nested(17))
    assert codec.decode(b"\xa1\x61a" * 16 + b"\x00")


def test_size_is_refused_before_the_bytes_are_looked_at() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        codec.decode(b"\xff" * 11, max_size=10)
    assert caught.value.rule == "codec.size"


def test_items_are_counted() -> None:
    assert codec.decode(b"\x83\x01\x02\x03", max_items=4) == [1, 2, 3]
    with pytest.raises(RemoteProtocolError) as caught:
        codec.decode(b"\x83\x01\x02\x03", max_items=3)
    assert caught.value.rule == "codec.items"
    with pytest.raises(LocalProtocolError, match="items"):
        codec.encode([0] * (codec.MAX_ITEMS + 1))


def test_too_large_a_value_is_not_encoded() -> None:
    with pytest.raises(LocalProtocolError, match="allowed"):
        codec.encode(b"\0" * codec.MAX_SIZE)


@pytest.mark.parametrize(
    "value",
    [
        1.0,
        float("nan"),
        {1: 2},
        {b"a": 1},
        {1},
        object(),
        "\ud800",
        2**64,
        -(2**64) - 1,
        bytearray(b"a"),
        nested(50),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_encoding_is_our_error(value: Any) -> None:
    with pytest.raises(LocalProtocolError):
        codec.encode({"value": value})


def test_a_list_in_itself_is_our_error() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(LocalProtocolError):
        codec.encode(endless)


def test_a_structure_as_deep_as_memory_is_our_error_and_no_crash() -> None:
    with pytest.raises(LocalProtocolError):
        codec.encode(nested(50_000))


def test_claims_cost_no_memory() -> None:
    """Lengths are compared with the bytes that are there, before anything is made for them."""
    claims = [bytes.fromhex(text) for _, text in REFUSED] + [
        b"\x9a\x00\x0f\xff\xff" * 10,
        b"\x5a\x00\xff\xff\xff",
    ]
    tracemalloc.start()
    for data in claims:
        with pytest.raises(RemoteProtocolError):
            codec.decode(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


def test_time_is_linear_in_the_input() -> None:
    def seconds(count: int) -> float:
        data = codec.encode({f"k{index:07}": [index] for index in range(count)})
        best = float("inf")
        for _ in range(3):
            begin = time.perf_counter()
            codec.decode(data)
            best = min(best, time.perf_counter() - begin)
        return best

    # 16 times the input; quadratic would be 256 times the time.
    assert seconds(32_000) < 64 * seconds(2_000)


def test_many_empty_containers_stay_within_the_stated_memory() -> None:
    count = codec.MAX_ITEMS - 1
    data = b"\x9a" + count.to_bytes(4, "big") + b"\xa0" * count
    assert len(codec.decode(data)) == count
    with pytest.raises(RemoteProtocolError, match=r"codec\.items"):
        codec.decode(b"\x9a" + (count + 1).to_bytes(4, "big") + b"\xa0" * (count + 1))


def test_the_check_alone_holds_the_limit_of_size() -> None:
    codec.check(b"\x41a", max_size=2)
    with pytest.raises(RemoteProtocolError, match=r"codec\.size"):
        codec.check(b"\x42ab", max_size=2)


def test_a_key_longer_than_what_is_left_is_refused_before_it_is_taken() -> None:
    for data in (b"\xa1\x62a", b"\xa1\x7b\x7f\xff\xff\xff\xff\xff\xff\xff"):
        with pytest.raises(RemoteProtocolError, match=r"codec\.length"):
            codec.decode(data)


def test_what_is_canonical_is_written_as_it_stands() -> None:
    assert codec.write({"b": 1, "aa": [None, True]}) == codec.encode({"aa": [None, True], "b": 1})
    for bad in ("\ud800", bytes(codec.MAX_SIZE)):
        with pytest.raises(LocalProtocolError, match="cannot be encoded"):
            codec.write(bad)
