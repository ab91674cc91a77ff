"""Objects on their way in: decoded, typed, checked against their URL, with ``fieldValidation`` applied."""

from collections.abc import Sequence
from typing import Any, Final

from attrs import frozen

from .backend import Object
from .bodies import read_object
from .calls import Call, Target
from .context import Api
from .errors import ApiError
from .kinds import Kind
from .structure import structure

#: What the API sets itself, whatever a client sends.
_IDENTITY: Final = (
    "uid",
    "creationTimestamp",
    "generation",
    "selfLink",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
)
_ALPHABET: Final = "bcdfghjklmnpqrstvwxz2456789"
#: How much of ``generateName`` fits before the five random characters.
_GENERATED_BASE: Final = 58
#: Warnings told to a client at most, so that headers stay bounded.
MAX_WARNINGS: Final = 20


@frozen
class Incoming:
    """A typed object and the warnings to give with the answer."""

    object: Object
    warnings: tuple[str, ...] = ()


def incoming(call: Call, target: Target) -> Incoming:
    """The body of a POST or PUT. Raises ApiError 400, 413, 415."""
    body = read_object(call.body, call.content_type)
    duplicates = [f'duplicate field "{key}"' for key in body.duplicates]
    return typed(call, target, body.value, duplicates)


def typed(call: Call, target: Target, obj: Object, problems: Sequence[str] = ()) -> Incoming:
    """An object read as its kind, in the target's namespace. Raises ApiError 400."""
    kind = target.kind
    _check_kind(kind, obj)
    result = structure({"kind": kind.kind, "apiVersion": kind.api_version} | obj, kind.schema)
    said = [*problems, *(f'unknown field "{path}"' for path in result.unknown)]
    meta = result.object.setdefault("metadata", {})
    _check_place(target, meta)
    return Incoming(result.object, field_validation(call, kind, said))


def field_validation(call: Call, kind: Kind, said: Sequence[str]) -> tuple[str, ...]:
    """The warnings for unknown or duplicate fields; ApiError 400 if the client asked for strictness."""
    level = call.query.get("fieldValidation", "") or "Warn"
    if level not in ("Strict", "Warn", "Ignore"):
        raise ApiError.bad_request(f"fieldValidation: unsupported value {level!r}: Ignore, Strict, Warn")
    if level == "Strict" and said:
        raise ApiError.bad_request(
            f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}: '
            f"strict decoding error: {', '.join(said)}"
        )
    return tuple(said[:MAX_WARNINGS]) if level == "Warn" else ()


def _check_kind(kind: Kind, obj: Object) -> None:
    version, name = obj.get("apiVersion"), obj.get("kind")
    if version not in (None, "", kind.api_version):
        raise ApiError.bad_request(
            f"the API version in the data ({version}) does not match the expected API version ({kind.api_version})"
        )
    if name not in (None, "", kind.kind):
        raise ApiError.bad_request(
            f"the kind in the data ({name}) does not match the kind of the URL ({kind.kind}): "
            f'no kind "{name}" is registered for {kind.plural} of version "{kind.api_version}"'
        )
    obj.update(apiVersion=kind.api_version, kind=kind.kind)


def _check_place(target: Target, meta: Object) -> None:
    if not target.kind.namespaced:
        if meta.pop("namespace", ""):
            raise ApiError.bad_request("namespace is not allowed on this type")
    elif meta.get("namespace") in (None, "", target.namespace):
        meta["namespace"] = target.namespace
    else:
        raise ApiError.bad_request(
            "the namespace of the provided object does not match the namespace sent on the request"
        )
    if target.name is not None:
        if meta.get("name") in (None, ""):
            meta["name"] = target.name
        elif meta["name"] != target.name:
            raise ApiError.bad_request(
                f"the name of the object ({meta['name']}) does not match the name on the URL ({target.name})"
            )


def prepare_new(api: Api, obj: Object) -> None:
    """Strip a new object of identity that is not the client's to give, and make its name if it asks for
    one."""
    meta = obj["metadata"]
    if meta.get("resourceVersion"):
        raise ApiError.bad_request("resourceVersion should not be set on objects to be created")
    for key in (*_IDENTITY, "resourceVersion"):
        meta.pop(key, None)
    obj.pop("status", None)
    obj["status"] = {}
    base = meta.get("generateName", "")
    if base and not meta.get("name"):
        suffix = "".join(_ALPHABET[byte % len(_ALPHABET)] for byte in api.random(5))
        meta["name"] = base[:_GENERATED_BASE] + suffix


def keep_identity(obj: Object, old: Object) -> None:
    """Give an object that replaces another one its identity and status. Raises ApiError 409 if it names
    another uid."""
    meta, was = obj["metadata"], old["metadata"]
    if meta.get("uid") not in (None, "", was.get("uid")):
        raise ApiError(
            409,
            "Conflict",
            f"Precondition failed: UID in precondition: {meta['uid']}, UID in object meta: {was.get('uid')}",
        )
    for key in _IDENTITY:
        meta.pop(key, None)
        if key in was:
            meta[key] = was[key]
    _put_status(obj, old.get("status"))


def _put_status(obj: Object, status: Any) -> None:
    obj.pop("status", None)
    if status is not None:
        obj["status"] = status
