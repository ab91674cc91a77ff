"""GET of one object and of lists, and of the pseudo-object Scale."""

from .backend import Object
from .calls import Answer, Call, Target
from .context import Api, selection
from .errors import ApiError
from .selectors import selector_text

_MATCHES = ("", "Exact", "NotOlderThan")


async def get_object(api: Api, call: Call, target: Target) -> Answer:
    """One object, whole, as metadata or as a Table. Raises ApiError 404."""
    shower = api.shower(call, target)
    return Answer(shower.one(await api.existing(target)))


async def list_objects(api: Api, call: Call, target: Target) -> Answer:
    """All objects that the selectors leave, sorted by namespace and name; never in pieces, so never with
    ``continue``."""
    shower, matches = api.shower(call, target), selection(call, target)
    check_list_options(call)
    listing = await api.backend.list(target.kind, target.namespace, only_name(call))
    chosen = sorted(filter(matches, listing.objects), key=sort_key)
    warnings = (listing.warning,) if listing.warning else ()
    return Answer(shower.many(chosen, listing.resource_version), warnings=warnings)


def check_list_options(call: Call) -> None:
    """Raises ApiError for options that are malformed, or 410 for a ``continue`` that we did not give."""
    call.number("limit")
    if call.query.get("continue"):
        raise ApiError.expired("the provided continue parameter is too old: start the list again without it")
    version, match = call.query.get("resourceVersion", ""), call.query.get("resourceVersionMatch", "")
    if version and not version.isdecimal():
        raise ApiError.bad_request(f"resourceVersion: invalid value {version!r}")
    if match not in _MATCHES:
        raise ApiError.bad_request(f"resourceVersionMatch: unsupported value {match!r}")
    if match and not version and not call.flag("sendInitialEvents"):
        raise ApiError.bad_request("resourceVersionMatch is forbidden unless resourceVersion is provided")
    if match == "Exact" and version != "0":
        # Only the present is kept: an exact past version cannot be had.
        raise ApiError.expired(f"resourceVersion {version} is no longer kept: ask for the present")


def only_name(call: Call) -> str | None:
    """The name of the only object that a field selector lets through, as ``kubectl get NAME --watch`` has it."""
    for part in call.query.get("fieldSelector", "").split(","):
        key, equals, value = part.partition("=")
        if key == "metadata.name" and equals and value and not value.startswith("="):
            return value
    return None


def sort_key(obj: Object) -> tuple[str, str]:
    """By namespace, then name."""
    return str(obj["metadata"].get("namespace", "")), str(obj["metadata"]["name"])


async def get_scale(api: Api, call: Call, target: Target) -> Answer:
    """The ``/scale`` subresource."""
    return Answer(scale_of(await api.existing(target)))


def scale_of(obj: Object) -> Object:
    """The ``autoscaling/v1`` Scale of an object with ``spec.replicas`` and ``spec.selector``."""
    meta = obj["metadata"]
    kept = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {key: meta[key] for key in kept if key in meta},
        "spec": {"replicas": obj["spec"].get("replicas", 0)},
        "status": {
            "replicas": (obj.get("status") or {}).get("replicas", 0),
            "selector": selector_text(obj["spec"].get("selector") or {}),
        },
    }
