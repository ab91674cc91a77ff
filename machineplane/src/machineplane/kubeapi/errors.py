"""Errors of the REST API: each one is a Kubernetes ``Status`` in waiting.

Handlers and backends raise :class:`ApiError` (by the named constructors below); the one place that answers
requests turns it into the HTTP status and the ``Status`` object that clients understand. Reasons and codes
are those of ``k8s.io/apimachinery/pkg/api/errors``; client programs branch on ``reason``, people read
``message``.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self

from attrs import field, frozen


@frozen
class Cause:
    """One reason inside a Status: ``reason`` as in ``FieldValueInvalid``, ``message`` for people, ``field``
    as a path."""

    reason: str
    message: str
    field: str = ""

    def json(self) -> dict[str, str]:
        """The ``StatusCause`` object."""
        cause = {"reason": self.reason, "message": self.message}
        return cause | ({"field": self.field} if self.field else {})


@frozen
class Subject:
    """What an error is about, for ``Status.details``: the API group, the resource's plural (or the kind), and
    the name."""

    group: str = ""
    kind: str = ""
    name: str = ""

    @property
    def resource(self) -> str:
        """``deployments.apps`` or ``pods``: how messages name a resource."""
        return f"{self.kind}.{self.group}" if self.group else self.kind


class ApiError(Exception):
    """An answer other than success: HTTP ``code``, machine-readable ``reason``, ``message``, optional
    details."""

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        *,
        subject: Subject | None = None,
        causes: Sequence[Cause] = (),
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.subject = subject
        self.causes = tuple(causes)
        self.retry_after = retry_after

    def status(self) -> dict[str, Any]:
        """The ``Status`` object (``v1``) that says this error."""
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            **self._details(),
            "code": self.code,
        }

    def _details(self) -> dict[str, Any]:
        details: dict[str, Any] = {}
        if self.subject is not None:
            pairs = (("name", self.subject.name), ("group", self.subject.group), ("kind", self.subject.kind))
            details |= {key: value for key, value in pairs if value}
        if self.causes:
            details["causes"] = [cause.json() for cause in self.causes]
        if self.retry_after is not None:
            details["retryAfterSeconds"] = self.retry_after
        return {"details": details}  # never absent: kubectl debug reads it without a look whether it is there

    @classmethod
    def not_found(cls, subject: Subject) -> Self:
        """404: no such object."""
        return cls(404, "NotFound", f'{subject.resource} "{subject.name}" not found', subject=subject)

    @classmethod
    def no_such_path(cls) -> Self:
        """404: no such resource at all; kubectl's words for it are "the server doesn't have a resource
        type"."""
        return cls(404, "NotFound", "the server could not find the requested resource")

    @classmethod
    def already_exists(cls, subject: Subject) -> Self:
        """409: create of a name that is taken."""
        return cls(
            409, "AlreadyExists", f'{subject.resource} "{subject.name}" already exists', subject=subject
        )

    @classmethod
    def conflict(cls, subject: Subject, why: str = "", causes: Sequence[Cause] = ()) -> Self:
        """409: the object is not at the version the writer had read."""
        why = why or (
            "the object has been modified; please apply your changes to the latest version and try again"
        )
        message = f'Operation cannot be fulfilled on {subject.resource} "{subject.name}": {why}'
        return cls(409, "Conflict", message, subject=subject, causes=causes)

    @classmethod
    def invalid(cls, subject: Subject, causes: Sequence[Cause]) -> Self:
        """422: the object breaks rules; ``subject.kind`` is the kind here ("Deployment"), as in
        Kubernetes."""
        listed = [f"{cause.field}: {cause.message}" if cause.field else cause.message for cause in causes]
        what = listed[0] if len(listed) == 1 else f"[{', '.join(listed)}]"
        return cls(
            422,
            "Invalid",
            f'{subject.resource} "{subject.name}" is invalid: {what}',
            subject=subject,
            causes=causes,
        )

    @classmethod
    def bad_request(cls, message: str) -> Self:
        """400: the request itself makes no sense."""
        return cls(400, "BadRequest", message)

    @classmethod
    def unauthorized(cls) -> Self:
        """401: no token, or not ours."""
        return cls(401, "Unauthorized", "Unauthorized")

    @classmethod
    def forbidden(cls, message: str) -> Self:
        """403: understood, and refused."""
        return cls(403, "Forbidden", message)

    @classmethod
    def method_not_allowed(
        cls, message: str = "the server does not allow this method on the requested resource"
    ) -> Self:
        """405: the resource exists, the verb does not."""
        return cls(405, "MethodNotAllowed", message)

    @classmethod
    def unsupported_media(cls, sent: str, accepted: Sequence[str]) -> Self:
        """415: a body in a format that nobody here reads."""
        message = (
            "the body of the request was in an unknown format - "
            f"accepted media types include: {', '.join(accepted)} (sent: {sent})"
        )
        return cls(415, "UnsupportedMediaType", message)

    @classmethod
    def too_large(cls, limit: int) -> Self:
        """413: body or manifest over ``limit`` bytes."""
        return cls(413, "RequestEntityTooLarge", f"Request entity too large: limit is {limit}")

    @classmethod
    def expired(cls, message: str = "") -> Self:
        """410: the asked-for resource version is no longer remembered; clients list again."""
        return cls(410, "Expired", message or "too old resource version: list again and watch from there")

    @classmethod
    def not_implemented(cls, message: str) -> Self:
        """501: known, but not built."""
        return cls(501, "NotImplemented", message)

    @classmethod
    def unavailable(cls, message: str, retry_after: int = 1) -> Self:
        """503: not now; ``retry_after`` in seconds."""
        return cls(503, "ServiceUnavailable", message, retry_after=retry_after)

    @classmethod
    def internal(cls, message: str) -> Self:
        """500: our fault."""
        return cls(500, "InternalError", f"Internal error occurred: {message}")


class PortTaken(Exception):
    """A listening address cannot be had: the message names the option, the address and what to do."""

    def __init__(self, message: str, errno: int) -> None:
        super().__init__(message)
        self.errno = errno


@frozen
class Success:
    """A ``Status`` that says "done", as a delete answers it."""

    subject: Subject
    uid: str = ""
    extra: Mapping[str, Any] = field(factory=dict)

    def status(self) -> dict[str, Any]:
        """The ``Status`` object."""
        details = {
            "name": self.subject.name,
            "group": self.subject.group,
            "kind": self.subject.kind,
            "uid": self.uid,
        }
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Success",
            "details": {key: value for key, value in details.items() if value},
            **self.extra,
        }
