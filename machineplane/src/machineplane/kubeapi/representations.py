"""What a client gets to see of objects: themselves, their metadata, or a Table; by its ``Accept`` header."""

from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

from attrs import frozen

from .backend import Object
from .columns import COLUMNS, FALLBACK, Column
from .errors import ApiError
from .kinds import Kind

Include = Literal["None", "Metadata", "Object"]
META: Final = "meta.k8s.io/v1"


@frozen
class Accepted:
    """The form that a client asks for: ``form`` is "", ``Table``, ``PartialObjectMetadata`` or
    ``PartialObjectMetadataList``."""

    form: str = ""
    include: Include = "Metadata"


_FORMS: Final = ("Table", "PartialObjectMetadata", "PartialObjectMetadataList")


def accepted(header: str, include: str = "") -> Accepted:
    """The first form of an ``Accept`` header that we can give. Raises ApiError 406 if there is none."""
    if include not in ("", "None", "Metadata", "Object"):
        raise ApiError.bad_request(f"unrecognized includeObject {include!r}")
    for choice in header.split(",") if header.strip() else ["*/*"]:
        media, parameters = split_media(choice)
        if parameters.get("as", "") in _FORMS and media.endswith("/json") and parameters.get("v") == "v1":
            return Accepted(parameters["as"], include or "Metadata")  # type: ignore[arg-type]
        if "as" not in parameters and media in (
            "*/*",
            "application/*",
            "application/json",
            "text/*",
            "text/html",
        ):
            return Accepted()
        if "as" not in parameters and (
            media.endswith("yaml") or "protobuf" in media or media == "text/plain"
        ):
            continue
    raise ApiError(406, "NotAcceptable", "only the following media types are accepted: application/json")


def split_media(choice: str) -> tuple[str, dict[str, str]]:
    """``application/json;as=Table;v=v1`` → media type and parameters."""
    media, *rest = (part.strip() for part in choice.split(";"))
    return media.lower(), dict(part.split("=", 1) for part in rest if "=" in part)


@frozen
class Shower:
    """Puts objects of one kind into one form. ``now`` gives seconds since the epoch, for ages."""

    kind: Kind
    form: Accepted
    now: Callable[[], float]

    def one(self, obj: Object) -> Object:
        """A single object."""
        if self.form.form == "Table":
            return self.table([obj], {"resourceVersion": obj["metadata"].get("resourceVersion", "")})
        return partial(obj) if self.form.form else obj

    def many(self, objects: Sequence[Object], resource_version: str) -> Object:
        """A list."""
        meta = {"resourceVersion": resource_version}
        if self.form.form == "Table":
            return self.table(objects, meta)
        if self.form.form:
            items = [partial(obj) for obj in objects]
            return {
                "kind": "PartialObjectMetadataList",
                "apiVersion": META,
                "metadata": meta,
                "items": items,
            }
        return {
            "kind": self.kind.list_kind,
            "apiVersion": self.kind.api_version,
            "metadata": meta,
            "items": list(objects),
        }

    def table(self, objects: Sequence[Object], meta: dict[str, Any], *, headers: bool = True) -> Object:
        """A ``Table``; in a watch only the first has ``headers``."""
        columns = COLUMNS.get(self.kind.kind, FALLBACK)
        now = self.now()
        return {
            "kind": "Table",
            "apiVersion": META,
            "metadata": meta,
            "columnDefinitions": [column.definition() for column in columns] if headers else None,
            "rows": [self._row(columns, obj, now) for obj in objects],
        }

    def _row(self, columns: Sequence[Column], obj: Object, now: float) -> dict[str, Any]:
        row: dict[str, Any] = {"cells": [column.cell(obj, now) for column in columns]}
        if self.form.include == "Object":
            row["object"] = obj
        elif self.form.include == "Metadata":
            row["object"] = partial(obj)
        return row


def partial(obj: Object) -> Object:
    """The ``PartialObjectMetadata`` of an object."""
    return {"kind": "PartialObjectMetadata", "apiVersion": META, "metadata": obj["metadata"]}
