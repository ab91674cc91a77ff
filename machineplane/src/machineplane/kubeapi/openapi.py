"""OpenAPI documents, from the kinds and the field table.

Version 3 (JSON, kubectl ≥ 1.27 for ``explain``, ≥ 1.29 for validation): one document a group with real
schemas and, on each patch operation, the ``fieldValidation`` parameter that tells clients that the server
validates. Version 2 (protobuf, kubectl up to 1.28): no schemas, with which old clients skip their own
validation, and the patch operations.
"""

import hashlib
import json
from typing import Any, Final

from .errors import ApiError
from .fields import PACKAGES, Field, Type, schema
from .kinds import Kind, KindTable

Document = dict[str, Any]

#: As servers answer it; clients ask for it with an "@" in place of the first dot, which is no legal media
#: type.
V2_MEDIA: Final = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
_REF: Final = "#/components/schemas/"
_SCALARS: Final[dict[str, Document]] = {
    "string": {"type": "string"},
    "int": {"type": "integer", "format": "int64"},
    "float": {"type": "number", "format": "double"},
    "bool": {"type": "boolean"},
    "bytes": {"type": "string", "format": "byte"},
    "time": {"type": "string", "format": "date-time"},
    "microtime": {"type": "string", "format": "date-time"},
    "duration": {"type": "string"},
    "quantity": {"type": "string"},
    "intorstring": {"x-kubernetes-int-or-string": True},
    "any": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
}


def v3_index(kinds: KindTable) -> Document:
    """``/openapi/v3``: the groups' documents, each with a hash of its content."""
    paths = {}
    for group, version in kinds.group_versions():
        path = f"apis/{group}/{version}" if group else f"api/{version}"
        digest = hashlib.sha256(json.dumps(v3_document(kinds, group, version)).encode()).hexdigest()
        paths[path] = {"serverRelativeURL": f"/openapi/v3/{path}?hash={digest[:32].upper()}"}
    return {"paths": paths}


def v3_document(kinds: KindTable, group: str, version: str) -> Document:
    """``/openapi/v3/apis/<group>/<version>``. Raises ApiError 404 for a group that is not served."""
    served = kinds.of(group, version)
    if not served:
        raise ApiError.no_such_path()
    schemas: Document = {}
    for kind in served:
        _add_schema(schemas, kind.schema)
        schemas[_full_name(kind.schema)] |= {"x-kubernetes-group-version-kind": [_gvk(kind)]}
    return {
        "openapi": "3.0.0",
        "info": {"title": "Magik", "version": "v1"},
        "paths": {path: item for kind in served for path, item in _paths(kind).items()},
        "components": {"schemas": schemas},
    }


def v2_json() -> Document:
    """``/openapi/v2`` for who reads JSON."""
    return {"swagger": "2.0", "info": {"title": "Magik", "version": "v1"}, "paths": {}}


def v2_protobuf(kinds: KindTable) -> bytes:
    """The same as protobuf (gnostic's ``openapi.v2.Document``), with one patch operation a kind.

    No schema is in it, so old clients skip their own validation; but kubectl up to 1.27 looks at the patch operations for
    a ``dryRun`` parameter before it sends ``--dry-run=server`` or a diff.
    """
    info = _bytes(1, b"Magik") + _bytes(2, b"v1")
    paths = b"".join(
        _bytes(
            2, _bytes(1, path.encode()) + _bytes(2, _bytes(8, _patch(kind)))
        )  # NamedPathItem, PathItem.patch
        for kind in kinds.kinds
        for path, item in _paths(kind).items()
        if "patch" in item
    )
    return _bytes(1, b"2.0") + _bytes(2, info) + _bytes(8, paths)


def _patch(kind: Kind) -> bytes:
    """An ``Operation``: 8 = parameters (ParametersItem.parameter.non_body_parameter.query.name), 13 = extensions (yaml)."""
    query = _bytes(1, _bytes(2, _bytes(3, _bytes(2, b"query") + _bytes(4, b"dryRun"))))
    gvk = json.dumps(_gvk(kind)).encode()  # JSON is YAML
    return _bytes(8, query) + _bytes(
        13, _bytes(1, b"x-kubernetes-group-version-kind") + _bytes(2, _bytes(2, gvk))
    )


def _bytes(number: int, value: bytes) -> bytes:
    """A field of wire type 2; field numbers here are below 16."""
    length, prefix = len(value), bytearray([number << 3 | 2])
    while length > 127:
        prefix.append(length & 127 | 128)
        length >>= 7
    return bytes(prefix) + bytes([length]) + value


def _gvk(kind: Kind) -> dict[str, str]:
    return {"group": kind.group, "kind": kind.kind, "version": kind.version}


def _paths(kind: Kind) -> Document:
    base = f"/apis/{kind.group}/{kind.version}" if kind.group else f"/api/{kind.version}"
    scope = "/namespaces/{namespace}" if kind.namespaced else ""
    many, one = f"{base}{scope}/{kind.plural}", f"{base}{scope}/{kind.plural}/{{name}}"
    operations = {
        many: {"get": ("list", "list"), "post": ("create", "post")},
        one: {
            "get": ("get", "get"),
            "put": ("update", "put"),
            "patch": ("patch", "patch"),
            "delete": ("delete", "delete"),
        },
    }
    return {
        path: {
            method: _operation(kind, action)
            for method, (verb, action) in methods.items()
            if verb in kind.verbs or method == "patch"
        }
        for path, methods in operations.items()
    }


def _operation(kind: Kind, action: str) -> Document:
    reference = {"$ref": _REF + _full_name(kind.schema)}
    operation: Document = {
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": _gvk(kind),
        "responses": {"200": {"description": "OK", "content": {"application/json": {"schema": reference}}}},
    }
    if action in ("post", "put", "patch"):
        names = ("dryRun", "fieldManager", "fieldValidation")
        operation["parameters"] = [
            {"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": True}} for name in names
        ]
    return operation


def _add_schema(schemas: Document, name: str) -> None:
    full = _full_name(name)
    if full in schemas:
        return
    properties: Document = {}
    schemas[full] = {"type": "object", "properties": properties}
    if schema().type_of(_api_version(name), name.partition(".")[2]) and "metadata" in schema().json[name]:
        properties |= {"apiVersion": {"type": "string"}, "kind": {"type": "string"}}
    for field in schema().json[name].values():
        properties[field.name] = _property(schemas, field)


def _property(schemas: Document, field: Field) -> Document:
    shown = _type(schemas, field.type)
    if "merge" in field.patch:
        shown |= {"x-kubernetes-patch-strategy": ",".join(sorted(field.patch))}
    if field.merge_key is not None:
        shown |= {"x-kubernetes-patch-merge-key": field.merge_key}
    return shown


def _type(schemas: Document, kind: Type) -> Document:
    if kind.shape == "object":
        _add_schema(schemas, kind.name)
        return {"allOf": [{"$ref": _REF + _full_name(kind.name)}], "default": {}}
    if kind.item is not None:
        items = _type(schemas, kind.item)
        if kind.shape == "list":
            return {"type": "array", "items": items}
        return {"type": "object", "additionalProperties": items}
    return dict(_SCALARS[kind.shape])


def _api_version(name: str) -> str:
    package = name.partition(".")[0]
    return next((version for version, known in PACKAGES.items() if known == package), "")


def _full_name(name: str) -> str:
    """``apps.Deployment`` → ``io.k8s.api.apps.v1.Deployment``, the names that other tools know."""
    package, _, kind = name.partition(".")
    prefix = "io.k8s.apimachinery.pkg.apis.meta" if package == "meta" else f"io.k8s.api.{package}"
    return f"{prefix}.v1.{kind}"
