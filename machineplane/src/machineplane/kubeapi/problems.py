"""A list of what is wrong with an object, in Kubernetes' words and with its reasons."""

import json
from typing import Any

from attrs import define, field

from .errors import Cause


@define
class Problems:
    """Collects causes; every method takes the path of the field, e.g. ``spec.containers[0].image``."""

    causes: list[Cause] = field(factory=list)

    def required(self, path: str, why: str = "") -> None:
        """A field that must be there is not."""
        self._add("FieldValueRequired", f"Required value{': ' + why if why else ''}", path)

    def invalid(self, path: str, value: Any, why: str) -> None:
        """A value breaks a rule."""
        self._add("FieldValueInvalid", f"Invalid value: {json.dumps(value)}: {why}", path)

    def unsupported(self, path: str, value: Any, supported: tuple[str, ...]) -> None:
        """A value is none of those that there are."""
        known = ", ".join(json.dumps(item) for item in supported)
        self._add(
            "FieldValueNotSupported",
            f"Unsupported value: {json.dumps(value)}: supported values: {known}",
            path,
        )

    def duplicate(self, path: str, value: Any) -> None:
        """A value that must be unique is there twice."""
        self._add("FieldValueDuplicate", f"Duplicate value: {json.dumps(value)}", path)

    def forbidden(self, path: str, why: str) -> None:
        """A field may not be set, or not be changed."""
        self._add("FieldValueForbidden", f"Forbidden: {why}", path)

    def too_long(self, path: str, limit: int) -> None:
        """A value is longer than ``limit`` bytes."""
        self._add("FieldValueTooLong", f"Too long: may not be more than {limit} bytes", path)

    def not_found(self, path: str, value: Any) -> None:
        """A value refers to what is not there."""
        self._add("FieldValueNotFound", f"Not found: {json.dumps(value)}", path)

    def _add(self, reason: str, message: str, path: str) -> None:
        self.causes.append(Cause(reason, message, path))
