"""PUT and PATCH of ``/scale``: a small object that stands for ``spec.replicas``."""

from copy import deepcopy

from .backend import Object
from .bodies import media_type, read_object
from .calls import Answer, Call, Target
from .context import Api
from .errors import ApiError, Subject
from .patches import TRIES, patched, read_patch
from .problems import Problems
from .reads import scale_of
from .structure import structure
from .validation import MAX_INT32
from .writes import replace_tracked

_SCHEMA = "autoscaling.Scale"


async def put_scale(api: Api, call: Call, target: Target) -> Answer:
    """PUT: the Scale's resourceVersion, if given, guards the write."""
    scale = _typed(read_object(call.body, call.content_type).value)
    _check_name(scale, target)
    old = await api.existing(target)
    return await _scaled(api, call, target, old, scale, scale["metadata"].get("resourceVersion") or None)


async def patch_scale(api: Api, call: Call, target: Target) -> Answer:
    """PATCH, as strategic merge, merge or JSON patch; computed anew on a conflict."""
    media = media_type(call.content_type)
    patch = read_patch(call, media)
    for attempt in range(TRIES):
        old = await api.existing(target)
        scale = _typed(patched(scale_of(old), patch, media, _SCHEMA))
        try:
            return await _scaled(api, call, target, old, scale, old["metadata"].get("resourceVersion"))
        except ApiError as error:
            if error.reason != "Conflict" or attempt == TRIES - 1:
                raise
    raise AssertionError("unreachable: the last attempt returns or raises")


def _typed(scale: Object) -> Object:
    if (scale.get("kind") or "Scale", scale.get("apiVersion") or "autoscaling/v1") != (
        "Scale",
        "autoscaling/v1",
    ):
        raise ApiError.bad_request("the body is no Scale of autoscaling/v1")
    cleaned = structure(scale, _SCHEMA).object
    cleaned.setdefault("metadata", {})
    return cleaned


def _check_name(scale: Object, target: Target) -> None:
    name = scale["metadata"].get("name") or target.name
    if name != target.name:
        raise ApiError.bad_request(
            f"the name of the object ({name}) does not match the name on the URL ({target.name})"
        )


async def _scaled(
    api: Api, call: Call, target: Target, old: Object, scale: Object, version: str | None
) -> Answer:
    replicas = (scale.get("spec") or {}).get("replicas", 0)
    problems = Problems()
    if not 0 <= replicas <= MAX_INT32:
        problems.invalid("spec.replicas", replicas, "must be greater than or equal to 0")
        raise ApiError.invalid(Subject("autoscaling", "Scale", str(target.name)), problems.causes)
    new = deepcopy(old)
    new["spec"]["replicas"] = replicas
    return Answer(scale_of(await replace_tracked(api, call, target, new, old, version)))
