"""What handlers are given: the backend, the tables, a clock and a random source."""

import os
import time
from collections.abc import Callable

from attrs import field, frozen

from .backend import Backend, Object
from .calls import Call, Target
from .discovery import Discovery
from .errors import ApiError
from .kinds import KindTable
from .representations import Shower, accepted
from .selectors import Matcher, matcher


@frozen
class Api:
    """The API's parts. ``now`` gives seconds since the epoch (for ages only), ``random`` n random bytes (for
    generated names), ``release`` is Magik's version."""

    backend: Backend
    release: str = "0"
    kinds: KindTable = field(factory=KindTable)
    now: Callable[[], float] = time.time
    random: Callable[[int], bytes] = os.urandom

    @property
    def discovery(self) -> Discovery:
        """Discovery of the served kinds."""
        return Discovery(self.kinds)

    def shower(self, call: Call, target: Target) -> Shower:
        """How this client wants to see objects. Raises ApiError 406."""
        return Shower(target.kind, accepted(call.accept, call.query.get("includeObject", "")), self.now)

    async def existing(self, target: Target) -> Object:
        """The object that a target names. Raises ApiError 404."""
        assert target.name is not None
        obj = await self.backend.get(target.kind, target.namespace, target.name)
        if obj is None:
            raise ApiError.not_found(target.kind.subject(target.name))
        return obj


def selection(call: Call, target: Target) -> Matcher:
    """The call's label and field selectors as one predicate. Raises ApiError 400."""
    labels, fields = call.query.get("labelSelector", ""), call.query.get("fieldSelector", "")
    return matcher(target.kind.kind, labels, fields)
