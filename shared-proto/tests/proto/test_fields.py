"""What a field may hold, at the edges."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import attrs
import pytest

from magik_proto import fields
from magik_proto.errors import InvalidField

ATTRIBUTE: Any = attrs.make_class("Sample", ["field"]).__attrs_attrs__[0]  # type: ignore[attr-defined]


def allowed(validator: fields.Validator, value: Any) -> bool:
    try:
        validator(None, ATTRIBUTE, value)
    except InvalidField as error:
        assert error.field == "field"
        return False
    return True


@pytest.mark.parametrize(
    ("validator", "good", "bad"),
    [
        (fields.integer(1, 3), [1, 3], [0, 4, True, "1", None, 1.0]),
        (fields.octets(1, 2), [b"a", b"ab"], [b"", b"abc", "a", bytearray(b"a")]),
        (fields.text(2), ["", "ab"], ["abc", b"a", 1]),
        (fields.one_of("a", "b"), ["a"], ["c", "", 1, []]),
        (fields.boolean, [True, False], [0, 1, None]),
        (fields.optional(fields.count), [None, 1], [0, "x"]),
        (fields.sequence(fields.count, 2), [(), (1, 2)], [[1], (0,), (1, 2, 3)]),
        (fields.ascending(3, 9), [(), (0, 1, 9)], [(1, 1), (2, 1), (10,), [1]]),
        (fields.prose, ["", "ok é"], ["a\n", "x" * 1025, "\x1b[1m", 1]),
        (fields.matching_up_to("a*", 3, "a"), ["", "aaa"], ["aaaa", "b", 1, "a\n"]),
        (fields.namespace, ["a", "a-1", "a" * 63], ["", "A", "-a", "a-", "a" * 64, "a.b", "a\n", 1]),
        (
            fields.object_name,
            ["a.b", "a" * 63],
            ["", ".a", "a..b", "a" * 64 + ".b", ".".join(["a" * 60] * 5)],
        ),
        (fields.kind_name, ["Pod"], ["pod", "", "P_d", "P" * 64]),
        (fields.label_key, ["a", "x.io/A_b"], ["", "/a", "x/", "x.io/a/b", "X/a", "a" * 64]),
        (fields.label_value, ["", "A.b_c"], ["-a", "a" * 64, "a b"]),
        (
            fields.address,
            ["10.0.0.1:1", "[::1]:65535"],
            ["host:1", "10.0.0.1", "::1:1", "x" * 65, 1, "1.2.3.4:0"],
        ),
        (fields.signature, [b"", bytes(64)], [bytes(63), "", None]),
        (fields.port, [1, 65_535], [0, 65_536]),
    ],
)
def test_validators(validator: fields.Validator, good: list[Any], bad: list[Any]) -> None:
    assert [value for value in good if not allowed(validator, value)] == []
    assert [value for value in bad if allowed(validator, value)] == []


def test_mappings_are_frozen_copies() -> None:
    source = {"a": "b"}
    frozen = fields.freeze(source)
    source["c"] = "d"
    assert dict(frozen) == {"a": "b"}
    assert fields.freeze(frozen) is frozen
    assert fields.freeze(5) == 5
    check = fields.mapping(fields.label_key, fields.label_value, 1)
    assert allowed(check, frozen)
    assert not allowed(check, source), "not frozen"
    assert not allowed(check, MappingProxyType({"a": "b", "c": "d"}))
    assert not allowed(check, MappingProxyType({"": "b"}))
    assert not allowed(check, MappingProxyType({"a": "-"}))


def test_unknown_fields_are_a_bounded_frozen_mapping() -> None:
    owner = attrs.make_class("Owner", ["known"])(1)

    def fits(value: Any) -> bool:
        try:
            fields.unknown_fields(owner, ATTRIBUTE, value)
        except InvalidField:
            return False
        return True

    assert fits(MappingProxyType({}))
    assert fits(MappingProxyType({"new": 1}))
    for bad in (
        {},
        {"known": 1},
        {"magik": 1},
        {"New": 1},
        {"new": None},
        {5: 1},
        dict.fromkeys(map(str, range(65))),
    ):
        assert not fits(bad if bad == {} else MappingProxyType(bad)), bad
