"""Tells subscribers of pods' changes, without letting a slow one hold anyone up."""

import trio
from attrs import frozen

from machineplane.runtime.status import PodGone, PodStatus

PENDING_MAX = 1000  # what a subscriber may leave unread before Events for it are dropped; a guess


@frozen
class PodEvent:
    """Something that happened to a pod and is told once: a Kubernetes Event's type, reason and message."""

    uid: str
    kind: str
    reason: str
    message: str


Change = PodStatus | PodGone | PodEvent


class _Subscriber:
    def __init__(self) -> None:
        self.pending: dict[object, Change] = {}
        self.wake = trio.Event()


class Changes:
    """A hub. Each subscriber gets, of each pod, the latest state that it has not seen (older ones are left out).

    An Event that is still unread is not told twice; a subscriber that has too much unread misses Events, never states.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._subscribers: set[_Subscriber] = set()

    def subscribe(self, present: tuple[PodStatus, ...] = ()) -> trio.MemoryReceiveChannel[Change]:
        """A channel that begins with ``present``; closing it ends the subscription."""
        send, receive = trio.open_memory_channel[Change](0)
        subscriber = _Subscriber()
        self._subscribers.add(subscriber)
        for status in present:
            self._put(subscriber, status)
        self._nursery.start_soon(self._feed, subscriber, send)
        return receive

    def publish(self, change: Change) -> None:
        """Tell all; never waits."""
        for subscriber in self._subscribers:
            self._put(subscriber, change)

    @staticmethod
    def _put(subscriber: _Subscriber, change: Change) -> None:
        key: object = change.uid
        if isinstance(change, PodEvent):
            key = change
            if len(subscriber.pending) >= PENDING_MAX:
                return
        subscriber.pending.pop(key, None)
        subscriber.pending[key] = change
        subscriber.wake.set()

    async def _feed(self, subscriber: _Subscriber, send: trio.MemorySendChannel[Change]) -> None:
        try:
            async with send:
                while True:
                    await subscriber.wake.wait()
                    while subscriber.pending:
                        key = next(iter(subscriber.pending))
                        await send.send(subscriber.pending.pop(key))
                    subscriber.wake = trio.Event()
        except trio.BrokenResourceError:
            pass  # nobody listens any more
        finally:
            self._subscribers.discard(subscriber)
