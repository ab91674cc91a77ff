"""What can go wrong in the runtime room. Each text says what happened, to what, and what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

from machineplane.runtime.images.errors import ImageError


class RuntimeFault(Exception):
    """Root of the room's errors."""


class EngineError(RuntimeFault):
    """An engine could not do its part."""


class EngineUnavailable(EngineError):
    """The engine asked for cannot run on this machine; the text is the true reason."""


class HelperError(RuntimeFault):
    """A helper process refused a request or answered nonsense."""


class HelperLost(HelperError):
    """A helper process (zygote or shim) is gone."""


class PodError(RuntimeFault):
    """A pod could not be run, found or stopped."""


class NetworkFailed(PodError):
    """The pod's network could not be made or taken away; the text is the network room's own."""


class PodNotFound(PodError):
    """No pod of that uid is here."""


class PodExists(PodError):
    """A pod of that uid is here already."""


class CannotKeep(PodError):
    """The machine cannot keep what it must of a pod: its disk takes nothing more, or it has no descriptors left."""


class PodSpecError(PodError):
    """The pod asks for something that this version does not do, or its spec is malformed. Names the field."""


class StopFailed(PodError):
    """A pod was stopped, but something of it could not be removed; the text lists what."""


class LogsUnavailable(PodError):
    """No such container in the pod, or it has no log yet."""


class SessionUnavailable(PodError):
    """No process can be run in, attached to or connected to in this container; the text says why."""


TROUBLES = (RuntimeFault, ImageError, OSError, MemoryError)
"""What a machine without disk, descriptors or memory raises, and this room's own: a pod's trouble, not the daemon's."""


def told(error: BaseException) -> str:
    """What to show of a trouble; a MemoryError says nothing itself."""
    return str(error) or ("this machine is out of memory" if isinstance(error, MemoryError) else repr(error))


MALFORMED = (AttributeError, KeyError, TypeError, ValueError)
"""What reading an object of the wrong shape raises. Caught where a pod's spec, which others wrote, is read."""


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


@contextmanager
def single_fault() -> Iterator[None]:
    """Turn a nursery's group of nothing but this room's faults, or the system's, into the first; others pass."""
    try:
        yield
    except BaseExceptionGroup as group:
        leaves = list(_leaves(group))
        if all(isinstance(leaf, TROUBLES) for leaf in leaves):
            raise leaves[0] from group
        raise
