"""POST, PUT and DELETE of objects."""

from typing import Final, cast

from attrs import frozen

from .backend import Object, Propagation
from .bodies import check_size, read_object
from .calls import Answer, Call, Target
from .context import Api, selection
from .defaults import set_defaults
from .errors import ApiError, Success
from .incoming import MAX_WARNINGS, incoming, keep_identity, prepare_new
from .ownership import drop, track_update
from .podwarnings import pod_warnings
from .reads import sort_key
from .structure import structure
from .validation import validate_create, validate_update

_PROPAGATIONS: Final = ("Background", "Foreground", "Orphan")


def answered(
    api: Api, call: Call, target: Target, obj: Object, warnings: tuple[str, ...], *, status: int = 200
) -> Answer:
    """An object that was taken in, with what the client should know: of its request, and of what is not done here."""
    said = (*warnings, *pod_warnings(target.kind.kind, obj))[:MAX_WARNINGS]
    return Answer(api.shower(call, target).one(obj), status=status, warnings=said)


async def create_object(api: Api, call: Call, target: Target) -> Answer:
    """POST to a collection: 201 and the object as it is kept."""
    new = incoming(call, target)
    drop(new.object)
    obj = await create(api, call, target, new.object)
    return answered(api, call, target, obj, new.warnings, status=201)


async def create(api: Api, call: Call, target: Target, obj: Object) -> Object:
    """Default, validate and keep a new object. Raises ApiError 409, 413, 422."""
    prepare_new(api, obj)
    set_defaults(target.kind.kind, obj)
    validate_create(target.kind, obj)
    check_size(obj)
    return await api.backend.create(target.kind, obj, dry_run=call.dry_run)


async def replace_object(api: Api, call: Call, target: Target) -> Answer:
    """PUT of an object: whole, guarded by its resourceVersion if it has one."""
    new = incoming(call, target)
    old = await api.existing(target)
    version = new.object["metadata"].get("resourceVersion") or None
    drop(new.object)
    obj = await replace_tracked(api, call, target, new.object, old, version)
    return answered(api, call, target, obj, new.warnings)


async def replace_tracked(
    api: Api, call: Call, target: Target, obj: Object, old: Object, version: str | None
) -> Object:
    """:func:`replace` for anything but an apply: what it changes is booked to the call's manager."""
    keep_identity(obj, old)
    set_defaults(target.kind.kind, obj)
    track_update(obj, old, call.manager, api.now())
    return await replace(api, call, target, obj, old, version)


async def replace(
    api: Api, call: Call, target: Target, obj: Object, old: Object, version: str | None
) -> Object:
    """Default, validate and keep a new state of ``old``. Raises ApiError 409, 413, 422."""
    keep_identity(obj, old)
    set_defaults(target.kind.kind, obj)
    validate_update(target.kind, obj, old)
    check_size(obj)
    return await api.backend.replace(
        target.kind, obj, expected_resource_version=version, dry_run=call.dry_run
    )


@frozen
class DeleteOptions:
    """How to delete; from the body, else from the query."""

    propagation: Propagation = "Background"
    grace_seconds: int | None = None
    uid: str | None = None
    resource_version: str | None = None
    dry_run: bool = False


def delete_options(call: Call) -> DeleteOptions:
    """Raises ApiError 400 for options that mean nothing."""
    given: Object = {}
    if call.body.strip():
        given = read_object(call.body, call.content_type).value
        if given.get("kind") not in (None, "", "DeleteOptions"):
            raise ApiError.bad_request(f"the body of a delete must be DeleteOptions, not {given['kind']}")
        given = structure(given, "meta.DeleteOptions").object
    grace = given.get("gracePeriodSeconds", call.number("gracePeriodSeconds"))
    if grace is not None and grace < 0:
        raise ApiError.bad_request(f"gracePeriodSeconds: {grace} is less than 0")
    conditions = given.get("preconditions") or {}
    return DeleteOptions(
        propagation=_propagation(given, call),
        grace_seconds=grace,
        uid=conditions.get("uid"),
        resource_version=conditions.get("resourceVersion"),
        dry_run=call.dry_run or _all_dry(given.get("dryRun") or []),
    )


def _propagation(given: Object, call: Call) -> Propagation:
    policy = given.get("propagationPolicy") or call.query.get("propagationPolicy", "")
    if not policy:
        orphans = given.get("orphanDependents", call.flag("orphanDependents"))
        return "Orphan" if orphans else "Background"
    if policy not in _PROPAGATIONS:
        raise ApiError.bad_request(
            f"propagationPolicy: unsupported value {policy!r}: {', '.join(_PROPAGATIONS)}"
        )
    return cast(Propagation, policy)


def _all_dry(values: list[str]) -> bool:
    if any(value != "All" for value in values):
        raise ApiError.bad_request('dryRun: the only supported value is "All"')
    return bool(values)


async def delete_object(api: Api, call: Call, target: Target) -> Answer:
    """DELETE of one object: the object if it is still going, else a Status of success."""
    options = delete_options(call)
    obj = await _delete(api, target, str(target.name), options)
    if obj["metadata"].get("deletionTimestamp"):
        return Answer(api.shower(call, target).one(obj))
    done = Success(target.kind.subject(str(target.name)), obj["metadata"].get("uid", ""))
    return Answer(done.status())


async def _delete(api: Api, target: Target, name: str, options: DeleteOptions) -> Object:
    return await api.backend.delete(
        target.kind,
        target.namespace,
        name,
        uid=options.uid,
        resource_version=options.resource_version,
        propagation=options.propagation,
        grace_seconds=options.grace_seconds,
        dry_run=options.dry_run,
    )


async def delete_collection(api: Api, call: Call, target: Target) -> Answer:
    """DELETE of all that the selectors leave: the list of what is being deleted. What is gone already is no
    error."""
    options, matches = delete_options(call), selection(call, target)
    listing = await api.backend.list(target.kind, target.namespace)
    deleted = []
    for obj in sorted(filter(matches, listing.objects), key=sort_key):
        try:
            deleted.append(await _delete(api, target, obj["metadata"]["name"], options))
        except ApiError as error:
            if error.code != 404:
                raise
    return Answer(api.shower(call, target).many(deleted, listing.resource_version))
