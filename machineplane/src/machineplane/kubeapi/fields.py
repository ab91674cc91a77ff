"""The field table: every field of every kind we type, read from the data files in ``schema/``.

One table serves four masters: strict validation (:mod:`.structure`), protobuf bodies (:mod:`.protobuf`),
strategic merge (:mod:`.strategic`) and the OpenAPI documents (:mod:`.openapi`).

A type is written ``string``, ``int``, ``bool``, ``float``, ``bytes``, ``time``, ``microtime``, ``duration``,
``quantity``, ``intorstring``, ``any``, ``group.Name`` for an object, ``[]T`` for a list and ``{}T`` for a map
with string keys.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Final

from attrs import frozen

FILES: Final = ("meta", "core", "pods", "volumes", "apps", "discovery", "reviews")


@frozen
class Type:
    """A field's type. ``shape`` is ``list``, ``map``, ``object`` or a scalar's name; ``item`` is what a list
    or map holds; ``name`` is an object's."""

    shape: str
    item: "Type | None" = None
    name: str = ""

    @classmethod
    def parse(cls, text: str) -> "Type":
        """From its written form."""
        if text.startswith("[]"):
            return cls("list", cls.parse(text[2:]))
        if text.startswith("{}"):
            return cls("map", cls.parse(text[2:]))
        return cls("object", name=text) if "." in text else cls(text)


@frozen
class Field:
    """One field. ``pointer``: zero is a value unlike absence; ``patch`` and ``merge_key`` steer strategic
    merge."""

    number: int
    name: str
    type: Type
    pointer: bool
    patch: frozenset[str]
    merge_key: str | None

    @property
    def inline(self) -> bool:
        """Whether JSON shows this object's fields in its parent."""
        return self.name == "-"


@frozen
class Schema:
    """All types: ``wire`` as protobuf has them, ``json`` with inlined objects flattened."""

    wire: Mapping[str, Mapping[int, Field]]
    json: Mapping[str, Mapping[str, Field]]

    def type_of(self, api_version: str, kind: str) -> str | None:
        """The type that a top-level object of this apiVersion and kind has, or None if we do not know it."""
        if kind == "DeleteOptions":
            return "meta.DeleteOptions"
        name = f"{PACKAGES.get(api_version, '')}.{kind}"
        return name if name in self.wire else None


#: Where the types of an API version live.
PACKAGES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "v1": "core",
        "apps/v1": "apps",
        "autoscaling/v1": "autoscaling",
        "discovery.k8s.io/v1": "discovery",
        "authentication.k8s.io/v1": "authentication",
        "authorization.k8s.io/v1": "authorization",
    }
)


@cache
def schema() -> Schema:
    """The table, read once."""
    wire = dict(_types())
    return Schema(
        MappingProxyType(wire),
        MappingProxyType({name: MappingProxyType(dict(_flat(wire, name))) for name in wire}),
    )


def _types() -> Iterator[tuple[str, Mapping[int, Field]]]:
    for file in FILES:
        name, fields = "", dict[int, Field]()
        text = resources.files(f"{__package__}.schema").joinpath(f"{file}.txt").read_text("utf-8")
        for line in text.splitlines():
            if line.startswith("#"):
                continue
            if line.startswith(" "):
                field = _field(line.split())
                fields[field.number] = field
                continue
            if name:
                yield name, MappingProxyType(fields)
            name, fields = line, {}
        yield name, MappingProxyType(fields)


def _field(words: list[str]) -> Field:
    number, name, written, *options = words
    given = dict(option.split("=", 1) for option in options)
    return Field(
        int(number),
        name,
        Type.parse(written.rstrip("?")),
        written.endswith("?"),
        frozenset(given.get("patch", "").split(",")) - {""},
        given.get("key"),
    )


def _flat(wire: Mapping[str, Mapping[int, Field]], name: str) -> Iterator[tuple[str, Field]]:
    for field in wire[name].values():
        if field.inline:
            yield from _flat(wire, field.type.name)
        else:
            yield field.name, field
