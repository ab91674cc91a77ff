"""PATCH: read, patch, check, replace; again if somebody else was faster and the client did not name a
version."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from types import MappingProxyType
from typing import Any, Final

import jsonpatch
import jsonpointer

from .backend import Object
from .bodies import media_type, read_value
from .calls import Answer, Call, Target
from .context import Api
from .errors import ApiError
from .incoming import Incoming, typed
from .ownership import applied, conflicts_of
from .strategic import merge, strategic_merge
from .structure import MAX_DEPTH, too_deep
from .writes import answered, create, replace, replace_tracked

STRATEGIC: Final = "application/strategic-merge-patch+json"
MERGE: Final = "application/merge-patch+json"
JSON_PATCH: Final = "application/json-patch+json"
APPLY: Final = "application/apply-patch+yaml"
MEDIA: Final = (JSON_PATCH, MERGE, STRATEGIC, APPLY)
#: How often a patch is computed anew when the object changes under it (Kubernetes: 5).
TRIES: Final = 5
#: Operations in one JSON patch at most (Kubernetes: 10,000).
MAX_OPERATIONS: Final = 10_000

Patcher = Callable[[Object, Any, str], Object]


async def patch_object(api: Api, call: Call, target: Target) -> Answer:
    """Any PATCH of an object. Raises ApiError 400, 404, 409, 415, 422."""
    media = media_type(call.content_type)
    if media == APPLY:
        return await _apply(api, call, target)
    patch = read_patch(call, media)
    for attempt in range(TRIES):
        old = await api.existing(target)
        new = _patched(call, target, old, patch, media)
        try:
            version = old["metadata"].get("resourceVersion")
            obj = await replace_tracked(api, call, target, new.object, old, version)
        except ApiError as error:
            if not _may_retry(error, patch, attempt):
                raise
            continue
        return answered(api, call, target, obj, new.warnings)
    raise AssertionError("unreachable: the last attempt returns or raises")


def read_patch(call: Call, media: str) -> Any:
    """The patch document. Raises ApiError 415 for another media type, 400 for another shape."""
    if media not in MEDIA or media == APPLY:
        raise ApiError.unsupported_media(media, MEDIA)
    patch = read_value(call.body, media).value
    if media == JSON_PATCH:
        if not isinstance(patch, list) or len(patch) > MAX_OPERATIONS:
            raise ApiError.bad_request(f"a JSON patch must be a list of at most {MAX_OPERATIONS} operations")
    elif not isinstance(patch, dict):
        raise ApiError.bad_request("the patch must be an object")
    return patch


def patched(old: Object, patch: Any, media: str, schema: str) -> Object:
    """``old`` with the patch applied, by its media type. Raises ApiError 400 or 422."""
    new = _PATCHERS[media](deepcopy(old), patch, schema)
    if not isinstance(new, dict) or too_deep(new, MAX_DEPTH):
        raise ApiError.bad_request("the patched object is no object, or nests too deeply")
    return new


def _patched(call: Call, target: Target, old: Object, patch: Any, media: str) -> Incoming:
    new = patched(old, patch, media, target.kind.schema)
    version = (
        (new.get("metadata") or {}).get("resourceVersion") if isinstance(new.get("metadata"), dict) else None
    )
    if version not in (None, "", old["metadata"].get("resourceVersion")):
        raise ApiError.conflict(target.kind.subject(str(target.name)))
    return typed(call, target, new)


def _may_retry(error: ApiError, patch: Any, attempt: int) -> bool:
    meta = patch.get("metadata") if isinstance(patch, dict) else None
    named = isinstance(meta, dict) and meta.get("resourceVersion")
    return error.reason == "Conflict" and not named and attempt < TRIES - 1


def _json_patch(old: Object, patch: Any, schema: str) -> Object:
    try:
        result = jsonpatch.apply_patch(old, patch)
    except jsonpatch.JsonPatchTestFailed as error:
        raise ApiError(422, "Invalid", f"the server rejected our request: {_brief(error)}") from None
    except (jsonpatch.JsonPatchException, jsonpointer.JsonPointerException) as error:
        raise ApiError(422, "Invalid", f"the server rejected our request: {_brief(error)}") from None
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise ApiError.bad_request(f"the JSON patch cannot be applied: {_brief(error)}") from None
    return result if isinstance(result, dict) else {}


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _merge_patch(old: Object, patch: Any, schema: str) -> Object:
    merged = merge(old, patch)
    return merged if isinstance(merged, dict) else {}


_PATCHERS: Final[Mapping[str, Patcher]] = MappingProxyType(
    {STRATEGIC: strategic_merge, MERGE: _merge_patch, JSON_PATCH: _json_patch}
)


async def _apply(api: Api, call: Call, target: Target) -> Answer:
    """Server-side apply: create, or merge what is applied, with field ownership (see :mod:`.ownership`)."""
    config = _applied_config(call, target)
    for attempt in range(TRIES):
        old = await api.backend.get(target.kind, target.namespace, str(target.name))
        try:
            return await _apply_once(api, call, target, config, old)
        except ApiError as error:
            raced = error.reason == "AlreadyExists" or (error.reason == "Conflict" and not error.causes)
            if not raced or config.object["metadata"].get("resourceVersion") or attempt == TRIES - 1:
                raise
    raise AssertionError("unreachable: the last attempt returns or raises")


def _applied_config(call: Call, target: Target) -> Incoming:
    if not call.query.get("fieldManager"):
        raise ApiError(
            422,
            "Invalid",
            "PatchOptions is invalid: fieldManager: Required value: is required for apply patch",
        )
    body = read_value(call.body, "application/yaml").value
    if not isinstance(body, dict):
        raise ApiError.bad_request("the applied configuration must be one object")
    config = typed(call, target, body)
    if config.object["metadata"].get("managedFields"):
        raise ApiError.bad_request("metadata.managedFields must be nil")
    config.object.pop("status", None)
    return config


async def _apply_once(api: Api, call: Call, target: Target, config: Incoming, old: Object | None) -> Answer:
    kind, manager, now = target.kind, call.manager, api.now()
    if old is None:
        obj = await create(api, call, target, applied(None, deepcopy(config.object), kind, manager, now))
        return answered(api, call, target, obj, config.warnings, status=201)
    version = config.object["metadata"].get("resourceVersion")
    if version not in (None, "", old["metadata"].get("resourceVersion")):
        raise ApiError.conflict(kind.subject(str(target.name)))
    if not call.flag("force") and (found := conflicts_of(old, config.object, kind, manager)):
        raise _conflict_error(len(found), found)
    new = applied(deepcopy(old), deepcopy(config.object), kind, manager, now)
    obj = await replace(api, call, target, new, old, old["metadata"].get("resourceVersion"))
    return answered(api, call, target, obj, config.warnings)


def _conflict_error(count: int, found: list[Any]) -> ApiError:
    plural = "s" if count != 1 else ""
    listed = "\n".join(f"- {cause.field}" for cause in found)
    return ApiError(
        409,
        "Conflict",
        f"Apply failed with {count} conflict{plural}: {found[0].message}:\n{listed}",
        causes=found,
    )
